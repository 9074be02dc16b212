"""Episodes as pictures, and what collects them: Gymnasium's wrappers and Stable-Baselines3's recorder."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import gymnasium as gym
import matplotlib
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import AddRenderObservation, RecordVideo, RenderCollection
from gymnasium.wrappers.vector import RecordVideo as RecordVectorVideo
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecVideoRecorder

from textenv import CausalLM, Handle
from textenv.agents.sb3 import TextVecEnv
from textenv.env.picture import _COLUMNS, _GRAY, PICTURE_SIZE, _glyphs, _Part, _wrapped, to_picture
from textenv.types import Episode, Prompt, Turn

SHAPE = (*PICTURE_SIZE, 3)
EOS = 0
Picture = NDArray[np.uint8]


def episode(prompt: str, *tokens: str, kl: float = 0.0, turns: tuple[Turn, ...] = (), given: Any = None) -> Episode:
    n = len(tokens)
    return Episode(
        start=Prompt(prompt, (1,), given=given), completion="".join(tokens), completion_ids=tuple(range(n)),
        completion_tokens=tokens, log_probs=(0.0,) * n, ref_log_probs=(0.0,) * n, kl=(kl,) * n,
        token_rewards=(0.0,) * n, score=0.25, stop_reason="eos", turns=turns,
    )  # fmt: skip


HEIGHT, WIDTH, MARGIN = 18, 8, 16  # of a character, and around the text


def cells(picture: Picture, row: int, columns: slice) -> Picture:
    """Return the pixels of some characters of a line."""
    left, right, _ = columns.indices(_COLUMNS)
    top = MARGIN + HEIGHT * row
    return picture[top : top + HEIGHT, MARGIN + WIDTH * left : MARGIN + WIDTH * right]


# -- what is drawn -------------------------------------------------------------------------------------------------


def test_a_line_is_what_pillow_draws() -> None:
    image = Image.new("RGB", (WIDTH * len("The film"), HEIGHT), "white")
    path = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSansMono.ttf")
    font = ImageFont.truetype(path, 13, layout_engine=ImageFont.Layout.BASIC)
    ImageDraw.Draw(image).text((0, 1), "The film", fill=_GRAY, font=font)
    found = cells(to_picture(episode("The film")), 0, slice(8)).astype(int)
    assert np.abs(found - np.asarray(image)).max() <= 1


def test_tokens_are_black_on_the_color_of_their_kl_and_the_rest_is_gray() -> None:
    for kl, color in ((4.0, (255, 105, 105)), (-4.0, (105, 105, 255)), (0.0, (255, 255, 255))):
        picture = to_picture(episode("Me", "MM", kl=kl))
        prompt, written = cells(picture, 0, slice(0, 2)), cells(picture, 0, slice(2, 4))
        assert written[0, 0].tolist() == list(color)
        assert written.min() == 0
        assert prompt.max() == 255
        assert prompt.reshape(-1, 3).min(axis=0).tolist() == list(_GRAY)
        assert (cells(picture, 1, slice(None)) == 255).all()


def test_turns_have_lines_of_their_own() -> None:
    turns = (
        Turn("4", 1, "stop", "\nHigher.\n", (7,), 0.0),
        Turn("6", 1, "stop", ({"role": "tool", "content": "Right."},), (), 1.0),
    )
    picture = to_picture(episode("Guess: ", "4", "6", turns=turns))
    lines = ["world: Guess: ", "agent: 4", "world: Higher.", "agent: 6", "tool: Right."]
    for row, line in enumerate(lines):
        used = np.flatnonzero((cells(picture, row, slice(None)) < 255).any(axis=(0, 2)))
        assert used.max() // WIDTH == len(line.rstrip()) - 1
    assert (cells(picture, len(lines), slice(None)) == 255).all()
    assert (cells(picture, 0, slice(5)) != cells(picture, 1, slice(5))).any()  # the roles


def test_the_last_line_has_the_figures() -> None:
    one, other = episode("a", "b"), episode("a", "b", kl=1.0)
    figures = slice(MARGIN + 23 * HEIGHT, None)
    assert (to_picture(one)[figures] < 255).any()
    assert (to_picture(one)[figures] != to_picture(one, finished=False)[figures]).any()
    assert (to_picture(one)[figures] != to_picture(other)[figures]).any()


@given(st.text(), st.lists(st.text(max_size=5), max_size=8), st.booleans(), st.booleans())
def test_any_text_can_be_drawn(prompt: str, tokens: list[str], finished: bool, chat: bool) -> None:
    picture = to_picture(episode(prompt, *tokens, given=prompt if chat else None), finished=finished)
    assert picture.shape == SHAPE
    assert picture.dtype == np.uint8


@pytest.mark.parametrize(
    "text",
    ["日本語",
     "😀👩‍🚀🏳️‍🌈", "שלום مرحبا हिन्दी ไทย", "\x00\x07\x1b[31m\r\n\t", "\u202eabc\u2066", "\ud800",
     "\ufffd\ufffe\U0010ffff", "e\u0301" * 50,
     "$\\frac{a}$ _x^2", "a" * 1_000_000, "日" * 1_000_000, "\n" * 1_000_000, " " * 1_000_000, "\x00" * 1_000_000],
    ids=lambda text: f"{text[:6]!a}-{len(text)}",
)  # fmt: skip
def test_such_a_text_too(text: str) -> None:
    for shown in (episode(text, "b"), episode("a", text), episode("a", *text[:100], turns=())):
        picture = to_picture(shown)
        assert picture.shape == SHAPE
        assert (picture < 255).any()
    world = (Turn("b", 1, "eos", text, (), 0.0),)
    assert to_picture(episode(text, "b", turns=world)).shape == SHAPE


def test_characters_without_a_glyph_are_told_apart() -> None:
    drawn = [cells(to_picture(episode(text)), 0, slice(2)) for text in ("日", "本", "😀", "\U0001f9d1", "ab")]
    for place, one in enumerate(drawn):
        assert (one < 255).any()
        for other in drawn[:place]:
            assert (one != other).any()


def test_of_a_long_text_the_end_is_shown() -> None:
    end = "".join(f"line {number}\n" for number in range(30))
    whole = to_picture(episode("the film\n" + end, " is"))
    assert np.array_equal(whole, to_picture(episode("the plot\n" * 9 + end, " is")))
    assert not np.array_equal(whole, to_picture(episode("the film\n" + end[:200], " is")))
    dots = cells(whole, 0, slice(None)) < 255
    assert dots[:, :8].any()
    assert not dots[:, 8:].any()


@given(st.text(alphabet="ab \n日", max_size=400))
def test_lines_hold_the_text_and_no_more_than_fits(text: str) -> None:
    lines = list(_wrapped(_glyphs([_Part(text, _GRAY)])))
    assert "".join(glyph.text for line in lines for glyph in line) == text.replace("\n", "")
    assert all(sum(glyph.cells for glyph in line) <= _COLUMNS for line in lines)


def test_lines_are_broken_behind_spaces() -> None:
    words = [f"word{number}" for number in range(100)]
    lines = ["".join(glyph.text for glyph in line) for line in _wrapped(_glyphs([_Part(" ".join(words), _GRAY)]))]
    assert lines == [f"{line} " for line in textwrap.wrap(" ".join(words), _COLUMNS - 1)[:-1]] + [lines[-1]]
    assert "".join(lines).split(" ") == words


# -- environments --------------------------------------------------------------------------------------------------


def settings(lm: CausalLM, **given: Any) -> dict[str, Any]:
    world = {"world": "guess_number", "max_turns": 3, "max_tokens": 90, "max_new_tokens": 4}
    return {"model": lm, "render_mode": "rgb_array", **world, **given}


def single(lm: CausalLM, **given: Any) -> gym.Env[Any, Any]:
    env: gym.Env[Any, Any] = gym.make("textenv/Text-v0", **settings(lm, **given))
    env.action_space.seed(0)
    return env


def test_every_picture_of_an_environment_has_the_same_shape(tiny_lm: CausalLM) -> None:
    env = single(tiny_lm)
    pictures: list[Any] = []
    for seed in range(3):
        env.reset(seed=seed)
        pictures.append(env.render())
        over = False
        while not over:
            *_, terminated, truncated, _ = env.step(env.action_space.sample())
            over = terminated or truncated
            pictures.append(env.render())
    assert {picture.shape for picture in pictures} == {SHAPE}
    assert {picture.dtype for picture in pictures} == {np.dtype(np.uint8)}
    assert len({picture.tobytes() for picture in pictures}) > len(pictures) / 2
    pictures[-1][:] = 0  # it is the caller's
    again: Any = env.render()
    assert (again == 255).any()


@pytest.mark.parametrize("given", [{}, {"world": None, "max_turns": 8, "max_tokens": None, "prompts": ["the film"]}])
def test_the_checker_renders_it_in_every_mode(given: dict[str, Any], tiny_lm: CausalLM) -> None:
    keywords = {**settings(tiny_lm, **given), "model": Handle(tiny_lm)}
    check_env(gym.make("textenv/Text-v0", **keywords).unwrapped)


def test_the_vector_environment_has_a_picture_a_row(tiny_lm: CausalLM) -> None:
    envs: Any = gym.make_vec(
        "textenv/Text-v0", num_envs=2, autoreset_mode=AutoresetMode.DISABLED,
        **settings(tiny_lm, world=None, max_turns=8, max_tokens=None, prompts=["the film", "it"]),
    )  # fmt: skip
    envs.reset(options={"prompt": ["the film", "it"]})
    pictures: Any = None
    for _ in range(2):  # a finished row goes on being shown as finished
        envs.step(np.array([70, EOS]))
        pictures = envs.render()
        assert isinstance(pictures, tuple)
        assert [picture.shape for picture in pictures] == [SHAPE] * 2
    alone: Any = single(tiny_lm, world=None, max_turns=8, max_tokens=None, prompts=["it"])
    alone.reset()
    alone.step(EOS)
    assert np.array_equal(alone.render(), pictures[1])


def test_render_collection_and_render_observation(tiny_lm: CausalLM) -> None:
    env = RenderCollection(single(tiny_lm))
    env.reset(seed=0)
    env.step(70)
    frames: Any = env.render()
    assert [frame.shape for frame in frames] == [SHAPE] * 2
    seen = AddRenderObservation(single(tiny_lm), render_only=False)
    obs, _ = seen.reset(seed=0)
    assert np.array_equal(obs["pixels"], frames[0])
    assert seen.observation_space.contains(obs)


# -- videos, with a stand-in for moviepy, which writes them ----------------------------------------------------------


class Clip:
    """What the recorders use of moviepy's ``ImageSequenceClip``."""

    written: ClassVar[dict[str, tuple[list[Picture], float]]] = {}

    def __init__(self, frames: list[Picture], fps: float) -> None:
        self.frames, self.fps = frames, fps

    def write_videofile(self, path: str, logger: object = None) -> None:
        Clip.written[Path(path).name] = (self.frames, self.fps)


