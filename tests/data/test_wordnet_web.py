"""WordNet as a web, on lines of its form that were written for the tests of its reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.test_wordnet import FILES
from textenv.data import wordnet_web as module
from textenv.data.offline_web import open_web
from textenv.data.web_pages import Question
from textenv.data.wordnet import WordNet, read_wordnet
from textenv.data.wordnet_web import expanded, quiz_questions, wordnet_pages, wordnet_questions, wordnet_web


@pytest.fixture
def net(tmp_path: Path) -> WordNet:
    (tmp_path / "dict").mkdir()
    for name, text in FILES.items():
        (tmp_path / "dict" / name).write_text(text)
    return read_wordnet(tmp_path / "dict")


def test_a_page_has_the_links_of_its_synset(net: WordNet) -> None:
    pages = {page.url: page for page in wordnet_pages(net)}
    heron = pages["n00000003"]
    assert heron.title == "heron"
    assert heron.text == (
        "heron: gray wader | with a long neck\nKind of: wading bird\nInstance of: thing\n"
        "Example: a heron stood in the pond\nExample: two herons"
    )
    assert [(heron.text[start:end], url) for start, end, url in heron.links] == [
        ("wading bird", "n00000002"), ("thing", "n00000001"),
    ]  # fmt: skip
    assert pages["n00000002"].text.splitlines()[0] == "wading bird, wader: a bird that walks in water"


def test_questions_for_words_and_kinds(net: WordNet) -> None:
    found = list(wordnet_questions(net))
    assert Question("Which word means: gray wader | with a long neck?", ("heron",), "n00000003") in found
    assert Question("What is wading bird a kind of?", ("thing",), "n00000002") in found
    assert not any("Which word means: a bird that" in each.question for each in found)  # which says "bird"
    assert not any("heron a kind" in each.question for each in found)  # it has several senses
    assert len(list(wordnet_questions(net, most=1))) == 2


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("Paris", ("Paris",)),
        ("[St.|Saint] John's", ("Saint John's", "St. John's")),
        ("Alabama|Ala|AL", ("Alabama", "Ala", "AL")),
        ("{J{ohn} }Adams", ("John Adams", "J Adams", "Adams")),
        ("a\\|b", ("a|b",)),
        ("W[illia|]m {I", ("William I", "William", "Wm I", "Wm")),
        ("", ("",)),
    ],
)
def test_patterns_of_quiz(pattern: str, texts: tuple[str, ...]) -> None:
    assert expanded(pattern) == texts
    assert len(expanded("{a}" * 40)) <= 64


def test_questions_of_quiz_lists_are_those_that_wordnet_may_answer(net: WordNet, tmp_path: Path) -> None:
    (tmp_path / "africa").write_text("Land|The Land:{The }Heron|No\x08'e\nOther:Nowhere\nBad\nLong:\\\nwade\n")
    (tmp_path / "elements").write_text("He:2:4.003:Heron\n")
    found = list(quiz_questions([(name, tmp_path / name) for name in ("africa", "elements")], net))
    assert [(each.question, each.answers) for each in found] == [
        ("What is the capital of The Land?", ("The Heron", "Heron")),
        ("What is the capital of Long?", ("wade",)),
        ("Which chemical element has the symbol He?", ("Heron",)),
        ("Which chemical element has the atomic number 2?", ("Heron",)),
    ]
    assert len({each.topic for each in found}) == 3


def test_it_is_made_once(net: WordNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTENV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "load_wordnet", lambda: net)
    monkeypatch.setattr(module, "_load_lists", list)
    path = wordnet_web()
    web = open_web(path)
    assert [each.title for each in web.search("a wader with a neck", 1)] == ["heron"]
    assert len(list(web.questions())) == len(list(wordnet_questions(net)))
    monkeypatch.setattr(module, "load_wordnet", None)
    assert wordnet_web() == path
