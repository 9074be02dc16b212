"""The bundled openings of movie reviews."""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Literal

from textenv.types import TextEnvError

__all__ = ["movie_openings"]


@functools.cache
def movie_openings(half: Literal["train", "heldout"]) -> tuple[str, ...]:
    """Return the openings of movie reviews, one to six words each, that ``textenv/MovieReview-v0`` starts from.

    Args:
        half: ``"train"``, or ``"heldout"`` for those that are kept for measuring.

    Raises:
        TextEnvError: There is no such half.
    """
    if half not in ("train", "heldout"):
        raise TextEnvError(f"split={half!r}: expected 'train' or 'heldout'.")
    content = (resources.files("textenv") / "data" / "openings.json").read_text("utf-8")
    return tuple(json.loads(content)[half])
