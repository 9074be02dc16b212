"""A policy whose tokens an engine draws: whole completions at a time, handed out a token a step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from textenv.models import acting
from textenv.models.policy import TextPolicy, observation_arrays
from textenv.rollouts.engines.base import Completion, Engine, Request, Sampling
from textenv.types import FloatArray, IntArray, Observation, TextEnvError

__all__ = ["EnginePolicy"]


@dataclass(slots=True)
class _Written:
    """What an engine has written in a row.

    Attributes:
        begin: Tokens before the turn.
        handed: Tokens of the text with those that were handed out.
        ids: The tokens of the text with all that was written, ``(tokens,)``.
        log_probs: log pi of the tokens from ``asked`` on, ``(tokens - asked,)``.
        asked: Tokens of the text that the engine was asked to continue.
    """

    begin: int
    handed: int
    ids: IntArray
    log_probs: FloatArray
    asked: int


class EnginePolicy(TextPolicy):
    """Acts in the place of a policy, with tokens and log-probabilities that an engine with its weights has drawn.

    A row in which the engine has written is handed out what it wrote, token by token. Where a row reads anything else,
    a new prompt or a world's answer, or where the engine has stopped and the environment goes on, the engine is asked
    to continue what the row reads. So a turn that ends elsewhere than the engine thought is still one of the policy.

    Its values are 0: the policy computes them when it reads what was written. It computes nothing itself but values of
    the states in which episodes are cut off, and without these it may act in a thread while the policy learns.
    """

    def __init__(
        self, policy: TextPolicy, engine: Engine, sampling: Sampling, most: int, *, computes: bool = True
    ) -> None:
        """Act in the place of ``policy``, whose weights the engine has.

        Args:
            policy: The policy that learns.
            engine: Draws.
            sampling: How.
            most: Tokens of a turn.
            computes: Whether it may compute values with the policy.
        """
        super().__init__(policy.lm, value="none", temperature=policy.temperature, trainable=False)
        self._learner, self._engine, self._sampling, self._most = policy, engine, sampling, most
        self._computes = computes
        self._rows: dict[int, _Written] = {}
        self._acted: tuple[int, acting.Act | None] = (0, None)

    def forget(self) -> None:
        """Drop what the engine has written and nobody was handed."""
        self._rows.clear()

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Do nothing: the engine's weights change only when it is given others."""
        yield

    @property
    def acted(self) -> acting.Act | None:
        """What it has read and handed out last; None before it has acted."""
        return self._acted[1]

    def act(
        self,
        obs: Observation,
        *,
        generator: torch.Generator | None = None,
        rows: IntArray | None = None,
        masks: NDArray[np.bool_] | None = None,
        uniform: torch.Tensor | None = None,
    ) -> tuple[IntArray, FloatArray]:
        """Return the next token of each row, and values of 0; see ``TextPolicy.act``.

        Raises:
            TextEnvError: There are masks, which no engine knows; nothing to draw with; or the engine fails.
        """
        if masks is not None:
            raise TextEnvError("rollout_engine with masked tokens: an engine draws from all of them.")
        ids, lengths = observation_arrays(obs)
        rows = np.arange(len(lengths)) if rows is None else rows
        if uniform is None:
            if generator is None:
                raise TextEnvError("An engine draws samples; have the policy itself act for the likeliest tokens.")
            uniform = torch.rand(len(rows), 1, generator=generator, device=generator.device)
        self._ask(ids, lengths, rows, uniform)
        actions, log_probs = np.zeros(len(lengths), dtype=np.int64), np.zeros(len(rows), dtype=np.float32)
        for place, row in enumerate(rows.tolist()):
            written, at = self._rows[row], int(lengths[row])
            actions[row], log_probs[place] = written.ids[at], written.log_probs[at - written.asked]
            written.handed = at + 1
        act = acting.Act(rows, ids[rows], lengths[rows], actions[rows], log_probs, self.temperature, masked=False)
        self._acted = (len(lengths), act)
        acting.record(act, self)
        return actions, np.zeros(len(lengths), dtype=np.float32)

    def action_log_prob(self, actions: IntArray) -> FloatArray:
        """Return log pi of the tokens it has just handed out, shape ``(batch,)``.

        Raises:
            TextEnvError: They are others, of which the engine has said nothing.
        """
        batch, act = self._acted
        result = np.zeros(batch, dtype=np.float32)
        if act is None:
            return result
        if (np.asarray(actions, dtype=np.int64)[act.rows] != act.tokens).any():
            raise TextEnvError(
                "A wrapper changes the actions, and a rollout_engine tells log pi of its own tokens only; leave the "
                "wrapper or the engine out."
            )
        result[act.rows] = act.log_probs
        return result

    def action_log_probs(self) -> FloatArray:
        """Refuse: an engine tells log pi of its own tokens only."""
        raise TextEnvError("A rollout_engine tells log pi of its own tokens only: use kl_estimator='k1', 'k2' or 'k3'.")

    def values(self, obs: Observation, rows: IntArray) -> FloatArray:
        """Return ``V(s)`` of the policy that learns; see ``TextPolicy.values``.

        Raises:
            TextEnvError: It may not compute.
        """
        if self._learner.value_head is None:
            return np.zeros(len(rows), dtype=np.float32)
        if not self._computes:
            raise TextEnvError(
                "A world or a wrapper cuts an episode off, so that the value of its last state counts, which a policy "
                "that learns meanwhile cannot tell: use max_lag=0, or an agent without values."
            )
        return self._learner.values(obs, rows)

    def _ask(self, ids: IntArray, lengths: IntArray, rows: IntArray, uniform: torch.Tensor) -> None:
        """Have the engine write in the rows that have nothing left to hand out."""
        seeds = (uniform[:, 0].double().cpu().numpy() * 2**31).astype(np.int64)
        begins, requests = {}, []
        for row, seed in zip(rows.tolist(), seeds.tolist(), strict=True):
            text, before = ids[row, : lengths[row]], self._rows.get(row)
            begins_at = len(text)
            # Another episode may begin with the same prompt: a row that goes on reads one token more than before.
            if before is not None and before.handed == len(text) and (before.ids[: len(text)] == text).all():
                if len(before.ids) > len(text):
                    continue
                begins_at = before.begin  # the engine has stopped, and the environment goes on
            begins[row] = begins_at
            left = min(begins_at + self._most, ids.shape[1]) - len(text)
            requests.append(Request(text.tolist(), max(1, left), seed))
        if not requests:
            return
        found = self._engine.complete(requests, self._sampling)
        for (row, begin), request, completion in zip(begins.items(), requests, found, strict=True):
            self._check(completion)
            whole = np.array(request.ids + completion.tokens, dtype=np.int64)
            log_probs = np.array(completion.log_probs, dtype=np.float32)
            self._rows[row] = _Written(begin, len(request.ids), whole, log_probs, len(request.ids))

    def _check(self, completion: Completion) -> None:
        vocabulary = self.lm.vocab_size
        if wrong := [token for token in completion.tokens if not 0 <= token < vocabulary]:
            raise TextEnvError(
                f"{self._engine.label} has written token {wrong[0]}, and the environment's model has {vocabulary}: it "
                "serves a model of another vocabulary. Start it with the environment's model."
            )
        if not np.isfinite(completion.log_probs).all():
            raise TextEnvError(
                f"{self._engine.label} tells log-probabilities that are not finite. Lower learning_rate, or raise "
                "temperature; the run's last checkpoint is from before."
            )
