"""log pi of the actions, which ``step`` does not see: an attached policy's, a recognized policy's, or 0."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenv.env.episodes import EpisodeBatch
from textenv.env.settings import TextEnvSettings
from textenv.models import acting
from textenv.types import ActionLogProb, FullDistribution, IntArray, TextEnvError, short

__all__ = ["Behavior"]


class Behavior:
    """Finds log pi of the actions of a step.

    Attributes:
        policy: The attached policy; None where policies of ours are recognized, and others taken as deterministic.
    """

    def __init__(self, settings: TextEnvSettings, num_envs: int, vocab_size: int) -> None:
        """Begin without a policy, for ``num_envs`` rows."""
        self.policy: ActionLogProb | None = None
        self._recorded: acting.Recorded | None = None  # the same, if it keeps its last act
        self._settings, self._num_envs, self._vocab_size = settings, num_envs, vocab_size
        self._key = object()  # by which the records of acts tell environments apart

    def attach(self, policy: ActionLogProb | None) -> None:
        """Take all actions from now on to be those of ``policy``; None detaches it.

        Raises:
            TextEnvError: The policy lacks a method that the reward needs.
        """
        if isinstance(policy, type) or (policy is not None and not isinstance(policy, ActionLogProb)):
            what = f"the class {policy.__name__}" if isinstance(policy, type) else type(policy).__name__
            raise TextEnvError(
                f"attach_policy got {what}; expected a policy with the method action_log_prob(actions), which the "
                "reward needs."
            )
        if policy is not None and self._settings.kl_estimator == "full" and not isinstance(policy, FullDistribution):
            raise TextEnvError(
                f"kl_estimator='full' needs {type(policy).__name__}.action_log_probs(), log pi of the whole "
                "vocabulary; add it or use kl_estimator='k1'."
            )
        self.policy = policy
        self._recorded = policy if isinstance(policy, acting.Recorded) else None  # once, since a step has little time

    def log_probs(
        self, episodes: EpisodeBatch, rows: IntArray, tokens: IntArray
    ) -> tuple[NDArray[np.float64], NDArray[Any] | None]:
        """Return log pi of the actions of some rows.

        Args:
            episodes: The episodes before the actions.
            rows: The rows that act, ``n`` of them.
            tokens: The actions of all rows, shape ``(num_envs,)``.

        Returns:
            log pi of the ``n`` actions in nats, shape ``(n,)``; and of the whole vocabulary, shape ``(n, V)``, which is
            None where nothing needs it, or where all actions are deterministic.

        Raises:
            TextEnvError: The attached policy has acted on other states or returns anything but log-probabilities; or a
                recognized policy draws in another way than the environment is set to.
        """
        full = self._settings.kl_estimator == "full"
        if self.policy is None:
            return self._recognized(episodes, rows, tokens[rows], full=full)
        name = type(self.policy).__name__
        if self._recorded is not None:
            act = self._recorded.acted
            if act is None or not act.read(rows, episodes.ids[rows], episodes.lengths[rows]):
                raise TextEnvError(
                    f"The attached policy, {name}, has not acted last on the environment's present state: its log pi "
                    "is that of another one. Expected its own actions; detach it, attach_policy(None), before others "
                    "act, and have it act on the observation that was returned last."
                )
            act.used = True
        returned = self.policy.action_log_prob(tokens)
        try:
            given = np.asarray(returned, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise TextEnvError(f"{name}.action_log_prob returned {short(returned)}; expected numbers.") from error
        if given.shape != (self._num_envs,):
            raise TextEnvError(f"{name}.action_log_prob returned shape {given.shape}; expected ({self._num_envs},).")
        found: NDArray[np.float64] = given[rows]
        if not math.isfinite(sum(found.tolist())):  # finite if all of them are
            raise TextEnvError(f"{name}.action_log_prob returned {found.tolist()}; expected finite numbers.")
        if not full:
            return found, None
        assert isinstance(self.policy, FullDistribution)
        distributions, expected = np.asarray(self.policy.action_log_probs()), (self._num_envs, self._vocab_size)
        if distributions.shape != expected:
            raise TextEnvError(f"{name}.action_log_probs returned shape {distributions.shape}; expected {expected}.")
        return found, distributions[rows]

    def _recognized(
        self, episodes: EpisodeBatch, rows: IntArray, tokens: IntArray, *, full: bool
    ) -> tuple[NDArray[np.float64], NDArray[Any] | None]:
        """Return log pi of actions that policies have chosen for the present states, and 0 of all others."""
        log_probs = np.zeros(len(rows))
        matches = acting.recognize(episodes.ids[rows], episodes.lengths[rows], tokens, self._key)
        for match in matches:
            if match.act.temperature != self._settings.temperature:
                raise TextEnvError(
                    f"The policy has temperature={match.act.temperature}, the environment "
                    f"{self._settings.temperature}: give both the same (of SB3's policies, "
                    "policy_kwargs={'temperature': ...})."
                )
            if self._settings.masks_actions and not match.act.masked:
                raise TextEnvError(
                    "The environment masks tokens (top_k, top_p) and the policy drew from all of them: give it "
                    "action_masks(), as sb3-contrib's MaskablePPO with "
                    "textenv.agents.sb3_contrib.MaskableCausalLMPolicy does, or leave top_k and top_p out."
                )
            log_probs[match.at] = match.act.log_probs[match.places]
        if not full or not matches:
            return log_probs, None
        # Where no policy is recognized, all probability is on the action.
        distributions = np.full((len(rows), self._vocab_size), -np.inf, dtype=np.float32)
        distributions[np.arange(len(rows)), tokens] = 0.0
        for match in matches:
            distributions[match.at] = match.log_probs(self._vocab_size)
        return log_probs, distributions
