"""Fine-tuning language models from human preferences (Ziegler et al., 2019, arXiv:1909.08593): the style task."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from textenv.recipes.base import Data, Recipe, Settings

__all__ = ["Ziegler"]


class Ziegler(Recipe):
    """Reviews in the style that people prefer: the best of 4, 24 tokens, and a KL that is held at a target.

    From the paper are: the best of 4 completions is chosen, and the reward model learns to choose it; completions of 24
    tokens at temperature 0.7; the score of the text up to its first period at or after token 16, and -1 without one;
    the adaptive coefficient of the KL, 10 nats being its target. The reward model has mean 0 and variance 1 on the
    texts that were judged, which the reference wrote.

    Another is the size: of the model, of the batches, and of the 5,000 labels, of which 300 are asked for. With
    ``rounds`` above 1 labels are online: each round asks about texts of the newest policy, the labels are shared out
    evenly, and reward model and policy are trained anew from the start.
    """

    settings: ClassVar[Settings] = Settings(
        {"judged": "best", "samples": 4, "rounds": 1, "labels": 300, "gold": "vader"},
        {"max_new_tokens": 24, "temperature": 0.7, "kl_coef": 0.15, "kl_target": 10.0},
        {"lam": 0.95},
    )
    quick: ClassVar[Settings] = Settings(
        {"labels": 12, "eval_episodes": 16, "total_steps": 800, "num_envs": 16, "reward_epochs": 1}
    )

    def prepare(self, folder: Path, *, quick: bool, seed: int) -> Data:
        """Write nothing: the prompts are the environment's own."""
        return Data()

    def reward(self, spec: Any, model: str) -> Any:
        """Return the reward under the period rule."""
        return {"name": "period_rule", "reward": spec, "model": model}
