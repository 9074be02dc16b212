"""The networks of common families (GPT-2; Llama, Mistral, Qwen2, Qwen3, Gemma) as few operations as they need.

A ``Network`` computes what the trunk of a Hugging Face model computes, from that model's own modules and parameters:
nothing is converted and nothing is kept twice, except that repeated forwards without gradients pack the weights for
the processor. Where a token is written at a time, the time goes into the number of operations and into matrix products
with few rows; both are what this file is about. Every other architecture runs through its own ``forward``.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.activations import GELUActivation, GELUTanh, NewGELUActivation
from transformers.pytorch_utils import Conv1D

__all__ = ["KeyValues", "Linear", "Network"]

_LLAMA_LIKE = ("gemma", "llama", "mistral", "qwen2", "qwen3")
_PACKED_BYTES = 2**31  # what a second, packed copy of a model's weights may take
_FEW = 2**20  # multiplications that torch does faster than oneDNN is called
_LARGE = 2**22  # multiplications that are worth an operation with gradients of our own
_LONG = 96 * 96  # keys from which one token, too, is faster by attention that does not keep the scores

Activation = Callable[[torch.Tensor], torch.Tensor]


class KeyValues:
    """Keys and values a network has computed, in a buffer ``(places, head_size)`` a layer.

    A place holds a vector: first the keys, ``(rows, heads, capacity)``, then the values, likewise, and at last the
    queries of one token a row, ``(rows, query_heads)``. They are written there together with the keys and values of
    that token, by one operation, and read as they lie.
    """

    def __init__(self, heads: int, kv_heads: int) -> None:
        """Begin without buffers; they are made by the first forward that writes.

        Args:
            heads: Number of heads of queries.
            kv_heads: Of keys and values.
        """
        self.buffers: list[torch.Tensor] = []
        self.size = (0, 0)
        self.length = 0
        self.mask: torch.Tensor | None = None
        self._heads = heads, kv_heads
        self._rows = self._positions = self._where = torch.zeros(0, dtype=torch.int64)
        self._begins: torch.Tensor | None = None  # where the rows of the batch begin, in their order
        self._steps: torch.Tensor | None = None  # by how much a position takes one further
        self._stale = True
        self._spread: torch.Tensor | None = None
        self._views: list[tuple[torch.Tensor, ...]] = []  # of each buffer, for ``_batch`` rows
        self._batch, self._one = 0, False

    def aim(
        self, rows: torch.Tensor, positions: torch.Tensor, length: int, mask: torch.Tensor | None, *, fresh: bool
    ) -> None:
        """Say where the next forward writes, and what it reads.

        Args:
            rows: Row of the buffers of each row of the batch, ``(batch,)``; ``0 .. batch-1`` unless ``fresh``.
            positions: Of the new tokens, ``(batch, new)``.
            length: How many keys it reads.
            mask: Added to the scores, ``(batch, new, length)``; None where all keys are seen.
            fresh: The rows begin with the new tokens, which see each other and nothing before.
        """
        batch, one = rows.shape[0], not fresh and positions.shape[1] == 1
        if not (one and self._one and self._batch == batch):  # else the rows are the same
            self._begins = None
        if self._batch != batch:
            self._views = []
        self._batch, self._one = batch, one
        self._rows, self._positions, self._stale = rows, positions, True
        self.length = 0 if fresh else length
        self.mask, self._spread = mask, None

    def twin(self) -> KeyValues:
        """Return another that reads and writes the same buffers, aimed by itself, until they are enlarged."""
        twin = KeyValues(*self._heads)
        twin.buffers, twin.size = self.buffers, self.size
        return twin

    def resize(self, rows: int, capacity: int) -> None:
        """Enlarge the buffers, keeping what they hold."""
        held = [self._held(buffer) for buffer in self.buffers]
        self.size = (rows, capacity)
        self._begins, self._views = None, []
        for index, old in enumerate(held):
            self.buffers[index] = self._buffer(old)
            self._held(self.buffers[index])[:, : old.shape[1], :, : old.shape[3]] = old

    def write(self, layer: int, qkv: torch.Tensor) -> None:
        """Write keys and values of new tokens, and where there is one a row, the queries, too.

        Args:
            layer: Which.
            qkv: Queries, keys and values, ``(tokens, heads + 2 * kv_heads, head_size)``.
        """
        if layer == len(self.buffers):
            with torch.inference_mode(False):  # it is written outside, too
                self.buffers.append(self._buffer(qkv))
        if layer == len(self._views):
            self._views.append(self._seen(self.buffers[layer]))
        if self._stale:  # the same places in every layer
            self._where, self._stale = self._places(), False
        vectors = qkv if self._one else qkv[:, self._heads[0] :]
        self._views[layer][0].index_copy_(0, self._where, vectors.reshape(-1, qkv.shape[2]))

    def read(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and values that are read, ``(batch * kv_heads, length, head_size)``."""
        _, _, keys, values = self._views[layer]
        return keys.narrow(1, 0, self.length), values.narrow(1, 0, self.length)

    def queries(self, layer: int) -> torch.Tensor:
        """Return the queries of one token a row, ``(batch * kv_heads, group, head_size)``.

        Those that share a head of keys stand as a sequence of queries, so that no key is repeated.
        """
        return self._views[layer][1]

    def spread(self) -> torch.Tensor:
        """Return the mask of one new token for these, ``(batch * kv_heads, group, length)``."""
        if self._spread is None:
            assert self.mask is not None
            batch, _, length = self.mask.shape
            heads, kv_heads = self._heads
            spread = self.mask[:, None].expand(batch, kv_heads, heads // kv_heads, length)
            self._spread = spread.reshape(-1, heads // kv_heads, length)
        return self._spread

    def swap(self, one: torch.Tensor, other: torch.Tensor, length: int) -> None:
        """Exchange rows, as far as ``length``."""
        for buffer in map(self._held, self.buffers):
            held = buffer[:, one, :, :length]
            buffer[:, one, :, :length] = buffer[:, other, :, :length]
            buffer[:, other, :, :length] = held

    def _buffer(self, like: torch.Tensor) -> torch.Tensor:
        (rows, capacity), (heads, kv_heads) = self.size, self._heads
        return like.new_zeros(2 * rows * kv_heads * capacity + rows * heads, like.shape[-1])

    def _held(self, buffer: torch.Tensor) -> torch.Tensor:
        """Return a buffer's keys and values, ``(2, rows, kv_heads, capacity, head_size)``."""
        (rows, capacity), (_, kv_heads) = self.size, self._heads
        return buffer[: 2 * rows * kv_heads * capacity].view(2, rows, kv_heads, capacity, -1)

    def _seen(self, buffer: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return a buffer, and the queries, keys and values in it of the first ``_batch`` rows, head by head."""
        rows, (heads, kv_heads) = self.size[0], self._heads
        keys, values = (part[: self._batch].flatten(0, 1) for part in self._held(buffer).unbind())
        queries = buffer[-rows * heads :].view(rows * kv_heads, heads // kv_heads, -1)
        return buffer, queries[: self._batch * kv_heads], keys, values

    def _places(self) -> torch.Tensor:
        """Return where in a buffer what is written belongs."""
        (rows, capacity), (heads, kv_heads) = self.size, self._heads
        if self._begins is None:
            every = torch.arange(2 * rows * kv_heads + rows * heads, device=self._rows.device)
            vectors, queries = (
                every[: 2 * rows * kv_heads] * capacity,
                every[: rows * heads] + 2 * rows * kv_heads * capacity,
            )
            begins = vectors.view(2, rows, kv_heads)[:, self._rows].transpose(0, 1).flatten(1)
            if self._one:
                begins = torch.cat((queries.view(rows, heads)[: self._batch], begins), dim=1)
            self._begins = begins[:, None]
            self._steps = (torch.arange(begins.shape[1], device=begins.device) >= begins.shape[1] - 2 * kv_heads).long()
        assert self._steps is not None
        return torch.addcmul(self._begins, self._positions[:, :, None], self._steps).flatten()


class Linear:
    """One or more linear layers that read the same input, applied as one.

    ``pack`` makes a copy of the weights that is fast without gradients; ``unpack`` drops it.
    """

    def __init__(self, *modules: nn.Module, activation: Activation | None = None, adapted: bool = False) -> None:
        """Take the layers, in the order of their outputs, what is applied to these, and whether adapters count."""
        self._modules = modules if adapted else tuple(getattr(module, "base_layer", module) for module in modules)
        self._activation = activation
        self._source: torch.Tensor | None = None  # the weight to be packed, (out, in)
        self._bias: torch.Tensor | None = None
        self._weight: torch.Tensor | None = None  # (in, out), made when it is needed
        self._packed: Any = None  # the same for oneDNN
        self._learnt = False  # so that what is made of the weight lasts for a rollout
        self._few = 0  # up to how many rows the former is faster

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Map ``(tokens, in)`` to ``(tokens, out)``, the outputs of the layers side by side, and add ``residual``."""
        if self._source is None or torch.is_grad_enabled():
            parts = [_apply(module, x) for module in self._modules]
            y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        elif x.shape[0] > self._few:
            if self._packed is None:
                weight = self._source
                packs = not (self._learnt and weight.T.is_contiguous())
                self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 16) if packs else weight
            if residual is not None:
                y = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._packed, self._bias, "add")
                return cast(torch.Tensor, y)
            name, algorithm = _ONEDNN.get(self._activation, ("none", ""))
            y = _product(x, self._packed, self._bias, name, algorithm)
            if name != "none":
                return y
        else:
            if self._weight is None:
                self._weight = self._source.T.contiguous()
            y = torch.mm(x, self._weight) if self._bias is None else torch.addmm(self._bias, x, self._weight)
        if self._activation is not None:
            y = self._activation(y)
        return y if residual is None else residual + y

    def pack(self) -> None:
        """Bring the weights into the form in which they are read fastest."""
        pairs = [_weight_and_bias(module) for module in self._modules]
        found = [pair for pair in pairs if pair is not None]
        if len(found) < len(pairs):
            return  # a layer that does more than its weight says is called as it is
        weights = [weight for weight, _ in found]
        if weights[0].device.type != "cpu" or weights[0].dtype != torch.float32:
            return
        weight, self._bias = found[0]
        if len(found) > 1:
            weight = torch.cat(weights)
            if any(bias is not None for _, bias in found):
                self._bias = torch.cat([w.new_zeros(len(w)) if bias is None else bias for w, bias in found])
        self._source = weight
        # Packing a Conv1D, which stands as (in, out), takes longer than it saves in a rollout.
        self._learnt = any(p.requires_grad for module in self._modules for p in module.parameters())
        self._few = sys.maxsize
        if _has_onednn():  # which applies the activation in passing, too
            self._few = (_FEW if self._activation is None else _FEW // 2) // weight.numel()

    def unpack(self) -> None:
        """Read the layers' own weights again."""
        self._source = self._weight = self._bias = self._packed = None


def _apply(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Call a layer, or do what it does with faster products: what torch calls by itself is slow on some processors."""
    if (
        type(module) not in (nn.Linear, Conv1D)
        or type(module.weight) is not nn.Parameter
        or any(each.device.type != "cpu" or each.dtype != torch.float32 for each in (x, module.weight))
        or x.shape[0] * module.weight.numel() < _LARGE
        or torch.is_autocast_enabled("cpu")
        or not _has_onednn()
    ):
        return cast(torch.Tensor, module(x))
    return _learnt_product(x, module.weight, module.bias, type(module) is Conv1D)


class _Product(torch.autograd.Function):
    """A linear layer by oneDNN, forwards and backwards."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, transposed: bool
    ) -> torch.Tensor:
        """Map ``(tokens, in)`` to ``(tokens, out)`` by a weight ``(out, in)``, or transposed."""
        ctx.save_for_backward(x, weight)
        ctx.transposed = transposed
        return _product(x, weight.T if transposed else weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradients of ``x``, the weight and the bias."""
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _product(grad, weight if ctx.transposed else weight.T)
        if ctx.needs_input_grad[1]:
            of_weight = _product(x.T, grad.T) if ctx.transposed else _product(grad.T, x.T)
        if ctx.needs_input_grad[2]:
            of_bias = grad.sum(dim=0)
        return of_x, of_weight, of_bias, None


_learnt_product: Callable[..., torch.Tensor] = _Product.apply


def _product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str = "none", kind: str = ""
) -> torch.Tensor:
    """Return ``activation(x @ weight.T + bias)`` by oneDNN, of a weight that is packed or not."""
    return cast(torch.Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], kind))


def _weight_and_bias(module: Any) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """Return the weight ``(out, in)`` and bias that a layer amounts to, or None where it amounts to more."""
    base = getattr(module, "base_layer", module)
    if type(base) not in (nn.Linear, Conv1D):
        return None
    weight, bias = base.weight.detach(), base.bias
    if base is not module:
        if not type(module).__module__.startswith("peft.tuners.lora") or module.merged or module.lora_variant:
            return None
        for name in module.active_adapters if not module.disable_adapters else ():
            weight = weight + module.get_delta_weight(name).detach()
    return weight.T if isinstance(base, Conv1D) else weight, None if bias is None else bias.detach()


@functools.cache
def _has_onednn() -> bool:
    """Tell whether torch has oneDNN's packed matrices: operators of its own, which other builds may lack.

    With ``OMP_DYNAMIC=true`` they are left alone: beside other load OpenMP then starts fewer threads than oneDNN counts
    on, and what the missing ones had to compute is missing from its products.
    """
    if os.environ.get("OMP_DYNAMIC", "").strip().lower() == "true":
        return False
    x, weight, bias = torch.linspace(-1, 1, 96).view(2, 48), torch.linspace(-1, 1, 3072).view(64, 48), torch.ones(64)
    plain = functional.linear(x, weight, bias)
    try:
        if not torch.allclose(_product(x.T.contiguous().T, weight.T.contiguous().T, bias), plain, atol=1e-5):
            return False
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 2)
        for activation, (name, algorithm) in _ONEDNN.items():
            y = _product(x, packed, bias, name, algorithm)
            if not torch.allclose(y, plain if activation is None else activation(plain), atol=1e-5):
                return False
        added = torch.ops.mkldnn._linear_pointwise.binary(x, plain, packed, None, "add")
        return bool(torch.allclose(added, 2 * plain - 1, atol=1e-5))
    except (AttributeError, RuntimeError):
        return False


@dataclass(frozen=True)
class _Block:
    """One layer: attention, then a perceptron, each on normed input and added to the stream."""

    attention_norm: Activation
    qkv: Linear
    head_norms: tuple[Activation, Activation] | None  # Qwen3: of queries and keys
    out: Linear
    scale: float
    mlp_norm: Activation
    up: Linear
    gate: Activation | None  # of the first half of what ``up`` returns, which then multiplies the second
    down: Linear

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.qkv, self.out, self.up, self.down


class Network:
    """The trunk of a model: token ids to last hidden states."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        embed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        blocks: list[_Block],
        norm: Activation,
        heads: tuple[int, int, int],
        rotary: nn.Module | None = None,
    ) -> None:
        """Take a model's parts; use ``Network.of``."""
        self.head = Linear(cast(nn.Module, model.get_output_embeddings()))
        self.checkpointing = False
        self._model = model
        self._embed, self._rotary, self._blocks, self._norm = embed, rotary, blocks, norm
        self.heads = heads  # of queries, of keys and values, and their size
        self.angles: tuple[torch.Tensor, torch.Tensor] | None = None  # by position, made when they are needed
        self._packed = False

    @staticmethod
    def of(model: PreTrainedModel, *, adapted: bool = False) -> Network | None:
        """Return the network of a model of a family that is known here, or None.

        A subclass, a module with hooks, an option that is rare: all these run through the model's own ``forward``.

        Args:
            model: A causal language model.
            adapted: Whether LoRA adapters in it count; else the layers are read as they were before.
        """
        config = model.config
        if not type(model).__module__.startswith(f"transformers.models.{config.model_type}."):
            return None
        if config._attn_implementation not in ("eager", "sdpa") or any(
            any(hooks_of(module)) for module in model.modules()
        ):
            return None
        if config.model_type == "gpt2":
            return _gpt2(model, functools.partial(Linear, adapted=adapted))
        if config.model_type in _LLAMA_LIKE:
            return _llama(model, functools.partial(Linear, adapted=adapted))
        return None

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
            positions: Of the tokens, ``(batch, new)``; None where every row begins at 0.
            keys_values: Of the tokens before, aimed; None for whole sequences.
            keep: Of which tokens they are wanted, as places in ``ids``, row after row, ``(kept,)``; None for all.

        Returns:
            Shape ``(kept, hidden_size)``, or ``(batch, new, hidden_size)`` of all.
        """
        batch, new = ids.shape
        if positions is None:
            positions = torch.arange(new, device=ids.device).expand(batch, new)
        places = positions.flatten()
        x = self._embed(ids.flatten(), places)
        angles = None
        if self._rotary is not None:
            angles = self._rotation(places, x, new if keys_values is None else keys_values.size[1])
        save = self.checkpointing and torch.is_grad_enabled()
        for layer in range(len(self._blocks)):
            wanted = keep if layer == len(self._blocks) - 1 else None  # the others are keys and values there, no more
            arguments = (layer, x, batch, angles, keys_values)
            if save:
                x = checkpoint(self._layer, *arguments, keep=wanted, use_reentrant=False)
            else:
                x = self._layer(*arguments, keep=wanted)
        x = self._norm(x)
        return x.view(batch, new, -1) if keep is None else x

    def pack(self) -> None:
        """Pack the weights, if they are not."""
        if self._packed:
            return
        self._packed = True
        if sum(p.nbytes for p in self._model.parameters()) <= _PACKED_BYTES:
            for linear in self._linears():
                linear.pack()

    def unpack(self) -> None:
        """Forget the packed weights, because they have changed or are about to."""
        self._packed = False
        for linear in self._linears():
            linear.unpack()

    def _linears(self) -> list[Linear]:
        return [self.head, *(linear for block in self._blocks for linear in block.linears)]

    def _layer(
        self,
        layer: int,
        x: torch.Tensor,
        batch: int,
        angles: tuple[torch.Tensor, torch.Tensor] | None,
        keys_values: KeyValues | None,
        *,
        keep: torch.Tensor | None,
    ) -> torch.Tensor:
        block = self._blocks[layer]
        heads, kv_heads, size = self.heads
        qkv = block.qkv(block.attention_norm(x)).view(x.shape[0], heads + 2 * kv_heads, size)
        if angles is not None:
            qk, v = qkv.split((heads + kv_heads, kv_heads), dim=1)
            if block.head_norms is not None:
                q, k = qk.split((heads, kv_heads), dim=1)
                qk = torch.cat((block.head_norms[0](q), block.head_norms[1](k)), dim=1)
            qk = torch.addcmul(qk * angles[0], qk.roll(size // 2, dims=-1), angles[1])
            qkv = torch.cat((qk, v), dim=1)
        mixed = self._attend(layer, block.scale, batch, qkv, keys_values)
        if keep is not None:
            mixed, x = mixed.index_select(0, keep), x.index_select(0, keep)
        x = block.out(mixed, x)
        y = block.up(block.mlp_norm(x))
        if block.gate is not None:
            gate, y = y.chunk(2, dim=-1)
            y = block.gate(gate) * y
        return block.down(y, x)

    def _attend(
        self, layer: int, scale: float, batch: int, qkv: torch.Tensor, keys_values: KeyValues | None
    ) -> torch.Tensor:
        """Attend: queries, keys and values ``(tokens, heads + 2 * kv_heads, size)`` to ``(tokens, heads * size)``."""
        heads, kv_heads, size = self.heads
        new, group = qkv.shape[0] // batch, heads // kv_heads
        length, mask = new, None
        if keys_values is not None:
            keys_values.write(layer, qkv)
            length, mask = keys_values.length or new, keys_values.mask
            if new == 1 and 0 < keys_values.length <= _LONG:
                q, (keys, values) = keys_values.queries(layer), keys_values.read(layer)
                if mask is None:
                    scores = torch.baddbmm(_any(q.dtype, q.device), q, keys.mT, beta=0, alpha=scale)
                else:
                    scores = torch.baddbmm(keys_values.spread(), q, keys.mT, alpha=scale)
                return torch.bmm(torch.softmax(scores, dim=-1), values).view(batch, heads * size)
        if keys_values is not None and keys_values.length:
            k, v = (part.view(batch, kv_heads, length, size) for part in keys_values.read(layer))
            mask = None if mask is None else mask[:, None]
        else:
            k, v = qkv.view(batch, new, -1, size).transpose(1, 2)[:, heads:].chunk(2, dim=1)
        mixed = functional.scaled_dot_product_attention(
            qkv[:, :heads].view(batch, new, heads, size).transpose(1, 2),
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None and new > 1,
            scale=scale,
            enable_gqa=group > 1,
        )
        return mixed.transpose(1, 2).reshape(batch * new, heads * size)

    def _rotation(self, places: torch.Tensor, x: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and signed sines of the rotary embedding, ``(tokens, 1, head_size)`` each."""
        known = self.angles
        if known is None or len(known[0]) < length or known[0].dtype != x.dtype or known[0].device != x.device:
            with torch.inference_mode(False):
                every = torch.arange(max(64, 2 * length), device=x.device)
                cos, sin = cast(nn.Module, self._rotary)(x, every[None])
                half = cos.shape[-1] // 2
                signed = torch.cat((-sin[0, :, :half], sin[0, :, half:]), dim=-1)
                known = self.angles = cos[0, :, None], signed[:, None]
        return known[0][places], known[1][places]


@functools.cache
def _any(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return a number to be added 0 times."""
    with torch.inference_mode(False):
        return torch.zeros(1, 1, 1, dtype=dtype, device=device)


def hooks_of(module: nn.Module) -> tuple[dict[int, Any], ...]:
    """Return what holds a module's hooks, by which it does more than its ``forward``."""
    hooks: tuple[Any, ...] = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return hooks


def _gpt2(model: PreTrainedModel, linear: Callable[..., Linear]) -> Network | None:
    config: Any = model.config
    trunk: Any = model.base_model
    if config.add_cross_attention:
        return None
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads

    tokens, positions = _embedding(trunk.wte), _embedding(trunk.wpe)

    def embed(ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return tokens(ids) + positions(places)

    blocks = [
        _Block(
            attention_norm=_layer_norm(block.ln_1),
            qkv=linear(block.attn.c_attn),
            head_norms=None,
            out=linear(block.attn.c_proj),
            scale=block.attn.scaling,
            mlp_norm=_layer_norm(block.ln_2),
            up=linear(block.mlp.c_fc, activation=_activation(block.mlp.act)),
            gate=None,
            down=linear(block.mlp.c_proj),
        )
        for block in trunk.h
    ]
    return Network(model, embed=embed, blocks=blocks, norm=_layer_norm(trunk.ln_f), heads=(heads, heads, size))


def _llama(model: PreTrainedModel, linear: Callable[..., Linear]) -> Network | None:
    config: Any = model.config
    trunk: Any = model.base_model
    if getattr(config, "use_bidirectional_attention", False) or config.rope_parameters["rope_type"] in _SHIFTING_ROPES:
        return None
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    tokens = _embedding(trunk.embed_tokens)

    def embed(ids: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return tokens(ids)

    blocks = []
    for block in trunk.layers[: config.num_hidden_layers]:
        attention, mlp = block.self_attn, block.mlp
        normed = hasattr(attention, "q_norm")
        blocks.append(
            _Block(
                attention_norm=_rms_norm(block.input_layernorm),
                qkv=linear(attention.q_proj, attention.k_proj, attention.v_proj),
                head_norms=(_rms_norm(attention.q_norm), _rms_norm(attention.k_norm)) if normed else None,
                out=linear(attention.o_proj),
                scale=attention.scaling,
                mlp_norm=_rms_norm(block.post_attention_layernorm),
                up=linear(mlp.gate_proj, mlp.up_proj),
                gate=_activation(mlp.act_fn),
                down=linear(mlp.down_proj),
            )
        )
    heads = (config.num_attention_heads, config.num_key_value_heads, size)
    return Network(model, embed=embed, blocks=blocks, norm=_rms_norm(trunk.norm), heads=heads, rotary=trunk.rotary_emb)


_SHIFTING_ROPES = ("dynamic", "longrope")  # their angles depend on the length of the text


# A module looks for an attribute in several places; what follows goes to its parameters at once.


def _embedding(module: nn.Module) -> Activation:
    if type(module) is not nn.Embedding or module.max_norm is not None or module.sparse:
        return module
    held, padding = module._parameters, -1 if module.padding_idx is None else module.padding_idx
    return lambda ids: torch.embedding(cast(torch.Tensor, held["weight"]), ids, padding)


def _layer_norm(module: nn.LayerNorm) -> Activation:
    shape, epsilon, held = module.normalized_shape, module.eps, module._parameters
    return lambda x: torch.layer_norm(x, shape, held["weight"], held["bias"], epsilon)


def _rms_norm(module: Any) -> Activation:
    shifted = type(module).__name__.startswith("Gemma")  # its weight is the distance from 1
    epsilon, held = float(module.eps if shifted else module.variance_epsilon), module._parameters

    def norm(x: torch.Tensor) -> torch.Tensor:
        weight = 1.0 + held["weight"] if shifted else held["weight"]
        return functional.rms_norm(x, (x.shape[-1],), weight, epsilon)

    return norm


def _activation(module: nn.Module) -> Activation:
    """Return the activation as one operation where there is one for it."""
    if isinstance(module, (NewGELUActivation, GELUTanh)):
        return _gelu_tanh
    if isinstance(module, GELUActivation):
        return functional.gelu
    return module


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return functional.gelu(x, approximate="tanh")


_ONEDNN: dict[Activation | None, tuple[str, str]] = {
    None: ("none", ""),
    _gelu_tanh: ("gelu", "tanh"),
    functional.gelu: ("gelu", "none"),
}
"""The names by which oneDNN applies an activation in passing."""
