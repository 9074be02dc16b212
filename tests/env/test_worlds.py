"""Episodes of several turns, which a world answers, against a plain model of the process and its contracts."""

from __future__ import annotations

import copy
import itertools
import json
import math
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from tests.conftest import VOCABULARY, build_lm
from textenv.env.single import TextEnv
from textenv.env.vector import TextVectorEnv
from textenv.models.policy import TextPolicy
from textenv.rollouts.collect import collect
from textenv.types import TextEnvError

LM = build_lm()
BETA = 0.3


def hashed(text: str) -> int:
    return zlib.crc32(text.encode("utf-8", "surrogateescape"))


@dataclass
class Echo:
    """Answers, pays and ends by what it has been told, so that a wrong text or order shows.

    Attributes:
        ends: Of how many turns one ends the episode, by the text.
        cuts: Of how many turns one truncates it.
    """

    ends: int = 4
    cuts: int = 10**9
    state: int = field(default=0, init=False)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.state = int(np.random.default_rng(seed).integers(1000))
        about = "" if options is None else f" of {options['prompt']} {options.get('note', '')}"
        return f"Begin {self.state}{about}: ", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.state = hashed(f"{self.state}{action}") % 10_000
        reward = self.state % 7 / 10 - 0.3
        return f"|{self.state % 100}> ", reward, self.state % self.ends == 0, self.state % self.cuts == 1, {}


def settings_of(**given: Any) -> dict[str, Any]:
    shared = {"model": LM, "world": Echo, "kl_coef": BETA, "max_new_tokens": 4, "max_turns": 3, "max_tokens": 90}
    return {**shared, **given}


def make(rows: int = 3, **given: Any) -> TextVectorEnv:
    return TextVectorEnv(rows, **settings_of(**{"autoreset_mode": AutoresetMode.DISABLED, **given}))


def vowels(completions: list[str], **_: Any) -> list[float]:
    return [sum(text.count(vowel) for vowel in "aeiou") / 10 for text in completions]


def play(env: Any, rng: np.random.Generator, seed: int) -> Iterator[tuple[int, Any]]:
    """Step a single environment to the end of an episode, by random tokens; yield each and what ``step`` returned."""
    env.reset(seed=seed)
    over = False
    while not over:
        token = int(rng.integers(VOCABULARY))
        found = env.step(token)
        over = found[2] or found[3]
        yield token, found


# -- the process, against one written plainly ---------------------------------------------------------------------


@torch.no_grad()
def ref_log_prob(ids: list[int], token: int) -> float:
    return float(torch.log_softmax(LM.model(input_ids=torch.tensor([ids])).logits[0, -1], dim=-1)[token])


