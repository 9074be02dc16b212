"""A page as the browser shows it: in windows, its links marked, and nothing in it that could pass for such a mark."""

from __future__ import annotations

import bisect
import functools
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from textenv.data.offline_web import Found, Link, StoredPage

__all__ = ["Piece", "View", "escaped", "one_line", "page_view", "results_view", "without_links"]

_UNSHOWN = [
    *map(ord, "♦■【】†━"),  # the observation's own marks
    *range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0), 0x2028, 0x2029,  # control characters, and what ends lines
    0x061C, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF, *range(0xE0000, 0xE0080),
]  # fmt: skip
"""Characters that are not shown as they are; the last are not seen, or turn the text around."""
_LONGEST_TITLE, _LONGEST_DOMAIN = 200, 80  # characters that are shown
_ESCAPES = {code: rf"\u{code:04x}" for code in _UNSHOWN}
_SHOWN_LINK = re.compile("【[0-9]+†([^【】†]*)(?:†[^【】†]*)?】")
_ATOM = re.compile(r"\S{1,32}\s?|\s+")
_WORD = re.compile(r"\S+")
_SPACES = re.compile(r"\s")


def escaped(text: str) -> str:
    r"""Return a text in which characters that are marks of the observation, or are not seen, stand as ``\u2666``."""
    return text.translate(_ESCAPES)


def one_line(text: str, longest: int | None = None) -> str:
    """Return a text escaped, in one line, cut if it has more than ``longest`` characters."""
    line = escaped(" ".join(text.split()))
    return line if longest is None or len(line) <= longest else f"{line[: longest - 1]}…"


def without_links(text: str) -> str:
    """Return a text that was copied from the observation without the marks of its links."""
    return _SHOWN_LINK.sub(r"\1", text)


class Piece(NamedTuple):
    """A piece of a text.

    Attributes:
        text: What stands in it.
        link: The number of the link that it is; None if it is none.
        domain: Where the page is from that the link leads to; None if that is where the text is from.
    """

    text: str
    link: int | None = None
    domain: str | None = None


