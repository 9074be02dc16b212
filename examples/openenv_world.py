"""An OpenEnv server's environment as a token-level one: https://github.com/huggingface/OpenEnv.

The server needs OpenEnv, which brings many packages, so it gets an environment of its own; the client needs none of it:

python -m venv server && server/bin/pip install openenv 'textenv[openenv]'
server/bin/python examples/openenv_world.py
"""

from __future__ import annotations

import socket
import threading
import time
import warnings
from typing import Any

import gymnasium as gym
import tyro
import uvicorn
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from openenv.core.env_server import Action, Environment, Observation, State, create_app
from stable_baselines3.common.env_checker import check_env as stable_baselines3_check_env

import textenv  # noqa: F401 (registers the ids)
from textenv.worlds import find
from textenv.worlds.guess_number import GuessNumber


class Guess(Action):
    """What is written."""

    message: str


class Answer(Observation):
    """What is read."""

    text: str = ""


class Game(Environment[Guess, Answer, State]):
    """The number to be guessed, on a server."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self._world, self._turns = GuessNumber(), 0

    def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Answer:
        """Begin a game."""
        self._turns = 0
        return Answer(text=self._world.reset(seed=seed)[0])

    def step(self, action: Guess, timeout_s: float | None = None, **_: Any) -> Answer:
        """Take a guess."""
        self._turns += 1
        said, reward, done, *_rest = self._world.step(action.message)
        return Answer(text=said, reward=reward, done=done or self._turns == 8)

    @property
    def state(self) -> State:
        """How far the game is."""
        return State(step_count=self._turns)


def serve() -> tuple[uvicorn.Server, threading.Thread, str]:
    """Start a server for eight sessions at once; return it, its thread and its address."""
    app = create_app(Game, Guess, Answer, env_name="guess_number", max_concurrent_envs=8)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.05)
    return server, thread, f"http://127.0.0.1:{listening.getsockname()[1]}"


def main(episodes: int = 20, model: str = "bundled") -> None:
    server, thread, url = serve()
    try:
        world, alone = find(f"openenv:{url}")[1](), GuessNumber()
        for seed in range(episodes):
            assert world.reset(seed=seed)[0] == alone.reset(seed=seed)[0]
            for guess in range(1, 9):
                answer = world.step(str(guess))
                assert answer[:2] == alone.step(str(guess))[:2]
                if answer[2]:
                    break
        world.close()  # type: ignore[attr-defined]
        print(f"{episodes} episodes over the server, the same as without it")
        env = gym.make("textenv/Text-v0", model=model, world=f"openenv:{url}", max_new_tokens=4)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gymnasium_check_env(env.unwrapped, skip_render_check=True)
            stable_baselines3_check_env(env.unwrapped)
        env.close()
        envs = gym.make_vec("textenv/Text-v0", num_envs=4, model=model, world=f"openenv:{url}", max_new_tokens=4)
        envs.reset(seed=0)
        for _ in range(40):
            envs.step(envs.action_space.sample())
        envs.close()
        print("both checkers pass, and four rows have a session each")
    finally:
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    tyro.cli(main)
