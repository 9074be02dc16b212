"""Echo environments of ``environments.py``: one measurement in a process of its own, printed as JSON on the last line.

    python -m benchmarks._echoes '{"side": "gem", "rows": 64, "turns": 8, "seconds": 0.5}'

It runs in our environment and in the peers', so each side imports its own package. The same environment is written in
the form that each package has for it: it answers ``ACTION`` with the same text, pays ``REWARD``, and is over after some
turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from benchmarks._measure import rate

Side = Literal[
    "textenv-world", "textenv-rows", "textenv-tokens", "gem", "gem-threads", "skyrl", "openenv", "openenv-client"
]
ACTION = "The film was good, and the end of it was better than the rest: I would see it again."
READY = "Echo is ready."


def reward_of(text: str) -> float:
    """Return what the environment pays for an action: OpenEnv's own echo pays so."""
    return min(len(text) * 0.1, 1.0)


@dataclass(frozen=True, slots=True)
class Job:
    """What to measure: turns a second, of all rows together."""

    side: Side
    rows: int
    turns: int
    seconds: float


class Answers(NamedTuple):
    """What a side returned for a turn of each row; texts are None where it returns no text."""

    texts: Sequence[str] | None
    rewards: Sequence[float]
    over: Sequence[bool]


class Steps(ABC):
    """A side's environments, made and ready."""

    tokens: int | None = None
    """Tokens of an action, where a turn is as many steps."""

    @abstractmethod
    def reset(self) -> None:
        """Begin an episode in each row."""

    @abstractmethod
    def step(self) -> Answers:
        """Give every row ``ACTION``."""

    def close(self) -> None:  # noqa: B027 (most have nothing to close)
        """End what was started for it."""


class TextenvWorld(Steps):
    """Worlds of ours: what answers the agent, an environment of texts as one writes it."""

    def __init__(self, job: Job) -> None:
        self._worlds = [_world(job.turns) for _ in range(job.rows)]

    def reset(self) -> None:
        for world in self._worlds:
            world.reset(seed=0)

    def step(self) -> Answers:
        found = [world.step(ACTION) for world in self._worlds]
        return Answers([each[0] for each in found], [each[1] for each in found], [each[2] for each in found])


class TextenvRows(Steps):
    """The worlds of a batch as ``textenv/Text-v0`` asks them: in threads, with a time limit, every answer checked."""

    def __init__(self, job: Job) -> None:
        from textenv.env.world_rows import WorldRows  # noqa: PLC0415

        self._rows = list(range(job.rows))
        self._worlds = WorldRows(lambda: _world(job.turns), job.rows, workers=1, timeout=60.0)
        self._turns = 0

    def reset(self) -> None:
        self._worlds.begin(self._rows, [0] * len(self._rows), [None] * len(self._rows))
        self._turns = 0

    def step(self) -> Answers:
        self._turns += 1
        number = len(self._rows)
        found = self._worlds.answer(self._rows, [ACTION] * number, [self._turns] * number)
        return Answers(
            [str(each.said) for each in found], [each.reward for each in found], [each.terminated for each in found]
        )


class TextenvTokens(Steps):
    """``textenv/Text-v0`` with the world, token by token; the reference's log-probabilities are zeros at no cost.

    A turn is as many steps as ``ACTION`` has tokens, and the tokens of the answer, which the next turn begins with.
    """

    def __init__(self, job: Job) -> None:
        import gymnasium  # noqa: PLC0415
        import numpy as np  # noqa: PLC0415

        import textenv  # noqa: F401, PLC0415 (registers the id)
        from textenv.models.causal_lm import CausalLM  # noqa: PLC0415

        reference = CausalLM.from_pretrained("bundled")
        ids = reference.encode_behind(ACTION)
        self.tokens = len(ids)
        reference.token_log_probs = lambda ids, *_, **__: np.zeros(  # type: ignore[method-assign]
            (len(ids), ids.shape[1] - 1), dtype=np.float32
        )
        settings: dict[str, Any] = {
            "model": reference, "world": lambda: _world(job.turns), "context": "fresh", "kl_mode": "lump",
            "kl_coef": 0.0, "max_turns": job.turns, "max_new_tokens": self.tokens, "max_tokens": 4 * self.tokens,
        }  # fmt: skip
        self._env = gymnasium.make_vec(
            "textenv/Text-v0", job.rows, vectorization_mode="vector_entry_point", autoreset_mode="Disabled", **settings
        )
        self._actions = np.repeat(np.array(ids)[:, None], job.rows, axis=1)

    def reset(self) -> None:
        self._env.reset(seed=0)

    def step(self) -> Answers:
        for actions in self._actions:
            _, rewards, terminations, _, _ = self._env.step(actions)
        return Answers(None, rewards.tolist(), terminations.tolist())


