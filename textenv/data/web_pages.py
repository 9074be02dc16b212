"""Pages and questions, read from files to be put into an offline web (``textenv.data.offline_web``)."""

from __future__ import annotations

import hashlib
import itertools
import os
import posixpath
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from textenv.data.html_pages import Reading, TextBuilder, decode_html, read_html
from textenv.data.records import RECORD_KINDS, json_cells, read_records, read_text
from textenv.data.values import as_mappings, as_text, short
from textenv.types import TextEnvError

__all__ = ["PAGE_KINDS", "SPLITS", "Question", "WebPage", "read_pages", "read_questions", "split_of"]

_HTML, _MARKDOWN, _TEXT = (".html", ".htm", ".xhtml"), (".md", ".markdown"), (".txt",)
PAGE_KINDS = (*_HTML, *_MARKDOWN, *_TEXT)
"""Files of a folder that are pages."""
SPLITS = {"demonstrations": 0.3, "comparisons": 0.2, "train": 0.3, "heldout": 0.2}
"""Disjoint shares of the questions: for cloning, for a reward model, for reinforcement learning, and for measuring."""
_MARKDOWN_LINK = re.compile(r"(?<!!)\[([^\[\]]{1,500})\]\(\s*<?([^()\s<>]{1,2000})>?(?:\s+\"[^\"]{0,500}\")?\s*\)")
_MARKDOWN_TITLE = re.compile(r"^#[ \t]+(\S.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class WebPage:
    """A page of an offline web.

    Attributes:
        url: What links to it name; no two pages have the same.
        title: What it is called.
        text: Its text.
        links: Where each link begins and ends in the text, in order and without overlaps, and the ``url`` that it leads
            to. One that leads to no page of the web is no link there.
        domain: Where it is from, such as ``"en.wikipedia.org"``.
    """

    url: str
    title: str
    text: str
    links: tuple[tuple[int, int, str], ...] = ()
    domain: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with known answers.

    Attributes:
        question: The question.
        answers: Each of them is right.
        topic: Questions with one topic are never divided between splits; ``""`` for the question itself.
    """

    question: str
    answers: tuple[str, ...]
    topic: str = ""


def split_of(question: Question) -> str:
    """Return which of ``SPLITS`` a question belongs to: a function of its topic alone, whatever file it is in."""
    named = " ".join((question.topic or question.question).casefold().split())
    place = int.from_bytes(hashlib.sha256(named.encode()).digest()[:8], "big") / 2**64
    ends = itertools.accumulate(SPLITS.values())
    return next(name for name, end in zip(SPLITS, ends, strict=True) if place < end or name == "heldout")


def read_pages(source: Path) -> Iterator[WebPage]:
    """Yield the pages of a folder, or of a file of records.

    A folder's files of HTML, Markdown and plain text are pages, named by their paths in it; links to others of the same
    folder are kept. A record has the texts ``title`` and ``text``, may have a ``url`` (else the title is taken), and
    ``links``, a list of objects with ``text``, which is looked up in the record's text, and ``url``.

    Args:
        source: The folder or file.

    Raises:
        TextEnvError: There is none, it holds no pages, or one cannot be read.
    """
    if source.is_dir():
        return _folder_pages(source)
    if not source.exists():
        raise TextEnvError(
            f"{source}: no such file or folder (looked in {Path.cwd()}); expected a folder of pages "
            f"({', '.join(PAGE_KINDS)}) or a file of records ({', '.join(RECORD_KINDS)})."
        )
    return _record_pages(source)


def read_questions(path: Path) -> Iterator[Question]:
    """Yield the questions of a file of records: ``question``, ``answers`` (or ``answer``), and ``topic`` if it likes.

    Raises:
        TextEnvError: The file cannot be read, or a record is no question with an answer.
    """
    for where, row in read_records(path, what="questions"):
        try:
            yield _question(json_cells(row, ("answers",)) if path.suffix.lower() == ".csv" else row)
        except TextEnvError as error:
            raise TextEnvError(f"{where}: {error}") from error


def _question(row: Mapping[str, Any]) -> Question:
    answers = row.get("answers")
    if answers is None and row.get("answer") is not None:
        answers = [row["answer"]]
    if not isinstance(answers, list | tuple) or not answers:
        raise TextEnvError(f"answers is {short(answers)}; expected a list of texts, at least one.")
    texts = tuple(_filled(answer, "an answer") for answer in answers)
    return Question(_filled(row.get("question"), "question"), texts, as_text(row.get("topic") or "", "topic"))


def _filled(value: Any, name: str) -> str:
    text = as_text(value, name)
    if not text.strip():
        raise TextEnvError(f"{name} is {short(value)}; expected a text that is not blank.")
    return text


# A folder


def _folder_pages(folder: Path) -> Iterator[WebPage]:
    paths = _page_files(folder)
    if not paths:
        raise TextEnvError(f"{folder}: no pages in it; expected files of kind {', '.join(PAGE_KINDS)}.")
    domain = folder.resolve().name
    for url in paths:
        reading = _read_file(folder / url)
        links = ((start, end, _target(url, href, paths)) for start, end, href in reading.links)
        kept = tuple((start, end, target) for start, end, target in links if target)
        yield WebPage(url, reading.title or Path(url).stem, reading.text, kept, domain)


def _page_files(folder: Path) -> dict[str, None]:
    """Return the pages' paths in their folder, sorted; links out of the folder are not followed."""
    root, found = folder.resolve(), []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.suffix.lower() in PAGE_KINDS and path.is_file() and path.resolve().is_relative_to(root):
                found.append(as_text(path.relative_to(folder).as_posix(), f"The name of a file in {folder}"))
    return dict.fromkeys(sorted(found))


def _read_file(path: Path) -> Reading:
    if path.suffix.lower() in _HTML:
        return read_html(decode_html(path.read_bytes()))
    text = read_text(path)
    return _read_markdown(text) if path.suffix.lower() in _MARKDOWN else _read_plain(text)


def _read_plain(text: str) -> Reading:
    builder = TextBuilder()
    builder.add(text, keep_lines=True)
    return Reading("", *builder.result())


def _read_markdown(text: str) -> Reading:
    """Return a text of Markdown as it is written, but for its links."""
    builder, end = TextBuilder(), 0
    for link in _MARKDOWN_LINK.finditer(text):
        builder.add(text[end : link.start()], keep_lines=True)
        builder.begin_link(link[2])
        builder.add(link[1])
        builder.end_link()
        end = link.end()
    builder.add(text[end:], keep_lines=True)
    title = _MARKDOWN_TITLE.search(text)
    return Reading(title[1].strip("# ") if title else "", *builder.result())


def _target(url: str, href: str, known: Collection[str]) -> str:
    """Return the path of the page that a link of another page leads to, ``""`` if there is none in the folder."""
    try:
        parts = urlsplit(href.strip())
    except ValueError:
        return ""
    if parts.scheme or parts.netloc or not parts.path:
        return ""
    path = posixpath.normpath(posixpath.join("/", posixpath.dirname(url), unquote(parts.path))).lstrip("/")
    return next((each for each in (path, posixpath.join(path, "index.html")) if each in known), "")


# A file of records


def _record_pages(path: Path) -> Iterator[WebPage]:
    for where, row in read_records(path, what="pages"):
        try:
            yield _page(json_cells(row, ("links",)) if path.suffix.lower() == ".csv" else row, path.stem)
        except TextEnvError as error:
            raise TextEnvError(f"{where}: {error}") from error


def _page(row: Mapping[str, Any], domain: str) -> WebPage:
    title = " ".join(_filled(row.get("title"), "title").split())
    url = title if row.get("url") is None else _filled(row["url"], "url")
    text, _ = _read_plain(as_text(row.get("text"), "text"))[1:]
    wanted = [
        (_filled(link.get("text"), "the text of a link"), as_text(link.get("url"), "the url of a link"))
        for link in as_mappings(row.get("links"), "links")
    ]
    return WebPage(url, title, text, _links(text, wanted), _host(url) or domain)


def _links(text: str, wanted: list[tuple[str, str]]) -> tuple[tuple[int, int, str], ...]:
    """Return where texts stand that are to be links: each at the first place that is not another link's."""
    covered, behind, found = bytearray(len(text)), dict[str, int](), list[tuple[int, int, str]]()
    for words, url in wanted:
        start = text.find(words, behind.get(words, 0))
        while start >= 0 and covered.find(1, start, start + len(words)) >= 0:
            start = text.find(words, start + 1)
        if start < 0:
            raise TextEnvError(f"the link {short(words)} is not in the page's text; expected words of the text.")
        end = behind[words] = start + len(words)
        covered[start:end] = b"\1" * len(words)
        found.append((start, end, url))
    return tuple(sorted(found))


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
