"""One text at a time: ``TextEnv`` is a thin view of ``TextVectorEnv`` with one row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from textenv.env.arguments import RenderMode, as_seeds
from textenv.env.handle import with_handles
from textenv.env.vector import TextVectorEnv
from textenv.models.causal_lm import CausalLM
from textenv.types import ActionLogProb, Episode, Observation, Prompt, TextEnvError, short
from textenv.validation import UnknownNameError

__all__ = ["TextEnv"]


class TextEnv(gym.Env[Observation, np.int64]):
    """Writes a text, token by token, and is paid by a reward model less the KL from a reference model.

    The process, its settings, observations, rewards and infos are those of ``textenv.env.vector.TextVectorEnv``.
    """

    metadata: dict[str, Any] = TextVectorEnv.metadata

    def __init__(self, *, render_mode: RenderMode | None = None, **settings: Any) -> None:
        """Make the environment.

        Args:
            render_mode: ``"ansi"`` has ``render`` return colored text, ``"rgb_array"`` a picture of the text, and
                ``"human"`` prints every finished episode.
            **settings: Those of ``textenv.env.settings.TextEnvSettings``.

        Raises:
            TextEnvError: An argument is not what is expected.
        """
        for name in ("num_envs", "autoreset_mode"):
            if name in settings:
                raise UnknownNameError(
                    f"{name}={short(settings[name])} is for a vector environment, and this is a single one. "
                    "gymnasium.make_vec makes single ones of an id without a vector_entry_point: register the id with "
                    "one (see textenv.register)."
                )
        self._batch = TextVectorEnv(1, autoreset_mode=AutoresetMode.DISABLED, render_mode=render_mode, **settings)
        self.render_mode = render_mode
        self.observation_space = self._batch.single_observation_space
        self.action_space = self._batch.single_action_space
        self._batch.use_generator(0, self.np_random)  # from the start, so that load_state_dict reaches it
        self._running = False

    @property
    def spec(self) -> EnvSpec | None:
        """The spec it was made from, its live objects in handles."""
        return self._spec

    @spec.setter
    def spec(self, value: EnvSpec | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._spec = with_handles(value)

    _spec: EnvSpec | None = None

    @property
    def batch(self) -> TextVectorEnv:
        """The vector environment of one row that this is a view of."""
        return self._batch

    @property
    def reference(self) -> CausalLM:
        """The reference model."""
        return self._batch.reference

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts that episodes are drawn from."""
        return self._batch.prompts

    @property
    def kl_coef(self) -> float:
        """Weight of the KL penalty in the episode that begins now."""
        return self._batch.kl_coef

    @property
    def last_episode(self) -> Episode | None:
        """The episode that ended in the last ``step``, or None."""
        return self._batch.last_episodes[0]

    def attach_policy(self, policy: ActionLogProb | None) -> None:
        """Tell the environment which policy acts in it (see ``TextVectorEnv.attach_policy``)."""
        self._batch.attach_policy(policy)

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which tokens ``top_k``/``top_p`` leave, shape ``(V,)``, as SB3-contrib's MaskablePPO asks for them."""
        masks: NDArray[np.bool_] = self._batch.action_masks()[0]
        return masks

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin a new episode.

        Args:
            seed: Seeds the drawing of prompts.
            options: ``prompt``, a text, a list of messages, or one of ``prompts`` to start from, or ``prompt_index``,
                its place in the data set.

        Returns:
            The observation and an info with the ``prompt``.

        Raises:
            TextEnvError: Seed or options are not what is expected.
        """
        super().reset(seed=as_seeds(seed, 1)[0] if seed is not None else None)
        self._batch.use_generator(0, self.np_random)
        obs, infos = self._batch.reset(options=options)
        self._running = True
        return _first(obs), _first_info(infos)

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Append a token.

        Args:
            action: A token id.

        Returns:
            Observation, reward, terminated, truncated and info, as Gymnasium describes them.

        Raises:
            TextEnvError: The action is no token id, or the episode is over.
        """
        if not self._running:
            raise TextEnvError("step without an episode: call reset() first, and again after 'terminated'.")
        actions: Any = [action]
        obs, rewards, terminations, truncations, infos = self._batch.step(actions)
        terminated, truncated = bool(terminations[0]), bool(truncations[0])
        self._running = not (terminated or truncated)
        return _first(obs), float(rewards[0]), terminated, truncated, _first_info(infos)

    def close(self) -> None:
        """Close the world, if there is one."""
        self._batch.close()

    def render(self) -> str | NDArray[np.uint8] | None:
        """Return the episode as colored text (``"ansi"``) or a picture (``"rgb_array"``), or print it (``"human"``)."""
        frames = self._batch.render()
        return frames[0] if frames else None


def _first(obs: Observation) -> Observation:
    return {name: values[0] for name, values in obs.items()}


def _first_info(infos: dict[str, Any]) -> dict[str, Any]:
    single = {name: values[0] for name, values in infos.items() if not name.startswith("_") and infos[f"_{name}"][0]}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in single.items()}
