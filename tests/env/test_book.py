"""``textenv/Book-v0``: its contract, its settings, and that no return crosses the nodes of a tree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from tests.complaints import one_line
from tests.worlds.checks import write
from textenv import CausalLM, TextEnv
from textenv.agents.losses import gae, turn_returns
from textenv.data.book_tasks import STOP
from textenv.env.registry import record_of
from textenv.models.policy import TextPolicy
from textenv.rollouts.collect import collect
from textenv.testing import EnvironmentContract

SMALL: dict[str, Any] = {
    "window": 320,
    "leaf_tokens": 100,
    "max_new_tokens": 3,
    "reward": {"name": "length", "target": 4},
}


class TestBookContract(EnvironmentContract):
    def make_env(self, **settings: Any) -> Any:
        return gym.make("textenv/Book-v0", **{**SMALL, "curriculum": "first subtree", **settings})

    def make_vec_env(self, num_envs: int, **settings: Any) -> Any:
        return gym.make_vec(
            "textenv/Book-v0", num_envs=num_envs, **{**SMALL, "curriculum": "first subtree", **settings}
        )

    @pytest.mark.slow
    def test_every_action_is_legal(self) -> None:
        super().test_every_action_is_legal()


@pytest.fixture
def books(tmp_path: Path) -> str:
    path = tmp_path / "books.jsonl"
    texts = [" ".join(f"the film of day {day} was a good plot." for day in range(size)) for size in (6, 15, 40)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def tiny(lm: CausalLM, books: str) -> dict[str, Any]:
    return {"model": lm, "books": books, "split": "all", "window": 128, "leaf_tokens": 24, "max_new_tokens": 5}


def by_words(*, completions: list[str], **_: Any) -> list[float]:
    return [1.0 + len(text.split()) for text in completions]


def test_no_return_crosses_nodes(tiny_lm: CausalLM, books: str) -> None:
    envs: Any = gym.make_vec(
        "textenv/Book-v0",
        num_envs=4,
        autoreset_mode=AutoresetMode.DISABLED,
        reward=by_words,
        kl_mode="lump",
        kl_coef=0.0,
        **tiny(tiny_lm, books),
    )
    rollout = collect(envs, TextPolicy(tiny_lm), torch.Generator().manual_seed(0), seed=0)
    nodes = [len(tree.nodes) for tree in envs.unwrapped.worlds.worlds[0]._library.trees]
    rewards, mask = torch.as_tensor(rollout.rewards), torch.as_tensor(rollout.mask)
    earned = turn_returns(rewards, torch.as_tensor(rollout.turns), mask, rollout.turn_discount)
    discounts = torch.as_tensor(rollout.discounts)
    _, returns = gae(rewards, torch.zeros_like(rewards), mask, torch.zeros(4), gamma=1.0, lam=1.0, discounts=discounts)
    assert len({len(episode.turns) for episode in rollout.finished}) > 1  # trees of different sizes
    for row, episode in enumerate(rollout.finished):
        assert len(episode.turns) in nodes
        assert all(turn.reward >= 1 for turn in episode.turns)
        expected = np.repeat([turn.reward for turn in episode.turns], [turn.tokens for turn in episode.turns])
        for found in (earned, returns):
            np.testing.assert_allclose(found[row, : len(expected)], expected, atol=1e-6)
        assert episode.score == 0
    envs.close()


def test_each_turn_reads_its_task_alone(tiny_lm: CausalLM, books: str) -> None:
    env = gym.make("textenv/Book-v0", reward=by_words, kl_coef=0.0, curriculum="first subtree", **tiny(tiny_lm, books))
    assert isinstance(env.unwrapped, TextEnv)
    _, info = env.reset(seed=1)
    read = [info["prompt"]]
    over = False
    while not over:
        paid, over, _, info = write(env.unwrapped, "it was thin")
        assert paid == 4.0
        obs = env.unwrapped.batch.written_in(0).texts[-1]
        read.append(tiny_lm.decode(obs))
    assert info["stop_reason"] == "world"
    *tasks, root = read[:-1]
    assert all(task.endswith("\n\nTL;DR:") for task in read[:-1])
    assert [task.count("it was thin\n----\n") for task in tasks] == [max(0, place - 1) for place in range(len(tasks))]
    assert root == "\n----\n".join(["it was thin"] * len(tasks)) + "\n\nTL;DR:"
    env.close()


def test_its_settings_are_those_of_the_largest_tree(tiny_lm: CausalLM, books: str) -> None:
    settings = {**tiny(tiny_lm, books), "reward": by_words}
    del settings["max_new_tokens"]
    made = {}
    for curriculum in ("first leaves", "first subtree", "full tree"):
        env: Any = gym.make("textenv/Book-v0", curriculum=curriculum, **settings)
        made[curriculum] = env.unwrapped.batch.settings
        env.close()
    whole = made["full tree"]
    assert (whole.context, whole.turn_discount, whole.max_tokens, whole.stop) == ("fresh", 0.0, 128, STOP)
    assert made["first subtree"].max_turns == made["first leaves"].max_turns + 1
    assert whole.max_turns > made["first subtree"].max_turns
    assert made["first leaves"].max_new_tokens <= made["first subtree"].max_new_tokens <= whole.max_new_tokens


def test_the_held_out_books_are_others() -> None:
    seen = []
    for settings in ({}, dict(record_of("textenv/Book-v0").held_out or {})):
        env = gym.make("textenv/Book-v0", **SMALL, **settings)
        seen.append({env.reset(seed=seed)[1]["prompt"] for seed in range(30)})
        env.close()
    assert [len(each) for each in seen] == [6, 2]
    assert not seen[0] & seen[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"books": "none.txt"}, "none.txt: no such file"),
        ({"split": "test"}, "split='test'"),
        ({"max_new_token": 3}, "Did you mean 'max_new_tokens'"),
        ({"window": "512"}, "window='512'"),
        ({"window": 1024}, "the model takes 512"),
        ({"prompts": ["x"]}, "Name the texts as books="),
        ({"model": "./none"}, "./none"),
        ({"reward_weights": [1.0]}, "without a reward"),
    ],
    ids=["file", "split", "unknown", "window", "model", "prompts", "no model", "weights"],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with one_line(message):
        gym.make("textenv/Book-v0", **settings).reset()
