"""What models and policies keep in memory, counted in numbers and bytes; what they compute stays the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.conftest import VOCABULARY, build_lm, written_places
from tests.families import make_family
from textenv.models import causal_lm, onednn
from textenv.models import policy as policy_module
from textenv.models.linear import Linear
from textenv.models.lora import Lora
from textenv.models.policy import Evaluation, TextPolicy

ROWS, WIDTH, PROMPT = 4, 60, 10
TOKENS = ROWS * (WIDTH - PROMPT)


def texts(vocabulary: int = VOCABULARY) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, lengths and the places of what was written."""
    ids = torch.randint(0, vocabulary, (ROWS, WIDTH), generator=torch.Generator().manual_seed(0))
    return ids, torch.full((ROWS,), WIDTH), written_places([PROMPT] * ROWS, [WIDTH] * ROWS, WIDTH)


class Largest(TorchDispatchMode):
    """Keeps the size of the largest tensor of logits that an operation returns, in numbers; the head is none."""

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size, self._width, self._head = 0, width, (hidden_size, width)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in tree_leaves(found):
            if isinstance(each, torch.Tensor) and each.shape[-1:] == (self._width,) and each.shape != self._head:
                self.size = max(self.size, each.numel())
        return found


def learned_gradients(policy: TextPolicy, now: Evaluation) -> dict[str, torch.Tensor]:
    weights = torch.linspace(-1, 2, TOKENS)
    loss = (now.log_probs * weights).sum() + (now.entropy * weights.flip(0)).sum() + now.values.sum()
    policy.zero_grad()
    (loss + now.candidates.square().sum()).backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])  # the last caps its logits
@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4)], ids=["all weights", "adapter"])
@pytest.mark.parametrize("masked", [False, True])
def test_logits_in_parts_are_those_at_once(
    family: str, lora: Lora | None, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same log-probabilities, entropies and gradients, and never more logits than those of a part."""
    lm = make_family(family)
    torch.manual_seed(1)
    policy = TextPolicy(lm, lora=lora, temperature=0.8)
    assert policy.value_head is not None
    with torch.no_grad():
        for parameter in policy.learned.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    ids, lengths, places = texts(lm.vocab_size)
    candidates = torch.randint(0, lm.vocab_size, (TOKENS, 3))
    masks = torch.rand(TOKENS, lm.vocab_size) < 0.5 if masked else None
    if masks is not None:
        masks[torch.arange(TOKENS), ids.flatten()[places]] = True
        masks.scatter_(1, candidates, True)
    found, largest = [], []
    for rows in (TOKENS, 7):
        monkeypatch.setattr(policy_module, "_MAX_CPU_LOGITS", rows * lm.vocab_size)
        with Largest(lm.vocab_size, lm.hidden_size) as counted:
            now = policy.evaluate(ids, lengths, places, masks, candidates=candidates)
            gradients = learned_gradients(policy, now)
        found.append(({name: value.detach() for name, value in now._asdict().items()}, gradients))
        largest.append(counted.size)
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-5, rtol=1e-5)
    scale = max(float(gradient.abs().max()) for gradient in found[0][1].values())
    torch.testing.assert_close(found[1][1], found[0][1], atol=1e-5 * scale, rtol=1e-4)
    assert largest == [TOKENS * lm.vocab_size, 7 * lm.vocab_size]


def test_log_probs_in_parts_are_those_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_module, "_MAX_CPU_LOGITS", 7 * VOCABULARY)
    lm = build_lm()
    policy = TextPolicy(lm, value="none")
    ids, lengths, places = texts()
    ours = policy.evaluate(ids, lengths, places).log_probs
    weights = torch.linspace(-1, 1, TOKENS)
    embeddings: Any = policy.model.get_input_embeddings()
    logits = policy.model(input_ids=ids).logits
    plain = torch.log_softmax(logits, dim=-1)[:, PROMPT - 1 : -1].gather(2, ids[:, PROMPT:, None]).flatten()
    gradients = [torch.autograd.grad((each * weights).sum(), embeddings.weight)[0] for each in (ours, plain)]
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5 * float(gradients[1].abs().max()), rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(policy.evaluate(ids, lengths, places).log_probs, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_about_what_is_expected(family: str, checkpointing: bool) -> None:
    lm = make_family(family)
    if checkpointing:
        lm.enable_gradient_checkpointing()
    lm.model.requires_grad_(True)
    weights = {p.untyped_storage().data_ptr() for p in lm.model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids, lengths, places = texts(lm.vocab_size)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = lm.hidden_states(ids, lengths, places)
    assert hidden.requires_grad
    kept = sum(tensor.untyped_storage().nbytes() for tensor in saved.values()) / ids.numel()
    assert kept < lm.activation_bytes * 1.6
    assert checkpointing or kept > lm.activation_bytes * 0.5


def test_packed_layers_keep_one_copy_of_their_weights() -> None:
    layers = nn.Linear(64, 640, bias=False), nn.Linear(64, 128, bias=False)
    linear = Linear(*layers)
    assert linear.pack()
    with torch.no_grad():
        linear(torch.randn(600, 64))
    kept = [each for each in vars(linear._packed).values() if isinstance(each, torch.Tensor)]
    sizes = [each.numel() for each in kept]
    assert sizes == [768 * 64]
    assert kept[0].is_mkldnn == onednn.available()


def test_what_is_released_is_computed_again() -> None:
    lm = build_lm()
    ids, lengths = texts()[0].numpy(), np.full(ROWS, WIDTH)
    before = lm.next_token_logits(ids, lengths)
    assert lm._network is not None
    assert lm._network._packed is not None
    lm.release()
    assert lm._network._packed is None
    assert not getattr(lm._cache._keys_values, "buffers", None)
    torch.testing.assert_close(lm.next_token_logits(ids, lengths), before, atol=0, rtol=0)
    lm.release()
    shorter = lm.next_token_logits(ids[:2, :9], np.array([9, 4]))  # fewer rows, and narrower
    plain = build_lm().next_token_logits(ids[:2, :9], np.array([9, 4]))
    torch.testing.assert_close(shorter, plain, atol=0, rtol=0)


def test_scoring_reads_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, ids, lengths = build_lm(), texts()[0].numpy(), np.array([WIDTH, 1, 33, 58])
    expected, sizes, hidden_states = lm.token_log_probs(ids, lengths), list[int](), lm.hidden_states

    def counted(input_ids: torch.Tensor, *given: Any) -> torch.Tensor:
        sizes.append(len(input_ids))
        return hidden_states(input_ids, *given)

    monkeypatch.setattr(lm, "hidden_states", counted)
    for most, rows in ((3 * WIDTH + 1, [3, 1]), (1, [1] * ROWS), (10**6, [ROWS])):
        sizes.clear()
        monkeypatch.setattr(causal_lm, "_MAX_CPU_TOKENS", most)
        np.testing.assert_allclose(lm.token_log_probs(ids, lengths), expected, atol=1e-5)
        assert sizes == rows
