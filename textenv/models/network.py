"""The trunk of a decoder in as few operations as it needs: token ids to last hidden states.

A ``Network`` computes what the trunk of a Hugging Face model computes, from that model's own modules and parameters:
nothing is converted or copied, except that repeated forwards without gradients pack the weights for the CPU. Where one
token is generated at a time, the time goes into the number of operations and into matrix products with few rows; the
first is the concern of this file, the second of ``linear``. ``families`` says which architectures it can stand for.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from textenv.models.key_values import KeyValues
from textenv.models.linear import Linear
from textenv.models.operations import Operation
from textenv.models.rounding import Precision, multiplies_int8
from textenv.types import TextEnvError

__all__ = ["Block", "Network", "refuse_rounding"]

_MAX_PACKED_BYTES = 2**31  # of a model's weights; a larger model is not packed, as that takes as much memory again
_MAX_EXPLICIT_KEYS = 96 * 96  # up to which a decoding step is faster with its scores in memory than without


@dataclass(frozen=True)
class Block:
    """One layer: attention, then a perceptron; each reads its normalized input and adds its output to that input.

    Attributes:
        attention_norm: Normalizes the input of the attention.
        qkv: Queries, keys and values side by side, ``hidden_size`` to ``(heads + 2 * kv_heads) * head_size``.
        head_norms: Normalize each head of the queries and of the keys (Qwen3), or None.
        out: The output of the attention, ``heads * head_size`` to ``hidden_size``.
        scale: Multiplies the attention scores.
        mlp_norm: Normalizes the input of the perceptron.
        up: The first layer of the perceptron, with its activation if there is no gate.
        gate: Activation of the first half of what ``up`` returns, which then multiplies the second half; or None.
        down: The last layer of the perceptron.
    """

    attention_norm: Operation
    qkv: Linear
    head_norms: tuple[Operation, Operation] | None
    out: Linear
    scale: float
    mlp_norm: Operation
    up: Linear
    gate: Operation | None
    down: Linear

    @property
    def linears(self) -> tuple[Linear, ...]:
        """All linear layers."""
        return self.qkv, self.out, self.up, self.down


class Network:
    """The trunk of a model: token ids to last hidden states.

    Attributes:
        head: The language-model head, hidden states to logits.
        blocks: The layers.
        heads: Number of heads of the queries, number of heads of keys and values, and ``head_size``.
        checkpointing: Whether forwards with gradients keep only the input of each layer.
        rotary_table: Cosines and signed sines of the rotary embedding by position, ``(positions, 1, head_size)`` each;
            None until they are first needed. A longer one replaces it when positions beyond its end are asked for.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        embed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        blocks: list[Block],
        norm: Operation,
        heads: tuple[int, int, int],
        rotary: nn.Module | None = None,
    ) -> None:
        """Take the parts of a model; ``families.build_network`` finds them.

        Args:
            model: The model.
            embed: Maps token ids ``(tokens,)`` and positions ``(tokens,)`` to vectors ``(tokens, hidden_size)``.
            blocks: The layers.
            norm: Normalizes the output of the last layer.
            heads: Number of heads of the queries, number of heads of keys and values, and ``head_size``.
            rotary: The module of the rotary embedding, where there is one.
        """
        self.head = Linear(cast(nn.Module, model.get_output_embeddings()))
        self.heads = heads
        self.checkpointing = False
        self.rotary_table: tuple[torch.Tensor, torch.Tensor] | None = None
        self._model = model
        self.blocks = blocks
        self._embed, self._rotary, self._norm = embed, rotary, norm
        self._packed: Precision | None = None

    def run(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor | None = None,
        keys_values: KeyValues | None = None,
        *,
        keep: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the last hidden states.

        Args:
            ids: Token ids, padded on the right, ``(batch, new)``.
            positions: Positions of the tokens, ``(batch, new)``; None where every row begins at 0.
            keys_values: Keys and values of the tokens before, prepared for this forward; None for whole sequences.
            keep: Indices in ``ids.flatten()`` of the tokens to return, ``(kept,)``; None for all. The last layer
                computes keys and values alone for the others.

        Returns:
            Shape ``(kept, hidden_size)``, or ``(batch, new, hidden_size)`` without ``keep``.
        """
        batch, new = ids.shape
        if positions is None:
            positions = torch.arange(new, device=ids.device).expand(batch, new)
        flat_positions = positions.flatten()
        x = self._embed(ids.flatten(), flat_positions)
        rotation = None
        if self._rotary is not None:
            rotation = self._rotation(flat_positions, x, new if keys_values is None else keys_values.size[1])
        recompute = self.checkpointing and torch.is_grad_enabled()
        for layer in range(len(self.blocks)):
            kept = keep if layer == len(self.blocks) - 1 else None
            arguments = (layer, x, batch, rotation, keys_values)
            if recompute:
                x = checkpoint(self._run_block, *arguments, keep=kept, use_reentrant=False)
            else:
                x = self._run_block(*arguments, keep=kept)
        x = self._norm(x)
        return x.view(batch, new, -1) if keep is None else x

    def pack(self, precision: Precision = "float32") -> None:
        """Pack the weights, unless they are packed already or, unrounded, take too much memory.

        Embeddings, norms and the head stay as they are: the head's error would go into the logits undamped.

        Args:
            precision: What the linear layers of the blocks are rounded to.

        Raises:
            TextEnvError: They cannot be.
        """
        if self._packed == precision:
            return
        self.unpack()
        fits = sum(p.nbytes for p in self._model.parameters()) <= _MAX_PACKED_BYTES
        if precision != "float32":
            if precision == "int8" and not multiplies_int8():
                raise TextEnvError("This build of torch has no int8 products (FBGEMM); expected 'float32'.")
            if not all(linear.pack(precision) for block in self.blocks for linear in block.linears):
                raise refuse_rounding(self._model, precision)
        for linear in self._linears() if precision == "float32" else [self.head]:
            if fits:
                linear.pack()
        self._packed = precision

    def unpack(self) -> None:
        """Drop the packed weights, because the weights have changed or are about to."""
        self._packed = None
        for linear in self._linears():
            linear.unpack()

    @contextlib.contextmanager
    def unrounded(self) -> Iterator[None]:
        """Compute with the weights as they are inside."""
        before = self._packed
        if before is None or before == "float32":
            yield
            return
        self.pack()
        try:
            yield
        finally:
            self.pack(before)

    def _linears(self) -> list[Linear]:
        return [self.head, *(linear for block in self.blocks for linear in block.linears)]

    def _rotation(self, positions: torch.Tensor, x: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and signed sines at positions below ``length``, ``(tokens, 1, head_size)`` each.

        Signed sines are negative in the first half, so that rotating a vector is one product with its halves exchanged.
        """
        table = self.rotary_table
        if table is None or len(table[0]) < length or table[0].dtype != x.dtype or table[0].device != x.device:
            with torch.inference_mode(False):  # the table serves forwards with gradients too
                every = torch.arange(max(64, 2 * length), device=x.device)
                cos, sin = cast(nn.Module, self._rotary)(x, every[None])
                half = cos.shape[-1] // 2
                signed = torch.cat((-sin[0, :, :half], sin[0, :, half:]), dim=-1)
                table = self.rotary_table = cos[0, :, None], signed[:, None]
        return table[0][positions], table[1][positions]

    def _run_block(
        self,
        layer: int,
        x: torch.Tensor,
        batch: int,
        rotation: tuple[torch.Tensor, torch.Tensor] | None,
        keys_values: KeyValues | None,
        *,
        keep: torch.Tensor | None,
    ) -> torch.Tensor:
        """Run one layer on ``(tokens, hidden_size)``; return the same shape, or ``(kept, hidden_size)``."""
        block = self.blocks[layer]
        heads, kv_heads, size = self.heads
        qkv = block.qkv(block.attention_norm(x)).view(x.shape[0], heads + 2 * kv_heads, size)
        if rotation is not None:
            qk, v = qkv.split((heads + kv_heads, kv_heads), dim=1)
            if block.head_norms is not None:
                q, k = qk.split((heads, kv_heads), dim=1)
                qk = torch.cat((block.head_norms[0](q), block.head_norms[1](k)), dim=1)
            qk = torch.addcmul(qk * rotation[0], qk.roll(size // 2, dims=-1), rotation[1])
            qkv = torch.cat((qk, v), dim=1)
        attended = self._attend(layer, batch, qkv, keys_values)
        if keep is not None:
            attended, x = attended.index_select(0, keep), x.index_select(0, keep)
        x = block.out(attended, x)
        y = block.up(block.mlp_norm(x))
        if block.gate is not None:
            gate, y = y.chunk(2, dim=-1)
            y = block.gate(gate) * y
        return block.down(y, x)

    def _attend(self, layer: int, batch: int, qkv: torch.Tensor, keys_values: KeyValues | None) -> torch.Tensor:
        """Map queries, keys and values ``(tokens, heads + 2 * kv_heads, size)`` to ``(tokens, heads * size)``."""
        heads, kv_heads, size = self.heads
        scale, new = self.blocks[layer].scale, qkv.shape[0] // batch
        if keys_values is not None:
            keys_values.write(layer, qkv)
            if keys_values.decoding and keys_values.length <= _MAX_EXPLICIT_KEYS:
                return _attend_decoding(layer, keys_values, scale).view(batch, heads * size)
        if keys_values is None or keys_values.prefill:
            k, v = qkv.view(batch, new, -1, size).transpose(1, 2)[:, heads:].chunk(2, dim=1)
            mask, causal = None, new > 1
        else:
            k, v = (part.view(batch, kv_heads, -1, size) for part in keys_values.read(layer))
            mask, causal = None if keys_values.mask is None else keys_values.mask[:, None], False
        attended = functional.scaled_dot_product_attention(
            qkv[:, :heads].view(batch, new, heads, size).transpose(1, 2),
            k,
            v,
            attn_mask=mask,
            is_causal=causal,
            scale=scale,
            enable_gqa=heads > kv_heads,
        )
        return attended.transpose(1, 2).reshape(batch * new, heads * size)


def refuse_rounding(model: PreTrainedModel, precision: Precision) -> TextEnvError:
    """Return the error for a model whose linear layers are not rounded."""
    parameter = next(model.parameters())
    return TextEnvError(
        f"precision {precision!r} of a {type(model).__name__} in {str(parameter.dtype).removeprefix('torch.')} on "
        f"{str(parameter.device)!r}: expected a model in float32 on the CPU, of an architecture in "
        "textenv.models.families, with plain linear layers; use 'float32'."
    )


def _attend_decoding(layer: int, keys_values: KeyValues, scale: float) -> torch.Tensor:
    """Attend from one token a row, with explicit scores; return ``(batch * kv_heads, heads // kv_heads, size)``."""
    q, (keys, values) = keys_values.queries(layer), keys_values.read(layer)
    if keys_values.mask is None:
        scores = torch.baddbmm(_ignored_summand(q.dtype, q.device), q, keys.mT, beta=0, alpha=scale)
    else:
        scores = torch.baddbmm(keys_values.broadcast_mask(), q, keys.mT, alpha=scale)
    return torch.bmm(torch.softmax(scores, dim=-1), values)


@functools.cache
def _ignored_summand(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the summand that ``baddbmm`` asks for and does not read when ``beta`` is 0."""
    with torch.inference_mode(False):
        return torch.zeros(1, 1, 1, dtype=dtype, device=device)
