"""Recording episodes, and the segments of them that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from textenv.types import FloatArray, TextEnvError

__all__ = ["Features", "Recorder", "Segment", "Trajectory", "as_action", "sample_segments"]


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """``T`` consecutive steps of a task, the first after a reset.

    Attributes:
        seed: The seed of the reset; with the same actions it gives the same episode again.
        observations: The observation before each action, shape ``(T, *observation)``.
        actions: The actions that the task was given, shape ``(T, *action)``.
        rewards: The task's own rewards, shape ``(T,)``: for synthetic judgements and for measuring, never for training.
    """

    seed: int
    observations: NDArray[Any]
    actions: NDArray[Any]
    rewards: NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.rewards)


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """The steps ``start`` to ``stop - 1`` of one trajectory."""

    trajectory: Trajectory
    start: int
    stop: int

    def __post_init__(self) -> None:
        """Check that the steps are steps of the trajectory."""
        if not 0 <= self.start < self.stop <= len(self.trajectory):
            raise TextEnvError(f"Steps {self.start} to {self.stop}: expected some of 0 to {len(self.trajectory)}.")

    @property
    def observations(self) -> NDArray[Any]:
        """Return the observation before each action, shape ``(steps, *observation)``."""
        return self.trajectory.observations[self.start : self.stop]

    @property
    def actions(self) -> NDArray[Any]:
        """Return the actions, shape ``(steps, *action)``."""
        return self.trajectory.actions[self.start : self.stop]

    @property
    def rewards(self) -> NDArray[np.float64]:
        """Return the task's own rewards, shape ``(steps,)``."""
        return self.trajectory.rewards[self.start : self.stop]


class Recorder(gym.Wrapper[Any, Any, Any, Any]):
    """Records every episode as a ``Trajectory``, and gives every reset a seed, so that each episode can be replayed.

    Attributes:
        finished: Trajectories of the episodes that have ended and were not taken yet.
    """

    def __init__(self, env: gym.Env[Any, Any], seed: int | None = None) -> None:
        """Wrap the task. No wrapper between it and the recorder may draw random numbers of its own.

        Args:
            env: The task.
            seed: Seeds the generator that draws the seeds of resets, until a reset is given a seed.
        """
        super().__init__(env)
        self.finished: list[Trajectory] = []
        self._seeds = np.random.default_rng(seed)
        self._seed = 0
        self._observations: list[NDArray[Any]] = []  # one more than actions: the last is the present observation
        self._actions: list[NDArray[Any]] = []
        self._rewards: list[float] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the task, with a seed that is drawn if none is given.

        Raises:
            TextEnvError: There are options; an episode must be a function of its seed and actions alone.
        """
        if options:
            raise TextEnvError(f"options={options!r}: a recorded task takes none. Give them to gymnasium.make.")
        self._close_episode()
        if seed is not None:
            self._seeds = np.random.default_rng(seed)
        self._seed = int(self._seeds.integers(2**31)) if seed is None else seed
        observation, info = self.env.reset(seed=self._seed)
        self._observations = [np.array(observation)]
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the task and record the step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._actions.append(np.array(action))
        self._rewards.append(float(reward))
        if terminated or truncated:
            self._close_episode()
        else:
            self._observations.append(np.array(observation))
        return observation, reward, terminated, truncated, info

    def take(self) -> list[Trajectory]:
        """Return the episodes that have ended since the last call."""
        taken, self.finished = self.finished, []
        return taken

    def _close_episode(self) -> None:
        if self._rewards:
            steps = len(self._rewards)
            observations = np.stack(self._observations[:steps])
            self.finished.append(Trajectory(self._seed, observations, np.stack(self._actions), np.array(self._rewards)))
        self._observations, self._actions, self._rewards = [], [], []

    def state(self) -> dict[str, Any]:
        """Return, as JSON values, what ``restore`` needs to come back to this step; finished episodes are left out."""
        actions = [action.tolist() for action in self._actions]
        return {"seeds": self._seeds.bit_generator.state, "seed": self._seed, "actions": actions}

    def restore(self, state: dict[str, Any]) -> NDArray[Any]:
        """Replay the episode of ``state`` up to its last step, and return the observation there.

        The result is identical if the task is a function of its seed and the actions. JSON preserves the actions
        exactly: reading a decimal number back gives the same float.
        """
        self._close_episode()
        self._seed = state["seed"]
        observation, _ = self.env.reset(seed=self._seed)
        self._observations = [np.array(observation)]
        for action in state["actions"]:
            self.step(as_action(self.env.action_space, action))
        self._seeds.bit_generator.state = state["seeds"]
        return self._observations[-1]


def as_action(space: spaces.Space[Any], action: Any) -> Any:
    """Return an action, given as a list or an array, in the form that the task takes."""
    return np.asarray(action, dtype=space.dtype) if isinstance(space, spaces.Box) else int(action)


class Features:
    """Turns observations and actions into the vectors that a reward model reads.

    A ``Box`` is flattened; an action of a ``Discrete`` becomes a one-hot vector.

    Attributes:
        size: Length of the vector.
    """

    def __init__(self, observations: spaces.Space[Any], actions: spaces.Space[Any]) -> None:
        """Read the sizes of the two spaces.

        Raises:
            TextEnvError: Observations are not a ``Box``, or actions neither a ``Box`` nor ``Discrete``.
        """
        if not isinstance(observations, spaces.Box) or not isinstance(actions, (spaces.Box, spaces.Discrete)):
            raise TextEnvError(
                f"Observations of {observations} and actions of {actions}: expected a Box of observations, and a Box "
                "or Discrete of actions. Gymnasium's FlattenObservation makes a Box of the others."
            )
        self._actions = actions
        self.size = spaces.flatdim(observations) + spaces.flatdim(actions)

    def __call__(self, observations: NDArray[Any], actions: NDArray[Any]) -> FloatArray:
        """Return the vectors of ``n`` observations and actions, shape ``(n, size)``, float32."""
        if isinstance(self._actions, spaces.Discrete):
            actions = np.eye(int(self._actions.n))[actions.reshape(-1).astype(int) - int(self._actions.start)]
        rows = len(observations)
        return np.concatenate([observations.reshape(rows, -1), actions.reshape(rows, -1)], axis=1, dtype=np.float32)


def sample_segments(
    trajectories: Sequence[Trajectory], count: int, steps: int, rng: np.random.Generator
) -> list[Segment]:
    """Draw segments with replacement, each start in each trajectory with the same probability.

    Args:
        trajectories: Episodes; those shorter than a segment are not used.
        count: Number of segments.
        steps: Length of a segment.
        rng: Draws them.

    Raises:
        TextEnvError: No trajectory is long enough.
    """
    places = np.cumsum([max(0, len(trajectory) - steps + 1) for trajectory in trajectories], dtype=np.int64)
    if not len(places) or not places[-1]:
        longest = max(map(len, trajectories), default=0)
        raise TextEnvError(
            f"No episode has the {steps} steps of a clip; the longest of {len(trajectories)} has {longest}. Give a "
            "smaller number with clip_steps."
        )
    drawn = rng.integers(places[-1], size=count)
    indices = np.searchsorted(places, drawn, side="right")
    segments = []
    for place, index in zip(drawn, indices, strict=True):
        start = int(place - (places[index - 1] if index else 0))
        segments.append(Segment(trajectories[index], start, start + steps))
    return segments
