"""Finished episodes as arrays to learn from, and the buffer that gathers them while they are written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from textenv.env.episodes import Written
from textenv.types import Episode, FloatArray, IntArray, Prompt

__all__ = ["Rollout", "RolloutBuffer", "join"]

_OF_TEXTS = frozenset({"input_ids", "lengths"})


@dataclass(frozen=True, slots=True)
class Rollout:
    """Finished episodes as texts and tokens: forwards run over texts, returns and losses over the agent's tokens.

    A text is what the model read, to its end; there is one an episode, unless the turns of a world begin with its
    observation alone. ``time`` is the most tokens that the agent wrote in an episode. It holds what an ``Episode`` does
    not: values, masks and bootstraps, and episodes that a wrapper has truncated.

    Attributes:
        input_ids: The texts of all episodes, those of an episode one after the other, padded on the right,
            ``(texts, width)``.
        lengths: Tokens of each text, ``(texts,)``.
        text_counts: Number of texts of each episode, ``(batch,)``.
        texts: In which of its episode's texts each token is, ``(batch, time)``.
        places: Its place there, ``(batch, time)``.
        turns: The turn that it belongs to, ``(batch, time)``.
        log_probs: log pi of the tokens when they were drawn, in nats, ``(batch, time)``.
        values: ``V(s)`` when they were drawn, ``(batch, time)``.
        rewards: What each token earned, ``(batch, time)``.
        mask: True at tokens that the agent wrote, ``(batch, time)``.
        bootstrap: ``V`` of the last state where the episode was truncated, else 0, ``(batch,)``.
        action_masks: Which tokens could be drawn, packed bits, ``(batch, time, ceil(vocab_size / 8))``; or None.
        episodes: Each episode as the environment scored it; None where a wrapper truncated it before it was scored.
        prompts: What each started from, also where a wrapper truncated it; several may have the same text and other
            columns.
        kl_coef: Weight of the KL in the rewards.
        turn_discount: Share of what later turns earn that counts towards a turn.
    """

    input_ids: IntArray
    lengths: IntArray
    text_counts: IntArray
    texts: IntArray
    places: IntArray
    turns: IntArray
    log_probs: FloatArray
    values: FloatArray
    rewards: FloatArray
    mask: NDArray[np.bool_]
    bootstrap: FloatArray
    action_masks: NDArray[np.uint8] | None
    episodes: tuple[Episode | None, ...]
    prompts: tuple[Prompt, ...]
    kl_coef: float
    turn_discount: float = 1.0

    def rows(self, picks: IntArray) -> Rollout:
        """Return some episodes, in the order of ``picks``."""
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        of_texts = self.text_rows(picks)
        chosen: dict[str, Any] = {
            name: array[of_texts if name in _OF_TEXTS else picks]
            for name, array in arrays.items()
            if isinstance(array, np.ndarray)
        }
        episodes, prompts = (
            tuple(column[row] for row in picks.tolist() if column) for column in (self.episodes, self.prompts)
        )
        return dataclasses.replace(self, **chosen, episodes=episodes, prompts=prompts)

    def text_rows(self, picks: IntArray) -> IntArray:
        """Return the rows of ``input_ids`` that are the texts of some episodes, in the order of ``picks``."""
        if len(self.text_counts) == len(self.lengths):
            return picks
        ends, counts = np.cumsum(self.text_counts).tolist(), self.text_counts.tolist()
        parts = [np.arange(ends[row] - counts[row], ends[row]) for row in picks.tolist()]
        return np.concatenate(parts) if parts else picks

    def tensors(
        self, picks: IntArray, device: torch.device, vocab_size: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return the arguments of ``TextPolicy.evaluate`` for some episodes, trimmed to the longest text.

        Returns:
            Token ids of the texts ``(texts, time)``, their numbers of tokens ``(texts,)``, where the tokens that were
            written are in them ``(tokens,)``, and which tokens could be drawn at each, ``(tokens, vocab_size)``, or
            None for all.
        """
        texts, written = self.text_rows(picks), self.mask[picks]
        lengths, counts = self.lengths[texts], self.text_counts[picks]
        width = int(lengths.max())
        lines = (np.cumsum(counts) - counts)[:, None] + self.texts[picks]
        places = (lines * width + self.places[picks])[written]
        masks = None
        if self.action_masks is not None:
            packed = self.action_masks[picks][written]
            masks = torch.from_numpy(np.unpackbits(packed, axis=1, count=vocab_size).astype(bool)).to(device)
        ids, sizes, where = (
            torch.from_numpy(array).to(device) for array in (self.input_ids[texts, :width], lengths, places)
        )
        return ids, sizes, where, masks

    @property
    def starts(self) -> IntArray:
        """Number of tokens of each episode's prompt, ``(batch,)``."""
        starts: IntArray = self.places[:, 0]
        return starts

    @property
    def longest(self) -> IntArray:
        """Number of tokens of the longest text of each episode, ``(batch,)``."""
        begins = np.cumsum(self.text_counts) - self.text_counts
        longest: IntArray = np.maximum.reduceat(self.lengths, begins)
        return longest

    @property
    def discounts(self) -> FloatArray:
        """Share of what comes after each token that counts towards it, ``(batch, time)``: less than 1 between turns."""
        discounts = np.ones(self.mask.shape, dtype=np.float32)
        discounts[:, :-1][self.turns[:, 1:] > self.turns[:, :-1]] = self.turn_discount
        return discounts

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

    def __init__(self, rows: int, total: int, *, pad_id: int) -> None:
        """Begin without episodes.

        Args:
            rows: Rows of the environment.
            total: Number of episodes.
            pad_id: Token id that fills up texts.
        """
        self.total = total
        self.episode, self._place = np.zeros((2, rows), dtype=np.int64)
        self.assigned, self.writing = np.zeros((2, rows), dtype=np.bool_)
        self.bootstrap = np.zeros(total, dtype=np.float32)
        self._next = 0  # the number of the first episode that is not assigned
        self._pad_id = pad_id
        self._written: list[Written | None] = [None] * total
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

    def begin(self, prompts: Sequence[Prompt]) -> None:
        """Begin the assigned episodes.

        Args:
            prompts: The prompts of all rows.
        """
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
        given = {"episode": self.episode, "time": self._place, "mask": self.writing, **columns}
        given |= {} if masks is None else {"action_masks": np.packbits(masks, axis=1)}
        for name, array in given.items():
            self._columns.setdefault(name, []).append(array[rows])
        self._place[rows] += 1

    def finish(
        self,
        terminated: IntArray,
        truncated: IntArray,
        written: Callable[[int], Written],
        episodes: Sequence[Episode | None],
    ) -> None:
        """Finish the episodes of some rows.

        Args:
            terminated: Rows whose episode the environment has ended, or cut.
            truncated: Other rows, whose episode a wrapper has cut, and which have no score.
            written: Given a row, returns what has been read and written in it.
            episodes: The scored episodes of all rows; None for those that are scored later (``add_scored``).
        """
        over = np.concatenate((terminated, truncated))
        self.writing[over] = False
        for row in over.tolist():
            self._written[int(self.episode[row])] = written(row)
        for row in terminated.tolist():
            number = int(self.episode[row])
            self._finished.append(number)
            self._episodes[number] = episodes[row]

    def add_scored(self, episodes: Sequence[Episode]) -> None:
        """Add the episodes that were scored after they had finished, all of them, in the order in which they did."""
        for number, episode in zip(self._finished, episodes, strict=True):
            self._episodes[number] = episode

    def rollout(self, kl_coef: float, turn_discount: float) -> Rollout:
        """Return the episodes, all of which have finished.

        Args:
            kl_coef: Weight of the KL in the rewards.
            turn_discount: Share of what later turns earn that counts towards a turn.
        """
        columns = {name: np.concatenate(arrays) for name, arrays in self._columns.items()}
        where = columns.pop("episode"), columns.pop("time")
        time = int(where[1].max()) + 1
        padded: dict[str, Any] = {"action_masks": None}
        for name, column in columns.items():
            dtype = np.float32 if column.dtype.kind == "f" else column.dtype
            padded[name] = np.zeros((self.total, time, *column.shape[1:]), dtype=dtype)
            padded[name][where] = column
        written = [each for each in self._written if each is not None]
        return Rollout(
            **_text_columns(written, time, self._pad_id),
            bootstrap=self.bootstrap,
            episodes=tuple(self._episodes),
            prompts=tuple(self._prompts[number] for number in range(self.total)),
            kl_coef=kl_coef,
            turn_discount=turn_discount,
            **padded,
        )


