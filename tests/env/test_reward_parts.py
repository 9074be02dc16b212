"""Rewards made of others, and what an environment pays and tells of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from tests.complaints import one_line
from tests.conftest import build_lm
from tests.env.test_worlds import Echo
from textenv.env.reward_calls import Batch
from textenv.env.reward_parts import Evaluation, evaluate, part_names, unique_names
from textenv.env.vector import TextVectorEnv
from textenv.models.policy import TextPolicy
from textenv.rewards import make
from textenv.rollouts.collect import collect
from textenv.types import Episode

LM = build_lm()
BETA = 0.3


def run(reward: Callable[..., Any], *, state: Any = None, **columns: Sequence[Any]) -> Evaluation:
    return evaluate(reward, Batch(["a", "b"], ["x", "yy"], [[1], [2, 3]], columns))


def size(completions: Any, **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def places(completion_ids: Any, **_: Any) -> list[list[float]]:
    return [[place + 1.0 for place in range(len(ids))] for ids in completion_ids]


def only_long(completions: Any, **_: Any) -> list[float | None]:
    return [None if len(text) < 2 else 10.0 for text in completions]


def of_bytes(completion_ids: Any, log_extra: Any, log_metric: Any, **_: Any) -> list[list[float]]:
    """Score each token by its id."""
    log_extra("ids", [list(ids) for ids in completion_ids])
    log_metric("tokens", sum(map(len, completion_ids)) / len(completion_ids))
    return [[token % 7 / 10 for token in ids] for ids in completion_ids]


async def vowels(completions: Any, **_: Any) -> list[float]:
    await asyncio.sleep(0)
    return [sum(text.count(vowel) for vowel in "aeiou") / 10 for text in completions]


class TestMix:
    def test_adds_scores_of_texts_at_the_last_token(self) -> None:
        mix = make({"name": "weighted_sum", "rewards": [size, places, only_long], "weights": [1.0, 0.5, -1.0]})
        found = run(mix)
        assert found.values == [(1.5,), (0.5, 1.0 + 2.0 - 10.0)]
        assert found.parts == {"size": [1, 2], "places": [1, 3], "only_long": [None, 10]}

    def test_a_list_is_a_mix(self) -> None:
        assert run(make([size, "vader", {"name": "length", "target": 1}])).parts == {
            "size": [1, 2],
            "vader": [0, 0],
            "length": [1, 1],
        }

    def test_equal_names_get_a_number(self) -> None:
        assert part_names(make([size, size, lambda **columns: [], lambda **columns: []])) == (
            "size", "size_2", "lambda", "lambda_2"
        )  # fmt: skip
        assert unique_names(["a", "a", "a_2", "a"]) == ["a", "a_3", "a_2", "a_4"]

    def test_parts_may_be_named(self) -> None:
        assert part_names(make({"name": "weighted_sum", "rewards": [size, size], "names": ["one", "other"]})) == (
            "one", "other"
        )  # fmt: skip
        for names in (["one"], ["one", "one"], ["one", ""]):
            with one_line():
                make({"name": "weighted_sum", "rewards": [size, size], "names": names})

    def test_parts_of_parts_are_told_too(self) -> None:
        inner = {"name": "weighted_sum", "rewards": [size, "vader"], "weights": [2.0, 1.0]}
        outer = {"name": "clip", "reward": {"name": "weighted_sum", "rewards": [inner, places]}, "low": 0, "high": 4}
        found = run(make(outer))
        assert found.values == [3.0, 4.0]
        expected = {"weighted_sum": [2, 4], "weighted_sum/size": [1, 2], "weighted_sum/vader": [0, 0], "places": [1, 3]}
        assert found.parts == expected
        assert list(found.parts) == list(part_names(make(outer))) == list(expected)

    def test_awaits_all_together_however_deep_they_are(self) -> None:
        begun: list[asyncio.Event] = [asyncio.Event(), asyncio.Event()]

        async def first(completions: Any, **_: Any) -> list[float]:
            begun[0].set()
            await asyncio.wait_for(begun[1].wait(), 20)
            return [1.0] * len(completions)

        async def second(completions: Any, **_: Any) -> list[float]:
            begun[1].set()
            await asyncio.wait_for(begun[0].wait(), 20)
            return [2.0] * len(completions)

        deep = {"name": "clip", "reward": {"name": "normalize", "reward": second}, "low": -9, "high": 9}
        assert run(make([first, deep])).values == [3.0, 3.0]

    def test_a_completion_that_no_part_applies_to_is_told(self) -> None:
        with one_line("of one of the parts only_long, only_long_2 at least"):
            run(make([only_long, only_long]))

    @pytest.mark.parametrize("wrap", [None, {"name": "clip", "low": 0, "high": 1}, {"name": "normalize"}], ids=str)
    def test_none_is_for_the_parts_of_a_mix(self, wrap: Any) -> None:
        spec = only_long if wrap is None else {**wrap, "reward": only_long}
        with one_line("Expected a finite float32 number; None is for the parts of a mix"):
            run(make(spec))
        assert run(make([spec, size])).parts["size"] == [1, 2]

    def test_equal_names_of_what_is_logged_get_a_number(self) -> None:
        found = run(make([of_bytes, of_bytes]))
        assert found.extra == {"ids": [[1], [2, 3]], "ids_2": [[1], [2, 3]]}
        assert found.metrics == {"tokens": 1.5, "tokens_2": 1.5}

    def test_called_by_another_function_it_hands_on_what_is_logged(self) -> None:
        mix = make([of_bytes, size])

        def doubled(**columns: Any) -> list[float]:
            return [2 * math.fsum(scores) for scores in mix(**columns)]

        found = run(doubled)
        assert found.extra == {"ids": [[1], [2, 3]]}
        assert found.metrics == {"tokens": 1.5}

    def test_a_sum_that_is_not_finite_is_told(self) -> None:
        def huge(completions: Any, **_: Any) -> list[float]:
            return [3e38] * len(completions)

        with one_line("Expected a finite float32 number"):
            run(make([huge, huge]))


def test_normalizing_scales_tokens_and_clipping_takes_their_sum() -> None:
    values = [value for value in run(make({"name": "normalize", "reward": places})).values if isinstance(value, tuple)]
    np.testing.assert_allclose(np.concatenate(values), np.array([1, 1, 2]) / np.std([1, 3]))
    centered = run(make({"name": "normalize", "reward": places, "keep_mean": False})).values
    np.testing.assert_allclose([np.sum(value) for value in centered], [-1.0, 1.0])
    assert run(make({"name": "clip", "reward": places, "low": 0, "high": 2})).values == [1.0, 2.0]


def make_envs(rows: int = 3, **given: Any) -> Any:
    shared = {"model": LM, "kl_coef": BETA, "max_new_tokens": 4, "autoreset_mode": AutoresetMode.DISABLED}
    prompts = {} if "world" in given else {"prompts": ["the film", "it"]}
    return TextVectorEnv(rows, **{**shared, **prompts, **given})


def policy_of(lm: Any) -> TextPolicy:
    """Return a policy that is not the reference."""
    policy = TextPolicy(lm)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for weight in policy.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return policy


def paid_by_hand(episode: Episode, score_at: Sequence[float]) -> list[float]:
    """Return what each token earns, from the turns, the KL and what the reward pays at each token."""
    rewards = [score - BETA * kl for score, kl in zip(score_at, episode.kl, strict=True)]
    last = -1
    for turn in episode.turns:
        last += turn.tokens
        rewards[last] += turn.reward
    return rewards


WORLD: dict[str, Any] = {"world": Echo, "max_turns": 3, "max_tokens": 90}


@pytest.mark.parametrize("world", [{}, WORLD, {**WORLD, "context": "fresh"}], ids=["single", "transcript", "fresh"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "full"])
@pytest.mark.parametrize("mode", ["dense", "lump"])
def test_tokens_are_paid_what_the_reward_names(world: dict[str, Any], estimator: str, mode: str) -> None:
    given: dict[str, Any] = {"kl_mode": mode, "kl_estimator": estimator, "missing_eos_penalty": 0.25, **world}
    envs = make_envs(reward=[of_bytes, vowels], reward_weights=[2.0, 1.0], **given)
    rollout = collect(envs, policy_of(LM), torch.Generator().manual_seed(0), episodes=6, seed=1)
    for row, episode in enumerate(rollout.finished):
        size = len(episode.completion_ids)
        at = [2 * (token % 7) / 10 for token in episode.completion_ids]
        at[-1] += sum(episode.completion.count(vowel) for vowel in "aeiou") / 10
        end = episode.turns[-1].end if episode.turns else episode.stop_reason
        at[-1] -= 0.25 * (end == "length")
        assert episode.score == pytest.approx(math.fsum(at), abs=1e-9)
        assert episode.token_scores == pytest.approx(at, abs=1e-9)
        assert episode.token_rewards == pytest.approx(paid_by_hand(episode, at), abs=1e-9)
        np.testing.assert_allclose(rollout.rewards[row, :size], episode.token_rewards, atol=1e-5)
        whole = episode.score + episode.world_reward - BETA * math.fsum(episode.kl)
        assert float(rollout.rewards[row].sum()) == pytest.approx(whole, abs=1e-5)
        assert episode.scores["of_bytes"] == pytest.approx(sum(token % 7 / 10 for token in episode.completion_ids))
        assert episode.logged == {"ids": list(episode.completion_ids)}
    assert {len(episode.completion_ids) for episode in rollout.finished} != {1}


@pytest.mark.parametrize("mode", ["dense", "lump"])
def test_steps_pay_the_whole_and_info_says_where(mode: str) -> None:
    envs = make_envs(reward=of_bytes, kl_mode=mode, **WORLD)
    policy, generator = policy_of(LM), torch.Generator().manual_seed(0)
    obs, _ = envs.reset(seed=3)
    paid, infos, over = np.zeros(3), {}, np.zeros(3, dtype=bool)
    with envs.attached(policy):
        while not over.all():
            actions, _ = policy.act(obs, generator=generator)
            obs, rewards, terminations, truncations, infos = envs.step(actions)
            paid += rewards
            for row in np.flatnonzero((terminations | truncations) & ~over).tolist():
                expected = infos["score"][row] + sum(turn.reward for turn in infos["turns"][row])
                expected -= BETA * math.fsum(infos["token_kl"][row])
                assert paid[row] == pytest.approx(expected, abs=1e-5)
                assert math.fsum(infos["token_rewards"][row]) == pytest.approx(expected, abs=1e-5)
                assert infos["logged"][row]["ids"] == list(infos["completion_ids"][row])
            over |= terminations | truncations


def test_a_wrapper_that_changes_rewards_of_tokens_is_refused() -> None:
    class Halved(gym.vector.VectorRewardWrapper):
        def rewards(self, rewards: Any) -> Any:
            return rewards / 2

    with one_line("a wrapper changes the reward"):
        collect(Halved(make_envs(reward=of_bytes)), policy_of(LM), torch.Generator().manual_seed(0), seed=1)


def test_the_keys_of_infos_stay_the_same() -> None:
    envs = make_envs(reward=[only_long, size], world=lambda: Echo(ends=10**9, cuts=3), max_turns=3, max_tokens=60)
    rollout = collect(envs, policy_of(LM), torch.Generator().manual_seed(0), episodes=12, seed=1)
    assert {episode.truncated for episode in rollout.finished} == {True, False}
    assert {tuple(episode.scores) for episode in rollout.finished} == {("only_long", "size")}
    assert all(not any(episode.scores.values()) for episode in rollout.finished if episode.truncated)


@pytest.mark.parametrize("reward", [of_bytes, [of_bytes, vowels], [only_long, size]], ids=["one", "two", "none"])
def test_the_checker_passes(reward: Any) -> None:
    given: dict[str, Any] = {"model": LM, "prompts": ["the film"], "max_new_tokens": 3}
    check_env(gym.make("textenv/Text-v0", reward=reward, **given).unwrapped, skip_render_check=True)


def test_functions_in_a_list_travel_with_the_spec() -> None:
    env = gym.make("textenv/Text-v0", model=LM, prompts=["it"], reward=[size, "vader"], reward_weights=[1, 2])
    assert env.spec is not None
    scorer = gym.make(env.spec).unwrapped.batch.scorer  # type: ignore[attr-defined]
    assert scorer.part_names == ("size", "vader")
    assert scorer.reward.weights == (1, 2)
    assert scorer.reward.rewards[0] is size
