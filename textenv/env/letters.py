"""``textenv/Exact-v0``: texts of a few letters, so few and short that all of them can be enumerated.

The process is that of every other id, and so are model, cache and policies: the reference is a causal language model
like any other, only small, with random weights. What can be known of it exactly is in ``textenv.analysis.exact``.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from textenv.env.arguments import RenderMode
from textenv.env.handle import unwrap
from textenv.env.single import TextEnv
from textenv.env.vector import TextVectorEnv
from textenv.models.causal_lm import CausalLM
from textenv.models.loading import find_device
from textenv.types import TextEnvError

__all__ = ["FAMILIES", "exact", "exact_settings", "exact_vector", "letter_model"]

FAMILIES = ("dense", "sparse", "deceptive", "needle")
"""The families of rewards that ``textenv.rewards.Letters`` has."""

_END, _UNKNOWN = "<end>", "<unknown>"
_POSITIONS = 64


def letter_model(
    vocab_size: int = 8, *, stop_token: bool = True, seed: int = 0, device: str | torch.device = "cpu"
) -> CausalLM:
    """Return a causal language model of letters: a GPT-2 of two layers of width 32, its weights random.

    Its logits have a standard deviation of one, so that the next letter is neither even nor given, and depends on all
    letters before it. Positions are embedded: with rotary ones alone, ``a`` and ``aa`` look the same to attention, and
    no policy of that kind could be optimal.

    Args:
        vocab_size: Number of tokens: letters from ``"a"``, and with ``stop_token`` one that ends the text, of id 0.
        stop_token: Without one, only the token budget ends a text.
        seed: Seeds the weights.
        device: Where it runs.

    Raises:
        TextEnvError: There are not so many letters.
    """
    _check_numbers(vocab_size=vocab_size, seed=seed)
    if not isinstance(stop_token, bool):
        raise TextEnvError(f"stop_token={stop_token!r}: expected True or False.")
    if not 2 <= vocab_size <= len(string.ascii_lowercase):
        raise TextEnvError(f"vocab_size={vocab_size}: expected a number from 2 to {len(string.ascii_lowercase)}.")
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        config = GPT2Config(
            vocab_size=vocab_size,
            n_embd=32,
            n_inner=64,
            n_layer=2,
            n_head=4,
            n_positions=_POSITIONS,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=0 if stop_token else None,
        )
        config.endless = not stop_token
        model: Any = GPT2LMHeadModel(config)
    rng = np.random.default_rng(seed)  # not torch's generator, whose numbers depend on the device
    for module in model.modules():
        if isinstance(module, (nn.Embedding, nn.Linear, Conv1D)):
            weight = module.weight
            rows, columns = weight.shape
            inputs = 1 if isinstance(module, nn.Embedding) else columns if isinstance(module, nn.Linear) else rows
            drawn = rng.standard_normal((rows, columns)) / np.sqrt(inputs)
            weight.data.copy_(torch.from_numpy(drawn))
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(rng.integers(vocab_size, size=(256, 6)))).logits
        model.get_output_embeddings().weight.data /= logits.std()
    return CausalLM(model.to(find_device(device)).requires_grad_(False), _tokenizer(vocab_size, stop_token=stop_token))


def _tokenizer(vocab_size: int, *, stop_token: bool) -> PreTrainedTokenizerFast:
    names = [_END] * stop_token + list(string.ascii_lowercase[: vocab_size - stop_token])
    # A character that is no letter is a token beyond the model's, which the prompts are checked for.
    vocabulary = {name: place for place, name in enumerate([*names, _UNKNOWN])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_END if stop_token else None,
        unk_token=_UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def exact(*, render_mode: RenderMode | None = None, **settings: Any) -> TextEnv:
    """Make ``textenv/Exact-v0``: write a text of letters.

    Args:
        render_mode: As in ``TextEnv``.
        **settings: Those of ``exact_settings``.
    """
    return TextEnv(render_mode=render_mode, **exact_settings(**settings))


def exact_vector(
    num_envs: int = 1,
    *,
    autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    render_mode: RenderMode | None = None,
    **settings: Any,
) -> TextVectorEnv:
    """Make ``textenv/Exact-v0``, vectorized: write a text of letters.

    Args:
        num_envs: Number of texts written side by side.
        autoreset_mode: As in ``TextVectorEnv``.
        render_mode: As there.
        **settings: Those of ``exact_settings``.
    """
    return TextVectorEnv(num_envs, autoreset_mode=autoreset_mode, render_mode=render_mode, **exact_settings(**settings))


def exact_settings(
    *,
    reward: Any = None,
    vocab_size: int = 8,
    turns: int = 1,
    max_new_tokens: int | None = None,
    stop_token: bool = True,
    task_seed: int = 0,
    **others: Any,
) -> dict[str, Any]:
    """Return the settings of a text environment that make it one of letters.

    Args:
        reward: The name of one of the families of ``textenv.rewards.Letters``, or any other reward, also of these. None
            for ``"dense"``, or where a world answers for what it pays alone.
        vocab_size: Number of tokens, as in ``letter_model``.
        turns: With more than one, a world answers each with a letter, ``textenv.worlds.letter_dialogue``.
        max_new_tokens: Token budget of a turn; None for 6 in an episode.
        stop_token: Whether a token ends the text, as in ``letter_model``.
        task_seed: Seeds the reference and the reward.
        **others: Settings of ``textenv.env.settings.TextEnvSettings``. The prompts are ``["a"]``, unless others are
            given or a world answers, and ``model`` is made here, unless it is one that was.

    Raises:
        TextEnvError: An argument is not what is expected.
    """
    model, device = unwrap(others.pop("model", None)), others.get("device")
    if model is None:
        device = "cpu" if device is None else device
        model = letter_model(vocab_size, stop_token=stop_token, seed=task_seed, device=device)
    elif not isinstance(model, CausalLM) or (model.vocab_size, bool(model.eos_ids)) != (vocab_size, stop_token):
        raise TextEnvError(
            f"model={model!r}: the reference of textenv/Exact-v0 is made from vocab_size={vocab_size}, "
            f"stop_token={stop_token} and task_seed; leave model out, or give what letter_model made of these. Another "
            "model fits textenv/Text-v0."
        )
    _check_numbers(turns=turns)
    if max_new_tokens is None:
        max_new_tokens = max(1, 6 // max(1, turns))
    letters = "".join(model.token_texts(range(int(stop_token), vocab_size)))
    if turns > 1:
        world = {"name": "letter_dialogue", "letters": letters, "turns": turns, "length": max_new_tokens}
        room = 1 + turns * (max_new_tokens + 1)
        others = {"world": {**world, "seed": task_seed}, "max_turns": turns, "max_tokens": room, **others}
    elif reward is None:
        reward = "dense"
    shared = {"name": "letters", "letters": letters, "length": max_new_tokens, "seed": task_seed}
    reward = _with_families(reward, shared)
    if "potential" in others:
        others = {**others, "potential": _with_families(others["potential"], shared)}
    prompts = {} if turns > 1 else {"prompts": ["a"]}
    return {**prompts, **others, "model": model, "reward": reward, "max_new_tokens": max_new_tokens}


def _with_families(reward: Any, shared: Mapping[str, Any]) -> Any:
    """Return the specification of a reward with the names of families, those inside it too, spelled out.

    Args:
        reward: The specification.
        shared: That of all families, but for ``family``.
    """
    if isinstance(reward, str):
        return {**shared, "family": reward} if reward in FAMILIES else reward
    if isinstance(reward, list | tuple):
        return [_with_families(inner, shared) for inner in reward]
    if isinstance(reward, Mapping):
        inside = {name: _with_families(reward[name], shared) for name in ("reward", "rewards") if name in reward}
        return {**reward, **inside}
    return reward


def _check_numbers(**numbers: Any) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            raise TextEnvError(f"{name}={value!r}: expected a whole number of at least 0.")