def naive(
    tokens: list[int], world: Any, seed: int, *, stop: str, fresh: bool, turns: int, budget: int, room: int
) -> tuple[list[float], list[list[int]], str]:
    """Return the rewards of a deterministic agent's tokens, the texts after each, and why the episode has ended."""
    first_seed = int(np.random.Generator(np.random.PCG64(seed)).integers(2**31 - 1))
    said, _ = world.reset(seed=first_seed)
    ids, begin, turn, rewards, texts = list(LM.encode(said)), 0, 1, [], []
    begin = len(ids)
    for place, token in enumerate(tokens):
        reward = BETA * ref_log_prob(ids, token)
        ids.append(token)
        written = [each for each in ids[begin:] if each not in LM.eos_ids]
        before, after = (
            LM.tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:begin], ids[:begin] + written)
        )
        text = after[len(before) :]
        reason = ""
        if token in LM.eos_ids or (stop and stop in text) or len(ids) - begin == budget or len(ids) == room:
            answer, paid, ended, cut, _ = world.step(text.split(stop)[0] if stop else text)
            reward += paid
            plain = LM.tokenizer(answer, add_special_tokens=False)["input_ids"]
            following = list(LM.encode(answer)) if fresh else list(plain)
            fits = (0 if fresh else len(ids)) + len(following) < room
            reason = "world" if ended or cut else "turns" if turn == turns else "" if fits else "context"
            if not reason or (cut and not ended and fits):
                ids = following if fresh else ids + following
                begin, turn = len(ids), turn + 1
        rewards.append(reward)
        texts.append(list(ids))
        if reason:
            assert place == len(tokens) - 1
            return rewards, texts, reason
    raise AssertionError("the tokens are those of a whole episode")


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("cuts", [3, 10**9])
@pytest.mark.parametrize(("stop", "turns", "room"), [("", 3, 90), ("a", 9, 60), ("", 9, 30)])
def test_it_is_the_process_written_plainly(stop: str, turns: int, room: int, cuts: int, fresh: bool) -> None:
    lm = copy.copy(LM)
    context = "fresh" if fresh else "transcript"
    env = TextEnv(
        **settings_of(
            model=lm, world=lambda: Echo(cuts=cuts), max_turns=turns, max_tokens=room, context=context, stop=stop or ()
        )
    )
    ended = set()
    for seed in range(10):
        steps = list(play(env, np.random.default_rng(seed), seed))
        rewards, texts, reason = naive(
            [token for token, _ in steps],
            Echo(cuts=cuts),
            seed,
            stop=stop,
            fresh=fresh,
            turns=turns,
            budget=4,
            room=room,
        )
        assert [step[1] for _, step in steps] == pytest.approx(rewards, abs=1e-4)
        for (_, step), text in zip(steps, texts, strict=True):
            size = int(step[0]["attention_mask"].sum())
            assert step[0]["input_ids"][:size].tolist() == text
        _, _, terminated, truncated, info = steps[-1][1]
        assert info["stop_reason"] == reason
        assert terminated != truncated
        ended |= {reason, *(turn.end for turn in info["turns"]), "cut" if truncated else ""}
        assert sum(turn.tokens for turn in info["turns"]) == len(steps) == len(info["token_rewards"])
    assert {"world", "length"} <= ended
    assert ("stop" in ended) == bool(stop)
    assert ("cut" in ended) == (cuts == 3)
    assert "turns" in ended or turns == 9
    assert "context" in ended or room != 30 or fresh


@pytest.mark.parametrize("mode", ["dense", "lump"])
@pytest.mark.parametrize("context", ["transcript", "fresh"])
@pytest.mark.parametrize("estimator", ["k1", "full"])
def test_rewards_add_up(mode: str, context: str, estimator: str) -> None:
    envs = make(5, kl_mode=mode, context=context, kl_estimator=estimator, reward=vowels, missing_eos_penalty=0.5)
    policy = TextPolicy(build_lm(seed=1))
    obs, _ = envs.reset(seed=0)
    paid, worst = np.zeros(5), 0.0
    with envs.attached(policy):
        for _ in range(40):
            rows = np.flatnonzero(~envs.over)
            if not len(rows):
                break
            actions, _ = policy.act(obs, generator=torch.Generator().manual_seed(0), rows=rows)
            obs, rewards, *_ = envs.step(actions)
            paid += rewards
    for row, episode in enumerate(envs.last_episodes):
        assert episode is not None
        total = episode.score + math.fsum(turn.reward for turn in episode.turns) - BETA * math.fsum(episode.kl)
        worst = max(worst, abs(total - paid[row]), abs(math.fsum(episode.token_rewards) - paid[row]))
        cut_short = episode.turns[-1].end == "length"
        assert episode.score == pytest.approx(vowels([episode.completion])[0] - 0.5 * cut_short)
    assert worst <= 1e-5


def test_a_policy_that_is_the_reference_has_no_kl_and_the_first_ratio_is_one() -> None:
    for context in ("transcript", "fresh"):
        envs, policy = make(6, context=context, kl_mode="lump"), TextPolicy(LM)
        rollout = collect(envs, policy, torch.Generator().manual_seed(3), episodes=20, seed=5)
        assert max(abs(kl) for episode in rollout.finished for kl in episode.kl) <= 1e-5
        with torch.no_grad():
            now = policy.evaluate(*rollout.tensors(np.arange(20), policy.lm.device, VOCABULARY))
        ratio = (now.log_probs - torch.from_numpy(rollout.log_probs[rollout.mask])).exp()
        assert float((ratio - 1).abs().max()) <= 1e-4
        assert {len(e.turns) for e in rollout.finished} > {1}
        assert rollout.turns.max() == 2


