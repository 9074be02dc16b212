"""Fixtures that test modules share: tiny language models with random weights, made in a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from textenv.models.causal_lm import CausalLM
from textenv.training.tokenizer import train_tokenizer

VOCABULARY = 300

torch.set_num_threads(1)
settings.register_profile("textenv", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("textenv")


def _tokenizer() -> Any:
    return train_tokenizer(iter(["the film was a great film, and the plot of it was thin. "] * 20), VOCABULARY)


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            initializer_range=0.3,  # far from uniform, so that mistakes show
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=1,
        )
    )


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=128,
            initializer_range=0.2,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=1,
        )
    )


_ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {"llama": _llama, "gpt2": _gpt2}


def build_lm(architecture: str = "llama", seed: int = 0) -> CausalLM:
    """Return a new tiny model: two layers of width 32, random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _ARCHITECTURES[architecture]()
    return CausalLM(model.requires_grad_(False), _tokenizer())


def written_places(starts: Any, lengths: Any, width: int) -> torch.Tensor:
    """Return where the tokens from ``starts`` on are in texts of a width, as ``TextPolicy.evaluate`` takes them."""
    places = torch.arange(width)[None, :]
    starts, lengths = torch.as_tensor(starts)[:, None], torch.as_tensor(lengths)[:, None]
    written: torch.Tensor = (places >= starts) & (places < lengths)
    return written.flatten().nonzero()[:, 0]


class Forwards:
    """Records the shape ``(rows, tokens)`` of every forward of a model's trunk, by whichever way it runs."""

    def __init__(self, lm: CausalLM) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.fail = False
        self._lm: Any = lm
        self._settle()

    @property
    def rows(self) -> int:
        """How many rows were read in all."""
        return sum(shape[0] for shape in self.shapes)

    def __enter__(self) -> Forwards:
        network = self._lm._network
        if network is None:
            hook = self._lm.model.base_model.register_forward_hook(
                lambda module, args, kwargs, output: self._record(kwargs["input_ids"]), with_kwargs=True
            )
            self._undo: Callable[[], None] = hook.remove
            self._settle()  # a hook is a change
            self.shapes.clear()
        else:
            run = network.run

            def recorded(ids: torch.Tensor, *rest: Any, **keywords: Any) -> Any:
                self._record(ids)
                return run(ids, *rest, **keywords)

            network.run = recorded
            self._undo = lambda: network.__dict__.pop("run")
        return self

    def __exit__(self, *_: object) -> None:
        self._undo()

    def _settle(self) -> None:
        """Let the model find its way and try its cache."""
        self._lm.next_token_logits(np.zeros((1, 1), dtype=np.int64), np.array([1]))
        self._lm.forget()

    def _record(self, ids: torch.Tensor) -> None:
        self.shapes.append(tuple(ids.shape))
        if self.fail:
            raise RuntimeError("out of memory")


@pytest.fixture
def make_lm() -> Callable[..., CausalLM]:
    """``make_lm(architecture="llama", seed=0)``: a tiny model of the test's own, to change as it likes."""
    return build_lm


@pytest.fixture(scope="session")
def tiny_lm() -> CausalLM:
    """A tiny Llama that tests share; its weights stay as they are."""
    return build_lm()
