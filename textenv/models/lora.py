"""Low-rank adaptation: a second model in the network and weights of a first, and its file in the format of peft."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from transformers.pytorch_utils import Conv1D

from textenv.models.causal_lm import CausalLM
from textenv.types import TextEnvError

__all__ = ["Lora", "add_adapter", "load_adapter", "merged_weights", "save_adapter"]


@dataclass(frozen=True, slots=True)
class Lora:
    """Low-rank adaptation (Hu et al. 2021): a policy of two thin matrices a layer on top of its reference's weights.

    Attributes:
        rank: Rank of what is added to a weight.
        alpha: What is added is scaled by ``alpha / rank``.
        targets: Names of the layers it is added to; ``("all-linear",)`` for all but the head.
    """

    rank: int
    alpha: int
    targets: tuple[str, ...] = ("all-linear",)


def add_adapter(lm: CausalLM, lora: Lora) -> CausalLM:
    """Return a model that shares the network of ``lm`` and has an adapter of its own in it.

    Raises:
        TextEnvError: peft is not installed, or the model has no such layers.
    """
    try:
        from peft import LoraConfig  # noqa: PLC0415 (an optional dependency, and slow)
    except ImportError as error:
        raise TextEnvError("LoRA needs peft; run: pip install 'textenv[lora]'") from error
    model: Any = lm.model
    name = f"policy{len(getattr(model, 'peft_config', {}))}"
    targets = lora.targets[0] if lora.targets == ("all-linear",) else list(lora.targets)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=targets,
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # of another policy in the same network
            model.add_adapter(config, name)
    except (ValueError, TypeError) as error:
        raise TextEnvError(
            f"LoRA with targets {list(lora.targets)} does not fit {type(model).__name__}: {error}"
        ) from error
    model.eval()
    return CausalLM(model, lm.tokenizer, adapter=name)


def save_adapter(lm: CausalLM, folder: Path) -> None:
    """Save the adapter of a model in the format of peft."""
    lm.activate_adapter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Could not find a config file in")  # where the base is an adapter itself
        lm.model.save_pretrained(folder)


def merged_weights(lm: CausalLM) -> dict[str, torch.Tensor]:
    """Return the weights of a model with its adapter added to them, under the names that they have without one.

    Of weights that are tied, the first name is in it. The model stays as it is.
    """
    model: Any = lm.model
    layers: dict[str, Any] = {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}
    found: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # tied ones once
            module, is_base, rest = name.rpartition(".base_layer.")
            if not is_base:
                if not any(name.startswith(f"{layer}.") for layer in layers):
                    found[name] = parameter.detach()
                continue
            change = layers[module].get_delta_weight(lm.adapter) if rest == "weight" else 0
            found[f"{module}.{rest}"] = parameter.detach() + change
    return found


def load_adapter(lm: CausalLM, folder: Path) -> None:
    """Read an adapter that ``save_adapter`` wrote into that of a model.

    Raises:
        TextEnvError: It is not there or is of another shape.
    """
    from peft import set_peft_model_state_dict  # noqa: PLC0415 (an optional dependency, and slow)

    path = folder / "adapter_model.safetensors"
    try:
        tensors = safetensors.torch.load_file(path)
        report: Any = set_peft_model_state_dict(lm.model, tensors, adapter_name=str(lm.adapter))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise TextEnvError(f"{path} cannot be read into the policy: {error}") from error
    if report.unexpected_keys:
        raise TextEnvError(f"{path} has {report.unexpected_keys[:3]}, which the model has not; was it another?")
