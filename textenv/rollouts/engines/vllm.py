"""vLLM's OpenAI-compatible server, started with ``VLLM_SERVER_DEV_MODE=1 vllm serve MODEL``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from textenv.rollouts.engines.base import Completion, Request, Sampling, completion_of, served_model
from textenv.rollouts.engines.client import JsonClient
from textenv.types import TextEnvError

__all__ = ["VLLM"]

_COMPLETIONS = "/v1/completions"


class VLLM:
    """Writes through ``/v1/completions``, and takes weights through the worker method ``reload_weights``.

    A request goes out for each text, since all prompts of one request are drawn with the same seed.
    """

    name = "vLLM"

    def __init__(self, client: JsonClient) -> None:
        """Ask the server which model it serves.

        Raises:
            TextEnvError: It does not answer as vLLM does.
        """
        self._client = client
        self.label = client.label
        self._model, self.context = served_model(client)

    def load(self, folder: Path) -> None:
        """Take the weights in a folder; see ``Engine.load``."""
        try:
            self._client.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
            self._client.post("/reset_prefix_cache?reset_running_requests=true", {})
        except TextEnvError as error:
            raise TextEnvError(
                f"{error} Expected vLLM to take the weights in {folder}: it has to serve the environment's model, see "
                "that folder, and run with the environment variable VLLM_SERVER_DEV_MODE=1."
            ) from error

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """Continue texts; see ``Engine.complete``."""
        shared = {
            "model": self._model,
            "temperature": sampling.temperature,
            # What the model's generation_config.json says would hold for whatever is left out.
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "ignore_eos": True,  # the model's own; those of the environment are below
            "stop_token_ids": list(sampling.eos_ids),
            "stop": list(sampling.stop),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "logprobs": 1,
            "return_token_ids": True,
        }
        bodies = [
            {**shared, "prompt": request.ids, "max_tokens": request.most, "seed": request.seed} for request in requests
        ]
        answers = self._client.post_all(_COMPLETIONS, bodies)
        return [self._completion(answer, request) for answer, request in zip(answers, requests, strict=True)]

    def give_up(self) -> None:
        """End the requests that wait; see ``Engine.give_up``."""
        self._client.give_up()

    def _completion(self, answer: Any, request: Request) -> Completion:
        try:
            choice = answer["choices"][0]
            tokens, log_probs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        except (TypeError, KeyError, IndexError):
            raise self._client.unexpected(
                _COMPLETIONS, answer, "a choice with token_ids and logprobs (vLLM 0.10.2 or newer)"
            ) from None
        return completion_of(self._client, _COMPLETIONS, tokens, log_probs, request.most)
