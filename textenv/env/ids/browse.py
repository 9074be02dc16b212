"""``textenv/Browse-v0``: answer questions with quotes, by the commands of a text browser over an offline web."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textenv.env.registry import EnvRecord, register

if TYPE_CHECKING:
    from textenv.env.single import TextEnv
    from textenv.env.vector import TextVectorEnv

__all__ = ["browse", "browse_vector", "browser_settings"]

_BROWSER = {"max_actions": 10, "max_quotes": 3, "quote_length": 300, "window": 200, "results": 3}
_SETTINGS = {
    "reward": {"name": "exact_match", "said": "answer"},
    "context": "fresh",
    "max_new_tokens": 64,
    "stop": ("\n",),
}


def browse(
    *,
    web: str | Path | None = None,
    split: str = "train",
    browser: Mapping[str, Any] | None = None,
    **settings: Any,
) -> TextEnv:
    """Make ``textenv/Browse-v0``.

    Args:
        web: A file that ``textenv browse index`` has written, with questions; None for the web of WordNet, which is
            fetched and made on first use.
        split: Which questions to draw from, see ``textenv.worlds.browser.Browser``; ``"heldout"`` is for measuring.
        browser: Further settings of the browser, in place of 10 actions, 3 quotes and small windows.
        **settings: Those of ``textenv.TextEnvSettings``.
    """
    from textenv.env.single import TextEnv  # noqa: PLC0415 (registering an id loads no model code)

    return TextEnv(**_with_world(browser_settings(web, split, browser), settings))


def browse_vector(
    num_envs: int = 1,
    *,
    web: str | Path | None = None,
    split: str = "train",
    browser: Mapping[str, Any] | None = None,
    **settings: Any,
) -> TextVectorEnv:
    """Make ``textenv/Browse-v0``, vectorized.

    Args:
        num_envs: Number of rows.
        web: As in ``browse``.
        split: As there.
        browser: As there.
        **settings: As there.
    """
    from textenv.env.vector import TextVectorEnv  # noqa: PLC0415

    return TextVectorEnv(num_envs, **_with_world(browser_settings(web, split, browser), settings))


def browser_settings(
    web: str | Path | None = None, split: str = "train", browser: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the settings of the world ``browser`` in this environment.

    Args:
        web: As in ``browse``.
        split: As there.
        browser: As there.

    Raises:
        TextEnvError: ``browser`` is no mapping; or the web of WordNet is wanted, is not in the cache, and cannot be
            fetched.
    """
    from textenv.data.values import as_mapping  # noqa: PLC0415
    from textenv.data.wordnet_web import wordnet_web  # noqa: PLC0415

    return {"web": str(web or wordnet_web()), "split": split, **_BROWSER, **as_mapping(browser, "browser")}


def _with_world(browser: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the environment, in which the answer is a turn after the last action."""
    actions = browser["max_actions"]
    turns = {"max_turns": actions + 1} if isinstance(actions, int) else {}  # else the browser refuses it
    return {"world": {"name": "browser", **browser}, **_SETTINGS, **turns, **settings}


register(
    "textenv/Browse-v0",
    entry_point="textenv.env.ids.browse:browse",
    vector_entry_point="textenv.env.ids.browse:browse_vector",
    record=EnvRecord(held_out={"split": "heldout"}),
)
