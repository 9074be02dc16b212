"""The policy: what it draws, what it says about it when training, and what it writes down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy import stats

from tests.conftest import build_lm, written_places
from textenv import CausalLM, TextEnvError
from textenv.models.policy import TextPolicy, observation_arrays
from textenv.types import FullDistribution

VOCABULARY = 300
WIDTH = 14


def observation(ids: Any, lengths: Any) -> dict[str, Any]:
    mask = np.arange(ids.shape[1]) < np.asarray(lengths)[:, None]
    return {"input_ids": np.where(mask, ids, 1), "attention_mask": mask.astype(np.int8)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_masks(rows: int, share: float = 0.1) -> Any:
    masks = np.random.default_rng(5).random((rows, VOCABULARY)) < share
    masks[:, 7] = True
    return masks


def write(policy: TextPolicy, steps: int = 6, masks: Any = None) -> tuple[Any, ...]:
    """Let it write ``steps`` tokens; return ids, lengths, starts, log-probabilities and values ``(rows, steps)``."""
    starts = np.array([3, 1, 5])
    ids = np.random.default_rng(0).integers(0, VOCABULARY, size=(3, WIDTH))
    lengths, draws, log_probs, values = starts.copy(), generator(), [], []
    for _ in range(steps):
        actions, value = policy.act(observation(ids, lengths), generator=draws, masks=masks)
        log_probs.append(policy.action_log_prob(actions))
        values.append(value)
        ids[np.arange(3), lengths] = actions
        lengths += 1
    return ids, lengths, starts, np.stack(log_probs, axis=1), np.stack(values, axis=1)


def evaluate(policy: TextPolicy, ids: Any, lengths: Any, starts: Any, masks: Any = None, **given: Any) -> Any:
    places = written_places(starts, lengths, ids.shape[1])
    return policy.evaluate(torch.from_numpy(ids), torch.from_numpy(lengths), places, masks, **given)


def excite(policy: TextPolicy) -> TextPolicy:
    """Give the value head weights that say something."""
    if policy.value_head is not None:
        with torch.no_grad():
            policy.value_head.weight.normal_(0, 0.3, generator=generator(1))
            policy.value_head.bias.fill_(0.5)
    return policy


# -- acting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # gpt2 has dropout 0.1 in its configuration
@pytest.mark.parametrize("value", ["head", "model", "none"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("masked", [False, True])
def test_sampler_and_scorer_agree(architecture: str, value: Any, temperature: float, masked: bool) -> None:
    policy = excite(TextPolicy(build_lm(architecture), value=value, temperature=temperature)).train()
    masks = random_masks(3) if masked else None
    ids, lengths, starts, log_probs, values = write(policy, masks=masks)
    packed = None if masks is None else torch.from_numpy(np.repeat(masks, 6, axis=0))
    now = evaluate(policy, ids, lengths, starts, packed)
    np.testing.assert_allclose(now.log_probs.detach().numpy(), log_probs.ravel(), atol=1e-5)
    np.testing.assert_allclose(now.values.detach().numpy(), values.ravel(), atol=1e-5)
    assert now.log_probs.shape == now.values.shape == now.entropy.shape == (18,)
    assert (values != 0).any() == (value != "none")
    if masks is not None:
        written = ids[np.arange(3)[:, None], starts[:, None] + np.arange(6)]
        assert masks[np.arange(3)[:, None], written].all()


def test_rows_of_different_lengths_are_scored_where_they_wrote(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm()
    policy = TextPolicy(lm)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, size=(3, WIDTH))
    starts, lengths = np.array([2, 1, 4]), np.array([WIDTH, 2, 4])  # the last has written nothing
    expected = lm.token_log_probs(ids, lengths)
    now = evaluate(policy, ids, lengths, starts)
    np.testing.assert_allclose(now.log_probs.detach().numpy(), [*expected[0, 1:], expected[1, 0]], atol=1e-5)


def test_draws_follow_the_reported_probabilities(make_lm: Callable[..., CausalLM]) -> None:
    n = 20_000
    policy = TextPolicy(make_lm(), temperature=1.5)
    one = observation(np.array([[3, 50, 9, 1]]), [3])
    policy.act(one)
    wanted = np.exp(policy.action_log_probs()[0].astype(np.float64))
    assert wanted.sum() == pytest.approx(1)
    wanted /= wanted.sum()
    many = {name: np.repeat(array, n, axis=0) for name, array in one.items()}
    found = np.bincount(policy.act(many, generator=generator())[0], minlength=VOCABULARY)
    common = wanted * n >= 5
    observed, expected = [*found[common], found[~common].sum()], [*wanted[common], wanted[~common].sum()]
    assert common.sum() > 20
    assert stats.chisquare(observed, np.array(expected) * n).pvalue > 1e-3


def test_drawing_is_a_function_of_the_generator(make_lm: Callable[..., CausalLM]) -> None:
    policy = TextPolicy(make_lm())
    obs = observation(np.random.default_rng(0).integers(0, VOCABULARY, size=(64, 4)), np.full(64, 4))
    state = torch.random.get_rng_state()
    first, second, third = (policy.act(obs, generator=generator(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(first, second)
    assert (first != third).any()
    likeliest, _ = policy.act(obs)
    np.testing.assert_array_equal(likeliest, policy.action_log_probs().argmax(axis=1))


def test_rows_that_rest_get_nothing(make_lm: Callable[..., CausalLM]) -> None:
    policy = excite(TextPolicy(make_lm()))
    ids, lengths = np.random.default_rng(0).integers(0, VOCABULARY, size=(4, 6)), np.array([3, 6, 2, 4])
    obs, rows = observation(ids, lengths), np.array([1, 3])
    everyone, values = policy.act(obs)
    all_log_probs = policy.action_log_probs()
    actions, some_values = policy.act(obs, rows=rows)
    np.testing.assert_array_equal(actions[rows], everyone[rows])
    np.testing.assert_allclose(some_values[rows], values[rows], atol=1e-5)
    np.testing.assert_allclose(policy.action_log_probs()[rows], all_log_probs[rows], atol=1e-5)
    for array in (actions, some_values, policy.action_log_prob(actions), policy.action_log_probs()):
        assert array.shape[0] == 4
        assert (array[[0, 2]] == 0).all()
    np.testing.assert_allclose(policy.values(obs, rows), values[rows], atol=1e-5)


def test_masks_are_renormalized(make_lm: Callable[..., CausalLM]) -> None:
    policy = TextPolicy(make_lm(), temperature=0.9)
    obs = observation(np.random.default_rng(0).integers(0, VOCABULARY, size=(3, 5)), np.array([5, 2, 3]))
    policy.act(obs)
    whole = np.exp(policy.action_log_probs().astype(np.float64))
    masks = random_masks(3)
    for seed in range(20):
        actions, _ = policy.act(obs, generator=generator(seed), masks=masks.astype(np.int8))
        assert masks[np.arange(3), actions].all()
    found = np.exp(policy.action_log_probs().astype(np.float64))
    expected = np.where(masks, whole, 0) / np.where(masks, whole, 0).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    only = np.zeros_like(masks)
    only[:, [4, 9, 2]] = np.eye(3, dtype=bool)
    assert policy.act(obs, generator=generator(), masks=only)[0].tolist() == [4, 9, 2]
    assert policy.action_log_prob(np.array([4, 9, 2])).tolist() == [0, 0, 0]
    only[1] = False
    with pytest.raises(TextEnvError, match=r"no token in rows \[1\]"):
        policy.act(obs, masks=only)


def test_single_observations_become_a_batch() -> None:
    ids, lengths = observation_arrays({"input_ids": np.array([4, 5, 1]), "attention_mask": np.array([1, 1, 0])})
    assert ids.tolist() == [[4, 5, 1]]
    assert lengths.tolist() == [2]
    assert ids.dtype == lengths.dtype == np.int64


def test_it_can_hand_over_its_whole_distribution(make_lm: Callable[..., CausalLM]) -> None:
    assert isinstance(TextPolicy(make_lm()), FullDistribution)


# -- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_entropies_and_their_gradients(make_lm: Callable[..., CausalLM], masked: bool) -> None:
    policy = TextPolicy(make_lm(), temperature=0.8)
    ids, lengths, starts, _, _ = write(policy, masks=random_masks(3) if masked else None)
    packed = torch.from_numpy(np.repeat(random_masks(3), 6, axis=0)) if masked else None
    now = evaluate(policy, ids, lengths, starts, packed)
    expected = []
    for row in range(3):
        for place in range(starts[row], lengths[row]):
            logits = policy.lm.next_token_logits(ids[row : row + 1], np.array([place])).double()[0] / 0.8
            if packed is not None:
                logits = logits[packed[row * 6]]
            probs = torch.softmax(logits, dim=-1)
            expected.append(-float((probs * probs.log()).sum()))
    np.testing.assert_allclose(now.entropy.detach().numpy(), expected, atol=1e-4)
    (now.log_probs.sum() + now.entropy.sum() + now.values.sum()).backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert (evaluate(policy, ids, lengths, starts, packed, entropy=False).entropy == 0).all()


def test_the_gradient_of_an_entropy_under_a_mask_by_hand() -> None:
    """Two tokens are possible: H' = -p (log p + H), by the definition; the third stays out of it."""
    from textenv.models.distributions import entropy

    logits = torch.tensor([[0.3, -0.2, 5.0]], dtype=torch.float64, requires_grad=True)
    entropies = entropy(logits.masked_fill(torch.tensor([[False, False, True]]), -torch.inf))
    entropies.sum().backward()
    p = torch.softmax(torch.tensor([0.3, -0.2], dtype=torch.float64), dim=0)
    h = -(p * p.log()).sum()
    assert float(entropies.detach()[0]) == pytest.approx(float(h))
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[0], torch.cat([-p * (p.log() + h), torch.zeros(1, dtype=torch.float64)]))


