"""Pages and questions out of folders and files of records."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.complaints import one_line
from textenv.data.web_pages import SPLITS, Question, WebPage, read_pages, read_questions, split_of


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    return path


def words_of(page: WebPage) -> list[tuple[str, str]]:
    return [(page.text[start:end], url) for start, end, url in page.links]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.html").write_text(
        "<title>A</title><a href='sub/b.md#x'>one</a> <a href='sub/'>two</a> <a href='/sub/c.txt?q'>three</a>"
        "<a href='sub/b%2Emd'>four</a> <a href='#top'>self</a> <a href='http://a.html'>x</a> <a href='//a.html'>x</a>"
        "<a href='../../secret.txt'>x</a> <a href='javascript:x'>x</a> <a href='http://[x'>x</a><a href='no.html'>x</a>"
    )
    (folder / "sub" / "index.html").write_text("<a href=../a.html>up</a>")
    (folder / "sub" / "b.md").write_text('# B *page* #\n\nTo [a](../a.html "title"), ![x](c.txt) and [c](<c.txt>).\n')
    (folder / "sub" / "c.txt").write_text("Plain   [text](b.md)\n\n\n\nmore\n")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to("../secret.txt")
    (folder / "circle.txt").symlink_to("circle.txt")
    return folder


def test_a_folder(site: Path) -> None:
    pages = {page.url: page for page in read_pages(site)}
    assert list(pages) == ["a.html", "sub/b.md", "sub/c.txt", "sub/index.html"]
    assert {page.domain for page in pages.values()} == {"site"}
    assert words_of(pages["a.html"]) == [
        ("one", "sub/b.md"), ("two", "sub/index.html"), ("three", "sub/c.txt"), ("four", "sub/b.md"),
    ]  # fmt: skip
    assert words_of(pages["sub/index.html"]) == [("up", "a.html")]
    assert words_of(pages["sub/b.md"]) == [("a", "a.html"), ("c", "sub/c.txt")]
    assert [page.title for page in pages.values()] == ["A", "B *page*", "c", "index"]
    assert pages["sub/c.txt"].text == "Plain [text](b.md)\n\nmore"


def test_a_file_of_records(tmp_path: Path) -> None:
    path = write(
        tmp_path / "birds.jsonl",
        {
            "title": " Heron\n",
            "text": "bird, a bird",
            "links": [{"text": "bird", "url": "b"}, {"text": "bird", "url": "c"}],
        },
        {"title": "Bird", "text": "", "url": "https://b.example:80/x"},
    )
    heron, bird = read_pages(path)
    assert (heron.url, heron.title, heron.domain) == ("Heron", "Heron", "birds")
    assert heron.links == ((0, 4, "b"), (8, 12, "c"))
    assert (bird.url, bird.domain) == ("https://b.example:80/x", "b.example")
    (tmp_path / "birds.csv").write_text('title,text,links\nHeron,a bird,"[{""text"": ""bird"", ""url"": ""b""}]"\n')
    assert [page.links for page in read_pages(tmp_path / "birds.csv")] == [((2, 6, "b"),)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "title"),
        ({"title": " ", "text": "a"}, "not blank"),
        ({"title": "a"}, "text"),
        ({"title": "a", "text": 3}, "text"),
        ({"title": "a", "text": "b", "url": 3}, "url"),
        ({"title": "a", "text": "b", "links": "b"}, "links"),
        ({"title": "a", "text": "b", "links": [{"text": "c", "url": "d"}]}, "'c' is not in the page's text"),
        ({"title": "a", "text": "b", "links": [{"text": "b"}]}, "url of a link"),
    ],
)
def test_records_that_are_no_pages(row: Any, message: str, tmp_path: Path) -> None:
    with one_line(message):
        list(read_pages(write(tmp_path / "x.jsonl", row)))


def test_sources_that_are_none(tmp_path: Path) -> None:
    with one_line("no such file or folder"):
        read_pages(tmp_path / "none")
    with one_line("no pages in it; expected files of kind .html"):
        list(read_pages(tmp_path))
    (tmp_path / "x.txt").write_bytes(b"\xff")
    with one_line("not UTF-8"):
        list(read_pages(tmp_path))
    (tmp_path / "\udcff.txt").touch()
    with one_line("The name of a file in"):
        list(read_pages(tmp_path))


def test_questions(tmp_path: Path) -> None:
    path = write(
        tmp_path / "q.jsonl",
        {"question": "What?", "answers": ["this", "that"], "topic": "t"},
        {"question": "Who?", "answer": "she"},
    )
    assert list(read_questions(path)) == [Question("What?", ("this", "that"), "t"), Question("Who?", ("she",))]
    (tmp_path / "q.csv").write_text('question,answers\nWhat?,"[""this""]"\n')
    assert list(read_questions(tmp_path / "q.csv")) == [Question("What?", ("this",))]


@pytest.mark.parametrize(
    "row", [{"question": "a"}, {"question": " ", "answer": "b"}, {"question": "a", "answers": []},
            {"question": "a", "answers": "b"}, {"question": "a", "answers": [3]}, {"answer": "b"}],
)  # fmt: skip
def test_records_that_are_no_questions(row: Any, tmp_path: Path) -> None:
    with one_line("q.jsonl, line 1: "):
        list(read_questions(write(tmp_path / "q.jsonl", row)))


def test_splits_have_their_shares_and_follow_the_topic() -> None:
    counts = Counter(split_of(Question(f"What is {number}?", ("a",))) for number in range(4000))
    assert counts.keys() == SPLITS.keys()
    assert all(abs(counts[name] / 4000 - share) < 0.03 for name, share in SPLITS.items())
    assert split_of(Question("What is 1?", ("a",))) == split_of(Question(" what IS 1? ", ("b",)))
    assert {split_of(Question(str(number), ("a",), "one topic")) for number in range(50)} == {
        split_of(Question("One  topic", ("a",)))
    }
