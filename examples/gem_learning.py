"""PPO and GRPO learn a game of GEM, https://github.com/axon-rl/gem, from a small model that is made for it.

The model is pretrained on games of players who heed the hints in half of their guesses, the others being random.
GEM asks for exact versions of other packages, so it gets an environment of its own; some minutes on two cores:

python -m venv gem && gem/bin/pip install textenv gem-llm && gem/bin/python examples/gem_learning.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import tyro
from rich.console import Console

from textenv.compare.comparison import compare
from textenv.compare.plan import Compare
from textenv.training.configs import PretrainConfig
from textenv.training.pretrain import pretrain
from textenv.worlds import find

WORLD, HIGHEST, TURNS = "gem:game:GuessTheNumber-v0-easy", 10, 4


def play(seed: int) -> str:
    """Return all that is said in a game in which half of the guesses heed the hints; each ends with its line."""
    world, guesses = find(WORLD)[1](), random.Random(f"guesses {seed}")
    said, _ = world.reset(seed=seed)
    told, over, low, high = said, False, 1, HIGHEST
    while not over:
        number = guesses.randint(low, high) if guesses.random() < 0.5 else guesses.randint(1, HIGHEST)
        guess = f"\\boxed{{{number}}}"
        said, _, terminated, truncated, _ = world.step(guess)
        if "higher than" in said:
            low = max(low, number + 1)
        elif "lower than" in said:
            high = min(high, number - 1)
        told, over = f"{told}{guess}\n{said}", terminated or truncated
    return told


def main(out: Path = Path("runs/gem"), games: int = 6000, seeds: int = 1, total_steps: int = 48_000) -> None:
    model, texts = out / "model", out / "games.jsonl"
    if not (model / "model.safetensors").exists():
        out.mkdir(parents=True, exist_ok=True)
        texts.write_text("".join(json.dumps({"text": play(seed)}) + "\n" for seed in range(games)))
        pretrain(
            PretrainConfig(
                files=(texts,),
                out=model,
                vocab_size=400,
                hidden_size=64,
                intermediate_size=128,
                layers=2,
                heads=2,
                context=320,
                batch_size=8,
                epochs=3,
            )
        )
    env = {
        "id": "textenv/Text-v0",
        "label": WORLD,
        "settings": {
            "model": str(model), "world": WORLD, "max_turns": TURNS, "max_new_tokens": 8, "max_tokens": 400,
            "stop": "\n", "kl_coef": 0.003,
        },
        "agent_settings": {"learning_rate": 3e-4, "epochs": 1, "minibatch_size": 16},
    }  # fmt: skip
    grpo = {"name": "grpo", "label": "grpo, by turn", "settings": {"credit": "turn"}}
    compare(
        Compare(
            out=out / "compare", agents=("ppo", "grpo", json.dumps(grpo)), envs=(json.dumps(env),), seeds=seeds,
            total_steps=total_steps, evaluations=6, eval_episodes=512, workers=1,
        ),
        Console(),
    )  # fmt: skip


if __name__ == "__main__":
    tyro.cli(main)
