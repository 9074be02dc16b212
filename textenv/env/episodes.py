"""Episodes as arrays, one a row, while they are written and until they are scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from textenv.types import IntArray, Observation, Prompt, StopReason, Turn

__all__ = ["EpisodeBatch", "Span", "Written"]


class Written(NamedTuple):
    """What the model has read and the agent has written in an episode.

    Attributes:
        texts: Token ids of each text, to its end.
        places: Place of each token of the agent in its text, shape ``(tokens,)``.
        turns: The turn that it belongs to, which is also its text where there are several.
    """

    texts: Sequence[Sequence[int] | IntArray]
    places: IntArray
    turns: IntArray


class Span(NamedTuple):
    """A turn's tokens, and those that the model read before them.

    Attributes:
        before: Token ids of the text up to the turn.
        written: Token ids that the agent wrote.
    """

    before: Sequence[int]
    written: Sequence[int]


@dataclass(slots=True, eq=False)
class EpisodeBatch:
    """``n`` episodes that are being written, or that have ended and are not scored yet.

    It is the form in which a step changes all rows at once; an ``Episode`` is made of a row when it is scored. A token
    of the agent is the ``t``-th of its episode, in the text that the model read when it was drawn: there is one text an
    episode, unless a world's turns begin with its observation alone.

    Attributes:
        ids: Token ids of the present texts, prompts included, padded on the right, shape ``(n, width)``.
        mask: 1 at tokens, 0 at padding, likewise.
        lengths: Number of tokens of each present text, shape ``(n,)``.
        sizes: Number of tokens that the agent has written in each episode, shape ``(n,)``.
        places: Place of each token of the agent in its text, shape ``(n, time)``, ``time`` being the most that it
            can write in an episode; 0 where none is written.
        kl_coefs: Weight of the KL penalty, beta, as it was when each episode began, shape ``(n,)``.
        log_probs: log pi of the agent's tokens in nats, likewise.
        ref_log_probs: The same of the reference, where it has read them.
        kl: KL of each token in nats, likewise.
        paid: What the world has paid at each token, likewise.
        shaping: What the shaping by a potential has paid at each token, likewise.
        potentials: The potential of each episode where it was asked last, shape ``(n,)``.
        prompts: The ``n`` prompts.
        reasons: Why each has ended; None for one that goes on.
        earlier: Of each episode, the token ids of the texts before the present one.
        turns: Of each episode, the turns that have ended, where a world answers.
        truncated: Which of them a world has cut off, shape ``(n,)``.
    """

    ids: IntArray
    mask: NDArray[np.int8]
    lengths: IntArray
    sizes: IntArray
    places: IntArray
    kl_coefs: NDArray[np.float64]
    log_probs: NDArray[np.float64]
    ref_log_probs: NDArray[np.float64]
    kl: NDArray[np.float64]
    paid: NDArray[np.float64]
    shaping: NDArray[np.float64]
    potentials: NDArray[np.float64]
    prompts: list[Prompt]
    reasons: list[StopReason | None]
    earlier: list[tuple[tuple[int, ...], ...]]
    turns: list[tuple[Turn, ...]]
    truncated: NDArray[np.bool_]

    @classmethod
    def empty(cls, n: int, *, width: int, time: int, pad_id: int, prompt: Prompt) -> EpisodeBatch:
        """Return rows in which nothing has begun.

        Args:
            n: Number of rows.
            width: The most tokens of a text, prompt included.
            time: The most tokens that an agent can write in an episode.
            pad_id: Fills up texts.
            prompt: Stands in for the rows' prompts.
        """
        lengths, sizes = np.zeros((2, n), dtype=np.int64)
        log_probs, ref_log_probs, kl, paid, shaping = np.zeros((5, n, time))
        return cls(
            ids=np.full((n, width), pad_id, dtype=np.int64),
            mask=np.zeros((n, width), dtype=np.int8),
            lengths=lengths,
            sizes=sizes,
            places=np.zeros((n, time), dtype=np.int64),
            kl_coefs=np.zeros(n),
            log_probs=log_probs,
            ref_log_probs=ref_log_probs,
            kl=kl,
            paid=paid,
            shaping=shaping,
            potentials=np.zeros(n),
            prompts=[prompt] * n,
            reasons=[None] * n,
            earlier=[()] * n,
            turns=[()] * n,
            truncated=np.zeros(n, dtype=bool),
        )

    def begin(self, rows: IntArray, prompts: Sequence[Prompt], *, kl_coef: float, pad_id: int) -> None:
        """Begin episodes in some rows, each with its prompt alone."""
        self._write_texts(rows, [prompt.ids for prompt in prompts], pad_id)
        for row, prompt in zip(rows.tolist(), prompts, strict=True):
            self.prompts[row], self.reasons[row], self.earlier[row], self.turns[row] = prompt, None, (), ()
        self.sizes[rows], self.kl_coefs[rows], self.truncated[rows] = 0, kl_coef, False
        self.places[rows] = 0
        for array in (self.log_probs, self.ref_log_probs, self.kl, self.paid, self.shaping):
            array[rows] = 0.0

    def begin_texts(self, rows: IntArray, texts: Sequence[Sequence[int]], *, pad_id: int) -> None:
        """Go on with other texts in some rows; what was read before is kept as an earlier text."""
        for row in rows.tolist():
            self.earlier[row] = (*self.earlier[row], tuple(self.ids[row, : self.lengths[row]].tolist()))
        self._write_texts(rows, texts, pad_id)

    def _write_texts(self, rows: IntArray, texts: Sequence[Sequence[int]], pad_id: int) -> None:
        self.ids[rows] = pad_id
        for row, ids in zip(rows.tolist(), texts, strict=True):
            self.lengths[row] = size = len(ids)
            self.ids[row, :size] = ids
        self.mask[rows] = np.arange(self.mask.shape[1]) < self.lengths[rows][:, None]

    def append(self, rows: IntArray, tokens: IntArray) -> None:
        """Append a token of the agent to each of some rows."""
        lengths, sizes = self.lengths[rows], self.sizes[rows]
        self.places[rows, sizes] = lengths
        self.ids[rows, lengths] = tokens
        self.mask[rows, lengths] = 1
        self.lengths[rows], self.sizes[rows] = lengths + 1, sizes + 1

    def extend(self, row: int, ids: Sequence[int]) -> None:
        """Append tokens that the agent has not written to the text of a row."""
        begin, end = int(self.lengths[row]), int(self.lengths[row]) + len(ids)
        self.ids[row, begin:end] = ids
        self.mask[row, begin:end] = 1
        self.lengths[row] = end

    def select(self, rows: IntArray) -> EpisodeBatch:
        """Return a copy of some rows, in their order."""
        return EpisodeBatch(**{name: _pick(column, rows) for name, column in self._columns().items()})

    @staticmethod
    def concatenate(parts: Sequence[EpisodeBatch]) -> EpisodeBatch:
        """Return the rows of several batches as one."""
        columns = [part._columns() for part in parts]
        return EpisodeBatch(**{name: _join([column[name] for column in columns]) for name in columns[0]})

    def _columns(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def written(self) -> NDArray[np.bool_]:
        """Which tokens the agent has written, shape ``(n, time)``."""
        written: NDArray[np.bool_] = np.arange(self.kl.shape[1]) < self.sizes[:, None]
        return written

    def spans(self, row: int) -> list[Span]:
        """Return where the agent's tokens of each turn of a row's episode stand; at least one turn."""
        sizes = [turn.tokens for turn in self.turns[row]]
        if not sizes or sum(sizes) < self.sizes[row]:
            sizes.append(int(self.sizes[row]) - sum(sizes))
        texts = [*self.earlier[row], self.ids[row, : self.lengths[row]].tolist()]
        found, done = [], 0
        for number, size in enumerate(sizes):
            text = texts[number] if self.earlier[row] else texts[0]
            begin = int(self.places[row, done]) if size else len(text)
            found.append(Span(text[:begin], text[begin : begin + size]))
            done += size
        return found

    def completion_ids(self, row: int) -> list[int]:
        """Return the token ids that the agent has written in a row's episode."""
        if not self.turns[row]:
            begin, end = len(self.prompts[row].ids), int(self.lengths[row])
            ids: list[int] = self.ids[row, begin:end].tolist()
            return ids
        return [token for span in self.spans(row) for token in span.written]

    def written_in(self, row: int) -> Written:
        """Return what has been read and written in a row's episode, which shares no memory with it."""
        size = int(self.sizes[row])
        turns = np.zeros(size, dtype=np.int64)
        if self.turns[row]:
            sizes = [turn.tokens for turn in self.turns[row]]
            ended = np.repeat(np.arange(len(sizes)), sizes)
            turns[:] = len(sizes)
            turns[: len(ended)] = ended
        present: IntArray = self.ids[row, : self.lengths[row]].copy()
        texts: list[Sequence[int] | IntArray] = [*self.earlier[row], present]
        return Written(texts, self.places[row, :size].copy(), turns)

    def text_numbers(self) -> IntArray:
        """Return the number of the text that each token of the agent is in, within its episode, ``(n, time)``."""
        numbers = np.zeros(self.kl.shape, dtype=np.int64)
        for row, earlier in enumerate(self.earlier):
            if earlier:
                numbers[row, : self.sizes[row]] = self.written_in(row).turns
        return numbers

    def all_texts(self) -> tuple[IntArray, IntArray, IntArray]:
        """Return all texts of all episodes, those of an episode one after the other.

        Returns:
            Token ids ``(texts, width)``; numbers of tokens ``(texts,)``; and the number of the first text of each
            episode ``(n,)``.
        """
        counts = np.array([len(texts) + 1 for texts in self.earlier])
        first: IntArray = np.cumsum(counts) - counts
        if len(counts) == counts.sum():
            return self.ids, self.lengths, first
        ids = np.zeros((counts.sum(), self.ids.shape[1]), dtype=np.int64)
        lengths = np.zeros(len(ids), dtype=np.int64)
        last = first + counts - 1
        ids[last], lengths[last] = self.ids, self.lengths
        for row, begin in enumerate(first.tolist()):
            for number, text in enumerate(self.earlier[row]):
                ids[begin + number, : len(text)], lengths[begin + number] = text, len(text)
        return ids, lengths, first

    def observation(self) -> Observation:
        """Return all rows as an observation, which shares no memory with them."""
        return {"input_ids": self.ids.copy(), "attention_mask": self.mask.copy()}


def _pick(column: Any, rows: IntArray) -> Any:
    return column[rows] if isinstance(column, np.ndarray) else [column[row] for row in rows.tolist()]


def _join(columns: Sequence[Any]) -> Any:
    first = columns[0]
    return np.concatenate(columns) if isinstance(first, np.ndarray) else [item for column in columns for item in column]