@pytest.mark.parametrize("context", ["transcript", "fresh"])
def test_dense_and_lump_pay_the_same(context: str) -> None:
    policy = TextPolicy(build_lm(seed=1))
    found = []
    for mode in ("dense", "lump"):
        rollout = collect(make(4, kl_mode=mode, context=context), policy, torch.Generator().manual_seed(0), seed=1)
        found.append(rollout)
    np.testing.assert_array_equal(found[0].input_ids, found[1].input_ids)
    np.testing.assert_allclose(found[0].rewards, found[1].rewards, atol=1e-5)


@pytest.mark.parametrize("context", ["transcript", "fresh"])
def test_a_rollout_tells_where_every_token_is(context: str) -> None:
    rollout = collect(make(4, context=context), TextPolicy(LM), torch.Generator().manual_seed(0), episodes=11, seed=1)
    begins = np.cumsum(rollout.text_counts) - rollout.text_counts
    for row, episode in enumerate(rollout.finished):
        size = len(episode.completion_ids)
        texts = begins[row] + rollout.texts[row, :size]
        assert rollout.input_ids[texts, rollout.places[row, :size]].tolist() == list(episode.completion_ids)
        sizes = [turn.tokens for turn in episode.turns]
        assert rollout.turns[row, :size].tolist() == [n for n, many in enumerate(sizes) for _ in range(many)]
        assert rollout.text_counts[row] == (len(sizes) if context == "fresh" else 1)
    some = rollout.rows(np.array([5, 2]))
    whole = rollout.tensors(np.array([5, 2]), torch.device("cpu"), VOCABULARY)
    again = some.tensors(np.arange(2), torch.device("cpu"), VOCABULARY)
    for one, other in zip(whole[:3], again[:3], strict=True):
        torch.testing.assert_close(one, other)


# -- rows, seeds and autoreset ------------------------------------------------------------------------------------


