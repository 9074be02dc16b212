"""The settings of a text environment: declared once, checked at once."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias, get_args

from textenv.types import KLEstimator, KLMode, TextEnvError

__all__ = ["TextEnvSettings", "check_counts"]

DType: TypeAlias = Literal["float32", "bfloat16", "float16", "auto"]


def check_counts(settings: Any, *names: str) -> None:
    """Check that settings, attributes by name, are whole numbers of at least 1; one that is None passes.

    Raises:
        TextEnvError: One is not.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
            raise TextEnvError(f"{name}={value!r}: expected a whole number of at least 1.")


class _UnknownSettingError(TextEnvError, TypeError):
    """Python's error too, in its words: TorchRL's GymEnv tries whether an environment takes ``frameskip``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEnvSettings:
    """Keywords of ``gymnasium.make("textenv/Text-v0", ...)``.

    Attributes:
        model: The reference model, which also gives the vocabulary: ``"bundled"``, a folder, a Hugging Face id, or a
            ``CausalLM``. Agents start from a copy of it.
        device: Where the models run: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"`` for a GPU if there is one. None
            for the CPU, or for where a given ``CausalLM`` is.
        torch_dtype: Data type of the weights: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"`` for the one
            they are saved in. None for float32, or for that of a given ``CausalLM``. An agent's weights are of this
            type too, and an update that is small beside its weight is lost in 16 bits.
        prompts: A list of texts, of conversations (each a list of messages with ``role`` and ``content``), or of
            mappings with one of these as ``prompt`` and further columns for the reward; a ``.txt``, ``.jsonl``,
            ``.csv`` or ``.parquet`` file; or a ``datasets.Dataset``. None for the bundled openings of movie reviews.
            Conversations go through the tokenizer's chat template, and the reward gets them as messages.
        chat: Take a prompt that is a text as one message of a user to a chat model. The reward gets it as a text.
        reward: A name, a JSON mapping with ``name`` and arguments, ``"package.module:attribute"``, or a callable
            (see ``textenv.types.Reward``).
        max_new_tokens: Token budget of an episode.
        max_prompt_tokens: Room for the prompt; None for that of the longest prompt. Longer ones are refused.
        kl_coef: Weight of the KL penalty, beta.
        kl_estimator: ``"k1"``, ``"k2"``, ``"k3"`` or ``"full"`` (see ``textenv.env.kl``).
        kl_mode: ``"dense"`` pays the KL at every token; ``"lump"`` pays an episode's KL at its end, which takes one
            forward of the reference an episode instead of one a token.
        kl_target: KL of an episode, in nats, that ``kl_coef`` is adapted towards; None keeps it fixed.
        kl_horizon: Episodes over which it adapts.
        temperature: Divides the logits of the reference; the policy must sample with the same.
        stop: Strings that end the episode when they appear in the completion; the scored text stops before them.
        missing_eos_penalty: Subtracted from the score of an episode that the token budget ended.
        top_k: Put an ``action_mask`` of the reference's ``k`` likeliest tokens into ``info``.
        top_p: The same, of the fewest tokens that hold this probability.
    """

    model: Any = "bundled"
    device: str | None = None
    torch_dtype: DType | None = None
    prompts: Any = None
    chat: bool = False
    reward: Any = "learned"
    max_new_tokens: int = 12
    max_prompt_tokens: int | None = None
    kl_coef: float = 0.035
    kl_estimator: KLEstimator = "k1"
    kl_mode: KLMode = "dense"
    kl_target: float | None = None
    kl_horizon: int = 10_000
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    missing_eos_penalty: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    @classmethod
    def of(cls, keywords: Mapping[str, Any]) -> TextEnvSettings:
        """Make settings from keywords.

        Raises:
            TextEnvError: A keyword is unknown, or its value is not what is expected.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in keywords:
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise _UnknownSettingError(
                    f"Unknown setting {name!r}.{hint} Expected some of: {', '.join(names)}; got an unexpected keyword "
                    f"argument {name!r}."
                )
        return cls(**keywords)

    def __post_init__(self) -> None:
        """Check the settings."""
        for name, choices in (("kl_estimator", get_args(KLEstimator)), ("kl_mode", get_args(KLMode))):
            if getattr(self, name) not in choices:
                raise TextEnvError(f"{name}={getattr(self, name)!r}: expected one of {list(choices)}.")
        if self.torch_dtype not in (None, *get_args(DType)):
            raise TextEnvError(f"torch_dtype={self.torch_dtype!r}: expected one of {[*get_args(DType)]}, or None.")
        if self.device is not None and not isinstance(self.device, str):
            raise TextEnvError(f"device={self.device!r}: expected a text such as 'cpu', 'cuda' or 'auto', or None.")
        if not isinstance(self.chat, bool):
            raise TextEnvError(f"chat={self.chat!r}: expected True or False.")
        for name in ("max_new_tokens", "max_prompt_tokens", "kl_horizon", "top_k"):
            value = getattr(self, name)
            if value is None and name in ("max_prompt_tokens", "top_k"):
                continue
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise TextEnvError(f"{name}={value!r}: expected a whole number of at least 1.")
        for name in ("kl_coef", "kl_target", "temperature", "missing_eos_penalty", "top_p"):
            value = getattr(self, name)
            if value is None and name in ("kl_target", "top_p"):
                continue
            if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
                raise TextEnvError(f"{name}={value!r}: expected a finite number.")
        if self.kl_coef < 0:
            raise TextEnvError(f"kl_coef={self.kl_coef}: expected a number of at least 0.")
        if not self.temperature > 0:
            raise TextEnvError(f"temperature={self.temperature}: expected a number above 0.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise TextEnvError(f"top_p={self.top_p}: expected a probability above 0 and at most 1, or None.")
        given: Any = self.stop
        stop = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (given,)
        if not all(isinstance(string, str) and string for string in stop):
            raise TextEnvError(f"stop={given!r}: expected strings that are not empty.")
        object.__setattr__(self, "stop", stop)
