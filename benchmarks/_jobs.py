"""The models and prompts that the benchmarks of speed run on, the same for all sides. Needs torch and transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Architecture = Literal["gpt2", "llama"]
Size = Literal["toy", "tiny", "small", "gpt2", "smollm2", "1b"]

END, PAD = 0, 1  # every vocabulary begins with them


class Shape(NamedTuple):
    """The shape of a model.

    Attributes:
        layers: Layers.
        width: Of a token's state.
        heads: Of attention.
        vocab: Size of the vocabulary.
        architecture: What it is unless another is asked for.
        mlp: Width inside a layer's second half; None for 4 times ``width``.
        key_value_heads: Heads that have keys and values, in Llama; None for all.
        tied: Whether the head is the token embeddings, in Llama; in GPT-2 it always is.
    """

    layers: int
    width: int
    heads: int
    vocab: int
    architecture: Architecture = "gpt2"
    mlp: int | None = None
    key_value_heads: int | None = None
    tied: bool = False


SHAPES: dict[Size, Shape] = {
    "toy": Shape(2, 32, 2, 300),  # for tests of the benchmarks themselves
    "tiny": Shape(4, 128, 4, 2048),
    "small": Shape(6, 384, 6, 8192),
    "gpt2": Shape(12, 768, 12, 50257),
    "smollm2": Shape(30, 576, 9, 49152, "llama", mlp=1536, key_value_heads=3, tied=True),  # SmolLM2-135M
    "1b": Shape(16, 2048, 32, 50257, "llama"),
}


def tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows every token of the vocabulary: ``<end>``, ``<pad>``, ``w2``, ``w3`` ..."""
    words = {"<end>": END, "<pad>": PAD, **{f"w{number}": number for number in range(2, vocab)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="w2"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<end>", pad_token="<pad>", clean_up_tokenization_spaces=False
    )


def model(
    size: Size, architecture: Architecture | None = None, *, positions: int = 1024, hazard: float = 0.0, seed: int = 0
) -> Any:
    """Return a model with random weights in which every token is the last one with probability ``hazard``.

    The end is drawn by the model's own weights, so that all sides run the same model without a processor of logits:
    one component of the last hidden state is constant, and the head reads the end's logit off that one alone. Where
    the head is the token embeddings of a Llama, the others read as much off it, all the same.

    Args:
        size: Its shape.
        architecture: None for that of the shape.
        positions: The most tokens of a text.
        hazard: As above.
        seed: Of the weights.
    """
    shape = SHAPES[size]
    architecture, vocab = architecture or shape.architecture, shape.vocab
    ids: dict[str, Any] = {"bos_token_id": END, "eos_token_id": END, "pad_token_id": PAD}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lm = _gpt2(shape, positions, ids) if architecture == "gpt2" else _llama(shape, positions, ids)
        sample = torch.randint(2, vocab, (4, min(16, positions)))
    lm.requires_grad_(False).eval()
    head = lm.get_output_embeddings().weight
    if head is not lm.get_input_embeddings().weight or architecture == "gpt2":
        head[:, 0] = 0.0
    head[END] = 0.0
    others = lm(input_ids=sample).logits.logsumexp(dim=-1).mean()  # the end's own logit is 0, one among thousands
    head[END, 0] = others + math.log(hazard / (1 - hazard)) if hazard else -30.0
    head[PAD, 0] = -30.0  # drawn, it would look like padding to those who read masks off the ids
    return lm


def _gpt2(shape: Shape, positions: int, ids: dict[str, Any]) -> Any:
    config = GPT2Config(
        vocab_size=shape.vocab, n_positions=positions, n_embd=shape.width, n_layer=shape.layers, n_head=shape.heads,
        n_inner=shape.mlp, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **ids,
    )  # fmt: skip
    lm = GPT2LMHeadModel(config)
    with torch.no_grad():
        lm.transformer.ln_f.weight[0], lm.transformer.ln_f.bias[0] = 0.0, 1.0
    return lm


def _llama(shape: Shape, positions: int, ids: dict[str, Any]) -> Any:
    config = LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.width, intermediate_size=shape.mlp or 4 * shape.width,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=positions, tie_word_embeddings=shape.tied, **ids,
    )  # fmt: skip
    lm = LlamaForCausalLM(config)
    with torch.no_grad():  # the norm has no bias: a component that outweighs the others comes out of it as sqrt(width)
        lm.model.embed_tokens.weight[:, 0] = 4.0
        for layer in lm.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        lm.model.norm.weight[0] = shape.width**-0.5
    return lm


def last_token(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    """Score completions by their last token: a reward that costs nothing and differs between them."""
    return [ids[-1] / 1000 for ids in completion_ids]


def prompts(count: int, length: int, vocab: int, seed: int = 0) -> list[str]:
    """Return texts of ``length`` tokens, none of them ``END`` or ``PAD``."""
    ids = np.random.default_rng(seed).integers(2, vocab, size=(count, length))
    return [" ".join(f"w{number}" for number in row) for row in ids]
