"""Prompts from every source, and what is said of those that are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from textenv.data.openings import movie_openings
from textenv.env.prompts import read_prompts
from textenv.types import TextEnvError

ROWS = [
    {"prompt": "The film, it", "label": 1, "name": "a"},
    {"prompt": 'He said "no"\u2028and', "label": 0, "name": "b"},
]
TEXTS = [str(row["prompt"]) for row in ROWS]


def dataset(folder: Path) -> Any:
    import datasets

    return datasets.Dataset.from_list(ROWS)


def parquet(folder: Path) -> Any:
    import pyarrow
    from pyarrow import parquet as files

    files.write_table(pyarrow.Table.from_pylist(ROWS), folder / "rows.parquet")
    return folder / "rows.parquet"


def jsonl(folder: Path) -> Any:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n", "utf-8")
    return str(file)


def generator(folder: Path) -> Any:
    return (row for row in ROWS)


@pytest.mark.parametrize("make", [lambda folder: ROWS, generator, dataset, parquet, jsonl])
def test_rows_keep_their_columns(make: Callable[[Path], Any], tmp_path: Path) -> None:
    assert read_prompts(make(tmp_path)) == (TEXTS, {"label": [1, 0], "name": ["a", "b"]})


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv_reads_quoted_cells_and_every_cell_is_text(mark: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.CSV"
    file.write_text(f'{mark}prompt,label\n"The film, it",1\n\n"two\nlines\u2028",\n', "utf-8")
    assert read_prompts(file) == (["The film, it", "two\nlines\u2028"], {"label": ["1", ""]})


def test_a_text_file_holds_a_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("The film \r\n\n  \nÜber\u2028all\n".encode())
    assert read_prompts(file) == (["The film ", "Über\u2028all"], {})


@pytest.mark.parametrize(
    "source", [["a", ""], ("a", ""), iter(["a", ""]), [{"prompt": "a"}, {"prompt": ""}], ["a", {"prompt": ""}]]
)
def test_texts_may_come_without_columns(source: Any) -> None:
    assert read_prompts(source) == (["a", ""], {})


def write(name: str, content: str | bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder / name

    return make


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 1


def frame(folder: Path) -> Any:
    pandas = pytest.importorskip("pandas")  # comes with datasets

    return pandas.DataFrame(ROWS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: 5, "prompts=5: expected a list"),
        (lambda folder: {"prompt": "a"}, "expected a list of strings"),
        (lambda folder: b"abc", "expected a list of strings"),
        (lambda folder: "The film was", "'The film was': expected a list of prompts, or a file of kind .txt"),
        (lambda folder: folder / "none.txt", "no such file"),
        (lambda folder: [], "at least one"),
        (lambda folder: ["a", 5], "row 1: prompt is 5; expected a text"),
        (lambda folder: [10**5000], "row 0: prompt is a value of type int that is too long to show"),
        (lambda folder: 10**5000, "prompts=a value of type int that is too long to show"),
        (lambda folder: [{"prompt": "a", "w": float("nan")}], "row 0: w is nan; expected a finite number, or null"),
        (lambda folder: [{"prompt": "a", "w": [{"x": np.float32("inf")}]}], r"row 0: w\[0\]\['x'\] is inf"),
        (lambda folder: [{"prompt": "a", "w": ["\ud83d"]}], r"row 0: w\[0\] is .* half of a surrogate pair"),
        (lambda folder: [{"prompt": "a", "w": nested(101)}], "nested more than 100 deep"),
        (lambda folder: [{"prompt": "a", "\ud83d": 1}], "a column's name is .* half of a surrogate pair"),
        (lambda folder: [{"text": "a"}], "row 0: {'text': 'a'}; expected a text, a list of messages"),
        (lambda folder: [{"prompt": None}], "row 0: prompt is None"),
        (lambda folder: ["The film \ud83d"], "row 0: prompt is .*; character 9 is half of a surrogate pair"),
        (
            lambda folder: [{"prompt": "a", "x": 1}, {"prompt": "b"}],
            r"row 1: columns \[\], but the first row has \['x'\]",
        ),
        (lambda folder: [{"prompt": "a"}, {"prompt": "b", 3: 1}], r"row 1: columns \['3'\]"),
        (lambda folder: [{"prompt": "a", 3: 1}], "names that are texts"),
        (lambda folder: [{"prompt": "a", "completions": 1}], r"column\(s\) \['completions'\] would hide"),
        (frame, r"df.to_dict\('records'\)"),
        (write("a.txt", " \n"), "a.txt: no prompts in it"),
        (write("a.txt", b"caf\xe9"), "a.txt: not UTF-8"),
        (write("a.csv", ""), "a.csv: no prompts in it"),
        (write("a.csv", "prompt,label\na,1,2\n"), "line 2: 3 cells under 2 headings"),
        (write("a.csv", "text\na\n"), "line 2: {'text': 'a'}"),
        (write("a.jsonl", '{"prompt": "a"}\n{"prompt": \n'), "a.jsonl, line 2: not JSON"),
        (write("a.parquet", "no"), "a.parquet: not a parquet file"),
    ],
)
def test_what_is_no_source_is_refused(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TextEnvError, match=message):
        read_prompts(make(tmp_path))


def test_the_halves_of_the_movie_openings_share_nothing() -> None:
    train, held_out = movie_openings("train"), movie_openings("heldout")
    assert not set(train) & set(held_out)
    for openings in (train, held_out):
        assert len(openings) > 100
        assert all(1 <= len(opening.split()) <= 6 for opening in openings)


def test_there_is_no_third_half() -> None:
    with pytest.raises(TextEnvError, match="split='test': expected 'train' or 'heldout'"):
        movie_openings(cast("Any", "test"))
