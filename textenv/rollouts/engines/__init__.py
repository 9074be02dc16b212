"""Inference servers that write for a policy: vLLM and SGLang, behind one small interface."""

from __future__ import annotations

from typing import Literal

from textenv.rollouts.engines.base import Completion, Engine, Request, Sampling
from textenv.rollouts.engines.client import JsonClient
from textenv.rollouts.engines.sglang import SGLang
from textenv.rollouts.engines.vllm import VLLM

__all__ = ["Completion", "Engine", "Request", "Sampling", "connect"]

_ENGINES: dict[str, type[VLLM | SGLang]] = {"vllm": VLLM, "sglang": SGLang}


def connect(name: Literal["vllm", "sglang"], url: str, *, timeout: float) -> Engine:
    """Return the engine that runs at an address, which is asked for the model that it serves.

    Args:
        name: Which engine it is.
        url: Its address, such as ``"http://127.0.0.1:8000"``.
        timeout: Seconds that it may take for an answer.

    Raises:
        TextEnvError: It is no address, or nothing there answers as such an engine does.
    """
    engine = _ENGINES[name]
    return engine(JsonClient(engine.name, url, timeout=timeout))
