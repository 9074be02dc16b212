"""Functions that the agent calls, and TRL's environments, whose methods it calls."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from textenv.types import TextEnvError
from textenv.worlds._resolve import check_makes, resolve

__all__ = ["Tools"]

_CALL = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_NOT_TOOLS = ("reset", "get_reward")


class Tools:
    """Makes the calls that the agent writes, and answers with what they return, as messages of the role ``tool``.

    It takes what TRL's ``GRPOTrainer`` takes as ``tools`` and ``environment_factory``, unmodified. Which tools there
    are, the agent reads in the form of the model's chat template, or in a system message where the template takes no
    ``tools``. It calls by ``<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>``, as Qwen 2.5 and
    Qwen 3 do, several in a turn if it likes; or by a turn that is ``{"name": "add", "parameters": {"a": 1, "b": 2}}``
    and nothing else, as Llama 3.1 does. A call that cannot be made is answered by its error. A turn without a call is
    the last one.

    An environment's public methods are tools, less ``reset`` and ``get_reward``. ``reset`` is given the prompt and its
    columns, and may return a text, which is appended to the last message; a ``seed`` it is given if it names one. The
    reward is what ``get_reward`` returns, or else the attribute ``reward``, or else 0. It is asked for after every
    turn, and the turn is paid by how much it has risen: whatever ends an episode, it has been paid ``get_reward``.
    """

    def __init__(
        self,
        *,
        tools: Sequence[str | Callable[..., Any]] = (),
        environment: str | Callable[[], Any] | None = None,
        describe: bool = True,
    ) -> None:
        """Take the tools.

        Args:
            tools: Functions with type hints and docstrings in Google's style, ``async`` ones too; or their import
                paths, ``"package.module:function"``.
            environment: A class whose methods are tools, a function that makes such an object, or the import path of
                either; at a path, the function says by its return annotation what it makes.
            describe: Tell the agent which tools there are and how they are called. Without it, the prompts have to.

        Raises:
            TextEnvError: A tool cannot be imported or described, two have one name, or there is none.
        """
        self._environment = None if environment is None else _make(environment)
        functions = [resolve("tool", tool) for tool in tools] + _methods(self._environment)
        self.tools: dict[str, Callable[..., Any]] = {tool.__name__: tool for tool in functions}
        """The functions by name."""
        if not functions or len(self.tools) < len(functions):
            raise TextEnvError(
                f"The tools are {[tool.__name__ for tool in functions]}; expected at least one, and names that differ."
            )
        self._schemas = [_schema(tool) for tool in functions] if describe else []
        self._paid = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Begin with the prompt, and what the environment adds to it."""
        columns = dict(options or {})
        prompt = columns.get("prompt", "")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(each) for each in prompt]
        if self._environment is not None:
            if "seed" in inspect.signature(self._environment.reset).parameters:
                columns.setdefault("seed", seed)
            said = _result_of(self._environment.reset(**columns))
            if said is not None:
                messages[-1] = {**messages[-1], "content": f"{messages[-1]['content']}{said}"}
        self._paid = 0.0
        return messages, {"tools": copy.deepcopy(self._schemas)} if self._schemas else {}

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Make the calls of a turn, one after the other."""
        answers = [self._call(written) for written in _CALL.findall(action) or _bare_call(action)]
        worth = self._worth()
        reward, self._paid = worth - self._paid, worth
        return answers or "", reward, not answers, False, {}

    def close(self) -> None:
        """Close the environment, if it can be closed."""
        close = getattr(self._environment, "close", None)
        if callable(close) and "close" not in self.tools:
            close()

    def _call(self, written: str) -> dict[str, Any]:
        """Make a call, and return the message that answers it."""
        name = "unknown"
        try:
            call = json.loads(written)
            arguments = call.get("arguments", call.get("parameters", {})) if isinstance(call, dict) else None
            if not isinstance(arguments, dict):
                raise ValueError(f'expected {{"name": ..., "arguments": {{...}}}}, not {written}')
            name = str(call.get("name"))
            if name not in self.tools:
                raise ValueError(f"There is no tool {name!r}; expected one of {', '.join(self.tools)}.")
            result = _result_of(self.tools[name](**arguments))
        except Exception as error:  # what the agent has done wrong, it reads
            result = {"error": str(error)}
        return {"role": "tool", "name": name, "content": str(result)}

    def _worth(self) -> float:
        """Return what the environment says that the episode is worth by now."""
        get = getattr(self._environment, "get_reward", None)
        worth = getattr(self._environment, "reward", None) if get is None else _result_of(get())
        return 0.0 if worth is None or callable(worth) else float(worth)


def _make(environment: str | Callable[[], Any]) -> Any:
    found = resolve("environment of tools", environment)
    if isinstance(environment, str):
        check_makes("environment of tools", environment, found, ("reset",))
    return found()


def _methods(environment: Any) -> list[Callable[..., Any]]:
    """Return the methods of an environment that are tools.

    Raises:
        TextEnvError: It cannot be reset.
    """
    if environment is None:
        return []
    if not callable(getattr(environment, "reset", None)):
        raise TextEnvError(f"The environment of tools {environment!r:.80} has no method reset.")
    names = [name for name, _ in inspect.getmembers(type(environment), inspect.isfunction)]
    return [getattr(environment, name) for name in names if name not in _NOT_TOOLS and not name.startswith("_")]


def _bare_call(action: str) -> list[str]:
    """Return the turn, if it is a call and nothing else, as Llama 3.1 writes it."""
    written = action.strip().removeprefix("<|python_tag|>")
    try:
        call = json.loads(written)
    except (ValueError, RecursionError):
        return []
    return [written] if isinstance(call, dict) and "name" in call and {"parameters", "arguments"} & set(call) else []


def _schema(tool: Callable[..., Any]) -> dict[str, Any]:
    """Return the JSON schema of a function, as chat templates take it.

    Raises:
        TextEnvError: Its type hints or its docstring leave open what it takes.
    """
    from transformers.utils.chat_template_utils import get_json_schema  # noqa: PLC0415 (slow to import)

    try:
        found: dict[str, Any] = json.loads(json.dumps(get_json_schema(tool), allow_nan=False))
    except Exception as error:
        raise TextEnvError(
            f"The tool {tool.__name__!r} cannot be described to the agent ({error}). Expected type hints and a "
            "docstring in Google's style with all arguments."
        ) from error
    return found


def _result_of(value: Any) -> Any:
    """Return a value, or what an awaitable comes to."""
    if not inspect.isawaitable(value):
        return value

    async def wait() -> Any:
        return await value

    return asyncio.run(wait())
