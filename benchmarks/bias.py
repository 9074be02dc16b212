"""What it costs to train against the bias of a reward model: ``counterfactual_gap`` at several weights.

    python -m benchmarks.bias
    python -m benchmarks.bias --weights 0 5 20 --seeds 0 1 2 --out runs/bias

PPO trains the bundled model on prompts that speak of a man or of a woman, with the bundled reward model as reward, to
which ``counterfactual_gap`` of the same reward model is added with a weight. Every policy is measured on prompts that
it was not trained on, each of which has a counterpart of the other gender: the score, how far it is from that of the
same text with the gender swapped, the score of another judge (VADER), the KL from the bundled model, how often the
texts have gendered words, and how far the sentiment behind men and behind women differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode

from benchmarks._measure import environment, show
from textenv.agents.ppo import PPO, PPOConfig
from textenv.analysis.bias import chance_distance, wasserstein
from textenv.analysis.bias_templates import TEMPLATES
from textenv.data.files import write_json
from textenv.data.word_lists import built_in_words
from textenv.env.scoring import resolve_reward
from textenv.models.counterfactual import swap_gender
from textenv.models.policy import TextPolicy
from textenv.rollouts.collect import sample_episodes, text_env
from textenv.types import Episode


@dataclass(frozen=True, slots=True)
class Config:
    """What to train and measure.

    Attributes:
        weights: Of ``counterfactual_gap``, beside a weight of 1 of the reward model's score; one training each.
        seeds: One training each, too.
        steps: Tokens that PPO writes in each training.
        num_envs: Texts of an iteration.
        samples: Continuations of each held-out prompt.
        tokens: Of a continuation.
        out: Folder for the figures; None writes none.
    """

    weights: tuple[float, ...] = (0.0, 5.0, 20.0)
    seeds: tuple[int, ...] = (0,)
    steps: int = 40_000
    num_envs: int = 128
    samples: int = 32
    tokens: int = 24
    out: Path | None = None


def prompt_pairs() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return pairs of prompts to train on, and every third one, held out."""
    persons = built_in_words().persons
    pairs = [pair for each in TEMPLATES["movie_review"] if each.kind == "prompt" for pair in each.prompts(persons)]
    return [pair for place, pair in enumerate(pairs) if place % 3], pairs[::3]


def make(config: Config, prompts: Sequence[str], weight: float) -> Any:
    gap = {"name": "counterfactual_gap", "reward": "learned"}
    mix = {"name": "weighted_sum", "rewards": ["learned", gap], "weights": [1.0, weight]}
    return gym.make_vec(
        "textenv/Text-v0", num_envs=config.num_envs, prompts=list(prompts), reward=mix, kl_mode="lump",
        max_new_tokens=config.tokens, autoreset_mode=AutoresetMode.DISABLED,
    )  # fmt: skip


def scores_of(reward: Any, episodes: Sequence[Episode], *, swapped: bool = False) -> np.ndarray[Any, Any]:
    prompts, completions = [each.prompt for each in episodes], [each.completion for each in episodes]
    if swapped:
        prompts, completions = list(map(swap_gender, prompts)), list(map(swap_gender, completions))
    return np.array(reward(prompts=prompts, completions=completions, completion_ids=[[]] * len(prompts)))


def measured(config: Config, policy: TextPolicy, pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Return the figures of a policy on held-out pairs of prompts."""
    asked = [prompt for pair in pairs for prompt in pair for _ in range(config.samples)]
    envs = make(config, sorted(set(asked)), 0.0)
    episodes = sample_episodes(envs, policy, torch.Generator().manual_seed(20_261), asked)
    learned, vader = resolve_reward("learned"), resolve_reward("vader")
    score, other = scores_of(learned, episodes), scores_of(learned, episodes, swapped=True)
    sentiment = scores_of(vader, episodes)
    kl = np.array([sum(each.kl) for each in episodes])
    rng = np.random.default_rng(0)
    behind = sentiment.reshape(len(pairs), 2, config.samples)
    count = np.sqrt(len(episodes))
    return {
        "score": float(score.mean()),
        "score_error": float(score.std() / count),
        "gap": float(np.abs(score - other).mean()),
        "gap_error": float(np.abs(score - other).std() / count),
        "vader": float(sentiment.mean()),
        "vader_error": float(sentiment.std() / count),
        "kl": float(kl.mean()),
        "gendered": float(np.mean([swap_gender(each.completion) != each.completion for each in episodes])),
        "sentiment_gap": float(np.mean([wasserstein(male, female) for male, female in behind])),
        "sentiment_by_chance": float(np.mean([chance_distance(male, female, rng) for male, female in behind])),
    }


def trained(config: Config, prompts: Sequence[str], weight: float, seed: int) -> TextPolicy:
    envs = make(config, prompts, weight)
    agent = PPO(envs, PPOConfig(seed=seed))
    agent.learn(total_steps=config.steps)
    return agent.policy


def main(config: Config) -> None:
    print(environment("textenv", "torch", "transformers"))
    train, held_out = prompt_pairs()
    prompts = [prompt for pair in train for prompt in pair]
    start = TextPolicy.of_reference(text_env(make(config, prompts, 0.0)))
    rows: dict[str, dict[str, float]] = {"bundled": measured(config, start, held_out)}
    for weight in config.weights:
        for seed in config.seeds:
            label = f"weight {weight:g}" + (f", seed {seed}" if len(config.seeds) > 1 else "")
            rows[label] = measured(config, trained(config, prompts, weight, seed), held_out)
            print(label, {name: round(value, 3) for name, value in rows[label].items()}, flush=True)
    heads = ("", "score", "gap to the swapped text", "VADER", "KL in nats", "gendered words", "sentiment gap (chance)")
    cells = [
        (
            label,
            f"{row['score']:+.3f} ± {row['score_error']:.3f}",
            f"{row['gap']:.4f} ± {row['gap_error']:.4f}",
            f"{row['vader']:+.3f} ± {row['vader_error']:.3f}",
            f"{row['kl']:.2f}",
            f"{row['gendered']:.0%}",
            f"{row['sentiment_gap']:.3f} ({row['sentiment_by_chance']:.3f})",
        )
        for label, row in rows.items()
    ]
    show(f"{len(held_out)} held-out pairs of prompts, {config.samples} texts each", heads, cells)
    if config.out is not None:
        config.out.mkdir(parents=True, exist_ok=True)
        write_json(config.out / "bias.json", {"config": asdict(config) | {"out": str(config.out)}, "policies": rows})


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
