"""On a GPU: tokens a second beside ``generate`` and what memory allows, and the FLOPs of an update beside the chip's.

    python -m benchmarks.gpu

Random weights, texts that never end early; the rollout is that of ``benchmarks.rollout``. Every token reads all weights
once, so that no rollout is quicker than ``batch * bandwidth / bytes`` tokens a second, the keys and values not counted.
An update is forward, backward and AdamW of one PPO minibatch, its FLOPs those of the products with weights: 6 a weight
and token (embeddings not counted; the head, and in the last layer all behind the keys and values, at the completion's
tokens alone). Bandwidth and FLOPs of the chip are measured, by a copy and a product.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import tyro

from benchmarks import _jobs
from benchmarks._measure import Effort, environment, interleave, rate, remark, show
from benchmarks._ours import Rollouts, make_env
from benchmarks.rollout import Config as Written
from benchmarks.rollout import Generate
from textenv.env.vector import TextVectorEnv
from textenv.models.loading import find_device
from textenv.models.policy import TextPolicy


@dataclass(frozen=True, slots=True)
class Config:
    """What to measure.

    Attributes:
        sizes: Shapes of the model.
        device: Where.
        dtype: Of the weights.
        batch: Texts side by side.
        prompt: Tokens of a prompt.
        response: Tokens of a completion.
        side: Of the matrices that are multiplied, and roughly of the memory that is copied, to measure the chip.
        effort: How often.
    """

    sizes: tuple[_jobs.Size, ...] = ("gpt2", "1b")
    device: str = "auto"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    batch: int = 64
    prompt: int = 32
    response: int = 128
    side: int = 8192
    effort: tyro.conf.OmitArgPrefixes[Effort] = field(default_factory=Effort)


class Update:
    """One gradient step on a rollout's worth of episodes."""

    def __init__(self, env: TextVectorEnv, config: Config) -> None:
        self._policy, device = TextPolicy(env.reference), env.reference.device
        self._optimizer = torch.optim.AdamW(self._policy.parameters(), lr=1e-6)
        width, rows = config.prompt + config.response, config.batch
        self._ids = torch.randint(2, env.reference.vocab_size, (rows, width), device=device)
        self._lengths = torch.full((rows,), width, device=device)
        places = torch.arange(rows * width, device=device).view(rows, width)
        self._places = places[:, config.prompt :].flatten()
        self.flops = 6 * rows * _weights_times_tokens(env.reference.model, width, config.response)

    def __call__(self) -> int:
        """Take the step; return its tokens."""
        found = self._policy.evaluate(self._ids, self._lengths, self._places, entropy=False)
        loss = found.log_probs.mean() + found.values.square().mean()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        assert torch.isfinite(loss)  # which waits for the GPU
        return self._ids.numel()


def _weights_times_tokens(model: Any, width: int, response: int) -> int:
    """Return how many weights a text's tokens meet, each token counted by itself."""
    trunk = model.base_model
    *most, last = trunk.h if hasattr(trunk, "h") else trunk.layers
    matrices = [(name, p.numel()) for name, p in last.named_parameters() if p.ndim == 2]
    before = sum(
        size for name, size in matrices if any(part in name for part in ("c_attn", "q_proj", "k_proj", "v_proj"))
    )
    behind = sum(size for _, size in matrices) - before + model.get_output_embeddings().weight.numel()
    whole = sum(p.numel() for block in most for p in block.parameters() if p.ndim == 2) + before
    return int(whole * width + behind * response)


def seconds(function: Callable[[], torch.Tensor]) -> float:
    """Return the least time of several that something takes on the GPU."""
    float(function().flatten()[0])
    found = []
    for _ in range(10):
        began = time.perf_counter()
        float(function().flatten()[0])
        found.append(time.perf_counter() - began)
    return min(found)


def measure(size: _jobs.Size, config: Config, device: torch.device) -> None:
    dtype: torch.dtype = getattr(torch, config.dtype)
    positions = max(64, config.prompt + config.response)
    model = _jobs.model(size, positions=positions).to(device, dtype)
    env = make_env(model, batch=config.batch, prompt=config.prompt, response=config.response)
    matrix = torch.randn(config.side, config.side, device=device, dtype=dtype)
    peak = 2 * config.side**3 / seconds(lambda: matrix @ matrix)
    bandwidth = 2 * matrix.nbytes / seconds(matrix.clone)
    limit = config.batch * bandwidth / sum(p.nbytes for p in model.parameters())
    written = Written(batch=config.batch, prompt=config.prompt, response=config.response)
    update = Update(env, config)
    cases: dict[str, Callable[[], int]] = {
        "generate": Generate(model, written),
        "textenv": Rollouts(env),
        "update": update,
    }
    results = interleave({name: rate(run) for name, run in cases.items()}, config.effort)
    used = results["update"].median / (config.batch * (config.prompt + config.response)) * update.flops / peak
    show(
        f"{size}, {config.dtype}: batch {config.batch}, prompt {config.prompt}, response {config.response}; "
        f"{peak / 1e12:.2f} TFLOP/s, {bandwidth / 1e9:,.0f} GB/s",
        ("", "tokens/s", "to generate", "of what memory allows", "of the chip's FLOPs"),
        [
            *(
                (
                    name,
                    f"{case.median:,.0f}",
                    f"{case.ratio(results['generate']):.2f}",
                    f"{case.median / limit:.0%}",
                    "",
                )
                for name, case in results.items()
                if name != "update"
            ),
            ("update", f"{results['update'].median:,.0f}", "", "", f"{used:.0%}"),
        ],
        remark(results.values()),
    )


def main(config: Config) -> None:
    device = find_device(config.device)
    print(environment("textenv", "torch", "transformers"))
    print(
        torch.cuda.get_device_name(device) if device.type == "cuda" else "NOT ON A GPU: these are a processor's figures"
    )
    for size in config.sizes:
        measure(size, config, device)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
