"""The loop of clips: it learns, survives a kill to the bit, and waits for people."""

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib.image
import numpy as np
import pytest
import safetensors.torch
import torch

from tests.clips.test_clips import Walk
from textenv.clips.clips_config import ClipsConfig
from textenv.clips.measuring import evaluate_returns, plot_returns
from textenv.clips.oracle import true_return
from textenv.clips.queries import Pair
from textenv.clips.saved import load_policy, load_reward
from textenv.clips.sb3_agents import AGENTS, make_agent, relabel_rewards
from textenv.clips.segments import Segment
from textenv.clips.training import train
from textenv.clips.wrappers import LearnedReward
from textenv.rollouts.tracking import read_metrics
from textenv.types import TextEnvError

TASK = "tests/Walk-v0"


def make_walk(**settings: Any) -> Walk:
    return Walk(**settings)


gym.register(TASK, make_walk, max_episode_steps=30)

SMALL: dict[str, Any] = {"batch_size": 16, "policy_kwargs": {"net_arch": [16]}}
AGENT_SETTINGS: dict[str, dict[str, Any]] = {
    "sac": {**SMALL, "learning_starts": 40},
    "td3": {**SMALL, "learning_starts": 40},
    "dqn": {**SMALL, "learning_starts": 40, "target_update_interval": 50},
    "ppo": {**SMALL, "n_steps": 32, "n_epochs": 2},
    "a2c": {"policy_kwargs": {"net_arch": [16]}, "n_steps": 8},
}


def config(out: Path, agent: str = "sac", **changes: Any) -> ClipsConfig:
    task = "CartPole-v1" if agent == "dqn" else TASK
    settings: dict[str, Any] = {
        "total_steps": 160, "rounds": 4, "labels": 16, "clip_steps": 5, "updates": 40, "hidden": 8, "eval_episodes": 2,
        "episode_steps": 30, "agent_settings": AGENT_SETTINGS[agent], "task": task, **changes,
    }  # fmt: skip
    return ClipsConfig(out=out, agent=agent, **settings)  # type: ignore[arg-type]


def without_time(folder: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if "time" not in name} for row in read_metrics(folder)]


class Killed(Exception):  # noqa: N818 (not an error)
    """Stands for a kill: whatever the run holds in memory is lost."""


def killed_after(calls: int) -> Any:
    left = iter(range(calls))

    def score(clip: Segment) -> float:
        if next(left, None) is None:
            raise Killed
        return true_return(clip)

    return score


@pytest.mark.parametrize("agent", sorted(AGENT_SETTINGS))
def test_a_killed_run_goes_on_to_the_bit(agent: str, tmp_path: Path) -> None:
    straight = train(config(tmp_path / "straight", agent), progress=False)
    with pytest.raises(Killed):
        train(config(tmp_path / "killed", agent), score=killed_after(22), progress=False)
    np.random.seed(0)  # noqa: NPY002 (a new process would not know the old one's either)
    torch.manual_seed(0)
    resumed = train(config(tmp_path / "killed", agent), progress=False)
    assert straight["resumed"] is False
    assert resumed["resumed"] is True
    assert straight["returns"] == resumed["returns"]
    assert straight["labels_judged"] == resumed["labels_judged"] == 16
    assert str(without_time(tmp_path / "straight")) == str(without_time(tmp_path / "killed"))  # nan equals nan
    for name in ("policy", "reward"):
        one, other = (
            safetensors.torch.load_file(tmp_path / run / name / "model.safetensors") for run in ("straight", "killed")
        )
        assert all(torch.equal(one[key], other[key]) for key in one | other)


def test_a_run_leaves_what_it_says(tmp_path: Path) -> None:
    results = train(config(tmp_path / "run", against=None), progress=False)
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    assert matplotlib.image.imread(tmp_path / "run" / "returns.png").shape[2] == 4
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [0, 40, 80, 120, 160]
    assert [row.get("labels/asked") for row in rows[:1]] == [4]
    assert rows[3]["labels/asked"] == rows[3]["labels/judged"] == 16
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".zip", ".pkl", ".pt", ".pth"}]
    about = tmp_path / "run" / "policy" / "config.json"
    saved = about.read_text()
    about.write_text(json.dumps({**json.loads(saved), "agent": "sacc"}))
    with pytest.raises(TextEnvError, match=r"no agent 'sacc'. Did you mean 'sac'"):
        load_policy(tmp_path / "run" / "policy")
    about.write_text(saved)
    agent = load_policy(tmp_path / "run" / "policy")
    assert evaluate_returns(agent, TASK, {}, 2) == results["returns"]
    env: Any = gym.make(TASK)
    reward = load_reward(tmp_path / "run" / "reward", env)
    wrapped = LearnedReward(env, reward)
    observation, _ = wrapped.reset(seed=0)
    _, paid, *_ = wrapped.step(np.array([0.5], np.float32))
    assert paid == pytest.approx(float(reward(observation[None], np.array([[0.5]], np.float32))[0]))
    with pytest.raises(TextEnvError, match="reads 2 numbers a step, and the task has 6"):
        load_reward(tmp_path / "run" / "reward", gym.make("CartPole-v1"))
    with pytest.raises(TextEnvError, match="holds a finished run"):
        train(config(tmp_path / "run"), progress=False)
    against = train(config(tmp_path / "other", reward="task", against=tmp_path / "run"), progress=False)
    assert against["labels_asked"] == 0
    assert not (tmp_path / "other" / "reward").exists()


