"""What a process that computes asks of its threads and its C library."""

from __future__ import annotations

import ctypes
import os
import platform

__all__ = ["keep_memory", "limit_spinning"]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt(3)


def limit_spinning() -> None:
    """Keep threads that wait for each other from spinning for long; to be called before torch is loaded.

    Next to another busy process the threads of OpenMP otherwise spin most of the time, and a rollout slows tenfold; not
    to spin at all costs a small model its speed (``benchmarks/contention.py``). ``OMP_WAIT_POLICY`` and
    ``GOMP_SPINCOUNT``, where they are set, are left alone.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def keep_memory() -> None:
    """Keep memory that was freed, so that the process stays as large as it has been at its largest.

    Training frees and asks for the same megabytes over and over. The C library returns them to the system each time and
    gets them back page by page, filled with zeros, which took a tenth of the time of an update and more. Does nothing
    where ``MALLOC_*`` variables say something else, or the C library is not that of GNU.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
