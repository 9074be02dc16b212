"""A terminal that shows texts of others as they are."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from textenv.env.render import visible

__all__ = ["SafeConsole"]


class SafeConsole(Console):
    """A terminal to which strings are text, whatever is in them: names and messages may come from files of others.

    Control characters are written as escapes, and neither markup nor emoji codes are read, unless ``markup`` says so;
    ``rich.text.Text`` has styles.
    """

    def __init__(self, **settings: Any) -> None:
        """Make it, with the settings of ``rich.console.Console``."""
        super().__init__(**{"markup": False, "emoji": False, **settings})

    def render_str(self, text: str, **settings: Any) -> Text:
        """Return what is shown of a string: every one passes here, those in tables too."""
        return super().render_str(visible(text, keep="\n\t"), **settings)
