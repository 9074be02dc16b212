"""An episode as colored tokens, in a terminal and as a page; ``textenv.env.picture`` draws it.

Each token of the completion is colored by its KL penalty: red where the policy likes it better than the reference
does, blue where it likes it less. Tokens that spell one character together are shown as one. A conversation is shown
message by message, with the roles, and not as the text that a chat template makes of it. What a token or a message
holds is never sent to the terminal or the page raw.
"""

from __future__ import annotations

import html
import math
import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from textenv.data.files import write_atomically
from textenv.types import Conversation, Episode, Prompt

__all__ = [
    "ShownTurn",
    "background",
    "color_is_shown",
    "figures",
    "prompt_lines",
    "prompt_turns",
    "save_html",
    "shown_turns",
    "to_ansi",
    "to_html",
    "total_kl",
    "turns_of",
    "visible",
]

_FULL_COLOR = 4.0  # nats at which a token's color is strongest
_RESET = "\x1b[0m"
_INCOMPLETE = "\ufffd"  # what decoders write for bytes that are no character, or not yet


class ShownTurn(NamedTuple):
    """A message as it is shown; a text that is no message has the role ``""``."""

    role: str
    text: str


def turns_of(given: str | Conversation) -> tuple[ShownTurn, ...]:
    """Return what is shown of a prompt as it was given: its messages, or the text as one turn without a role."""
    if isinstance(given, str):
        return (ShownTurn("", given),)
    return tuple(ShownTurn(str(message["role"]), str(message["content"])) for message in given)


def prompt_turns(prompt: Prompt) -> tuple[ShownTurn, ...]:
    """Return what is shown of a prompt that a model has read.

    With a chat template these are the messages that it was given, a text being a message of the user.
    """
    if isinstance(prompt.given, str):
        return (ShownTurn("user", prompt.given),)
    return turns_of(prompt.text if prompt.given is None else prompt.given)


def prompt_lines(prompt: Prompt) -> str:
    """Return a prompt for a terminal, a line a message: ``"user: How is the film?"``; a text is one line."""
    return "\n".join(map(_line, prompt_turns(prompt)))


def _line(turn: ShownTurn) -> str:
    return f"{visible(turn.role)}: {visible(turn.text)}" if turn.role else visible(turn.text)


def to_ansi(episode: Episode, *, color: bool = True, finished: bool = True, scored: bool = True) -> str:
    """Return an episode for a terminal: the prompt, the colored tokens, and the figures.

    It is one line; of a conversation, a line a message, each with its role.

    Args:
        episode: What to show.
        color: Use ANSI colors; without, the figures alone tell of the KL.
        finished: Whether the episode is over, so that it has a score.
        scored: Whether a reward scored it; without, no score is shown.
    """
    lines = []
    for turn, pieces in shown_turns(episode, finished=finished):
        line, written = _line(turn), [text for text, _ in pieces]
        if color:
            line = f"\x1b[2m{line}{_RESET}"
            written = [f"{_on_color(kl)}{text}{_RESET}" for text, kl in pieces]
        lines.append(line + "".join(written))
    return "\n".join(lines) + f"  [{figures(episode, finished=finished, scored=scored)}]"


def shown_turns(episode: Episode, *, finished: bool) -> list[tuple[ShownTurn, list[tuple[str, float]]]]:
    """Return the turns of an episode, each with the agent's tokens that follow its text.

    Args:
        episode: What to show.
        finished: Whether it is over; otherwise the rest of a character may still have to be written.

    Returns:
        Of each turn, its role and text as they are, and what its tokens spell, made ``visible``, with the KL in nats.
    """
    found = []
    for turn, places in _conversation(episode):
        pieces = [(visible(text), kl) for text, _, kl in _pieces(episode, places)]
        if pieces and not finished:
            pieces[-1] = (pieces[-1][0].rstrip(_INCOMPLETE), pieces[-1][1])
        found.append((turn, pieces))
    return found


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


def _turns_to_complete(prompt: Prompt) -> tuple[ShownTurn, ...]:
    """Return the turns of a prompt, the last of which is the one that the completion goes on with."""
    turns = prompt_turns(prompt)
    return turns if turns[-1].role in ("", "assistant") else (*turns, ShownTurn("assistant", ""))


def _conversation(episode: Episode) -> list[tuple[ShownTurn, range]]:
    """Return the turns of an episode, each with the places of the agent's tokens that follow its text."""
    size = len(episode.completion_ids)
    if not episode.turns:
        *before, last = _turns_to_complete(episode.start)
        return [*((turn, range(0)) for turn in before), (last, range(size))]
    found, begin = [(turn, range(0)) for turn in prompt_turns(episode.start)], 0
    agent, world = ("agent", "world") if episode.start.given is None else ("assistant", "user")
    found = [(ShownTurn(turn.role or world, turn.text), places) for turn, places in found]
    for turn in episode.turns:
        found.append((ShownTurn(agent, ""), range(begin, begin + turn.tokens)))
        found += [(ShownTurn(shown.role or world, shown.text.strip()), range(0)) for shown in turns_of(turn.answer)]
        begin += turn.tokens
    return [*found, (ShownTurn(agent, ""), range(begin, size))] if begin < size else found


