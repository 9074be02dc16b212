"""What there is to read on a page of HTML: its title, its text, and which stretches of the text are links.

The markup comes from anywhere. Nothing of it is run, and reading it takes time in proportion to its length: before
``html.parser`` gets it, whatever that would search to the end of the page again and again is taken out.
"""

from __future__ import annotations

import codecs
import re
from html.parser import HTMLParser
from typing import NamedTuple

__all__ = ["Reading", "TextBuilder", "decode_html", "read_html"]

_SPACE, _LINE, _PARAGRAPH = 1, 2, 3
_GAPS = {_SPACE: " ", _LINE: "\n", _PARAGRAPH: "\n\n"}
_SKIPPED = frozenset({"template", "svg", "iframe", "object", "script", "style"})
_BLOCKS = frozenset({
    "address", "article", "aside", "blockquote", "body", "br", "caption", "dd", "details", "div", "dl", "dt",
    "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header",
    "hr", "li", "main", "nav", "ol", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul",
})  # fmt: skip
_CELLS = frozenset({"td", "th"})

_UNREAD = re.compile(
    r"<(?P<raw>script|style)(?=[\s/>]).*?(?:</(?P=raw)(?=[\s/>])|\Z)[^>]*>?"  # up to their own end tag
    r"|<!--.*?(?:-->|\Z)"
    r"|<[!?][^>]*(?:>|\Z)"  # declarations and instructions
    r"|<(?![a-zA-Z/])",  # a sign that begins no tag
    re.DOTALL | re.IGNORECASE,
)
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w-]{1,40})", re.IGNORECASE)
_CHARSETS = re.compile(r"us-ascii|iso-8859-\d+|windows-125\d|koi8-[ru]|shift_jis|euc-(jp|kr)|gb(2312|k|18030)|big5")


class Reading(NamedTuple):
    """What was read of a page.

    Attributes:
        title: In one line; ``""`` where the page says none.
        text: Its text, lines ended by a line break.
        links: Where each link begins and ends in the text, in order and without overlaps, and what it leads to, as the
            page writes it.
    """

    title: str
    text: str
    links: tuple[tuple[int, int, str], ...]


class TextBuilder:
    """Puts a text together: white space in a row becomes one space or line break, and links are noted."""

    def __init__(self) -> None:
        """Begin an empty text."""
        self._parts: list[str] = []
        self._length, self._gap = 0, 0
        self._href, self._start = "", -1
        self._links: list[tuple[int, int, str]] = []

    def add(self, data: str, *, keep_lines: bool = False) -> None:
        """Add text.

        Args:
            data: The text.
            keep_lines: Whether its line breaks stay; two or more in a row become an empty line.
        """
        for part in re.split(r"(\s+)", data):
            if part.isspace():
                breaks = part.count("\n") if keep_lines else 0
                self._gap = max(self._gap, min(_SPACE + breaks, _PARAGRAPH))
            elif part:
                self._add_word(part)

    def end_line(self) -> None:
        """Let what follows begin on a new line."""
        self._gap = max(self._gap, _LINE)

    def begin_link(self, href: str) -> None:
        """Let what follows be a link."""
        self.end_link()
        self._href = href

    def end_link(self) -> None:
        """Let what follows be no link."""
        if self._start >= 0:
            self._links.append((self._start, self._length, self._href))
        self._href, self._start = "", -1

    def result(self) -> tuple[str, tuple[tuple[int, int, str], ...]]:
        """Return the text and its links."""
        self.end_link()
        return "".join(self._parts), tuple(self._links)

    def _add_word(self, word: str) -> None:
        if self._gap and self._length:
            self._parts.append(_GAPS[self._gap])
            self._length += len(_GAPS[self._gap])
        self._gap = 0
        if self._href and self._start < 0:
            self._start = self._length
        self._parts.append(word)
        self._length += len(word)


class _Reader(HTMLParser):
    """Follows the tags of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title, self.heading, self.body = TextBuilder(), TextBuilder(), TextBuilder()
        self._inside = dict.fromkeys((*_SKIPPED, "title", "h1", "pre"), 0)
        self._headings = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self._inside:
            self._inside[tag] += 1
        self._headings += tag == "h1"
        self._separate(tag)
        if tag == "a":
            self.body.begin_link(next((value or "" for name, value in attrs if name == "href"), ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _SKIPPED:  # <svg/> has no end that would be waited for
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._inside:
            self._inside[tag] = max(0, self._inside[tag] - 1)
        self._separate(tag)
        if tag == "a":
            self.body.end_link()

    def handle_data(self, data: str) -> None:
        if self._is_skipped():
            return
        if self._inside["title"]:
            self.title.add(data)
            return
        if self._inside["h1"] and self._headings == 1:
            self.heading.add(data)
        self.body.add(data, keep_lines=self._inside["pre"] > 0)

    def _is_skipped(self) -> bool:
        return any(self._inside[tag] for tag in _SKIPPED)

    def _separate(self, tag: str) -> None:
        if self._is_skipped():
            return
        if tag in _BLOCKS:
            self.body.end_line()
        elif tag in _CELLS:
            self.body.add(" ")


def read_html(markup: str) -> Reading:
    """Return what there is to read on a page: without scripts, styles, comments and pictures.

    Args:
        markup: HTML, as broken as it may be. A tag that is not closed before the page ends is left out.
    """
    reader = _Reader()
    reader.feed(_readable(markup))
    reader.close()
    title = reader.title.result()[0] or reader.heading.result()[0]
    text, links = reader.body.result()
    return Reading(" ".join(title.split()), text, links)


def decode_html(data: bytes) -> str:
    """Return the text of a file of HTML: in the encoding that it declares, or else UTF-8; other bytes become U+FFFD."""
    if data.startswith(codecs.BOM_UTF8):
        return data.decode("utf-8-sig", errors="replace")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    found = _CHARSET.search(data[:4096])
    declared = found[1].decode().lower() if found else ""
    return data.decode(declared if _CHARSETS.fullmatch(declared) else "utf-8", errors="replace")


def _readable(markup: str) -> str:
    """Return markup without what is not read, in which every tag is closed."""
    kept = _UNREAD.sub(lambda found: "&lt;" if found[0] == "<" else " " if found["raw"] else "", markup)
    end = kept.find("<", kept.rfind(">") + 1)
    return kept if end < 0 else kept[:end]
