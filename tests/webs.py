"""A small offline web, for tests."""

from __future__ import annotations

from pathlib import Path

from textenv.data.offline_web import write_web
from textenv.data.web_pages import Question, WebPage

PAGES = (
    WebPage("heron", "Heron", "A heron is a wading bird.\nIt eats fish.", ((20, 24, "bird"),), "birds.example"),
    WebPage("bird", "Bird", "A bird has feathers. The heron is one.", ((25, 30, "heron"),), "birds.example"),
    WebPage("fish", "Fish", "A fish lives in water; the heron eats it.", ((27, 32, "heron"),), "fish.example"),
    WebPage("long", "Long page", " ".join(f"word{number}" for number in range(300)), (), "long.example"),
)
QUESTIONS = (
    Question("What does a heron eat?", ("fish",)),
    Question("What has feathers?", ("bird", "a bird")),
    Question("What is on the moon?", ("cheese",)),
)


def small_web(folder: Path, pages: tuple[WebPage, ...] = PAGES, questions: tuple[Question, ...] = QUESTIONS) -> Path:
    """Write a web into a folder; return its file."""
    path = folder / "web.sqlite"
    write_web(path, pages, questions)
    return path
