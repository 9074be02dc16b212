"""The model families that textenv promises to run, as tiny random configurations with tokenizer and chat template.

``make_family(name, tied=...)`` gives a ``CausalLM``; ``save_family(folder, name, tied=...)`` writes it in Hugging Face
format, for ``model="<folder>"``. Each has what its family is known for: learned positions, grouped queries, biases,
normalized queries and keys, scaled embeddings, capped logits, sliding windows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from textenv.models.causal_lm import CausalLM
from textenv.models.loading import quiet
from textenv.training.tokenizer import train_tokenizer

__all__ = ["FAMILIES", "WINDOW", "family_model", "family_tokenizer", "make_family", "save_family"]

WINDOW = 12  # tokens that the sliding layers of Gemma 2 and 3 attend to: fewer than an episode of the tests has
VOCABULARY = 320  # more than the tokenizers have

_TRUNK: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # far from uniform, so that mistakes show
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
_GEMMA = {**_TRUNK, "head_dim": 16, "num_key_value_heads": 1}
_MODELS: dict[str, Callable[..., PreTrainedModel]] = {
    "gpt2": lambda **given: GPT2LMHeadModel(GPT2Config(**{**_GPT2, **given})),
    "llama": lambda **given: LlamaForCausalLM(LlamaConfig(**{**_TRUNK, **given})),
    "smollm2": lambda **given: LlamaForCausalLM(LlamaConfig(**{**_TRUNK, "rope_theta": 100_000, **given})),
    "mistral": lambda **given: MistralForCausalLM(MistralConfig(**{**_TRUNK, "sliding_window": None, **given})),
    "qwen2": lambda **given: Qwen2ForCausalLM(Qwen2Config(**{**_TRUNK, **given})),
    "qwen3": lambda **given: Qwen3ForCausalLM(Qwen3Config(**{**_TRUNK, "head_dim": 16, **given})),
    "gemma": lambda **given: GemmaForCausalLM(GemmaConfig(**{**_GEMMA, **given})),
    "gemma2": lambda **given: Gemma2ForCausalLM(
        Gemma2Config(
            **{
                **_GEMMA,
                "sliding_window": WINDOW,
                "query_pre_attn_scalar": 16,
                "attn_logit_softcapping": 5.0,
                "final_logit_softcapping": 8.0,
                **given,
            }
        )
    ),
    "gemma3": lambda **given: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **{
                **_GEMMA,
                "sliding_window": WINDOW,
                "query_pre_attn_scalar": 16,
                "layer_types": ["sliding_attention", "full_attention"],
                **given,
            }
        )
    ),
}

FAMILIES: tuple[tuple[str, bool], ...] = (
    ("gpt2", True),
    ("gpt2", False),
    ("llama", False),
    ("llama", True),
    ("smollm2", True),
    ("mistral", False),
    ("qwen2", True),
    ("qwen2", False),
    ("qwen3", True),
    ("qwen3", False),
    ("gemma", True),
    ("gemma2", True),
    ("gemma3", True),
)
"""Every family with the heads that its published models have: ``(name, tied)``."""

_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
    "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_LLAMA3 = (
    "{% for message in messages %}{{ (bos_token if loop.first else '') + '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
_TURNS = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else "
    "message['role']) + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
_INST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + "
    "' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
_CHAT: dict[str, tuple[str, list[str]]] = {  # template and the tokens it writes, the one that ends a turn last
    "llama": (_LLAMA3, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    "smollm2": (_CHATML, ["<|im_start|>", "<|im_end|>"]),
    "mistral": (_INST, []),
    "qwen2": (_CHATML, ["<|im_start|>", "<|im_end|>"]),
    "qwen3": (_CHATML, ["<|im_start|>", "<|im_end|>"]),
    "gemma": (_TURNS, ["<start_of_turn>", "<end_of_turn>"]),
    "gemma2": (_TURNS, ["<start_of_turn>", "<end_of_turn>"]),
    "gemma3": (_TURNS, ["<start_of_turn>", "<end_of_turn>"]),
}


def family_tokenizer(name: str, *, special: bool = True) -> Any:
    """Return a tokenizer of 300 and a few entries, with the family's chat template; GPT-2 has none.

    Args:
        name: The family.
        special: Whether the template's tokens are marked as special; some published tokenizers do not.
    """
    words = ["the film was a great film, and the plot of it was thin. "] * 20
    tokenizer: Any = train_tokenizer(iter(words), 300)
    if name in _CHAT:
        tokenizer.chat_template, tokens = _CHAT[name]
        tokenizer.add_tokens(tokens, special_tokens=special)
    return tokenizer


def family_model(name: str, *, tied: bool | None = None, seed: int = 0, **config: Any) -> PreTrainedModel:
    """Return a network of two layers of width 32, weights random.

    Args:
        name: The family.
        tied: Whether input and output embeddings are one; None for the first of ``FAMILIES``.
        seed: Seeds the weights; the caller's generator is left alone.
        **config: Fields of the configuration to change.
    """
    tied = dict(reversed(FAMILIES))[name] if tied is None else tied
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _MODELS[name](tie_word_embeddings=tied, **config)
        for parameter in model.parameters():  # biases and norms begin at 0 or 1, where mistakes would not show
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model.requires_grad_(False)


def make_family(name: str, *, tied: bool | None = None, seed: int = 0, **config: Any) -> CausalLM:
    """Return ``family_model`` with its tokenizer, ready to use."""
    return CausalLM(family_model(name, tied=tied, seed=seed, **config), family_tokenizer(name))


def save_family(
    folder: Path, name: str, *, tied: bool | None = None, seed: int = 0, tokenizer: Any = None, **config: Any
) -> str:
    """Write ``family_model`` and a tokenizer, the family's own by default, in Hugging Face format; return the path."""
    with quiet():
        family_model(name, tied=tied, seed=seed, **config).save_pretrained(folder)
    (tokenizer or family_tokenizer(name)).save_pretrained(folder)
    return str(folder)