def _pieces(episode: Episode, among: range) -> Iterator[tuple[str, range, float]]:
    """Yield the texts that some tokens spell, each with the places and the KL of those that spell it.

    That is one token, or as many as spell a character together: the last of these has its text, the others none.
    """
    texts, begin = episode.completion_tokens, among.start
    last = max((place for place in among if texts[place]), default=among.stop - 1)
    for place in among:
        if (texts[place] and place < last) or place == among.stop - 1:
            places = range(begin, place + 1)
            yield "".join(texts[begin : place + 1]), places, math.fsum(episode.kl[begin : place + 1])
            begin = place + 1


def figures(episode: Episode, *, finished: bool = True, scored: bool = True) -> str:
    """Return an episode's score, KL, length and end in words; arguments as of ``to_ansi``."""
    kl = f"KL {total_kl(episode):.2f} nats"
    if not finished:
        return f"{kl}, unfinished"
    score = f"score {episode.earned:+.3f}{_parts(episode)}, " if scored or episode.turns else ""
    return f"{score}{kl}, {len(episode.completion_ids)} tokens, {episode.stop_reason}"


def _parts(episode: Episode) -> str:
    """Return what the parts of the reward said, ``" (vader +0.500, length -)"``; nothing for one without parts."""
    told = ", ".join(f"{name} {'-' if score is None else f'{score:+.3f}'}" for name, score in episode.scores.items())
    return f" ({visible(told)})" if told else ""


def _strength(kl: float) -> float:
    return min(abs(kl) / _FULL_COLOR, 1.0) if math.isfinite(kl) else 1.0


def background(kl: float) -> tuple[int, int, int]:
    """Return white that turns red or blue, on which black text is legible: the color of a token of some KL in nats."""
    rest = round(255 - 150 * _strength(kl))
    return (255, rest, rest) if kl >= 0 else (rest, rest, 255)


def _on_color(kl: float) -> str:
    """Return the escape of black text on its color, legible on dark and light terminals alike."""
    red, green, blue = background(kl)
    return f"\x1b[38;2;0;0;0;48;2;{red};{green};{blue}m"


def _style(kl: float) -> str:
    red, green, blue = (220, 38, 38) if kl >= 0 else (37, 99, 235)
    return f"background:rgba({red},{green},{blue},{0.7 * _strength(kl):.2f})"


def _article(episode: Episode, caption: str, scored: bool) -> str:
    shown = [
        _turn(*turn, "".join(_piece(episode, *piece, scored) for piece in _pieces(episode, places)))
        for turn, places in _conversation(episode)
    ]
    score = f"<b>{episode.earned:+.3f}</b> score{html.escape(_parts(episode))}" if scored else ""
    logged = "".join(
        f"<br><b>{html.escape(visible(name))}</b> {html.escape(visible(str(value)))}"
        for name, value in episode.logged.items()
    )
    return (
        f"<article>{''.join(shown)}"
        f"<footer>{score}<b>{total_kl(episode):.2f}</b> nats KL"
        f"<b>{len(episode.completion_ids)}</b> tokens<b>{html.escape(episode.stop_reason)}</b> ended it"
        f"<i>{html.escape(visible(caption))}</i>{logged}</footer></article>"
    )


def _piece(episode: Episode, text: str, places: range, kl: float, scored: bool) -> str:
    told = "&#10;".join(_token(episode, place, scored) for place in places)
    return f'<span class="t" style="{_style(kl)}" title="{told}">{html.escape(visible(text))}</span>'


def _token(episode: Episode, place: int, scored: bool) -> str:
    reward = f"&#10;reward {episode.token_rewards[place]:+.4f}" if scored else ""
    return f"token {episode.completion_ids[place]}&#10;KL {episode.kl[place]:+.3f} nats{reward}"


def _turn(role: str, text: str, tokens: str) -> str:
    """Return a turn as HTML, and behind its text the tokens of a completion, which are HTML already."""
    prompt = f'<span class="prompt">{html.escape(visible(text, keep=chr(10)))}</span>' if text else ""
    paragraph = f'<p dir="ltr">{prompt}{tokens}</p>'
    return f'<div class="turn"><h2>{html.escape(visible(role))}</h2>{paragraph}</div>' if role else paragraph


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
  .turn {{ border-inline-start: 3px solid var(--line); padding-inline-start: .8rem; margin: 0 0 .5rem; }}
  .turn h2 {{ font: 600 13px/1.6 system-ui, sans-serif; color: GrayText; margin: 0; }}
  .t {{ border-radius: 3px; padding: .08rem 0; }}
  .t:hover {{ outline: 2px solid var(--soft); }}
  footer {{ display: flow-root; }}
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
