"""``textenv/Browse-v0``: its contract, its settings, and what it says without a web."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from tests.complaints import one_line
from tests.webs import small_web
from tests.worlds.checks import write
from textenv import TextEnv, TextEnvError
from textenv.data.web_pages import Question
from textenv.env.ids.browse import browser_settings
from textenv.env.registry import record_of
from textenv.testing import EnvironmentContract

QUESTIONS = tuple(Question(f"What does heron {number} eat?", ("fish",)) for number in range(20))


class TestBrowseContract(EnvironmentContract):
    @pytest.fixture(autouse=True)
    def _settings(self, tmp_path: Path) -> None:
        web = str(small_web(tmp_path, questions=QUESTIONS))
        browser = {"max_actions": 2, "window": 60}
        self.settings: dict[str, Any] = {"web": web, "browser": browser, "max_new_tokens": 4}

    def make_env(self, **settings: Any) -> Any:
        return gym.make("textenv/Browse-v0", **{**self.settings, **settings})

    def make_vec_env(self, num_envs: int, **settings: Any) -> Any:
        return gym.make_vec("textenv/Browse-v0", num_envs=num_envs, **{**self.settings, **settings})

    @pytest.mark.slow
    def test_every_action_is_legal(self) -> None:
        super().test_every_action_is_legal()


def test_a_right_answer_is_paid(tmp_path: Path) -> None:
    env = gym.make("textenv/Browse-v0", web=str(small_web(tmp_path, questions=QUESTIONS)), kl_coef=0.0)
    assert isinstance(env.unwrapped, TextEnv)
    paid = []
    for answer in ("The fish.", "birds"):
        env.reset(seed=0)
        for action in ("Search heron", "Clicked on link 0", "Quote: It eats fish.", "End: Answer", answer):
            reward, over, _, info = write(env.unwrapped, action)
        assert over
        assert info["stop_reason"] == "world"
        paid.append(reward)
    assert paid == [1.0, 0.0]
    assert [turn.text for turn in info["turns"]][-1] == "birds"
    env.close()


def test_the_held_out_questions_are_others(tmp_path: Path) -> None:
    web = str(small_web(tmp_path, questions=QUESTIONS))
    held_out = record_of("textenv/Browse-v0").held_out
    seen = []
    for settings in ({}, dict(held_out or {})):
        env = gym.make("textenv/Browse-v0", web=web, **settings)
        seen.append({env.reset(seed=seed)[1]["prompt"] for seed in range(40)})
        env.close()
    assert all(seen)
    assert not seen[0] & seen[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"web": "none.sqlite"}, "none.sqlite: cannot be read as an offline web"),
        ({"split": "test"}, "split='test'"),
        ({"browser": 3}, "browser is 3; expected an object"),
        ({"browser": {"widnow": 3}}, "Did you mean 'window'?"),
        ({"browser": {"max_actions": "3"}}, "max_actions='3'"),
        ({"max_new_token": 3}, "Did you mean 'max_new_tokens'?"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with one_line(message):
        gym.make("textenv/Browse-v0", **{"web": str(small_web(tmp_path)), **settings})


def test_without_a_cache_and_a_connection_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 100, "", "E: Unable to locate package wordnet-base")

    monkeypatch.setenv("TEXTENV_CACHE", str(tmp_path))
    monkeypatch.setattr("textenv.data.debian.shutil.which", lambda tool: tool)
    monkeypatch.setattr("textenv.data.debian.subprocess.run", offline)
    with pytest.raises(TextEnvError, match=r"apt-get download wordnet-base failed: .* Or put .* into .*") as caught:
        gym.make("textenv/Browse-v0")
    assert "\n" not in str(caught.value)


def test_the_web_that_is_given_is_used(tmp_path: Path) -> None:
    found = browser_settings(tmp_path / "mine.sqlite", browser={"window": 3})
    assert (found["web"], found["window"], found["max_actions"]) == (str(tmp_path / "mine.sqlite"), 3, 10)
