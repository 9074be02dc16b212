"""The one reader of records: what every command accepts and refuses alike, and files there and back."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.complaints import one_line
from textenv.data.records import RECORD_KINDS, append_records, json_cells, read_records, read_rows, write_records
from textenv.data.values import DEEPEST, as_annotator, as_conversation, as_prompt, as_text
from textenv.env.prompts import read_prompts
from textenv.feedback.exchange import read_questions
from textenv.feedback.formats import read_rankings, write_rankings
from textenv.training.reward_bench import reward_bench
from textenv.training.texts import read_pairs, read_texts
from textenv.types import Ranking, TextEnvError

quick = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


def bench(path: Path) -> Any:
    return reward_bench(lambda prompts, completions: np.array([float(len(text)) for text in completions]), path)


READERS: dict[str, Callable[[Path], Any]] = {
    "prompts": lambda path: read_prompts(path)[0],
    "pairs": read_pairs,
    "texts": lambda path: list(read_texts([path])),
    "rankings": read_rankings,
    "questions": read_questions,
    "bench": bench,
}
# A record that every reader takes.
RECORD: dict[str, Any] = {
    "prompt": "The film",
    "completion": " was good.",
    "completions": [" was", " is"],
    "ranks": [1, 0],
    "chosen": " is long",
    "rejected": " is",
    "subset": "s",
}
LINE = json.dumps(RECORD).encode()


TAKEN: dict[str, Any] = {
    "prompts": ["The film"],
    "pairs": [("The film", " was good.")],
    "texts": ["The film was good."],
    "rankings": [Ranking("The film", (" was", " is"), (1, 0))],
    "questions": [("The film", (" was", " is"))],
    "bench": {"s": 1.0, "Other": 1.0, "score": 1.0},
}


def extra(value: str) -> bytes:
    """Return the record with one more column, its value as it stands in the file."""
    return LINE[:-1] + b', "weight": ' + value.encode() + b"}"


def read(reader: str, path: Path) -> Any:
    # Two formats of rankings fit the record, so that one of them has to be named.
    return read_rankings(path, "native") if reader == "rankings" else READERS[reader](path)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.JSONL", LINE),
        ("x.jsonl", b"\xef\xbb\xbf" + LINE),
        ("x.jsonl", b"\r\n" + LINE + b"\r\n\r\n"),
        ("x.json", b"[" + LINE + b"]"),
        ("x.json", json.dumps(RECORD, indent=2).encode()),
        ("x.json", b"\xef\xbb\xbf\n" + LINE + b"\n"),
        ("x.jsonl", extra(r'"\ud83d\ude00"')),
        ("x.jsonl", extra("1" * 4000)),
    ],
)
def test_every_command_takes_the_same_files(reader: str, name: str, data: bytes, tmp_path: Path) -> None:
    if reader == "prompts":  # whose rewards are given completions of their own
        data = data.replace(b'"completions"', b'"others"')
    (tmp_path / name).write_bytes(data)
    assert read(reader, tmp_path / name) == TAKEN[reader]


def parquet_with_other_bytes() -> bytes:
    """Return a file whose error has several lines."""
    import pyarrow
    from pyarrow import parquet

    file = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist([{"prompt": "a"}] * 50), file)
    data = bytes(file.getvalue())
    return data[:4] + b"\xff" * 30 + data[34:]


DEEP = "[" * 100_000 + "]" * 100_000
REFUSED: dict[str, tuple[str, bytes, str]] = {
    "an unknown kind": ("x.xml", LINE, ".jsonl, .json, .csv, .parquet"),
    "an empty file": ("x.jsonl", b"\n \n", "in it; expected at least one"),
    "an empty list": ("x.json", b"[]", "in it; expected at least one"),
    "headings alone": ("x.csv", b"prompt,completion\r\n", "in it; expected at least one"),
    "another encoding": ("x.jsonl", LINE.replace(b"film", b"caf\xe9"), "not UTF-8"),
    "a bad seventh line": ("x.jsonl", (LINE + b"\n") * 6 + b'{"prompt"', "line 7: not JSON (Expecting ':' delimiter"),
    "a bad line of a list": ("x.json", b"[\n" + LINE + b",\n{]", "line 3: not JSON"),
    "a bad line of an object": ("x.json", b'{"prompt":\n\n}', "line 3: not JSON"),
    "an object on two lines": ("x.jsonl", b'{"prompt":\n"a"}', "line 1: not JSON"),
    "two objects on a line": ("x.jsonl", LINE + LINE, "line 1: not JSON (Extra data"),
    "a list and more": ("x.json", b"[" + LINE + b"]\n" + LINE, "line 2: not JSON (a list and more"),
    "NaN": ("x.jsonl", extra("NaN"), "line 1: NaN is no number of JSON"),
    "NaN in a list": ("x.json", b"\n[" + extra("NaN") + b"]", "line 2: NaN is no number of JSON"),
    "minus infinity": ("x.jsonl", extra("[-Infinity]"), "line 1: -Infinity is no number of JSON"),
    "a float above all": ("x.jsonl", extra("1e999"), "line 1: the number '1e999' is too large"),
    "a number of 5,000 digits": ("x.jsonl", extra("1" * 5000), "line 1: a number of 5,000 digits is too long"),
    "deep nesting": ("x.jsonl", extra(DEEP), "line 1: its lists and objects are nested more than 100 deep"),
    "deep nesting in .json": ("x.json", extra(DEEP), "line 1: its lists and objects are nested more than 100 deep"),
    "a key twice": ("x.jsonl", extra('1, "prompt": "b"'), "line 1: the keys ['prompt'] come more than once"),
    "half a surrogate pair": ("x.jsonl", extra(r'"a \ud83d"'), "line 1: a text holds '\\ud83d', half of a surrogate"),
    "half a pair as a key": ("x.jsonl", extra(r'{"\uDE00": 1}'), "line 1: a text holds '\\ude00', half of a surrogate"),
    "half a pair in .json": ("x.json", b"\n" + extra(r'"\ud83d"'), "line 2: a text holds '\\ud83d'"),
    "an unclosed quote": ("x.csv", b'prompt\n"The film"\n"The\nplot\n', "line 3: not CSV (unexpected end of data)"),
    "text after a quote": ("x.csv", b'prompt\n"The" film\n', "line 2: not CSV"),
    "a heading twice": ("x.csv", b"prompt,prompt\na,b\n", "line 1: the headings ['prompt'] come more than once"),
    "a cell too many": ("x.csv", b'prompt\n"a\nb"\n\nc,d\n', "line 5: 2 cells under 1 headings"),
    "no parquet": ("x.parquet", b"PAR1", "not a parquet file"),
    "parquet with other bytes in it": ("x.parquet", parquet_with_other_bytes(), "not a parquet file"),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", REFUSED)
def test_every_command_refuses_the_same_files(reader: str, case: str, tmp_path: Path) -> None:
    name, data, part = REFUSED[case]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TextEnvError) as caught:
        read(reader, tmp_path / name)
    assert part in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("name", "part"), [("x.jsonl", "no such file"), ("x\0.jsonl", "cannot be read"), ("y.json", "a folder")]
)
def test_every_command_says_that_there_is_no_file(reader: str, name: str, part: str, tmp_path: Path) -> None:
    (tmp_path / "y.json").mkdir()
    with pytest.raises(TextEnvError, match=part):
        read(reader, tmp_path / name)


def test_a_column_of_parquet_that_comes_twice(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["prompt", "prompt"])
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(TextEnvError, match=r"x\.parquet: the headings \['prompt'\] come more than once"):
        read_prompts(tmp_path / "x.parquet")


def test_cells_are_kept_as_they_are(tmp_path: Path) -> None:
    long, before = "a" * 140_000, csv.field_size_limit()
    (tmp_path / "x.csv").write_bytes(f'\ufeffprompt,completion\r\n"a\r\nb\n""c""\r", \r\n\r\n{long},\r\n'.encode())
    assert read_pairs(tmp_path / "x.csv") == [('a\r\nb\n"c"\r', " "), (long, "")]
    assert [where.rpartition(", ")[2] for where, _ in read_records(tmp_path / "x.csv")] == ["line 2", "line 7"]
    assert csv.field_size_limit() == before


def test_what_a_line_of_json_may_hold(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('"a\u2028b"\n[1]\n{"prompt": null}\n', "utf-8")
    assert list(read_rows(file)) == [
        (f"{file}, line 1", "a\u2028b"),
        (f"{file}, line 2", [1]),
        (f"{file}, line 3", {"prompt": None}),
    ]
    with pytest.raises(TextEnvError, match=r"line 1: 'a\\u2028b'; expected an object with keys"):
        list(read_records(file))


def test_several_objects_in_json(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"prompt":\n "a"}\n\n{"prompt": "b"} {"prompt": "c"}')
    assert [where for where, _ in read_records(file)] == [f"{file}, line {line}" for line in (1, 4, 4)]
    assert read_prompts(file) == (["a", "b", "c"], {})


# There and back

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
names = st.lists(texts.filter(lambda name: not name.startswith("\ufeff")), min_size=1, max_size=3, unique=True)


@pytest.mark.parametrize("kind", [".jsonl", ".json"])
@given(rows=st.lists(st.dictionaries(texts, values, max_size=3), min_size=1, max_size=4))
@quick
def test_json_keeps_everything(kind: str, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    write_records(tmp_path / f"x{kind}", rows)
    assert [row for _, row in read_records(tmp_path / f"x{kind}")] == rows


@given(data=st.data())
@quick
def test_csv_keeps_texts_and_json(data: st.DataObject, tmp_path: Path) -> None:
    columns = data.draw(names)
    held = data.draw(st.sets(st.sampled_from(columns)))
    rows = data.draw(
        st.lists(
            st.fixed_dictionaries({name: values if name in held else texts for name in columns}), min_size=1, max_size=3
        )
    )
    write_records(tmp_path / "x.csv", rows, json_columns=held)
    assert [json_cells(row, held) for _, row in read_records(tmp_path / "x.csv")] == rows


@given(
    rows=st.lists(st.fixed_dictionaries({"prompt": texts, "n": st.none() | st.integers(-9, 9)}), min_size=1, max_size=3)
)
@quick
def test_parquet_keeps_texts_and_numbers(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    write_records(tmp_path / "x.parquet", rows)
    assert [row for _, row in read_records(tmp_path / "x.parquet")] == rows


@given(data=st.binary(max_size=40))
@example(data=b"\xef\xbb\xbf")
@example(data=b'{"":"\\ud800"}')
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".txt"])
@quick
def test_any_bytes_are_rows_or_one_clear_error(kind: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / f"x{kind}").write_bytes(data)
    try:
        rows = list(read_rows(tmp_path / f"x{kind}"))
    except TextEnvError as error:
        assert str(error).startswith(str(tmp_path / f"x{kind}"))  # noqa: PT017 (either is right)
    else:
        assert rows


def test_records_are_added_all_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    append_records(path, [{"a": 1}, {"a": "♦"}])
    path.write_bytes(path.read_bytes().rstrip(b"\n"))  # as an editor may leave it
    append_records(path, [{"a": 2}])
    assert [row for _, row in read_records(path)] == [{"a": 1}, {"a": "♦"}, {"a": 2}]
    before = path.read_bytes()
    for name, value, told in (
        ("x.jsonl", float("nan"), "x.jsonl: the record to add: "),
        ("x.csv", 4, "its kind is '.csv'"),
        ("none/x.jsonl", 4, "there is no folder"),
    ):
        with one_line(told):
            append_records(tmp_path / name, [{"a": 3}, {"a": value}])
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["x.jsonl"]


def test_what_several_add_at_the_same_time_is_all_there(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: append_records(path, [{"a": number}, {"b": number}]), range(40)))
    rows = [dict(row) for _, row in read_records(path)]
    assert sorted(row["a"] for row in rows[::2]) == list(range(40))
    assert [row["b"] for row in rows[1::2]] == [row["a"] for row in rows[::2]]


@pytest.mark.parametrize("kind", RECORD_KINDS)
@pytest.mark.parametrize(
    ("rows", "part"),
    [
        ([], "no records to write"),
        ([{"a": "\ud800"}], "surrogate"),
    ],
)
def test_what_cannot_be_written(kind: str, rows: list[dict[str, Any]], part: str, tmp_path: Path) -> None:
    with pytest.raises(TextEnvError, match=part):
        write_records(tmp_path / f"x{kind}", rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "rows", "part"),
    [
        ("x.txt", [{"a": "b"}], "expected a file of kind .jsonl, .json, .csv, .parquet"),
        ("x.jsonl", [{"a": float("nan")}], r"x.jsonl, record 1: it\['a'\] is nan"),
        ("x.parquet", [{"a": "b"}, {"a": [{"b": float("inf")}]}], r"record 2: it\['a'\]\[0\]\['b'\] is inf"),
        ("x.json", [{"a": json.loads("[" * 99 + "]" * 99)}], "record 1: it.* nested more than 100 deep"),
        ("x.jsonl", [{"a": object()}], "cannot be written"),
        ("x.jsonl", [{"a": 10**5000}], "cannot be written"),
        ("x.parquet", [{"a": 2**70}], "do not make a table"),
        ("x.csv", [{"a": "b"}, {"a": "b", "c": "d"}], "record 2: columns \\['a', 'c'\\], but the first has \\['a'\\]"),
        ("x.parquet", [{"a": "b"}, {"c": "d"}], "record 2: columns \\['c'\\]"),
        ("x.csv", [{"a": 1}], "a=1: CSV has texts"),
        ("x.parquet", [{"a": 1}, {"a": "b"}], "do not make a table"),
        ("no/x.jsonl", [{"a": 1}], "cannot be written"),
    ],
)
def test_what_a_kind_cannot_hold(name: str, rows: list[dict[str, Any]], part: str, tmp_path: Path) -> None:
    with pytest.raises(TextEnvError, match=part):
        write_records(tmp_path / name, rows)
    assert list(tmp_path.iterdir()) == []


# Values


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"completions": ["a", "a"]}, Ranking("The film", ("a", "a"), (1, 0))),
        ({"completions": ["", "a"], "prompt": ""}, Ranking("", ("", "a"), (1, 0))),
        ({"ranks": [0, None]}, Ranking("The film", (" was", " is"), (0, None))),
        ({"annotator": ""}, Ranking("The film", (" was", " is"), (1, 0))),
        ({"annotator": "  "}, Ranking("The film", (" was", " is"), (1, 0))),
        ({"annotator": None}, Ranking("The film", (" was", " is"), (1, 0))),
        ({"annotator": 0}, Ranking("The film", (" was", " is"), (1, 0), "0")),
        ({"annotator": "Zoë", "margin": 2}, Ranking("The film", (" was", " is"), (1, 0), "Zoë", 2.0)),
        (
            {"completions": list("abcdefghi"), "ranks": [8, *range(8)]},
            Ranking("The film", tuple("abcdefghi"), (8, *range(8))),
        ),
        (
            {"prompt": [{"role": "user", "content": "", "name": None}]},
            Ranking(({"role": "user", "content": ""},), (" was", " is"), (1, 0)),
        ),
    ],
)  # fmt: skip
def test_rankings_that_are_taken(change: dict[str, Any], expected: Ranking, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(RECORD | change), "utf-8")
    assert read_rankings(tmp_path / "x.jsonl", "native") == [expected]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"ranks": [False, True]}, "ranks is [False, True]; expected whole numbers"),
        ({"ranks": [0, 1.0]}, "ranks is [0, 1.0]; expected whole numbers"),
        ({"ranks": [0, -1]}, "ranks is [0, -1]; expected whole numbers"),
        ({"ranks": [0, 10**20]}, "to 1, or null"),
        ({"ranks": [0, "1"]}, "ranks is [0, '1']"),
        ({"ranks": [1, 1]}, "one of them 0"),
        ({"ranks": [None, None]}, "one of them 0"),
        ({"ranks": [0]}, "a list of 2 ranks"),
        ({"ranks": None}, "ranks is None"),
        ({"completions": ["a"], "ranks": [0]}, "completions has 1 texts; expected at least 2"),
        ({"completions": ["a", None]}, "completions[1] is None; expected a text"),
        ({"completions": "ab"}, "completions is 'ab'; expected a list of texts"),
        ({"annotator": True}, "annotator is True; expected a name"),
        ({"annotator": 1.5}, "annotator is 1.5; expected a name"),
        ({"annotator": ["x"]}, "annotator is ['x']; expected a name"),
        ({"margin": "0.5"}, "margin is '0.5'; expected a finite number"),
        ({"margin": True}, "margin is True; expected a finite number"),
        ({"margin": 10**400}, "expected a finite number"),
        ({"prompt": None}, "prompt is None; expected a text, or a list of messages"),
        ({"prompt": []}, "prompt is []; expected a text, or a list of messages"),
        ({"prompt": ["a", "b"]}, "prompt is ['a', 'b']; message 0 is 'a'"),
        ({"prompt": [{"role": "robot", "content": "a"}]}, "message 0 has the role 'robot'"),
        ({"prompt": [{"role": ["user"], "content": "a"}]}, "message 0 has the role ['user']"),
        ({"prompt": [{"role": "user"}]}, "the content of message 0 of prompt is None; expected a text"),
    ],
)
def test_rankings_that_are_refused(change: dict[str, Any], part: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(RECORD | change), "utf-8")
    with pytest.raises(TextEnvError) as caught:
        read_rankings(tmp_path / "x.jsonl", "native")
    assert str(caught.value).startswith(f"{tmp_path / 'x.jsonl'}, line 1: ")
    assert part in str(caught.value)


@pytest.mark.parametrize("reader", ["prompts", "rankings", "questions", "bench"])
@pytest.mark.parametrize("prompt", [None, 5, [], ["a", "b"], [{"role": "user"}], {"role": "user", "content": "a"}])
def test_every_command_has_the_same_prompts(reader: str, prompt: Any, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps(RECORD | {"prompt": prompt}), "utf-8")
    with pytest.raises(TextEnvError) as mine:
        as_prompt(prompt)
    with pytest.raises(TextEnvError) as caught:
        read(reader, file)
    assert f"{file}, line 1: {mine.value}" in str(caught.value)


@pytest.mark.parametrize(
    "check",
    [
        lambda text: as_text(text, "text"),
        as_prompt,
        as_annotator,
        lambda text: as_conversation([{"role": "user", "content": text}]),
    ],
)
def test_half_a_surrogate_pair_from_python(check: Callable[[str], Any]) -> None:
    assert check("The film \U0001f600")
    with pytest.raises(TextEnvError, match="character 9 is half of a surrogate pair"):
        check("The film \ud83d")


HALF = "\ud83d"
HUGE = 10**5000  # which Python does not even write out


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"prompt": HALF}, "prompt is '\\ud83d'; character 0 is half of a surrogate pair"),
        ({"prompt": ({"role": "user", "content": HALF},)}, "the content of message 0 of prompt is"),
        ({"prompt": ({"role": "user", "content": "a", "name": HALF},)}, "'name' in message 0 of prompt is"),
        ({"prompt": None}, "prompt is None; expected a text"),
        ({"prompt": ["a"]}, "prompt is ['a']; message 0 is 'a'"),
        ({"completions": ("a", HALF)}, "completions[1] is '\\ud83d'; character 0"),
        ({"completions": "ab"}, "completions is 'ab'; expected a list of texts"),
        ({"completions": ("a", None)}, "completions[1] is None; expected a text"),
        ({"completions": ("a",), "ranks": (0,)}, "completions has 1 texts"),
        ({"ranks": (False, True)}, "ranks is (False, True); expected whole numbers from 0, which is the best, to 1"),
        ({"ranks": (0, 2)}, "ranks is (0, 2)"),
        ({"ranks": (0, 10**20)}, "ranks is (0, 100000000000000000000)"),
        ({"ranks": (0, HUGE)}, "ranks is a value of type tuple that is too long to show"),
        ({"ranks": (0, 1.0)}, "ranks is (0, 1.0)"),
        ({"ranks": (1, 1)}, "one of them 0"),
        ({"ranks": (0, 1, 1)}, "expected a list of 2 ranks"),
        ({"ranks": {0, 1}}, "expected a list of 2 ranks"),
        ({"ranks": "01"}, "ranks is '01'; expected a list of 2 ranks"),
        ({"annotator": HALF}, "annotator is '\\ud83d'; character 0"),
        ({"annotator": True}, "annotator is True; expected a name"),
        ({"annotator": HUGE}, "annotator is a value of type int that is too long to show"),
        ({"margin": float("nan")}, "margin is nan; expected a finite number"),
        ({"margin": "1"}, "margin is '1'; expected a finite number"),
        ({"margin": HUGE}, "margin is a value of type int that is too long to show"),
    ],
)  # fmt: skip
def test_rankings_made_in_python_are_held_to_the_same(change: dict[str, Any], part: str) -> None:
    with pytest.raises(TextEnvError) as caught:
        Ranking(**{"prompt": "p", "completions": ("a", "b"), "ranks": (0, 1), **change})
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_lists_and_arrays_become_a_ranking_that_can_be_written(kind: str, tmp_path: Path) -> None:
    messages: Any = [{"role": "user", "content": "a", "name": None}]
    made = Ranking(messages, np.array(["b", "c"], object), np.array([1, 0]), 7, np.float32(0.5))  # type: ignore[arg-type]
    assert made == Ranking(({"role": "user", "content": "a"},), ("b", "c"), (1, 0), "7", 0.5)
    write_rankings(tmp_path / f"x{kind}", [made])
    assert read_rankings(tmp_path / f"x{kind}", "native") == [made]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("value", "part"),
    [
        (float("nan"), "weight is nan; expected a finite number, or null where there is none"),
        ([{"a": [0.0, float("-inf")]}], "weight[0]['a'][1] is -inf"),
    ],
)
def test_parquet_holds_no_numbers_that_are_none(reader: str, value: Any, part: str, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    record = {key: cell for key, cell in RECORD.items() if reader != "prompts" or key != "completions"}
    rows = [record | {"weight": None}, record | {"weight": value}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    with pytest.raises(TextEnvError) as caught:
        read(reader, tmp_path / "x.parquet")
    assert str(caught.value).startswith(f"{tmp_path / 'x.parquet'}, row 2: {part}")


@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("kind", [".jsonl", ".json"])
def test_how_deep_a_value_may_be_nested(begin: str, end: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / f"deep{kind}").write_text('{"a": 1}\n{"a": ' + begin * (DEEPEST - 1) + "1" + end * (DEEPEST - 1) + "}")
    assert len(list(read_rows(tmp_path / f"deep{kind}"))) == 2
    (tmp_path / f"deeper{kind}").write_text('{"a": 1}\n{"a": ' + begin * DEEPEST + "1" + end * DEEPEST + "}")
    with pytest.raises(TextEnvError, match="line 2: its lists and objects are nested more than 100 deep"):
        list(read_rows(tmp_path / f"deeper{kind}"))