def test_rows_are_single_environments() -> None:
    envs = make(3, autoreset_mode=AutoresetMode.SAME_STEP)
    single = SyncVectorEnv([lambda: TextEnv(**settings_of()) for _ in range(3)], autoreset_mode=AutoresetMode.SAME_STEP)
    rng = np.random.default_rng(0)
    mine, theirs = envs.reset(seed=7)[0], single.reset(seed=7)[0]
    for _ in range(60):
        for name in ("input_ids", "attention_mask"):
            np.testing.assert_array_equal(mine[name], theirs[name])
        actions = rng.integers(VOCABULARY, size=3)
        (mine, *one, infos), (theirs, *other, _) = envs.step(actions), single.step(actions)
        for mine_column, their_column in zip(one, other, strict=True):
            np.testing.assert_allclose(np.asarray(mine_column, float), np.asarray(their_column, float), atol=1e-5)
        if "final_info" in infos:
            assert all(infos["final_info"]["turns"][np.flatnonzero(infos["_final_info"])])


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_seeds_repeat(mode: AutoresetMode) -> None:
    def episode(envs: TextVectorEnv) -> list[Any]:
        rng = np.random.default_rng(1)
        found = [envs.reset(seed=3)[0]["input_ids"]]
        for _ in range(12):
            obs, rewards, *_ = envs.step(rng.integers(VOCABULARY, size=3))
            found += [obs["input_ids"], rewards]
        return found

    envs = make(3, autoreset_mode=mode, world_workers=2)
    for one, other, third in zip(episode(envs), episode(envs), episode(make(3, autoreset_mode=mode)), strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(one, third)


def test_a_world_can_be_seeded_for_each_row() -> None:
    envs = make(3)
    obs, infos = envs.reset(seed=0, options={"world_seed": [5, 5, 6]})
    assert infos["prompt"][0] == infos["prompt"][1] != infos["prompt"][2]
    np.testing.assert_array_equal(obs["input_ids"][0], obs["input_ids"][1])
    for wrong in ([1, 2], -1, "x", [0.5] * 3):
        with pytest.raises(TextEnvError, match="world_seed"):
            envs.reset(options={"world_seed": wrong})
    with pytest.raises(TextEnvError, match="world_seed"):
        make(1, world=None, max_turns=8, max_tokens=None, prompts=["a"]).reset(options={"world_seed": 1})


def test_a_world_is_given_the_prompts_there_are() -> None:
    prompts = [{"prompt": "one", "note": "x"}, {"prompt": "two", "note": "y"}]

    def noted(note: list[str], completions: list[str], **_: Any) -> list[float]:
        return [float(each == "y") for each in note]

    envs = make(4, prompts=prompts, reward=noted)
    _, infos = envs.reset(seed=0, options={"prompt_index": [0, 1, 1, 0]})
    assert [text.split(" of ")[1] for text in infos["prompt"]] == ["one x: ", "two y: ", "two y: ", "one x: "]
    rollout = collect(
        envs, TextPolicy(LM), torch.Generator().manual_seed(0), seed=0, options={"prompt_index": [0, 1, 1, 0]}
    )
    assert [episode.score for episode in rollout.finished] == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("world", [Echo, {"name": "guess_number", "high": 3}])
def test_both_checkers_pass(world: Any) -> None:
    env = gym.make("textenv/Text-v0", **settings_of(world=world))
    check_env(env.unwrapped)
    sb3_check_env(env)


# -- what worlds do wrong -----------------------------------------------------------------------------------------


class Broken(Echo):
    """Does one thing wrong in its second turn."""

    wrong: Any = None

    def step(self, action: str) -> Any:
        found = super().step(action)
        self.turn = getattr(self, "turn", 0) + 1
        return self.wrong(found) if self.turn == 2 else (*found[:2], False, False, {})


def raising(_: Any) -> Any:
    raise KeyError("lost")


def refusing(_: Any) -> Any:
    raise TextEnvError("No server answers at x; start it.")


def leaving(_: Any) -> Any:
    sys.exit(3)


def slow(found: Any) -> Any:
    time.sleep(1.5)
    return found


def step_often(envs: TextVectorEnv) -> None:
    for _ in range(20):
        envs.step(np.array([5, 6]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (raising, r"The world Broken raised KeyError: 'lost', in turn 2, '.*"),
        (refusing, r"The world Broken in turn 2, '.*': No server answers at x; start it\.$"),
        (
            lambda found: (found[0], math.nan, *found[2:]),
            r"What the world Broken paid in turn 2, .* is nan; expected a finite number",
        ),
        (lambda found: (found[0], "1", *found[2:]), "paid in turn 2, .* is '1'; expected a finite number"),
        (lambda found: (7, *found[1:]), "What the world Broken said in turn 2, .* is 7; expected a list of messages"),
        (lambda found: found[:4], r"returned .*; expected \(answer, reward, terminated, truncated, info\)"),
        (lambda found: ("\ud83d", *found[1:]), "said in turn 2, .* is half of a surrogate pair"),
        (lambda found: (found[0], 10**400, *found[2:]), "paid in turn 2, .* expected a finite number"),
        (
            lambda found: (*found[:2], "no", False, {}),
            "terminated='no', truncated=False in turn 2.*expected True or False",
        ),
        (lambda found: (*found[:2], np.array([True, False]), False, {}), "expected True or False"),
        (leaving, r"The world Broken raised SystemExit: 3, in turn 2"),
        (slow, r"The world Broken took more than 0\.5 seconds in turn 2, .*; raise world_timeout"),
        (lambda found: ([{"role": "user", "content": "x"}], *found[1:]), "began with a text.*answered with messages"),
    ],
)
def test_a_world_that_fails_is_named_with_its_turn_and_the_run_can_go_on(wrong: Any, message: str) -> None:
    class_of = type("Broken", (Broken,), {"wrong": staticmethod(wrong)})
    envs = make(2, world=class_of, world_timeout=0.5, max_turns=9)
    envs.reset(seed=0)
    before = json.loads(json.dumps(envs.state_dict()))
    with pytest.raises(TextEnvError, match=message):
        step_often(envs)
    with pytest.raises(TextEnvError, match="call reset"):
        envs.step(np.array([5, 6]))
    envs.load_state_dict(before)
    assert envs.reset()[0]["attention_mask"].any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"world": "gess_number"}, "no world named 'gess_number'. Did you mean 'guess_number'"),
        ({"world": {"name": "guess_number", "hihg": 3}}, "hihg.*Did you mean 'high'"),
        ({"world": {"high": 3}}, "has no name"),
        ({"world": "nomodule:World"}, "cannot be imported"),
        ({"world": 5}, "expected a name"),
        ({"world": lambda: 1 / 0}, "cannot be made: ZeroDivisionError: division by zero"),
        ({"world": "gymnasium:CartPole-v1"}, "^The world 'gymnasium:CartPole-v1' has observations"),
        ({"world": Echo(), "rows": 2}, "one object for 2 rows"),
        ({"world": lambda: 3}, "expected an object with reset and step"),
        ({"max_tokens": 1}, "expected room"),
        ({"max_tokens": 1000}, "the model takes 128"),
        ({"max_turns": 0}, "max_turns=0"),
        ({"world_timeout": 0}, "world_timeout=0"),
        ({"context": "all"}, "context='all'"),
        ({"turn_discount": 1.5}, r"turn_discount=1\.5"),
        ({"world": None}, "max_turns=3 says something of a world"),
    ],
)
def test_bad_settings(given: dict[str, Any], message: str) -> None:
    rows = given.pop("rows", 1)
    with pytest.raises(TextEnvError, match=message):
        make(rows, **given)


