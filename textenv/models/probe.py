"""Which precision is the fastest one at a model's shapes on this processor, and how far it is from float32."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Literal

import torch

from textenv.models.causal_lm import CausalLM
from textenv.models.families import build_network
from textenv.models.linear import Product
from textenv.models.network import Network
from textenv.models.rounding import Precision, multiplies_bfloat16, multiplies_int8

__all__ = [
    "LARGEST_ERROR",
    "LEAST_GAIN",
    "fastest_rollout",
    "fastest_training",
    "product_seconds",
    "rounding_error",
]

LEAST_GAIN = 1.2
"""Times as fast as float32 that fewer bits have to be to be worth their error."""

LARGEST_ERROR = 0.1
"""Nats a token by which rounding may move log pi: half of what a trust region of 0.2 leaves to learning."""

_TEXT = (
    "The house stood at the end of a narrow street. In the morning she opened the windows, made tea, and read the "
    "letters that had come: one from her brother, who wrote about his work, and two about money."
)
_TEXT_TOKENS = 48
_SECONDS = 0.1  # of measuring, all ways together
_TRAINING_TOKENS = 256  # of a pass with gradients, about


def fastest_rollout(lm: CausalLM, rows: int) -> Precision:
    """Return the precision in which a decoding step's products take the least time; float32 unless it gains a fifth.

    Float32 too where the model cannot be rounded. What moves log pi by more than ``LARGEST_ERROR`` is left out: it
    would be fast at drawing what the losses then have to throw away. The products of one layer stand for those of all;
    those of the head, which is never rounded, are taken to run at the same speed in float32.

    Args:
        lm: The language model; its adapter, where there is one, is part of the weights.
        rows: Rows of a decoding step.
    """
    network = _network_of(lm)
    if network is None:
        return "float32"
    ways: list[Precision] = ["float32"]
    if multiplies_bfloat16(lm.device):
        ways.append("bfloat16")
    if multiplies_int8():
        ways.append("int8")
    seconds = product_seconds(network, rows, ways) if len(ways) > 1 else {}
    while (best := _fastest(seconds)) != "float32" and rounding_error(lm, best) > LARGEST_ERROR:
        del seconds[best]
    return best


@torch.no_grad()
def rounding_error(lm: CausalLM, precision: Precision) -> float:
    """Return by how much rounding moves log pi of a token that the model itself draws, in nats: the mean over a text.

    ``E_s sum_a pi(a|s) |log pi_rounded(a|s) - log pi(a|s)|``; the states s are the beginnings of a few sentences.

    Args:
        lm: The language model.
        precision: What its linear layers are rounded to.

    Raises:
        TextEnvError: They cannot be.
    """
    ids = torch.tensor([lm.tokenizer(_TEXT)["input_ids"][:_TEXT_TOKENS]], device=lm.device)
    lengths = torch.tensor([ids.shape[1]], device=lm.device)

    def log_probs() -> torch.Tensor:
        return torch.log_softmax(lm.head(lm.hidden_states(ids, lengths)), dim=-1)

    plain = log_probs()
    with lm.rounded(precision):
        moved = (log_probs() - plain).abs()
    return float((plain.exp() * moved).sum(dim=-1).mean())


def product_seconds(network: Network, rows: int, ways: list[Precision]) -> dict[Precision, float]:
    """Measure the products of a decoding step in several precisions.

    Args:
        network: The network, whose layers are alike.
        rows: Rows of the step.
        ways: The precisions, of which float32 is the first.

    Returns:
        Seconds of a step's products by precision, those of the head included; nothing where they cannot be rounded.
    """
    linears = network.blocks[0].linears
    cases: dict[Precision, Callable[[], object]] = {}
    for way in ways:
        packed = [linear.packed(way) for linear in linears]
        products = [each for each in packed if each is not None]
        if len(products) < len(packed):
            return {}
        inputs = [torch.randn(rows, linear.shape[1]) for linear in linears]
        cases[way] = functools.partial(_multiply, list(zip(products, inputs, strict=True)))
    with torch.inference_mode():
        layer = _least_seconds(cases)
    outputs, width = network.head.shape
    size = sum(out * inputs for out, inputs in (linear.shape for linear in linears))
    head = layer["float32"] * outputs * width / size
    return {way: len(network.blocks) * layer[way] + head for way in ways}


def _multiply(pairs: list[tuple[Product, torch.Tensor]]) -> None:
    for product, x in pairs:
        product(x, None)


def fastest_training(lm: CausalLM) -> Literal["float32", "bfloat16"]:
    """Return the precision in which a layer's products, forward and backward, take the least time; as above."""
    network = _network_of(lm)
    if network is None:
        return "bfloat16"  # it was asked for whether the processor multiplies it, which it does
    linears = network.blocks[0].linears
    inputs = [torch.randn(_TRAINING_TOKENS, linear.shape[1], requires_grad=True) for linear in linears]

    def step(half: bool) -> None:
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            outputs = [linear(x).float().sum() for linear, x in zip(linears, inputs, strict=True)]
        parameters = [p for linear in linears for p in linear.parameters() if p.requires_grad]
        torch.autograd.grad(sum(outputs[1:], outputs[0]), [*inputs, *parameters])

    found = _least_seconds({"float32": lambda: step(False), "bfloat16": lambda: step(True)})
    return "bfloat16" if _fastest(found) == "bfloat16" else "float32"


def _network_of(lm: CausalLM) -> Network | None:
    """Return a network of a model's own modules on the CPU, with its adapter; None for one that is not known."""
    if lm.device.type != "cpu":
        return None
    lm.activate_adapter()
    return build_network(lm.model, adapted=lm.adapter is not None)


def _least_seconds(cases: Mapping[Precision, Callable[[], object]]) -> dict[Precision, float]:
    """Return the seconds of each case, run in turn after a first time: the least, which other load disturbs least."""
    for run in cases.values():
        run()
    found: dict[Precision, list[float]] = {name: [] for name in cases}
    until = time.perf_counter() + _SECONDS
    while time.perf_counter() < until or len(found["float32"]) < 3:
        for name, run in cases.items():
            began = time.perf_counter()
            run()
            found[name].append(time.perf_counter() - began)
    return {name: min(seconds) for name, seconds in found.items()}


def _fastest(seconds: Mapping[Precision, float]) -> Precision:
    """Return the fastest of some ways, or float32 where none gains enough over it."""
    if not seconds:
        return "float32"
    best = min(seconds, key=lambda name: seconds[name])
    return best if seconds["float32"] >= LEAST_GAIN * seconds[best] else "float32"