class View:
    """A page, or the results of a search, as the browser shows it. All its texts are escaped.

    Attributes:
        title: In one line.
        domain: Where it is from; ``""`` for the results of a search.
        text: Its text, without marks of links.
        links: In order; the place of each is its number in the observation.
        is_page: Whether it is a page, and not the results of a search.
    """

    def __init__(self, title: str, domain: str, text: str, links: Sequence[Link], *, is_page: bool) -> None:
        """Take it as it was stored; positions of links are those in ``text`` before it is escaped."""
        self.title, self.domain = one_line(title, _LONGEST_TITLE), one_line(domain, _LONGEST_DOMAIN)
        self.is_page = is_page
        domains = {domain: one_line(domain, _LONGEST_DOMAIN) for domain in {link.domain for link in links}}
        cuts = [0, *(cut for link in links for cut in (link.start, link.end)), len(text)]
        self.text = escaped(text)
        if len(self.text) > len(text):  # the links are elsewhere now
            parts = [len(escaped(text[start:end])) for start, end in itertools.pairwise(cuts)]
            cuts = [0, *itertools.accumulate(parts)]
        places = zip(links, cuts[1::2], cuts[2::2], strict=False)
        self.links = tuple(Link(start, end, link.target, domains[link.domain]) for link, start, end in places)
        self._starts = [link.start for link in self.links]

    def pieces(self, start: int, end: int) -> list[Piece]:
        """Return a stretch of the text in pieces: those of links, and what stands between them."""
        found, at = list[Piece](), start
        first = bisect.bisect_right(self._starts, start)
        if first and self.links[first - 1].end > start:
            first -= 1
        for number in range(first, bisect.bisect_left(self._starts, end)):
            link = self.links[number]
            begin, at_end = max(link.start, start), min(link.end, end)
            found += [Piece(self.text[at:begin]), Piece(self.text[begin:at_end], number, self._elsewhere(link))]
            at = at_end
        return [*found, Piece(self.text[at:end])]

    def shown(self, start: int, end: int) -> str:
        """Return a stretch of the text with its links marked."""
        return "".join(
            piece.text if piece.link is None else _marked(piece.link, piece.text, piece.domain)
            for piece in self.pieces(start, end)
        )

    def window_end(self, start: int, size: int) -> int:
        """Return where a window ends that begins at a place and shows about ``size`` characters, marks included."""
        end, room = start, size
        for atom in _ATOM.finditer(self.text, start):
            room -= self._cost(*atom.span())
            if room < 0 and end > start:
                break
            end = atom.end()
        return end

    def window_start(self, end: int, size: int) -> int:
        """Return where a window begins that ends at a place."""
        start, room = end, size
        for atom in reversed(list(_ATOM.finditer(self.text, max(0, end - size), end))):
            room -= self._cost(*atom.span())
            if room < 0 and start < end:
                break
            start = atom.start()
        return start

    def find(self, words: str, start: int) -> int:
        """Return where words stand in the text, at ``start`` or later, or else from its beginning; -1 for nowhere.

        Upper and lower case are the same, and all white space is.
        """
        wanted = _folded(words)
        found = self._text_folded.find(wanted, start)
        return self._text_folded.find(wanted) if found < 0 else found

    def extract(self, words: str) -> str:
        """Return the stretch of the text that reads like ``words``; ``"begin━end"`` is all from one to the other.

        Upper and lower case are the same, and white space is ignored. It is ``""`` if there is none.
        """
        begin, mark, end = ("".join(_folded(part).split()) for part in words.partition("━"))
        start = self._text_joined.find(begin)
        stop = start + len(begin)
        if not begin or start < 0 or (mark and not end):
            return ""
        if mark:
            last = self._text_joined.find(end, stop)
            if last < 0:
                return ""
            stop = last + len(end)
        return " ".join(self.text[self._place_of(start) : self._place_of(stop - 1) + 1].split())

    @functools.cached_property
    def _text_folded(self) -> str:
        return _folded(self.text)

    @functools.cached_property
    def _text_joined(self) -> str:
        """The folded text without white space."""
        return "".join(self._text_folded.split())

    def _place_of(self, joined: int) -> int:
        """Return the place in the text of a character, given its place in the text without white space."""
        passed = 0
        for word in _WORD.finditer(self.text):
            passed += len(word[0])
            if passed > joined:
                return word.end() - (passed - joined)
        raise IndexError(joined)

    def _cost(self, start: int, end: int) -> int:
        first, last = bisect.bisect_left(self._starts, start), bisect.bisect_left(self._starts, end)
        marks = sum(len(_marked(number, "", self._elsewhere(self.links[number]))) for number in range(first, last))
        return end - start + marks

    def _elsewhere(self, link: Link) -> str | None:
        """Return where the page is from that a link leads to; None if that is where this one is from."""
        return None if link.domain == self.domain else link.domain


def page_view(page: StoredPage) -> View:
    """Return a page as it is shown."""
    return View(page.title, page.domain, page.text, page.links, is_page=True)


def results_view(query: str, found: Sequence[Found]) -> View:
    """Return the results of a search as a page of links."""
    text, links = "", list[Link]()
    for result in found:
        title = " ".join(result.title.split())[:_LONGEST_TITLE] or "untitled"
        links.append(Link(len(text), len(text) + len(title), result.id, result.domain))
        text += f"{title}\n{' '.join(result.excerpt.split())}\n"
    return View(f"Search results for: {query}", "", text.rstrip("\n"), links, is_page=False)


def _marked(number: int, text: str, domain: str | None) -> str:
    return f"【{number}†{text}】" if domain is None else f"【{number}†{text}†{domain}】"


def _folded(text: str) -> str:
    """Return a text in lower case and with every white space as a blank, its characters in the same places."""
    lower = text.lower()
    if len(lower) != len(text):  # of a few letters, the lower case has two characters
        lower = "".join(low if len(low := letter.lower()) == 1 else letter for letter in text)
    return _SPACES.sub(" ", lower)
