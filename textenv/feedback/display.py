"""What the labeling page shows: templates, texts with their hidden characters made visible, guidelines, and clips."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException

from textenv.env.render import turns_of, visible
from textenv.feedback.store import Assignment
from textenv.worlds.browser import QuotedAnswer, read_quoted_answer

__all__ = [
    "ANSWER_GUIDELINES",
    "GUIDELINES",
    "MEDIA_TYPES",
    "QUOTED_GUIDELINES",
    "MediaFiles",
    "blocks",
    "has_quotes",
    "make_templates",
    "only_visible",
    "shown_items",
    "web_file",
]

_log = logging.getLogger(__name__)
_WEB_FOLDER = Path(__file__).parent / "web"
_PAGE_FILES = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "chat.js": "text/javascript",
    "browse.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
MEDIA_TYPES = {
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".png": "image/png",  # animated ones too
}

GUIDELINES = """\
Choose the better one: what a careful reader would rather have been given for this prompt.

- Read all of them to the end before you choose.
- Judge what is written, not how long it is.
- Use Tie if they are equally good, Both bad if none is of any use, and Can't tell if you cannot judge them.
- Say how sure you are where you can, and leave a note where something is odd.
- Where you know a better answer than all of them, write it, or edit one.
"""

QUOTED_GUIDELINES = """\
Choose the better one: what a careful reader would rather have been given for this question.

- Read both answers, and what they quote.
- What is not in the quotes is not shown to be true, and a quote that does not bear on the question shows nothing.
- Judge what is said and shown, not how long it is.
- Use Tie if they are equally good, Both bad if none is of any use, and Can't tell if you cannot judge them.
- Say how sure you are where you can, and leave a note where something is odd.
"""

ANSWER_GUIDELINES = """\
Write what you would want to be given for this prompt.

- Answer what is asked, as truthfully and as briefly as it can be said well.
- In a conversation you may go on: write what the user says next, and the answer to that.
- If you cannot answer, say so (Can't answer), and somebody else is asked.
"""


@dataclass(frozen=True, slots=True)
class _Clip:
    address: str
    video: bool


class MediaFiles:
    """Finds the pictures and videos of clips, in the folders that may be shown and nowhere else."""

    def __init__(self, folders: Sequence[str | Path]) -> None:
        self._folders = [Path(folder).resolve() for folder in folders]
        self._refused: set[str] = set()

    def of(self, registered: str) -> Path | None:
        """Return the picture or video of a clip: its file, or the first in its folder; None if none can be shown."""
        try:
            path = Path(registered).resolve()  # symbolic links are followed
            candidates = sorted(path.iterdir()) if self._may_show(path) and path.is_dir() else [path]
            found = [one.resolve() for one in candidates if one.suffix.lower() in MEDIA_TYPES and one.is_file()]
        except (OSError, ValueError, RuntimeError):  # not a file's name, or links in a circle
            return None
        for one in found:
            if self._may_show(one) and one.suffix.lower() in MEDIA_TYPES:
                return one
            if registered not in self._refused and len(self._refused) < 100:
                self._refused.add(registered)
                _log.warning(
                    "%s is not shown: it is not in %s. To show it, name its folder (--clip-folders).",
                    visible(registered),
                    ", ".join(map(str, self._folders)),
                )
        return None

    def _may_show(self, path: Path) -> bool:
        return any(path.is_relative_to(folder) for folder in self._folders)


def shown_items(
    assignment: Assignment, token: Callable[[int], str], files: MediaFiles
) -> list[str | QuotedAnswer | _Clip | None]:
    """Return what is shown at each place: a text, an answer with quotes, a clip, or None for a clip without a file."""
    if assignment.kind == "completion":
        return [read_quoted_answer(item.text) or item.text for item in assignment.items]
    paths = [files.of(item.path) for item in assignment.items]
    return [
        None if path is None else _Clip(f"/media/{token(place)}", MEDIA_TYPES[path.suffix.lower()].startswith("video"))
        for place, path in enumerate(paths)
    ]


def has_quotes(assignment: Assignment) -> bool:
    """Tell whether answers with quotes are compared, which are written in the browser and not on the labeling page."""
    return any(read_quoted_answer(item.text) for item in assignment.items)


def web_file(name: str) -> FileResponse:
    """Send a file of a page itself: its style sheet, scripts and icon.

    Raises:
        HTTPException: There is no such file.
    """
    if name not in _PAGE_FILES:
        raise HTTPException(404, "There is no such file.")
    return FileResponse(_WEB_FOLDER / name, media_type=_PAGE_FILES[name])


def make_templates() -> jinja2.Environment:
    """Return the templates of the page; whatever they insert is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_WEB_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        auto_reload=False,
    )
    environment.filters["pieces"] = _pieces
    environment.filters["turns"] = turns_of
    macros: Any = environment.get_template("macros.html").module
    names = ("marked", "written", "prompt_of", "quotes_of", "progress_of", "boxes", "guide")
    environment.globals.update({name: getattr(macros, name) for name in names})
    return environment


_JOINERS = "\u200c\u200d"  # needed to write Persian and emoji


def _is_hidden(character: str) -> bool:
    return (
        unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
        and character not in "\n\t"
        and character not in _JOINERS
    )


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Yield pieces of a text: ``(piece, "")`` for visible ones, and ``(escapes, name)`` for invisible characters.

    Invisible characters could reorder a line, or hide in it; they are shown as Python escapes them.
    """
    text = text.replace("\r\n", "\n")
    start = 0
    while start < len(text):
        hidden = _is_hidden(text[start])
        end = start + 1
        while end < len(text) and _is_hidden(text[end]) == hidden:
            end += 1
        piece = text[start:end]
        if hidden:
            name = unicodedata.name(piece[0], "control character").lower()
            yield piece.encode("unicode_escape").decode(), name
        else:
            yield piece, ""
        start = end


def only_visible(text: str) -> str:
    """Return a text without its invisible characters, as one that is to be edited: people could not see them there."""
    return "".join(piece for piece, hidden in _pieces(text) if not hidden)


def blocks(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the headings, lists and paragraphs of a text."""
    for block in re.split(r"\n\s*\n|(?<=\n)(?=#)|(?<=^)(?=#)", text.strip().replace("\r\n", "\n")):
        lines = [line.strip() for line in block.strip().split("\n")]
        if lines == [""]:
            continue
        if lines[0].startswith("#"):
            yield "heading", [lines.pop(0).lstrip("# ")]
        if lines and all(line.startswith(("- ", "* ")) for line in lines):
            yield "list", [line[2:] for line in lines]
        elif lines:
            yield "paragraph", lines
