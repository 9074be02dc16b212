"""Shaping by a potential: what is paid, against a plain model of it, and that the optimum stays where it is."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from tests.complaints import plain
from tests.conftest import build_lm
from tests.env.test_worlds import BETA, Echo, vowels
from tests.families import make_family
from textenv.analysis.exact import Tree, model_log_probs
from textenv.env.letters import exact_settings
from textenv.env.vector import TextVectorEnv
from textenv.models.policy import TextPolicy
from textenv.rewards.normalize import Normalize
from textenv.rollouts.collect import collect
from textenv.types import Episode, TextEnvError

LM = build_lm()


def length(completions: Sequence[Any], **_: Any) -> list[float]:
    """A potential that every character changes, also where it repeats."""
    return [len(text) / 8 + text.count("e") for text in completions]


def make(rows: int = 4, **given: Any) -> TextVectorEnv:
    shared = {"model": LM, "prompts": ["a film", "the plot"], "kl_coef": BETA, "max_new_tokens": 5, "reward": vowels}
    mode = AutoresetMode.DISABLED
    return TextVectorEnv(rows, **{"autoreset_mode": mode, "potential": length, **shared, **given})


WORLD: dict[str, Any] = {"prompts": None, "max_new_tokens": 4, "max_turns": 3, "max_tokens": 90}


def written(envs: TextVectorEnv, episodes: int = 12, seed: int = 0) -> Any:
    return collect(envs, TextPolicy(build_lm(seed=1)), torch.Generator().manual_seed(0), episodes=episodes, seed=seed)


# -- what is paid -------------------------------------------------------------------------------------------------


def so_far(episode: Episode, tokens: int) -> str:
    """Return the completion after some tokens of the agent: all turns that it has begun, and the answers between."""
    if not episode.turns:
        return str(LM.tokenizer.decode([t for t in episode.completion_ids[:tokens] if t not in LM.eos_ids]))
    text, done = "", 0
    for turn in episode.turns:
        if tokens <= done + turn.tokens:
            ids = [t for t in episode.completion_ids[done:tokens] if t not in LM.eos_ids]
            return text + (turn.text if tokens == done + turn.tokens else str(LM.tokenizer.decode(ids)))
        text, done = f"{text}{turn.text}{turn.answer}", done + turn.tokens
    raise AssertionError("it has no more tokens")


def expected(episode: Episode, every: int | str, gamma: float, turn_discount: float) -> list[float]:
    """Return what each token is paid by ``gamma * Phi(s') - Phi(s)``, written plainly."""
    (before,), paid = length(completions=[""]), []
    ends = set(np.cumsum([turn.tokens for turn in episode.turns]).tolist())
    size = len(episode.completion_ids)
    for tokens in range(1, size + 1):
        last = tokens == size
        after = before
        if tokens in ends if every == "turn" else tokens % int(every) == 0:
            (after,) = length(completions=[so_far(episode, tokens)])
        if last and not episode.truncated:
            after = 0.0
        share = turn_discount if tokens in ends and not last else 1.0
        paid.append(gamma * share * after - before)
        before = after
    return paid


@pytest.mark.parametrize("mode", ["dense", "lump"])
@pytest.mark.parametrize(
    ("context", "every", "gamma", "turn_discount"),
    [
        *((context, every, *discounts) for context in (None, "transcript", "fresh")
          for every, *discounts in ((1, 1.0, 1.0), (2, 0.9, 0.5))),
        *((context, "turn", 0.9, 0.5) for context in ("transcript", "fresh")),
    ],
)  # fmt: skip
def test_it_pays_the_discounted_potential_less_the_one_before(
    context: str | None, every: Any, gamma: float, turn_discount: float, mode: str
) -> None:
    discount = {"potential_every": every, "potential_discount": gamma, "kl_mode": mode}
    world = {**WORLD, "world": lambda: Echo(cuts=5), "context": context, "turn_discount": turn_discount}
    envs = make(**discount, **(world if context else {}))
    rollout = written(envs)
    paid = 0.0
    for row, episode in enumerate(rollout.finished):
        assert episode.shaping == pytest.approx(expected(episode, every, gamma, turn_discount))
        total = episode.score + episode.world_reward + math.fsum(episode.shaping) - BETA * math.fsum(episode.kl)
        assert math.fsum(episode.token_rewards) == pytest.approx(total, abs=1e-5)
        assert float(rollout.rewards[row].sum()) == pytest.approx(total, abs=1e-5)
        cut_short = 0.0 if episode.truncated else vowels([episode.completion])[0]
        assert episode.score == pytest.approx(cut_short)
        paid += max(map(abs, episode.shaping))
    assert paid > 1
    assert any(episode.truncated for episode in rollout.finished) == (context is not None)
    assert any(len(episode.turns) > 1 for episode in rollout.finished) == (context is not None)


@pytest.mark.parametrize("settings", [{"kl_mode": "lump"}, {}, {"kl_estimator": "full"}], ids=plain)
def test_rewards_of_steps_add_up_and_infos_tell_what_shaping_paid(settings: dict[str, Any]) -> None:
    envs = make(5, missing_eos_penalty=0.5, **settings)
    policy, dense = TextPolicy(build_lm(seed=1)), "kl_mode" not in settings
    obs, _ = envs.reset(seed=3)
    paid, told = np.zeros(5), np.zeros(5)
    with envs.attached(policy):
        while not envs.over.all():
            rows = np.flatnonzero(~envs.over)
            actions, _ = policy.act(obs, generator=torch.Generator().manual_seed(0), rows=rows)
            obs, rewards, *_, infos = envs.step(actions)
            paid += rewards
            told += infos.get("shaping", 0.0)
            for row in np.flatnonzero(infos.get("_score", [])):
                episode = envs.last_episodes[row]
                assert episode is not None
                total = episode.score - BETA * math.fsum(episode.kl) + math.fsum(infos["token_shaping"][row])
                assert paid[row] == pytest.approx(total, abs=1e-5)
                assert infos["token_shaping"][row] == episode.shaping
                if dense:
                    assert told[row] == pytest.approx(math.fsum(episode.shaping))
    assert "shaping" not in make(1, potential=None).reset()[1]


def test_it_is_paid_alike_where_episodes_are_scored_later() -> None:
    dense, lump = (written(make(4, kl_mode=mode)) for mode in ("dense", "lump"))
    np.testing.assert_allclose(dense.rewards, lump.rewards, atol=1e-5)
    assert [each.shaping for each in dense.finished] == [each.shaping for each in lump.finished]


def test_rows_that_begin_anew_begin_with_the_potential_of_nothing() -> None:
    for mode in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
        envs = make(2, autoreset_mode=mode, potential=lambda completions, **_: [7.0 + len(t) for t in completions])
        envs.reset(seed=0)
        seen = 0
        for _ in range(20):
            envs.step(np.array([9, 10]))
            for episode in filter(None, envs.last_episodes):
                assert math.fsum(episode.shaping) == pytest.approx(-7.0)
                seen += 1
        assert seen > 4


# -- the optimum --------------------------------------------------------------------------------------------------


@dataclass
class Letters:
    """Answers two turns by the letters that it is told, and pays for them."""

    told: list[str] = field(default_factory=list)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.told = []
        return "a", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.told.append(action)
        paid = np.random.default_rng([ord(letter) for letter in action]).uniform(-1, 1)
        return "ab"[len(action) % 2], float(paid), len(self.told) == 2, False, {}


State = tuple[int, ...]


class Process:
    """All states of a small environment, and what its tokens are paid, by trying each."""

    def __init__(self, beta: float = 0.1, **settings: Any) -> None:
        given = exact_settings(**settings, kl_coef=0.0, kl_mode="lump")
        self.envs = TextVectorEnv(1, **given, autoreset_mode=AutoresetMode.DISABLED)
        self.beta, self.log_probs = beta, model_log_probs(self.envs.reference)
        self.paid: dict[State, dict[int, tuple[float, State | None, bool]]] = {}
        self._try([], self._play([])[0])

    def _try(self, tokens: list[int], state: State) -> None:
        self.paid[state] = {}
        for token in range(self.envs.reference.vocab_size):
            following, reward, over, turned = self._play([*tokens, token])
            self.paid[state][token] = reward, None if over else following, turned
            if not over:
                self._try([*tokens, token], following)

    def _play(self, tokens: list[int]) -> tuple[State, float, bool, bool]:
        """Return the state after tokens, what the last of them was paid, and if it ended the episode or a turn."""
        obs, _ = self.envs.reset(seed=0)
        reward, over, size, turned = 0.0, False, 0, False
        for token in tokens:
            size = int(obs["attention_mask"].sum())
            obs, rewards, ended, *_ = self.envs.step(np.array([token]))
            reward, over = rewards.item(), bool(ended[0])
            turned = int(obs["attention_mask"].sum()) > size + 1
        return tuple(obs["input_ids"][0, : obs["attention_mask"].sum()].tolist()), reward, over, turned

    def solve(self, gamma: float, turn_discount: float) -> dict[State, tuple[float, NDArray[Any]]]:
        """Return the optimal value of every state, and the optimal policy, by soft value iteration."""
        found: dict[State, tuple[float, NDArray[Any]]] = {}
        for state in sorted(self.paid, key=len, reverse=True):
            q = np.zeros(len(self.paid[state]))
            for token, (reward, following, turned) in self.paid[state].items():
                share = gamma * (turn_discount if turned else 1.0)
                q[token] = reward + (0.0 if following is None else share * found[following][0])
            logits = self.log_probs(np.array([state]))[0] + q / self.beta
            value = np.logaddexp.reduce(logits).item()
            found[state] = self.beta * value, np.exp(logits - value)
        return found


ONE: dict[str, Any] = {"vocab_size": 4, "max_new_tokens": 3}
SEVERAL: dict[str, Any] = {"vocab_size": 3, "max_new_tokens": 2, "turns": 2, "world": Letters, "reward": "dense"}


@cache
def process_of(several: bool) -> Process:
    """Return an environment without shaping, of one turn or of several."""
    return Process(**(SEVERAL if several else ONE))


@pytest.mark.parametrize(
    ("task", "every", "gamma", "turn_discount"),
    [
        (ONE, 1, 1.0, 1.0),
        (ONE, 2, 1.0, 1.0),
        (ONE, 1, 0.8, 1.0),
        (ONE, 2, 0.8, 1.0),
        (SEVERAL, 1, 1.0, 1.0),
        (SEVERAL, 2, 0.8, 0.5),
        (SEVERAL, "turn", 1.0, 1.0),
        (SEVERAL, "turn", 1.0, 0.5),
        (SEVERAL, "turn", 0.8, 0.5),
    ],
    ids=plain,
)
def test_the_optimal_policy_stays(task: Any, every: Any, gamma: float, turn_discount: float) -> None:
    turns = {"turn_discount": turn_discount} if "world" in task else {}
    shaping = {"potential": length, "potential_every": every, "potential_discount": gamma}
    without = process_of("world" in task).solve(gamma, turn_discount)
    with_it = Process(**task, **turns, **shaping).solve(gamma, turn_discount)
    assert without.keys() == with_it.keys()
    moved = 0.0
    for state, (value, policy) in without.items():
        np.testing.assert_allclose(with_it[state][1], policy, atol=1e-6)
        moved = max(moved, abs(with_it[state][0] - value))
    assert moved > 0.1  # the values are others: it was paid


def test_another_discount_than_the_agents_moves_it() -> None:
    shaped = Process(**ONE, potential=length, potential_discount=0.8).solve(1.0, 1.0)
    policies = process_of(several=False).solve(1.0, 1.0)
    assert max(np.abs(policies[state][1] - policy).max() for state, (_, policy) in shaped.items()) > 0.01


def test_the_exact_tree_is_the_same_and_agrees_with_all_texts_tried() -> None:
    settings: list[dict[str, Any]] = [{}, {"potential": "sparse"}]
    plain_tree, shaped = (
        Tree.of(TextVectorEnv(1, **exact_settings(**ONE, **given), kl_coef=0.1)) for given in settings
    )
    tried = Process(**ONE, potential="sparse").solve(1.0, 1.0)
    for one, other, states in zip(
        plain_tree.optimal_policy[0], shaped.optimal_policy[0], shaped.states[0], strict=True
    ):
        np.testing.assert_array_equal(one, other)
        for ids, log_probs in zip(states.ids.tolist(), other, strict=True):
            np.testing.assert_allclose(np.exp(log_probs), tried[tuple(ids)][1], atol=1e-6)
    assert plain_tree.optimum == shaped.optimum


def test_a_family_of_exact_scores_can_be_the_potential() -> None:
    settings = exact_settings(**ONE, potential="sparse", task_seed=3)
    assert settings["potential"] == {**settings["reward"], "family": "sparse"}


# -- what it is given ---------------------------------------------------------------------------------------------


def test_it_is_given_columns_and_ids() -> None:
    asked: list[tuple[str, str, list[int], Any]] = []

    def noting(prompts: Any, completions: Any, completion_ids: Any, note: Any, **_: Any) -> list[float]:
        asked.extend(zip(prompts, completions, completion_ids, note, strict=True))
        return [0.0] * len(completions)

    prompts = [{"prompt": "a film", "note": "x"}, {"prompt": "the plot", "note": "y"}]
    rollout = written(make(2, prompts=prompts, potential=noting), episodes=2)
    for episode in rollout.finished:
        mine = [each for each in asked if each[0] == episode.prompt]
        assert {each[3] for each in mine} == {episode.columns["note"]}
        ids = [each[2] for each in mine if list(episode.completion_ids)[: len(each[2])] == each[2]]
        assert sorted(map(len, ids))[-1] == len(episode.completion_ids) - 1  # the last one's potential is 0
    with pytest.raises(TextEnvError, match=r"potential: The reward .*note.* cannot be called"):
        make(potential=noting)


class Messages(Echo):
    """Begins and answers with messages."""

    def reset(self, **given: Any) -> Any:
        said, info = super().reset(**given)
        return [{"role": "user", "content": said}], info

    def step(self, action: str) -> Any:
        said, *rest = super().step(action)
        return ([{"role": "user", "content": said}], *rest)


def test_a_conversation_is_one_of_messages_that_ends_with_what_the_assistant_has_said() -> None:
    lm = make_family("qwen2")
    asked: list[tuple[Any, Any]] = []

    def noting(prompts: Any, completions: Any, **_: Any) -> list[float]:
        asked.extend(zip(prompts, completions, strict=True))
        return [0.0] * len(completions)

    envs = make(1, model=lm, prompts=[[{"role": "user", "content": "Write."}]], potential=noting)
    collect(envs, TextPolicy(lm), torch.Generator().manual_seed(0), seed=0)
    prompt, completion = asked[-1]
    assert prompt == [{"role": "user", "content": "Write."}]
    assert [message["role"] for message in completion] == ["assistant"]
    asked.clear()
    settings = {**WORLD, "model": lm, "world": lambda: Messages(ends=10**9), "max_tokens": 120, "reward": None}
    rollout = collect(make(1, potential=noting, **settings), TextPolicy(lm), torch.Generator().manual_seed(0), seed=0)
    (episode,) = rollout.finished
    roles = [[message["role"] for message in completion] for _, completion in asked]
    assert roles[0] == ["assistant"]
    assert all(each == ["assistant", "user"] * (len(each) // 2) + ["assistant"] for each in roles)
    assert max(map(len, roles)) == 2 * len(episode.turns) - 1
    assert asked[-1][1][0]["content"] == episode.turns[0].text


def test_a_potential_with_a_state_keeps_the_value_that_it_had_and_is_saved() -> None:
    def envs() -> TextVectorEnv:
        return make(3, potential=Normalize(length), kl_mode="lump")

    one, other = envs(), envs()
    policy, generator = TextPolicy(LM), torch.Generator()
    first = collect(one, policy, generator.manual_seed(0), seed=0)
    for episode in first.finished:  # what a text was given when it was reached is taken back, whatever it is later
        assert max(map(abs, episode.shaping)) > 0.1
        assert math.fsum(episode.shaping) == pytest.approx(0.0, abs=1e-9)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    again = [collect(each, policy, generator.manual_seed(1)) for each in (one, other)]
    np.testing.assert_array_equal(again[0].rewards, again[1].rewards)
    assert again[0].finished == again[1].finished
    with pytest.raises(TextEnvError, match="has no potential, and the state is of one with one"):
        make(3, potential=None, kl_mode="lump").load_state_dict(one.state_dict())
    with pytest.raises(TextEnvError, match="has a potential, and the state is of one with none"):
        one.load_state_dict(make(3, potential=None).state_dict())


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"potential": "vadr"}, "potential: .*no reward named 'vadr'. Did you mean 'vader'"),
        ({"potential": 3}, "potential: .*3"),
        (
            {"potential": None, "potential_every": 2},
            "potential_every=2 says something of a potential; give a",
        ),
        ({"potential": None, "potential_discount": 0.5}, "potential_discount=0.5 says something of a potential"),
        ({"potential_every": 0}, "potential_every=0: expected a whole number of at least 1, or one of .*turn"),
        ({"potential_every": "turns"}, "potential_every='turns'"),
        ({"potential_every": 1.5}, "potential_every=1.5"),
        ({"potential_discount": 1.1}, "potential_discount=1.1"),
        ({"potential_every": "turn"}, "an episode is one turn"),
        ({"potential_every": 5}, "potential_every=5, and an episode has at most 5 tokens.*Expected less than 5"),
        ({**WORLD, "world": Echo, "potential_every": 12}, "at most 12 tokens"),
        ({**WORLD, "world": Echo, "potential_every": "turn", "max_turns": 1}, "at least 2 max_turns"),
    ],
    ids=plain,
)
def test_bad_settings(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TextEnvError, match=message):
        make(**given)


def test_a_potential_that_fails_is_named_and_the_run_can_go_on() -> None:
    calls = itertools.count()

    def failing(completions: list[str], **_: Any) -> list[float]:
        return [math.nan if next(calls) == 3 else 0.0 for _ in completions]

    envs = make(2, potential=failing)
    envs.reset(seed=0)
    with pytest.raises(TextEnvError, match=r"potential: The reward .*failing returned nan"):
        envs.step(np.array([5, 6]))
    with pytest.raises(TextEnvError, match="call reset"):
        envs.step(np.array([5, 6]))
    envs.reset()
    envs.step(np.array([5, 6]))
