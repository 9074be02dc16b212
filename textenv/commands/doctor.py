"""``textenv doctor``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rich.text import Text

from textenv.commands.base import Command, use_threads
from textenv.commands.console import console, tell
from textenv.commands.flags import EnvFlags, make_keywords
from textenv.validation import Count, Seed, Threads

__all__ = ["Doctor"]


@dataclass(frozen=True)
class Doctor(Command):
    """Check that an environment, its reference model and a policy measure what they claim to.

    Attributes:
        env: Registered id of the environment.
        reward: Name of a reward, a JSON object with "name" and arguments, package.module:attribute, or a JSON list of
            these, which are added up; None for the
            environment's own.
        model: Reference model: "bundled", "smollm2", a folder, or a Hugging Face id; None for the environment's own.
        prompts: File of prompts; None for the environment's own.
        num_envs: Rows of the vector environment.
        seed: Seeds prompts and tokens.
        threads: Threads that torch computes with; None leaves that to torch.
        settings: Settings of the environment that were given.
    """

    env: str = "textenv/MovieReview-v0"
    reward: str | None = None
    model: str | None = None
    prompts: Path | None = None
    num_envs: Count = 16
    seed: Seed = 0
    threads: Threads | None = None
    settings: EnvFlags = field(default_factory=dict)

    def run(self) -> int:
        """Print what each check found; the status is 1 if one failed."""
        from textenv.analysis.doctor import examine  # noqa: PLC0415 (loads torch)

        use_threads(self.threads)
        given = {"model": self.model, "reward": self.reward}
        keywords = make_keywords(self.settings, reward=self.reward, model=self.model, prompts=self.prompts)
        healthy = True
        for number, finding in enumerate(examine(self.env, keywords, num_envs=self.num_envs, seed=self.seed)):
            if not number:  # the environment can be made
                tell(", ".join([self.env, *(f"{name} {value}" for name, value in given.items() if value)]))
            healthy &= finding.ok
            status = Text("ok   ", style="green") if finding.ok else Text("FAILS", style="bold red")
            # At once: a check may take minutes.
            console.print(status, f"{finding.name}: {finding.detail}", highlight=False, soft_wrap=True)
        return 0 if healthy else 1
