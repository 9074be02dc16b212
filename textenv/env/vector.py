"""The Markov decision process of writing text, batched: the one implementation, ``TextEnv`` is its batch of one."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from textenv.data.values import as_prompt
from textenv.env import kl as kl_module
from textenv.env.handle import unwrap, with_handles
from textenv.env.prompts import PromptSource, movie_openings, read_prompts
from textenv.env.render import to_ansi
from textenv.env.scoring import resolve_reward, score
from textenv.env.settings import TextEnvSettings
from textenv.models import acting
from textenv.models.causal_lm import CausalLM, find_device, log_softmax
from textenv.types import (
    ActionLogProb,
    Conversation,
    Episode,
    FullDistribution,
    IntArray,
    Observation,
    Prompt,
    StopReason,
    TextEnvError,
)

__all__ = ["TextVectorEnv", "likeliest"]

RenderMode = Literal["ansi", "human"]
_INT8, _INT64 = np.int8, np.int64


class TextVectorEnv(VectorEnv[Observation, IntArray, NDArray[Any]]):
    """Writes one text a row, token by token, and is paid by a reward model less the KL from a reference model.

    ======================  =============================================================================
    Observation             ``Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))``: the
                            prompt and the tokens written so far, padded on the right
    Action                  ``Discrete(V)``: the next token; every id is legal
    Reward                  ``-kl_coef * KL_t``, and at the last token the score on top
    Termination             an end-of-sequence token, a stop string, or the token budget;
                            ``info["stop_reason"]`` is ``"eos"``, ``"stop"`` or ``"length"``
    Truncation              never by this environment
    ======================  =============================================================================

    ``V`` is the width of the model's logits, ``L`` is ``max_prompt_tokens + max_new_tokens``.

    The KL needs log pi of the action, which ``step`` does not see. Policies of ours are recognized: an action that one
    of them has just chosen for this very state, in this thread, is paid by the log pi that it was drawn with, in
    whatever form another library has carried the two. Any other policy is to be attached (``attach_policy``); without
    one its behaviour is taken as deterministic, log pi = 0, and the reward is ``score + kl_coef * log pi_ref``, a
    function of state and action alone; an agent with an entropy bonus of ``kl_coef`` then optimises the same objective.

    ``info`` holds, a step, ``kl``, ``logprob`` and ``ref_logprob`` of the token (with ``kl_mode="lump"`` not before
    the end), ``action_mask`` with ``top_k`` or ``top_p``, and after a reset ``prompt``, the text that the model reads.
    At the end of an episode come ``score``, ``stop_reason``, ``completion``, ``completion_ids``, ``token_kl`` and
    ``token_rewards``, the last being what each token earned also where ``kl_mode="lump"`` pays it all at the end.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "human"], "render_fps": 4}  # noqa: RUF012 (an instance has its own)

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        render_mode: RenderMode | None = None,
        **settings: Any,
    ) -> None:
        """Make the environment.

        Args:
            num_envs: Number of texts written side by side.
            autoreset_mode: What follows the end of an episode. In ``DISABLED`` a finished row ignores its actions, at
                hardly any cost, until ``reset(options={"reset_mask": ...})``.
            render_mode: ``"ansi"`` has ``render`` return coloured text, ``"human"`` prints every finished episode.
            **settings: Those of ``textenv.env.settings.TextEnvSettings``.

        Raises:
            TextEnvError: An argument is not what is expected.
        """
        if isinstance(num_envs, bool) or not isinstance(num_envs, (int, np.integer)) or num_envs < 1:
            raise TextEnvError(f"num_envs={num_envs!r}: expected a whole number of at least 1.")
        if render_mode not in (None, *get_args(RenderMode)):
            raise TextEnvError(f"render_mode={render_mode!r}: expected 'ansi', 'human' or None.")
        self.num_envs = int(num_envs)
        modes = [mode.value for mode in AutoresetMode]
        if autoreset_mode not in (*AutoresetMode, *modes):
            raise TextEnvError(f"autoreset_mode={autoreset_mode!r}: expected an AutoresetMode, or one of {modes}.")
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = render_mode
        self.settings = given = TextEnvSettings.of({name: unwrap(value) for name, value in settings.items()})
        self.has_action_masks = given.top_k is not None or given.top_p is not None
        """Whether ``top_k`` or ``top_p`` masks actions."""
        self._each_step = given.kl_mode == "dense" or given.kl_estimator == "full" or self.has_action_masks
        self.kl_controller = kl_module.AdaptiveKL(float(given.kl_coef), given.kl_target, given.kl_horizon)
        self.reference = _model(given)
        self.reward = resolve_reward(given.reward, device=str(self.reference.device))
        self.prompts = self._read(movie_openings("train") if given.prompts is None else given.prompts)
        longest = max(self.prompts, key=lambda prompt: len(prompt.ids))
        self.max_prompt_tokens = given.max_prompt_tokens or len(longest.ids)
        self._check_prompt(longest)
        self._width = self.max_prompt_tokens + given.max_new_tokens
        limit = self.reference.max_positions
        if limit is not None and self._width > limit:
            raise TextEnvError(
                f"max_prompt_tokens={self.max_prompt_tokens} and max_new_tokens={given.max_new_tokens} make "
                f"{self._width} tokens, but the model takes {limit}; lower one of them."
            )

        vocab = self.reference.vocab_size
        self._ends = np.zeros(vocab, dtype=bool)
        self._ends[list(self.reference.eos_ids)] = True
        self.single_observation_space = spaces.Dict(
            input_ids=spaces.Box(0, vocab - 1, (self._width,), _INT64),
            attention_mask=spaces.Box(0, 1, (self._width,), _INT8),
        )
        self.single_action_space = spaces.Discrete(vocab)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

        n, budget = self.num_envs, given.max_new_tokens
        self._generators: list[np.random.Generator | None] = [None] * n
        self._row_prompts: list[Prompt] = [self.prompts[0]] * n
        self._finished: NDArray[np.object_] = np.full(n, None, dtype=object)  # of each row, an Episode or None
        self._ids = np.full((n, self._width), self.reference.pad_id, dtype=_INT64)
        self._mask = np.zeros((n, self._width), dtype=_INT8)
        self._lengths = np.zeros(n, dtype=_INT64)
        self._starts = np.zeros(n, dtype=_INT64)  # where the completion begins
        self._done = np.ones(n, dtype=bool)
        self._begun = np.zeros(n, dtype=bool)
        self._active: IntArray | None = None  # rows that go on; None where that has to be looked at again
        self._coefs = np.zeros(n)  # kl_coef as it was when the row's episode began
        self._token_kl, self._log_probs, self._ref_log_probs = (np.zeros((n, budget)) for _ in range(3))
        self._policy: ActionLogProb | None = None
        self._key = object()  # by which the records of acts tell environments apart
        self._unpaid: list[_Ended] | None = None  # where they are paid later
        self._next_ref: NDArray[np.float32] | None = None  # the reference's log-probabilities at this state, (n, V)
        self._next_mask: NDArray[np.bool_] | None = None

    # -- what surrounds the process ------------------------------------------------------------------------------

    @property
    def spec(self) -> EnvSpec | None:
        """The spec it was made from, its live objects in handles."""
        return self._spec

    @spec.setter
    def spec(self, value: EnvSpec | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._spec = with_handles(value)

    _spec: EnvSpec | None = None

    @property
    def kl_coef(self) -> float:
        """Weight of the KL penalty in the episodes that begin now."""
        return self.kl_controller.coef

    def attach_policy(self, policy: ActionLogProb | None) -> None:
        """Tell the environment which policy acts in it, so that the reward can hold its KL from the reference.

        Args:
            policy: Its ``action_log_prob(actions)`` is asked in every ``step`` for log pi of the actions it has just
                chosen, in nats, shape ``(num_envs,)``; with ``kl_estimator="full"`` also ``action_log_probs()``. None
                goes back to recognizing policies of ours, and taking any other behaviour as deterministic.

        Until it is detached all actions are taken to be its own. One that says where it has ``acted``, as ours do, has
        to have acted last on the state that ``step`` finds the environment in.

        Raises:
            TextEnvError: The policy lacks the method.
        """
        if policy is not None and not isinstance(policy, ActionLogProb):
            raise TextEnvError(
                f"{type(policy).__name__} has no method action_log_prob(actions), which the reward needs."
            )
        if policy is not None and self.settings.kl_estimator == "full" and not isinstance(policy, FullDistribution):
            raise TextEnvError(
                f"kl_estimator='full' needs {type(policy).__name__}.action_log_probs(), log pi of the whole "
                "vocabulary; add it or use kl_estimator='k1'."
            )
        self._policy = policy

    @contextlib.contextmanager
    def attached(self, policy: ActionLogProb) -> Iterator[None]:
        """Attach a policy; on leaving, the one that was attached before is again.

        Raises:
            TextEnvError: As ``attach_policy``.
        """
        before = self._policy
        self.attach_policy(policy)
        try:
            yield
        finally:
            self._policy = before

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which tokens ``top_k``/``top_p`` leave, shape ``(num_envs, V)``; all of them without either."""
        if self._next_mask is None:
            return np.ones((self.num_envs, self.reference.vocab_size), dtype=bool)
        return self._next_mask.copy()

    def action_masks_at(self, obs: Observation) -> NDArray[np.bool_] | None:
        """Return which tokens ``top_k``/``top_p`` leave after some texts, shape ``(batch, V)``; None without either.

        They are those that ``step`` and ``reset`` have told where the texts are the environment's own, row by row.

        Args:
            obs: Observations, batched, not necessarily of this environment's present state.
        """
        if not self.has_action_masks:
            return None
        ids, mask = np.asarray(obs["input_ids"], dtype=_INT64), np.asarray(obs["attention_mask"])
        lengths = mask.sum(axis=1, dtype=_INT64)
        masks = np.zeros((len(ids), self.reference.vocab_size), dtype=bool)
        own = np.zeros(len(ids), dtype=bool)
        if self._next_mask is not None and ids.shape == self._ids.shape:
            own = (ids == self._ids).all(axis=1) & (lengths == self._lengths) & ~self._done
            masks[own] = self._next_mask[own]
        if len(rows := np.flatnonzero(~own)):
            logits = self.reference.next_token_logits(ids[rows], lengths[rows], rows=rows)
            log_probs = log_softmax(logits, self.settings.temperature)
            masks[rows] = likeliest(log_probs, self.settings.top_k, self.settings.top_p)
        return masks

    def use_generator(self, row: int, generator: np.random.Generator) -> None:
        """Draw the prompts of ``row`` from ``generator``."""
        self._generators[row] = generator

    def state_dict(self) -> dict[str, Any]:
        """Return what the next episodes depend on, as JSON values: generators, KL coefficient, the reward's state.

        It is taken between episodes: after ``load_state_dict`` comes a ``reset``.
        """
        state = getattr(self.reward, "state_dict", None)
        return {
            "generators": [None if g is None else g.bit_generator.state for g in self._generators],
            "kl_coef": self.kl_controller.coef,
            "reward": state() if callable(state) else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state that ``state_dict`` returned.

        Raises:
            TextEnvError: It comes from another number of rows.
        """
        if len(state["generators"]) != self.num_envs:
            raise TextEnvError(
                f"The state is of {len(state['generators'])} rows, this environment has {self.num_envs}."
            )
        for row, saved in enumerate(state["generators"]):
            if saved is not None:  # into the generator that is there: it may be the np_random of a TextEnv
                self._generator(row).bit_generator.state = saved
        self.kl_controller.coef = float(state["kl_coef"])
        if state["reward"] is not None:
            self.reward.load_state_dict(state["reward"])  # type: ignore[attr-defined]
        self._done[:], self._begun[:], self._active = True, False, None

    def render(self) -> tuple[str, ...] | None:
        """Return each row as coloured text (``"ansi"``) or print it (``"human"``): its episode so far, or just over."""
        if self.render_mode is None:
            return None
        frames = tuple(
            to_ansi(over or self._unfinished(row), finished=over is not None) for row, over in enumerate(self._finished)
        )
        if self.render_mode == "human":
            print("\n".join(frames))
            return None
        return frames

    @property
    def last_episodes(self) -> tuple[Episode | None, ...]:
        """Of each row, the episode that ended in the last ``step``, or after which it waits for a reset; else None."""
        return tuple(self._finished)

    @property
    def row_prompts(self) -> tuple[Prompt, ...]:
        """What each row's episode began with."""
        return tuple(self._row_prompts)

    def prompt_at(self, row: int, state: Sequence[int]) -> Prompt | None:
        """Return what a row began with, if it writes and has come to the token ids ``state``; else None."""
        if row >= self.num_envs or self._done[row] or self._lengths[row] != len(state):
            return None
        return self._row_prompts[row] if np.array_equal(self._ids[row, : len(state)], state) else None

    def has_prompt(self, ids: tuple[int, ...]) -> bool:
        """Tell whether one of the environment's prompts has these token ids."""
        return ids in self._prompts_by_ids

    def prompt_of(self, ids: tuple[int, ...]) -> Prompt:
        """Return the environment's prompt of some token ids, or a new one without columns if there is none.

        Raises:
            TextEnvError: Several prompts have these ids and other columns, so that it is not known which is meant.
        """
        found = self._prompts_by_ids.get(ids, [])
        if any(not _same(prompt, found[0]) for prompt in found[1:]):
            raise TextEnvError(
                f"{len(found)} prompts of the environment are {found[0].text!r}, with other columns for the reward: an "
                "observation does not tell which is meant. Act on the environment's own observations, row by row, or "
                "give sample() the prompts."
            )
        return found[0] if found else self.reference.prompt(ids)

    @functools.cached_property
    def _prompts_by_ids(self) -> dict[tuple[int, ...], list[Prompt]]:
        found: dict[tuple[int, ...], list[Prompt]] = {}
        for prompt in self.prompts:
            found.setdefault(prompt.ids, []).append(prompt)
        return found

    # -- the process ---------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin new episodes.

        Args:
            seed: Row ``i`` is seeded with ``seed + i``, or the ``i``-th of a list; what it then does depends on
                neither the other rows nor their number.
            options: ``reset_mask``, which rows begin anew, booleans ``(num_envs,)``; ``prompt``, a text or a
                list of messages for all rows, or one for each, in place of a drawn one; it may also be one of the
                environment's ``prompts``, columns included. ``prompt_index``, the same by place in the data set.

        Returns:
            Observations and infos, which hold each row's ``prompt``.

        Raises:
            TextEnvError: An option is not what is expected.
        """
        options = dict(options or {})
        chosen = options.pop("reset_mask", None)
        mask = np.ones(self.num_envs, dtype=bool) if chosen is None else np.asarray(chosen)
        if mask.dtype != bool or mask.shape != (self.num_envs,) or not mask.any():
            raise TextEnvError(f"reset_mask={chosen!r}: expected {self.num_envs} booleans, at least one of them True.")
        if not (mask | self._begun).all():
            raise TextEnvError("reset_mask leaves rows out that have never begun; reset all rows first.")
        seeds = self._seeds(seed)
        wanted = self._wanted_prompts(options)
        if options:
            raise TextEnvError(
                f"options={sorted(options)}: expected 'reset_mask', 'prompt' or 'prompt_index', not both of the last."
            )
        rows = np.flatnonzero(mask)
        for row in rows.tolist():
            if (value := seeds[row]) is not None:
                self._generators[row], _ = seeding.np_random(value)
        self._finished[rows] = None
        self._begin(rows, wanted)
        infos: dict[str, Any] = {}
        self._add_reset_infos(infos, rows)
        return self._observation(), infos

    def step(self, actions: IntArray) -> tuple[Observation, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Append a token to every row.

        Args:
            actions: Token ids, shape ``(num_envs,)``.

        Returns:
            Observations, rewards, terminations, truncations and infos, as Gymnasium describes them.

        Raises:
            TextEnvError: The actions are no token ids, or nothing was reset yet.
        """
        if self._active is None:
            if not self._begun.all():
                raise TextEnvError("step before reset: call reset() first.")
            self._active = np.flatnonzero(~self._done)
        active = self._active
        tokens = self._checked(actions, active)
        rewards = np.zeros(self.num_envs)
        infos: dict[str, Any] = {}
        ended = np.flatnonzero(self._done) if self.autoreset_mode is AutoresetMode.NEXT_STEP else active[:0]
        if self.autoreset_mode is not AutoresetMode.DISABLED:  # where rows that go on had a reset, which forgets
            self._finished[active] = None
        final: dict[int, dict[str, Any]] = {}
        if len(active):
            rewards[active], final = self._advance(active, tokens[active], tokens)
        terminations = self._done.copy()
        going = active[~self._done[active]] if final else active
        if self.settings.kl_mode == "dense" and len(going):
            self._add_token_infos(infos, going)
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            terminations[ended] = False
            self._finished[ended] = None
            if len(ended):
                self._begin(ended)
                self._add_reset_infos(infos, ended)
        if final and self.autoreset_mode is AutoresetMode.SAME_STEP:
            for row, info in final.items():
                last = {"input_ids": self._ids[row].copy(), "attention_mask": self._mask[row].copy()}
                infos = self._add_info(infos, {"final_obs": last, "final_info": info}, row)
            over = np.fromiter(final, dtype=_INT64)
            self._begin(over)
            self._add_reset_infos(infos, over)
        elif final:
            self._add_infos(infos, final)
        if self.has_action_masks and len(going):
            self._look_ahead(going)
            self._add_mask_infos(infos, going)
        if self.render_mode == "human":
            for row in final:
                print(to_ansi(self._finished[row]))
        return self._observation(), rewards, terminations, np.zeros(self.num_envs, dtype=bool), infos

    def _advance(
        self, rows: IntArray, tokens: IntArray, all_tokens: IntArray
    ) -> tuple[NDArray[np.float64], dict[int, dict[str, Any]]]:
        """Append ``tokens`` to ``rows``; return their rewards, and the infos of those whose episode ends."""
        lengths = self._lengths[rows]
        at = lengths - self._starts[rows]
        behaviour = self._behaviour(rows, all_tokens)
        self._log_probs[rows, at] = behaviour.log_probs
        if self._each_step:
            self._ref_log_probs[rows, at] = self._reference_log_prob(rows, tokens)
            self._token_kl[rows, at] = self._divergence(rows, at, behaviour.whole)
        self._ids[rows, lengths] = tokens
        self._mask[rows, lengths] = 1
        self._lengths[rows] = lengths + 1
        rewards = np.zeros(len(rows))
        if self.settings.kl_mode == "dense":
            rewards = -self._coefs[rows] * self._token_kl[rows, at]
        reasons = self._stop_reasons(rows, tokens, at + 1)
        if not reasons:
            return rewards, {}
        over = np.fromiter(reasons, dtype=_INT64, count=len(reasons))
        ended = _Ended(
            prompts=[self._row_prompts[row] for row in over.tolist()],
            reasons=list(reasons.values()),
            ids=self._ids[over],
            starts=self._starts[over],
            lengths=self._lengths[over],
            coefs=self._coefs[over],
            log_probs=self._log_probs[over],
            ref_log_probs=self._ref_log_probs[over] if self._each_step else None,
            kl=self._token_kl[over] if self._each_step else None,
        )
        self._active = None
        if self._unpaid is not None:
            self._unpaid.append(ended)
            self._done[over] = True
            return rewards, {}
        self._begun[over] = False  # a reward that raises leaves rows that are neither going on nor over
        paid = self._pay(ended)
        self._begun[over] = True
        place = np.searchsorted(rows, over)
        if self.settings.kl_mode == "lump":
            rewards[place] = -ended.coefs * paid.totals
        rewards[place] += paid.scores
        self._done[over] = True
        self.kl_controller.update(float(paid.totals.mean()), len(over))
        final: dict[int, dict[str, Any]] = {}
        for row, episode, log_prob, ref_log_prob in zip(
            over.tolist(), paid.episodes, *(array.tolist() for array in paid.last), strict=True
        ):
            self._finished[row] = episode
            final[row] = _final_info(episode, log_prob, ref_log_prob)
        return rewards, final

    @property
    def can_pay_later(self) -> bool:
        """Whether ``paying_later`` can be entered: nothing but ``settle`` needs to know what an episode was paid."""
        waits = self.autoreset_mode is AutoresetMode.DISABLED and self.render_mode is None
        return waits and not self._each_step

    @contextlib.contextmanager
    def paying_later(self) -> Iterator[Callable[[], list[Episode]]]:
        """Score episodes many at a time, for a caller who runs the whole process and needs no reward before.

        Inside, the rewards of ``step`` are 0, its infos say nothing of the end of an episode, and ``last_episodes`` has
        none. What the context gives, ``settle()``, returns the episodes that have ended since it was last called, in
        the order in which they did and in that of their rows, scored and read by the reference as many at a time as
        there are rows.

        Raises:
            TextEnvError: ``can_pay_later`` is False.
        """
        if not self.can_pay_later:
            raise TextEnvError(
                "Episodes are paid later only with kl_mode='lump', autoreset_mode=AutoresetMode.DISABLED, no "
                "render_mode, no kl_estimator='full' and neither top_k nor top_p."
            )
        self._unpaid = []
        try:
            yield self._settle
        finally:
            self._unpaid = None

    def _settle(self) -> list[Episode]:
        if not self._unpaid:
            return []
        parts, self._unpaid = self._unpaid, []
        ended = _Ended.joined(parts)
        ended = dataclasses.replace(ended, ref_log_probs=self._read_back(ended))
        places = np.arange(len(ended.lengths))
        paid = [self._pay(ended.pick(part)) for part in _split(places, self.num_envs)]
        totals = np.concatenate([part.totals for part in paid])
        for part in np.split(totals, np.cumsum([len(part.prompts) for part in parts])[:-1]):  # as they ended
            self.kl_controller.update(float(part.mean()), len(part))
        return [episode for part in paid for episode in part.episodes]

    def _pay(self, ended: _Ended) -> _Paid:
        """Score episodes, after the reference has read those that it has not."""
        ref_log_probs = self._read_back(ended) if ended.ref_log_probs is None else ended.ref_log_probs
        kl = ended.kl
        if kl is None:
            kl = kl_module.kl_estimate(ended.log_probs, ref_log_probs, self.settings.kl_estimator)
        sizes = ended.lengths - ended.starts
        kl = np.where(self._written(sizes), kl, 0.0)
        lines = zip(ended.ids, ended.starts.tolist(), ended.lengths.tolist(), strict=True)
        ids = [line[start:length].tolist() for line, start, length in lines]
        completions = [self.completion_text(*pair)[0] for pair in zip(ended.prompts, ids, strict=True)]
        scores = self.score_completions(ended.prompts, completions, ids, ended.reasons)
        last = np.arange(len(sizes)), sizes - 1
        rewards = -ended.coefs[:, None] * kl
        rewards[last] += scores
        columns = (ended.prompts, completions, ids, kl.tolist(), rewards.tolist(), scores.tolist(), ended.reasons)
        episodes = [self._episode(*row) for row in zip(*columns, strict=True)]
        return _Paid(episodes, scores, kl.sum(axis=1), (ended.log_probs[last], ref_log_probs[last]))

    def _begin(self, rows: IntArray, wanted: Mapping[int, Prompt] | None = None) -> None:
        self._ids[rows] = self.reference.pad_id
        for row in rows.tolist():
            if wanted and row in wanted:
                prompt = wanted[row]
            else:
                prompt = self.prompts[int(self._generator(row).integers(len(self.prompts)))]
            self._row_prompts[row] = prompt
            self._starts[row] = size = len(prompt.ids)
            self._ids[row, :size] = prompt.ids
        self._lengths[rows] = self._starts[rows]
        self._mask[rows] = np.arange(self._width) < self._starts[rows][:, None]
        self._coefs[rows] = self.kl_controller.coef
        self._done[rows], self._begun[rows], self._active = False, True, None
        self.reference.forget(rows)
        if self.has_action_masks:
            self._look_ahead(rows)

    def _behaviour(self, rows: IntArray, tokens: IntArray) -> _Behaviour:
        """Return log pi of the rows' actions: the attached policy's, or of the policies that are recognized, or 0."""
        full = self.settings.kl_estimator == "full"
        if self._policy is None:
            return self._recognized(rows, tokens[rows], full=full)
        name = type(self._policy).__name__
        if isinstance(self._policy, acting.Recorded):
            act = self._policy.acted
            if act is None or not act.read(rows, self._ids[rows], self._lengths[rows]):
                raise TextEnvError(
                    f"The attached policy, {name}, has not acted last on the environment's present state: its log pi "
                    "is that of another one. Expected its own actions; detach it, attach_policy(None), before others "
                    "act, and have it act on the observation that was returned last."
                )
            act.used = True
        given = np.asarray(self._policy.action_log_prob(tokens), dtype=np.float64)
        if given.shape != (self.num_envs,):
            raise TextEnvError(f"{name}.action_log_prob returned shape {given.shape}; expected ({self.num_envs},).")
        found: NDArray[np.float64] = given[rows]
        if not math.isfinite(sum(found.tolist())):  # which it is if they all are
            raise TextEnvError(f"{name}.action_log_prob returned {found.tolist()}; expected finite numbers.")
        if not full:
            return _Behaviour(found)
        assert isinstance(self._policy, FullDistribution)
        whole, expected = np.asarray(self._policy.action_log_probs()), (self.num_envs, self.reference.vocab_size)
        if whole.shape != expected:
            raise TextEnvError(f"{name}.action_log_probs returned shape {whole.shape}; expected {expected}.")
        return _Behaviour(found, whole[rows])

    def _recognized(self, rows: IntArray, tokens: IntArray, *, full: bool) -> _Behaviour:
        """Return log pi of actions that policies have chosen for the present states, and 0 of all others."""
        log_probs = np.zeros(len(rows))
        matches = acting.recognize(self._ids[rows], self._lengths[rows], tokens, self._key)
        for match in matches:
            if match.act.temperature != self.settings.temperature:
                raise TextEnvError(
                    f"The policy has temperature={match.act.temperature}, the environment {self.settings.temperature}: "
                    "give both the same (of SB3's policies, policy_kwargs={'temperature': ...})."
                )
            if self.has_action_masks and not match.act.masked:
                raise TextEnvError(
                    "The environment masks tokens (top_k, top_p) and the policy drew from all of them: give it "
                    "action_masks(), as sb3-contrib's MaskablePPO with "
                    "textenv.agents.sb3_contrib.MaskableCausalLMPolicy does, or leave top_k and top_p out."
                )
            log_probs[match.at] = match.act.log_probs[match.places]
        if not full or not matches:
            return _Behaviour(log_probs)
        # where nobody is recognized all mass is on the action
        whole = np.full((len(rows), self.reference.vocab_size), -np.inf, dtype=np.float32)
        whole[np.arange(len(rows)), tokens] = 0.0
        for match in matches:
            whole[match.at] = match.log_probs(self.reference.vocab_size)
        return _Behaviour(log_probs, whole)

    def _divergence(self, rows: IntArray, at: IntArray, whole: NDArray[Any] | None) -> NDArray[np.float64]:
        log_probs, ref = self._log_probs[rows, at], self._ref_log_probs[rows, at]
        if self.settings.kl_estimator != "full":
            return kl_module.kl_estimate(log_probs, ref, self.settings.kl_estimator)
        if whole is None:  # all mass on the action: the sum has one term
            return kl_module.kl_estimate(log_probs, ref, "k1")
        assert self._next_ref is not None
        return kl_module.full_kl(whole, self._next_ref[rows])

    def _reference_log_prob(self, rows: IntArray, tokens: IntArray) -> NDArray[np.float32]:
        """Return the reference's log-probability of each of the ``rows``'s tokens at their present state."""
        if self.has_action_masks or self.settings.kl_estimator == "full":
            if not self.has_action_masks:  # with masks, the last step or reset has looked already
                self._look_ahead(rows)
            assert self._next_ref is not None
            return self._next_ref[rows, tokens]
        return self.reference.next_token_log_prob(
            self._ids[rows], self._lengths[rows], tokens, self.settings.temperature, rows=rows
        )

    def _look_ahead(self, rows: IntArray) -> None:
        """Compute the reference's log-probabilities, and the action mask, at the present state of ``rows``."""
        logits = self.reference.next_token_logits(self._ids[rows], self._lengths[rows], rows=rows)
        log_probs = log_softmax(logits, self.settings.temperature)
        if self._next_ref is None:
            self._next_ref = np.zeros((self.num_envs, self.reference.vocab_size), dtype=np.float32)
        if self.has_action_masks:
            if self._next_mask is None:
                self._next_mask = np.ones(self._next_ref.shape, dtype=bool)
            allowed = likeliest(log_probs, self.settings.top_k, self.settings.top_p)
            self._next_mask[rows] = allowed
            # Within the mask the reference is renormalised, as a masked policy is. A token outside stays legal and
            # keeps its plain log-probability: finite, so that its reward is.
            mass = np.log(np.where(allowed, np.exp(log_probs), 0.0).sum(axis=1, keepdims=True))
            log_probs = np.where(allowed, log_probs - mass, log_probs)
        self._next_ref[rows] = log_probs

    def _read_back(self, ended: _Ended) -> NDArray[np.float64]:
        """Have the reference read whole episodes (lump KL), as many in a forward as there are rows.

        Returns:
            Log-probabilities of the tokens of their completions, shape ``(n, max_new_tokens)``; behind them log pi.
        """
        written = self._written(ended.lengths - ended.starts)
        result = ended.log_probs.copy()
        by_length = np.argsort(ended.lengths, kind="stable")[::-1]  # so that little of a forward is padding
        for part in _split(by_length, self.num_envs):
            lengths, starts = ended.lengths[part], ended.starts[part]
            width = int(lengths.max())
            log_probs = self.reference.token_log_probs(
                ended.ids[part, :width], lengths, self.settings.temperature, starts=starts
            )
            places = np.minimum(starts[:, None] - 1 + np.arange(written.shape[1]), width - 2)
            result[part] = np.where(written[part], np.take_along_axis(log_probs, places, axis=1), result[part])
        return result

    def _written(self, sizes: IntArray) -> NDArray[np.bool_]:
        """Return which places of completions of such ``sizes`` hold a token, shape ``(n, max_new_tokens)``."""
        written: NDArray[np.bool_] = np.arange(self.settings.max_new_tokens) < sizes[:, None]
        return written

    def score_completions(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        reasons: Sequence[StopReason],
    ) -> NDArray[np.float64]:
        """Return what finished completions are paid, shape ``(n,)``: the reward's scores, less ``missing_eos_penalty``.

        Args:
            prompts: ``n`` prompts.
            completions: Texts, as ``completion_text`` gives them.
            completion_ids: Their token ids.
            reasons: Why each ended.

        Raises:
            TextEnvError: The reward raises, or returns anything but ``n`` finite numbers.
        """
        names = sorted({name for prompt in prompts for name in prompt.columns})
        given = [prompt.for_reward(text) for prompt, text in zip(prompts, completions, strict=True)]
        scores = score(
            self.reward,
            prompts=[prompt for prompt, _ in given],
            completions=[completion for _, completion in given],
            completion_ids=completion_ids,
            columns={name: [prompt.columns.get(name) for prompt in prompts] for name in names},
        ).astype(np.float64)
        unfinished = np.array([reason == "length" for reason in reasons], dtype=bool)
        return np.asarray(scores - self.settings.missing_eos_penalty * unfinished)

    def completion_text(self, prompt: Prompt, ids: Sequence[int]) -> tuple[str, bool]:
        """Return what a completion's tokens add to its prompt, cut before the first stop string; and if there is one.

        Args:
            prompt: What the tokens follow.
            ids: Token ids of the completion.
        """
        text = self.reference.completion_text(prompt, ids)
        found = [place for place in (text.find(string) for string in self.settings.stop) if place >= 0]
        return text[: min(found, default=None)], bool(found)

    def _stop_reasons(self, rows: IntArray, tokens: IntArray, written: IntArray) -> dict[int, StopReason]:
        """Return why episodes ended with the last token, of those of the ``rows``, in their order, that did.

        Args:
            rows: Rows that went on.
            tokens: Their last tokens.
            written: How many tokens their completions have.
        """
        said_so = self._ends[tokens]
        over = said_so | (written == self.settings.max_new_tokens)
        stopped = np.zeros(len(rows), dtype=bool)
        if self.settings.stop:
            stopped[:] = [
                self.completion_text(self._row_prompts[row], self._completion_ids(row))[1] for row in rows.tolist()
            ]
            over |= stopped
        return {
            int(rows[place]): "eos" if said_so[place] else "stop" if stopped[place] else "length"
            for place in over.nonzero()[0].tolist()
        }

    def _completion_ids(self, row: int) -> list[int]:
        ids: list[int] = self._ids[row, self._starts[row] : self._lengths[row]].tolist()
        return ids

    def _unfinished(self, row: int) -> Episode:
        """Return the episode of a row so far."""
        ids, kl = self._completion_ids(row), np.zeros(self.settings.max_new_tokens)
        if self.settings.kl_mode == "dense":
            kl = self._token_kl[row]
        rewards = -self._coefs[row] * kl
        prompt = self._row_prompts[row]
        text = self.completion_text(prompt, ids)[0]
        return self._episode(prompt, text, ids, kl.tolist(), rewards.tolist(), 0.0, "length")

    def _episode(  # noqa: PLR0917
        self,
        prompt: Prompt,
        completion: str,
        ids: list[int],
        kl: list[float],
        rewards: list[float],
        value: float,
        reason: StopReason,
    ) -> Episode:
        """Return an episode; ``kl`` and ``rewards`` may go on behind its tokens."""
        size = len(ids)
        return Episode(
            prompt=prompt.text,
            completion=completion,
            prompt_ids=prompt.ids,
            completion_ids=tuple(ids),
            completion_tokens=self.reference.token_texts(ids, prompt),
            kl=tuple(kl[:size]),
            token_rewards=tuple(rewards[:size]),
            score=value,
            stop_reason=reason,
        )

    # -- infos ---------------------------------------------------------------------------------------------------

    def _add_infos(self, infos: dict[str, Any], found: Mapping[int, Mapping[str, Any]]) -> None:
        """Do for all rows at once what ``_add_info`` does for one; they have the same keys, with numbers or objects."""
        for name, first in next(iter(found.values()), {}).items():
            if name not in infos:
                number = isinstance(first, float)
                infos[name] = np.full(self.num_envs, 0.0 if number else None, dtype=np.float64 if number else object)
                infos[f"_{name}"] = np.zeros(self.num_envs, dtype=bool)
            for row, info in found.items():
                infos[name][row] = info[name]
            infos[f"_{name}"][list(found)] = True

    def _add_token_infos(self, infos: dict[str, Any], rows: IntArray) -> None:
        at = self._lengths[rows] - self._starts[rows] - 1
        present = np.zeros(self.num_envs, dtype=bool)
        present[rows] = True
        for name, values in (
            ("kl", self._token_kl), ("logprob", self._log_probs), ("ref_logprob", self._ref_log_probs)
        ):  # fmt: skip
            infos[name] = np.zeros(self.num_envs)
            infos[name][rows] = values[rows, at]
            infos[f"_{name}"] = present.copy()

    def _add_reset_infos(self, infos: dict[str, Any], rows: IntArray) -> None:
        self._add_infos(infos, {row: {"prompt": self._row_prompts[row].text} for row in rows.tolist()})
        if self.has_action_masks:
            self._add_mask_infos(infos, rows)

    def _add_mask_infos(self, infos: dict[str, Any], rows: IntArray) -> None:
        assert self._next_mask is not None
        if "action_mask" not in infos:
            infos["action_mask"] = np.zeros(self._next_mask.shape, dtype=_INT8)
            infos["_action_mask"] = np.zeros(self.num_envs, dtype=bool)
        infos["action_mask"][rows] = self._next_mask[rows]
        infos["_action_mask"][rows] = True

    def _observation(self) -> Observation:
        return {"input_ids": self._ids.copy(), "attention_mask": self._mask.copy()}

    # -- arguments -----------------------------------------------------------------------------------------------

    def _generator(self, row: int) -> np.random.Generator:
        generator = self._generators[row]
        if generator is None:  # never seeded: fresh entropy, through the generator that Gymnasium gives every env
            generator, _ = seeding.np_random(int(self.np_random.integers(2**63 - 1)))
            self._generators[row] = generator
        return generator

    def _checked(self, actions: Any, active: IntArray) -> IntArray:
        """Return the actions as token ids; those of rows that are not ``active`` may be anything."""
        tokens = np.asarray(actions)
        if tokens.shape != (self.num_envs,) or tokens.dtype.kind not in "iu":
            raise TextEnvError(
                f"actions of shape {tokens.shape} and type {tokens.dtype}: expected integers, a token id for each of "
                f"{self.num_envs} rows."
            )
        last = self.reference.vocab_size - 1
        if not 0 <= min(given := tokens.tolist()) <= max(given) <= last:
            live = tokens[active]
            if ((live < 0) | (live > last)).any():
                raise TextEnvError(f"actions={given}: expected token ids from 0 to {last}.")
        return tokens.astype(_INT64)

    def _seeds(self, seed: Any) -> list[int | None]:
        """Return a seed for each row, None for a row that keeps its generator."""
        if seed is None:
            return [None] * self.num_envs
        values = [seed + row for row in range(self.num_envs)] if isinstance(seed, (int, np.integer)) else seed
        seeds = list(values) if isinstance(values, Iterable) else []
        known = all(value is None or (isinstance(value, (int, np.integer)) and value >= 0) for value in seeds)
        if len(seeds) != self.num_envs or not known:
            raise TextEnvError(f"seed={seed!r}: expected one number of at least 0, or {self.num_envs} of them.")
        return [None if value is None else int(value) for value in seeds]

    def _read(self, source: PromptSource) -> list[Prompt]:
        given, columns = read_prompts(source)
        rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
        return self._encoded(given, rows or [{}] * len(given))

    def _encoded(self, given: Sequence[str | Conversation], rows: Sequence[Mapping[str, Any]]) -> list[Prompt]:
        """Return prompts of texts and conversations, ``rows`` being their other columns."""
        plain = [prompt for prompt in given if isinstance(prompt, str) and not self.settings.chat]
        encoded = iter(self.reference.encode_many(plain))  # in one call of the tokenizer
        prompts = []
        for prompt, row in zip(given, rows, strict=True):
            if isinstance(prompt, str) and not self.settings.chat:
                prompts.append(Prompt(prompt, next(encoded), row))
                continue
            messages: Conversation = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
            text, ids = self.reference.encode_conversation(messages)
            prompts.append(Prompt(text, ids, row, given=prompt))
        return prompts

    def _check_prompt(self, prompt: Prompt) -> None:
        if not prompt.ids or not 0 <= min(prompt.ids) <= max(prompt.ids) < self.reference.vocab_size:
            raise TextEnvError(
                f"{prompt}: expected token ids from 0 to {self.reference.vocab_size - 1}, at least one. It was "
                "made for another model; give its text."
            )
        if len(prompt.ids) > self.max_prompt_tokens:
            raise TextEnvError(
                f"The prompt {prompt.text[:80]!r} takes {len(prompt.ids)} tokens, max_prompt_tokens is "
                f"{self.max_prompt_tokens}; raise it, or leave the prompt out."
            )

    def _wanted_prompts(self, options: dict[str, Any]) -> dict[int, Prompt]:
        if "prompt" in options:
            prompts = self._given_prompts(options.pop("prompt"))
        elif "prompt_index" in options:
            indices = self._one_each(options.pop("prompt_index"), (int, np.integer), "prompt_index", "a number")
            if not all(0 <= index < len(self.prompts) for index in indices):
                raise TextEnvError(f"prompt_index={indices}: expected numbers from 0 to {len(self.prompts) - 1}.")
            prompts = [self.prompts[index] for index in indices]
        else:
            return {}
        for prompt in prompts:
            self._check_prompt(prompt)
        return dict(enumerate(prompts))

    def _given_prompts(self, value: Any) -> list[Prompt]:
        """Return the prompts of ``options["prompt"]``, one a row."""
        if isinstance(value, Sequence) and value and isinstance(value[0], Mapping):  # messages: one conversation
            value = [value] * self.num_envs
        values = self._one_each(value, (str, Sequence, Prompt), "prompt", "a text or a list of messages")
        return [item if isinstance(item, Prompt) else self._encoded([as_prompt(item)], [{}])[0] for item in values]

    def _one_each(self, value: Any, kind: Any, name: str, what: str) -> list[Any]:
        values = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value] * self.num_envs
        if len(values) != self.num_envs or not all(isinstance(item, kind) for item in values):
            raise TextEnvError(f"options[{name!r}]={value!r}: expected {what}, or {self.num_envs} of them.")
        return values