def _text_columns(written: Sequence[Written], time: int, pad_id: int) -> dict[str, Any]:
    """Return the columns of a ``Rollout`` that say what was read and written."""
    texts = [text for each in written for text in each.texts]
    lengths = np.array([len(text) for text in texts])
    ids = np.full((len(texts), int(lengths.max())), pad_id, dtype=np.int64)
    for line, text in zip(ids, texts, strict=True):
        line[: len(text)] = text
    found = {name: np.zeros((len(written), time), dtype=np.int64) for name in ("texts", "places", "turns")}
    for row, each in enumerate(written):
        size = len(each.places)
        found["places"][row, :size], found["turns"][row, :size] = each.places, each.turns
        if len(each.texts) > 1:
            found["texts"][row, :size] = each.turns
    return {"input_ids": ids, "lengths": lengths, "text_counts": np.array([len(e.texts) for e in written]), **found}


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

    names = {field.name for field in dataclasses.fields(Rollout)} - {"episodes", "prompts", "kl_coef", "turn_discount"}
    episodes = tuple(episode for part in parts for episode in part.episodes)
    prompts = tuple(prompt for part in parts for prompt in part.prompts)
    columns = {name: stacked(name) for name in names}
    columns |= {"kl_coef": parts[0].kl_coef, "turn_discount": parts[0].turn_discount}
    return Rollout(**columns, episodes=episodes, prompts=prompts)