@pytest.fixture
def videos(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[list[Picture], float]]]:
    name = "moviepy.video.io.ImageSequenceClip"
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:depth]), ModuleType(parts[depth - 1]))
    sys.modules[name].ImageSequenceClip = Clip  # type: ignore[attr-defined]
    Clip.written.clear()
    yield Clip.written
    Clip.written.clear()


def test_record_video(videos: dict[str, tuple[list[Picture], float]], tiny_lm: CausalLM, tmp_path: Path) -> None:
    env = RecordVideo(single(tiny_lm), str(tmp_path / "videos"), episode_trigger=lambda _: True)
    steps = []
    for seed in range(2):
        env.reset(seed=seed)
        steps.append(0)
        over = False
        while not over:
            *_, terminated, truncated, _ = env.step(env.action_space.sample())
            over = terminated or truncated
            steps[-1] += 1
    env.close()  # type: ignore[no-untyped-call]
    assert [len(frames) for frames, _ in videos.values()] == [count + 1 for count in steps]
    assert {fps for _, fps in videos.values()} == {4}


def test_record_video_of_a_vector_environment(
    videos: dict[str, tuple[list[Picture], float]], tiny_lm: CausalLM, tmp_path: Path
) -> None:
    given = settings(tiny_lm)
    envs: Any = gym.make_vec("textenv/Text-v0", num_envs=2, autoreset_mode=AutoresetMode.NEXT_STEP, **given)
    recorded = RecordVectorVideo(envs, str(tmp_path / "videos"), step_trigger=lambda step: step == 0, video_length=3)
    recorded.reset(seed=0)
    for _ in range(5):
        recorded.step(recorded.action_space.sample())
    recorded.close()
    ((frames, _),) = videos.values()
    assert {frame.size for frame in frames} == {2 * np.prod(SHAPE)}


