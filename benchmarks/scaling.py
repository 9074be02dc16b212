"""How the cost of a token, and the memory of a row, grow with the length of the texts.

    python -m benchmarks.scaling

Attention reads all tokens before, so its cost a token grows by itself. It is measured alone, as torch's kernel on
tensors of the same shapes, those of each layer by themselves: one query over ever more keys while writing, and the
reference's one pass over the whole text. What remains should not grow. Memory is what environment and policy hold after
an episode, weights left out: what a row holds more for each further token of the budget should not grow, either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import tyro
from torch.nn import functional

from benchmarks import _jobs
from benchmarks._measure import Effort, environment, interleave, rate, remark, show
from benchmarks._ours import Rollouts, make_env
from textenv.models.linear import Linear


@dataclass(frozen=True, slots=True)
class Config:
    """What to measure.

    Attributes:
        size: Shape of the model.
        architecture: Of the model.
        batch: Rows.
        prompt: Tokens of a prompt.
        responses: Tokens of a completion, ascending.
        effort: How often.
        seconds: Least length of one measurement.
    """

    size: _jobs.Size = "tiny"
    architecture: _jobs.Architecture = "gpt2"
    batch: int = 16
    prompt: int = 16
    responses: tuple[int, ...] = (32, 64, 128, 256, 512)
    effort: tyro.conf.OmitArgPrefixes[Effort] = field(default_factory=lambda: Effort(rounds=5))
    seconds: float = 0.4


def attention(config: Config, response: int) -> Callable[[], int]:
    """Return a function that does the attention of a rollout and nothing else, and returns the rollout's tokens."""
    shape = _jobs.SHAPES[config.size]
    total = config.prompt + response
    tensors = torch.randn(shape.layers, 3, config.batch, shape.heads, total, shape.width // shape.heads)
    seen = torch.ones(config.batch, 1, 1, total, dtype=torch.bool)  # rows are ragged, so a mask is read along
    attend = functional.scaled_dot_product_attention

    @torch.no_grad()
    def run() -> int:
        for length in range(config.prompt, total):
            mask = seen[..., :length]
            for keys, values, queries in tensors:
                query = queries[:, :, length - 1 : length]
                attend(query, keys[:, :, :length], values[:, :, :length], attn_mask=mask)
        for keys, values, queries in tensors:
            attend(queries, keys, values, is_causal=True)
        return config.batch * response

    return run


def held(*roots: Any) -> int:
    """Return the bytes of all arrays and tensors that objects of ours lead to, weights left out."""
    weights = {
        tensor.untyped_storage().data_ptr()
        for root in _reachable(roots)
        if isinstance(root, torch.nn.Module)
        for tensor in (*root.parameters(), *root.buffers())
    }
    buffers: dict[int, int] = {}
    for found in _reachable(roots):
        if isinstance(found, torch.Tensor) and found.untyped_storage().data_ptr() not in weights:
            buffers[found.untyped_storage().data_ptr()] = found.untyped_storage().nbytes()
        elif isinstance(found, np.ndarray) and found.base is None:
            buffers[found.ctypes.data] = found.nbytes
    return sum(buffers.values())


def _reachable(roots: tuple[Any, ...]) -> Iterator[Any]:
    """Yield objects, and what their attributes, items and values lead to; libraries' objects are not looked into."""
    pending, known = list(roots), set[int]()
    while pending:
        found = pending.pop()
        if id(found) in known:
            continue
        known.add(id(found))
        yield found
        if isinstance(found, dict):
            pending += found.values()
        elif isinstance(found, (list, tuple, set)):
            pending += found
        elif isinstance(found, Linear):
            continue  # packed weights
        elif type(found).__module__.partition(".")[0] in ("textenv", "benchmarks"):
            pending += vars(found).values() if hasattr(found, "__dict__") else ()
            pending += [getattr(found, name, None) for name in getattr(found, "__slots__", ())]


def main(config: Config) -> None:
    print(environment("textenv", "torch", "transformers"))
    model = _jobs.model(
        config.size, config.architecture, positions=config.prompt + max(config.responses), hazard=0.0
    )  # fmt: skip
    cases: dict[str, Callable[[], float]] = {}
    memory: dict[int, float] = {}
    for response in config.responses:
        env = make_env(model, batch=config.batch, prompt=config.prompt, response=response)
        run = Rollouts(env)
        run()
        memory[response] = held(env, run.policy) / config.batch
        cases[f"rollout {response}"] = rate(run, config.seconds)
        cases[f"attention {response}"] = rate(attention(config, response), config.seconds)
    results = interleave(cases, config.effort)
    rows, before, first = [], None, 0.0
    for response in config.responses:
        cost, alone = (1e6 / results[f"{name} {response}"].median for name in ("rollout", "attention"))
        rest = cost - alone
        first = first or rest
        more = f"{(memory[response] - memory[before]) / (response - before):,.0f}" if before else ""
        rows.append(
            (f"{response}", f"{cost:.0f}", f"{alone:.0f}", f"{rest:.0f}", f"{rest / first:.2f}",
             f"{memory[response] / 1024:,.0f}", more)
        )  # fmt: skip
        before = response
    shape = _jobs.SHAPES[config.size]
    kept = shape.width
    if config.architecture == "llama" and shape.key_value_heads is not None:
        kept = shape.width // shape.heads * shape.key_value_heads
    show(
        f"{config.architecture} {config.size}: batch {config.batch}, prompt {config.prompt}",
        ("response", "µs a token", "attention alone", "the rest", f"to {config.responses[0]}'s", "KiB a row",
         "bytes a row and further token"),
        rows,
        f"One cache of keys and values in fp32 is {2 * 4 * shape.layers * kept:,} bytes a row and token. "
        + remark(results.values()),
    )  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
