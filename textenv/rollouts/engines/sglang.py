"""SGLang's server, started with ``python -m sglang.launch_server --model-path MODEL``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from textenv.rollouts.engines.base import Completion, Request, Sampling, completion_of, served_model
from textenv.rollouts.engines.client import JsonClient
from textenv.types import TextEnvError

__all__ = ["SGLang"]

_GENERATE, _UPDATE = "/generate", "/update_weights_from_disk"


class SGLang:
    """Writes through ``/generate``, and takes weights through ``/update_weights_from_disk``."""

    name = "SGLang"

    def __init__(self, client: JsonClient) -> None:
        """Ask the server which model it serves.

        Raises:
            TextEnvError: It does not answer as SGLang does.
        """
        self._client = client
        self.label = client.label
        _, self.context = served_model(client)

    def load(self, folder: Path) -> None:
        """Take the weights in a folder; see ``Engine.load``."""
        try:
            answer = self._client.post(_UPDATE, {"model_path": str(folder)})
            if not isinstance(answer, dict) or answer.get("success") is not True:
                raise self._client.unexpected(_UPDATE, answer, "success")
        except TextEnvError as error:
            raise TextEnvError(
                f"{error} Expected SGLang to take the weights in {folder}: it has to serve the environment's model, "
                "and see that folder."
            ) from error

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """Continue texts; see ``Engine.complete``."""
        shared = {
            "temperature": sampling.temperature,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": list(sampling.eos_ids),
            "stop": list(sampling.stop),
            "skip_special_tokens": False,
            "no_stop_trim": True,
        }
        body = {
            "input_ids": [request.ids for request in requests],
            "sampling_params": [
                {**shared, "max_new_tokens": request.most, "sampling_seed": request.seed} for request in requests
            ],
            "return_logprob": True,
            "stream": False,
        }
        answers = self._client.post(_GENERATE, body)
        if not isinstance(answers, list) or len(answers) != len(requests):
            raise self._client.unexpected(_GENERATE, answers, f"a list of {len(requests)} completions")
        return [self._completion(answer, request) for answer, request in zip(answers, requests, strict=True)]

    def give_up(self) -> None:
        """End the requests that wait; see ``Engine.give_up``."""
        self._client.give_up()

    def _completion(self, answer: Any, request: Request) -> Completion:
        try:
            # Each is a log-probability, a token id and perhaps a text; the field output_ids may lack the last token.
            drawn = answer["meta_info"]["output_token_logprobs"]
            log_probs, tokens = [each[0] for each in drawn], [each[1] for each in drawn]
        except (TypeError, KeyError, IndexError):
            raise self._client.unexpected(_GENERATE, answer, "meta_info with output_token_logprobs") from None
        return completion_of(self._client, _GENERATE, tokens, log_probs, request.most)
