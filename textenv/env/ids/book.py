"""``textenv/Book-v0``: summarize a book, node by node of its tree, each node a turn that is paid by itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from textenv.env.registry import EnvRecord, register

if TYPE_CHECKING:
    from textenv.env.single import TextEnv
    from textenv.env.vector import TextVectorEnv

__all__ = ["book", "book_vector"]

_WINDOW = 512
_OF_WORLD = ("books", "split", "curriculum", "window", "leaf_tokens", "chat")


def book(**settings: Any) -> TextEnv:
    """Make ``textenv/Book-v0``.

    The model reads one task at a time (``context="fresh"``), and no reward crosses nodes (``turn_discount=0``).

    Args:
        **settings: ``books``, ``split`` (here ``"train"`` unless another is named), ``curriculum``, ``window`` and
            ``leaf_tokens`` of ``textenv.worlds.book.Book``; ``reward``, which pays each node by itself; and those of
            ``textenv.TextEnvSettings``. ``max_turns`` and ``max_new_tokens`` are those of the largest tree unless they
            are given.
    """
    from textenv.env.single import TextEnv  # noqa: PLC0415 (registering an id loads no model code)

    return TextEnv(**_with_world(settings))


def book_vector(num_envs: int = 1, **settings: Any) -> TextVectorEnv:
    """Make ``textenv/Book-v0``, vectorized.

    Args:
        num_envs: Number of books summarized side by side.
        **settings: As in ``book``.
    """
    from textenv.env.vector import TextVectorEnv  # noqa: PLC0415

    return TextVectorEnv(num_envs, **_with_world(settings))


def _with_world(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the environment, in which the world has those that are its own."""
    from textenv import plugins  # noqa: PLC0415
    from textenv.data.book_tasks import STOP  # noqa: PLC0415
    from textenv.env.handle import unwrap  # noqa: PLC0415
    from textenv.env.settings import as_one_reward  # noqa: PLC0415

    others = {name: unwrap(value) for name, value in settings.items()}
    reward = as_one_reward(others.pop("reward", None), others.pop("reward_weights", None))
    world = {"split": "train", "window": _WINDOW}
    world |= {name: others.pop(name) for name in _OF_WORLD if name in others}
    if reward is not None:
        world["reward"] = reward
    model = others.get("model", "bundled")
    tokenizer = model if isinstance(model, str | Path) else getattr(model, "tokenizer", "bundled")
    spec = {"name": "book", "tokenizer": tokenizer, **world}
    _, make = plugins.worlds().find(spec)
    made = make()
    return {
        "world": spec,
        "context": "fresh",
        "turn_discount": 0.0,
        "chat": world.get("chat", False),
        "max_tokens": world["window"],
        "max_turns": made.most_turns,
        "max_new_tokens": made.most_summary_tokens,
        "stop": STOP,
        **others,
    }


register(
    "textenv/Book-v0",
    entry_point="textenv.env.ids.book:book",
    vector_entry_point="textenv.env.ids.book:book_vector",
    record=EnvRecord(held_out={"split": "heldout"}),
)
