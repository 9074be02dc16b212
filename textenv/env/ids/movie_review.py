"""``textenv/MovieReview-v0``: continue the first words of a movie review so that it is liked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from textenv.env.registry import EnvRecord, register

if TYPE_CHECKING:
    from textenv.env.single import TextEnv
    from textenv.env.vector import TextVectorEnv

__all__ = ["movie_review", "movie_review_vector"]


def movie_review(*, split: Literal["train", "heldout"] = "train", **settings: Any) -> TextEnv:
    """Make ``textenv/MovieReview-v0``.

    Args:
        split: Which half of the bundled openings to draw from; ``"heldout"`` is for measuring.
        **settings: Those of ``textenv.TextEnvSettings``.
    """
    from textenv.env.single import TextEnv  # noqa: PLC0415 (registering an id loads no model code)

    return TextEnv(**_with_openings(split, settings))


def movie_review_vector(
    num_envs: int = 1, *, split: Literal["train", "heldout"] = "train", **settings: Any
) -> TextVectorEnv:
    """Make ``textenv/MovieReview-v0``, vectorized.

    Args:
        num_envs: Number of texts written side by side.
        split: As in ``movie_review``.
        **settings: As there.
    """
    from textenv.env.vector import TextVectorEnv  # noqa: PLC0415

    return TextVectorEnv(num_envs, **_with_openings(split, settings))


def _with_openings(split: Literal["train", "heldout"], settings: dict[str, Any]) -> dict[str, Any]:
    from textenv.data.openings import movie_openings  # noqa: PLC0415
    from textenv.types import TextEnvError  # noqa: PLC0415

    given: object = split
    if not isinstance(given, str):
        raise TextEnvError(f"split={given!r}: expected 'train' or 'heldout'.")
    return {"prompts": list(movie_openings(split)), **settings}


register(
    "textenv/MovieReview-v0",
    entry_point="textenv.env.ids.movie_review:movie_review",
    vector_entry_point="textenv.env.ids.movie_review:movie_review_vector",
    record=EnvRecord(held_out={"split": "heldout"}),
)
