"""The recipe of Ziegler et al.: the best of 4 under the period rule."""

import json
from pathlib import Path
from typing import Any

import pytest

from textenv.commands.cli import main
from textenv.feedback.store import FeedbackStore


@pytest.mark.slow
def test_quick(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["rlhf", "--recipe", "ziegler", "--quick", "--out", str(out)]) == 0
    start, trained = json.loads((out / "results.json").read_text())
    assert start["length"]["mean"] == pytest.approx(24, abs=6)
    assert trained["rankings"] == 12
    reward: Any = json.loads((out / "round-1" / "policy" / "config.json").read_text())["reward"]
    assert (reward["name"], reward["reward"]["name"]) == ("period_rule", "learned")
    with FeedbackStore(out / "feedback.db") as store:
        ranks = [each.ranks for each in store.judgements()]
    assert {rank for each in ranks for rank in each} == {0, 1}  # the best, or those that share its score, and the rest
