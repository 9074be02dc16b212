"""Finished episodes as arrays to learn from, and the buffer that gathers them while they are written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenv.models.policy import observation_arrays
from textenv.types import Episode, FloatArray, IntArray, Observation, Prompt

__all__ = ["Rollout", "RolloutBuffer", "join"]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One finished episode a row, as arrays that forwards and losses run over; ``time`` is the longest completion.

    It holds what an ``Episode`` does not: values, masks and bootstraps, and episodes that a wrapper has truncated.

    Attributes:
        input_ids: Prompts and completions, padded on the right, ``(batch, width)``.
        lengths: Tokens of each row, ``(batch,)``.
        starts: Tokens of each row's prompt, ``(batch,)``.
        log_probs: log pi of the tokens when they were drawn, in nats, ``(batch, time)``.
        values: ``V(s)`` when they were drawn, ``(batch, time)``.
        rewards: What each token earned, ``(batch, time)``.
        mask: True at tokens that the agent wrote, ``(batch, time)``.
        bootstrap: ``V`` of the last state where an outer wrapper truncated the episode, else 0, ``(batch,)``.
        action_masks: Which tokens could be drawn, packed bits, ``(batch, time, ceil(vocab_size / 8))``; or None.
        episodes: Each episode as the environment scored it; None where a wrapper truncated it before it was scored.
        prompts: What each started from, also where a wrapper truncated it; several may have the same text and other
            columns.
        kl_coef: Weight of the KL in the rewards.
    """

    input_ids: IntArray
    lengths: IntArray
    starts: IntArray
    log_probs: FloatArray
    values: FloatArray
    rewards: FloatArray
    mask: NDArray[np.bool_]
    bootstrap: FloatArray
    action_masks: NDArray[np.uint8] | None
    episodes: tuple[Episode | None, ...]
    prompts: tuple[Prompt, ...]
    kl_coef: float

    def rows(self, picks: IntArray) -> Rollout:
        """Return the episodes of some rows, in the order of ``picks``."""
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        chosen: dict[str, Any] = {name: array[picks] for name, array in arrays.items() if isinstance(array, np.ndarray)}
        episodes, prompts = (
            tuple(column[row] for row in picks.tolist() if column) for column in (self.episodes, self.prompts)
        )
        return dataclasses.replace(self, **chosen, episodes=episodes, prompts=prompts)

    @property
    def finished(self) -> list[Episode]:
        """The episodes that were scored."""
        return [episode for episode in self.episodes if episode is not None]

    @property
    def tokens(self) -> int:
        """Number of tokens that the agent wrote."""
        return int(self.mask.sum())


