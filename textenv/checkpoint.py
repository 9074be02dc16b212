"""Checkpoints of a training run: safetensors and JSON, a folder each, whole or absent.

A checkpoint is a folder ``step-00000042`` with ``tensors.safetensors`` (parameters, buffers, optimizer moments, random
number generators) and ``state.json``. It is written under a temporary name and renamed, so a run killed at any moment
leaves its last whole one.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from textenv.types import TextEnvError

__all__ = ["latest_checkpoint", "load_checkpoint", "save_checkpoint"]

_NAME = re.compile(r"step-(\d+)")


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    generators: Mapping[str, torch.Generator] | None = None,
    state: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of ``step`` and remove the older ones.

    Args:
        folder: Where checkpoints live; made if it is missing.
        step: Number of steps done.
        modules: Networks by name; parameters and persistent buffers are kept, tied weights once.
        optimizer: Its per-parameter tensors are kept; its hyperparameters come from the config again.
        generators: Torch's random number generators by name.
        state: Everything else, as JSON values.

    Returns:
        The checkpoint's folder.
    """
    tensors = {f"{name}/{key}": value for name, module in modules.items() for key, value in _tensors(module).items()}
    for index, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{index}/{key}"] = torch.as_tensor(value)
    tensors |= {f"generator/{name}": generator.get_state() for name, generator in (generators or {}).items()}
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    on_cpu = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    safetensors.torch.save_file(on_cpu, temporary / "tensors.safetensors")
    (temporary / "state.json").write_text(json.dumps({"step": step, **state}), "utf-8")
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    for older in folder.glob("step-*"):
        if older != final:
            shutil.rmtree(older)
    return final


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint with the most steps, or None where there is none."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return max(found, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def load_checkpoint(
    path: Path,
    *,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    generators: Mapping[str, torch.Generator] | None = None,
) -> dict[str, Any]:
    """Read a checkpoint into networks, an optimizer and generators made the same way as those that were saved.

    Returns:
        The ``state`` that was saved, and ``"step"``.

    Raises:
        TextEnvError: The checkpoint does not fit, for example because the model's size has changed.
    """
    tensors = safetensors.torch.load_file(path / "tensors.safetensors")
    for name, module in modules.items():
        for key, value in _tensors(module).items():
            saved = tensors.get(f"{name}/{key}")
            if saved is None or saved.shape != value.shape:
                raise TextEnvError(
                    f"Checkpoint {path} does not fit: {name}/{key} should have shape {tuple(value.shape)}, but "
                    f"{'is missing' if saved is None else f'has {tuple(saved.shape)}'}. Resume with the model and "
                    "settings that the run was started with, or give it a fresh folder."
                )
            with torch.no_grad():
                value.copy_(saved)
    for index, parameter in enumerate(_parameters(optimizer)):
        prefix = f"optimizer/{index}/"
        entries = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if entries:
            optimizer.state[parameter] = {  # a scalar "step" stays where the optimizer keeps it
                key: value if value.ndim == 0 else value.to(parameter.device) for key, value in entries.items()
            }
    for name, generator in (generators or {}).items():
        generator.set_state(tensors[f"generator/{name}"])
    state: dict[str, Any] = json.loads((path / "state.json").read_text("utf-8"))
    return state


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    persistent = module.state_dict().keys()
    buffers = {key: value for key, value in module.named_buffers() if key in persistent}
    return {**dict(module.named_parameters()), **buffers}


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
