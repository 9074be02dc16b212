"""People as judges of clips: pairs are added to a feedback store, and judgements are read from it."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from textenv.clips.media import Player
from textenv.clips.queries import Pair
from textenv.feedback.store import FeedbackStore, Judgement
from textenv.types import TextEnvError

__all__ = ["People"]


class People:
    """Asks the annotators of a feedback store (see ``textenv.clips.preference_run.ClipJudge``).

    A run that is killed while it asks leaves tasks in the store whose answers it will not read; it asks again.
    """

    def __init__(self, store: Path, out: Path, task: str, settings: Mapping[str, Any]) -> None:
        """Open the store, and make another instance of the task to render its clips.

        Args:
            store: File of the store, made if it is missing.
            out: The run's folder; clips are written to its folder ``clips``.
            task: Registered id.
            settings: Keywords of ``gymnasium.make``.

        Raises:
            TextEnvError: The store cannot be used, or the task cannot be rendered here.
        """
        self._out, self._task = out.resolve(), task
        self._player = Player(task, settings)
        try:
            self._player.env.reset(seed=0)
            self._player.picture()  # a task that cannot be rendered raises its error before training
            self._store = FeedbackStore(store)
        except TextEnvError:
            self._player.close()
            raise
        self._read: list[int] = []  # numbers of the judgements that the last answers are made of

    def close(self) -> None:
        """Close the store and the task."""
        self._player.close()
        self._store.close()

    def ask(self, pair: Pair, *, number: int, step: int) -> int:
        """Render two clips, add a task to the store that compares them, and return the number of that task."""
        folder = self._out / "clips"
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{number:05d}-{secrets.token_hex(8)}.webp" for _ in pair]  # random, to reveal nothing
        for clip, file in zip(pair, files, strict=True):
            self._player.write(clip, file)
        with self._store.transaction():
            policy = self._store.add_policy(f"{self._out} at step {step}", folder=str(self._out))
            details = [{"seed": clip.trajectory.seed, "start": clip.start, "stop": clip.stop} for clip in pair]
            items = [
                self._store.add_clip(file, task=self._task, policy=policy, details=about)
                for file, about in zip(files, details, strict=True)
            ]
            return self._store.add_task(items, kind="clip")

    def answers(self, asked: Sequence[int]) -> list[float | None]:
        """Return the present answers to tasks of the store; the last one if a task has several."""
        last = {judgement.task: judgement for judgement in self._store.judgements()}
        found = [last.get(task) for task in asked]
        self._read = [judgement.id for judgement in found if judgement is not None and judgement.verdict == "ranked"]
        return [None if judgement is None else _preferred(judgement) for judgement in found]

    def record(self, reward: Path, policy: Path) -> None:
        """Add what was trained to the store: the reward model, with the judgements last read, and the policy.

        Args:
            reward: Folder of the reward model.
            policy: Folder of the policy.
        """
        known = {model.folder: model.id for model in self._store.reward_models()}  # a resumed run may have added it
        model = known.get(str(reward.resolve()))
        if model is None:
            model = self._store.add_reward_model(reward.resolve(), judgements=self._read, details={"task": self._task})
        name = f"{self._out}, trained"
        self._store.add_policy(name, folder=str(policy.resolve()), reward_model=model, details={"task": self._task})


def _preferred(judgement: Judgement) -> float:
    """Return 1 if the first clip is preferred, 0 if the second, 0.5 for a tie, and nan if the two were not compared."""
    if judgement.verdict != "ranked":
        return math.nan
    first, second = (math.inf if rank is None else rank for rank in judgement.ranks)
    return 0.5 if first == second else float(first < second)
