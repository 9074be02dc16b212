"""The optimum of a text environment whose texts can all be enumerated, and the exact figures of any policy in it.

A policy is worth ``J(pi) = E[score] - beta * KL(pi || pi_ref)``, beta being ``kl_coef``. The best there is follows from
a soft-value recursion, backwards from the ends of all texts, and is known without sampling; so is how far any other
policy falls short of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from scipy import special

from textenv.analysis.enumeration import LogProbs, States, enumerate_states, first_prompts
from textenv.env.vector import TextVectorEnv
from textenv.models.causal_lm import CausalLM
from textenv.models.policy import TextPolicy
from textenv.rollouts.collect import text_env
from textenv.types import IntArray, Observation, Prompt, TextEnvError, short

__all__ = ["LogProbs", "Outcome", "Policy", "States", "Table", "Tree", "model_log_probs"]

Table: TypeAlias = Sequence[Sequence[NDArray[Any]]]
"""``log pi(.|s)`` in nats of all states: for each prompt, for each length of a text, ``(states, V)``."""
Policy: TypeAlias = TextPolicy | CausalLM | LogProbs | Table

logsumexp = cast("Callable[..., NDArray[np.float64]]", special.logsumexp)  # its own annotations tell less

_MOST = 2**22  # states times tokens; some of the arrays are of so many float64
_AT_ONCE = 4096  # states that a model reads in one forward


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy comes to, the mean over the prompts.

    Attributes:
        score: Expected score.
        kl: Its KL divergence from the reference, of whole texts, in nats.
        value: ``J = score - kl_coef * kl``, the expected return.
    """

    score: float
    kl: float
    value: float


