"""Serve a reward over HTTP: ``textenv reward serve``.

``POST /score`` takes a batch and returns its scores, ``GET /health`` tells which reward answers. The format is that of
the reward named ``http``, whose help describes it; ``/openapi.json`` of the server itself has its schema.
``POST /get_reward`` takes the requests of OpenRLHF's ``--remote_rm_url`` and answers them in that form.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeAlias, TypeVar

from textenv.data.values import as_prompt
from textenv.env.reward_calls import reward_name, signature_mismatch
from textenv.env.reward_parts import leaf_rewards
from textenv.env.scoring import score
from textenv.types import Reward, TextEnvError

try:
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.concurrency import run_in_threadpool
    from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, WithJsonSchema
    from starlette.requests import ClientDisconnect
except ModuleNotFoundError as error:
    raise TextEnvError(
        f"Serving a reward needs fastapi and uvicorn, which cannot be imported ({error}). "
        "Run: pip install 'textenv[web]'"
    ) from error

from textenv.web import server as web_server
from textenv.web.guard import Guard, is_media_type, known_hosts

__all__ = ["Batch", "Health", "Queries", "Rewards", "Scores", "make_app", "serve"]

_RESERVED = {"prompts", "completions", "completion_ids"}
_CLIENT_GONE = 499  # nginx's status for a request whose client has closed the connection
_MOST_BYTES = 8_000_000
_log = logging.getLogger(__name__)
_Model = TypeVar("_Model", bound="BaseModel")


def _as_said(value: Any) -> str | list[dict[str, Any]]:
    said = as_prompt(value, "the value")
    return said if isinstance(said, str) else [dict(message) for message in said]


_MESSAGE = {
    "type": "object",
    "properties": {"role": {"type": "string"}, "content": {"type": "string"}},
    "required": ["role", "content"],
}
Said: TypeAlias = Annotated[
    Any,
    AfterValidator(_as_said),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _MESSAGE, "minItems": 1}]}),
]
"""A text, or a list of messages."""


class Batch(BaseModel):
    """Texts to score, ``n`` of each; of a conversation, prompt and completion are both lists of messages.

    ``columns`` holds the prompts' other columns.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    prompts: list[Said]
    completions: list[Said]
    completion_ids: list[list[int]]
    columns: dict[str, list[Any]] = {}


class Scores(BaseModel):
    """``n`` finite numbers, in the order of the texts."""

    scores: list[float]


class Queries(BaseModel):
    """A request of OpenRLHF: ``n`` texts, each a prompt with its completion, the prompts, and their labels.

    Further keys are ignored.
    """

    model_config = ConfigDict(strict=True)

    query: list[str]
    prompts: list[str]
    labels: list[Any] | None = None


class Rewards(BaseModel):
    """``n`` finite numbers, in the order of the texts, as OpenRLHF reads them."""

    rewards: list[float]


class Health(BaseModel):
    """Which reward answers."""

    reward: str


def make_app(reward: Reward, *, max_bytes: int = _MOST_BYTES, hosts: Sequence[str] = ()) -> FastAPI:
    """Return an application that scores with ``reward``, one batch after the other: rewards need no locks.

    Answers with status 4xx if the request is at fault, and with 500 if the reward raises or returns no scores; either
    says why in ``detail``.

    Args:
        reward: The reward.
        max_bytes: Size of a request's body, at most.
        hosts: Names that the server answers by, besides ``localhost`` and this machine's own loopback addresses.
    """
    # No pages of documentation: they would run scripts of another site.
    app = FastAPI(title="textenv reward", summary=reward_name(reward), docs_url=None, redoc_url=None)
    app.add_middleware(Guard, hosts=known_hosts(hosts))
    scoring = asyncio.Lock()

    async def scores_of(request: Request, batch_of: Callable[[bytes], Batch]) -> list[float]:
        """Return the scores of what a request holds."""
        if not is_media_type(request.headers.get("content-type", ""), "application/json"):
            raise HTTPException(415, "Expected JSON: a header Content-Type: application/json.")
        try:
            # In a thread, as scoring is: reading a large body takes long, and other requests have to be answered.
            batch = await run_in_threadpool(_checked, batch_of, await _read(request, max_bytes), reward)
            async with scoring:
                if await request.is_disconnected():  # while it waited; the client may have sent the batch again
                    raise ClientDisconnect
                scores = await run_in_threadpool(
                    score,
                    reward,
                    prompts=batch.prompts,
                    completions=batch.completions,
                    completion_ids=batch.completion_ids,
                    columns=batch.columns,
                )
        except ClientDisconnect as error:
            raise HTTPException(_CLIENT_GONE) from error
        except TextEnvError as error:
            _log.exception("The reward failed.")
            raise HTTPException(500, str(error)) from error
        return [float(value) for value in scores]

    @app.get("/health")
    async def health() -> Health:
        return Health(reward=reward_name(reward))

    # The bodies are read by hand: as parameters they would be read whole, whatever their size.
    @app.post("/score", openapi_extra=_body_of(Batch))
    async def score_batch(request: Request) -> Scores:
        return Scores(scores=await scores_of(request, _batch))

    @app.post("/get_reward", openapi_extra=_body_of(Queries))
    async def get_reward(request: Request) -> Rewards:
        return Rewards(rewards=await scores_of(request, _batch_of_queries))

    return app