@pytest.mark.parametrize("native", [True, False], ids=["native", "make_vec_env"])
def test_the_recorder_of_stable_baselines3(
    native: bool, videos: dict[str, tuple[list[Picture], float]], tiny_lm: CausalLM, tmp_path: Path
) -> None:
    given = settings(tiny_lm)
    envs: Any
    if native:
        envs = TextVecEnv(gym.make_vec("textenv/Text-v0", num_envs=2, **given))
    else:  # which asks for pictures by itself, and copies the keywords
        del given["render_mode"]
        envs = make_vec_env("textenv/Text-v0", n_envs=2, env_kwargs={**given, "model": Handle(tiny_lm)})
    recorder = VecVideoRecorder(envs, str(tmp_path), record_video_trigger=lambda step: step == 0, video_length=4)
    recorder.reset()
    for _ in range(6):
        recorder.step(np.array([70, 71]))
    recorder.close()
    ((frames, fps),) = videos.values()
    assert len(frames) == 5
    assert {frame.shape for frame in frames} == {(960, 640, 3)}
    assert fps == 4


def test_other_modes_have_no_pictures(tiny_lm: CausalLM) -> None:
    make: Callable[..., Any] = gym.make_vec
    envs = TextVecEnv(make("textenv/Text-v0", num_envs=2, **settings(tiny_lm, render_mode="ansi")))
    assert list(envs.get_images()) == [None, None]
