"""``textenv rlhf``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self, get_type_hints

from textenv import recipes
from textenv.commands.base import FROM_CHECKPOINT, Command, use_threads
from textenv.commands.flags import agent_flags, last_value, train_env_flags
from textenv.commands.settings import RlhfSettings
from textenv.types import TextEnvError

__all__ = ["Rlhf"]


@dataclass(frozen=True)
class Rlhf(Command, RlhfSettings):
    """Run all of RLHF: fine-tune on demonstrations, sample, rank, train a reward model, train with PPO, and repeat.

    With people, it stops where their rankings are missing and says how to give them; the same command goes on.
    """

    after_signal: ClassVar[str] = FROM_CHECKPOINT

    @classmethod
    def of_recipe(cls, name: str, *, quick: bool = False) -> type[Self]:
        """Return a class of settings whose defaults are those of a recipe.

        Args:
            name: The recipe, see ``textenv.recipes``.
            quick: Its smallest settings.

        Raises:
            TextEnvError: There is no such recipe.
        """
        made: type[Self] = _of_recipe(cls, name, quick)
        return made

    @classmethod
    def with_flags(cls, arguments: Sequence[str]) -> Callable[..., Self]:
        """Return the class with a flag for every setting of PPO, and the defaults of the recipe that is named."""
        name = last_value(arguments, "--recipe", "None")
        quick = "--quick" in arguments
        made = cls if name == "None" else cls.of_recipe(name, quick=quick)
        shown = {} if name == "None" else recipes.find(name).sized(quick=quick).ppo
        flags: Callable[..., Self] = agent_flags(made, "ppo", "ppo", **shown)
        return flags

    def run(self) -> int:
        """Run the pipeline as far as it comes without people."""
        from textenv.commands.rlhf_run import rlhf  # noqa: PLC0415 (loads torch)

        use_threads(self.threads)
        rlhf(self)
        return 0


@cache
def _of_recipe(cls: type[Any], name: str, quick: bool) -> Any:
    sizes = recipes.find(name).sized(quick=quick)
    defaults = {"recipe": name, "quick": quick, **sizes.command}
    hints = get_type_hints(cls, include_extras=True)
    if unknown := defaults.keys() - hints.keys():
        raise TextEnvError(f"The recipe {name!r} sets {', '.join(sorted(unknown))}; expected settings of textenv rlhf.")
    fields: list[Any] = [(each, hints[each], dataclasses.field(default=value)) for each, value in defaults.items()]
    env: Any = train_env_flags(**sizes.env)
    fields.append(("settings", env, dataclasses.field(default_factory=dict)))
    namespace = {"__doc__": cls.__doc__, "__module__": cls.__module__, "made_for": name}
    return dataclasses.make_dataclass(cls.__name__, fields, bases=(cls,), frozen=True, namespace=namespace)
