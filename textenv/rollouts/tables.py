"""Tables for a terminal, of which nothing is cut off however narrow it is."""

from __future__ import annotations

from collections.abc import Container

from rich.table import Table

__all__ = ["make_table"]


def make_table(
    *headings: str, title: str = "", caption: str = "", texts: Container[int] = (0,), lines: bool = False
) -> Table:
    """Return an empty table.

    Figures stay on one line as far as there is room for them. What does not fit goes on in the next line of its cell,
    headings and single long words too: rich would end them with three dots.

    Args:
        headings: Of the columns; if all are ``""``, there is no line of headings.
        title: Line above it.
        caption: Line below it.
        texts: Places of the columns that hold texts; the others hold figures, which are aligned on the right.
        lines: Draw a line between rows.
    """
    table = Table(title=title or None, caption=caption or None, show_header=any(headings), show_lines=lines)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place in texts else "right", overflow="fold")
    return table
