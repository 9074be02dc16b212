"""An offline web: pages, the links between them and questions about them, in one SQLite file with a full-text index.

Search ranks pages by BM25 (Robertson and Zaragoza 2009), words being stemmed, and those of titles counting more.
"""

from __future__ import annotations

import itertools
import os
import re
import sqlite3
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from textenv.data.files import parse_json, replacing, to_json
from textenv.data.web_pages import Question, WebPage
from textenv.types import TextEnvError, short

__all__ = ["Found", "Link", "Sizes", "StoredPage", "Web", "open_web", "write_web"]

_APPLICATION, _VERSION = 0x74657762, 1
_TITLE_WEIGHT = 4.0
_MOST_WORDS = 32  # of a query
_COMMON = 5000  # pages; a word that stands in as many is common
_TEXTS = "CAST(pages.title AS TEXT), CAST(domain AS TEXT)"
_SCHEMA = """
CREATE TABLE pages (id INTEGER PRIMARY KEY, url TEXT NOT NULL UNIQUE, title TEXT NOT NULL, domain TEXT NOT NULL,
                    text TEXT NOT NULL);
CREATE TABLE links (page INTEGER NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL, target INTEGER NOT NULL,
                    PRIMARY KEY (page, start)) WITHOUT ROWID;
CREATE TABLE questions (id INTEGER PRIMARY KEY, question TEXT NOT NULL, answers TEXT NOT NULL, topic TEXT NOT NULL);
CREATE VIRTUAL TABLE search USING fts5(title, text, content='pages', content_rowid='id',
                                       tokenize='porter unicode61 remove_diacritics 2');
CREATE TEMP TABLE wanted (page INTEGER, start INTEGER, stop INTEGER, url TEXT);
"""


class Link(NamedTuple):
    """A link of a page.

    Attributes:
        start: Where it begins in the page's text.
        end: Where it ends.
        target: The number of the page that it leads to.
        domain: Of that page.
    """

    start: int
    end: int
    target: int
    domain: str


class StoredPage(NamedTuple):
    """A page as it was put into the web.

    Attributes:
        id: Its number.
        title: In one line.
        domain: Where it is from.
        text: Its text.
        links: In order, without overlaps.
    """

    id: int
    title: str
    domain: str
    text: str
    links: tuple[Link, ...]


