"""What the environment itself costs: the share of a step that is neither model nor reward.

    python -m benchmarks.overhead

An episode's calls of ``reset``, ``act`` and ``step`` are timed, and within them those of the policy's, the reference's
and the reward's; the rest is the environment's. The process keeps memory that was freed, as the commands of ``textenv``
do (``keep_memory``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
import tyro

from benchmarks import _jobs
from benchmarks._measure import Effort, environment, interleave, remark, show
from benchmarks._ours import make_env
from textenv.models.policy import TextPolicy
from textenv.rollouts.runtime import keep_memory
from textenv.types import KLMode


@dataclass(frozen=True, slots=True)
class Config:
    """What to measure.

    Attributes:
        size: Shape of the model.
        batch: Rows.
        prompt: Tokens of a prompt.
        response: Tokens of a completion.
        effort: How often.
    """

    size: _jobs.Size = "tiny"
    batch: int = 64
    prompt: int = 16
    response: int = 32
    effort: tyro.conf.OmitArgPrefixes[Effort] = field(default_factory=Effort)


class Stopwatch:
    """Adds up the time spent in functions, those called by one another counted once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def watch(self, owner: Any, name: str) -> None:
        """Time ``owner.name`` from now on."""
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - began

        setattr(owner, name, timed)


class Steps:
    """Episodes, timed step by step."""

    def __init__(self, mode: KLMode, config: Config) -> None:
        self._env = make_env(
            _jobs.model(config.size), batch=config.batch, prompt=config.prompt, response=config.response, kl_mode=mode
        )
        self._policy = TextPolicy(self._env.reference)
        self._generator = torch.Generator().manual_seed(0)
        self._env.attach_policy(self._policy)
        self._env.reset(seed=0)
        self._inside = Stopwatch()
        self._inside.watch(self._policy, "act")
        self._inside.watch(self._policy, "action_log_prob")
        self._inside.watch(self._env.reference, "next_token_log_prob")
        self._inside.watch(self._env.reference, "token_log_probs")
        self._inside.watch(self._env.scorer, "reward")
        self.shares: list[float] = []

    def __call__(self) -> int:
        """Write an episode in every row; return its tokens, and note the environment's share of the time."""
        self._inside.seconds = 0.0
        began = time.perf_counter()
        obs, _ = self._env.reset()
        done = False
        while not done:
            actions, _ = self._policy.act(obs, generator=self._generator)
            obs, _, terminations, _, _ = self._env.step(actions)
            done = bool(terminations.all())
        wall = time.perf_counter() - began
        self.shares.append(1 - self._inside.seconds / wall)
        return self._env.num_envs * self._env.settings.max_new_tokens


def share(steps: Steps, at_least: float = 0.4) -> Callable[[], float]:
    """Make a case that returns the environment's share, in percent, of some tenths of a second."""
    steps()

    def measure() -> float:
        steps.shares.clear()
        until = time.perf_counter() + at_least
        while not steps.shares or time.perf_counter() < until:
            steps()
        return 100 * sum(steps.shares) / len(steps.shares)

    return measure


def main(config: Config) -> None:
    keep_memory()
    print(environment("textenv", "torch", "transformers"))
    results = interleave({mode: share(Steps(mode, config)) for mode in get_args(KLMode)}, config.effort)
    show(
        f"{config.size}: batch {config.batch}, prompt {config.prompt}, response {config.response}",
        ("kl_mode", "environment, % of the step"),
        [(mode, f"{case.median:.1f}") for mode, case in results.items()],
        remark(results.values()),
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
