"""What turns cost: tokens a second in episodes that a world answers, and in single turns of the same total length.

    python -m benchmarks.turns --sizes tiny small

Both write with the same random weights, with the KL paid at the end of an episode and texts that never end early. The
world's answers are texts of a fixed length; what it does besides costs next to nothing. Only tokens that the agent
writes count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import tyro
from gymnasium.vector import AutoresetMode

from benchmarks import _jobs
from benchmarks._measure import Effort, environment, interleave, rate, remark, show
from benchmarks._ours import Rollouts, make_env
from textenv.env.vector import TextVectorEnv
from textenv.models.causal_lm import CausalLM
from textenv.rollouts.runtime import keep_memory


@dataclass(frozen=True, slots=True)
class Config:
    """What to measure.

    Attributes:
        sizes: Shapes of the model.
        batch: Episodes side by side.
        prompt: Tokens that an episode begins with.
        turns: Turns of an episode.
        tokens: Tokens of a turn.
        answer: Tokens of an answer.
        effort: How often.
        seconds: Least length of one measurement.
    """

    sizes: tuple[_jobs.Size, ...] = ("tiny", "small")
    batch: int = 16
    prompt: int = 16
    turns: int = 4
    tokens: int = 8
    answer: int = 8
    effort: tyro.conf.OmitArgPrefixes[Effort] = field(default_factory=Effort)
    seconds: float = 0.4


class Answers:
    """Answers every turn with the same text, until the last."""

    def __init__(self, prompt: str, answer: str, turns: int) -> None:
        self._prompt, self._answer, self._turns, self._turn = prompt, answer, turns, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin."""
        self._turn = 0
        return self._prompt, {}

    def step(self, action: str, /) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Answer."""
        self._turn += 1
        return self._answer, 0.0, self._turn == self._turns, False, {}


def measure(size: _jobs.Size, config: Config) -> None:
    length = config.turns * (config.tokens + config.answer)
    model = _jobs.model(size, "gpt2", positions=max(64, config.prompt + length), hazard=0.0)
    vocab = model.config.vocab_size
    prompt, answer = (_jobs.prompts(1, count, vocab)[0] for count in (config.prompt, config.answer))
    several = TextVectorEnv(
        config.batch,
        model=CausalLM(model, _jobs.tokenizer(vocab)),
        world=lambda: Answers(prompt, answer, config.turns),
        reward=_jobs.last_token,
        max_turns=config.turns,
        max_new_tokens=config.tokens,
        max_tokens=config.prompt + length,
        kl_mode="lump",
        autoreset_mode=AutoresetMode.DISABLED,
    )
    single = make_env(model, batch=config.batch, prompt=config.prompt, response=length - config.answer)
    runs: dict[str, Callable[[], int]] = {"one turn": Rollouts(single), f"{config.turns} turns": Rollouts(several)}
    results = interleave({name: rate(run, config.seconds) for name, run in runs.items()}, config.effort)
    first = results["one turn"]
    show(
        f"gpt2 {size}: batch {config.batch}, prompt {config.prompt}, {config.turns} turns of {config.tokens} tokens, "
        f"answers of {config.answer}; one turn of {length - config.answer}",
        ("rollout", "tokens/s", "to one turn"),
        [(name, f"{case.median:,.0f}", f"{case.ratio(first):.2f}") for name, case in results.items()],
        remark(results.values()),
    )


def main(config: Config) -> None:
    keep_memory()
    print(environment("textenv", "torch", "transformers"))
    for size in config.sizes:
        measure(size, config)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
