"""Clips drawn from a seed and actions, judged in a feedback store, and what comes back."""

import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

from tests.clips.test_clips import Walk
from tests.clips.test_clips_training import TASK, config
from textenv.clips.media import Player, write_animation
from textenv.clips.people import People
from textenv.clips.segments import Recorder, Segment
from textenv.clips.training import train
from textenv.feedback.store import FeedbackStore
from textenv.rollouts.checkpoint import latest_checkpoint, read_checkpoint
from textenv.types import TextEnvError


@pytest.fixture
def clip() -> Segment:
    recorder = Recorder(gym.make(TASK), seed=0)
    recorder.reset(seed=5)
    for action in np.random.default_rng(0).uniform(-0.1, 0.1, (20, 1)).astype(np.float32):
        recorder.step(action)
    recorder.reset()
    return Segment(recorder.take()[0], 4, 12)


@pytest.fixture
def player() -> Iterator[Player]:
    made = Player(TASK, {})
    yield made
    made.close()


def test_a_clip_shows_what_has_happened(clip: Segment, player: Player) -> None:
    frames = player.frames(clip)
    assert len(frames) == 8
    assert {frame.shape for frame in frames} == {(240, 48, 3)}
    for frame, place in zip(frames, clip.trajectory.observations[4:12, 0], strict=True):
        assert (np.argmin(frame[120, :, 0]) + 0.5) * 300 / 240 == pytest.approx(30 + 20 * place, abs=2.5)


def duration(picture: Any) -> int:
    """Return milliseconds; Pillow makes one frame of several that are the same."""
    total = 0
    for frame in range(picture.n_frames):
        picture.seek(frame)
        picture.load()
        total += picture.info["duration"]
    return total


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_an_animation_has_the_speed_of_the_task(suffix: str, clip: Segment, player: Player, tmp_path: Path) -> None:
    path = tmp_path / f"clip{suffix}"
    player.write(clip, path)
    with Image.open(path) as picture:
        read: Any = picture
        assert (read.size, read.info["loop"]) == ((48, 240), 0)
        assert duration(read) == 8 * 50
    flicker = [np.full((4, 4, 3), 255 * (number % 2), np.uint8) for number in range(30)]
    write_animation(flicker, path, frames_per_second=25)
    with Image.open(path) as picture:
        assert (getattr(picture, "n_frames", 1), duration(picture)) == (30, 30 * 40)


def test_a_fast_task_is_not_drawn_at_every_step(clip: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Walk.metadata, "render_fps", 90)
    player = Player(TASK, {})
    assert (player.every, player.frames_per_second) == (3, 30)
    frames = player.frames(clip)
    monkeypatch.setitem(Walk.metadata, "render_fps", 20)
    assert np.array_equal(frames, Player(TASK, {}).frames(clip)[::3])


def test_what_cannot_be_drawn_says_so(clip: Segment, player: Player, tmp_path: Path) -> None:
    with pytest.raises(TextEnvError, match=r"expected some, and a name that ends in \.webp or \.gif"):
        player.write(clip, tmp_path / "clip.mp4")
    trajectory = clip.trajectory
    moved = type(trajectory)(trajectory.seed + 1, trajectory.observations, trajectory.actions, trajectory.rewards)
    with pytest.raises(TextEnvError, match="played again, step 0 looks different"):
        player.frames(Segment(moved, 4, 12))
    with pytest.raises(TextEnvError, match="cannot be made to be drawn"):
        Player("tests/NoSuchTask-v0", {})


def test_a_task_that_cannot_be_drawn_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Walk) -> None:
        raise RuntimeError("no screen")

    monkeypatch.setattr(Walk, "render", fail)
    with pytest.raises(TextEnvError, match=r"cannot be drawn here: RuntimeError\('no screen'\)"):
        People(tmp_path / "store.db", tmp_path, TASK, {})
    assert not (tmp_path / "store.db").exists()


def judge_until(stop: threading.Event, path: Path) -> None:
    """Prefer the clip that was added first; every fifth pair is a tie, every seventh is a riddle, some are undone."""
    with FeedbackStore(path) as store:
        me, rng = store.annotator("somebody"), random.Random(0)
        while not stop.is_set():
            given = store.lease(me, rng=rng)
            if given is None:
                stop.wait(0.02)
                continue
            for item in given.items:
                assert item.scene == TASK
                with Image.open(item.path) as picture:
                    assert duration(picture) == 5 * 50
            if given.task % 7 == 0:
                store.judge(given.id, [None, None], verdict="cant_tell")
            elif given.task % 5 == 0:
                store.judge(given.id, [0, 0])
            else:
                ids = [item.id for item in given.items]
                if given.task % 3 == 0:  # changes their mind
                    store.judge(given.id, [int(number == min(ids)) for number in ids])
                    store.undo(me)
                store.judge(given.id, [int(number != min(ids)) for number in ids])


@pytest.mark.timeout(60)
def test_people_judge_while_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textenv.clips.preference_run._POLL_SECONDS", 0.05)
    path, out = tmp_path / "store.db", tmp_path / "run"
    FeedbackStore(path).close()
    stop = threading.Event()
    person = threading.Thread(target=judge_until, args=(stop, path))
    person.start()
    try:
        results = train(config(out, store=path, lag=0.0), progress=False)
    finally:
        stop.set()
        person.join()
    assert results["labels_asked"] == 16
    assert results["labels_judged"] == 14  # of tasks 1 to 16, two are multiples of 7
    checkpoint = latest_checkpoint(out / "checkpoints")
    assert checkpoint is not None
    tensors, state = read_checkpoint(checkpoint)
    assert state["asked"] == list(range(1, 17))
    preferred = tensors["comparisons/preferred"].tolist()
    expected = ["nan" if task % 7 == 0 else "0.5" if task % 5 == 0 else "1.0" for task in range(1, 17)]
    assert list(map(str, preferred)) == expected
    with FeedbackStore(path, create=False) as store:
        (model,) = store.reward_models()
        assert model.folder == str(out / "reward")
        assert len(model.judgements) == 14
        *asked_by, trained = store.policies()
        assert [policy.name for policy in asked_by] == [f"{out} at step {step}" for step in (0, 40, 80, 120)]
        assert trained.reward_model == model.id
        clips = store.clips()
        assert len(clips) == 32
        assert all(json.dumps(clip.details).find("return") < 0 for clip in clips)
        assert len(list((out / "clips").iterdir())) == 32


def test_a_run_that_waits_can_be_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks that were asked for before a kill are waited for after it, and not asked for again."""

    def killed(_: float) -> None:
        raise KeyboardInterrupt

    path, out = tmp_path / "store.db", tmp_path / "run"
    monkeypatch.setattr("textenv.clips.training.time.sleep", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(config(out, store=path), progress=False)
    with FeedbackStore(path, create=False) as store:
        assert [task.id for task in store.tasks()] == [1, 2, 3, 4]
