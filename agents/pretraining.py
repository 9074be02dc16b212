"""The pre-training mix of PPO-ptx: text that the policy is to go on predicting while it learns from rewards.

The objective of an agent gets a term ``ptx_coef * E_x[log pi(x)]``, x drawn from pre-training text (Ouyang et al. 2022,
equation 2). Here ``log pi(x)`` is the mean over the tokens of an example, in nats, at temperature 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from textenv.agents.minibatches import room_for_tokens
from textenv.training.texts import read_texts
from textenv.types import IntArray, TextEnvError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textenv.agents.config import AgentConfig
    from textenv.models.causal_lm import CausalLM
    from textenv.rollouts.distributed import Processes

__all__ = ["PretrainingMix"]

_TEXTS_PER_CALL = 1000  # of the tokenizer


class PretrainingMix:
    """Examples of pre-training text: windows of ``ptx_context`` tokens out of all documents, joined in their order.

    Attributes:
        generator: Draws the windows, with replacement. A checkpoint keeps its state.
        digest: SHA-256 of the tokens, by which a run that goes on finds that the text is another.
    """

    def __init__(self, lm: CausalLM, config: AgentConfig) -> None:
        """Read and encode the text.

        Args:
            lm: The model that learns.
            config: Settings of the agent, of which those named ``ptx_...`` are used.

        Raises:
            TextEnvError: A file cannot be read, all of them hold fewer tokens than an example, or an example has more
                than the model takes.
        """
        self._width = config.ptx_context + 1  # the first token is only read
        if lm.max_positions is not None and self._width > lm.max_positions:
            raise TextEnvError(
                f"ptx_context={config.ptx_context}: an example has {self._width} tokens with the one that it starts "
                f"from, and the model takes {lm.max_positions}; lower it."
            )
        self._stream = _token_stream(lm, config.ptx_files)
        if len(self._stream) < self._width:
            raise TextEnvError(
                f"ptx_files={list(config.ptx_files)} hold {len(self._stream)} tokens, and ptx_context="
                f"{config.ptx_context} needs {self._width} for one example; give more text, or lower ptx_context."
            )
        self._per_episode, self._micro_batch_size = config.ptx_examples, config.micro_batch_size
        self.digest = hashlib.sha256(self._stream.astype("<i8").tobytes()).hexdigest()
        self.generator = torch.Generator().manual_seed(config.seed)

    def draw(self, episodes: int) -> torch.Tensor:
        """Return the examples of a minibatch of that many episodes, token ids of shape ``(examples, context + 1)``."""
        number = episodes * self._per_episode
        starts = torch.randint(len(self._stream) - self._width + 1, (number,), generator=self.generator).numpy()
        return torch.from_numpy(self._stream[starts[:, None] + np.arange(self._width)])

    def parts(self, examples: torch.Tensor, lm: CausalLM, processes: Processes) -> Sequence[torch.Tensor]:
        """Return this process's share of examples, in the parts that are computed at a time."""
        size = self._micro_batch_size or max(1, room_for_tokens(lm) // self._width)
        return torch.split(examples[processes.rank :: processes.size], size)


def _token_stream(lm: CausalLM, files: Sequence[str]) -> IntArray:
    """Return the token ids of all documents of files, each begun as a text is and followed by its end, ``(tokens,)``.

    Raises:
        TextEnvError: A file cannot be read.
    """
    documents = read_texts([Path(file) for file in files])
    encoded = (ids for texts in _chunks(documents) for ids in lm.encode_many(texts))
    end = lm.eos_ids[:1]
    # Where the token that begins a text also ends it, the next one's beginning is enough.
    joined = [np.array(ids if ids[:1] == end else (*ids, *end), dtype=np.int64) for ids in encoded]
    return np.concatenate(joined) if joined else np.zeros(0, dtype=np.int64)


def _chunks(texts: Iterator[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == _TEXTS_PER_CALL:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
