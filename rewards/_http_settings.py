"""The settings of the reward ``http``, and how they are checked: the address, the headers with their secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from textenv.rewards._http_chat import check_tokenizer
from textenv.rewards._require import require
from textenv.types import TextEnvError
from textenv.validation import Count, NonEmpty, NonNegative, NonNegativeInt, Positive, validate

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[!-~]([ -~\t]*[!-~])?")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True, slots=True, repr=False)
class HttpSettings:
    """The fields of ``textenv.rewards.Http``, whose documentation describes them."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    columns: Sequence[str] | None = None
    protocol: Literal["textenv", "openrlhf"] = "textenv"
    batch_size: Count = 64
    concurrency: Count = 4
    timeout: Positive = 60.0
    retries: NonNegativeInt = 5
    backoff: NonNegative = 0.5
    max_wait: NonNegative = 60.0
    tokenizer: NonEmpty | None = None

    def __post_init__(self) -> None:
        _check_url(self.url)
        if not isinstance(self.headers, Mapping):
            raise TextEnvError("Http(headers=...): expected a mapping of names to texts.")
        object.__setattr__(self, "headers", dict(self.headers))
        self.filled_headers()  # before the validator, whose messages would show them
        validate(self, owner="Http")
        if self.columns is not None and self.protocol == "openrlhf" and len(self.columns) > 1:
            raise TextEnvError(f"Http(columns={self.columns!r}): protocol='openrlhf' sends one at most, as the labels.")
        if self.tokenizer is not None:
            if self.protocol != "openrlhf":
                raise TextEnvError(
                    f"Http(tokenizer={self.tokenizer!r}): protocol='textenv' sends conversations as messages; leave it "
                    "out, or set protocol='openrlhf'."
                )
            check_tokenizer(self.tokenizer)

    def __repr__(self) -> str:
        """Return the address without its query: this and the headers may hold secrets."""
        return f"Http(url={self.url.partition('?')[0]!r})"

    def filled_headers(self) -> tuple[dict[str, str], list[str]]:
        """Return the headers with their variables filled in, and the words in them that no message may show.

        Raises:
            TextEnvError: A header cannot be sent, or a variable is not set.
        """
        headers = {"accept": "application/json", "accept-encoding": "identity", "content-type": "application/json"}
        secrets = set(re.split("[?&=]", self.url.partition("?")[2]))
        for name, value in self.headers.items():
            if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name) or not isinstance(value, str):
                raise TextEnvError(
                    f"Http(headers=...): {name!r} is not a header that can be sent; expected a name and a text."
                )
            if name.lower() in {"content-length", "transfer-encoding"}:
                raise TextEnvError(f"Http(headers=...): {name!r} follows from what is sent; leave it out.")
            variables = _VARIABLE.findall(value)
            if value.count("${") != len(variables):
                raise TextEnvError(f"Http(headers=...): {name!r} has a '${{' that begins no '${{NAME}}' of a variable.")
            if unset := [variable for variable in variables if not os.environ.get(variable)]:
                raise TextEnvError(f"Http(headers=...): {name!r} needs the environment variable {unset[0]!r}; set it.")
            filled = _VARIABLE.sub(lambda match: os.environ[match[1]], value)
            if not _HEADER_VALUE.fullmatch(filled):
                raise TextEnvError(
                    f"Http(headers=...): the value of {name!r} is empty, holds a character that a header cannot hold, "
                    "or has a space or line break at an end. Expected printable ASCII."
                )
            headers[name.lower()] = filled
            secrets |= {filled, *filled.split(), *(os.environ[variable] for variable in variables)}
        return headers, sorted((secret for secret in secrets if len(secret) > 3), key=len, reverse=True)


def httpx() -> Any:
    """Return the module ``httpx``.

    Raises:
        TextEnvError: It is not installed.
    """
    return require("httpx", user="http", install="textenv[web]")


def _check_url(url: object) -> None:
    expected = "expected an address like 'http://127.0.0.1:8900/score'."
    if not isinstance(url, str):
        raise TextEnvError(f"Http(url={url!r}): {expected}")
    try:
        parts = httpx().URL(url)
    except httpx().InvalidURL as error:
        raise TextEnvError(f"Http(url=...): {error}; {expected}") from None
    if parts.userinfo:
        raise TextEnvError(
            "Http(url=...) holds a user or a password, which would be written down with the settings. Use a header: "
            "headers={'Authorization': 'Basic ${NAME}'}, NAME being an environment variable."
        )
    if parts.scheme not in {"http", "https"} or not parts.host or not 0 < (parts.port or 80) < 2**16:
        raise TextEnvError(f"Http(url={url.partition('?')[0]!r}): {expected}")
