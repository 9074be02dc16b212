"""How much a busy competitor slows the rollout, under several settings of OpenMP.

    python -m benchmarks.contention --sizes tiny small

Each setting is a process of its own that collects rollouts whenever it is told to: alone, and beside one and two
processes that do nothing but burn their core. The figures: speed alone, relative to the default's alone; and how
often slower each setting is under competition than alone. With one competitor on two cores a fair share is 1.33 times
slower for two threads, and nothing for one; with two it is 2 times, and nothing much for one.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import tyro

from benchmarks import _jobs
from benchmarks._measure import ROOT, Effort, Load, environment, interleave, remark, show
from benchmarks._ours import Rollouts, make_env

SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "spinning": {"GOMP_SPINCOUNT": "300000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=5000": {"GOMP_SPINCOUNT": "5000"},
    "GOMP_SPINCOUNT=20000": {"GOMP_SPINCOUNT": "20000"},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
    "OMP_DYNAMIC=true": {"OMP_DYNAMIC": "true"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
_OURS = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "OMP_DYNAMIC", "GOMP_SPINCOUNT", "MKL_NUM_THREADS")
BURN = """
import os
parent = os.getppid()
while os.getppid() == parent:  # it does not outlive a benchmark that was killed
    for _ in range(100_000):
        pass
"""


@dataclass(frozen=True, slots=True)
class Config:
    """What to measure.

    Attributes:
        sizes: Shapes of the model.
        settings: Some of the settings; by default all.
        competitors: Numbers of competitors, beside none.
        effort: How often.
        seconds: Length of one measurement.
        batch: Rows.
        prompt: Tokens of a prompt.
        response: Tokens of a completion.
    """

    sizes: tuple[_jobs.Size, ...] = ("tiny",)
    settings: tuple[str, ...] = tuple(SETTINGS)
    competitors: tuple[int, ...] = (1, 2)
    effort: tyro.conf.OmitArgPrefixes[Effort] = field(
        default_factory=lambda: Effort(rounds=3, attempts=2, patience=0.5)
    )
    seconds: float = 0.7
    batch: int = 16
    prompt: int = 16
    response: int = 32


def worker(size: _jobs.Size, batch: int, prompt: int, response: int) -> None:
    """Collect rollouts for as many seconds as each line of the standard input says; print tokens a second."""
    run = Rollouts(make_env(_jobs.model(size), batch=batch, prompt=prompt, response=response))
    run()
    print("ready", flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        tokens = run()
        while time.perf_counter() - began < float(line):
            tokens += run()
        print(tokens / (time.perf_counter() - began), flush=True)


@contextlib.contextmanager
def workers(size: _jobs.Size, config: Config) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Run a worker for each setting."""
    call = f"worker({size!r}, {config.batch}, {config.prompt}, {config.response})"
    plain = {name: value for name, value in os.environ.items() if name not in _OURS}
    with contextlib.ExitStack() as stack:
        found: dict[str, subprocess.Popen[str]] = {}
        for name in config.settings:
            found[name] = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", f"from benchmarks.contention import worker; {call}"],
                    env={**plain, **SETTINGS[name]}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
                )
            )  # fmt: skip
            stack.callback(found[name].kill)
            answer(found[name])
        yield found


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"A worker ended with code {process.wait()}; its message stands above.")
    return line


def measure(process: subprocess.Popen[str], competitors: int, seconds: float) -> float:
    """Return a worker's tokens a second beside busy processes."""
    assert process.stdin is not None
    busy = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(competitors)]
    try:
        time.sleep(0.2)  # they have started
        print(seconds, file=process.stdin, flush=True)
        return float(answer(process))
    finally:
        for other in busy:
            other.kill()
            other.wait()


def compare(size: _jobs.Size, config: Config) -> None:
    """Measure one shape and print its table."""
    with workers(size, config) as running:
        cases: dict[str, Callable[[], float]] = {
            f"{name} {number}": partial(measure, process, number, config.seconds)
            for name, process in running.items()
            for number in (0, *config.competitors)
        }
        results = interleave(cases, config.effort, lambda: Load.now(*(process.pid for process in running.values())))
    first = results[f"{config.settings[0]} 0"]
    rows = []
    for name in config.settings:
        alone = results[f"{name} 0"]
        slower = [f"{alone.ratio(results[f'{name} {number}']):.2f}" for number in config.competitors]
        rows.append((name, f"{alone.median:,.0f}", f"{alone.ratio(first):.2f}", *slower))
    columns = [f"× slower beside {number}" for number in config.competitors]
    show(
        f"{size}: rollout, batch {config.batch}, prompt {config.prompt}, response {config.response}",
        ("setting", "tokens/s alone", f"relative to {config.settings[0]}", *columns),
        rows,
        remark(results.values()),
    )


def main(config: Config) -> None:
    print(environment("textenv", "torch", "transformers"))
    for size in config.sizes:
        compare(size, config)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
