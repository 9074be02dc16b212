"""Watermarks: their tests, that they do not distort, transformers as the oracle, and what they refuse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import SynthIDTextWatermarkLogitsProcessor, WatermarkLogitsProcessor

from tests.complaints import one_line
from textenv.agents.ppo import PPO
from textenv.env.vector import TextVectorEnv
from textenv.models.causal_lm import CausalLM
from textenv.models.policy import TextPolicy
from textenv.models.watermark import (
    KEY_VARIABLE,
    SCHEMES,
    GreenList,
    Gumbel,
    SynthID,
    Verdict,
    Watermark,
    make_watermark,
    read_key,
)
from textenv.models.watermarked import WatermarkedPolicy, WatermarkLogits
from textenv.rollouts.collect import sample_episodes

KEY = b"the key of these tests, no secret"


def verdict_of(watermark: Watermark, ids: Sequence[int]) -> Verdict:
    places = watermark.counted_places(ids)
    windows = [ids[place - watermark.context : place] for place in places]
    return watermark.test(watermark.evidence(windows, [ids[place] for place in places]))


def keyed(name: str, number: int, **settings: Any) -> Watermark:
    return make_watermark(name, f"key number {number:08}".encode(), **settings)


def make_envs(lm: CausalLM, **settings: Any) -> TextVectorEnv:
    from gymnasium.vector import AutoresetMode

    keywords: dict[str, Any] = {"prompts": ["the film"], "reward": "vader", "max_new_tokens": 40}
    keywords |= {"autoreset_mode": AutoresetMode.DISABLED, "kl_mode": "lump", **settings}
    return TextVectorEnv(8, model=lm, **keywords)


@pytest.mark.parametrize("name", ["gumbel", "synthid"])
def test_p_values_without_a_watermark_are_uniform(name: str) -> None:
    rng = np.random.default_rng(0)
    found = [verdict_of(keyed(name, n), rng.integers(0, 50, 60).tolist()).p_value for n in range(200)]
    assert stats.kstest(found, "uniform").pvalue > 0.01


def test_p_values_of_counts_are_uniform_once_they_are_made_continuous() -> None:
    rng, found = np.random.default_rng(0), []
    for number in range(200):
        watermark = keyed("green_list", number)
        verdict = verdict_of(watermark, rng.integers(0, 6, 60).tolist())  # pairs come again, and are counted once
        green = round(verdict.score * np.sqrt(verdict.counted * 0.25 * 0.75) + 0.25 * verdict.counted)
        assert verdict.p_value is not None
        found.append(verdict.p_value - rng.random() * stats.binom.pmf(green, verdict.counted, 0.25))
    assert stats.kstest(found, "uniform").pvalue > 0.01


def test_the_tail_of_the_weighted_mean_is_that_of_its_convolution() -> None:
    watermark = SynthID(KEY)
    steps = np.rint(290 - 9 * np.arange(30)).astype(int)  # the weights, 10 to 1, in units of 1 / 29
    one = np.ones(1)
    for step in steps:
        shifted = np.zeros(len(one) + step)
        shifted[: len(one)] += one / 2
        shifted[step:] += one / 2
        one = shifted
    tail, total = np.ones(1), int(steps.sum())
    for _ in range(3):
        tail = np.convolve(tail, one)
    tail = tail[::-1].cumsum()[::-1]
    for deviations in (-2.0, -0.5, 0.0, 1.0, 3.0, 5.0):
        units = int(3 * total / 2 + deviations * np.sqrt(3 * (steps**2).sum()) / 2)
        found = watermark.test(np.full(3, units / (3 * total))).p_value
        assert found == pytest.approx(tail[units], rel=0.01)
    assert watermark.test(np.ones(2)).p_value == pytest.approx(2.0**-60)


@pytest.mark.parametrize("name", ["gumbel", "synthid"])
def test_over_the_keys_nothing_is_distorted(name: str) -> None:
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    marked = torch.stack([keyed(name, n).mark(p.log(), [[1, 2, 3, 4]]).exp()[0] for n in range(600)])
    error = marked.std(dim=0) / 600**0.5
    assert ((marked.mean(dim=0) - p[0]).abs() < 4 * error).all()


@pytest.mark.parametrize("name", SCHEMES)
def test_what_is_marked_is_a_distribution_over_what_was_allowed(name: str) -> None:
    log_probs = torch.log_softmax(torch.randn(3, 50, generator=torch.Generator().manual_seed(0)), dim=-1)
    log_probs[:, 7] = -torch.inf
    log_probs = torch.log_softmax(log_probs, dim=-1)
    watermark = make_watermark(name, KEY)
    marked = watermark.mark(log_probs, [[n] * watermark.context for n in range(3)])
    assert torch.allclose(marked.exp().sum(dim=-1), torch.ones(3), atol=1e-5)
    assert (marked[:, 7] == -torch.inf).all()


def test_the_green_list_is_that_of_transformers_given_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, scores = GreenList(KEY, delta=1.5), torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    theirs = WatermarkLogitsProcessor(100, "cpu", greenlist_ratio=0.25, bias=1.5)
    ids: Any = torch.tensor([[5, 6], [8, 9]])
    monkeypatch.setattr(
        theirs, "_get_greenlist_ids", lambda text: torch.from_numpy(ours.green([int(text[-1])], 100).nonzero()[0])
    )
    marked = ours.mark(torch.log_softmax(scores, dim=-1), [[6], [9]])
    assert torch.allclose(marked, torch.log_softmax(theirs(ids, scores), dim=-1), atol=1e-5)
    assert ours.test(np.array([1.0] * 9 + [0.0] * 11)).score == pytest.approx((9 - 5) / np.sqrt(20 * 0.25 * 0.75))


def test_the_tournament_is_that_of_transformers_given_the_same_g_values() -> None:
    ours, scores = SynthID(KEY), torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    theirs = SynthIDTextWatermarkLogitsProcessor(5, list(range(30)), 2**16, 0, 1024, torch.device("cpu"))
    windows = [[1, 2, 3, 4], [5, 6, 7, 8]]
    g = torch.from_numpy(np.stack([ours.g_values(window, 100) for window in windows]).astype(np.int64))
    marked = ours.mark(torch.log_softmax(scores, dim=-1), windows)
    assert torch.allclose(marked.exp(), theirs.update_scores(scores, g).exp(), atol=1e-6)
    assert ours.evidence(windows, [3, 4]) == pytest.approx(
        [float((g[n, n + 3] * torch.from_numpy(ours.weights)).mean()) for n in range(2)]
    )


def test_a_mark_depends_on_key_window_scheme_and_token_and_not_on_the_size_of_the_vocabulary() -> None:
    first = Gumbel(KEY)._raw([1, 2, 3, 4], 50)
    assert (first == Gumbel(KEY)._raw([1, 2, 3, 4], 200)[:50]).all()
    for other in (Gumbel(KEY)._raw([1, 2, 3, 5], 50), Gumbel(KEY[1:])._raw([1, 2, 3, 4], 50)):
        assert (first != other).all()
    assert (first != SynthID(KEY)._raw([1, 2, 3, 4], 50)).all()


def test_windows_count_once_and_are_marked_once() -> None:
    gumbel, green = Gumbel(KEY, context=2), GreenList(KEY, context=2)
    assert gumbel.counted_places([1, 2, 3, 1, 2, 4, 1, 2, 3]) == [2, 3, 4, 6, 7]
    assert green.counted_places([1, 2, 3, 1, 2, 4, 1, 2, 3]) == [2, 3, 4, 5, 6, 7]
    assert gumbel.next_window([1]) is None
    assert gumbel.next_window([1, 2]) == (1, 2)
    assert gumbel.next_window([1, 2, 3, 1, 2]) is None
    assert green.next_window([1, 2, 3, 1, 2]) == (1, 2)


@pytest.mark.parametrize("name", SCHEMES)
def test_texts_of_a_policy_are_found_with_the_key_alone(name: str, tiny_lm: CausalLM) -> None:
    envs = make_envs(tiny_lm)
    settings = {"delta": 6.0} if name == "green_list" else {}
    watermark, other = make_watermark(name, KEY, **settings), keyed(name, 1, **settings)
    policy = WatermarkedPolicy(TextPolicy.of_reference(envs), watermark)
    episodes = sample_episodes(envs, policy, torch.Generator().manual_seed(0), ["the film"] * 8)
    long = [each.completion_ids for each in episodes if len(each.completion_ids) > 20]
    assert len(long) > 3
    assert len(set(long)) == len(long)  # the first tokens are drawn as ever, so that samples differ
    assert np.median([verdict_of(watermark, ids).p_value or 1.0 for ids in long]) < 1e-4
    assert min(verdict_of(other, ids).p_value or 1.0 for ids in long) > 1e-4


@pytest.mark.parametrize("name", SCHEMES)
def test_generate_writes_what_is_found(name: str, tiny_lm: CausalLM) -> None:
    watermark = make_watermark(name, KEY, **({"delta": 6.0} if name == "green_list" else {}))
    model: Any = tiny_lm.model
    prompt = torch.tensor([[5, 6, 7]] * 4)
    processor = WatermarkLogits(watermark, temperature=1.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(2):  # one after the other with the same processor
            ids = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                min_new_tokens=40, max_new_tokens=40, logits_processor=[processor],
            )[:, 3:]  # fmt: skip
            assert np.median([verdict_of(watermark, text).p_value or 1.0 for text in ids.tolist()]) < 1e-4


def test_a_watermark_is_refused_in_training(tiny_lm: CausalLM) -> None:
    envs = make_envs(tiny_lm, max_new_tokens=6)
    policy = WatermarkedPolicy(TextPolicy.of_reference(envs), Gumbel(KEY))
    with one_line("is not trained"):
        PPO(envs, policy=policy).learn(8)
    with one_line("watermark"):
        policy.evaluate()
    with one_line("cannot carry a watermark"):
        WatermarkedPolicy(policy, Gumbel(KEY))
    with one_line("watermark"):
        make_envs(tiny_lm, watermark="gumbel")


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with one_line("There is no watermark named 'gumble'. Did you mean 'gumbel'?"):
        make_watermark("gumble", KEY)
    with one_line("has no setting 'delta'. Expected one of: key, context."):
        make_watermark("gumbel", KEY, delta=2)
    with one_line("gumbel(context=0): expected a whole number"):
        make_watermark("gumbel", KEY, context=0)
    with one_line("gamma=1.0"):
        make_watermark("green_list", KEY, gamma=1.0)
    with one_line("expected at least 16 bytes"):
        make_watermark("gumbel", b"short")
    with one_line("temperature=0: expected"):
        WatermarkLogits(Gumbel(KEY), temperature=0)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with one_line("The watermark has no key"):
        read_key()
    with one_line("cannot be read"):
        read_key(tmp_path / "none")
    (tmp_path / "key").write_text("hidden\n")
    with pytest.raises(ValueError, match="its key has 6 bytes") as caught:
        read_key(tmp_path / "key")
    assert "hidden" not in str(caught.value)


def test_the_key_is_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in SCHEMES:
        watermark = make_watermark(name, KEY)
        assert "no secret" not in f"{watermark!r} {watermark.settings}"
    monkeypatch.setenv(KEY_VARIABLE, KEY.decode())
    assert read_key() == KEY
    (tmp_path / "key").write_bytes(KEY + b"\n")
    assert read_key(tmp_path / "key") == KEY
