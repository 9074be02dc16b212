"""A server that speaks the protocols of vLLM and SGLang over HTTP, as far as agents use them, with a tiny model."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from textenv.models.causal_lm import CausalLM
from textenv.models.loading import quiet


class Server(ThreadingHTTPServer):
    """The stand-in.

    Attributes:
        requests: Path and body of every request, in the order in which they came.
        answers: What is answered to a path in place of what an engine answers: a status and a body.
        longest: It stops after so many tokens of a completion, whatever was asked for; None for no limit.
        raw: Whether log-probabilities are told without the temperature, as vLLM does unless it is told otherwise.
        offset: Added to every token id that is told.
        dtype: Of the weights that it loads.
        delay: Seconds before every answer to a completion.
        keys: The headers ``authorization`` that came.
    """

    daemon_threads = True
    request_queue_size = 256  # connections that wait

    def __init__(self, lm: CausalLM, *, context: int | None = 128) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model: Any = lm.model
        self.known: dict[tuple[int, ...], torch.Tensor] = {}  # logits after texts
        self.tokenizer, self.context = lm.tokenizer, context
        self.requests: list[tuple[str, Any]] = []
        self.answers: dict[str, tuple[int, Any]] = {}
        self.keys: list[str | None] = []
        self.longest: int | None = None
        self.raw, self.offset, self.delay, self.dtype = False, 0, 0.0, torch.float32
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def loads(self) -> list[Any]:
        return [body for path, body in self.requests if path in {"/collective_rpc", "/update_weights_from_disk"}]

    def load(self, folder: str) -> None:
        """Read weights of the shapes of those that it has."""
        with quiet():
            found: Any = AutoModelForCausalLM.from_pretrained(Path(folder), dtype=self.dtype)
        self.model = found.requires_grad_(False)
        self.known.clear()

    @torch.no_grad()
    def draw(
        self, ids: list[int], *, most: int, seed: int, temperature: float, eos: list[int], stop: list[str]
    ) -> tuple[list[int], list[float]]:
        generator, text = torch.Generator().manual_seed(seed), list(ids)
        log_probs: list[float] = []
        while len(log_probs) < min(most, self.longest or most):
            if (logits := self.known.get(tuple(text))) is None:
                logits = self.known[*text] = self.model(input_ids=torch.tensor([text])).logits[0, -1].float()
            drawn_from = torch.log_softmax(logits / temperature, dim=-1)
            token = int(torch.multinomial(drawn_from.exp(), 1, generator=generator))
            told = torch.log_softmax(logits, dim=-1) if self.raw else drawn_from
            text.append(token)
            log_probs.append(float(told[token]))
            if token in eos or (stop and any(string in self.tokenizer.decode(text[len(ids) :]) for string in stop)):
                break
        return [token + self.offset for token in text[len(ids) :]], log_probs


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _answer(self, body: Any) -> None:
        path = self.path.partition("?")[0]
        with self.server.lock:
            self.server.requests.append((path, body))
            self.server.keys.append(self.headers["authorization"])
            status, answer = self.server.answers.get(path) or self._usual(path, body)
        if path in {"/v1/completions", "/generate"}:
            time.sleep(self.server.delay)
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def _usual(self, path: str, body: Any) -> tuple[int, Any]:
        known = {
            "/v1/models": self._models,
            "/v1/completions": self._completions,
            "/collective_rpc": self._reload,
            "/reset_prefix_cache": lambda body: (200, b""),
            "/generate": self._generate,
            "/update_weights_from_disk": self._update,
        }
        return known[path](body) if path in known else (404, {"detail": "Not Found"})

    def _models(self, _: Any) -> tuple[int, Any]:
        return 200, {"object": "list", "data": [{"id": "tiny", "max_model_len": self.server.context}]}

    def _completions(self, body: Any) -> tuple[int, Any]:
        assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1, 0, 0, 1)
        assert body["model"] == "tiny"
        tokens, log_probs = self.server.draw(
            body["prompt"],
            most=body["max_tokens"],
            seed=body["seed"],
            temperature=body["temperature"],
            eos=body["stop_token_ids"],
            stop=body["stop"],
        )
        choice = {"index": 0, "text": "", "token_ids": tokens, "logprobs": {"token_logprobs": log_probs}}
        return 200, {"id": "cmpl-0", "choices": [choice]}

    def _reload(self, body: Any) -> tuple[int, Any]:
        assert body["method"] == "reload_weights"
        try:
            self.server.load(body["kwargs"]["weights_path"])
        except (OSError, RuntimeError) as error:
            return 500, {"error": {"message": str(error), "code": 500}}
        return 200, {"results": [None]}

    def _generate(self, body: Any) -> tuple[int, Any]:
        assert body["return_logprob"] is True
        answers = []
        for ids, params in zip(body["input_ids"], body["sampling_params"], strict=True):
            assert (params["top_p"], params["top_k"], params["min_p"], params["repetition_penalty"]) == (1, -1, 0, 1)
            tokens, log_probs = self.server.draw(
                ids,
                most=params["max_new_tokens"],
                seed=params["sampling_seed"],
                temperature=params["temperature"],
                eos=params["stop_token_ids"],
                stop=params["stop"],
            )
            drawn = [[log_prob, token, None] for token, log_prob in zip(tokens, log_probs, strict=True)]
            answers.append({"text": "", "output_ids": tokens[:-1], "meta_info": {"output_token_logprobs": drawn}})
        return 200, answers

    def _update(self, body: Any) -> tuple[int, Any]:
        try:
            self.server.load(body["model_path"])
        except (OSError, RuntimeError) as error:
            return 400, {"success": False, "message": str(error), "num_paused_requests": 0}
        return 200, {"success": True, "message": "Succeeded to update model weights.", "num_paused_requests": 0}


@contextlib.contextmanager
def serving(lm: CausalLM, **settings: Any) -> Iterator[Server]:
    """Run a stand-in that serves a model, until the block is left."""
    with Server(lm, **settings) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
