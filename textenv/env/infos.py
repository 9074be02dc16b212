"""The infos of a vector environment: a dictionary of arrays over all rows, each with a mask of the rows it is of."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenv.env.episodes import EpisodeBatch
from textenv.types import Episode, IntArray

__all__ = ["add_masks", "add_rows", "add_tokens", "of_episode"]


def of_episode(episode: Episode) -> dict[str, Any]:
    """Return the info of the step that ended an episode.

    Mappings in it are no ``dict``: of these, vector environments make an array of each value, in which None is NaN.
    That also keeps ``json.dumps`` from writing them, which writes no other mappings; ``dict(info["scores"])`` is one.
    """
    return {
        "kl": episode.kl[-1],
        "logprob": episode.log_probs[-1],
        "ref_logprob": episode.ref_log_probs[-1],
        "score": episode.score,
        "stop_reason": episode.stop_reason,
        "prompt": episode.prompt,
        "completion": episode.completion,
        "completion_ids": episode.completion_ids,
        "token_kl": episode.kl,
        "token_rewards": episode.token_rewards,
        "logged": UserDict({**episode.metrics, **episode.logged}),
        **({"scores": UserDict(episode.scores)} if episode.scores else {}),
        **({"turns": episode.turns} if episode.turns else {}),
        **({"shaping": episode.shaping[-1], "token_shaping": episode.shaping} if episode.shaping else {}),
    }


def add_rows(infos: dict[str, Any], n: int, found: Mapping[int, Mapping[str, Any]]) -> None:
    """Add the infos of some of ``n`` rows, which have the same keys, with numbers or objects."""
    for name, first in next(iter(found.values()), {}).items():
        if name not in infos:
            number = isinstance(first, float)
            infos[name] = np.full(n, 0.0 if number else None, dtype=np.float64 if number else object)
            infos[f"_{name}"] = np.zeros(n, dtype=bool)
        for row, info in found.items():
            infos[name][row] = info[name]
        infos[f"_{name}"][list(found)] = True


def add_tokens(infos: dict[str, Any], episodes: EpisodeBatch, rows: IntArray, *, shaped: bool) -> None:
    """Add what is known of the last token of some rows: KL, both log-probabilities, in nats, and what shaping paid."""
    n = len(episodes.lengths)
    at = episodes.sizes[rows] - 1
    present = np.zeros(n, dtype=bool)
    present[rows] = True
    found = {"kl": episodes.kl, "logprob": episodes.log_probs, "ref_logprob": episodes.ref_log_probs}
    for name, values in (found | {"shaping": episodes.shaping} if shaped else found).items():
        infos[name] = np.zeros(n)
        infos[name][rows] = values[rows, at]
        infos[f"_{name}"] = present.copy()


def add_masks(infos: dict[str, Any], masks: NDArray[np.bool_], rows: IntArray) -> None:
    """Add the action masks of some rows; ``masks`` are those of all, shape ``(n, V)``."""
    if "action_mask" not in infos:
        infos["action_mask"] = np.zeros(masks.shape, dtype=np.int8)
        infos["_action_mask"] = np.zeros(len(masks), dtype=bool)
    infos["action_mask"][rows] = masks[rows]
    infos["_action_mask"][rows] = True