class Gem(Steps):
    """gem-llm: ``make`` and, of several rows, ``make_vec``, which begins the next episode in the last step of one."""

    def __init__(self, job: Job) -> None:
        import gem  # noqa: PLC0415
        from gem.core import Env  # noqa: PLC0415

        class Echo(Env):  # type: ignore[misc]
            def __init__(self, **_: Any) -> None:
                self._turns = 0

            def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
                super().reset(seed)
                self._turns = 0
                return READY, {}

            def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
                self._turns += 1
                return action, reward_of(action), self._turns == job.turns, False, {}

        gem.register("bench:Echo-v0", Echo)
        with contextlib.redirect_stdout(sys.stderr):
            self._env = gem.make_vec(["bench:Echo-v0"] * job.rows, async_mode=job.side == "gem-threads")
        self._actions = [ACTION] * job.rows
        self._begun = False

    def reset(self) -> None:
        if not self._begun:
            self._env.reset(seed=0)
            self._begun = True

    def step(self) -> Answers:
        texts, rewards, terminations, truncations, _ = self._env.step(self._actions)
        return Answers(texts, rewards.tolist(), (terminations | truncations).tolist())


class GemAlone(Steps):
    """One environment of gem-llm."""

    def __init__(self, job: Job) -> None:
        import gem  # noqa: PLC0415

        Gem(job)  # registers it
        self._env = gem.make("bench:Echo-v0")

    def reset(self) -> None:
        self._env.reset(seed=0)

    def step(self) -> Answers:
        text, reward, terminated, truncated, _ = self._env.step(ACTION)
        return Answers([text], [float(reward)], [terminated or truncated])


class SkyRL(Steps):
    """skyrl-gym: ``make``; its answers are lists of messages."""

    def __init__(self, job: Job) -> None:
        import skyrl_gym  # noqa: PLC0415
        from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput  # noqa: PLC0415

        class Echo(BaseTextEnv):  # type: ignore[misc]
            def __init__(self, env_config: Any = None, extras: Any = None) -> None:
                super().__init__()
                self.max_turns = job.turns

            def init(self, prompt: list[dict[str, str]]) -> tuple[list[dict[str, str]], dict[str, Any]]:
                self.turns = 0
                return prompt, {}

            def step(self, action: str) -> Any:
                self.turns += 1
                return BaseTextEnvStepOutput(
                    observations=[{"role": "user", "content": action}],
                    reward=reward_of(action),
                    done=self.turns == self.max_turns,
                    metadata={},
                )

        skyrl_gym.register(id="echo", entry_point=Echo)
        self._envs = [skyrl_gym.make("echo") for _ in range(job.rows)]

    def reset(self) -> None:
        for env in self._envs:
            env.init([{"role": "user", "content": READY}])

    def step(self) -> Answers:
        found = [env.step(ACTION) for env in self._envs]
        texts = [each["observations"][0]["content"] for each in found]
        return Answers(texts, [each["reward"] for each in found], [each["done"] for each in found])


class OpenEnv(Steps):
    """OpenEnv's environment in this process, without its server."""

    def __init__(self, job: Job) -> None:
        self._make_action, make = _openenv(job.turns)[::2]
        self._envs = [make() for _ in range(job.rows)]

    def reset(self) -> None:
        for env in self._envs:
            env.reset(seed=0)

    def step(self) -> Answers:
        found = [env.step(self._make_action(message=ACTION)) for env in self._envs]
        texts = [each.echoed_message for each in found]
        return Answers(texts, [each.reward for each in found], [each.done for each in found])


class OpenEnvClient(Steps):
    """OpenEnv as it is meant: a server in a process of its own, and a client with a session for each row, all at once.

    The client is asynchronous, as that of OpenEnv is; each row awaits its own answer.
    """

    def __init__(self, job: Job) -> None:
        from openenv.core import EnvClient  # noqa: PLC0415
        from openenv.core.client_types import StepResult  # noqa: PLC0415

        action, observation, _ = _openenv(job.turns)

        class Client(EnvClient):  # type: ignore[misc]
            def _step_payload(self, action: Any) -> dict[str, Any]:
                return {"message": action.message}

            def _parse_result(self, payload: dict[str, Any]) -> Any:
                seen = payload.get("observation", {})
                done, reward = payload.get("done", False), payload.get("reward")
                return StepResult(
                    observation=observation(
                        echoed_message=seen.get("echoed_message", ""),
                        message_length=seen.get("message_length", 0),
                        done=done,
                        reward=reward,
                    ),
                    reward=reward,
                    done=done,
                )

            def _parse_state(self, payload: dict[str, Any]) -> Any:
                return payload

        self._make_action = action
        command = [sys.executable, "-m", "benchmarks._echoes", "serve", str(job.rows), str(job.turns)]
        self._loop = asyncio.new_event_loop()
        self._server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert self._server.stdout is not None
            url = f"http://127.0.0.1:{int(self._server.stdout.readline())}"
            self._clients = [Client(base_url=url) for _ in range(job.rows)]
            self._together(lambda client: client.connect())
        except BaseException:
            self._server.kill()
            raise

    def reset(self) -> None:
        self._together(lambda client: client.reset(seed=0))

    def step(self) -> Answers:
        found = self._together(lambda client: client.step(self._make_action(message=ACTION)))
        texts = [each.observation.echoed_message for each in found]
        return Answers(texts, [each.reward for each in found], [each.done for each in found])

    def close(self) -> None:
        """End the sessions and the server, and wait for it, so that its time is counted as ours."""
        self._together(lambda client: client.close())
        self._server.terminate()
        self._server.wait()

    def _together(self, ask: Callable[[Any], Any]) -> list[Any]:
        async def of(client: Any) -> Any:
            return await ask(client)

        async def all_of() -> list[Any]:
            return await asyncio.gather(*(of(client) for client in self._clients))

        return self._loop.run_until_complete(all_of())


