"""What a run keeps in its folder: its settings, by which it is known again, and the figures of its episodes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from textenv.data.files import read_json, to_json
from textenv.types import Episode, TextEnvError

__all__ = ["check_settings", "described", "differences", "figure_text", "mean_and_error", "summary"]


def described(command: Any, without: Sequence[str] = ("out",)) -> dict[str, Any]:
    """Return the settings of a command, a dataclass, as JSON values, for the ``config.json`` of its folder.

    Paths are absolute in it: whoever reads it may be in another folder.
    """
    values: dict[str, Any] = json.loads(to_json(dataclasses.asdict(command), default=_as_json))
    return {name: value for name, value in values.items() if name not in without}


def _as_json(value: Any) -> str:
    return str(value.resolve() if isinstance(value, Path) else value)


def check_settings(out: Path, config: Mapping[str, Any]) -> None:
    """Check that a run in a folder, if there is one, was begun with these settings.

    Raises:
        TextEnvError: It was not, or its settings cannot be read.
    """
    if not (out / "config.json").exists():
        return
    if changed := differences(read_json(out / "config.json"), config):
        raise TextEnvError(
            f"{out} holds an unfinished run with other settings ({', '.join(changed)}). Start it again with those "
            "it was started with, or give this one another folder with --out."
        )


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return which settings differ, each as ``name was ..., is ...``; those in nested objects too."""
    found = []
    for name in sorted({*earlier, *now}):
        old, new = earlier.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new)
        elif old != new:
            found.append(f"{name} was {old!r}, is {new!r}")
    return found


def summary(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Return the number of episodes, and mean and standard error of their ``score``, ``kl`` (nats) and ``length``.

    The score has what a world has paid in it. For a reward with parts, ``scores`` has the same of each that applied, by
    its name.
    """
    names = [name for name in (episodes[0].scores if episodes else ()) if _known(episodes, name)]
    parts = {name: mean_and_error(_known(episodes, name)) for name in names}
    return {
        "episodes": len(episodes),
        "score": mean_and_error([episode.earned for episode in episodes]),
        "kl": mean_and_error([math.fsum(episode.kl) for episode in episodes]),
        "length": mean_and_error([float(len(episode.completion_ids)) for episode in episodes]),
        **({"scores": parts} if parts else {}),
    }


def _known(episodes: Sequence[Episode], name: str) -> list[float]:
    """Return what a part of the reward said of the episodes that it applied to."""
    return [score for episode in episodes if (score := episode.scores.get(name)) is not None]


def mean_and_error(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean of values, at least one, and its standard error, under ``"mean"`` and ``"stderr"``.

    The standard error of a single value is not known: None.
    """
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "stderr": error}


def figure_text(figure: Mapping[str, float | None]) -> str:
    """Return what ``mean_and_error`` found as people read it; ``-`` for a standard error that is not known."""
    error = figure["stderr"]
    return f"{figure['mean']:.3f} ± {'-' if error is None else f'{error:.3f}'}"
