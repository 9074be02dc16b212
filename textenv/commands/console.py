"""The terminal that all commands print to."""

from __future__ import annotations

from textenv.rollouts.console import SafeConsole

__all__ = ["console", "tell"]

console = SafeConsole()


def tell(*lines: str) -> None:
    """Print lines as they are, however long: they may hold addresses and paths to copy."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
