"""What an engine does: take a policy's weights, and continue texts with tokens and their log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from textenv.rollouts.engines.client import JsonClient
from textenv.types import TextEnvError, short

__all__ = ["Completion", "Engine", "Request", "Sampling", "completion_of", "served_model"]


class Request(NamedTuple):
    """A text to continue.

    Attributes:
        ids: Its token ids.
        most: Tokens to write, at most.
        seed: Of the draws, below ``2**31``.
    """

    ids: list[int]
    most: int
    seed: int


class Completion(NamedTuple):
    """What an engine has written after a text; the token that ended it is in it.

    Attributes:
        tokens: Token ids.
        log_probs: log pi of each when it was drawn, in nats, at the temperature that it was drawn with.
    """

    tokens: list[int]
    log_probs: list[float]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn: from the whole vocabulary, without penalties.

    Attributes:
        temperature: Divides the logits.
        eos_ids: Tokens after which nothing more is written.
        stop: Strings, likewise.
    """

    temperature: float
    eos_ids: tuple[int, ...]
    stop: tuple[str, ...]


class Engine(Protocol):
    """An inference server that writes for a policy."""

    @property
    def label(self) -> str:
        """Its name and address, for messages."""
        ...

    @property
    def context(self) -> int | None:
        """The most tokens of a text that it reads and writes; None where it does not say so."""
        ...

    def load(self, folder: Path) -> None:
        """Take the weights in a folder, which the server reads, and forget what it has computed with others.

        Raises:
            TextEnvError: It refuses them, or does not answer.
        """
        ...

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """Continue texts; the completions are in the order of the requests.

        Raises:
            TextEnvError: It refuses one, does not answer, or answers with anything but tokens and log-probabilities.
        """
        ...

    def give_up(self) -> None:
        """End the requests of other threads that wait for an answer."""
        ...


def served_model(client: JsonClient) -> tuple[str, int | None]:
    """Return the name of the model that a server lists first, and the most tokens of a text if it says so.

    Raises:
        TextEnvError: It lists none.
    """
    answer = client.get("/v1/models")
    try:
        model = answer["data"][0]
        name, context = model["id"], model.get("max_model_len")
    except (TypeError, KeyError, IndexError, AttributeError):
        raise client.unexpected("/v1/models", answer, "a list of models") from None
    if not isinstance(name, str) or not (context is None or _is_whole(context)):
        raise client.unexpected("/v1/models", answer, "a list of models")
    return name, context


def completion_of(client: JsonClient, path: str, tokens: Any, log_probs: Any, most: int) -> Completion:
    """Return what a server has written, if it is such: as many log-probabilities as tokens, from 1 to ``most``.

    Raises:
        TextEnvError: It is not.
    """
    if not isinstance(tokens, list) or not all(map(_is_whole, tokens)):
        raise client.unexpected(path, tokens, "token ids")
    if not isinstance(log_probs, list) or not all(isinstance(value, int | float) for value in log_probs):
        raise client.unexpected(path, log_probs, "a log-probability for each token")
    if not 0 < len(tokens) == len(log_probs) <= most:
        raise TextEnvError(
            f"{client.label} has written {len(tokens)} tokens with {len(log_probs)} log-probabilities; expected as "
            f"many of each, at least 1 and at most {most}: {short(tokens)}"
        )
    return Completion(tokens, [float(value) for value in log_probs])


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
