"""What a process that computes asks of its threads and its C library, and how signals end it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = [
    "Stopped",
    "keep_memory",
    "limit_spinning",
    "return_memory",
    "stopped_by_signals",
    "throttle_spinning",
]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt(3)


_SPIN_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_too_late = threading.Event()  # set where torch had been loaded before spinning was limited; cleared once mended


def limit_spinning() -> None:
    """Keep threads that wait for each other from spinning for long; to be called before torch is loaded.

    Next to another busy process the threads of OpenMP otherwise spin most of the time, and a rollout slows tenfold; not
    to spin at all costs a small model its speed (``benchmarks/contention.py``). ``OMP_WAIT_POLICY`` and
    ``GOMP_SPINCOUNT``, where they are set, are left alone. Where torch is loaded already, OpenMP has read its
    environment, and ``throttle_spinning`` does the same.
    """
    if not any(name in os.environ for name in _SPIN_SETTINGS):
        os.environ["GOMP_SPINCOUNT"] = "1000"
        if "torch" in sys.modules:
            _too_late.set()


def throttle_spinning() -> None:
    """Do what ``limit_spinning`` does, for a program that had loaded torch before it imported textenv.

    GNU's OpenMP lets its threads spin a thousand times in place of 300,000 while there are more of them than cores
    (``gomp_throttled_spin_count_var`` in its sources). Threads that wait asleep count, so a few are made that compute
    once and then sleep for good. Other implementations of OpenMP take no notice. Does nothing when called again, or
    where ``limit_spinning`` was in time or had been told otherwise.
    """
    if not _too_late.is_set():
        return
    _too_late.clear()
    import torch  # noqa: PLC0415 (loaded already)

    team, cores = torch.get_num_threads(), len(os.sched_getaffinity(0)) if sys.platform == "linux" else 0
    if not 1 < team <= cores:
        return
    teams = (cores - team) // (team - 1) + 1  # each brings all of its threads but the one that makes it
    computed = threading.Barrier(teams + 1)

    def compute_and_sleep() -> None:
        torch.ones(1 << 20).exp()  # so long that it is computed by a whole team
        computed.wait()
        threading.Event().wait()

    for number in range(teams):
        threading.Thread(target=compute_and_sleep, name=f"idle OpenMP team {number}", daemon=True).start()
    computed.wait()


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


def return_memory() -> None:
    """Return memory that was freed to the system now, also after ``keep_memory``; of no effect without the GNU library.

    Between two phases that need large blocks of different sizes, which would not fit into each other's gaps.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end.

    Attributes:
        number: The signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Have SIGTERM and SIGINT raise ``Stopped`` in the main thread inside the block, so that it cleans up as it ends.

    A signal that is ignored stays so, as under ``nohup``. Libraries that install a handler only where there is none,
    such as SDL, leave these alone. Does nothing in other threads, which can have no handlers.

    The system may hand a signal to any thread, while Python runs handlers in the main thread alone, which waits for the
    end of a blocking call, such as a read of the terminal, if the call was not interrupted itself. Every signal is
    therefore followed by a second one, SIGURG, to the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    with _main_thread_interrupted():
        try:
            for number in before:
                signal.signal(number, stop)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _main_thread_interrupted() -> Iterator[None]:
    """Interrupt blocking calls of the main thread, which runs this, when a thread of the process gets a signal."""
    main = threading.main_thread()
    receiver, sender = socket.socketpair()

    def pass_on() -> None:
        while number := receiver.recv(1):
            if number[0] != signal.SIGURG:
                signal.pthread_kill(int(main.ident or 0), signal.SIGURG)

    before = signal.signal(signal.SIGURG, lambda *_: None)  # a signal without a handler interrupts nothing
    sender.setblocking(False)
    told_before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=pass_on, name="signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(told_before, warn_on_full_buffer=False)
        sender.close()
        watcher.join()
        receiver.close()
        signal.signal(signal.SIGURG, before)
