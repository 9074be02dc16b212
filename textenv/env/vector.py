"""The Markov decision process of writing text, batched: the one implementation, ``TextEnv`` is its batch of one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from textenv.env import infos as step_infos
from textenv.env.arguments import (
    RenderMode,
    as_autoreset_mode,
    as_options,
    as_render_mode,
    as_row_count,
    as_seeds,
    as_token_ids,
)
from textenv.env.endings import Endings
from textenv.env.episodes import Written
from textenv.env.fixed_infos import FixedInfos
from textenv.env.handle import unwrap, with_handles
from textenv.env.kl import AdaptiveKL
from textenv.env.picture import to_picture
from textenv.env.potential import make_potential
from textenv.env.process import TextProcess
from textenv.env.reference import load_reference
from textenv.env.render import color_is_shown, to_ansi
from textenv.env.scoring import Scorer, unscored
from textenv.env.settings import TextEnvSettings
from textenv.env.starts import make_starts, room
from textenv.env.world_rows import make_worlds
from textenv.types import ActionLogProb, Episode, IntArray, Observation, Prompt, Reward, TextEnvError, short

__all__ = ["RenderMode", "TextVectorEnv"]


class TextVectorEnv(VectorEnv[Observation, IntArray, NDArray[Any]]):
    """Writes one text a row, token by token, and is paid by a reward model less the KL from a reference model.

    ======================  =============================================================================
    Observation             ``Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))``: the
                            prompt and the tokens written so far, padded on the right
    Action                  ``Discrete(V)``: the next token; every id is legal
    Reward                  ``-kl_coef * KL_t``, and at the last token the score on top
    Termination             an end-of-sequence token, a stop string, or the token budget;
                            ``info["stop_reason"]`` is ``"eos"``, ``"stop"`` or ``"length"``
    Truncation              where a world says so
    ======================  =============================================================================

    ``V`` is the width of the model's logits, ``L`` is ``max_prompt_tokens + max_new_tokens``.

    With a ``world``, that which ends an episode above ends a turn. The world answers it in the same step: what it pays
    is added to the reward of the turn's last token, and its answer to the observation, where the agent's next turn
    begins. The episode terminates where the world says so (``stop_reason`` ``"world"``), after ``max_turns`` turns
    (``"turns"``), or when the room for tokens is spent (``"context"``); ``L`` is ``max_tokens``. KL, log-probabilities
    and budgets are of the agent's tokens alone.

    The KL needs log pi of the action, which ``step`` does not see. Policies of this package are recognized: an action
    that one of them has just chosen for the present state, in this thread, is paid with the log pi that it was drawn
    with, also where another library passes states and actions on. Any other policy has to be attached
    (``attach_policy``). Without one, its behavior is taken as deterministic, log pi = 0, and the reward is
    ``score + kl_coef * log pi_ref``, a function of state and action alone; an agent with an entropy bonus of
    ``kl_coef`` then optimizes the same objective.

    With a ``potential`` every token is also paid what ``textenv.env.potential`` says, which moves no optimum.

    At each step ``info`` holds ``kl``, ``logprob`` and ``ref_logprob`` of the token (with ``kl_mode="lump"`` at the end
    of an episode only), ``action_mask`` with ``top_k`` or ``top_p``, and after a reset ``prompt``, the text that the
    model reads. At the end of an episode it also holds ``score``, ``stop_reason``, ``completion``, ``completion_ids``,
    ``token_kl`` and ``token_rewards``: what each token earned, also where ``kl_mode="lump"`` or a reward that scores
    tokens pays all at the end. ``logged`` holds what the reward has logged, by name; ``scores`` those of its parts, if
    it has any, None where one does not apply. Both are mappings and no ``dict``, which Gymnasium's vector environments
    would split into an array for each name; ``json.dumps`` takes ``dict(info["scores"])``. With a world there is
    ``turns`` too, see ``textenv.types.Turn``. With a potential ``shaping`` is what it has paid for the token, at the
    same steps as ``kl``, and at the end ``token_shaping`` for each. With ``info="fixed"`` all of this is numbers and
    padded arrays with the same keys at every step, see ``textenv.env.fixed_infos.FixedInfos``.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "human", "rgb_array"], "render_fps": 4}  # noqa: RUF012 (an instance has its own)

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
            render_mode: ``"ansi"`` has ``render`` return colored text, ``"rgb_array"`` pictures of the text, and
                ``"human"`` prints every finished episode.
            **settings: Those of ``textenv.env.settings.TextEnvSettings``.

        Raises:
            TextEnvError: An argument is not what is expected.
        """
        self.num_envs = as_row_count(num_envs)
        self.autoreset_mode = as_autoreset_mode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = as_render_mode(render_mode)
        self.settings = given = TextEnvSettings.of({name: unwrap(value) for name, value in settings.items()})
        self.reference = load_reference(given)
        """The reference model."""
        self.scorer = Scorer(
            unscored if given.reward is None else given.reward,
            missing_eos_penalty=given.missing_eos_penalty,
            device=str(self.reference.device),
        )
        """Scores completions: the reward, and what belongs to it."""
        self.worlds = make_worlds(given, self.num_envs)
        """What answers the rows; None where nothing does."""
        self._starts = make_starts(given, self.reference, self.worlds)
        self.scorer.check_columns(self._starts.prompts, partial=self.worlds is not None)
        self.potential = make_potential(given, self._starts.prompts, str(self.reference.device))
        """Scores unfinished completions, by which rewards are shaped; None where they are not."""
        self.max_prompt_tokens = self._starts.max_prompt_tokens
        self.width = room(given, self.max_prompt_tokens, self.reference)
        """The most tokens of an observation."""
        vocab = self.reference.vocab_size
        self.single_observation_space = spaces.Dict(
            input_ids=spaces.Box(0, vocab - 1, (self.width,), np.int64),
            attention_mask=spaces.Box(0, 1, (self.width,), np.int8),
        )
        self.single_action_space = spaces.Discrete(vocab)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._fixed_infos: FixedInfos | None = None
        if given.info == "fixed":
            self._fixed_infos = FixedInfos(
                given, parts=self.scorer.part_names, most_tokens=self.most_tokens, vocab_size=vocab
            )
        self._generators: list[np.random.Generator | None] = [None] * self.num_envs
        self._process = TextProcess(
            self.num_envs,
            settings=given,
            reference=self.reference,
            scorer=self.scorer,
            potential=self.potential,
            width=self.width,
            prompt=self._starts.stand_in,
            worlds=self.worlds,
        )

    # -- what it is made of, and its state -----------------------------------------------------------------------

    @property
    def spec(self) -> EnvSpec | None:
        """The spec it was made from, its live objects in handles."""
        return self._spec

    @spec.setter
    def spec(self, value: EnvSpec | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._spec = with_handles(value)

    _spec: EnvSpec | None = None

    @property
    def reward(self) -> Reward:
        """The reward."""
        return self.scorer.reward

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts that episodes are drawn from; none where a world begins by itself."""
        return self._starts.prompts

    @property
    def most_tokens(self) -> int:
        """The most tokens that an agent can write in an episode."""
        return self.settings.most_tokens(self.width)

    @property
    def over(self) -> NDArray[np.bool_]:
        """Rows whose episode this environment has ended, or that have none yet, shape ``(num_envs,)``."""
        return self._process.done.copy()

    def written_in(self, row: int) -> Written:
        """Return what has been read and written in a row's episode, unfinished or over, until it begins another."""
        return self._process.episodes.written_in(row)

    @property
    def endings(self) -> Endings:
        """Says why a text has ended."""
        return self._process.endings

    @property
    def kl_controller(self) -> AdaptiveKL:
        """The weight of the KL penalty, which may adapt."""
        return self._process.kl

    @property
    def kl_coef(self) -> float:
        """Weight of the KL penalty in the episodes that begin now."""
        return self.kl_controller.coef

    @property
    def has_action_masks(self) -> bool:
        """Whether ``top_k`` or ``top_p`` masks actions."""
        return self.settings.masks_actions

    def attach_policy(self, policy: ActionLogProb | None) -> None:
        """Tell the environment which policy acts in it, so that the reward can hold its KL from the reference.

        Args:
            policy: Its ``action_log_prob(actions)`` is asked in every ``step`` for log pi of the actions it has just
                chosen, in nats, shape ``(num_envs,)``; with ``kl_estimator="full"`` also ``action_log_probs()``. None
                goes back to recognizing policies of ours, and taking any other behavior as deterministic.

        Until it is detached, all actions are taken to be its own. A policy with the attribute ``acted``, as ours have,
        must have acted last on the environment's present state.

        Raises:
            TextEnvError: The policy lacks the method.
        """
        self._process.behavior.attach(policy)

    @contextlib.contextmanager
    def attached(self, policy: ActionLogProb) -> Iterator[None]:
        """Attach a policy inside the context; afterwards the one that was attached before is attached again.

        Raises:
            TextEnvError: As ``attach_policy``.
        """
        before = self._process.behavior.policy
        self.attach_policy(policy)
        try:
            yield
        finally:
            self.attach_policy(before)

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which tokens ``top_k``/``top_p`` leave, shape ``(num_envs, V)``; all of them without either."""
        masks = self._process.next_tokens.masks
        return np.ones((self.num_envs, self.reference.vocab_size), dtype=bool) if masks is None else masks.copy()

    def action_masks_at(self, obs: Observation) -> NDArray[np.bool_] | None:
        """Return which tokens ``top_k``/``top_p`` leave after some texts, shape ``(batch, V)``; None without either.

        For a text that is the present one of the same row, it is the mask that ``step`` or ``reset`` put in the info.

        Args:
            obs: Observations, batched, not necessarily of this environment's present state.
        """
        if not self.has_action_masks:
            return None
        return self._process.next_tokens.masks_at(obs, self._process.episodes, self._process.done)

    def use_generator(self, row: int, generator: np.random.Generator) -> None:
        """Draw the prompts of ``row`` from ``generator``."""
        self._generators[row] = generator

    def state_dict(self) -> dict[str, Any]:
        """Return what the next episodes depend on, as JSON values: generators, KL coefficient, the rewards' states.

        It is taken between episodes: after ``load_state_dict`` comes a ``reset``.
        """
        return {
            "generators": [None if g is None else g.bit_generator.state for g in self._generators],
            "kl_coef": self.kl_controller.coef,
            "reward": self.scorer.state(),
            **({} if self.worlds is None else {"worlds": self.worlds.state()}),
            **({} if self.potential is None else {"potential": self.potential.state()}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state that ``state_dict`` returned.

        Raises:
            TextEnvError: It is no such state, or comes from another number of rows, or from another reward.
        """
        if not isinstance(state, Mapping) or not {"generators", "kl_coef", "reward"} <= set(state):
            raise TextEnvError(f"The state is {short(state)}; expected what state_dict() returned.")
        if len(state["generators"]) != self.num_envs:
            raise TextEnvError(
                f"The state is of {len(state['generators'])} rows, this environment has {self.num_envs}."
            )
        if ("potential" in state) is (self.potential is None):
            has, lacks = ("no potential", "one") if self.potential is None else ("a potential", "none")
            raise TextEnvError(f"This environment has {has}, and the state is of one with {lacks}; make it the same.")
        for row, saved in enumerate(state["generators"]):
            if saved is not None:  # into the generator that is there: it may be the np_random of a TextEnv
                self._generator(row).bit_generator.state = saved
        self.kl_controller.coef = float(state["kl_coef"])
        self.scorer.load_state(state["reward"])
        if self.worlds is not None:
            self.worlds.load_state(state["worlds"])
        if self.potential is not None:
            self.potential.load_state(state["potential"])
        self._process.clear()

    def render(self) -> tuple[str, ...] | tuple[NDArray[np.uint8], ...] | None:
        """Show each row's episode, unfinished or over.

        Returns:
            Of each row colored text (``"ansi"``) or a picture (``"rgb_array"``), red, green and blue, of the same shape
            ``textenv.env.picture.PICTURE_SIZE`` throughout; None where it is printed (``"human"``) or not shown.
        """
        if self.render_mode is None:
            return None
        process = self._process
        shown = [
            (over or process.settlement.unfinished(process.episodes, row), over is not None)
            for row, over in enumerate(process.finished)
        ]
        if self.render_mode == "rgb_array":
            return tuple(to_picture(episode, finished=finished) for episode, finished in shown)
        color = self.render_mode == "ansi" or color_is_shown()
        texts = tuple(to_ansi(episode, color=color, finished=finished) for episode, finished in shown)
        if self.render_mode == "human":
            print("\n".join(texts))
            return None
        return texts

    @property
    def last_episodes(self) -> tuple[Episode | None, ...]:
        """Of each row, the episode that ended in the last ``step`` or after which it waits for a reset, or None."""
        return tuple(self._process.finished)

    @property
    def row_prompts(self) -> tuple[Prompt, ...]:
        """What each row's episode began with."""
        return tuple(self._process.episodes.prompts)

    def prompt_at(self, row: int, state: Sequence[int]) -> Prompt | None:
        """Return a row's prompt if its unfinished episode, prompt included, has the token ids ``state``; else None."""
        process = self._process
        if row >= self.num_envs or process.done[row] or process.episodes.lengths[row] != len(state):
            return None
        same = np.array_equal(process.episodes.ids[row, : len(state)], state)
        return process.episodes.prompts[row] if same else None

    def has_prompt(self, ids: tuple[int, ...]) -> bool:
        """Tell whether one of the environment's prompts has these token ids."""
        return self._starts.contains(ids)

    def prompt_of(self, ids: tuple[int, ...]) -> Prompt:
        """Return the environment's prompt of some token ids, or a new one without columns if there is none.

        Raises:
            TextEnvError: Several prompts have these ids and other columns, so that it is not known which is meant.
        """
        return self._starts.find(ids)

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
                ``world_seed``, what the rows' worlds are seeded with, a number or one for each row.

        Returns:
            Observations and infos, which hold each row's ``prompt``.

        Raises:
            TextEnvError: An option is not what is expected.
        """
        options = as_options(options)
        chosen = options.pop("reset_mask", None)
        try:
            mask = np.ones(self.num_envs, dtype=bool) if chosen is None else np.asarray(chosen)
        except ValueError:  # lists of different lengths
            mask = np.zeros(0, dtype=bool)
        if mask.dtype != bool or mask.shape != (self.num_envs,) or not mask.any():
            raise TextEnvError(
                f"reset_mask={short(chosen)}: expected {self.num_envs} booleans, at least one of them True."
            )
        if not (mask | self._process.begun).all():
            raise TextEnvError("reset_mask leaves rows out that have never begun; reset all rows first.")
        seeds = as_seeds(seed, self.num_envs)
        given = self._starts.chosen(options, self.num_envs)
        if options:
            raise TextEnvError(
                f"options={sorted(options)}: expected 'reset_mask', 'prompt' or 'prompt_index', not both of the last, "
                "and with a world 'world_seed'."
            )
        rows = np.flatnonzero(mask)
        for row in rows.tolist():
            if (value := seeds[row]) is not None:
                self._generators[row], _ = seeding.np_random(value)
        self._process.finished[rows] = None
        infos: dict[str, Any] = {}
        self._begin(rows, infos, given)
        return self._process.episodes.observation(), self._told(infos, rows)

    def step(self, actions: IntArray) -> tuple[Observation, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Append a token to every row.

        Args:
            actions: Token ids, shape ``(num_envs,)``.

        Returns:
            Observations, rewards, terminations, truncations and infos, as Gymnasium describes them.

        Raises:
            TextEnvError: The actions are no token ids, or nothing was reset yet.
        """
        process, mode = self._process, self.autoreset_mode
        rows = process.writing()
        tokens = as_token_ids(actions, rows, num_envs=self.num_envs, vocab_size=self.reference.vocab_size)
        waiting = np.flatnonzero(process.done) if mode is AutoresetMode.NEXT_STEP else rows[:0]
        if mode is not AutoresetMode.DISABLED:  # there, the reset of a row has removed its last episode
            process.finished[rows] = None
        rewards, ended = process.advance(rows, tokens) if len(rows) else (np.zeros(self.num_envs), rows)
        truncations = process.done & process.episodes.truncated
        terminations = process.done & ~truncations
        going = rows[~process.done[rows]] if len(ended) else rows
        infos: dict[str, Any] = {}
        if self.settings.kl_mode == "dense" and len(going):
            step_infos.add_tokens(infos, process.episodes, going, shaped=self.potential is not None)
        if len(waiting):
            terminations[waiting] = truncations[waiting] = False
            process.finished[waiting] = None
            self._begin(waiting, infos)
        if len(ended):
            self._end(ended, infos)
        if self.has_action_masks and len(going):
            process.next_tokens.read(process.episodes, going)
            self._add_masks(infos, going)
        told = self._told(infos, rows, waiting)
        return process.episodes.observation(), rewards, terminations, truncations, told

    def close_extras(self, **_: Any) -> None:
        """Close the worlds."""
        if self.worlds is not None:
            self.worlds.close()

    def _begin(self, rows: IntArray, infos: dict[str, Any], given: Any = None) -> None:
        """Begin episodes from what is ``given`` for all rows, or drawn."""
        places = rows.tolist()
        prompts = self._starts.begin(places, given, self._generator)
        self._process.begin(rows, prompts)
        found = {row: {"prompt": prompt.text} for row, prompt in zip(places, prompts, strict=True)}
        step_infos.add_rows(infos, self.num_envs, found)
        if self.has_action_masks:
            self._add_masks(infos, rows)

    def _end(self, rows: IntArray, infos: dict[str, Any]) -> None:
        """Tell of the episodes that rows have finished; with ``SAME_STEP``, begin the next ones."""
        process = self._process
        finished: list[Episode] = process.finished[rows].tolist()
        final = {row: step_infos.of_episode(episode) for row, episode in zip(rows.tolist(), finished, strict=True)}
        if self.render_mode == "human":
            for episode in finished:
                print(to_ansi(episode, color=color_is_shown()))
        if self.autoreset_mode is not AutoresetMode.SAME_STEP:
            step_infos.add_rows(infos, self.num_envs, final)
            return
        ids, mask = process.episodes.ids, process.episodes.mask
        for row, info in final.items():
            last = {"input_ids": ids[row].copy(), "attention_mask": mask[row].copy()}
            infos.update(self._add_info(infos, {"final_obs": last, "final_info": info}, row))
        self._begin(rows, infos)

    def _told(self, infos: dict[str, Any], *rows: IntArray) -> dict[str, Any]:
        """Return the infos in the form of the setting ``info``; ``rows`` have begun an episode or written a token."""
        if self._fixed_infos is None:
            return infos
        present = np.zeros(self.num_envs, dtype=bool)
        present[np.concatenate(rows)] = True
        return self._fixed_infos.of(infos, present)

    def _add_masks(self, infos: dict[str, Any], rows: IntArray) -> None:
        masks = self._process.next_tokens.masks
        assert masks is not None
        step_infos.add_masks(infos, masks, rows)

    @property
    def can_pay_later(self) -> bool:
        """Whether ``paying_later`` can be entered: whether no step needs to know what an episode was paid."""
        waits = self.autoreset_mode is AutoresetMode.DISABLED and self.render_mode is None
        # In half precision forwards of other shapes round otherwise, and a KL that is 0 would not stay so.
        same = self.settings.kl_mode == "lump" or self.reference.model.dtype.itemsize >= 4
        return waits and same and not self.settings.needs_distributions

    @contextlib.contextmanager
    def paying_later(self) -> Iterator[Callable[[], list[Episode]]]:
        """Score episodes many at a time, for a caller who runs the whole process and needs no reward before.

        Inside, the rewards of ``step`` are 0, its infos do not describe the end of an episode, and ``last_episodes``
        are None. The context gives a function, ``settle()``: it scores the episodes that have ended since it was last
        called and returns them in the order in which they ended, those of one step in the order of their rows. The
        reference and the reward are given as many at a time as there are rows, also with ``kl_mode="dense"``.

        Raises:
            TextEnvError: ``can_pay_later`` is False.
        """
        if not self.can_pay_later:
            raise TextEnvError(
                "Episodes are paid later only with autoreset_mode=AutoresetMode.DISABLED, no render_mode, no "
                "kl_estimator='full', neither top_k nor top_p, and in half precision kl_mode='lump'."
            )
        with self._process.scoring_later() as settle:
            yield settle

    # -- drawing prompts -----------------------------------------------------------------------------------------

    def _generator(self, row: int) -> np.random.Generator:
        generator = self._generators[row]
        if generator is None:  # never seeded: fresh entropy, through the generator that Gymnasium gives every env
            generator, _ = seeding.np_random(int(self.np_random.integers(2**63 - 1)))
            self._generators[row] = generator
        return generator