@dataclass(frozen=True, slots=True)
class _Ended:
    """Episodes that are over and not paid, ``n`` of them, each array by row.

    Attributes:
        prompts: Their prompts.
        reasons: Why they ended.
        ids: Prompts and completions, shape ``(n, width)``.
        starts: Where the completions begin.
        lengths: Number of tokens.
        coefs: Weight of their KL.
        log_probs: log pi of the tokens of the completions, shape ``(n, max_new_tokens)``.
        ref_log_probs: The same of the reference; None if it has not read them.
        kl: KL of each token, likewise.
    """

    prompts: list[Prompt]
    reasons: list[StopReason]
    ids: IntArray
    starts: IntArray
    lengths: IntArray
    coefs: NDArray[np.float64]
    log_probs: NDArray[np.float64]
    ref_log_probs: NDArray[np.float64] | None = None
    kl: NDArray[np.float64] | None = None

    def pick(self, places: IntArray) -> _Ended:
        """Return some that the reference has read."""
        assert self.ref_log_probs is not None
        return _Ended(
            prompts=[self.prompts[place] for place in places.tolist()],
            reasons=[self.reasons[place] for place in places.tolist()],
            ids=self.ids[places],
            starts=self.starts[places],
            lengths=self.lengths[places],
            coefs=self.coefs[places],
            log_probs=self.log_probs[places],
            ref_log_probs=self.ref_log_probs[places],
        )

    @staticmethod
    def joined(parts: Sequence[_Ended]) -> _Ended:
        """Return several that the reference has not read as one."""
        return _Ended(
            prompts=[prompt for part in parts for prompt in part.prompts],
            reasons=[reason for part in parts for reason in part.reasons],
            ids=np.concatenate([part.ids for part in parts]),
            starts=np.concatenate([part.starts for part in parts]),
            lengths=np.concatenate([part.lengths for part in parts]),
            coefs=np.concatenate([part.coefs for part in parts]),
            log_probs=np.concatenate([part.log_probs for part in parts]),
        )


