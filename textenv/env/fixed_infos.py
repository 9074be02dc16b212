"""Infos of numbers alone, with the same keys and shapes at every step, for libraries that lay them out as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from textenv.env.settings import TextEnvSettings
from textenv.types import StopReason

__all__ = ["FixedInfos"]

_REASONS: tuple[str, ...] = get_args(StopReason)
_TOKEN_ARRAYS = ("completion_ids", "token_kl", "token_rewards", "token_shaping")


class FixedInfos:
    """Makes fixed infos of those that come and go: what is not known at a step is 0 there.

    ``T`` is the most tokens that an agent can write in an episode, ``V`` the number of token ids:

    ====================================  =======================================================================
    ``kl``, ``logprob``, ``ref_logprob``  of the last token, in nats
    ``score``                             at the end of an episode
    ``stop_reason``                       at the end: 1 ``eos``, 2 ``stop``, 3 ``length``, 4 ``world``, 5 ``turns``,
                                          6 ``context``
    ``completion_length``                 at the end: how many tokens the agent wrote
    ``completion_ids``                    these, ``(T,)``
    ``token_kl``, ``token_rewards``       of each, ``(T,)``
    ``turns``                             with a world, at the end: how many turns there were
    ``turn_tokens``, ``turn_rewards``     what the agent wrote in each and what the world paid, ``(max_turns,)``
    ``scores/NAME``, ``applies/NAME``     at the end: what each part of a reward said, and 1 where it said something
    ``shaping``, ``token_shaping``        with a potential: what shaping has paid for the last token, and for each
                                          at the end, ``(T,)``
    ``action_mask``                       with ``top_k`` or ``top_p``, ``(V,)``; all 1 where no token follows
    ====================================  =======================================================================
    """

    def __init__(self, settings: TextEnvSettings, *, parts: Sequence[str], most_tokens: int, vocab_size: int) -> None:
        """Take the sizes.

        Args:
            settings: Of the environment.
            parts: Names of the parts of the reward.
            most_tokens: ``T``.
            vocab_size: ``V``.
        """
        numbers, whole = ("kl", "logprob", "ref_logprob", "score"), ("stop_reason", "completion_length")
        self._blank: dict[str, NDArray[Any]] = {
            **{name: np.zeros(()) for name in numbers},
            **{name: np.zeros((), dtype=np.int64) for name in whole},
            "completion_ids": np.zeros(most_tokens, dtype=np.int64),
            "token_kl": np.zeros(most_tokens),
            "token_rewards": np.zeros(most_tokens),
        }
        for name in parts:
            self._blank[f"scores/{name}"] = np.zeros(())
            self._blank[f"applies/{name}"] = np.zeros((), dtype=np.int64)
        if settings.potential is not None:
            self._blank["shaping"] = np.zeros(())
            self._blank["token_shaping"] = np.zeros(most_tokens)
        if settings.world is not None:
            self._blank["turns"] = np.zeros((), dtype=np.int64)
            self._blank["turn_tokens"] = np.zeros(settings.max_turns, dtype=np.int64)
            self._blank["turn_rewards"] = np.zeros(settings.max_turns)
        if settings.masks_actions:
            self._blank["action_mask"] = np.ones(vocab_size, dtype=np.int8)

    def of(self, infos: Mapping[str, Any], present: NDArray[np.bool_]) -> dict[str, Any]:
        """Return the infos of a vector environment in the fixed form.

        Args:
            infos: As ``step`` or ``reset`` would return them, each with its mask of rows.
            present: Which rows have begun an episode or written a token, shape ``(num_envs,)``.

        Returns:
            Arrays of a first dimension ``num_envs``, each with ``present`` as its mask; and ``final_obs`` and
            ``final_info``, where Gymnasium has them, the latter in the fixed form too.
        """
        found = {}
        for name, blank in self._blank.items():
            found[name] = np.zeros((len(present), *blank.shape), dtype=blank.dtype)
            found[name][present] = blank
            if name in infos and infos[name].dtype != object:
                known = infos[f"_{name}"]
                found[name][known] = infos[name][known]
        for row in np.flatnonzero(infos.get("_stop_reason", [])).tolist():
            self._write_end(found, {name: values[row] for name, values in infos.items()}, row)
        fixed: dict[str, Any] = {}
        for name, values in found.items():
            fixed[name], fixed[f"_{name}"] = values, present.copy()
        if "final_info" in infos:
            fixed |= {name: infos[name] for name in ("final_obs", "_final_obs", "_final_info")}
            fixed["final_info"] = self.of(infos["final_info"], infos["_final_info"])
        return fixed

    @staticmethod
    def _write_end(found: Mapping[str, NDArray[Any]], info: Mapping[str, Any], row: int) -> None:
        """Write what is known at the end of a row's episode."""
        size = len(info["completion_ids"])
        found["stop_reason"][row] = 1 + _REASONS.index(info["stop_reason"])
        found["completion_length"][row] = size
        for name in _TOKEN_ARRAYS:
            if name in found:
                found[name][row, :size] = info[name]
        for name, score in (info.get("scores") or {}).items():
            if score is not None:
                found[f"scores/{name}"][row], found[f"applies/{name}"][row] = score, 1
        turns = info.get("turns") or ()
        if turns:
            found["turns"][row] = len(turns)
            found["turn_tokens"][row, : len(turns)] = [turn.tokens for turn in turns]
            found["turn_rewards"][row, : len(turns)] = [turn.reward for turn in turns]
