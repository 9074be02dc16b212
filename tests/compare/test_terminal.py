"""What a comparison prints fits into a terminal of 80 columns."""

import io
from types import SimpleNamespace
from typing import Any

import pytest

from textenv.compare import comparison
from textenv.rollouts.console import SafeConsole

EXACT = ["agent", "seeds", "score − β·KL", "score", "KL, nats", "regret, %", "95 %", "worst seed", "tokens to 2 %"]
SAMPLED = ["agent", "seeds", "score − β·KL", "score", "KL, nats", "normalized", "95 %"]
LAST = ["price in nats", "seconds"]
CELLS = ["5", "-0.1234", "0.5678", "12.345", "-1.23", "-12.34 to 123.45", "12.34", "60,000"]


@pytest.mark.parametrize("head", [[*EXACT, *LAST], [*SAMPLED, *LAST]], ids=["exact", "sampled"])
@pytest.mark.parametrize("agent", ["best_of_n", "Dr. GRPO", "my-agent-with-a-rather-long-name", "基线"], ids=ascii)
def test_no_heading_and_no_name_is_cut_off(agent: str, head: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    row = [agent, *CELLS[: len(head) - 3], "0.45", "99.9"]
    monkeypatch.setattr(comparison, "task_table", lambda results, task: (head, [row, row]))
    plan = SimpleNamespace(tasks=[SimpleNamespace(label="Exact dense")])
    results: Any = SimpleNamespace(plan=plan, pairs=[(agent, "Exact dense")], agents=[agent], aggregate=lambda _: None)
    console = SafeConsole(file=io.StringIO(), width=80)
    comparison._tell(results, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    lines = shown.splitlines()
    assert "…" not in shown
    assert max(map(len, lines)) <= 80
    wanted = [short for name, short in comparison._SHOWN.items() if name in head]
    (headings,) = [line for line in lines if "agent" in line and "value" in line]
    assert [cell.strip() for cell in headings.strip("┃").split("┃")] == wanted
    if len(agent) < 12:
        assert sum(agent in line and "12.345" in line for line in lines) == 2  # a row a line
    for meaning in ("value: score − β·KL", "price in nats"):
        assert meaning in " ".join(shown.split())
