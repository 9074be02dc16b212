"""Clips as animated pictures. An episode is replayed from its seed and actions, so that training renders nothing."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from textenv.clips.segments import Segment, as_action
from textenv.data.files import write_atomically
from textenv.types import TextEnvError

__all__ = ["Player", "write_animation"]

_MOST_FRAMES = 30.0  # a second
_HEIGHT = 240  # pixels
_FORMATS = {".webp": "WEBP", ".gif": "GIF"}

Frame = NDArray[np.uint8]


class Player:
    """Replays segments of a task and renders them.

    Attributes:
        env: The task, which renders pictures.
        every: Every so many steps one frame is rendered, so that there are at most 30 frames a second.
        frames_per_second: Frames a second at the task's own speed.
    """

    def __init__(self, task: str, settings: Mapping[str, Any]) -> None:
        """Make another instance of the task, with ``render_mode="rgb_array"``.

        Args:
            task: Registered id.
            settings: Keywords of ``gymnasium.make``, the same as in training.

        Raises:
            TextEnvError: The task cannot be made, or has no such pictures.
        """
        if sys.platform == "linux" and not os.environ.get("DISPLAY"):
            os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo's default needs a screen
        self._task = task
        try:
            self.env = gym.make(task, **{**settings, "render_mode": "rgb_array"})
        except (gym.error.Error, TypeError) as error:
            raise TextEnvError(f"{task} cannot be made to be drawn: {error}") from error
        speed = float(self.env.metadata.get("render_fps", _MOST_FRAMES))
        self.every = max(1, round(speed / _MOST_FRAMES))
        self.frames_per_second = speed / self.every

    def close(self) -> None:
        """Close the task."""
        self.env.close()

    def frames(self, clip: Segment) -> list[Frame]:
        """Return a picture of the task before each ``every``-th step of the clip.

        Raises:
            TextEnvError: The task cannot be rendered, or the replayed episode differs from the recorded one.
        """
        trajectory, env = clip.trajectory, self.env
        observation, _ = env.reset(seed=trajectory.seed)
        pictures = []
        for step in range(clip.stop):
            if not np.array_equal(observation, trajectory.observations[step]):
                raise TextEnvError(
                    f"{self._task} is not a function of its seed and the actions: played again, step {step} looks "
                    "different. Its clips cannot be drawn."
                )
            if step >= clip.start and (step - clip.start) % self.every == 0:
                pictures.append(self.picture())
            observation, *_ = env.step(as_action(env.action_space, trajectory.actions[step]))
        return pictures

    def picture(self) -> Frame:
        """Return a picture of the task's present state, at most 240 pixels high, shape ``(height, width, 3)``.

        Raises:
            TextEnvError: The task cannot be rendered.
        """
        try:
            drawn: Any = self.env.render()
        except Exception as error:
            raise TextEnvError(f"{self._task} cannot be drawn here: {error!r}. MuJoCo's tasks need EGL.") from error
        image = Image.fromarray(np.asarray(drawn, dtype=np.uint8))
        if image.height > _HEIGHT:
            width = round(image.width * _HEIGHT / image.height)
            image = image.resize((width, _HEIGHT), Image.Resampling.LANCZOS)
        return np.asarray(image)

    def write(self, clip: Segment, path: Path) -> None:
        """Write a clip as an animated picture at the task's own speed (see ``write_animation``)."""
        write_animation(self.frames(clip), path, frames_per_second=self.frames_per_second)


def write_animation(frames: Sequence[Frame], path: Path, *, frames_per_second: float) -> None:
    """Write frames as an animated picture that repeats and that every browser can show.

    Args:
        frames: Each of shape ``(height, width, 3)``.
        path: File to write, ``.webp``, or ``.gif``, which is larger. Its folder must exist.
        frames_per_second: Frames a second.

    Raises:
        TextEnvError: The file's kind is another, or there are no frames.
    """
    if path.suffix not in _FORMATS or not frames:
        raise TextEnvError(f"{path}, {len(frames)} frames: expected some, and a name that ends in .webp or .gif.")
    milliseconds = round(1000 / frames_per_second)
    data = io.BytesIO()
    first, *others = map(Image.fromarray, frames)
    options: dict[str, Any] = {"quality": 60, "method": 4} if path.suffix == ".webp" else {}
    first.save(
        data, _FORMATS[path.suffix], save_all=True, append_images=others, duration=milliseconds, loop=0, **options
    )
    write_atomically(path, data.getvalue())
