"""What the benchmarks of speed share: interleaved repetitions, medians, and whether other load disturbed them."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

WAITED, FOREIGN = 0.03, 0.1
"""Shares from which a repetition counts as disturbed; see ``Load.disturbed``."""

ROOT = Path(__file__).parents[1]
"""Where processes that a benchmark starts find it."""

LEAST = 3
"""Undisturbed rounds that make a figure."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a stretch of time cost, and what else ran in it; in seconds, over all cores where nothing else is said.

    Attributes:
        wall: Its length.
        own: CPU time of this process, of its children that have ended, and of others that belong to the measurement.
        waited: Time in which threads of this process could have run and had no core (``schedstat``, exact).
        busy: CPU time of the whole machine, in ticks of 10 ms (``/proc/stat``).
        stolen: Time the hypervisor gave to other machines.
        cores: Number of cores.
    """

    wall: float
    own: float
    waited: float
    busy: float
    stolen: float
    cores: int

    @property
    def disturbed(self) -> bool:
        """Tell whether others slowed it: they took a core that it wanted, or much of the machine beside it.

        The first is exact and is what slows computing. The second shares caches, memory and clock rate; it is as
        coarse as the ticks, two of which on each core are forgiven.
        """
        foreign = self.busy - self.own - 0.02 * self.cores
        return self.waited + self.stolen > WAITED * self.wall or foreign > FOREIGN * self.wall * self.cores

    def __sub__(self, before: Load) -> Load:
        return Load(
            self.wall - before.wall,
            self.own - before.own,
            self.waited - before.waited,
            self.busy - before.busy,
            self.stolen - before.stolen,
            self.cores,
        )

    @classmethod
    def now(cls, *pids: int) -> Load:
        """Read the counters; subtract an earlier reading. Without Linux's ``/proc`` nothing is ever disturbed.

        Args:
            *pids: Running processes that belong to the measurement.
        """
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall, own, cores = time.perf_counter(), time.process_time(), os.cpu_count() or 1
        own += ended.ru_utime + ended.ru_stime
        if not _PROC:
            return cls(wall, own, 0.0, own, 0.0, cores)
        ticks = os.sysconf("SC_CLK_TCK")
        for pid in pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            own += (int(fields[11]) + int(fields[12])) / ticks  # utime, stime: proc(5) counts them from the pid
        waited = 0
        for task in Path("/proc/self/task").iterdir():
            try:
                waited += int((task / "schedstat").read_text().split()[1])
            except OSError:  # the thread has ended
                continue
        user, nice, system, _, _, irq, softirq, stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
        busy = (user + nice + system + irq + softirq) / ticks
        return cls(wall, own, waited / 1e9, busy, stolen / ticks, cores)


_PROC = Path("/proc/self/schedstat").exists() and Path("/proc/stat").exists()


@dataclass(frozen=True, slots=True)
class Case:
    """Measurements of one of several things that are compared.

    Attributes:
        figures: What each round measured; None where all its attempts were disturbed.
        dropped: Disturbed attempts.
        clean: False where too few rounds were undisturbed, so that disturbed ones are among ``figures``.
    """

    figures: tuple[float | None, ...]
    dropped: int
    clean: bool = True

    @property
    def median(self) -> float:
        """The median of the rounds that count."""
        return statistics.median(figure for figure in self.figures if figure is not None)

    def ratio(self, other: Case) -> float:
        """Return the median, over the rounds that count on both sides, of this figure over the other's.

        Rounds are compared one by one because a machine's speed drifts between them; where too few of them count on
        both sides, the medians are compared.
        """
        pairs = zip(self.figures, other.figures, strict=True)
        ratios = [mine / theirs for mine, theirs in pairs if mine is not None and theirs is not None]
        return statistics.median(ratios) if len(ratios) >= LEAST else self.median / other.median


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard a benchmark tries to be undisturbed.

    Attributes:
        rounds: Rounds; in each, everything is measured once.
        attempts: Attempts at a measurement in a round, until one is undisturbed.
        patience: Seconds to wait for a quiet machine before an attempt.
    """

    rounds: int = 7
    attempts: int = 3
    patience: float = 2.0


def interleave(
    cases: Mapping[str, Callable[[], float]],
    effort: Effort,
    load: Callable[[], Load] = Load.now,
) -> dict[str, Case]:
    """Measure every case once a round, beginning with another one each round.

    An attempt that other load disturbed is dropped, counted, and made again. Where a case has fewer than ``LEAST``
    undisturbed rounds, all cases keep the last attempt of each round, and are marked.

    Args:
        cases: Each measures once and returns its figure; a few tenths of a second long, or the ticks of
            ``/proc/stat`` are too coarse.
        effort: How often to measure.
        load: Reads the counters.
    """
    kept: dict[str, list[float | None]] = {name: [] for name in cases}
    last: dict[str, list[float | None]] = {name: [] for name in cases}
    dropped = dict.fromkeys(cases, 0)
    names = list(cases)
    for number in range(effort.rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            for _ in range(effort.attempts):
                _await_quiet(effort.patience)
                before = load()
                figure = cases[name]()
                disturbed = (load() - before).disturbed
                dropped[name] += disturbed
                if not disturbed:
                    break
            kept[name].append(None if disturbed else figure)
            last[name].append(figure)
    counts = [sum(figure is not None for figure in figures) for figures in kept.values()]
    clean = min(counts) >= min(LEAST, effort.rounds)
    return {name: Case(tuple((kept if clean else last)[name]), dropped[name], clean) for name in names}


def _await_quiet(patience: float) -> None:
    """Sleep until hardly anything else runs, but no longer than ``patience`` seconds."""
    until = time.perf_counter() + patience
    while time.perf_counter() < until:
        before = Load.now()
        time.sleep(0.1)
        passed = Load.now() - before
        if passed.busy + passed.stolen <= FOREIGN * passed.wall * passed.cores:
            return


def rate(run: Callable[[], int], at_least: float = 0.4) -> Callable[[], float]:
    """Make a case of ``interleave`` that returns units a second, from a function that returns the units it did.

    It is run twice at once, to warm up and to see how many runs last ``at_least`` seconds.
    """
    run()
    began = time.perf_counter()
    run()
    times = max(1, math.ceil(at_least / (time.perf_counter() - began)))

    def measure() -> float:
        start = time.perf_counter()
        units = sum(run() for _ in range(times))
        return units / (time.perf_counter() - start)

    return measure


def environment(*packages: str) -> str:
    """Return a line on the machine and the versions, which every benchmark prints first."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    settings = {name: os.environ[name] for name in sorted(os.environ) if name.startswith(("OMP_", "GOMP_", "MKL_"))}
    load = f"load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    unseen = "" if _PROC else "; other load is NOT detected (needs Linux)"
    return (
        f"Python {platform.python_version()}, {versions}; {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores, {load}, {settings or 'default OpenMP settings'}{unseen}"
    )


def remark(cases: Iterable[Case]) -> str:
    """Return what to say under a table on the repetitions that were dropped."""
    cases = list(cases)
    rounds, dropped = len(cases[0].figures), sum(case.dropped for case in cases)
    text = f"Medians of {rounds} interleaved rounds; {dropped} attempts were disturbed by other load and dropped."
    if not all(case.clean for case in cases):
        text += " TOO FEW WERE UNDISTURBED: the last attempt of every round counts, disturbed or not."
    return text


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> None:
    """Print a table, its first column flush left and the others right."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)
