"""TRL's environments by import path; ``tests/worlds/test_tools.py`` has what they do."""

from __future__ import annotations

from typing import Any

from tests.worlds.test_tools import Counter, call
from textenv.testing import WorldContract
from textenv.worlds.adapters.trl import TRL


class TestTRL(WorldContract):
    texts = (call("count", by=1), call("count", by=2), call("count", by=-1), call("reset"), "Done.")
    most_turns = 60

    def make_world(self) -> TRL:
        return TRL(f"{Counter.__module__}:{Counter.__qualname__}")

    def options(self) -> dict[str, Any]:
        return {"prompt": [{"role": "user", "content": "Go."}], "start": 1}
