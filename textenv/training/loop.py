"""The training loop that pretraining, fine-tuning and reward models share: AdamW, schedule, checkpoints, resuming.

A run is a function of its settings and its data: the order of the data and the dropout of a step depend on the seed and
the number of the step alone, so that a run that was killed ends with the same weights as one that was not.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from textenv.data.files import read_json, write_json
from textenv.models.loading import find_device
from textenv.models.rounding import multiplies_bfloat16
from textenv.rollouts.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from textenv.rollouts.console import SafeConsole
from textenv.rollouts.runs import described
from textenv.training.configs import TrainingConfig
from textenv.types import IntArray, TextEnvError

__all__ = ["compare_settings", "has_begun", "minimize", "permutation", "seeded", "settings_of"]

_SETTINGS_FILE, _CHECKPOINTS = "training.json", "checkpoints"
_AVERAGED_STEPS = 100  # of which the mean loss is reported


def has_begun(out: Path, config: TrainingConfig, name: str) -> bool:
    """Tell whether a folder holds a run of these settings that got as far as to train.

    Args:
        out: The folder.
        config: The settings.
        name: Name of the training, as ``minimize`` was given it.

    Raises:
        TextEnvError: It holds a run of another training or of other settings.
    """
    path = out / _SETTINGS_FILE
    if path.exists():
        compare_settings(out, {"command": name, **settings_of(config)}, read_json(path))
    return path.exists() or latest_checkpoint(out / _CHECKPOINTS) is not None


def settings_of(config: Any) -> dict[str, Any]:
    """Return the settings of a training as JSON values: all but ``out``, the folder that it may be moved to."""
    return described(config)


def compare_settings(folder: Path, settings: dict[str, Any], before: dict[str, Any]) -> None:
    """Refuse a folder that holds a run with other settings.

    Raises:
        TextEnvError: The settings of the run before differ; the message names them.
    """
    if changed := sorted(key for key in settings.keys() | before.keys() if settings.get(key) != before.get(key)):
        raise TextEnvError(
            f"{folder} holds a run with other settings ({', '.join(changed)} differ). Start it again with those it was "
            "started with, or give this one another folder."
        )


@contextlib.contextmanager
def seeded(config: TrainingConfig) -> Iterator[None]:
    """Seed torch's global generators, and leave them to the caller as they were."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(config.seed)
        yield


@functools.lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, size: int) -> IntArray:
    """Return the order of ``size`` things in an epoch, ``(size,)``; a function of its arguments alone."""
    return np.random.default_rng((seed, epoch, size)).permutation(size)


def minimize(
    model: nn.Module,
    loss_at: Callable[[int], tuple[torch.Tensor, int]],
    steps: int,
    config: TrainingConfig,
    out: Path,
    *,
    name: str,
    data: Mapping[str, Any] | None = None,
    after_step: Callable[[int], str] = lambda steps_done: "",
) -> float:
    """Minimize a loss by AdamW, with a progress bar and checkpoints; a run that was killed goes on from its last.

    Args:
        model: What is trained.
        loss_at: Given the number of a step, returns its loss and how many tokens were read for it.
        steps: How many steps there are.
        config: The settings.
        out: Folder of the run.
        name: Name of the training, shown at the progress bar.
        data: JSON values that tell runs apart, beside the settings: a digest of the data, say.
        after_step: Given the number of steps done, returns what to print about them.

    Returns:
        The mean loss of the last hundred steps, whether or not the run was stopped in between.

    Raises:
        TextEnvError: The loss is not finite, or the folder holds a run with other settings.
    """
    device = find_device(config.device)
    model.to(device).train()
    optimizer = _make_optimizer(model, config)
    settings = {**settings_of(config), **(data or {})}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / _SETTINGS_FILE, {"command": name, **settings})
    steps_done, losses = _resume(model, optimizer, settings, out)
    in_bfloat16 = config.precision == "bfloat16" or (config.precision == "auto" and multiplies_bfloat16(device))
    with _ProgressBar(name, steps, steps_done) as progress:
        for step in range(steps_done, steps):
            torch.manual_seed(_mix(config.seed, step))  # dropout is the same in a run that was stopped on the way
            with torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16):
                loss, tokens = loss_at(step)
            if not torch.isfinite(loss):
                raise TextEnvError(
                    f"The loss is {float(loss.detach())} at step {step} with learning_rate={config.learning_rate}. "
                    "Lower it, and train into another folder."
                )
            learning_rate = config.learning_rate * _schedule(step, steps, config.warmup)
            _update(model, optimizer, loss, learning_rate)
            losses.append(float(loss.detach()))
            progress.advance(step + 1, fmean(losses), tokens, after_step(step + 1))
            if (step + 1) % config.checkpoint_every == 0 and step + 1 < steps:
                save_checkpoint(
                    out / _CHECKPOINTS,
                    step + 1,
                    modules={"model": model},
                    optimizer=optimizer,
                    state={"config": settings, "losses": list(losses)},
                )
                progress.log(step + 1, fmean(losses))
    return fmean(losses)


def _make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Return AdamW with decoupled weight decay of the matrices alone."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(0.9, 0.95),
    )


def _resume(
    model: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any], out: Path
) -> tuple[int, deque[float]]:
    """Load the last checkpoint, if there is one; return the steps done and the losses of the last hundred of them."""
    losses: deque[float] = deque(maxlen=_AVERAGED_STEPS)
    path = latest_checkpoint(out / _CHECKPOINTS)
    if path is None:
        return 0, losses
    state = load_checkpoint(path, modules={"model": model}, optimizer=optimizer)
    compare_settings(out, settings, state["config"])
    losses.extend(state["losses"])
    return state["step"], losses


def _schedule(step: int, steps: int, warmup: float) -> float:
    """Return the share of the peak learning rate at a step: linear warm-up, then linear decay to zero."""
    warmup_steps = max(1, int(warmup * steps))
    return min((step + 1) / warmup_steps, (steps - step) / (steps - warmup_steps + 1))


class _ProgressBar:
    """Steps, loss and speed of a training on the terminal; a line at each checkpoint where there is no terminal."""

    def __init__(self, name: str, steps: int, steps_done: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, TextColumn("{task.fields[note]}"), console=SafeConsole())
        self._task = self._progress.add_task(name, total=steps, completed=steps_done, note="")
        self._name, self._steps = name, steps
        self._tokens, self._started = 0, time.perf_counter()
        self._speed = 0.0  # tokens a second

    def __enter__(self) -> _ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, steps_done: int, loss: float, tokens: int, note: str) -> None:
        """Show that a step is done, and print a note if there is one.

        Args:
            steps_done: Number of steps that are done.
            loss: Mean loss of the last steps.
            tokens: Tokens that were read in this step.
            note: What to print beside the loss; ``""`` for nothing.
        """
        self._tokens += tokens
        self._speed = self._tokens / (time.perf_counter() - self._started)
        if note:
            self._progress.console.print(f"{self._name}: step {steps_done}, training loss {loss:.4f}, {note}")
        self._progress.update(self._task, advance=1, note=f"loss {loss:.3f}, {self._speed:,.0f} tokens/s")

    def log(self, steps_done: int, loss: float) -> None:
        """Print where the training is, unless a terminal shows the bar."""
        console = self._progress.console
        if not console.is_terminal:
            where = f"{self._name}: step {steps_done}/{self._steps}"
            console.print(f"{where}, loss {loss:.4f}, {self._speed:,.0f} tokens/s")


def _update(model: nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor, learning_rate: float) -> None:
    """Take one step down the gradient of a loss, whose norm is clipped at 1."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _mix(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])
