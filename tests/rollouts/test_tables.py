"""Tables keep all that is in them in a terminal of 80 columns, and in a narrower one."""

import io
import re

import pytest

from textenv.rollouts.console import SafeConsole
from textenv.rollouts.tables import make_table


@pytest.mark.parametrize("width", [80, 40, 24])
@pytest.mark.parametrize(
    "name", ["Dr. GRPO", "an-agent-with-a-name-that-is-longer-than-most", "基线的名字很长很长很长"]
)
def test_nothing_is_cut_off(name: str, width: int) -> None:
    headings = ("agent", "strength-in-logits", "95 % interval", "judgements")
    table = make_table(*headings, title="Policies", caption="of people")
    table.add_row(name, "+12.34", "-0.12 to +12.34", "1,234,567")
    console = SafeConsole(file=io.StringIO(), width=width)
    console.print(table)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= width
    letters = re.sub(r"[^\w%+.,-]", "", shown)
    assert all(set(part) <= set(letters) for part in (name.replace(" ", ""), *headings[1::2]))
    assert sum(shown.count(digit) for digit in "1234567") >= sum(
        "+12.34-0.12 to +12.341,234,567".count(d) for d in "1234567"
    )


def test_headings_that_are_empty_take_no_line() -> None:
    table = make_table("", "", texts=(0, 1))
    table.add_row("judgements", "3 of 4")
    assert not table.show_header
    assert [column.justify for column in table.columns] == ["left", "left"]