class _Behaviour(NamedTuple):
    """log pi of ``n`` actions.

    Attributes:
        log_probs: In nats, shape ``(n,)``.
        whole: Of the whole vocabulary, shape ``(n, V)``; None where nothing needs it, or all actions are deterministic.
    """

    log_probs: NDArray[np.float64]
    whole: NDArray[Any] | None = None


class _Paid(NamedTuple):
    """What episodes were paid.

    Attributes:
        episodes: The episodes.
        scores: Their scores, shape ``(n,)``.
        totals: Their KL, shape ``(n,)``.
        last: log pi of their last tokens, and the reference's, each of shape ``(n,)``.
    """

    episodes: list[Episode]
    scores: NDArray[np.float64]
    totals: NDArray[np.float64]
    last: tuple[NDArray[np.float64], NDArray[np.float64]]


def _same(one: Prompt, other: Prompt) -> bool:
    try:
        return bool(one.columns == other.columns and one.given == other.given)
    except ValueError:  # of columns that hold arrays, which do not compare as one
        return False


def _split(places: IntArray, size: int) -> list[IntArray]:
    return np.split(places, range(size, len(places), size))


def _final_info(episode: Episode, log_prob: float, ref_log_prob: float) -> dict[str, Any]:
    return {
        "kl": episode.kl[-1],
        "logprob": log_prob,
        "ref_logprob": ref_log_prob,
        "score": episode.score,
        "stop_reason": episode.stop_reason,
        "prompt": episode.prompt,
        "completion": episode.completion,
        "completion_ids": episode.completion_ids,
        "token_kl": episode.kl,
        "token_rewards": episode.token_rewards,
    }


