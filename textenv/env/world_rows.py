"""The worlds of an environment's rows: making them, beginning episodes in them, having them answer turns."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from textenv import plugins
from textenv.data.files import json_state
from textenv.data.values import check_cell
from textenv.env.settings import WORLD_SETTINGS, TextEnvSettings
from textenv.env.turns import as_observation
from textenv.types import Conversation, TextEnvError, World, as_number, in_one_line, short

__all__ = ["Answer", "Beginning", "WorldRows", "make_worlds"]


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a world's ``reset`` has returned, checked.

    Attributes:
        said: A text or messages.
        tools: JSON schemas of the functions that the agent may call.
        columns: What the reward is given of the episode.
    """

    said: str | Conversation
    tools: Sequence[Mapping[str, Any]] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a world's ``step`` has returned, checked.

    Attributes:
        said: A text or messages.
        reward: What it pays.
        terminated: Whether the episode is over.
        truncated: Whether the world cuts it off.
        columns: What the reward is given of the episode, by now.
    """

    said: str | Conversation
    reward: float
    terminated: bool
    truncated: bool
    columns: Mapping[str, Any] = field(default_factory=dict)


class WorldRows:
    """A world for each row of an environment.

    Attributes:
        name: What the world is called in messages.
        worlds: One a row.
    """

    def __init__(self, spec: Any, rows: int, *, workers: int, timeout: float) -> None:
        """Make the worlds.

        Args:
            spec: As in ``TextEnvSettings.world``.
            rows: How many.
            workers: Threads that ask worlds which cannot be asked together.
            timeout: Seconds that a world may take for an answer.

        Raises:
            TextEnvError: There is no such world, or what it makes is none.
        """
        self.name, make = plugins.worlds().find(spec)
        try:
            self.worlds: list[World] = [make() for _ in range(rows)]
        except TextEnvError:
            raise  # it names the world
        except Exception as error:
            raise TextEnvError(f"The world {self.name} cannot be made: {in_one_line(error)}") from error
        for world in self.worlds:
            if not isinstance(world, World):
                raise TextEnvError(f"The world {self.name} is {world!r}; expected an object with reset and step.")
        if len({id(world) for world in self.worlds}) < rows:
            raise TextEnvError(
                f"The world {self.name} is one object for {rows} rows; expected one for each. Give its class, or a "
                "function that makes a new one."
            )
        self._pool = _Pool(workers, timeout, self.name)
        self._together: Callable[..., Any] | None = getattr(self.worlds[0], "step_many", None)

    def begin(
        self, rows: Sequence[int], seeds: Sequence[int], options: Sequence[Mapping[str, Any] | None]
    ) -> list[Beginning]:
        """Begin an episode in each of some rows; return how.

        Args:
            rows: Which rows.
            seeds: Of what is random in each of them.
            options: For each, the prompt that it is given and its columns, or None.

        Raises:
            TextEnvError: A world raises, takes too long, or returns anything but what ``reset`` of ``World`` does.
        """

        def begin(row: int, seed: int, given: Mapping[str, Any] | None) -> Any:
            return self.worlds[row].reset(seed=seed, options=None if given is None else dict(given))

        calls = [
            _Call(f"reset(seed={seed})", begin, (row, seed, given))
            for row, seed, given in zip(rows, seeds, options, strict=True)
        ]
        return [self._beginning(found) for found in self._pool.run(calls)]

    def answer(self, rows: Sequence[int], texts: Sequence[str], turns: Sequence[int]) -> list[Answer]:
        """Have the worlds of some rows answer a turn each.

        Args:
            rows: Which rows.
            texts: What the agent wrote in each.
            turns: The number of each turn, for messages.

        Raises:
            TextEnvError: A world raises, takes too long, or answers anything but what ``step`` of ``World`` returns.
        """
        whats = [f"turn {turn}, {short(text)}" for turn, text in zip(turns, texts, strict=True)]
        if self._together is not None:
            what = whats[0] if len(rows) == 1 else f"the turns of {len(rows)} rows, the first {whats[0]}"
            call = _Call(what, self._together, ([self.worlds[row] for row in rows], list(texts)))
            (found,) = self._pool.run([call])
            if not isinstance(found, Sequence) or len(found) != len(rows):
                raise TextEnvError(f"step_many of the world {self.name} returned {short(found)} for {len(rows)} rows.")
        else:
            calls = [
                _Call(what, self.worlds[row].step, (text,)) for row, text, what in zip(rows, texts, whats, strict=True)
            ]
            found = self._pool.run(calls)
        return [self._checked(answer, what) for answer, what in zip(found, whats, strict=True)]

    def state(self) -> list[dict[str, Any] | None]:
        """Return the states of the worlds as JSON values; None for one without.

        Raises:
            TextEnvError: A state holds anything else.
        """
        return [self._state_of(world) for world in self.worlds]

    def load_state(self, states: Sequence[Mapping[str, Any] | None]) -> None:
        """Go back to states that ``state`` returned, one a row."""
        for world, state in zip(self.worlds, states, strict=True):
            load = getattr(world, "load_state_dict", None)
            if (state is None) is not (load is None):
                raise TextEnvError(f"The saved state of the world {self.name} is {short(state)}, which is another's.")
            if load is not None:
                load(state)

    def close(self) -> None:
        """Close the worlds that can be closed, and end the threads."""
        self._pool.close()
        for world in self.worlds:
            close = getattr(world, "close", None)
            if callable(close):
                close()

    def _state_of(self, world: World) -> dict[str, Any] | None:
        save = getattr(world, "state_dict", None)
        if save is None or not hasattr(world, "load_state_dict"):
            return None
        return json_state(save(), f"the world {self.name}")

    def _beginning(self, found: Any) -> Beginning:
        said = as_observation(_first_of(found, 2, self.name), self.name, "reset")
        tools = found[1].get("tools", ()) if isinstance(found[1], Mapping) else ()
        if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
            raise TextEnvError(
                f"The world {self.name} returned info['tools']={short(tools)} in reset; expected a list of JSON "
                "schemas of functions."
            )
        return Beginning(said, tools, self._columns(found[1], "reset"))

    def _checked(self, found: Any, what: str) -> Answer:
        said = as_observation(_first_of(found, 5, self.name), self.name, what)
        _, reward, terminated, truncated, info = found
        paid = as_number(reward, f"What the world {self.name} paid in {what}")
        for flag in (terminated, truncated):
            if not isinstance(flag, (bool, np.bool_)):
                raise TextEnvError(
                    f"The world {self.name} returned terminated={short(terminated)}, truncated={short(truncated)} in "
                    f"{what}: expected True or False."
                )
        return Answer(said, paid, bool(terminated), bool(truncated), self._columns(info, what))

    def _columns(self, info: Any, what: str) -> Mapping[str, Any]:
        columns = info.get("columns", {}) if isinstance(info, Mapping) else {}
        if not isinstance(columns, Mapping) or not all(isinstance(name, str) for name in columns):
            raise TextEnvError(
                f"The world {self.name} returned info['columns']={short(columns)} in {what}; expected a mapping of "
                "names to what the reward is given."
            )
        check_cell(columns, f"info['columns'] of the world {self.name} in {what}")
        return columns


def make_worlds(settings: TextEnvSettings, rows: int) -> WorldRows | None:
    """Return the worlds of an environment's rows; None where its settings name none.

    Raises:
        TextEnvError: There is no such world; or settings of worlds are given without one.
    """
    if settings.world is not None:
        return WorldRows(settings.world, rows, workers=settings.world_workers, timeout=settings.world_timeout)
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    for name in WORLD_SETTINGS:
        if getattr(settings, name) != defaults[name]:
            raise TextEnvError(f"{name}={getattr(settings, name)!r} says something of a world; give a world too.")
    return None


def _first_of(found: Any, size: int, world: str) -> Any:
    """Return the first item of what ``reset`` or ``step`` returned, a tuple of ``size``."""
    if not isinstance(found, tuple) or len(found) != size:
        expected = "(answer, reward, terminated, truncated, info)" if size == 5 else "(observation, info)"
        raise TextEnvError(f"The world {world} returned {short(found)}; expected {expected}.")
    return found[0]


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of a world.

    Attributes:
        what: What it is, for messages.
        function: What is called.
        arguments: With what.
    """

    what: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class _Pool:
    """Threads that call worlds: results come in the order of the calls, and a call that takes too long is given up.

    The threads end with the process, whatever they are doing: one that a world keeps cannot be stopped.
    """

    def __init__(self, workers: int, timeout: float, world: str) -> None:
        self._workers, self._timeout, self._world = workers, timeout, world
        self._calls: queue.SimpleQueue[tuple[_Call, queue.SimpleQueue[Any]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def run(self, calls: Sequence[_Call]) -> list[Any]:
        """Make calls; return their results in order.

        Raises:
            TextEnvError: One raises or takes too long; the message names the world and the call.
        """
        while len(self._threads) < min(self._workers, len(calls)):
            thread = threading.Thread(target=self._work, args=(self._calls,), name="world", daemon=True)
            self._threads.append(thread)
            thread.start()
        answers: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in calls]
        for pair in zip(calls, answers, strict=True):
            self._calls.put(pair)
        return [self._result(call, answer) for call, answer in zip(calls, answers, strict=True)]

    def close(self) -> None:
        """Let the threads end when they have done what they are doing."""
        for _ in self._threads:
            self._calls.put(None)
        self._threads, self._calls = [], queue.SimpleQueue()

    def _result(self, call: _Call, answer: queue.SimpleQueue[Any]) -> Any:
        try:
            ok, result = answer.get(timeout=self._timeout)
        except queue.Empty:
            self.close()  # its threads may be kept
            raise TextEnvError(
                f"The world {self._world} took more than {self._timeout:g} seconds in {call.what}; raise "
                "world_timeout if it needs them."
            ) from None
        if not ok:
            self.close()
            if isinstance(result, TextEnvError):
                raise TextEnvError(f"The world {self._world} in {call.what}: {in_one_line(result)}") from result
            raise TextEnvError(f"The world {self._world} raised {in_one_line(result)}, in {call.what}.") from result
        return result

    @staticmethod
    def _work(calls: queue.SimpleQueue[tuple[_Call, queue.SimpleQueue[Any]] | None]) -> None:
        while (job := calls.get()) is not None:
            call, answer = job
            try:
                answer.put((True, call.function(*call.arguments)))
            except BaseException as error:  # one that asks the thread to exit too
                answer.put((False, error))