@pytest.mark.parametrize("killed", [False, True])
def test_training_leaves_the_callers_number_of_threads(tmp_path: Path, killed: bool) -> None:
    before, during = torch.get_num_threads(), set[int]()

    def score(clip: Segment) -> float:
        during.add(torch.get_num_threads())
        if killed:
            raise Killed
        return true_return(clip)

    torch.set_num_threads(3)
    try:
        with pytest.raises(Killed) if killed else contextlib.nullcontext():
            train(config(tmp_path, threads=2), score=score, progress=False)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert during == {2}


def test_other_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(config(tmp_path), score=killed_after(10), progress=False)
    with pytest.raises(TextEnvError, match="labels was 16, is 17"):
        train(config(tmp_path, labels=17), progress=False)


def test_the_rewards_in_memory_are_computed_again() -> None:
    env = gym.make(TASK)
    agent: Any = make_agent("sac", env, seed=0, buffer_size=100, settings=AGENT_SETTINGS["sac"])
    agent.learn(60)
    seen: list[np.ndarray] = []

    def reward(observations: Any, actions: Any) -> Any:
        seen.extend([observations, actions])
        return np.arange(len(actions), dtype=np.float32)

    relabel_rewards(agent, reward)
    assert agent.replay_buffer.rewards[:60, 0].tolist() == list(range(60))
    assert agent.replay_buffer.rewards[60:].any() is np.False_
    assert seen[0].shape == seen[1].shape == (60, 1)
    assert np.array_equal(seen[0], agent.replay_buffer.observations[:60, 0])
    pendulum: Any = make_agent("sac", gym.make("Pendulum-v1"), seed=0, buffer_size=100, settings={})
    pendulum.learn(20)
    relabel_rewards(pendulum, lambda observations, actions: seen.append(actions) or actions[:, 0])  # type: ignore[func-returns-value]
    assert np.allclose(seen[-1], 2 * pendulum.replay_buffer.actions[:20, 0])  # the task's actions, from -2 to 2


class Slow:
    """A judge who answers nothing at once."""

    def __init__(self) -> None:
        self.pairs: list[Pair] = []
        self.given: dict[int, float | None] = {}
        self.looked = 0

    def ask(self, pair: Pair, *, number: int, step: int) -> int:
        assert number == len(self.pairs)
        self.pairs.append(pair)
        return 1000 + number

    def answers(self, asked: Sequence[int]) -> list[float | None]:
        self.looked += 1
        if self.looked > 2:  # the third time somebody has looked at half of them, and could not tell the first
            for number in range((len(self.pairs) + 1) // 2):
                first, second = self.pairs[number]
                self.given[number] = math.nan if number == 0 else float(true_return(first) > true_return(second))
        return [self.given.get(number - 1000) for number in asked]


def test_training_waits_for_people(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("textenv.clips.preference_run._POLL_SECONDS", 0.0)
    judge = Slow()
    results = train(config(tmp_path), judge=judge, progress=False)
    assert "Training waits for judgements of clips: 4 of 4 are missing." in capsys.readouterr().out
    assert results["labels_asked"] == len(judge.pairs) == 16
    assert results["labels_judged"] == sum(not math.isnan(value or 0) for value in judge.given.values()) == 7


def test_pairs_that_nobody_can_tell_apart_end_the_run(tmp_path: Path) -> None:
    class Blind(Slow):
        def answers(self, asked: Sequence[int]) -> list[float | None]:
            return [math.nan] * len(asked)

    with pytest.raises(TextEnvError, match="None of 4 pairs of clips could be told apart"):
        train(config(tmp_path), judge=Blind(), progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": 0}, "labels=0: expected a whole number of at least 1"),
        ({"labels": 2.5}, "labels=2.5"),
        ({"clip_steps": True}, "clip_steps=True"),
        ({"oracle_temperature": math.inf}, "oracle_temperature=inf"),
        ({"reward": "learnd"}, "reward='learnd'"),
        ({"seed": -1}, "seed=-1"),
        ({"labels": 1}, "at least one comparison before training"),
        ({"episode_steps": 4}, "at least the 5 steps of a clip"),
        ({"lag": 1.5}, "lag=1.5"),
        ({"store": Path("x"), "reward": "task"}, "asks people"),
        ({"clip_steps": 31, "episode_steps": None}, "at most the 30 steps of an episode"),
        ({"error_rate": 1.0}, "all random"),
        ({"reward_std": 0.0}, "reward_std=0.0"),
        ({"task": "tests/NoSuchTask-v0"}, "NoSuchTask"),
        ({"task_settings": {"speed": 3}}, "speed"),
        ({"agent_settings": {"learning_speed": 3}}, "learning_speed"),
        ({"agent": "dqn", "task": TASK, "agent_settings": {}}, "cannot make agent 'dqn'"),
        ({"task": "FrozenLake-v1"}, "expected a Box of observations"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TextEnvError, match=message):
        train(config(tmp_path, **changes), progress=False)


def test_every_agent_is_tested() -> None:
    assert set(AGENT_SETTINGS) == set(AGENTS) - {"ddpg"}  # which is TD3 with other settings


def test_a_picture_needs_episodes(tmp_path: Path) -> None:
    with pytest.raises(TextEnvError, match="no true returns to draw"):
        plot_returns({"run": [tmp_path]}, tmp_path / "x.png")
    with pytest.raises(TextEnvError, match="expected a name that ends in"):
        plot_returns({"run": [tmp_path]}, tmp_path / "x.jpg")


@pytest.mark.slow
def test_a_walk_is_learned_from_preferences(tmp_path: Path) -> None:
    learned = train(
        config(tmp_path, labels=60, total_steps=900, rounds=6, updates=150, eval_episodes=10, episode_steps=20),
        progress=False,
    )
    assert read_metrics(tmp_path)[-2]["reward/correlation"] > 0.9
    assert learned["true_return"] > 2  # at random it is about 0