class Found(NamedTuple):
    """A page that a search has found.

    Attributes:
        id: Its number.
        title: In one line.
        domain: Where it is from.
        excerpt: The words of its text around those that were searched.
    """

    id: int
    title: str
    domain: str
    excerpt: str


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much a web holds.

    Attributes:
        pages: Number of pages.
        links: Number of links between them.
        questions: Number of questions.
    """

    pages: int
    links: int
    questions: int


def write_web(path: Path, pages: Iterable[WebPage], questions: Iterable[Question] = ()) -> Sizes:
    """Write an offline web, which is whole or, if anything is wrong with it, as it was before.

    Args:
        path: The file.
        pages: At least one; in the order in which they are numbered. They are not kept in memory.
        questions: Questions about them.

    Raises:
        TextEnvError: There is no page, two have the same ``url``, or the file cannot be written.
    """
    with replacing(path) as temporary:
        connection = sqlite3.connect(temporary, isolation_level=None)
        try:
            connection.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {_SCHEMA} BEGIN")
            _insert_pages(connection, path, pages)
            _insert_questions(connection, questions)
            connection.execute("INSERT INTO search (search) VALUES ('rebuild')")
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {_VERSION}")
            connection.execute("COMMIT")
            counts = (_count(connection, table) for table in ("pages", "links", "questions"))
            return Sizes(*counts)
        except sqlite3.Error as error:
            raise TextEnvError(f"{path}: cannot be written ({error}).") from error
        finally:
            connection.close()


def _insert_pages(connection: sqlite3.Connection, path: Path, pages: Iterable[WebPage]) -> None:
    number = 0
    for number, page in enumerate(pages, start=1):
        row = (number, page.url, page.title, page.domain, page.text)
        try:
            connection.execute("INSERT INTO pages VALUES (?, ?, ?, ?, ?)", row)
        except sqlite3.IntegrityError as error:
            raise TextEnvError(f"Two pages have the url {short(page.url)}; expected another for each.") from error
        links = [(number, start, stop, url) for start, stop, url in page.links]
        connection.executemany("INSERT INTO wanted VALUES (?, ?, ?, ?)", links)
    if not number:
        raise TextEnvError(f"{path}: no pages to write; expected at least one.")
    connection.execute(
        "INSERT INTO links SELECT page, start, stop, id FROM wanted JOIN pages USING (url) WHERE id != page"
    )


def _insert_questions(connection: sqlite3.Connection, questions: Iterable[Question]) -> None:
    rows = ((each.question, to_json(each.answers), each.topic) for each in questions)
    connection.executemany("INSERT INTO questions (question, answers, topic) VALUES (?, ?, ?)", rows)


def _count(connection: sqlite3.Connection, table: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


class Web:
    """An offline web, open for reading.

    Attributes:
        path: Its file.
    """

    def __init__(self, path: Path) -> None:
        """Open it.

        Args:
            path: A file that ``write_web`` has written.

        Raises:
            TextEnvError: There is no such file, or it is no offline web of this version.
        """
        self.path = path
        self._lock = threading.Lock()
        self._connect()
        marks = [self._all(f"PRAGMA {name}")[0][0] for name in ("application_id", "user_version")]
        if marks != [_APPLICATION, _VERSION]:
            raise self._refused(f"its marks are {marks}, not {[_APPLICATION, _VERSION]}")

    def page(self, number: int) -> StoredPage:
        """Return a page.

        Raises:
            TextEnvError: There is none of this number, or the file is damaged.
        """
        rows = self._all(f"SELECT id, {_TEXTS}, CAST(text AS TEXT) FROM pages WHERE id = ?", number)
        if not rows:
            raise self._refused(f"there is no page number {number}")
        links = self._all(
            "SELECT start, stop, target, CAST(domain AS TEXT) FROM links JOIN pages ON id = target WHERE page = ? "
            "ORDER BY start",
            number,
        )
        kept, end = list[Link](), 0
        for link in itertools.starmap(Link, links):
            if end <= link.start < link.end <= len(rows[0][-1]):
                kept.append(link)
                end = link.end
        _, title, domain, text = rows[0]
        return StoredPage(number, title, domain, text, tuple(kept))

    def search(self, query: str, limit: int) -> list[Found]:
        """Return the pages in which words of a query stand, best first.

        Args:
            query: Words; everything else in it is ignored.
            limit: The most pages.

        Raises:
            TextEnvError: The file is damaged.
        """
        words = self._rare(dict.fromkeys(re.findall(r"[^\W_]+", query.lower())))[:_MOST_WORDS]
        if not words:
            return []
        rows = self._all(
            f"SELECT id, {_TEXTS}, snippet(search, 1, '', '', '…', 16) FROM search JOIN pages ON id = search.rowid "
            "WHERE search MATCH ? ORDER BY bm25(search, ?), id LIMIT ?",
            " OR ".join(f'"{word}"' for word in words),
            _TITLE_WEIGHT,
            limit,
        )
        return [Found(*row) for row in rows]

    def _rare(self, words: Iterable[str]) -> list[str]:
        """Return words without the common ones, which take long and tell pages little apart; all if all are common."""
        found = list(words)
        counted = "SELECT count(*) FROM (SELECT 1 FROM search WHERE search MATCH ? LIMIT ?)"
        rare = [word for word in found if self._all(counted, f'"{word}"', _COMMON)[0][0] < _COMMON]
        return rare or found

    def questions(self) -> Iterator[Question]:
        """Yield the questions that were put into it.

        Raises:
            TextEnvError: The file is damaged.
        """
        what = f"{self.path}: the answers of a question"
        for text, answers, topic in self._all("SELECT question, answers, topic FROM questions ORDER BY id"):
            yield Question(str(text), tuple(map(str, parse_json(answers, what))), str(topic))

    def close(self) -> None:
        """Close the file."""
        self._close()

    def _connect(self) -> None:
        try:
            address = f"{self.path.resolve().as_uri()}?mode=ro&immutable=1"
            self._connection = sqlite3.connect(address, uri=True, check_same_thread=False)
            self._connection.execute("PRAGMA trusted_schema = OFF")
        except (sqlite3.Error, OSError, ValueError) as error:
            raise self._refused(error) from error
        self._close = weakref.finalize(self, self._connection.close)
        self._process = os.getpid()

    def _all(self, sql: str, *values: Any) -> list[Any]:
        """Return all rows of a query."""
        with self._lock:
            if self._process != os.getpid():  # after a fork, two processes would share one place in the file
                self._connect()
            try:
                return self._connection.execute(sql, values).fetchall()
            except sqlite3.Error as error:
                raise self._refused(error) from error

    def _refused(self, reason: object) -> TextEnvError:
        if not self.path.exists():
            reason = f"no such file, looked in {Path.cwd()}"
        return TextEnvError(
            f"{self.path}: cannot be read as an offline web ({reason}). Expected a file that this version has written: "
            "textenv browse index SOURCE with this file as the output."
        )


_opened: weakref.WeakValueDictionary[tuple[Any, ...], Web] = weakref.WeakValueDictionary()
_opening = threading.Lock()


def open_web(path: Path) -> Web:
    """Return an offline web; as long as it is in use and its file is the same, it is opened once.

    Raises:
        TextEnvError: As ``Web``.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):  # a NUL in the path is a ValueError
        return Web(path)
    key = (path.resolve(), status.st_ino, status.st_mtime_ns, os.getpid())
    with _opening:
        if (found := _opened.get(key)) is None:
            found = _opened[key] = Web(path)
        return found