def _body_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return what the server's schema says of a request."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


def serve(
    reward: Reward,
    *,
    host: str = "127.0.0.1",
    port: int = 8900,
    max_bytes: int = _MOST_BYTES,
    hosts: Sequence[str] = (),
    announce: Callable[[str], None] = print,
) -> None:
    """Serve ``reward`` until a signal ends it; requests that are being answered then are finished.

    Args:
        reward: The reward.
        host: Address to listen at. There is no password: keep to this machine, or put a proxy with one in front.
        port: Port to listen at; 0 for one that is free.
        max_bytes: Size of a request's body, at most.
        hosts: Other names that the server answers by, such as a proxy's.
        announce: Called with the address to post to, once the server listens.

    Raises:
        TextEnvError: The address cannot be listened at, or no request could be small enough.
    """
    if max_bytes < 1:
        raise TextEnvError(f"max_bytes={max_bytes}: expected the size of a request, at least 1.")
    app = make_app(reward, max_bytes=max_bytes, hosts=[host, *hosts])
    web_server.serve(app, host=host, port=port, announce=lambda address: announce(f"{address}/score"))


async def _read(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise HTTPException(413, f"The body is larger than {max_bytes} bytes; send fewer texts at once.")
    return bytes(body)


def _parsed(model: type[_Model], body: bytes) -> _Model:
    """Return the body of a request as a model.

    Raises:
        HTTPException: It is of another shape.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        reasons = [
            ": ".join((".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, "))).removeprefix(": ")
            for one in found[:3]
        ]
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        raise HTTPException(422, f"{'; '.join(reasons)}{more}. /openapi.json has the schema.") from error


def _batch(body: bytes) -> Batch:
    return _parsed(Batch, body)


def _batch_of_queries(body: bytes) -> Batch:
    """Return the batch of an OpenRLHF request; without token ids, which it does not have."""
    queries = _parsed(Queries, body)
    if len(queries.query) != len(queries.prompts):
        raise HTTPException(
            422,
            f"Expected a prompt for each query; found {len(queries.query)} queries, {len(queries.prompts)} prompts.",
        )
    for place, (query, prompt) in enumerate(zip(queries.query, queries.prompts, strict=True)):
        if not query.startswith(prompt):
            raise HTTPException(422, f"query.{place} does not begin with prompts.{place}, which it is to continue.")
    labels = queries.labels or []
    return Batch(
        prompts=queries.prompts,
        completions=[query[len(prompt) :] for query, prompt in zip(queries.query, queries.prompts, strict=True)],
        completion_ids=[[] for _ in queries.query],
        columns={"labels": labels} if any(label is not None for label in labels) else {},
    )


def _checked(batch_of: Callable[[bytes], Batch], body: bytes, reward: Reward) -> Batch:
    """Return the batch of a request, checked.

    Raises:
        HTTPException: It is of another shape, or the reward cannot be called with it.
    """
    batch = batch_of(body)
    lengths = {
        "prompts": len(batch.prompts),
        "completions": len(batch.completions),
        "completion_ids": len(batch.completion_ids),
        **{f"columns.{name}": len(values) for name, values in batch.columns.items()},
    }
    if len(set(lengths.values())) > 1:
        raise HTTPException(422, f"Expected as many values of each, one for each text; found {lengths}.")
    for place, (prompt, completion) in enumerate(zip(batch.prompts, batch.completions, strict=True)):
        if isinstance(prompt, str) is not isinstance(completion, str):
            raise HTTPException(
                422, f"prompts.{place} and completions.{place}: expected two texts, or two lists of messages."
            )
    if clashing := sorted(_RESERVED & batch.columns.keys()):
        raise HTTPException(422, f"columns holds {clashing}, which are not columns; rename them.")
    for each in leaf_rewards(reward):
        if mismatch := signature_mismatch(each, batch.columns):
            raise HTTPException(422, mismatch)
    return batch
