"""Where policies have acted, so that an environment finds the log-probability of an action that it was not told.

``step(action)`` sees no log pi. A policy of ours records every act: what it has read, the tokens it chose, and their
log-probabilities. An environment without an attached policy looks its state and action up in these records, in
whatever form another library has carried the two. Records are of one thread, and short-lived: one that an
environment has used is dropped when the next one is made.
"""

from __future__ import annotations

import os
import threading
import weakref
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from textenv.types import FloatArray, FullDistribution, IntArray, TextEnvError

__all__ = ["Act", "Match", "Recorded", "recognize", "record", "refuse_unseen"]

_KEPT = 16
"""Acts of a thread that no environment has used."""


@dataclass(slots=True, eq=False)
class Act:
    """One choice of tokens, ``n`` of them.

    Attributes:
        rows: Rows of the batch that were acted in, shape ``(n,)``.
        ids: What was read, padded on the right, shape ``(n, time)``.
        lengths: Tokens of each, shape ``(n,)``.
        tokens: What was chosen, shape ``(n,)``.
        log_probs: log pi of the tokens in nats, shape ``(n,)``.
        temperature: That the logits were divided by.
        masked: Whether the tokens were drawn within a mask.
        used: Whether an environment has used it.
        users: Keys of the environments that have; none uses an act in more than one step.
    """

    rows: IntArray
    ids: IntArray
    lengths: IntArray
    tokens: IntArray
    log_probs: FloatArray
    temperature: float
    masked: bool
    used: bool = False
    users: set[object] = field(default_factory=set)
    _places: dict[tuple[bytes, int], int] | None = None

    def places(self, ids: IntArray, lengths: IntArray, tokens: IntArray) -> IntArray:
        """Return where each of these tokens was chosen for each of these texts, -1 for nowhere; arguments as above."""
        if (
            ids.shape == self.ids.shape
            and np.array_equal(tokens, self.tokens)
            and np.array_equal(lengths, self.lengths)
            and np.array_equal(ids, self.ids)
        ):
            return np.arange(len(tokens))
        if self._places is None:
            self._places = {key: place for place, key in enumerate(_keys(self.ids, self.lengths, self.tokens))}
        known = self._places
        return np.array([known.get(key, -1) for key in _keys(ids, lengths, tokens)], dtype=np.int64)

    def read(self, rows: IntArray, ids: IntArray, lengths: IntArray) -> bool:
        """Tell whether these were the texts that it read in these rows of the batch; it may have read more."""
        if not np.array_equal(rows, self.rows):
            order = np.argsort(self.rows, kind="stable")
            places = np.searchsorted(self.rows[order], rows).clip(max=max(0, len(order) - 1))
            if not len(order) or not np.array_equal(self.rows[order[places]], rows):
                return False
            at = order[places]
            read_ids, read_lengths = self.ids[at], self.lengths[at]
        else:
            read_ids, read_lengths = self.ids, self.lengths
        if not np.array_equal(read_lengths, lengths):
            return False
        if read_ids.shape == ids.shape and np.array_equal(read_ids, ids):
            return True
        width = int(lengths.max(initial=0))
        is_token = np.arange(width) < lengths[:, None]
        return bool((read_ids[:, :width] == ids[:, :width])[is_token].all())


@runtime_checkable
class Recorded(Protocol):
    """A policy that keeps its last act."""

    @property
    def acted(self) -> Act | None:
        """Its last act; None before the first."""
        ...


@dataclass(frozen=True, slots=True)
class Match:
    """Some actions of a step that are those of an act.

    Attributes:
        at: Which ones, shape ``(m,)``.
        act: The act.
        places: Where they are in it, shape ``(m,)``.
        policy: The policy that acted; None where it no longer exists.
    """

    at: IntArray
    act: Act
    places: IntArray
    policy: object

    def log_probs(self, vocab_size: int) -> FloatArray:
        """Return log pi of the whole vocabulary at the states, shape ``(m, vocab_size)``.

        Raises:
            TextEnvError: The policy has acted again since, and keeps one act's distributions.
        """
        policy = self.policy
        if not isinstance(policy, FullDistribution) or not isinstance(policy, Recorded) or policy.acted is not self.act:
            raise TextEnvError(
                "kl_estimator='full' needs the distributions that the actions were drawn from, but the policy has "
                "acted elsewhere since: step the environment before the policy acts again, or use kl_estimator='k1'."
            )
        log_probs = np.asarray(policy.action_log_probs())[self.act.rows[self.places]]
        assert log_probs.shape == (len(self.places), vocab_size)
        return log_probs


class _Kept(threading.local):
    def __init__(self) -> None:
        self.acts: list[tuple[Act, weakref.ref[object]]] = []


_kept = _Kept()


def _forget() -> None:
    _kept.acts = []


if hasattr(os, "register_at_fork"):  # a process begins without the acts of the one that it was forked from
    os.register_at_fork(after_in_child=_forget)


def record(act: Act, policy: object) -> None:
    """Keep what a policy has just done, for the environment whose step takes its actions."""
    unused = [each for each in _kept.acts if not each[0].used]
    _kept.acts = [*unused[1 - _KEPT :], (act, weakref.ref(policy))]


def recognize(ids: IntArray, lengths: IntArray, tokens: IntArray, user: object) -> list[Match]:
    """Find the acts of this thread by which tokens were chosen for texts, the latest where there are several.

    Args:
        ids: Texts, padded on the right, shape ``(n, time)``.
        lengths: Tokens of each, shape ``(n,)``.
        tokens: Actions, shape ``(n,)``.
        user: A key of the environment. Acts that it has used already are not found again: it has stepped on since.
    """
    found: list[Match] = []
    unmatched = np.ones(len(tokens), dtype=bool)
    for act, policy in reversed(_kept.acts):
        if user in act.users:
            continue
        places = act.places(ids, lengths, tokens)
        if (matched := places >= 0).any():
            act.used = True
            act.users.add(user)
            at = np.flatnonzero(matched & unmatched)
            if len(at):
                found.append(Match(at, act, places[at], policy()))
            unmatched &= ~matched
    return found


def refuse_unseen(ids: IntArray, lengths: IntArray) -> None:
    """Refuse to act in an environment that went on from an act without having seen its log-probabilities.

    Args:
        ids: Texts that a policy is asked to go on with, padded on the right, shape ``(n, time)``.
        lengths: Tokens of each, shape ``(n,)``.

    Raises:
        TextEnvError: A text is one that a policy has read, with the token that it chose, and no environment of this
            thread has paid for it.
    """
    for act, _ in _kept.acts:
        if act.used:
            continue
        last = ids[np.arange(len(ids)), lengths - 1]
        if (act.places(ids, lengths - 1, last) >= 0).any():
            raise TextEnvError(
                "The environment took the policy's actions without log pi, as if they were deterministic: it runs in "
                "another process or thread, or a wrapper changes what the policy reads. Expected an environment in "
                "this one; use TextVecEnv or DummyVecEnv instead of SubprocVecEnv, gymnasium.make_vec instead of "
                "AsyncVectorEnv."
            )


def _keys(ids: IntArray, lengths: IntArray, tokens: IntArray) -> list[tuple[bytes, int]]:
    rows = zip(ids.astype(np.int64, copy=False), lengths.tolist(), tokens.tolist(), strict=True)
    return [(line[:length].tobytes(), token) for line, length, token in rows]
