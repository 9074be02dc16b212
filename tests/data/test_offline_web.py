"""Offline webs: what was put in comes out, and what is none is refused."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.complaints import one_line
from tests.webs import PAGES, QUESTIONS, small_web
from textenv.data import offline_web
from textenv.data.offline_web import Link, Sizes, Web, open_web, write_web
from textenv.data.web_pages import WebPage


@pytest.fixture
def web(tmp_path: Path) -> Web:
    return open_web(small_web(tmp_path))


def test_what_was_written_is_read(web: Web) -> None:
    heron = web.page(1)
    assert heron == (1, "Heron", "birds.example", PAGES[0].text, (Link(20, 24, 2, "birds.example"),))
    assert web.page(3).links == (Link(27, 32, 1, "birds.example"),)
    assert tuple(web.questions()) == QUESTIONS
    with one_line("there is no page number 5"):
        web.page(5)


def test_links_that_lead_nowhere_or_to_their_own_page_are_none(tmp_path: Path) -> None:
    pages = [WebPage("a", "A", "x y z", ((0, 1, "a"), (2, 3, "gone"), (4, 5, "b"))), WebPage("b", "B", "x")]
    assert write_web(tmp_path / "web", pages) == Sizes(2, 1, 0)
    assert open_web(tmp_path / "web").page(1).links == (Link(4, 5, 2, ""),)


@pytest.mark.parametrize(
    ("query", "titles"),
    [
        ("heron", ["Heron", "Bird", "Fish"]),
        ("HERONS eating", ["Heron", "Fish", "Bird"]),
        ("feathers", ["Bird"]),
        ("what is féathers NOT (x) \"y* ♦ text:heron^2 -'", ["Heron", "Bird", "Fish"]),
        ("word7 word8", ["Long page"]),
        ("nothing of this", []),
        ('♦ \x00 " * ()', []),
        ("", []),
    ],
)
def test_search_ranks_by_words_and_takes_any_text(query: str, titles: list[str], web: Web) -> None:
    found = web.search(query, 3)
    assert [each.title for each in found] == titles or {each.title for each in found} == set(titles)
    assert all(each.excerpt for each in found)
    assert web.search(query, 1) == found[:1]


def test_it_ranks_by_bm25(tmp_path: Path) -> None:
    texts = ["heron", "heron heron heron", "heron and many other words about other things", "nothing", "none"]
    write_web(tmp_path / "web", [WebPage(str(n), f"T{n}", text) for n, text in enumerate(texts)])
    assert [each.title for each in open_web(tmp_path / "web").search("heron", 9)] == ["T1", "T0", "T2"]


def test_common_words_are_not_searched_beside_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline_web, "_COMMON", 3)
    web = open_web(small_web(tmp_path))
    assert [each.title for each in web.search("a heron feathers", 9)] == ["Bird"]
    assert len(web.search("a heron", 9)) == 3


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = small_web(tmp_path)
    before = path.read_bytes()
    with one_line("Two pages have the url 'heron'"):
        write_web(path, [PAGES[0], PAGES[0]])
    with one_line("no pages to write"):
        write_web(path, [])

    def stopped() -> Iterator[WebPage]:
        yield PAGES[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_web(path, stopped())
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["web.sqlite"]


def test_it_is_opened_once_until_it_changes(tmp_path: Path) -> None:
    one = open_web(small_web(tmp_path))
    assert open_web(tmp_path / "web.sqlite") is one
    other = open_web(small_web(tmp_path, pages=PAGES[1:]))
    assert other is not one
    assert (one.page(1).title, other.page(1).title) == ("Heron", "Bird")


def test_a_process_that_was_forked_opens_it_again(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    before = web._connection
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert web.page(1).title == "Heron"
    assert web._connection is not before


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\x00" + b"\xff" * 2000])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "web.sqlite"
    path.write_bytes(content)
    with one_line("cannot be read as an offline web"):
        open_web(path)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path, Path("a\0b")):
        with one_line("cannot be read as an offline web"):
            open_web(path)


def test_a_file_that_was_tampered_with(tmp_path: Path) -> None:
    path = small_web(tmp_path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE pages SET title = x'ff', text = 5 WHERE id = 1")
        connection.execute("INSERT INTO links VALUES (2, 0, 9999, 1), (2, 26, 28, 1), (2, -5, 3, 1)")
        connection.execute("UPDATE questions SET answers = '[' WHERE id = 1")
    connection.close()
    web = open_web(path)
    assert [(link.start, link.end) for link in web.page(2).links] == [(25, 30)]
    with one_line("cannot be read as an offline web"):
        web.page(1)
    with one_line("is no JSON"):
        list(web.questions())