def test_a_first_observation_without_room_is_refused() -> None:
    with pytest.raises(TextEnvError, match=r"The world .* began with 'Begin .*there is room for 5"):
        make(1, max_prompt_tokens=5).reset(seed=0)


# -- worlds that are asked together, closed, saved ----------------------------------------------------------------


class Together(Echo):
    """Counts how it was asked."""

    calls: list[int] = []  # noqa: RUF012

    @classmethod
    def step_many(cls, worlds: list[Echo], texts: list[str]) -> list[Any]:
        cls.calls.append(len(worlds))
        return [Echo.step(world, text) for world, text in zip(worlds, texts, strict=True)]


def test_rows_whose_turns_end_together_are_asked_together() -> None:
    Together.calls.clear()
    found = [
        collect(make(4, world=world), TextPolicy(LM), torch.Generator().manual_seed(0), seed=1)
        for world in (Echo, Together)
    ]
    np.testing.assert_array_equal(found[0].input_ids, found[1].input_ids)
    np.testing.assert_array_equal(found[0].rewards, found[1].rewards)
    assert max(Together.calls) > 1


class Learner(Echo):
    """Begins otherwise the more episodes it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.seen += 1
        return f"{self.seen} {super().reset(seed=seed)[0]}", {}

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def test_the_state_of_worlds_goes_with_the_environments() -> None:
    envs = make(2, world=Learner)
    envs.reset(seed=0)
    envs.reset()
    state = json.loads(json.dumps(envs.state_dict()))
    expected = envs.reset()[0]["input_ids"]
    other = make(2, world=Learner)
    other.reset(seed=9)
    other.load_state_dict(state)
    np.testing.assert_array_equal(other.reset()[0]["input_ids"], expected)
    with pytest.raises(TextEnvError, match="is another's"):
        make(2, world=Echo).load_state_dict(state)


def test_worlds_are_closed() -> None:
    closed = []

    class Closing(Echo):
        def close(self) -> None:
            closed.append(self)

    envs = make(3, world=Closing)
    envs.reset(seed=0)
    envs.close()
    assert len(closed) == 3


# -- the cache ----------------------------------------------------------------------------------------------------


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6), context=st.sampled_from(["transcript", "fresh"]), rows=st.integers(1, 4))
def test_cached_forwards_are_plain_ones(seed: int, context: str, rows: int) -> None:
    """What is cached of a row is cut back, extended by an answer, or begun anew, beside rows that write on."""
    envs, lm = make(rows, context=context, autoreset_mode=AutoresetMode.SAME_STEP), build_lm(seed=2)
    rng = np.random.default_rng(seed)
    obs, _ = envs.reset(seed=seed)
    for _ in range(14):
        lengths = obs["attention_mask"].sum(axis=1)
        found = lm.next_token_logits(obs["input_ids"], lengths)
        for row, length in enumerate(lengths.tolist()):
            with torch.no_grad():
                plain = lm.model(input_ids=torch.from_numpy(obs["input_ids"][row : row + 1, :length])).logits[0, -1]
            torch.testing.assert_close(found[row], plain, atol=1e-4, rtol=1e-4)
        obs, *_ = envs.step(rng.integers(VOCABULARY, size=rows))


# -- agents and truncation ----------------------------------------------------------------------------------------


def test_a_world_that_cuts_an_episode_is_bootstrapped_and_pays_no_score() -> None:
    for mode in ("dense", "lump"):
        envs = make(6, world=lambda: Echo(cuts=2), reward=vowels, kl_mode=mode)
        policy = TextPolicy(LM)
        with torch.no_grad():
            policy.value_head.bias.fill_(0.7)  # type: ignore[union-attr]
        rollout = collect(envs, policy, torch.Generator().manual_seed(0), episodes=18, seed=0)
        cut = np.array([episode.truncated for episode in rollout.finished])
        assert 0 < cut.sum() < 18
        np.testing.assert_allclose(rollout.bootstrap[cut], 0.7, atol=1e-6)
        assert not rollout.bootstrap[~cut].any()
        for row, episode in enumerate(rollout.finished):
            paid = math.fsum(turn.reward for turn in episode.turns) - BETA * math.fsum(episode.kl) + episode.score
            assert float(rollout.rewards[row].sum()) == pytest.approx(paid, abs=1e-5)
            assert (episode.score == 0) or not episode.truncated


def test_discounts_are_between_turns() -> None:
    envs = make(3, turn_discount=0.25, world=lambda: Echo(ends=10**9))
    rollout = collect(envs, TextPolicy(LM), torch.Generator().manual_seed(0), seed=0)
    for row in range(3):
        size = int(rollout.mask[row].sum())
        expected = [0.25 if before < after else 1 for before, after in itertools.pairwise(rollout.turns[row, :size])]
        assert rollout.discounts[row, : size - 1].tolist() == expected


# -- what a world tells the reward ---------------------------------------------------------------------------------


@dataclass
class Telling(Echo):
    """Echo, which tells the reward of the episode."""

    told: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        said, _ = super().reset(seed=seed, options=options)
        return said, {"columns": {"turns": 0, "first": self.state}}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        found = super().step(action)
        return *found[:4], {"columns": {"turns": found[0], "last": self.state} if self.told is None else self.told}


@pytest.mark.parametrize("prompts", [None, [{"prompt": "the", "turns": -1, "note": "n"}]])
def test_a_world_tells_the_reward_columns(prompts: Any) -> None:
    told: list[dict[str, Any]] = []

    def reward(completions: list[str], *, turns: Any, first: Any, last: Any, **columns: Any) -> list[float]:
        told.extend({"turns": turns[row], "first": first[row], "last": last[row]} for row in range(len(completions)))
        assert ("note" in columns) is (prompts is not None)
        return [0.0] * len(completions)

    env = TextEnv(**settings_of(world=Telling, reward=reward, prompts=prompts))
    for seed in range(4):
        *_, (_, found) = play(env, np.random.default_rng(seed), seed)
        info = found[4]
        assert told[-1]["turns"] == info["turns"][-1].answer
        assert told[-1]["turns"] == f"|{told[-1]['last'] % 100}> "
        episode = env.batch.last_episodes[0]
        assert episode is not None
        assert episode.columns["first"] == told[-1]["first"]
    assert len(told) == 4


@pytest.mark.parametrize("told", [3, ["a"], {3: 1}, {"a": math.nan}])
def test_columns_of_a_world_that_are_none_are_refused(told: Any) -> None:
    env = TextEnv(**settings_of(world=lambda: Telling(told=told)))
    with pytest.raises(TextEnvError, match=r"columns"):
        list(play(env, np.random.default_rng(0), 0))
