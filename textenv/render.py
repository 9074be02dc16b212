from typing import Any


def to_ansi(episode: Any, *, color: bool = True, finished: bool = True) -> str:
    return ""
