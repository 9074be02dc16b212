"""Which texts carry a watermark: a test for each text and each line, and what every token says for it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from textenv.data.files import to_json, write_atomically
from textenv.data.records import ROW_KINDS, kind_of, read_records, read_text
from textenv.data.values import as_mapping, as_text, short
from textenv.env.render import visible
from textenv.models.codec import TextCodec
from textenv.models.watermark import Verdict, Watermark
from textenv.types import TextEnvError

__all__ = ["Detection", "Suspect", "check_origin", "detect", "origin", "read_suspects", "save_heat_map", "to_terminal"]


@dataclass(frozen=True, slots=True)
class Suspect:
    """A text that may carry a watermark.

    Attributes:
        where: Where it stands, such as ``"x.jsonl, line 3"``.
        text: The text.
        continues: Whether it is a completion, whose first word stands behind a prompt.
        origin: What ``origin`` said where it was written; None where nothing is known.
    """

    where: str
    text: str
    continues: bool = False
    origin: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Detection:
    """What a test found in a text.

    Attributes:
        where: Where the text stands.
        verdict: Of the whole text.
        lines: Of each line's tokens, with the windows that they have in the text; in order.
        tokens: The text of each token.
        strengths: How much each token says for the watermark: the share of tokens without it that say less, from 0 to
            1; None for tokens that do not count.
    """

    where: str
    verdict: Verdict
    lines: tuple[Verdict, ...]
    tokens: tuple[str, ...]
    strengths: tuple[float | None, ...]


def read_suspects(path: Path) -> list[Suspect]:
    """Read texts to test: the parts of a ``.txt`` file between blank lines, or the records of another file.

    A record has ``completion``, as those of ``textenv sample --records`` do, or ``text``.

    Raises:
        TextEnvError: The file cannot be read, is of another kind, holds nothing, or has a record without these keys.
    """
    if kind_of(path, ROW_KINDS) == ".txt":
        parts = [part.strip("\n") for part in read_text(path).split("\n\n") if part.strip()]
        if not parts:
            raise TextEnvError(f"{path}: no text in it; expected at least one.")
        return [Suspect(f"{path}, text {number}", part) for number, part in enumerate(parts, start=1)]
    found = []
    for where, row in read_records(path):
        name = "completion" if row.get("completion") is not None else "text"
        if row.get(name) is None:
            raise TextEnvError(f"{where}: {short(row)}; expected the text 'completion' or 'text'.")
        try:
            written = row.get("watermark")
            about = None if written is None else as_mapping(written, "watermark")
            found.append(Suspect(where, as_text(row[name], name), name == "completion", about))
        except TextEnvError as error:
            raise TextEnvError(f"{where}: {error}") from error
    return found


def origin(watermark: Watermark, tokenizer: Any) -> dict[str, Any]:
    """Return what a record says of the watermark that its text was written with: all but the key."""
    return {**watermark.settings, "vocab_size": len(tokenizer)}


def check_origin(suspect: Suspect, watermark: Watermark, tokenizer: Any) -> None:
    """Refuse to look for another watermark, or with another tokenizer, than the record says.

    Raises:
        TextEnvError: They differ.
    """
    if suspect.origin is None:
        return
    said, ours = dict(suspect.origin), origin(watermark, tokenizer)
    if said.get("name") != ours["name"]:
        raise TextEnvError(
            f"{suspect.where}: its watermark is {short(said.get('name'))}, not {watermark.name!r}; give --watermark "
            f"{said.get('name')}."
        )
    if said.get("vocab_size") != ours["vocab_size"]:
        raise TextEnvError(
            f"{suspect.where}: it was written with a vocabulary of {short(said.get('vocab_size'))} tokens, and this "
            f"tokenizer has {ours['vocab_size']}: give --tokenizer the model that wrote it."
        )
    if said != ours:
        settings = {name: value for name, value in said.items() if name not in ("name", "vocab_size")}
        raise TextEnvError(
            f"{suspect.where}: its watermark has other settings: give --watermark-settings '{to_json(settings)}'."
        )


def detect(suspect: Suspect, watermark: Watermark, codec: TextCodec) -> Detection:
    """Test a text.

    The text is read as tokens again. Where that gives other tokens than were written, those that differ, and the
    ``context`` after them, say nothing for the watermark; they do not make the p-value wrong.

    Args:
        suspect: The text.
        watermark: The scheme, with its key.
        codec: Of the tokenizer that it was written with.

    Raises:
        TextEnvError: The text is too short for a token of it to count.
    """
    if suspect.continues:
        ids = codec.encode_behind(suspect.text)
    else:
        ids = tuple(codec.tokenizer(suspect.text, add_special_tokens=False, verbose=False)["input_ids"])
    places = watermark.counted_places(ids)
    if not places:
        raise TextEnvError(
            f"{suspect.where}: the text has {len(ids)} tokens, and with a context of {watermark.context} the first "
            f"that counts is number {watermark.context + 1}; expected a longer text."
        )
    windows = [ids[place - watermark.context : place] for place in places]
    evidence = watermark.evidence(windows, [ids[place] for place in places])
    texts = codec.token_texts(ids)
    strengths: list[float | None] = [None] * len(ids)
    for place, quantile in zip(places, watermark.quantiles(evidence), strict=True):
        strengths[place] = float(quantile)
    line_of = _lines_of(texts)
    of_counted = np.array([line_of[place] for place in places])
    lines = tuple(watermark.test(evidence[of_counted == line]) for line in range(line_of[-1] + 1))
    return Detection(suspect.where, watermark.test(evidence), lines, texts, tuple(strengths))


def _lines_of(texts: Sequence[str]) -> list[int]:
    """Return the line that each token begins in; a line's end is part of it."""
    lines, line = [], 0
    for text in texts:
        lines.append(line)
        line += text.count("\n")
    return lines