@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_of_the_chosen_is_that_of_cross_entropy(masked: bool) -> None:
    from textenv.models.distributions import token_log_prob

    logits, actions = torch.randn(5, 9, dtype=torch.float64, requires_grad=True), torch.tensor([0, 8, 3, 3, 7])
    upstream, found = torch.randn(5, dtype=torch.float64), []
    forbidden = torch.zeros(5, 9, dtype=torch.bool)
    forbidden[:, 4:6] = masked
    for chosen in (token_log_prob, lambda x, a: -torch.nn.functional.cross_entropy(x, a, reduction="none")):
        log_probs = chosen(logits.masked_fill(forbidden, -torch.inf), actions)
        found.append((log_probs, *torch.autograd.grad((log_probs * upstream).sum(), logits)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("value", ["head", "model"])
def test_values_start_at_zero_and_learn(make_lm: Callable[..., CausalLM], value: Any) -> None:
    policy = TextPolicy(make_lm(), value=value)
    ids, lengths, starts, _, values = write(policy)
    assert (values == 0).all()
    (evaluate(policy, ids, lengths, starts).values - 1).square().sum().backward()
    assert policy.value_head is not None
    assert policy.value_head.weight.grad is not None
    assert policy.value_head.weight.grad.abs().sum() > 0


def test_a_value_model_of_its_own_leaves_the_policy_alone(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm()
    policy = excite(TextPolicy(lm, value="model"))
    ids, lengths, starts, _, _ = write(policy)
    evaluate(policy, ids, lengths, starts).values.sum().backward()
    assert all(parameter.grad is None for parameter in policy.model.parameters())
    assert policy.value_model is not None
    assert all(parameter.grad is not None for parameter in policy.value_model.parameters())
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(0.5)
    before = evaluate(policy, ids, lengths, starts).values
    policy.forget()
    rows = np.arange(3)
    found = policy.values(observation(ids, lengths - 1), rows)
    np.testing.assert_allclose(found, before.detach().numpy().reshape(3, 6)[:, -1], atol=1e-5)
    assert len(list(TextPolicy(lm, value="none").parameters())) == len(list(lm.model.parameters()))


def test_it_learns_on_a_copy(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm()
    before = [parameter.clone() for parameter in lm.model.parameters()]
    policy = TextPolicy(lm)
    assert all(parameter.requires_grad for parameter in policy.parameters())
    ids, lengths, starts, log_probs, _ = write(policy)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.01)
    evaluate(policy, ids, lengths, starts).log_probs.sum().neg().backward()
    optimizer.step()
    assert all(torch.equal(old, new) for old, new in zip(before, lm.model.parameters(), strict=True))
    assert evaluate(policy, ids, lengths, starts).log_probs.sum() > log_probs.sum()
    actions, _ = policy.act(observation(ids, lengths))  # the cache has noticed
    fresh = TextPolicy(policy.lm).act(observation(ids, lengths))[0]
    np.testing.assert_array_equal(actions, fresh)


def test_dropout_stays_off() -> None:
    policy = TextPolicy(build_lm("gpt2"), value="model")
    assert any(isinstance(module, torch.nn.Dropout) and module.p == 0.1 for module in policy.modules())
    assert policy.train() is policy
    assert not any(module.training for module in policy.modules() if isinstance(module, torch.nn.Dropout))
    ids, lengths, starts, _, _ = write(policy)
    first, second = (evaluate(policy, ids, lengths, starts) for _ in range(2))
    assert torch.equal(first.log_probs, second.log_probs)
    assert torch.equal(first.values, second.values)


# -- on disk ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["head", "model"])
def test_save_and_load(make_lm: Callable[..., CausalLM], tmp_path: Path, value: Any) -> None:
    policy = excite(TextPolicy(make_lm(), value=value))
    if policy.value_model is not None:
        with torch.no_grad():
            for parameter in policy.value_model.parameters():
                parameter.mul_(0.9)
    policy.save(tmp_path)
    back = TextPolicy(CausalLM.from_pretrained(tmp_path), value=value)
    back.load_values(tmp_path)
    first, second = write(policy), write(back)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_values_that_do_not_fit_are_refused(make_lm: Callable[..., CausalLM], tmp_path: Path) -> None:
    policy = TextPolicy(make_lm())
    TextPolicy(make_lm(), value="none").load_values(tmp_path)  # has none to load
    with pytest.raises(TextEnvError, match=r"value\.safetensors: cannot be read"):
        policy.load_values(tmp_path)
    (tmp_path / "value.safetensors").write_bytes(b"half of a fi")
    with pytest.raises(TextEnvError, match="cannot be read"):
        policy.load_values(tmp_path)
    tensors = {"value_head.weight": torch.ones(1, 31), "value_head.bias": torch.ones(1)}
    safetensors.torch.save_file(tensors, tmp_path / "value.safetensors")
    with pytest.raises(TextEnvError, match=r"value_head\.weight has shape \(1, 31\), expected \(1, 32\)"):
        policy.load_values(tmp_path)
    assert policy.value_head is not None
    assert (policy.value_head.bias == 0).all(), "nothing is loaded by half"
    TextPolicy(make_lm(), value="model").save(tmp_path)
    with pytest.raises(TextEnvError, match=r"value_model\..* expected None"):
        policy.load_values(tmp_path)


def test_the_policy_of_a_reference_acts_with_its_model_at_its_temperature(
    make_lm: Callable[..., CausalLM],
) -> None:
    lm = make_lm()
    base: Any = SimpleNamespace(reference=lm, settings=SimpleNamespace(temperature=0.5))
    policy = TextPolicy.of_reference(base)
    assert policy.lm is lm
    assert policy.value_head is None
    ids, lengths = np.array([[5, 7, 9, 0], [4, 3, 2, 6]]), np.array([3, 4])
    obs = {"input_ids": ids, "attention_mask": (np.arange(4) < lengths[:, None]).astype(np.int8)}
    tokens, values = policy.act(obs, generator=generator(0))
    np.testing.assert_allclose(
        policy.action_log_prob(tokens), lm.next_token_log_prob(ids, lengths, tokens, 0.5), atol=1e-5
    )
    assert (values == 0).all()


@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_told(value: float, drawn: bool, tiny_lm: CausalLM) -> None:
    class Diverged(TextPolicy):
        """A policy whose weights have grown beyond all numbers."""

        def steer(self, logits: torch.Tensor, ids: Any, lengths: Any, rows: Any) -> torch.Tensor:
            return torch.full_like(logits, value)

    policy = Diverged(tiny_lm, value="none", trainable=False)
    obs = observation(np.full((2, WIDTH), 3), [2, 4])
    with pytest.raises(TextEnvError, match=r"probabilities are not finite.* Lower learning_rate"):
        policy.act(obs, generator=generator() if drawn else None)
