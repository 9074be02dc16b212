"""Scores that a server computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from textenv.env.reward_calls import SERVICES
from textenv.rewards._http_client import fetch_scores
from textenv.rewards._http_format import score_request
from textenv.rewards._http_settings import HttpSettings
from textenv.types import TextEnvError

__all__ = ["Http"]


@dataclass(frozen=True, slots=True, repr=False)
class Http(HttpSettings):
    """Scores from a server: a reward model on another machine, in another language, on its own version of torch.

    ``textenv reward serve`` starts such a server. One of your own has to do what follows. It is sent UTF-8 JSON with at
    most ``batch_size`` texts, several requests at once::

        POST /score
        {"prompts": ["The film", "A plot"], "completions": [" was great.", " to forget."],
         "completion_ids": [[373, 1049, 13], [284, 6044, 13]], "columns": {"reference": ["...", "..."]}}

    where a conversation is a list of messages, and so is its completion: ``[{"role": "assistant", "content": "..."}]``;

    and answers with as many finite numbers, in the same order; further keys are ignored::

        200 OK
        {"scores": [0.62, -0.23]}

    ``completion_ids`` are the policy's tokens, the end-of-sequence token included; a server with a tokenizer of its own
    reads the texts. ``columns`` holds the prompts' other columns, ``{}`` if there are none. A request may be sent more
    than once, so the scores may depend on nothing but the request. An error is an HTTP status, with a text in the body
    that says what is wrong. After 429 and 5xx the request is sent again, not before the time in ``Retry-After``; after
    another 4xx, a redirect, or an answer of another shape it is not. ``GET /health``, which this class doesn't use,
    answers ``{"reward": "..."}``, for people and load balancers.

    ``protocol="openrlhf"`` asks a server made for OpenRLHF's ``--remote_rm_url``: ``{"query": [prompt + completion,
    ...], "prompts": [...], "labels": [...]}``, answered by ``{"rewards": [...]}``. It is sent texts alone, so that
    conversations need the ``tokenizer`` whose chat template writes them. ``textenv reward serve`` answers such requests
    at ``/get_reward``.

    The n-th retry is sent ``min(max_wait, backoff * 2**(n - 1))`` seconds after the try before it, less a random part
    of at most a half, so that many environments don't send again all at the same time (Brooker, 2015: *Exponential
    Backoff And Jitter*).

    Attributes:
        url: Address to post to, such as ``"http://127.0.0.1:8900/score"``, without a user and a password: give those
            with the header ``Authorization``. What follows a ``?`` isn't shown in messages.
        headers: Further headers. ``${NAME}`` in a value stands for an environment variable, read with every batch, so
            that a token needn't be written down: ``{"Authorization": "Bearer ${REWARD_TOKEN}"}``. Not shown in
            messages.
        columns: Names of the prompts' columns to send; None for all. With ``protocol="openrlhf"`` one at most, the
            labels; None for none.
        protocol: ``"textenv"`` or ``"openrlhf"``.
        batch_size: Texts in a request, at most.
        concurrency: Requests at once, at most.
        timeout: Seconds that a try may take in all, from looking up the server's name to the end of its answer.
        retries: Tries after the first, at most.
        backoff: Seconds before the first retry, at most.
        max_wait: Seconds between two tries, at most. If a server asks for more with ``Retry-After``, that is an error.
        tokenizer: With ``protocol="openrlhf"``, a folder or a Hugging Face id: conversations are sent as its chat
            template writes them, the assistant's last turn open. None for prompts that are texts.

    Raises:
        TextEnvError: If an argument is out of range, a variable isn't set, or ``httpx`` is not installed; when it is
            called, if there is no answer in the end, or one that holds no scores.
    """

    def __call__(
        self,
        /,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Sequence[Any],
    ) -> list[float]:
        """Return the server's ``n`` scores."""
        sent = self._sent_columns(columns)
        requests = []
        for start in range(0, len(completions), self.batch_size):
            rows = slice(start, start + self.batch_size)
            cells = {name: values[rows] for name, values in sent.items()}
            requests.append(score_request(self, prompts[rows], completions[rows], completion_ids[rows], cells))
        return [score for scores in fetch_scores(self, requests) for score in scores]

    def _sent_columns(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        if self.columns is None:
            sent = {name: values for name, values in columns.items() if name not in SERVICES}
            return {} if self.protocol == "openrlhf" else sent
        if missing := [name for name in self.columns if name not in columns]:
            raise TextEnvError(
                f"{self!r} is to send the columns {missing}, but the prompts have {sorted(columns) or 'none'}."
            )
        return {name: columns[name] for name in self.columns}