def describe(verdict: Verdict) -> str:
    """Return a verdict in words: ``"p = 1.3e-07, score 2.41, 38 tokens counted"``."""
    if verdict.p_value is None:
        return "no token counts"
    tokens = "token" if verdict.counted == 1 else "tokens"
    return f"p = {verdict.p_value:.2g}, score {verdict.score:.3g}, {verdict.counted} {tokens} counted"


def to_terminal(detection: Detection, *, color: bool = True) -> str:
    """Return a detection for a terminal: the figures, and the text with its tokens the greener the more they say.

    Args:
        detection: What was found.
        color: Use ANSI colors; without, the text is plain.
    """
    shown = [f"{visible(detection.where)}: {describe(detection.verdict)}"]
    for number, (line, verdict) in enumerate(_by_line(detection)):
        if len(detection.lines) > 1:
            shown.append(f"  line {number + 1}: {describe(verdict)}")
        shown.append("    " + "".join(_colored(text, strength) if color else visible(text) for text, strength in line))
    return "\n".join(shown)


def _by_line(detection: Detection) -> list[tuple[list[tuple[str, float | None]], Verdict]]:
    """Return the tokens of each line with their strengths, less the line's end, and the line's verdict."""
    lines: list[list[tuple[str, float | None]]] = [[] for _ in detection.lines]
    line_of = _lines_of(detection.tokens)
    for line, text, strength in zip(line_of, detection.tokens, detection.strengths, strict=True):
        lines[line].append((text.rstrip("\n"), strength))
    return list(zip(lines, detection.lines, strict=True))


def _share(strength: float | None) -> float:
    """Return how green a token is, from 0, for what is expected without a watermark or less, to 1."""
    return 0.0 if strength is None else max(0.0, 2 * strength - 1)


def _colored(text: str, strength: float | None) -> str:
    if strength is None:
        return f"\x1b[2m{visible(text)}\x1b[0m"
    rest = round(255 - 150 * _share(strength))
    return f"\x1b[38;2;0;0;0;48;2;{rest};255;{rest}m{visible(text)}\x1b[0m"


def save_heat_map(path: str | Path, detections: Sequence[Detection], watermark: Watermark) -> None:
    """Write a self-contained page of texts whose tokens are the greener the more they say for the watermark.

    Args:
        path: The file; its folder exists.
        detections: What was found, in order.
        watermark: What was looked for; its key is not written.
    """
    articles = "\n".join(map(_article, detections))
    scale = "".join(f'<span style="{_style(share)}">{share:g}</span>' for share in (0.5, 0.75, 0.9, 1.0))
    page = _PAGE.format(name=html.escape(watermark.name), count=len(detections), scale=scale, articles=articles)
    write_atomically(Path(path), page)


def _article(detection: Detection) -> str:
    shown = []
    for number, (line, verdict) in enumerate(_by_line(detection)):
        label = f"<small>line {number + 1}: {describe(verdict)}</small>" if len(detection.lines) > 1 else ""
        shown.append(f'<p dir="ltr">{"".join(_token(*piece) for piece in line)}</p>{label}')
    about = f"{html.escape(visible(detection.where))}: <b>{describe(detection.verdict)}</b>"
    return f"<article>{''.join(shown)}<footer>{about}</footer></article>"


def _token(text: str, strength: float | None) -> str:
    told = "does not count" if strength is None else f"more than {strength:.0%} of tokens without a watermark"
    style = "color:GrayText" if strength is None else _style(strength)
    return f'<span style="{style}" title="{told}">{html.escape(visible(text))}</span>'


def _style(strength: float) -> str:
    return f"background:rgba(22,163,74,{0.7 * _share(strength):.2f})"


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Watermark {name}</title>
<style>
  :root {{ color-scheme: light dark; --line: #8884; }}
  body {{ font: 17px/1.7 Georgia, "Times New Roman", serif; max-width: 46rem; margin: 2.5rem auto; padding: 0 1.2rem; }}
  h1 {{ font-size: 1.5rem; margin: 0 0 .3rem; }}
  .legend, footer, small {{ font: 13px/1.6 system-ui, sans-serif; color: GrayText; }}
  .legend span {{ padding: .15rem .45rem; color: CanvasText; white-space: nowrap; }}
  article {{ border-top: 1px solid var(--line); padding: .9rem 0; }}
  article p {{ margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }}
  b {{ color: CanvasText; }}
</style>
<h1>Watermark {name}</h1>
<p class="legend">{count} texts. A token is the greener the more it says for the watermark, as the share of tokens
without one that say less: {scale}. Gray tokens do not count. p is how often a text without the watermark scores as
high.</p>
{articles}
</html>
"""
