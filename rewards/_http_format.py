"""The messages of the reward ``http``: the bodies of its requests, the scores in an answer, and what an answer says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import numpy as np

from textenv.rewards._http_chat import as_texts
from textenv.rewards._http_settings import HttpSettings
from textenv.types import TextEnvError

MOST_BYTES = 16 * 2**20  # of an answer: half a million scores
_SHOWN = 500  # characters of an answer in a message
_LARGEST = float(np.finfo(np.float32).max)  # the environment keeps scores in float32


class ScoreRequest(NamedTuple):
    """A request.

    Attributes:
        body: JSON.
        texts: Number of texts that it asks to score.
    """

    body: bytes
    texts: int


def score_request(
    settings: HttpSettings,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]],
) -> ScoreRequest:
    """Return the request that asks to score ``n`` completions.

    The body is ASCII, in which JSON can also write half of a surrogate pair.

    Raises:
        TextEnvError: A column holds what JSON cannot, or a conversation is to be sent as a text and there is no chat
            template to write it with.
    """
    cells = {name: list(values) for name, values in columns.items()}
    batch: dict[str, Any] = {}
    if settings.protocol == "openrlhf":
        pairs = zip(prompts, completions, strict=True)
        texts = [as_texts(settings.tokenizer, prompt, completion) for prompt, completion in pairs]
        batch["query"], batch["prompts"] = [whole for _, whole in texts], [prompt for prompt, _ in texts]
        (batch["labels"],) = cells.values() or ([None] * len(completions),)
    else:
        ids = [list(map(int, row)) for row in completion_ids]
        batch |= {"prompts": [*map(_as_json, prompts)], "completions": [*map(_as_json, completions)]}
        batch |= {"completion_ids": ids, "columns": cells}
    try:
        body = json.dumps(batch, allow_nan=False, separators=(",", ":"), default=_plain).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise TextEnvError(
            f"{settings!r} cannot send its columns, {list(cells)}, as JSON ({error}). Choose others, columns=[...], or "
            "turn their values into texts, finite numbers or lists of these."
        ) from error
    return ScoreRequest(body, len(completions))


def _as_json(text: Any) -> Any:
    """Return a text, or messages as objects."""
    return text if isinstance(text, str) else [dict(message) for message in text]


def _plain(value: Any) -> Any:
    """Turn arrays, tensors and their scalars into numbers and lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"it holds a {type(value).__name__}")


def read_scores(settings: HttpSettings, request: ScoreRequest, content: bytes, said: str) -> list[float]:
    """Return the scores in the body of an answer.

    Args:
        settings: The reward, whose protocol says where the scores are.
        request: What was asked.
        content: The body.
        said: The answer as messages repeat it.

    Raises:
        TextEnvError: The body does not hold one finite number for each text.
    """
    key = _key(settings)
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError) as error:  # also text that isn't UTF-8, and integers of 5,000 digits
        raise bad_answer(settings, request, f"no JSON ({said})") from error
    scores = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(scores, list):
        raise bad_answer(settings, request, f"no list {key!r} ({said})")
    if len(scores) != request.texts:
        raise bad_answer(settings, request, f"{len(scores)} {key}")
    for place, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) <= _LARGEST:
            shown = excerpt(repr(score)) if isinstance(score, str | int | float | None) else "an array or object"
            raise bad_answer(settings, request, f"{shown} as number {place} of its {key}")
    return [float(score) for score in scores]


def bad_answer(settings: HttpSettings, request: ScoreRequest, what: str) -> TextEnvError:
    """Return the error for an answer that does not hold the scores.

    Args:
        settings: The reward.
        request: What was asked.
        what: What the answer holds instead.
    """
    return TextEnvError(
        f"{settings!r} answered with {what}. Expected {{{_key(settings)!r}: [...]}} with {request.texts} finite "
        "float32 numbers, one for each text in their order. Is this the right address? help(textenv.rewards.Http) has "
        "the format."
    )


def _key(settings: HttpSettings) -> str:
    return "rewards" if settings.protocol == "openrlhf" else "scores"


def message_of(content: bytes) -> str:
    """Return what a body says to people: its ``detail``, where FastAPI and others put it, or all of it."""
    try:
        detail = json.loads(content)["detail"]
    except (ValueError, TypeError, LookupError, RecursionError):
        detail = None
    return detail if isinstance(detail, str) else content.decode("utf-8", "replace")


def excerpt(text: str, secrets: Sequence[str] = ()) -> str:
    """Return the text shortened and on one line, with ``***`` in place of secrets, which a server may repeat."""
    for secret in secrets:
        text = text.replace(secret, "***")
    text = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * _SHOWN])
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def retry_after(value: str) -> float:
    """Return the seconds that a ``Retry-After`` header asks for (RFC 9110, 10.2.3); 0 if it cannot be read."""
    if re.fullmatch(r"[0-9]+", value):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError):
        return 0.0
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
