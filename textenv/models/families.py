"""The architectures that a ``Network`` can stand for, and which of their modules become which of its parts.

To add one, write a function from a model to its ``Network``, unless one that is here fits, and enter it in
``BUILDERS`` under the ``model_type`` of the architecture's configuration. Its test is an entry in
``tests/families.py``, which ``tests/test_network.py`` compares with transformers. An architecture that has no entry
here runs through its own ``forward``, which is slower.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from textenv.models.linear import Linear
from textenv.models.network import Block, Network
from textenv.models.operations import activation, embedding, layer_norm, rms_norm

__all__ = ["BUILDERS", "Builder", "build_network", "hooks_of"]

_NOTING_HOOKS = "transformers.utils.output_capturing"  # the module that they are from

Builder = Callable[[PreTrainedModel, Callable[..., Linear]], Network | None]
"""Makes a ``Network`` from a model and what makes a ``Linear`` of its layers; None for options that are not known."""

_LENGTH_DEPENDENT_ROPES = ("dynamic", "longrope")  # their angles depend on the length of the text


def build_network(model: PreTrainedModel, *, adapted: bool = False) -> Network | None:
    """Return the network of a model whose architecture is known here, or None.

    It is None for a subclass, a model with hooks, an attention of another kind and options that are rare: these run
    through the model's own ``forward``.

    Args:
        model: A causal language model.
        adapted: Whether LoRA adapters in it are applied; else the layers below them are read.
    """
    config = model.config
    build = BUILDERS.get(config.model_type)
    if build is None or not type(model).__module__.startswith(f"transformers.models.{config.model_type}."):
        return None
    if config._attn_implementation not in ("eager", "sdpa"):
        return None
    if any(_do_more(hooks) for module in model.modules() for hooks in hooks_of(module)):
        return None
    return build(model, functools.partial(Linear, adapted=adapted))


def _do_more(hooks: dict[int, Any]) -> bool:
    """Tell whether hooks change what a module computes; those that transformers leaves behind only note outputs.

    They stay in a model that was asked for its hidden states or attentions once.
    """
    return any(getattr(hook, "__module__", "") != _NOTING_HOOKS for hook in hooks.values())


def hooks_of(module: nn.Module) -> tuple[dict[int, Any], ...]:
    """Return the dictionaries of a module's hooks, which make a call of it do more than its ``forward``."""
    hooks: tuple[Any, ...] = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return hooks


def _build_gpt2(model: PreTrainedModel, linear: Callable[..., Linear]) -> Network | None:
    """Build GPT-2: learned positions, layer normalization, a perceptron without a gate."""
    config: Any = model.config
    trunk: Any = model.base_model
    if config.add_cross_attention:
        return None
    heads, head_size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    embed_tokens, embed_positions = embedding(trunk.wte), embedding(trunk.wpe)

    def embed(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return embed_tokens(ids) + embed_positions(positions)

    blocks = [
        Block(
            attention_norm=layer_norm(layer.ln_1),
            qkv=linear(layer.attn.c_attn),
            head_norms=None,
            out=linear(layer.attn.c_proj),
            scale=layer.attn.scaling,
            mlp_norm=layer_norm(layer.ln_2),
            up=linear(layer.mlp.c_fc, activation=activation(layer.mlp.act)),
            gate=None,
            down=linear(layer.mlp.c_proj),
        )
        for layer in trunk.h
    ]
    return Network(model, embed=embed, blocks=blocks, norm=layer_norm(trunk.ln_f), heads=(heads, heads, head_size))


def _build_llama(model: PreTrainedModel, linear: Callable[..., Linear]) -> Network | None:
    """Build Llama and what descends from it: rotary positions, RMS normalization, a perceptron with a gate."""
    config: Any = model.config
    trunk: Any = model.base_model
    if getattr(config, "use_bidirectional_attention", False):
        return None
    if config.rope_parameters["rope_type"] in _LENGTH_DEPENDENT_ROPES:
        return None
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    embed_tokens = embedding(trunk.embed_tokens)

    def embed(ids: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return embed_tokens(ids)

    blocks = []
    for layer in trunk.layers[: config.num_hidden_layers]:
        attention, mlp = layer.self_attn, layer.mlp
        has_head_norms = hasattr(attention, "q_norm")  # Qwen3
        blocks.append(
            Block(
                attention_norm=rms_norm(layer.input_layernorm),
                qkv=linear(attention.q_proj, attention.k_proj, attention.v_proj),
                head_norms=(rms_norm(attention.q_norm), rms_norm(attention.k_norm)) if has_head_norms else None,
                out=linear(attention.o_proj),
                scale=attention.scaling,
                mlp_norm=rms_norm(layer.post_attention_layernorm),
                up=linear(mlp.gate_proj, mlp.up_proj),
                gate=activation(mlp.act_fn),
                down=linear(mlp.down_proj),
            )
        )
    heads = (config.num_attention_heads, config.num_key_value_heads, head_size)
    return Network(model, embed=embed, blocks=blocks, norm=rms_norm(trunk.norm), heads=heads, rotary=trunk.rotary_emb)


BUILDERS: dict[str, Builder] = {
    "gemma": _build_llama,
    "gpt2": _build_gpt2,
    "llama": _build_llama,
    "mistral": _build_llama,
    "qwen2": _build_llama,
    "qwen3": _build_llama,
}
"""What makes the network of an architecture, by the ``model_type`` of its configuration."""
