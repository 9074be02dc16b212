"""The optimum of dialogues whose answers are drawn, against brute force and against what is played."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from textenv.analysis.exact import Tree
from textenv.env.vector import TextVectorEnv
from textenv.models.policy import TextPolicy
from textenv.rollouts.collect import collect
from textenv.types import TextEnvError
from textenv.worlds.letter_dialogue import LetterDialogue

SETTINGS: dict[str, Any] = {"vocab_size": 4, "turns": 2, "max_new_tokens": 2, "kl_coef": 0.1}


def make(rows: int = 1, **given: Any) -> TextVectorEnv:
    envs: Any = gym.make_vec(
        "textenv/Exact-v0", num_envs=rows, autoreset_mode=AutoresetMode.DISABLED, **{**SETTINGS, **given}
    )
    return envs.unwrapped  # type: ignore[no-any-return]


@torch.no_grad()
def best(envs: TextVectorEnv, world: LetterDialogue, ids: list[int], history: list[str], written: list[int]) -> float:
    """Return the soft value of a state by recursion, with the model and the world alone."""
    lm, beta = envs.reference, SETTINGS["kl_coef"]
    log_probs = torch.log_softmax(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].double(), dim=-1)
    terms = []
    for token, log_prob in enumerate(log_probs.tolist()):
        now = [*written, token]
        if token not in lm.eos_ids and len(now) < SETTINGS["max_new_tokens"]:
            value = best(envs, world, [*ids, token], history, now)
        else:
            text = lm.decode(now)
            value = 0.0
            for answer in world.outcomes([*history, text]):
                following = lm.tokenizer(answer.said, add_special_tokens=False)["input_ids"]
                said = [*history, text, answer.said]
                later = 0.0 if answer.terminated else best(envs, world, [*ids, token, *following], said, [])
                value += answer.chance * (answer.reward + later)
        terms.append(log_prob + value / beta)
    total = float(torch.logsumexp(torch.tensor(terms, dtype=torch.float64), dim=0))
    return float(beta) * total


@pytest.mark.parametrize("stop_token", [True, False])
def test_the_optimum_is_that_of_brute_force(stop_token: bool) -> None:
    envs = make(stop_token=stop_token)
    assert envs.worlds is not None
    world: Any = envs.worlds.worlds[0]
    envs.reset(seed=0)
    start = list(envs.row_prompts[0].ids)
    tree = Tree.of(envs)
    assert tree.optimum.value == pytest.approx(best(envs, world, start, ["a"], []), abs=1e-6)
    assert tree.optimum.value == pytest.approx(float(tree.optimal_values[0][0][0]), abs=1e-9)
    assert tree.optimum.value > tree.reference.value + 0.1


def test_a_policy_earns_what_the_tree_says() -> None:
    envs = make(64)
    tree, policy = Tree.of(envs), TextPolicy(envs.reference, value="none")
    with torch.no_grad():
        head: Any = policy.lm.model.get_output_embeddings()
        head.weight.mul_(1.3)
    rollout = collect(envs, policy, torch.Generator().manual_seed(0), episodes=4000, seed=0)
    returns = rollout.rewards.sum(axis=1).astype(np.float64)
    expected = tree.evaluate(policy)
    assert abs(returns.mean() - expected.value) < 4 * returns.std() / math.sqrt(len(returns))
    kl = np.array([math.fsum(episode.kl) for episode in rollout.finished])
    assert abs(kl.mean() - expected.kl) < 4 * kl.std() / math.sqrt(len(kl))


def test_the_score_of_a_reward_is_added_to_what_the_world_pays() -> None:
    def ends_in_b(completions: list[str], **_: Any) -> list[float]:
        return [float(text.endswith("b")) for text in completions]

    plain, scored = (Tree.of(make(reward=reward)) for reward in (None, ends_in_b))
    share = scored.reference.score - plain.reference.score
    rollout = collect(
        make(64, reward=ends_in_b),
        TextPolicy(make().reference, value="none"),
        torch.Generator().manual_seed(0),
        episodes=2000,
        seed=0,
    )
    scores = np.array([episode.score for episode in rollout.finished])
    assert abs(scores.mean() - share) < 4 * scores.std() / math.sqrt(len(scores))


def test_what_cannot_be_enumerated_is_refused() -> None:
    with pytest.raises(TextEnvError, match="may answer is not known"):
        Tree.of(make(world="guess_number", turns=1, max_turns=2, max_tokens=40))
    with pytest.raises(TextEnvError, match="Best-of-n of episodes in which a world answers"):
        Tree.of(make()).best_of_n(4)
    with pytest.raises(TextEnvError, match="too many to enumerate"):
        Tree.of(make(vocab_size=20, max_new_tokens=6))
