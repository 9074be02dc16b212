"""The one way to save a picture."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from textenv.data.files import write_atomically
from textenv.types import TextEnvError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_picture", "figure_bytes", "legend_label", "save_figure"]

_KINDS = ("png", "svg")


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """Return a figure as the bytes of a ``"png"`` or ``"svg"``, the same bytes every time."""
    from matplotlib.text import Text  # noqa: PLC0415 (slow)

    ticks = {
        label
        for panel in figure.axes
        for axis in (panel.xaxis, panel.yaxis)
        for label in (axis.offsetText, *axis.get_ticklabels(), *axis.get_ticklabels(minor=True))
    }
    for text in figure.findobj(Text):
        if text not in ticks:  # which write powers of ten with it
            text.set_parse_math(False)  # names of runs and agents are those of users, and may hold a dollar sign
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a box is drawn for it
        figure.savefig(data, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return data.getvalue()


def legend_label(name: str) -> str:
    """Return a name as the label of a line: matplotlib leaves out those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


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
