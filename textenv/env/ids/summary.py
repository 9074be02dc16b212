"""``textenv/Summary-v0``: summarize a text, by default a package's description in one line."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from textenv.env.registry import EnvRecord, register

if TYPE_CHECKING:
    from textenv.env.single import TextEnv
    from textenv.env.vector import TextVectorEnv

__all__ = ["summary", "summary_vector"]

_DEFAULTS = {"reward": {"name": "rouge"}, "max_new_tokens": 32, "stop": ["\n"]}


def summary(**settings: Any) -> TextEnv:
    """Make ``textenv/Summary-v0``.

    The reward gets the columns ``text`` and ``reference``; unless another one is named, it is ROUGE-L against the
    reference. A summary is one line of at most 32 tokens, unless ``stop`` and ``max_new_tokens`` say something else.

    Args:
        **settings: Those of ``textenv.data.summaries.SummaryData``, and of ``textenv.TextEnvSettings``. With
            ``prompts`` the former have no effect.
    """
    from textenv.env.single import TextEnv  # noqa: PLC0415 (registering an id loads no model code)

    return TextEnv(**_with_texts(settings))


def summary_vector(num_envs: int = 1, **settings: Any) -> TextVectorEnv:
    """Make ``textenv/Summary-v0``, vectorized.

    Args:
        num_envs: Number of texts summarized side by side.
        **settings: As in ``summary``.
    """
    from textenv.env.vector import TextVectorEnv  # noqa: PLC0415

    return TextVectorEnv(num_envs, **_with_texts(settings))


def _with_texts(settings: dict[str, Any]) -> dict[str, Any]:
    from textenv.data.summaries import SummaryData  # noqa: PLC0415

    names = {field.name for field in dataclasses.fields(SummaryData)}
    data = SummaryData(**{name: value for name, value in settings.items() if name in names})
    others = {**_DEFAULTS, **{name: value for name, value in settings.items() if name not in names}}
    return others if others.get("prompts") is not None else {**others, "prompts": data.prompts()}


register(
    "textenv/Summary-v0",
    entry_point="textenv.env.ids.summary:summary",
    vector_entry_point="textenv.env.ids.summary:summary_vector",
    record=EnvRecord(held_out={"split": "heldout"}),
)
