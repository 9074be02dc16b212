"""Texts with summaries: those that come with textenv, and those of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from textenv import TextEnvError
from textenv.data.descriptions import split_of
from textenv.data.summaries import SummaryData, few_descriptions

ROWS = [
    {"id": number, "article": f"Article {number} says much.", "abstract": f"It says {number}."} for number in range(30)
]
COLUMNS: dict[str, Any] = {"text_column": "article", "reference_column": "abstract"}


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "articles.jsonl"
    path.write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in ROWS))
    return str(path)


def test_the_few_fill_every_split() -> None:
    found = few_descriptions()
    assert len({each.package for each in found}) == len({each.text for each in found}) == len(found) == 32
    sizes = {split: len(SummaryData(data="few", split=split).rows()) for split in ("train", "judge", "heldout")}
    assert sizes == {"train": 15, "judge": 13, "heldout": 4}
    (first, *_) = SummaryData(data="few", split="all").prompts()
    assert first == {
        "prompt": f"SECTION: {found[0].section}\nPACKAGE: {found[0].package}\nDESCRIPTION: {found[0].text}\nTL;DR:",
        "text": found[0].text,
        "reference": found[0].synopsis,
    }


def test_a_file_with_columns_of_its_own(file: str) -> None:
    rows = SummaryData(data=file, split="all", template="{id}: {article} =", **COLUMNS).prompts()
    assert rows[3] == {"prompt": "3: Article 3 says much. =", "text": ROWS[3]["article"], "reference": "It says 3."}
    assert SummaryData(data=file, split="all", **COLUMNS).prompts()[3]["prompt"] == f"{ROWS[3]['article']}\n\nTL;DR:"
    train = SummaryData(data=file, **COLUMNS).rows()
    assert [row["text"] for row in train] == [r["article"] for r in ROWS if split_of(str(r["article"])) == "train"]


def test_a_template_inserts_each_value_once_and_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "{reference} {0} {text.__class__}", "reference": "r"}\n')
    (row,) = SummaryData(data=str(path), split="all", template="{text}{}|{{reference}}").prompts()
    assert row["prompt"] == "{reference} {0} {text.__class__}{}|{r}"


def test_rows_of_a_group_stay_together(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    rows = [{"text": f"text {n}", "reference": "r", "book": "one"} for n in range(20)]
    path.write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    assert len(SummaryData(data=str(path), split=split_of("one"), group_column="book").rows()) == 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "test"}, "split='test': expected"),
        ({"data": ""}, "data='': expected a text that is not empty"),
        ({"max_characters": 0}, "max_characters=0: expected a whole number of at least 1"),
        (
            {"data": "few", "max_characters": 3},
            "15 of its 32 rows are in the split 'train', none with a text of at most 3",
        ),
        ({"data": "few", "template": "{txt}"}, "there is no column 'txt'. Did you mean 'text'?"),
        ({"data": "none.jsonl"}, "no such file"),
        ({"data": "none.txt"}, "expected a file of kind .jsonl"),
        ({"data": "FILE"}, "line 1: 'text' is None; expected a text that is not empty"),
        ({"data": "FILE", **COLUMNS, "group_column": "id"}, "line 1: 'id' is 0; expected a text that is not empty"),
    ],
    ids=["split", "data", "limit", "too long", "template", "no file", "kind", "column", "group"],
)
def test_what_is_refused(settings: dict[str, Any], message: str, file: str) -> None:
    given = {**settings, "data": file if settings.get("data") == "FILE" else settings.get("data", "few")}
    with pytest.raises(TextEnvError) as refused:
        SummaryData(**given).prompts()
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
