"""Linear layers and rollouts in float32, bfloat16 and int8, and the error of fewer bits.

    python -m benchmarks.precision --sizes small gpt2

Three kinds of tables, of what this processor does:

- products at the shapes of decoding, one thread, in 10^9 operations a second, ``auto`` being what
  ``rollout_precision="auto"`` would take if all were of this shape;
- rollouts with values and the KL from a reference, in tokens a second: the policy in each precision, and then the
  reference too. The time to round the weights, once a rollout, is in it;
- how far the bundled model in fewer bits is from float32, on texts that it has written: mean |difference| of the
  tokens' log-probabilities, and KL of the whole distributions, in nats a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import tyro
from torch import nn

from benchmarks import _jobs
from benchmarks._measure import Case, Effort, environment, interleave, rate, remark, show
from benchmarks._ours import Rollouts, make_env
from textenv.env.registry import make_envs
from textenv.models.linear import Linear
from textenv.models.policy import TextPolicy
from textenv.models.probe import LEAST_GAIN
from textenv.models.rounding import Precision, multiplies_int8
from textenv.rollouts.collect import collect, text_env
from textenv.rollouts.runtime import keep_memory

PRECISIONS: tuple[Precision, ...] = get_args(Precision) if multiplies_int8() else ("float32", "bfloat16")
SHAPES = ((16, 128, 512), (16, 384, 1536), (16, 768, 3072), (16, 3072, 768), (64, 768, 3072), (16, 2048, 8192))


@dataclass(frozen=True, slots=True)
class Config:
    """What to measure.

    Attributes:
        sizes: Shapes of the models that write.
        shapes: Products, as rows, inputs and outputs.
        batch: Texts side by side.
        prompt: Tokens of a prompt.
        response: Tokens of a completion.
        texts: Texts of the bundled model that the error is measured on.
        slow: Measure bfloat16 in rollouts too where the processor does not multiply it.
        effort: How often.
        seconds: Least length of one measurement.
    """

    sizes: tuple[_jobs.Size, ...] = ("tiny", "small")
    shapes: tuple[tuple[int, int, int], ...] = SHAPES
    batch: int = 16
    prompt: int = 16
    response: int = 32
    texts: int = 64
    slow: bool = False
    effort: tyro.conf.OmitArgPrefixes[Effort] = field(default_factory=Effort)
    seconds: float = 0.4


def products(config: Config) -> None:
    """Show products by shape."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    lines: list[tuple[str, ...]] = []
    cases: list[Case] = []
    for rows, inputs, outputs in config.shapes:
        layer = Linear(nn.Linear(inputs, outputs).requires_grad_(False))
        x = torch.randn(rows, inputs)
        runs: dict[str, Callable[[], float]] = {}
        for name in PRECISIONS:
            runs[name] = rate(partial(_multiply, layer.packed(name), x), config.seconds)
        with torch.inference_mode():
            found = interleave(runs, config.effort)
        giga = 2 * rows * inputs * outputs / 1e9
        best = max(PRECISIONS, key=lambda name: found[name].median)
        gain = found[best].ratio(found["float32"])
        lines.append((
            f"{rows} x {inputs:,} x {outputs:,}",
            *(f"{giga * case.median:,.0f}" for case in found.values()),
            *(f"{found[name].ratio(found['float32']):.2f}" for name in PRECISIONS[1:]),
            best if gain >= LEAST_GAIN else "float32",
        ))  # fmt: skip
        cases += found.values()
    torch.set_num_threads(threads)
    columns = ("rows x in x out", *PRECISIONS, *(f"{name} to float32" for name in PRECISIONS[1:]), "auto")
    show(f"Products, one thread, GF/s, {_processor()}", columns, lines, remark(cases))


def _multiply(product: Any, x: torch.Tensor) -> int:
    product(x, None)
    return 1


class Rounded(Rollouts):
    """Rollouts whose policy, and perhaps reference, are rounded."""

    def __init__(self, model: Any, config: Config, precision: Precision, *, reference: bool) -> None:
        env = make_env(model, batch=config.batch, prompt=config.prompt, response=config.response)
        super().__init__(env)
        self._precision: Precision = precision
        env.reference.precision = precision if reference else "float32"

    def __call__(self) -> int:
        """Write so many episodes a row; return the number of tokens."""
        with self.policy.rounded(self._precision):
            return super().__call__()


def rollouts(size: _jobs.Size, config: Config, precisions: tuple[Precision, ...]) -> None:
    """Show rollouts of a size."""
    model = _jobs.model(size, positions=max(64, config.prompt + config.response))
    runs: dict[str, Callable[[], int]] = {name: Rounded(model, config, name, reference=False) for name in precisions}
    if "int8" in precisions:
        runs["int8, reference too"] = Rounded(model, config, "int8", reference=True)
    found = interleave({name: rate(run, config.seconds) for name, run in runs.items()}, config.effort)
    show(
        f"gpt2 {size}: batch {config.batch}, prompt {config.prompt}, response {config.response}, "
        f"{torch.get_num_threads()} threads",
        ("precision", "tokens/s", "to float32"),
        [(name, f"{case.median:,.0f}", f"{case.ratio(found['float32']):.2f}") for name, case in found.items()],
        remark(found.values()),
    )


def errors(texts: int) -> None:
    """Show how far the bundled model is from itself in fewer bits, on texts that it has written."""
    envs = make_envs("textenv/MovieReview-v0", texts, reward="vader", max_new_tokens=32)
    base = text_env(envs)
    lm, policy = base.reference, TextPolicy.of_reference(base)
    rollout = collect(envs, policy, torch.Generator().manual_seed(0), seed=0)
    ids, lengths, places, _ = rollout.tensors(np.arange(texts), lm.device, lm.vocab_size)
    tokens = ids.flatten()[places]

    def log_probs(precision: Precision) -> torch.Tensor:
        with lm.rounded(precision), torch.no_grad():
            return torch.log_softmax(lm.head(lm.hidden_states(ids, lengths, places - 1)), dim=-1)

    exact, lines = log_probs("float32"), []
    for name in PRECISIONS[1:]:
        rounded = log_probs(name)
        off = (rounded - exact).gather(1, tokens[:, None]).abs()
        kl = (rounded.exp() * (rounded - exact)).sum(dim=1).mean()
        lines.append((name, f"{float(off.mean()):.4f}", f"{float(off.max()):.3f}", f"{float(kl):.1e}"))
    show(
        f"The bundled model, {len(tokens)} tokens of its own, nats a token",
        ("precision", "mean |difference|", "largest", "KL from float32"),
        lines,
    )


def _processor() -> str:
    """Return the name of the processor and which of the instructions it has that matter here."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    flags = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if flag in text]
    name = f"{values.get('model name', 'unknown processor')}, family {values.get('cpu family', '?')}"
    return f"{name}, model {values.get('model', '?')}, {' '.join(flags)}"


def main(config: Config) -> None:
    keep_memory()
    print(environment("textenv", "torch", "transformers"))
    errors(config.texts)
    products(config)
    native = "avx512_bf16" in _processor()
    precisions = PRECISIONS if native or config.slow else tuple(name for name in PRECISIONS if name != "bfloat16")
    for size in config.sizes:
        rollouts(size, config, precisions)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
