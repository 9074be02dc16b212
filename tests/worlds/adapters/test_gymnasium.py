"""Environments that are registered with Gymnasium."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import pytest
from gymnasium import spaces
from gymnasium.envs import registration

from tests.families import make_family
from tests.worlds.checks import env_of, passes_both_checkers, write
from textenv import CausalLM, TextEnvError
from textenv.testing import WorldContract
from textenv.worlds import find
from textenv.worlds.adapters.gymnasium import Gymnasium


class Echo(gym.Env[Any, str]):
    """Says a number and what was written, in capitals; pays for the length, and ends after three turns."""

    observation_space: spaces.Space[Any] = spaces.Text(1000)
    action_space: spaces.Space[Any] = spaces.Text(1000)

    def __init__(self, greeting: str = "Hi") -> None:
        self.greeting, self.closed = greeting, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.turns = 0
        return self.say(f"{self.greeting} {self.np_random.integers(100)}{(options or {}).get('prompt', '')}\n"), {}

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.turns += 1
        said = self.say(f"\n{action.upper()} {self.np_random.integers(100)}\n")
        return said, float(len(action)), self.turns == 3, False, {}

    def say(self, text: str) -> Any:
        return text

    def close(self) -> None:
        self.closed = True


class Chat(Echo):
    """The same in messages."""

    observation_space = spaces.Sequence(spaces.Dict(role=spaces.Text(9), content=spaces.Text(1000)))

    def say(self, text: str) -> Any:
        return [{"role": "user", "content": text}]


class Numbers(Echo):
    observation_space = spaces.Box(0, 1)


class Buttons(Echo):
    action_space = spaces.Discrete(2)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "registry", dict(gym.registry))
    kinds: list[Any] = [Echo, Chat, Numbers, Buttons]
    for kind in kinds:
        gym.register(f"tests/{kind.__name__}-v0", entry_point=kind, max_episode_steps=10)


class TestGymnasium(WorldContract):
    most_turns = 3
    id: ClassVar[str] = "tests/Echo-v0"

    def make_world(self) -> Gymnasium:
        return Gymnasium(self.id)

    def options(self) -> dict[str, Any]:
        return {"prompt": "!"}


class TestGymnasiumInMessages(TestGymnasium):
    id = "tests/Chat-v0"


def test_settings_are_those_of_make() -> None:
    world = Gymnasium("tests/Echo-v0", greeting="Hello", max_episode_steps=1)
    assert world.reset(seed=0)[0].startswith("Hello ")
    assert world.step("abc")[1:4] == (3.0, False, True)  # the limit of gymnasium.make


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("tests/Nonesuch-v0", {}, "cannot be made: NameNotFound"),
        ("nonesuch.module:Nonesuch-v0", {}, "cannot be made: ModuleNotFoundError"),
        ("tests/Echo-v0", {"greetings": "Hello"}, "unexpected keyword argument 'greetings'"),
        ("tests/Numbers-v0", {}, r"has observations Box.* and actions Text.*; expected actions of the space Text"),
        ("tests/Buttons-v0", {}, r"and actions Discrete\(2\)"),
    ],
)
def test_what_is_no_world_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TextEnvError, match=f"The world 'gymnasium:{name}' .*{message}"):
        find({"name": f"gymnasium:{name}", **settings})[1]()


def test_closing_closes_it() -> None:
    world = Gymnasium("tests/Echo-v0")
    world.close()
    assert world._env.unwrapped.closed  # type: ignore[attr-defined]


def test_in_an_environment(tiny_lm: CausalLM) -> None:
    passes_both_checkers(tiny_lm, "gymnasium:tests/Echo-v0", max_new_tokens=2)
    with env_of(tiny_lm, {"name": "gymnasium:tests/Echo-v0", "max_episode_steps": 2}, kl_coef=0.0) as env:
        _, info = env.reset(seed=0)
        assert info["prompt"].startswith("Hi ")
        assert write(env, "film")[:3] == (4.0, False, False)
        paid, terminated, truncated, info = write(env, "plot of it")
        assert (paid, terminated, truncated, info["stop_reason"]) == (10.0, False, True, "world")


def test_messages_in_an_environment() -> None:
    passes_both_checkers(make_family("qwen2"), "gymnasium:tests/Chat-v0", max_new_tokens=2)
