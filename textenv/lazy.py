"""Modules that are imported when they are first used, so that reading an agent's settings loads no torch.

A module that must be quick to import names what is slow twice, once for type checkers and once for the program:

    if TYPE_CHECKING:
        import torch

        from textenv.agents import losses
    else:
        torch, losses = lazy("torch"), lazy("textenv.agents.losses")
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

__all__ = ["lazy"]


class _LazyModule(ModuleType):
    """Stands for a module; every attribute is looked up in the module itself."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def lazy(name: str) -> ModuleType:
    """Return a stand-in for a module, which is imported when one of its attributes is first used.

    Args:
        name: Import name of the module, such as ``"torch"``.
    """
    return _LazyModule(name)
