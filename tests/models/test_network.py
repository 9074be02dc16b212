"""The networks of the families against transformers, in every kind of forward."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from tests.conftest import written_places
from tests.families import FAMILIES, family_model, make_family
from textenv import CausalLM, TextEnvError
from textenv.models import linear as linear_module
from textenv.models import network as network_module
from textenv.models.families import BUILDERS, build_network
from textenv.models.linear import Linear
from textenv.models.lora import Lora
from textenv.models.network import Block, Network
from textenv.models.operations import activation, layer_norm
from textenv.models.policy import TextPolicy

KNOWN = [(name, tied) for name, tied in FAMILIES if name not in ("gemma2", "gemma3")]
BATCH, TIME = 3, 11
STARCODER2 = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "initializer_range", "bos_token_id", "eos_token_id",
}  # fmt: skip


def token_ids(batch: int = BATCH, time: int = TIME) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(2, 300, (batch, time)))


def theirs(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    trunk: Any = model.base_model
    hidden: torch.Tensor = trunk(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
    return hidden


def network_of(model: PreTrainedModel, *, adapted: bool = False) -> Network:
    found = build_network(model, adapted=adapted)
    assert found is not None
    return found


@pytest.mark.parametrize(("name", "tied"), KNOWN)
@pytest.mark.parametrize("packed", [False, True])
def test_whole_sequences(name: str, tied: bool, packed: bool) -> None:
    model = family_model(name, tied=tied).eval()
    network, ids = network_of(model), token_ids()
    with torch.no_grad():
        if packed:
            network.pack()
        torch.testing.assert_close(network.run(ids), theirs(model, ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("lengths", [(10, 10, 10), (10, 4, 7)])
def test_a_token_behind_a_long_text(name: str, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """From a number of keys on, its attention is another operation."""
    lm = make_family(name)
    ids, sizes = token_ids(3, 10).numpy(), np.array(lengths)
    lm.next_token_logits(ids, sizes - 1)
    monkeypatch.setattr(network_module, "_MAX_EXPLICIT_KEYS", 3)
    found = lm.next_token_logits(ids, sizes)
    with torch.no_grad():
        logits = lm.model(input_ids=torch.from_numpy(ids)).logits
    torch.testing.assert_close(found, logits[torch.arange(3), torch.from_numpy(sizes - 1)], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "tied"), KNOWN)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_gradients(name: str, tied: bool, checkpointing: bool, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if large:
        monkeypatch.setattr(linear_module, "_LARGE_PRODUCT", 0)
    model = family_model(name, tied=tied).eval().requires_grad_(True)
    network, ids = network_of(model), token_ids()
    network.pack()  # packed weights are for forwards without gradients, and stay out of this
    network.checkpointing = checkpointing
    gradients = []
    for hidden in (network.run(ids), theirs(model, ids)):
        model.zero_grad()
        hidden.square().mean().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() != set()
    for parameter, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][parameter], atol=1e-5, rtol=1e-3, msg=parameter)


def test_checkpoints_save_memory() -> None:
    saved = []
    for checkpointing in (False, True):
        network = network_of(family_model("llama").requires_grad_(True))
        network.checkpointing = checkpointing
        sizes: list[int] = []

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network.run(token_ids())
        saved.append(sum(sizes))
    assert saved[1] < 0.5 * saved[0]


# -- families -----------------------------------------------------------------------------------------------------


def test_every_family_that_is_built_is_tested() -> None:
    assert {family_model(name).config.model_type for name, _ in KNOWN} == set(BUILDERS)


def build_starcoder2(model: PreTrainedModel, linear: Callable[..., Linear]) -> Network:
    """Biases and layer normalization as in GPT-2, rotary positions and grouped queries as in Llama."""
    config, trunk = cast(Any, model.config), cast(Any, model.base_model)
    blocks = [
        Block(
            attention_norm=layer_norm(layer.input_layernorm),
            qkv=linear(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
            head_norms=None,
            out=linear(layer.self_attn.o_proj),
            scale=layer.self_attn.scaling,
            mlp_norm=layer_norm(layer.post_attention_layernorm),
            up=linear(layer.mlp.c_fc, activation=activation(layer.mlp.act)),
            gate=None,
            down=linear(layer.mlp.c_proj),
        )
        for layer in trunk.layers
    ]
    return Network(
        model,
        embed=lambda ids, _: trunk.embed_tokens(ids),
        blocks=blocks,
        norm=layer_norm(trunk.norm),
        heads=(config.num_attention_heads, config.num_key_value_heads, trunk.layers[0].self_attn.head_dim),
        rotary=trunk.rotary_emb,
    )


def test_a_family_is_one_function_and_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {name: value for name, value in family_model("llama").config.to_dict().items() if name in STARCODER2}
    torch.manual_seed(0)
    model = Starcoder2ForCausalLM(Starcoder2Config(**shape, sliding_window=None)).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # biases begin at 0, where mistakes would not show
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    assert build_network(model) is None
    monkeypatch.setitem(BUILDERS, "starcoder2", build_starcoder2)
    ids, network = token_ids(), network_of(model)
    with torch.no_grad():
        torch.testing.assert_close(network.run(ids), theirs(model, ids), atol=1e-4, rtol=1e-4)
    lm = CausalLM(model, make_family("llama").tokenizer)
    for length in range(4, TIME + 1):
        found = lm.last_hidden(ids.numpy(), np.full(BATCH, length))
        torch.testing.assert_close(found, theirs(model, ids[:, :length])[:, -1], atol=1e-4, rtol=1e-4)
    assert isinstance(lm._network, Network)


class Subclass(LlamaForCausalLM):
    """What it computes cannot be known."""


def test_what_is_not_known_runs_through_its_own_forward() -> None:
    assert build_network(family_model("gemma2")) is None
    assert build_network(family_model("gemma3")) is None
    llama = family_model("llama")
    assert build_network(Subclass(cast(LlamaConfig, llama.config))) is None
    assert (
        build_network(family_model("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}))
        is None
    )
    hook = llama.base_model.layers[0].register_forward_hook(lambda module, inputs, output: None)  # type: ignore[index,union-attr]
    assert build_network(llama) is None
    hook.remove()
    assert build_network(llama) is not None


def test_a_hook_is_heeded_from_the_next_call_on() -> None:
    lm = make_family("llama")
    ids, lengths = token_ids().numpy(), np.full(BATCH, TIME)
    before = lm.next_token_logits(ids, lengths)
    layer: Any = lm.model.base_model
    hook = layer.norm.register_forward_hook(lambda module, inputs, output: output * 2)
    torch.testing.assert_close(lm.next_token_logits(ids, lengths), before * 2, atol=1e-4, rtol=1e-4)
    hook.remove()
    torch.testing.assert_close(lm.next_token_logits(ids, lengths), before, atol=1e-4, rtol=1e-4)


def test_a_sliding_window_is_kept_to() -> None:
    shape = {**family_model("llama").config.to_dict(), "sliding_window": 6}
    for name in ("model_type", "architectures"):
        shape.pop(name)
    torch.manual_seed(0)
    lm = CausalLM(MistralForCausalLM(MistralConfig(**shape)).eval(), make_family("llama").tokenizer)
    for width in (5, 11):
        ids = token_ids(2, width)
        with torch.no_grad():
            expected = theirs(lm.model, ids)
            torch.testing.assert_close(lm.hidden_states(ids, torch.full((2,), width)), expected, atol=1e-4, rtol=1e-4)


def test_a_reference_reads_no_adapter_in_texts_beyond_its_window() -> None:
    """Those run through the model's own forward, in which the adapter of the policy that shares it is."""
    shape = {**family_model("llama").config.to_dict(), "sliding_window": 6}
    for name in ("model_type", "architectures"):
        shape.pop(name)
    torch.manual_seed(0)
    lm = CausalLM(MistralForCausalLM(MistralConfig(**shape)).eval(), make_family("llama").tokenizer)
    ids, lengths = token_ids(2, 11).numpy(), np.full(2, 11)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* attends to 6 tokens at a time")
        before: tuple[Any, Any] = lm.token_log_probs(ids, lengths), lm.next_token_logits(ids, lengths)
        policy = TextPolicy(lm, lora=Lora(rank=2, alpha=4))
        disturb(policy)
        lm.next_token_logits(ids[:, :4], lengths // 3)
        learned: tuple[Any, Any] = policy.lm.token_log_probs(ids, lengths), policy.lm.next_token_logits(ids, lengths)
        found: tuple[Any, Any] = lm.token_log_probs(ids, lengths), lm.next_token_logits(ids, lengths)
    for now, other, expected in zip(found, learned, before, strict=True):
        assert float(abs(other - expected).max()) > 0.05
        np.testing.assert_allclose(now, expected, atol=1e-5, rtol=1e-5)


def test_a_copy_reads_its_own_weights() -> None:
    lm = make_family("gpt2")
    ids, lengths = token_ids().numpy(), np.full(BATCH, TIME)
    before = lm.next_token_logits(ids, lengths)
    other = copy.deepcopy(lm)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(0.5)
    assert float((other.next_token_logits(ids, lengths) - before).abs().max()) > 1e-2
    torch.testing.assert_close(lm.next_token_logits(ids, lengths), before, atol=1e-5, rtol=1e-5)


def test_packed_weights_are_dropped_with_the_next_step() -> None:
    lm = make_family("llama")
    lm.model.requires_grad_(True)
    ids, lengths = token_ids().numpy(), np.full(BATCH, TIME)
    lm.next_token_logits(ids, lengths)
    optimizer = torch.optim.SGD(lm.model.parameters(), lr=0.1)
    lm.model(input_ids=token_ids()).logits.square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        expected = lm.model(input_ids=token_ids()).logits[:, -1]
    torch.testing.assert_close(lm.next_token_logits(ids, lengths), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        torch.from_numpy(lm.token_log_probs(ids, lengths)),
        lm.model(input_ids=token_ids())
        .logits.detach()
        .log_softmax(-1)[:, :-1]
        .gather(2, token_ids()[:, 1:, None])[..., 0],
        atol=1e-4,
        rtol=1e-4,
    )


# -- adapters -----------------------------------------------------------------------------------------------------


def disturb(policy: TextPolicy) -> None:
    """Make an adapter that does something: it starts as zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.learned.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])  # the last runs through its own forward
def test_policy_and_reference_share_the_weights_and_nothing_else(name: str) -> None:
    lm = make_family(name)
    ids, lengths = token_ids().numpy(), np.full(BATCH, TIME)
    before = lm.next_token_logits(ids, lengths)
    bytes_before = sum(p.nbytes for p in lm.model.parameters())
    policies = [TextPolicy(lm, lora=Lora(rank=2, alpha=4)) for _ in range(2)]
    torch.testing.assert_close(policies[0].lm.next_token_logits(ids, lengths), before, atol=1e-5, rtol=1e-5)
    for policy in policies:
        assert policy.lm.model is lm.model
        disturb(policy)
    found = [policy.lm.next_token_logits(ids, lengths) for policy in policies]
    assert float((found[0] - before).abs().max()) > 0.05
    assert float((found[0] - found[1]).abs().max()) > 0.05 or name == "gemma2"
    torch.testing.assert_close(lm.next_token_logits(ids, lengths), before, atol=1e-5, rtol=1e-5)
    places = written_places([4] * BATCH, [TIME] * BATCH, TIME)
    logits = policies[0].evaluate(token_ids(), torch.full((BATCH,), TIME), places)  # with gradients, by other ways
    log_probs = policies[0].lm.token_log_probs(ids, lengths)[:, 3:]
    torch.testing.assert_close(logits.log_probs.detach(), torch.from_numpy(log_probs).flatten(), atol=1e-4, rtol=1e-4)
    logits.log_probs.sum().backward()
    assert all(p.grad is not None for n, p in policies[0].named_parameters() if ".policy0." in n)
    assert all(p.grad is None for n, p in policies[0].named_parameters() if "lora_" not in n and "value" not in n)
    assert sum(p.nbytes for p in lm.model.parameters()) < 2 * bytes_before


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_an_adapter_is_saved_by_itself_and_loads_as_a_model(name: str, tmp_path: Path) -> None:
    plain = make_family(name)
    plain.model.save_pretrained(tmp_path / "base")
    plain.tokenizer.save_pretrained(tmp_path / "base")
    lm = CausalLM.from_pretrained(tmp_path / "base")
    policy = TextPolicy(lm, lora=Lora(rank=2, alpha=4))
    disturb(policy)
    policy.save(tmp_path / "policy")
    names = {path.name for path in (tmp_path / "policy").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "value.safetensors"} <= names
    assert not names & {"model.safetensors", "config.json"}
    ids, lengths = token_ids().numpy(), np.full(BATCH, TIME)
    expected = policy.lm.next_token_logits(ids, lengths)
    again = TextPolicy(lm, lora=Lora(rank=2, alpha=4))
    again.load(tmp_path / "policy")
    torch.testing.assert_close(again.lm.next_token_logits(ids, lengths), expected)
    merged = CausalLM.from_pretrained(tmp_path / "policy")
    torch.testing.assert_close(merged.next_token_logits(ids, lengths), expected, atol=1e-4, rtol=1e-4)
    other = TextPolicy(lm, lora=Lora(rank=3, alpha=4))
    with pytest.raises(TextEnvError, match="cannot be read into the policy"):
        other.load(tmp_path / "policy")


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(TextEnvError, match=r"LoRA with targets .*nonsense.* does not fit LlamaForCausalLM"):
        TextPolicy(make_family("llama"), lora=Lora(rank=2, alpha=4, targets=("nonsense",)))
    with pytest.raises(TextEnvError, match="a second copy of the weights"):
        TextPolicy(make_family("llama"), lora=Lora(rank=2, alpha=4), value="model")
