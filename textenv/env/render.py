"""An episode as colored tokens, in a terminal and as a page.

Each token of the completion is colored by its KL penalty: red where the policy likes it better than the reference
does, blue where it likes it less. What a token holds is never sent to the terminal or the page raw.
"""

from __future__ import annotations

import html
import math
import os
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from textenv.data.files import write_atomically
from textenv.types import Episode

__all__ = ["color_is_shown", "save_html", "to_ansi", "to_html", "total_kl", "visible"]

_FULL_COLOR = 4.0  # nats at which a token's color is strongest
_RESET = "\x1b[0m"


def to_ansi(episode: Episode, *, color: bool = True, finished: bool = True, scored: bool = True) -> str:
    """Return an episode as a line for a terminal: the prompt, the colored tokens, and the figures.

    Args:
        episode: What to show.
        color: Use ANSI colors; without, the figures alone tell of the KL.
        finished: Whether the episode is over, so that it has a score.
        scored: Whether a reward scored it; without, no score is shown.
    """
    prompt = visible(episode.prompt)
    tokens = [visible(token) for token in episode.completion_tokens]
    if color:
        prompt = f"\x1b[2m{prompt}{_RESET}"
        tokens = [f"{_background(kl)}{token}{_RESET}" for token, kl in zip(tokens, episode.kl, strict=True)]
    return f"{prompt}{''.join(tokens)}  [{_figures(episode, finished, scored)}]"


def to_html(
    episodes: Sequence[Episode], *, title: str = "Episodes", captions: Sequence[str] = (), scored: bool = True
) -> str:
    """Return a self-contained page of finished episodes; pointing at a token tells its figures.

    Args:
        episodes: What to show, in order.
        title: Heading of the page.
        captions: A word on each episode, such as who wrote it; none, or as many as episodes.
        scored: Whether a reward scored them; without, neither scores nor what tokens earned are shown.
    """
    scale = "".join(f'<span style="{_style(kl)}">{kl:g}</span>' for kl in (-_FULL_COLOR, -2.0, 0.0, 2.0, _FULL_COLOR))
    named = zip(episodes, captions or [""] * len(episodes), strict=True)
    articles = "\n".join(_article(episode, caption, scored) for episode, caption in named)
    return _PAGE.format(title=html.escape(visible(title)), scale=scale, articles=articles, count=len(episodes))


def save_html(
    path: str | Path,
    episodes: Sequence[Episode],
    *,
    title: str = "Episodes",
    captions: Sequence[str] = (),
    scored: bool = True,
) -> None:
    """Write ``to_html`` to a file, whole or not at all.

    Args:
        path: The file; its folder exists.
        episodes: What to show, in order.
        title: Heading of the page.
        captions: A word on each episode.
        scored: Whether a reward scored them.
    """
    write_atomically(Path(path), to_html(episodes, title=title, captions=captions, scored=scored))


def visible(text: str, *, keep: str = "") -> str:
    """Return text with everything that would steer a terminal, or reorder a line, written as Python escapes it.

    Args:
        text: Any.
        keep: Characters that are left as they are, such as line ends where there may be several lines.
    """
    return "".join(
        character
        if character in keep or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
        else character.encode("unicode_escape").decode()
        for character in text
    )


def color_is_shown() -> bool:
    """Tell whether what is printed reaches a terminal that shows colors, and ``NO_COLOR`` does not forbid them."""
    dull = os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown")
    return sys.stdout.isatty() and not dull


def total_kl(episode: Episode) -> float:
    """Return an episode's KL in nats, rounded for people (and never ``-0.00``)."""
    return round(math.fsum(episode.kl), 2) + 0.0


def _figures(episode: Episode, finished: bool, scored: bool) -> str:
    kl = f"KL {total_kl(episode):.2f} nats"
    if not finished:
        return f"{kl}, unfinished"
    score = f"score {episode.score:+.3f}, " if scored else ""
    return f"{score}{kl}, {len(episode.completion_ids)} tokens, {episode.stop_reason}"


def _strength(kl: float) -> float:
    return min(abs(kl) / _FULL_COLOR, 1.0) if math.isfinite(kl) else 1.0


def _background(kl: float) -> str:
    """Black text on white that turns red or blue: legible on dark and light terminals alike."""
    rest = round(255 - 150 * _strength(kl))
    red, green, blue = (255, rest, rest) if kl >= 0 else (rest, rest, 255)
    return f"\x1b[38;2;0;0;0;48;2;{red};{green};{blue}m"


def _style(kl: float) -> str:
    red, green, blue = (220, 38, 38) if kl >= 0 else (37, 99, 235)
    return f"background:rgba({red},{green},{blue},{0.7 * _strength(kl):.2f})"


def _article(episode: Episode, caption: str, scored: bool) -> str:
    tokens = "".join(
        f'<span class="t" style="{_style(kl)}" title="token {token}&#10;KL {kl:+.3f} nats'
        f'{f"&#10;reward {reward:+.4f}" if scored else ""}">'
        f"{html.escape(visible(text))}</span>"
        for token, text, kl, reward in zip(
            episode.completion_ids, episode.completion_tokens, episode.kl, episode.token_rewards, strict=True
        )
    )
    score = f"<b>{episode.score:+.3f}</b> score" if scored else ""
    return (
        f'<article><p dir="ltr"><span class="prompt">{html.escape(visible(episode.prompt))}</span>{tokens}</p>'
        f"<footer>{score}<b>{total_kl(episode):.2f}</b> nats KL"
        f"<b>{len(episode.completion_ids)}</b> tokens<b>{html.escape(episode.stop_reason)}</b> ended it"
        f"<i>{html.escape(visible(caption))}</i></footer></article>"
    )


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  :root {{ color-scheme: light dark; --line: #8884; --soft: #8889; }}
  body {{ font: 17px/1.7 Georgia, "Times New Roman", serif; max-width: 46rem; margin: 2.5rem auto; padding: 0 1.2rem; }}
  h1 {{ font-size: 1.5rem; margin: 0 0 .3rem; }}
  .legend, footer {{ font: 13px/1.6 system-ui, sans-serif; color: GrayText; }}
  .legend span {{ padding: .15rem .45rem; color: CanvasText; white-space: nowrap; }}
  article {{ border-top: 1px solid var(--line); padding: .9rem 0; }}
  article p {{ margin: 0 0 .3rem; overflow-wrap: anywhere; white-space: pre-wrap; }}
  .prompt {{ color: GrayText; }}
  .t {{ border-radius: 3px; padding: .08rem 0; }}
  .t:hover {{ outline: 2px solid var(--soft); }}
  footer b {{ color: CanvasText; margin-right: .3em; }}
  footer b:not(:first-child) {{ margin-left: 1.2em; }}
  footer i {{ float: right; }}
</style>
<h1>{title}</h1>
<p class="legend">{count} episodes. The prompt is gray; each token is colored by its KL from the reference model:
{scale} nats.</p>
{articles}
</html>
"""