class RolloutBuffer:
    """Gathers the tokens of a fixed number of episodes, whichever row of the environment writes each.

    A row is assigned an episode (``assign``), begins it in a reset (``begin``), writes its tokens (``append``) and
    finishes it (``finish``); then it can be assigned another. ``rollout`` returns all of them, episode by episode.

    Attributes:
        total: Number of episodes.
        episode: The number of each row's episode, shape ``(rows,)``.
        assigned: Rows that have been assigned an episode and have not begun it, shape ``(rows,)``.
        writing: Rows that have begun an episode and not finished it, shape ``(rows,)``.
        bootstrap: ``V`` of the last state of each episode that was truncated, else 0, shape ``(total,)``.
    """

    def __init__(self, rows: int, total: int, *, width: int, pad_id: int) -> None:
        """Begin without episodes.

        Args:
            rows: Rows of the environment.
            total: Number of episodes.
            width: The most tokens of a prompt and a completion.
            pad_id: Token id that fills up texts.
        """
        self.total = total
        self.episode, self._place = np.zeros((2, rows), dtype=np.int64)
        self.assigned, self.writing = np.zeros((2, rows), dtype=np.bool_)
        self.bootstrap = np.zeros(total, dtype=np.float32)
        self._next = 0  # the number of the first episode that is not assigned
        self._ids = np.full((total, width), pad_id, dtype=np.int64)
        self._starts, self._lengths = np.zeros((2, total), dtype=np.int64)
        self._episodes: list[Episode | None] = [None] * total
        self._prompts: dict[int, Prompt] = {}
        self._finished: list[int] = []  # the numbers of the episodes that have ended, in that order
        self._columns: dict[str, list[NDArray[Any]]] = {}

    @property
    def unassigned(self) -> int:
        """Number of episodes that no row has been assigned."""
        return self.total - self._next

    def assign(self, rows: IntArray) -> None:
        """Assign the next episodes to some rows, which write none."""
        self.episode[rows] = np.arange(self._next, self._next + len(rows))
        self._next += len(rows)
        self._place[rows], self.assigned[rows] = 0, True

    def options(self, given: dict[str, Any] | None) -> dict[str, Any]:
        """Return options for ``reset``: of a list with an item for each episode, each row gets that of its episode."""
        return {
            name: [value[episode] for episode in self.episode]
            if isinstance(value, list) and len(value) == self.total
            else value
            for name, value in (given or {}).items()
        }

    def begin(self, obs: Observation, prompts: Sequence[Prompt]) -> None:
        """Begin the assigned episodes.

        Args:
            obs: The observation of all rows after their reset.
            prompts: The prompts of all rows.
        """
        self._starts[self.episode[self.assigned]] = observation_arrays(obs)[1][self.assigned]
        for row in np.flatnonzero(self.assigned).tolist():
            self._prompts[int(self.episode[row])] = prompts[row]
        self.writing |= self.assigned
        self.assigned = np.zeros_like(self.assigned)

    def append(self, rows: IntArray, masks: NDArray[np.bool_] | None, **columns: NDArray[Any]) -> None:
        """Append a token to the episodes of some rows.

        Args:
            rows: Rows that have written one.
            masks: Which tokens each row of the environment could draw, shape ``(all rows, vocab_size)``; or None.
            **columns: What is known of the token of each row of the environment, shape ``(all rows,)`` each.
        """
        given = {"episode": self.episode, "place": self._place, "mask": self.writing, **columns}
        given |= {} if masks is None else {"action_masks": np.packbits(masks, axis=1)}
        for name, array in given.items():
            self._columns.setdefault(name, []).append(array[rows])
        self._place[rows] += 1

    def finish(
        self, terminated: IntArray, truncated: IntArray, obs: Observation, episodes: Sequence[Episode | None]
    ) -> None:
        """Finish the episodes of some rows.

        Args:
            terminated: Rows whose episode the environment has ended.
            truncated: Other rows, whose episode a wrapper has cut, and which have no score.
            obs: The observation of all rows after their last token.
            episodes: The scored episodes of all rows; None for those that are scored later (``add_scored``).
        """
        over = np.concatenate((terminated, truncated))
        self.writing[over] = False
        texts, lengths = observation_arrays(obs)
        self._ids[self.episode[over]], self._lengths[self.episode[over]] = texts[over], lengths[over]
        for row in terminated.tolist():
            number = int(self.episode[row])
            self._finished.append(number)
            self._episodes[number] = episodes[row]

    def add_scored(self, episodes: Sequence[Episode]) -> None:
        """Add the episodes that were scored after they had finished, all of them, in the order in which they did."""
        for number, episode in zip(self._finished, episodes, strict=True):
            self._episodes[number] = episode

    def rollout(self, kl_coef: float) -> Rollout:
        """Return the episodes, all of which have finished.

        Args:
            kl_coef: Weight of the KL in the rewards.
        """
        columns = {name: np.concatenate(arrays) for name, arrays in self._columns.items()}
        where = columns.pop("episode"), columns.pop("place")
        time = int(where[1].max()) + 1
        padded: dict[str, Any] = {"action_masks": None}
        for name, column in columns.items():
            dtype = np.float32 if column.dtype.kind == "f" else column.dtype
            padded[name] = np.zeros((self.total, time, *column.shape[1:]), dtype=dtype)
            padded[name][where] = column
        return Rollout(
            input_ids=self._ids[:, : int(self._lengths.max())].copy(),
            lengths=self._lengths,
            starts=self._starts,
            bootstrap=self.bootstrap,
            episodes=tuple(self._episodes),
            prompts=tuple(self._prompts[number] for number in range(self.total)),
            kl_coef=kl_coef,
            **padded,
        )


def join(parts: Sequence[Rollout]) -> Rollout:
    """Return the episodes of several processes as those of one."""

    def stacked(name: str) -> Any:
        arrays = [getattr(part, name) for part in parts]
        if arrays[0] is None:
            return None
        if arrays[0].ndim > 1:  # a column for each token, of which the longest texts have the most
            width = max(array.shape[1] for array in arrays)
            around = [(0, 0)] * (arrays[0].ndim - 2)
            arrays = [np.pad(array, [(0, 0), (0, width - array.shape[1]), *around]) for array in arrays]
        return np.concatenate(arrays)

    names = {field.name for field in dataclasses.fields(Rollout)} - {"episodes", "prompts", "kl_coef"}
    episodes = tuple(episode for part in parts for episode in part.episodes)
    prompts = tuple(prompt for part in parts for prompt in part.prompts)
    columns = {name: stacked(name) for name in names}
    return Rollout(**columns, episodes=episodes, prompts=prompts, kl_coef=parts[0].kl_coef)
