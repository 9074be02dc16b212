"""Turns a second of the environment itself, no model in it, beside gem-llm, skyrl-gym and OpenEnv.

    benchmarks/setup_peers.sh && python -m benchmarks.environments

The same echo is written in the form of each package: an action is a text of some 80 characters, the answer is the same
text, a reward and whether the episode is over, which begins again after some turns. Every measurement is a process of
its own, in the interpreter of its package, and sees first that the answers are those of the echo. Rows are stepped
together; a turn of 64 rows counts as 64.

- ``textenv-world``: our worlds, stepped by themselves, one row after the other.
- ``textenv-rows``: our worlds as the environment asks them: in a thread, with a time limit, every answer checked.
- ``textenv-tokens``: ``textenv/Text-v0`` with the world. An action is a token here and a turn as many steps as its text
  has tokens, so this includes what the others leave to the trainer: encoding answers, decoding turns, observations as
  padded ids, the rewards of tokens. A turn begins with the answer alone (``context="fresh"``), and the reference model
  is not run.
- ``gem``, ``gem-threads``: gem-llm's ``make`` or, of several rows, ``SyncVectorEnv`` and ``AsyncVectorEnv``.
- ``skyrl``: skyrl-gym has no batches; its environments are stepped one after the other.
- ``openenv``: OpenEnv's class in this process, without its server, one after the other.
- ``openenv-client``: OpenEnv as it is meant to be used, its server in a process of its own, over WebSockets; every row
  has a session, and all are asked at once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import get_args

import tyro

from benchmarks._echoes import Side
from benchmarks._measure import ROOT, Effort, environment, interleave, remark, show

PEERS = {"gem": "gem-llm", "skyrl": "skyrl-gym", "openenv": "openenv"}
"""By the beginning of a side's name: its package, and the folder of its environment."""


@dataclass(frozen=True, slots=True)
class Config:
    """What to measure.

    Attributes:
        sides: Which to run.
        peers: Folder that setup_peers.sh made.
        rows: Environments side by side.
        turns: Turns of an episode.
        effort: How often.
        seconds: How long a measurement lasts, at least.
    """

    sides: tuple[Side, ...] = get_args(Side)
    peers: Path = Path(os.environ.get("PEERS", ".venv-peers"))
    rows: tuple[int, ...] = (1, 64)
    turns: int = 8
    effort: tyro.conf.OmitArgPrefixes[Effort] = field(default_factory=lambda: Effort(rounds=5, attempts=2))
    seconds: float = 1.0


def interpreter(side: Side, peers: Path) -> Path:
    """Return the interpreter that has a side's package."""
    package = PEERS.get(side.partition("-")[0])
    if package is None:
        return Path(sys.executable)
    path = peers / package / "bin" / "python"
    if not path.exists():
        raise SystemExit(f"{path} is not there: run benchmarks/setup_peers.sh {peers} first, or leave {side} out.")
    return path


def main(config: Config) -> None:
    print(environment("textenv", "gymnasium"))
    pythons = {side: interpreter(side, config.peers) for side in config.sides}
    for package, python in {PEERS.get(side.partition("-")[0]): python for side, python in pythons.items()}.items():
        if package is not None:
            code = f"from benchmarks._measure import environment; print(environment({package!r}))"
            subprocess.run([python, "-c", code], check=True, cwd=ROOT)
    tokens: dict[str, int] = {}

    def measure(side: Side, rows: int) -> float:
        job = json.dumps({"side": side, "rows": rows, "turns": config.turns, "seconds": config.seconds})
        command = [str(pythons[side]), "-m", "benchmarks._echoes", job]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        if done.returncode:
            raise SystemExit(f"{done.stderr}\n{side} failed with code {done.returncode}, see above.")
        report = json.loads(done.stdout.splitlines()[-1])
        if report["tokens"] is not None:
            tokens[side] = report["tokens"]
        return float(report["rate"])

    first, *_ = config.sides
    for rows in config.rows:
        cases: dict[str, Callable[[], float]] = {side: partial(measure, side, rows) for side in config.sides}
        results = interleave(cases, config.effort)
        lines = [
            (
                side,
                f"{case.median:,.0f}",
                f"{case.ratio(results[first]):.3f}",
                f"{1e6 * rows / case.median:,.1f}",
                f"{case.median * tokens[side]:,.0f}" if side in tokens else "",
            )
            for side, case in results.items()
        ]
        show(
            f"{rows} rows, episodes of {config.turns} turns",
            ("side", "turns/s", "ratio", "µs a turn of all", "tokens/s"),
            lines,
            f"Ratios to {first}. {remark(results.values())}",
        )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
