"""The same small training job with our agents, TRL's trainers, TorchRL and AgileRL: seconds, and peak memory.

    benchmarks/setup_peers.sh && python -m benchmarks.ppo_iteration

Every run is a process of its own, in the interpreter of its trainer; imports and the making of models and trainers are
left out of the seconds and printed apart. Each run counts from outside what its trainer wrote and learned from, and
fails if that is not the work of the job. TRL's PPO is of 1.12, the last series that has one; it trains a value model of
its own, as ours does with ``value="model"``. GRPO and RLOO have no values and compare completions of one prompt. Our
RLOO learns once from an episode, so it is left out unless ``--epochs 1`` is given. AgileRL's GRPO always learns an
adapter, so it is left out unless ``--lora-rank`` is.

A low-rank adapter on the shape of SmolLM2-135M, with prompts as long as those of a chat:

    python -m benchmarks.ppo_iteration --trainers textenv-grpo trl-grpo --size smollm2 --lora-rank 8 --episodes 64
        --prompt 40 --epochs 1 --rounds 1

There TRL's peak is the activations of a whole batch: ``--micro-batch 8`` has both sides add up gradients of 8 episodes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import get_args

import tyro

from benchmarks import _jobs
from benchmarks._measure import ROOT, Effort, environment, interleave, remark, show
from benchmarks._train import Job, Trainer

FOLDERS = {"trl-ppo": "trl-1.12", "torchrl-grpo": "torchrl-0.14", "agilerl-grpo": "agilerl-2.58"}
"""Of a trainer's environment, below that of the peers; the others' is TRL's newest."""


@dataclass(frozen=True, slots=True)
class Config:
    """What to measure.

    Attributes:
        trainers: Which to run; None for all that do the job.
        peers: Folder that setup_peers.sh made, with an environment for each version of TRL.
        episodes: Episodes, rounded up to whole batches.
        size: Shape of the model.
        batch: Episodes an iteration, which are one minibatch.
        prompt: Tokens of a prompt.
        response: Tokens of a completion.
        epochs: Passes over the episodes.
        samples: Completions of a prompt, for GRPO and RLOO.
        micro_batch: Episodes a forward with gradients, which are added up; None for what our agents choose for
            themselves, and a whole batch in TRL's trainers.
        lora_rank: Learn a low-rank adapter of this rank on all linear layers but the head; None for all weights.
        effort: How often.
    """

    trainers: tuple[Trainer, ...] | None = None
    peers: Path = Path(os.environ.get("PEERS", ".venv-peers"))
    episodes: int = 1000
    size: _jobs.Size = "tiny"
    batch: int = 64
    prompt: int = 8
    response: int = 24
    epochs: int = 4
    samples: int = 8
    micro_batch: int | None = None
    lora_rank: int | None = None
    effort: tyro.conf.OmitArgPrefixes[Effort] = field(
        default_factory=lambda: Effort(rounds=3, attempts=1, patience=10.0)
    )


def trainers_of(config: Config) -> tuple[Trainer, ...]:
    """Return the trainers to run.

    Raises:
        SystemExit: One that was asked for cannot do the job.
    """
    cannot = {}
    if config.epochs != 1:
        cannot["textenv-rloo"] = f"learns once from an episode, not {config.epochs} times: give --epochs 1"
    if config.lora_rank is None:
        cannot["agilerl-grpo"] = "always learns an adapter: give --lora-rank"
    else:
        cannot["textenv-model"] = "has a second model, which an adapter avoids: give no --lora-rank"
        cannot |= dict.fromkeys(("trl-ppo", "torchrl-grpo"), "is measured without an adapter here: give no --lora-rank")
    if config.trainers is None:
        return tuple(trainer for trainer in get_args(Trainer) if trainer not in cannot)
    for trainer in config.trainers:
        if trainer in cannot:
            raise SystemExit(f"{trainer} {cannot[trainer]}, or leave it out.")
    return config.trainers


def interpreter(trainer: Trainer, peers: Path) -> Path:
    """Return the interpreter that has a trainer."""
    if trainer.startswith("textenv"):
        return Path(sys.executable)
    path = peers / FOLDERS.get(trainer, "trl-1.16") / "bin" / "python"
    if not path.exists():
        raise SystemExit(f"{path} is not there: run benchmarks/setup_peers.sh {peers} first, or leave {trainer} out.")
    return path


def main(config: Config) -> None:
    print(environment("textenv", "torch", "transformers"))
    reports: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(Job) if field.name != "trainer"}

    def measure(python: Path, trainer: Trainer) -> float:
        job = json.dumps({**settings, "trainer": trainer})
        command = [str(python), "-m", "benchmarks._train", job]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        if done.returncode:
            raise SystemExit(f"{done.stderr}\n{trainer} failed with code {done.returncode}, see above.")
        report = json.loads(done.stdout.splitlines()[-1])
        reports[trainer].append(report)
        return float(report["seconds"])

    cases: dict[str, Callable[[], float]] = {}
    trainers = trainers_of(config)
    if config.micro_batch is not None and config.batch % config.micro_batch:
        raise SystemExit(f"--micro-batch {config.micro_batch} does not divide --batch {config.batch}.")
    for trainer in trainers:
        python = interpreter(trainer, config.peers)
        cases[trainer] = partial(measure, python, trainer)
        if not trainer.startswith("textenv"):
            package = trainer.partition("-")[0]
            code = "from benchmarks._measure import environment"
            code += f"; print(environment({package!r}, 'torch', 'transformers'))"
            print(f"{trainer}: ", end="", flush=True)
            subprocess.run([python, "-c", code], check=True, cwd=ROOT)
    results = interleave(cases, config.effort)

    first, *_ = trainers
    peak = {trainer: statistics.median(report["peak"] for report in reports[trainer]) for trainer in results}
    adapter = "" if config.lora_rank is None else f", LoRA of rank {config.lora_rank}"
    rows = []
    for name, case in results.items():
        report = reports[name][0]
        setup = statistics.median(report["setup"] for report in reports[name])
        seconds = (f"{case.median:.1f}", f"{case.ratio(results[first]):.2f}", f"{setup:.1f}")
        memory = (f"{peak[name]:,.0f}", f"{peak[name] / peak[first]:.2f}", f"{report['start']:,.0f}")
        rows.append((name, *seconds, *memory, f"{report['tokens']:,}", f"{report['episodes']:,}"))
    show(
        f"{config.size}: {config.episodes:,} episodes of {config.prompt} + {config.response} tokens, batch "
        f"{config.batch}, {config.epochs} epochs{adapter}",
        ("trainer", "s", "ratio", "s before", "peak MiB", "ratio", "MiB before", "tokens written", "episodes learned"),
        rows,
        f"Ratios to {first}. Before: imports, models and trainer, before training. {remark(results.values())}",
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