def _model(settings: TextEnvSettings) -> CausalLM:
    """Load the reference, or return the one that was given, if it is where and of the type that it should be."""
    lm = settings.model
    if not isinstance(lm, CausalLM):
        lm = CausalLM.from_pretrained(lm, device=settings.device or "cpu", dtype=settings.torch_dtype or "float32")
        lm.model.requires_grad_(False)
        return lm
    if settings.device is not None:
        wanted = find_device(settings.device)
        if wanted.type != lm.device.type or wanted.index not in (None, lm.device.index or 0):
            raise TextEnvError(
                f"device={settings.device!r}, but the model that was given is on {str(lm.device)!r}; leave device out, "
                "or load the model there: CausalLM.from_pretrained(..., device=...)."
            )
    if settings.torch_dtype not in (None, "auto", str(lm.model.dtype).removeprefix("torch.")):
        raise TextEnvError(
            f"torch_dtype={settings.torch_dtype!r}, but the model that was given is of {lm.model.dtype}; leave it out, "
            "or load the model so: CausalLM.from_pretrained(..., dtype=...)."
        )
    return lm


def likeliest(log_probs: NDArray[np.float32], top_k: int | None, top_p: float | None) -> NDArray[np.bool_]:
    """Return the ``top_k`` likeliest tokens and, of them, the fewest that hold ``top_p`` of the probability."""
    order = np.argsort(-log_probs, axis=1, kind="stable")
    ranked = np.ones(log_probs.shape, dtype=bool)
    if top_k is not None:
        ranked[:, top_k:] = False
    if top_p is not None:
        probabilities = np.exp(np.take_along_axis(log_probs, order, axis=1).astype(np.float64))
        ranked &= np.cumsum(probabilities, axis=1) - probabilities < top_p
    allowed = np.zeros_like(ranked)
    np.put_along_axis(allowed, order, ranked, axis=1)
    return allowed
