"""The one way to save a picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from textenv.data.files import write_atomically
from textenv.types import TextEnvError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_picture", "figure_bytes", "save_figure"]

_KINDS = ("png", "svg")


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """Return a figure as the bytes of a ``"png"`` or ``"svg"``, the same bytes every time."""
    data = io.BytesIO()
    figure.savefig(data, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return data.getvalue()


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a file, which is whole or absent.

    Args:
        figure: The figure.
        path: ``.png`` or ``.svg``.

    Raises:
        TextEnvError: The name ends in something else.
    """
    check_picture(path)
    write_atomically(path, figure_bytes(figure, path.suffix[1:]))


def check_picture(path: Path) -> None:
    """Check that the name of a picture to be written ends in ``.png`` or ``.svg``.

    Raises:
        TextEnvError: It does not.
    """
    if path.suffix[1:] not in _KINDS:
        raise TextEnvError(f"{path}: expected a name that ends in {' or '.join(f'.{kind}' for kind in _KINDS)}.")
