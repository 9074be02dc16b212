"""What a recipe of ``textenv rlhf`` is: settings that suit a system, the data it learns from, and its own measures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from textenv.models.policy import TextPolicy

__all__ = ["Data", "Recipe", "Settings"]


@dataclass(frozen=True)
class Data:
    """Files that a recipe has written, by the setting of ``textenv rlhf`` that they are for.

    Attributes:
        sft: Demonstrations to fine-tune on.
        prompts: Prompts to train on.
        eval_prompts: Prompts to measure on. A column ``completion`` holds what a demonstration says there, and makes
            the demonstrations one of the sides that are compared.
        ptx_files: Pre-training text for PPO-ptx.
    """

    sft: tuple[Path, ...] = ()
    prompts: Path | None = None
    eval_prompts: Path | None = None
    ptx_files: tuple[Path, ...] = ()

    def to_json(self, folder: Path) -> dict[str, Any]:
        """Return the files as JSON, by their places in a folder."""

        def name(path: Path | None) -> str | None:
            return None if path is None else path.relative_to(folder).as_posix()

        return {
            "sft": [name(path) for path in self.sft],
            "prompts": name(self.prompts),
            "eval_prompts": name(self.eval_prompts),
            "ptx_files": [name(path) for path in self.ptx_files],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], folder: Path) -> Data:
        """Return what ``to_json`` has written, with the files in a folder."""

        def path(name: str | None) -> Path | None:
            return None if name is None else folder / name

        return cls(
            tuple(folder / name for name in value["sft"]),
            path(value["prompts"]),
            path(value["eval_prompts"]),
            tuple(folder / name for name in value["ptx_files"]),
        )


@dataclass(frozen=True)
class Settings:
    """Settings of a recipe.

    Attributes:
        command: Those of ``textenv rlhf`` itself.
        env: Those of the environment.
        ppo: Those of PPO.
    """

    command: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)
    ppo: Mapping[str, Any] = field(default_factory=dict)

    def __or__(self, other: Settings) -> Settings:
        """Return these settings, those of another in their place where it has any."""
        return Settings({**self.command, **other.command}, {**self.env, **other.env}, {**self.ppo, **other.ppo})


class Recipe(ABC):
    """A system as settings and data; what is typed takes the place of either.

    Attributes:
        settings: Its settings.
        quick: What changes with ``--quick``, which shows in about a minute, and offline, that everything runs.
    """

    settings: ClassVar[Settings] = Settings()
    quick: ClassVar[Settings] = Settings()

    def sized(self, *, quick: bool) -> Settings:
        """Return the recipe's settings, those of ``quick`` in their place if asked for."""
        return self.settings | self.quick if quick else self.settings

    @abstractmethod
    def prepare(self, folder: Path, *, quick: bool, seed: int) -> Data:
        """Write the recipe's data.

        Args:
            folder: Where the files go; it exists.
            quick: Write a few rows that come with textenv, and fetch nothing.
            seed: Seeds what is drawn.

        Returns:
            Which files it has written.

        Raises:
            TextEnvError: The data cannot be had.
        """

    def reward(self, spec: Any, model: str) -> Any:
        """Return the reward that policies are trained against, or judged and measured by.

        Args:
            spec: The learned reward, or the one that stands in for people.
            model: The model that all policies start from.
        """
        return spec

    def measure(self, policy: TextPolicy, data: Data, *, seed: int) -> Mapping[str, Sequence[float]]:
        """Measure what this system is about, on one policy.

        Args:
            policy: The policy of a stage.
            data: What ``prepare`` has returned.
            seed: Seeds what is drawn.

        Returns:
            By name, a value of each case that was tried; the mean and its standard error are shown and written.
        """
        return {}
