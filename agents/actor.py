"""What every agent does: act in a text environment, write samples, be saved and loaded, and run its iterations.

Nothing here needs a setting of training. ``textenv.agents.agent.Agent`` adds what training a policy needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, cast, final

import numpy as np

from textenv.agents.config import ActorConfig
from textenv.agents.environment import as_observations
from textenv.agents.metrics import episode_metrics
from textenv.data.files import make_folder, read_json, write_json
from textenv.data.values import as_mapping, as_whole_number
from textenv.lazy import lazy
from textenv.types import Episode, IntArray, Observation, TextEnvError, TrainerState, short
from textenv.validation import Count, FilePath, build, validated

if TYPE_CHECKING:
    import gymnasium as gym
    import torch
    from gymnasium.vector import VectorEnv

    from textenv.env.vector import TextVectorEnv
    from textenv.models import acting
    from textenv.models import policy as policies
    from textenv.rollouts import collect as collecting
    from textenv.rollouts import distributed
else:
    torch = lazy("torch")
    acting = lazy("textenv.models.acting")
    policies = lazy("textenv.models.policy")
    collecting = lazy("textenv.rollouts.collect")
    distributed = lazy("textenv.rollouts.distributed")

__all__ = ["Actor", "Progress"]

Progress = Callable[[int, Mapping[str, float]], bool | None]
"""Called after each iteration with the tokens so far and the metrics; an agent stops where it returns False."""

ConfigT = TypeVar("ConfigT", bound=ActorConfig)


class Actor(ABC, Generic[ConfigT]):
    """Acts in a text environment, and writes in it an iteration at a time.

    A derived class sets ``policy`` in ``set_up``, and says in ``iterate`` what an iteration is.

    Attributes:
        Config: The class of its settings.
        config: Its settings.
        envs: The vector environment it acts in.
        processes: The processes of the run.
        policy: What it draws tokens from.
        mask: Which tokens it may draw; None for all that the environment allows.
        steps: Tokens that ``learn`` has written so far.
        iterations: Iterations done so far.
        learns: Whether ``learn`` changes anything.
        best_of: Of how many samples of ``policy`` it writes the best one; None where it writes what it draws.
    """

    Config: ClassVar[type[ActorConfig]]
    learns: ClassVar[bool] = True
    policy: policies.TextPolicy

    def __init__(
        self,
        env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any],
        config: ConfigT | None = None,
        *,
        processes: distributed.Processes | None = None,
    ) -> None:
        """Act in an environment.

        Args:
            env: A text environment: single, or vectorized with ``AutoresetMode.DISABLED``. On several processes, each
                gives one with its share of the rows.
            config: Settings; None for the defaults.
            processes: The processes of the run; None for those that a launcher has started, if it has.

        Raises:
            TextEnvError: The environment or the settings are of another kind.
        """
        given: Any = self.Config() if config is None else config
        if not isinstance(given, self.Config):
            raise TextEnvError(f"{type(self).__name__} got config={short(given)}; expected a {self.Config.__name__}.")
        started: Any = distributed.connect() if processes is None else processes
        if not isinstance(started, distributed.Processes):
            raise TextEnvError(
                f"{type(self).__name__} got processes={short(processes)}; expected what "
                "textenv.rollouts.distributed.connect() returns, or None."
            )
        self.config = cast("ConfigT", given)
        self.envs = collecting.vectorize(env)
        self.processes = started
        self.steps = self.iterations = 0
        self.mask: collecting.ActionMask | None = None
        self.best_of: int | None = None
        self._generator = torch.Generator(self.base.reference.device).manual_seed(given.seed)
        self.set_up()

    def set_up(self) -> None:
        """Check the environment, and make what the agent acts with; the constructor calls it last. Here is nothing.

        Raises:
            TextEnvError: The agent cannot act in this environment, or not on several processes.
        """

    @property
    def base(self) -> TextVectorEnv:
        """The text environment inside the wrappers."""
        return collecting.text_env(self.envs)

    @abstractmethod
    def iterate(self, total_steps: int) -> tuple[collecting.Rollout, Mapping[str, float]]:
        """Do an iteration: write episodes, and learn from them.

        Args:
            total_steps: Tokens of the whole run, for schedules.

        Returns:
            The episodes, and metrics besides or in place of the usual ones.
        """

    @final
    @validated
    def learn(
        self,
        total_steps: Count,
        *,
        progress: Progress | None = None,
        checkpoints: FilePath | None = None,
        checkpoint_every: Count = 5,
    ) -> Self:
        """Learn until ``total_steps`` tokens are written, in all calls together.

        Args:
            total_steps: Tokens; the iteration that reaches them is finished.
            progress: Called after each iteration with the tokens so far and the metrics, in every process that
                gives one. Learning ends where one returns False.
            checkpoints: Folder to keep the last checkpoint in; a run that finds one there goes on from it, with the
                numbers of a run that was never stopped. Agents that train no weights keep none, and start again.
            checkpoint_every: Iterations between checkpoints.

        Returns:
            Itself.

        Raises:
            TextEnvError: An argument is not what is expected, or what the agent learns from is not.
        """
        told: Any = progress
        if told is not None and not callable(told):
            raise TextEnvError(f"progress={short(told)}: expected a function of the tokens so far and the metrics.")
        folder = None if checkpoints is None else Path(checkpoints)
        if folder is not None:
            make_folder(folder)
            self.resume(folder, total_steps)
        while self.steps < total_steps:
            began = time.perf_counter()
            self.base.scorer.trainer_state = self._trainer_state(total_steps)
            rollout, own = self.iterate(total_steps)
            self.steps += rollout.tokens
            self.iterations += 1
            metrics = {
                **episode_metrics(rollout),
                "objective/kl_coef": self.base.kl_coef,
                **own,
                "time/iterations": float(self.iterations),
                "time/tokens_per_second": rollout.tokens / (time.perf_counter() - began),
            }
            stopped = progress is not None and progress(self.steps, metrics) is False
            ended = any(self.processes.gather(stopped)) or self.steps >= total_steps
            if folder is not None and (self.iterations % checkpoint_every == 0 or ended):
                self.checkpoint(folder, total_steps)
            if ended:
                break
        return self

    @property
    def episodes(self) -> int:
        """Number of episodes an iteration, in all processes together."""
        return self.envs.num_envs * self.processes.size

    def _trainer_state(self, total_steps: int) -> TrainerState:
        """Return how far the training is, for rewards that ask; the texts to come are taken as long as those so far."""
        done = self.iterations
        size = self.steps / done if done else self.episodes * self.base.most_tokens
        return TrainerState(
            global_step=done,
            max_steps=done + math.ceil((total_steps - self.steps) / size),
            epoch=self.steps / total_steps,
            num_input_tokens_seen=self.steps,
        )

    def checkpoint(self, folder: Path, total_steps: int) -> None:
        """Write what the rest of the run depends on; every process calls it. Here there is nothing to write."""

    def resume(self, folder: Path, total_steps: int) -> bool:
        """Go on from the last checkpoint in ``folder``, if there is one; every process calls it.

        Returns:
            Whether there was one.
        """
        return False

    @final
    @validated
    def predict(self, obs: Observation, *, deterministic: bool = True) -> IntArray:
        """Choose the next token.

        Args:
            obs: An observation, single or batched.
            deterministic: Take the likeliest token instead of drawing one.

        Returns:
            Actions, shape ``(batch,)``, or ``()`` for a single observation. They are within the masks of the agent's
            environment, those of its ``top_k`` and ``top_p`` at this observation.

        Raises:
            TextEnvError: It is no observation of a text environment over this vocabulary; or the environment has taken
                the actions before these without their log-probabilities.
        """
        batch, single = as_observations(obs, self.base.reference.vocab_size)
        actions = self.choose(batch, deterministic=deterministic)
        return actions[0] if single else actions

    def choose(self, obs: Observation, *, deterministic: bool) -> IntArray:
        """Choose the next tokens for a batch of observations, shape ``(batch,)``; see ``predict``."""
        acting.refuse_unseen(*policies.observation_arrays(obs))
        with self.whole_weights():
            masks = self.base.action_masks_at(obs)
            if self.mask is not None:
                masks = self.mask(obs, np.arange(len(obs["input_ids"])), masks)
            generator = None if deterministic else self._generator
            actions, _ = self.policy.act(obs, generator=generator, masks=masks)
        return actions

    def sample(
        self, env: VectorEnv[Any, Any, Any], prompts: Sequence[Any], *, generator: torch.Generator | None = None
    ) -> list[Episode]:
        """Write one episode from each prompt, as ``predict`` would, in the rows of all processes.

        Args:
            env: A text environment with ``AutoresetMode.DISABLED``, which may be another than the agent acts in.
            prompts: Whatever ``reset(options={"prompt": ...})`` takes for a row.
            generator: Source of randomness; None for the likeliest tokens.
        """
        with self.whole_weights():
            return collecting.sample_episodes(
                env, self.policy, generator, prompts, processes=self.processes, mask=self.mask
            )

    def whole_weights(self) -> contextlib.AbstractContextManager[None]:
        """Let the policy act or be read inside, where its weights are shared out (FSDP); every process enters it."""
        return contextlib.nullcontext()

    @final
    @validated
    def save(self, folder: FilePath) -> None:
        """Save the agent: its settings as JSON, what it has learned as safetensors; every process calls it.

        Raises:
            TextEnvError: There can be no such folder.
        """
        folder = Path(folder)
        if self.processes.first:
            make_folder(folder)
        self.save_weights(folder)
        if not self.processes.first:
            return
        about = {"agent": type(self).__name__.lower(), "steps": self.steps, "config": dataclasses.asdict(self.config)}
        write_json(folder / "agent.json", about)

    def save_weights(self, folder: Path) -> None:
        """Save what has been learned into a folder; every process calls it. Here there is nothing."""

    @classmethod
    @final
    @validated
    def load(cls, folder: FilePath, env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> Self:
        """Load an agent that ``save`` wrote, to act in ``env`` or learn on.

        Args:
            folder: Where it was saved.
            env: A text environment over the same vocabulary. Of how many rows it is, and what it pays, matters only
                to learning.

        Raises:
            TextEnvError: The folder holds no such agent, or it does not fit the environment.
        """
        folder = Path(folder)
        config, steps = _read_saved(folder, cls)
        agent = cls.restore(folder, collecting.vectorize(env), config)
        agent.steps = steps
        return agent

    @classmethod
    def restore(cls, folder: Path, envs: VectorEnv[Any, Any, Any], config: Any) -> Self:
        """Return an agent with its settings and what ``save_weights`` has saved in a folder, to act in ``envs``."""
        return cls(envs, config)


def _read_saved(folder: Path, cls: type[Actor[Any]]) -> tuple[Any, int]:
    """Return the settings of an agent that was saved, and its steps.

    Raises:
        TextEnvError: The folder holds no agent of this class.
    """
    try:
        about = read_json(folder / "agent.json", "agent", "config", "steps")
        if about["agent"] != cls.__name__.lower():
            raise TextEnvError(f"its agent is {about['agent']!r}")
        steps = as_whole_number(about["steps"], "steps")
        if steps < 0:
            raise TextEnvError(f"steps is {steps}")
        return build(cls.Config, as_mapping(about["config"], "config")), steps
    except TextEnvError as error:
        raise TextEnvError(
            f"{folder} holds no {cls.__name__} agent ({error}); expected a folder that {cls.__name__}.save wrote."
        ) from error
