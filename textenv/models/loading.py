"""Finding, loading and saving models: the bundled folders, devices, data types and LoRA adapters on disk."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from textenv.types import TextEnvError

__all__ = [
    "BUNDLED",
    "bundled_folder",
    "find_device",
    "load_pretrained",
    "load_tokenizer",
    "quiet",
    "save_pretrained",
]

BUNDLED = "bundled"
"""The name of the model that ships with textenv."""


def bundled_folder() -> Path:
    """Return the folder of the bundled model, in Hugging Face format."""
    return Path(str(resources.files("textenv.models") / "bundled"))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' progress bars for loading and saving; those of downloads stay."""
    hook = getattr(logging, "set_tqdm_hook", None)  # transformers >= 5.4
    if hook is None:
        yield
        return
    before = hook(lambda _, args, kwargs: logging.EmptyTqdm(*args, **kwargs))
    try:
        yield
    finally:
        hook(before)


def find_device(name: str | torch.device) -> torch.device:
    """Return the device of a name, ``"auto"`` being a GPU if there is one and the CPU if not.

    Raises:
        TextEnvError: It is of another kind, or this machine has none that torch can use.
    """
    gpus = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise TextEnvError(f"device={name!r}: expected 'cpu', 'cuda', 'cuda:1' or 'auto'.") from error
    available = {"cpu": 1, "cuda": gpus}.get(device.type)
    if available is None:
        raise TextEnvError(f"device={str(name)!r}: expected 'cpu', 'cuda', 'cuda:1' or 'auto'.")
    if (device.index or 0) >= available:
        raise TextEnvError(
            f"device={str(name)!r}: torch {torch.__version__} can use {available} device(s) of the kind "
            f"{device.type!r} on this machine; expected one of them, or 'auto' for a GPU if there is one."
        )
    return device


def load_pretrained(
    name: str | Path = BUNDLED, *, device: str | torch.device = "cpu", dtype: str | torch.dtype = torch.float32
) -> tuple[PreTrainedModel, Any]:
    """Load a causal language model and its tokenizer.

    Args:
        name: ``"bundled"``, a folder in Hugging Face format, or a Hugging Face id. A LoRA adapter is merged into the
            model that it names.
        device: Where the model runs: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"`` for a GPU if there is one.
        dtype: Data type of its weights, or its name; ``"auto"`` for the one that they are saved in.

    Returns:
        The model and the tokenizer.

    Raises:
        TextEnvError: The folder or id cannot be loaded, or lacks weights; the message repeats the reason. Or this
            machine has no such device.
    """
    found_device = find_device(device)
    source = str(bundled_folder()) if str(name) == BUNDLED else str(name)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            if (Path(source) / "adapter_config.json").is_file():
                model, report = _load_merged(source, dtype), {"missing_keys": set[str]()}
            else:
                load: Any = AutoModelForCausalLM.from_pretrained
                model, report = load(source, dtype=dtype, output_loading_info=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise TextEnvError(
            f"model={str(name)!r} could not be loaded: {' '.join(str(error).split())} Expected 'bundled', a folder "
            "with config.json, safetensors weights and a tokenizer, or the id of such a model on the Hugging Face hub."
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise TextEnvError(
            f"model={str(name)!r} lacks {len(missing)} of the weights of a {type(model).__name__}, among them "
            f"{', '.join(missing[:3])}; expected a causal language model, saved whole."
        )
    return model.to(found_device), tokenizer


def load_tokenizer(name: str) -> Any:
    """Load a tokenizer.

    Args:
        name: As in ``load_pretrained``.

    Raises:
        TextEnvError: It cannot be loaded.
    """
    source = str(bundled_folder()) if name == BUNDLED else name
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # of many kinds, as the files may hold anything
        raise TextEnvError(
            f"The tokenizer {name!r} could not be loaded: {' '.join(str(error).split())} Expected 'bundled', a folder "
            "with a tokenizer, or the id of a model on the Hugging Face hub."
        ) from error


def _load_merged(folder: str, dtype: str | torch.dtype) -> Any:
    """Load a LoRA adapter and the model it belongs to, as one model."""
    try:
        from peft import PeftConfig, PeftModel  # noqa: PLC0415 (an optional dependency, and slow)
    except ImportError as error:
        raise TextEnvError(f"{folder} holds a LoRA adapter; run: pip install 'textenv[lora]'") from error
    if not (Path(folder) / "adapter_model.safetensors").is_file():
        raise OSError("its adapter is not in safetensors format")  # the other format runs code
    config = PeftConfig.from_pretrained(folder)
    if config.peft_type != "LORA" or getattr(config, "megatron_config", None):  # others load, or import, what they name
        raise OSError(f"its adapter_config.json is for {str(config.peft_type)!r}: expected a plain LoRA adapter")
    base = config.base_model_name_or_path
    load: Any = AutoModelForCausalLM.from_pretrained
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # peft asks for it
        adapted: Any = PeftModel.from_pretrained(load(base, dtype=dtype, trust_remote_code=False), folder)
    return adapted.merge_and_unload()


def save_pretrained(folder: Path, *parts: Any) -> None:
    """Save a tokenizer, a model or both into a folder, each file complete or absent, ``tokenizer.json`` last.

    Args:
        folder: Where; made if it is missing.
        *parts: Objects with the ``save_pretrained`` of transformers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary, quiet():
        for part in parts:
            part.save_pretrained(temporary)
        for file in sorted(Path(temporary).iterdir(), key=lambda file: file.name == "tokenizer.json"):
            os.replace(file, folder / file.name)