def _world(turns: int) -> Any:
    """Return our echo: any object with ``reset`` and ``step`` is a world."""

    class Echo:
        def __init__(self) -> None:
            self._turns = 0

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[str, dict[str, Any]]:
            self._turns = 0
            return READY, {}

        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            self._turns += 1
            return action, reward_of(action), self._turns == turns, False, {}

    return Echo()


def _openenv(turns: int) -> tuple[type[Any], type[Any], type[Any]]:
    """Return OpenEnv's echo: the types of its action, its observation and itself, as ``openenv init`` writes them."""
    from uuid import uuid4  # noqa: PLC0415

    from openenv.core.env_server.interfaces import Environment  # noqa: PLC0415
    from openenv.core.env_server.types import Action, Observation, State  # noqa: PLC0415

    class EchoAction(Action):  # type: ignore[misc]
        message: str

    class EchoObservation(Observation):  # type: ignore[misc]
        echoed_message: str = ""
        message_length: int = 0

    class Echo(Environment):  # type: ignore[misc]
        SUPPORTS_CONCURRENT_SESSIONS = True

        def __init__(self) -> None:
            super().__init__()
            self._state = State(episode_id=str(uuid4()), step_count=0)

        def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> EchoObservation:
            self._state = State(episode_id=episode_id or str(uuid4()), step_count=0)
            return EchoObservation(echoed_message=READY, done=False, reward=0.0)

        def step(self, action: EchoAction, **_: Any) -> EchoObservation:
            self._state.step_count += 1
            return EchoObservation(
                echoed_message=action.message,
                message_length=len(action.message),
                done=self._state.step_count == turns,
                reward=reward_of(action.message),
            )

        @property
        def state(self) -> State:
            return self._state

    EchoAction.model_rebuild()
    return EchoAction, EchoObservation, Echo


def serve(rows: int, turns: int) -> None:
    """Serve OpenEnv's echo until the process is ended; print the port first."""
    import uvicorn  # noqa: PLC0415
    from openenv.core.env_server.http_server import create_app  # noqa: PLC0415

    action, observation, env = _openenv(turns)
    app = create_app(env, action, observation, env_name="echo", max_concurrent_envs=rows)
    listening = socket.create_server(("127.0.0.1", 0), backlog=rows)
    print(listening.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


SIDES: dict[Side, Callable[[Job], Steps]] = {
    "textenv-world": TextenvWorld,
    "textenv-rows": TextenvRows,
    "textenv-tokens": TextenvTokens,
    "gem": lambda job: Gem(job) if job.rows > 1 else GemAlone(job),
    "gem-threads": Gem,
    "skyrl": SkyRL,
    "openenv": OpenEnv,
    "openenv-client": OpenEnvClient,
}


def check(side: Steps, job: Job) -> None:
    """Step through two episodes and see that they are those of the echo.

    Raises:
        RuntimeError: They are not.
    """
    for _ in range(2):
        side.reset()
        for turn in range(1, job.turns + 1):
            found = side.step()
            last = turn == job.turns
            texts = [ACTION] * job.rows if found.texts is None else list(found.texts)
            right = last or texts == [ACTION] * job.rows  # where the next episode begins at once, its text is there
            rewards = [reward_of(ACTION)] * job.rows
            if not right or list(found.rewards) != rewards or list(found.over) != [last] * job.rows:
                raise RuntimeError(f"{job.side} answered {found} in turn {turn} of {job.turns}, which is no echo.")


def main(job: Job) -> None:
    side = SIDES[job.side](job)

    def episode() -> int:
        side.reset()
        for _ in range(job.turns):
            side.step()
        return job.turns * job.rows

    try:
        check(side, job)
        figures = {"rate": rate(episode, job.seconds)(), "tokens": side.tokens}
    finally:
        side.close()
    print(json.dumps(figures, allow_nan=False))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]), int(sys.argv[3]))
    else:
        main(Job(**json.loads(sys.argv[1])))
