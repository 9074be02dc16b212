"""What the process asks of its threads: how long they spin."""

import os
import subprocess
import sys

import pytest

THREADS = """
import os, sys
{first}
import textenv
import torch
torch.set_num_threads(2)
torch.ones(1 << 20).exp()
from textenv.rollouts.runtime import throttle_spinning
before = len(os.listdir("/proc/self/task"))
for _ in range(2):
    throttle_spinning()
print(len(os.listdir("/proc/self/task")) - before, len(os.sched_getaffinity(0)))
"""


def threads_added(first: str, **environment: str) -> tuple[int, int]:
    """Return by how many threads a new process has grown, and its number of cores."""
    silent = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", THREADS.format(first=first)],
        capture_output=True, text=True, check=True, env={**silent, **environment},
    )  # fmt: skip
    added, cores = map(int, done.stdout.split())
    return added, cores


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_more_threads_than_cores_where_torch_came_first() -> None:
    added, cores = threads_added("import torch")
    if cores < 2:
        pytest.skip("one core: no team of two fits")
    assert 1 + 1 + added // 2 > cores  # the main thread, its one helper, and one of each idle team: so OpenMP counts
    assert added == 2 * (cores - 1)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize(
    ("first", "environment"),
    [("", {}), ("import torch", {"GOMP_SPINCOUNT": "300000"}), ("import torch", {"OMP_WAIT_POLICY": "active"})],
    ids=["in time", "spin count", "policy"],
)
def test_what_was_in_time_or_set_by_hand_stays(first: str, environment: dict[str, str]) -> None:
    assert threads_added(first, **environment)[0] == 0