@dataclass(frozen=True, eq=False)
class Tree:
    """All texts of a text environment.

    Attributes:
        prompts: What episodes begin with.
        weights: Probability of each prompt.
        states: For each prompt, for each length of a text, its states.
        kl_coef: Weight of the KL penalty, beta. ``dataclasses.replace(tree, kl_coef=...)`` gives it another.
        temperature: Divides the logits of models.
        pad_id: Token id that fills up observations.
        width: Length of an observation.
    """

    prompts: tuple[Prompt, ...]
    weights: tuple[float, ...]
    states: tuple[tuple[States, ...], ...]
    kl_coef: float
    temperature: float
    pad_id: int
    width: int

    @classmethod
    def of(cls, env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> Tree:
        """Enumerate the texts of an environment, and score each.

        The KL in its figures is the divergence itself, which ``kl_estimator`` ``"k1"``, ``"k3"`` and ``"full"``
        estimate without bias; so ``kl_mode`` does not matter, nor does which of them it is.

        Args:
            env: A text environment, single or vectorized, whose reward depends on the text alone. A world in it says
                what it may answer (``textenv.types.EnumerableWorld``); the figures are of the whole return, whatever
                ``turn_discount`` says, and ``score`` holds what the world pays. Shaping by a ``potential``, which moves
                no optimum, is left out.

        Raises:
            TextEnvError: There are too many texts, or a setting makes rewards depend on more than the text.
        """
        base = text_env(env)
        _check_settings(base)
        reference = model_log_probs(base.reference, base.settings.temperature)
        weights, prompts = zip(*first_prompts(base), strict=True)
        return cls(
            prompts=prompts,
            weights=weights,
            states=tuple(enumerate_states(base, prompt, reference) for prompt in prompts),
            kl_coef=base.kl_coef,
            temperature=base.settings.temperature,
            pad_id=base.reference.pad_id,
            width=base.width,
        )

    @property
    def size(self) -> int:
        """Number of finished texts, of all prompts."""
        return sum(int(at.ended.sum()) for levels in self.states for at in levels)

    def __post_init__(self) -> None:
        """Check what ``dataclasses.replace`` may be given.

        Raises:
            TextEnvError: ``kl_coef`` is no finite number of at least 0.
        """
        given: Any = self.kl_coef
        if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 <= given < math.inf:
            raise TextEnvError(f"kl_coef={short(given)}: expected a finite number of at least 0.")

    @cached_property
    def _solution(self) -> tuple[Table, Table]:
        """The optimal values, ``(states,)`` each, and the optimal policy."""
        solved = [_solve(levels, self.kl_coef) for levels in self.states]
        return [values for values, _ in solved], [policy for _, policy in solved]

    @property
    def optimal_values(self) -> Table:
        """``V*(s)`` of all states: for each prompt, for each length of a text, ``(states,)``.

        ``V*(s) = beta * log sum_a pi_ref(a|s) * exp((r + V*(s')) / beta)``, the score being r at the last token and 0
        before it (Levine 2018, section 2.2, with pi_ref as prior; Korbak et al. 2022). For beta = 0 it is the largest
        score within reach.
        """
        return self._solution[0]

    @property
    def optimal_policy(self) -> Table:
        """``pi*(a|s) = pi_ref(a|s) * exp((r + V*(s') - V*(s)) / beta)``.

        For beta = 0 it is what that comes to as beta vanishes: of the policies with the best score, the one that is
        closest to the reference.
        """
        return self._solution[1]

    @cached_property
    def optimum(self) -> Outcome:
        """What the optimal policy comes to; its ``value`` is J*, the mean of ``V*`` over the prompts."""
        return self.evaluate(self.optimal_policy)

    @cached_property
    def reference(self) -> Outcome:
        """What the reference comes to."""
        return self.evaluate([[at.ref_log_probs for at in levels] for levels in self.states])

    def evaluate(self, policy: Policy) -> Outcome:
        """Return what a policy comes to, without sampling.

        Args:
            policy: A ``TextPolicy``, by its own temperature; a ``CausalLM``, by that of the environment; a function of
                token ids; or a table.

        Raises:
            TextEnvError: It gives something that is not ``log pi`` of all tokens.
        """
        figures = [_evaluate(levels, table) for levels, table in zip(self.states, self.tabulate(policy), strict=True)]
        score, kl = np.average(figures, axis=0, weights=self.weights).tolist()
        return self._outcome(score, kl)

    def tabulate(self, policy: Policy) -> Table:
        """Return ``log pi`` of all states in float64.

        Args:
            policy: As in ``evaluate``.

        Raises:
            TextEnvError: As there.
        """
        if isinstance(policy, TextPolicy):
            policy = model_log_probs(policy.lm, policy.temperature)
        elif isinstance(policy, CausalLM):
            policy = model_log_probs(policy, self.temperature)
        if callable(policy):
            return [[_checked(policy(at.ids.copy()), at) for at in levels] for levels in self.states]
        expected = [len(levels) for levels in self.states]
        given: Any = policy
        table = isinstance(given, Sequence) and all(isinstance(part, Sequence) for part in given)
        if not table or isinstance(given, str) or [len(part) for part in given] != expected:
            what = f"a table that has {[len(part) for part in given]} arrays" if table else short(given)
            raise TextEnvError(
                f"The policy is {what}; expected {expected} arrays in a table, for each prompt one for each length of "
                "a text; or a TextPolicy, a CausalLM, or a function of token ids."
            )
        return [
            [_checked(values, at) for values, at in zip(table, levels, strict=True)]
            for table, levels in zip(policy, self.states, strict=True)
        ]

    def regret(self, policy: Policy) -> float:
        """Return ``(J* - J(pi)) / (J* - J(pi_ref))``: 0 is the optimum, 1 the reference; more is worse than that.

        Args:
            policy: As in ``evaluate``.

        Raises:
            TextEnvError: As there; or the reference is optimal, so that nothing can be gained.
        """
        return self.regret_of(self.evaluate(policy))

    def regret_of(self, outcome: Outcome) -> float:
        """Return the regret of what ``evaluate`` or ``best_of_n`` returned; see ``regret``."""
        gain = self.optimum.value - self.reference.value
        if gain <= 1e-12 * max(1.0, abs(self.optimum.value)):
            raise TextEnvError(
                f"The reference comes to {self.reference.value:.6g}, and no policy to more, so there is no regret to "
                "speak of; give a reward that tells its texts apart."
            )
        return (self.optimum.value - outcome.value) / gain

    def best_of_n(self, n: float) -> Outcome:
        """Return what best-of-n from the reference comes to: of n samples, the one with the best score.

        Of samples with equal scores one is kept at random, so that texts of the same score stay as likely, relative to
        each other, as they were; the divergence is then that of the scores. It is below ``best_of_n_kl(n)`` where texts
        or scores repeat (Beirami et al. 2024, theorem 1).

        Args:
            n: Number of samples, at least 1.

        Raises:
            TextEnvError: ``n`` is less than 1.
        """
        given: Any = n
        if isinstance(given, bool) or not isinstance(given, (int, float, np.number)) or not 1 <= given < math.inf:
            raise TextEnvError(f"n={short(given)}: expected a finite number of at least 1.")
        if any((at.chances < 1).any() for levels in self.states for at in levels):
            raise TextEnvError("Best-of-n of episodes in which a world answers is not known; leave the world out.")
        figures = [_best_of_n(*_texts(levels), n) for levels in self.states]
        score, kl = np.average(figures, axis=0, weights=self.weights).tolist()
        return self._outcome(score, kl)

    def observations(self, ids: IntArray) -> Observation:
        """Return states as the environment's observations, for policies that read these.

        Args:
            ids: Token ids, shape ``(n, length)``, as a policy that is a function gets them.

        Raises:
            TextEnvError: They are no token ids.
        """
        given = np.asarray(ids)
        if given.ndim != 2 or given.dtype.kind not in "iu" or given.shape[1] > self.width:
            raise TextEnvError(f"ids={short(ids)}: expected token ids of shape (n, length), at most {self.width} long.")
        count, length = given.shape
        padded = np.full((count, self.width), self.pad_id, dtype=np.int64)
        padded[:, :length] = given
        mask = np.zeros((count, self.width), dtype=np.int8)
        mask[:, :length] = 1
        return {"input_ids": padded, "attention_mask": mask}

    def _outcome(self, score: float, kl: float) -> Outcome:
        return Outcome(score, kl, score - self.kl_coef * kl if self.kl_coef else score)  # the KL may be infinite


def model_log_probs(lm: CausalLM, temperature: float = 1.0) -> LogProbs:
    """Return a language model's policy as a function of token ids.

    Args:
        lm: The model.
        temperature: Divides its logits.
    """

    @torch.no_grad()
    def log_probs(ids: IntArray) -> NDArray[Any]:
        found = []
        size = max(1, min(_AT_ONCE, _MOST // lm.vocab_size))
        for begin in range(0, len(ids), size):
            part = torch.from_numpy(ids[begin : begin + size]).to(lm.device)
            lengths = torch.full((len(part),), part.shape[1], device=lm.device)
            last = lengths.cumsum(dim=0) - 1
            logits = lm.head(lm.hidden_states(part, lengths, last)).double() / temperature
            found.append(torch.log_softmax(logits, dim=-1).cpu().numpy())
        return np.concatenate(found)

    return log_probs


def _check_settings(base: TextVectorEnv) -> None:
    settings = base.settings
    for name in ("kl_target", "top_k", "top_p"):
        if getattr(settings, name) is not None:
            raise TextEnvError(f"{name}={getattr(settings, name)}: no optimum is known with it; leave it out.")
    if settings.kl_estimator == "k2":
        raise TextEnvError("kl_estimator='k2' does not pay the KL in expectation; use 'k1', 'k3' or 'full'.")
    if base.scorer.keeps_state:
        raise TextEnvError(
            f"The reward {base.reward!r} has a state, so that the score of a text depends on those before it; give one "
            "that depends on the text alone."
        )
    vocab = base.reference.vocab_size
    going = vocab - len(base.reference.eos_ids)
    budget = settings.max_new_tokens * (1 if base.worlds is None else settings.max_turns)
    pairs = len(first_prompts(base)) * vocab * sum(going**written for written in range(budget))
    if pairs > _MOST:
        raise TextEnvError(
            f"{len(first_prompts(base))} prompts, {vocab} tokens and at most {budget} of them make {pairs:.2g} "
            f"beginnings of texts, too many to enumerate; expected at most {_MOST:,}. "
            "Lower one of them, as textenv/Exact-v0 does."
        )


def _solve(levels: Sequence[States], kl_coef: float) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Return the optimal values and policy, for each length of a text."""
    gains = [at.scores.copy() for at in levels]
    masses = [np.zeros(at.scores.shape) for at in levels]  # for beta = 0, log pi_ref of the best texts
    values: list[NDArray[np.float64]] = []
    policy: list[NDArray[np.float64]] = []
    for at, gain, mass in reversed(list(zip(levels, gains, masses, strict=True))):
        if kl_coef:
            weights = at.ref_log_probs + gain / kl_coef
            total = logsumexp(weights, axis=1)
            value = kl_coef * total
        else:
            value = gain.max(axis=1)
            weights = np.where(gain == value[:, None], at.ref_log_probs + mass, -np.inf)
            total = logsumexp(weights, axis=1)
            _carry_back(masses, at, total)
        _carry_back(gains, at, value)
        values.append(value)
        policy.append(weights - total[:, None])
    return values[::-1], policy[::-1]


def _carry_back(columns: Sequence[NDArray[np.float64]], at: States, values: NDArray[np.float64]) -> None:
    """Add the values of states, times their chances, to what their parents' tokens lead to."""
    for number in np.unique(at.parents[:, 0]).tolist():
        if number >= 0:
            mine = at.parents[:, 0] == number
            np.add.at(columns[number].reshape(-1), at.parents[mine, 1], at.chances[mine] * values[mine])


def _carry_on(columns: Sequence[NDArray[np.float64]], at: States, first: float) -> NDArray[np.float64]:
    """Return, for each state, the value of the parent's token that it follows from, or ``first`` for a first state."""
    found = np.full(len(at.ids), first)
    for number in np.unique(at.parents[:, 0]).tolist():
        if number >= 0:
            mine = at.parents[:, 0] == number
            found[mine] = columns[number].reshape(-1)[at.parents[mine, 1]]
    return found


def _evaluate(levels: Sequence[States], table: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Return the expected score and the KL of a policy, forward through all states."""
    chances: list[NDArray[np.float64]] = []
    score = kl = 0.0
    for at, log_probs in zip(levels, table, strict=True):
        reached = _carry_on(chances, at, 1.0) * at.chances
        chances.append(reached[:, None] * np.exp(log_probs))
        possible = np.isfinite(log_probs)
        score += float((chances[-1] * at.scores).sum())
        differences = np.where(possible, log_probs, 0.0) - np.where(possible, at.ref_log_probs, 0.0)
        kl += float((chances[-1] * differences).sum())
    return score, kl


def _texts(levels: Sequence[States]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return log pi_ref and the score of every finished text."""
    joints: list[NDArray[np.float64]] = []
    for at in levels:
        joints.append(_carry_on(joints, at, 0.0)[:, None] + at.ref_log_probs)
    ended = [at.ended for at in levels]
    log_probs = [joint[over] for joint, over in zip(joints, ended, strict=True)]
    return np.concatenate(log_probs), np.concatenate([at.scores[over] for at, over in zip(levels, ended, strict=True)])


def _best_of_n(log_probs: NDArray[np.float64], scores: NDArray[np.float64], n: float) -> tuple[float, float]:
    """Return the expected score and the KL of best-of-n from texts of these probabilities."""
    levels, group = np.unique(scores, return_inverse=True)
    chances = np.bincount(group, np.exp(log_probs))
    below = np.cumsum(chances)  # as good or worse
    # P(best of n is this good) = F^n - (F - p)^n, without subtracting numbers that are almost equal
    with np.errstate(divide="ignore"):
        share = np.log1p(-chances / below)  # -inf for the worst
    best = (below / below[-1]) ** n * -np.expm1(n * share)
    drawn = best > 0
    kl = float((best[drawn] * np.log(best[drawn] / chances[drawn])).sum())
    return float(best @ levels), kl


def _checked(values: Any, at: States) -> NDArray[np.float64]:
    """Return what a policy says of states, checked."""
    try:
        log_probs = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TextEnvError(f"The policy returned {short(values)}; expected log pi of every token.") from error
    if log_probs.shape != at.ref_log_probs.shape:
        raise TextEnvError(
            f"The policy returned shape {log_probs.shape} for token ids of shape {at.ids.shape}; expected log pi of "
            f"every token, {at.ref_log_probs.shape}."
        )
    total = logsumexp(log_probs, axis=1)
    if not (np.abs(total) <= 1e-3).all():  # a NaN is refused too
        worst = int(np.argmax(np.where(np.isnan(total), np.inf, np.abs(total))))
        raise TextEnvError(
            f"The policy's log-probabilities after the tokens {at.ids[worst].tolist()} are "
            f"{log_probs[worst].tolist()}, the log of their sum {total[worst]:.3g}; expected 0. If these are logits, "
            "take log_softmax of them."
        )
    return np.asarray(log_probs - total[:, None])  # so that sums over texts are not off by what float32 rounds
