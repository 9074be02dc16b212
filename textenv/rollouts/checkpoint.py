"""Checkpoints of a training run: safetensors and JSON, a folder each, whole or absent.

A checkpoint is a folder ``step-00000042`` with ``tensors.safetensors`` (parameters, buffers, optimizer moments, random
number generators) and ``state.json``. It is written under a temporary name and renamed, so a run killed at any moment
leaves its last whole one. ``state.json`` holds the SHA-256 of the tensors' file and of its own values, so that a run
never goes on from files that a disk error or a copy has changed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from textenv.data.files import parse_json, to_json
from textenv.rollouts.distributed import fill, full, like
from textenv.types import TextEnvError

__all__ = [
    "latest_checkpoint",
    "load_checkpoint",
    "read_checkpoint",
    "read_state",
    "save_checkpoint",
    "write_checkpoint",
]

_TENSORS, _STATE = "tensors.safetensors", "state.json"
_NAME = re.compile(r"step-(\d+)")


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    generators: Mapping[str, torch.Generator] | None = None,
    state: Mapping[str, Any],
    write: bool = True,
) -> Path:
    """Write the checkpoint of ``step`` and remove the others.

    Tensors that are sharded over processes are gathered, so that the files do not depend on the number of processes;
    all of them call this at once, and one writes.

    Args:
        folder: Where checkpoints live; made if it is missing.
        step: Number of steps done.
        modules: Networks by name; parameters and persistent buffers are kept, tied weights once.
        optimizer: Its per-parameter tensors are kept; its hyperparameters come from the config again.
        generators: Torch's random number generators by name.
        state: Everything else, as JSON values.
        write: Whether this process is the one that writes.

    Returns:
        The checkpoint's folder.
    """
    tensors = {f"{name}/{key}": value for name, module in modules.items() for key, value in _tensors(module).items()}
    for index, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{index}/{key}"] = torch.as_tensor(value)
    tensors |= {f"generator/{name}": generator.get_state() for name, generator in (generators or {}).items()}
    on_cpu: dict[str, torch.Tensor] = {}
    for key, value in tensors.items():
        whole = full(value.detach())
        if write:
            on_cpu[key] = whole.cpu().contiguous().clone()
    return write_checkpoint(folder, step, on_cpu, state) if write else folder / f"step-{step:08d}"


def write_checkpoint(folder: Path, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> Path:
    """Write tensors and JSON values as the checkpoint of ``step`` and remove the others.

    Args:
        folder: Where checkpoints live; made if it is missing.
        step: Number of steps done.
        tensors: On the CPU, contiguous, none of them sharing memory.
        state: Everything else, as JSON values.

    Returns:
        The checkpoint's folder.
    """
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        safetensors.torch.save_file(dict(tensors), temporary / _TENSORS)
        values = {"step": step, **state}
        digests = {_TENSORS: _digest(temporary / _TENSORS), _STATE: _digest_of_values(values)}
        (temporary / _STATE).write_text(to_json({**values, _DIGESTS: digests}), "utf-8")
        for file in temporary.iterdir():  # a machine that loses its power may keep a rename and lose what was renamed
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for other in _checkpoints(folder):
        if other != final:
            shutil.rmtree(other)
    return final


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors and the JSON values of a checkpoint, ``"step"`` among these.

    Raises:
        TextEnvError: The checkpoint cannot be read, or is not what was written.
    """
    state, digests = _read_state(path)
    try:
        found = _digest(path / _TENSORS)
        if found != digests.get(_TENSORS):
            raise _unreadable(path, f"{_TENSORS} is not what was written (its SHA-256 is another)")
        return safetensors.torch.load_file(path / _TENSORS), state
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, str(error)) from error


def read_state(path: Path) -> dict[str, Any]:
    """Return the JSON values of a checkpoint, ``"step"`` among these.

    Raises:
        TextEnvError: They cannot be read, or are not what was written.
    """
    return _read_state(path)[0]


def _read_state(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the JSON values of a checkpoint, and the SHA-256 of its files."""
    try:
        state: Any = parse_json((path / _STATE).read_bytes(), _STATE)
    except (OSError, TextEnvError) as error:
        raise _unreadable(path, str(error)) from error
    digests = state.pop(_DIGESTS, None) if isinstance(state, dict) else None
    if not isinstance(digests, dict):
        raise _unreadable(path, f"{_STATE} has no SHA-256 of the files; an earlier version of textenv wrote it")
    if digests.get(_STATE) != _digest_of_values(state):
        raise _unreadable(path, f"{_STATE} is not what was written (its SHA-256 is another)")
    return state, digests


def _unreadable(path: Path, reason: str) -> TextEnvError:
    """Return an error that says why a checkpoint cannot be used, and what to do."""
    older = [other for other in _checkpoints(path.parent) if _step(other) < _step(path)]
    then = f"go on from {max(older, key=_step).name}" if older else "start from the beginning"
    return TextEnvError(f"Checkpoint {path} cannot be read: {reason}. Delete it to {then}.")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of_values(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_json(values).encode()).hexdigest()


_DIGESTS = "sha256"


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint with the most steps, or None where there is none."""
    return max(_checkpoints(folder), key=_step, default=None)


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
        TextEnvError: The checkpoint cannot be read or does not fit, for example because the model's size has changed;
            nothing has been changed then.
    """
    generators = generators or {}
    tensors, state = read_checkpoint(path)
    parameters = _parameters(optimizer)
    moments = {key: tensor for key, tensor in tensors.items() if key.startswith("optimizer/")}
    targets = {f"{name}/{key}": value for name, module in modules.items() for key, value in _tensors(module).items()}
    expected = {key: tuple(value.shape) for key, value in targets.items()}
    expected |= {f"generator/{name}": tuple(generator.get_state().shape) for name, generator in generators.items()}
    for key, value in moments.items():
        index = int(key.split("/")[1])
        if index < len(parameters):
            expected[key] = () if value.ndim == 0 else tuple(parameters[index].shape)
    for key in sorted(expected.keys() | tensors.keys()):
        wanted, found = expected.get(key), tuple(tensors[key].shape) if key in tensors else None
        if wanted != found:
            raise TextEnvError(
                f"Checkpoint {path} does not fit: {key} should have shape {wanted}, but has {found} (None: is not "
                "there). Resume with the model and settings that the run was started with, or give it a fresh folder."
            )
    with torch.no_grad():
        for key, value in targets.items():
            fill(value, tensors[key])
    for key, value in moments.items():
        _, number, name = key.split("/")
        parameter = parameters[int(number)]  # a scalar "step" stays where the optimizer keeps it
        optimizer.state[parameter][name] = value if value.ndim == 0 else like(parameter, value)
    for name, generator in generators.items():
        generator.set_state(tensors[f"generator/{name}"])
    return state


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    persistent = module.state_dict().keys()
    buffers = {key: value for key, value in module.named_buffers() if key in persistent}
    return {**dict(module.named_parameters()), **buffers}


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return what the optimizer updates, in the order that numbers it in a checkpoint."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
