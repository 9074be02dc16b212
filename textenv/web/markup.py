"""HTML in which every value is escaped, unless it was made here."""

from __future__ import annotations

import html
import string
from collections.abc import Iterable
from typing import Any

from textenv.env.render import visible

__all__ = ["Markup", "fill", "join"]


class Markup(str):
    """HTML that is complete: it is put into other HTML as it stands. Only ``fill`` and ``join`` make it."""

    __slots__ = ()


class _Formatter(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, Markup):
            return str(value)
        return html.escape(visible(format(value, format_spec), keep="\n\t"))


def fill(template: str, **values: Any) -> Markup:
    """Return a template of HTML with its fields filled.

    Args:
        template: As of ``str.format``, written in the source: nothing of it is escaped.
        values: For the fields, formatted as those say and then escaped, inside quotes too; ``Markup`` stays as it is.
    """
    return Markup(_Formatter().vformat(template, (), values))


def join(parts: Iterable[Markup], between: str = "") -> Markup:
    """Return pieces of HTML one after the other.

    Args:
        parts: The pieces.
        between: HTML that is put between them.
    """
    return Markup(between.join(parts))
