"""Whether bad input ends in one clear line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest

from textenv.types import TextEnvError

MOST = 900  # characters of a line that people still read


@contextlib.contextmanager
def one_line(said: str = "") -> Iterator[None]:
    """Expect a ``TextEnvError`` whose message is one line that holds ``said``."""
    with pytest.raises(TextEnvError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < MOST, message
    assert said in message


def plain(value: object) -> str:
    """Return a value as the id of a test, which is the same in every process: without an address in memory."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))
