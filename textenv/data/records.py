"""The one reader and writer of files of records: JSON Lines, JSON, CSV, parquet and plain text.

What the files of every command have in common is decided here:

- Text is UTF-8; a byte-order mark at its beginning is left out. The kind of a file is its suffix, in any case.
- JSON is strict: NaN, infinite numbers, a key that comes twice in an object, numbers of thousands of digits, half
  surrogate pairs and lists and objects nested more than 100 deep are refused.
- So are NaN and infinite numbers in parquet: a number that is missing is null.
- CSV has a row of headings, each once, and as many cells in every row; cells are texts of any length, kept as they are,
  with the ends of the lines in them. A quote that is not closed is refused.
- A file without records is refused. Blank lines between records are none.
- A message says where the record stands: the file, and the line, the item of a JSON list, or the row of a table.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from textenv.data.files import locked, to_json, write_atomically
from textenv.data.values import DEEPEST, check_cell, short
from textenv.types import TextEnvError

__all__ = [
    "RECORD_KINDS",
    "ROW_KINDS",
    "json_cells",
    "kind_of",
    "read_records",
    "read_rows",
    "read_text",
    "write_records",
]

Row: TypeAlias = Mapping[str, Any]

RECORD_KINDS = (".jsonl", ".json", ".csv", ".parquet")
"""Files of records: objects with keys."""
ROW_KINDS = (".txt", *RECORD_KINDS)
"""Files of rows: records, lines of text, or whatever else a line of JSON may hold."""

_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
_csv_limit = threading.Lock()  # the longest cell is a setting of the whole process


def kind_of(path: Path, kinds: Sequence[str]) -> str:
    """Return of what kind a file is, in lower case: its suffix.

    Raises:
        TextEnvError: It is none of these kinds.
    """
    kind = path.suffix.lower()
    if kind not in kinds:
        raise TextEnvError(f"{path}: its kind is {path.suffix!r}; expected a file of kind {', '.join(kinds)}.")
    return kind


def read_text(path: Path) -> str:
    r"""Return what a file of text holds, without a byte-order mark, its lines ended by ``\n``.

    Raises:
        TextEnvError: There is no such file, it cannot be read, or it is not UTF-8.
    """
    return _decoded(path).replace("\r\n", "\n").replace("\r", "\n")


def read_records(
    path: str | Path, kinds: Sequence[str] = RECORD_KINDS, *, what: str = "records"
) -> Iterator[tuple[str, Row]]:
    """Yield where each record of a file stands, such as ``"x.jsonl, line 3"``, and the record, a mapping of keys.

    Args:
        path: The file.
        kinds: Of what kinds it may be, some of ``RECORD_KINDS``.
        what: What the records are called where there are none.

    Raises:
        TextEnvError: The file is of another kind, cannot be read or holds nothing, or something in it is no record.
    """
    for where, row in read_rows(path, kinds, what=what):
        if not isinstance(row, Mapping):
            raise TextEnvError(f"{where}: {short(row)}; expected an object with keys.")
        yield where, row


def read_rows(path: str | Path, kinds: Sequence[str] = ROW_KINDS, *, what: str = "rows") -> Iterator[tuple[str, Any]]:
    r"""Yield where each row of a file stands, such as ``"x.jsonl, line 3"``, and what it holds.

    - ``.jsonl``: a JSON value a line.
    - ``.json``: a list, whose items are the rows; or objects after each other, one or several, on as many lines as they
      need.
    - ``.csv``: a mapping of headings to texts.
    - ``.parquet``: a mapping of columns to values.
    - ``.txt``: a text a line.

    Args:
        path: The file.
        kinds: Of what kinds it may be.
        what: What the rows are called where there are none.

    Raises:
        TextEnvError: The file is of another kind, cannot be read or holds nothing, or is not what its suffix says.
    """
    path = Path(path)
    kind = kind_of(path, kinds)
    if kind == ".parquet":
        found: Iterable[tuple[str, Any]] = _read_parquet(path)
    elif kind == ".csv":
        found = _read_csv(path, _decoded(path))
    elif kind == ".json":
        found = _read_json(path, read_text(path))
    elif kind == ".jsonl":
        found = _read_json_lines(path, read_text(path))
    else:
        found = _lines(read_text(path))
    empty = True
    for place, row in found:
        empty = False
        yield f"{path}, {place}", row
    if empty:
        raise TextEnvError(f"{path}: no {what} in it; expected at least one.")


def json_cells(row: Row, columns: Collection[str]) -> dict[str, Any]:
    """Return a record of CSV with the values of the columns that hold JSON; an empty cell there is None.

    Raises:
        TextEnvError: A cell of these columns is not JSON.
    """
    values: dict[str, Any] = dict(row)
    for name in values.keys() & set(columns):
        try:
            values[name] = _parsed(values[name]) if values[name].strip() else None
        except (_NotJSONError, json.JSONDecodeError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise TextEnvError(f"{name} is {short(row[name])}; expected JSON ({reason}).") from error
    return values


def write_records(path: Path, rows: Sequence[Row], *, json_columns: Collection[str] = ()) -> None:
    """Write records to a file, which is whole or absent.

    Args:
        path: The file; its suffix, one of ``RECORD_KINDS``, says of what kind.
        rows: At least one; in CSV and parquet all have the same columns.
        json_columns: In CSV, the columns whose values are written as JSON, an empty cell for None; the others hold
            texts.

    Raises:
        TextEnvError: There is no record, one could not be read again, or the kind cannot hold it; nothing was written
            then.
    """
    kind = kind_of(path, RECORD_KINDS)
    if not rows:
        raise TextEnvError(f"{path}: no records to write; expected at least one.")
    for number, row in enumerate(rows, start=1):
        if kind in (".csv", ".parquet") and row.keys() != rows[0].keys():
            raise TextEnvError(
                f"{path}, record {number}: columns {sorted(row)}, but the first has {sorted(rows[0])}; expected "
                "the same in every record."
            )
        try:
            check_cell(row, "it", deepest=DEEPEST - 1)  # a list of all records is around it
        except TextEnvError as error:
            raise TextEnvError(f"{path}, record {number}: {error}") from error
    try:
        write_atomically(path, _serialized(path, rows, kind, json_columns))
    except (OSError, TypeError, ValueError) as error:
        raise TextEnvError(f"{path}: cannot be written ({error})") from error


def append_records(path: Path, rows: Sequence[Row]) -> None:
    """Add records to a JSON-lines file, which is made if it is missing, and holds all of them or none.

    Several processes may add to one file at the same time.

    Args:
        path: The file, ``.jsonl``.
        rows: The records.

    Raises:
        TextEnvError: One could not be read again, or the file is of another kind or cannot be read or written; nothing
            was written then.
    """
    kind_of(path, (".jsonl",))
    for row in rows:
        try:
            check_cell(row, "it")
        except TextEnvError as error:
            raise TextEnvError(f"{path}: the record to add: {error}") from error
    if not path.parent.is_dir():
        raise TextEnvError(f"{path}: cannot be written, there is no folder {str(path.parent)!r}. Make it first.")
    try:
        with locked(path.with_name(f".{path.name}.lock"), wait=True):
            before = _bytes(path) if path.exists() else b""
            before += b"" if before.endswith(b"\n") or not before else b"\n"
            write_atomically(path, before + _serialized(path, rows, ".jsonl", ()))
    except (OSError, TypeError, ValueError) as error:
        if isinstance(error, TextEnvError):
            raise
        raise TextEnvError(f"{path}: cannot be written ({error})") from error


# Text


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise TextEnvError(f"{path}: no such file (looked in {Path.cwd()}).") from error
    except IsADirectoryError as error:
        raise TextEnvError(f"{path} is a folder; expected a file.") from error
    except (OSError, ValueError) as error:  # a NUL in the path is a ValueError
        raise TextEnvError(f"{str(path)!r}: cannot be read ({error}).") from error


def _decoded(path: Path) -> str:
    try:
        return _bytes(path).decode("utf-8-sig")  # spreadsheets write a byte-order mark
    except UnicodeDecodeError as error:
        raise TextEnvError(f"{path}: not UTF-8 ({error}); convert it, e.g. with iconv.") from error


def _lines(text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would also split at U+2028 in a text
        if line.strip():
            yield f"line {number}", line


# JSON


class _NotJSONError(ValueError):
    """What is wrong with a value that Python's reader of JSON would take."""


class _TooDeepError(_NotJSONError):
    """Lists and objects are nested so deeply that nothing that reads, copies or writes them could follow."""

    def __init__(self) -> None:
        super().__init__(f"its lists and objects are nested more than {DEEPEST} deep")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise _NotJSONError(f"the keys {twice} come more than once in an object")
    return found


def _whole(digits: str) -> int:
    try:
        return int(digits)
    except ValueError as error:
        raise _NotJSONError(f"a number of {len(digits):,} digits is too long") from error


def _finite(digits: str) -> float:
    found = float(digits)
    if not math.isfinite(found):
        raise _NotJSONError(f"the number {short(digits)} is too large")
    return found


def _constant(name: str) -> Any:
    raise _NotJSONError(f"{name} is no number of JSON; write null where there is none")


_decoder = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole, parse_float=_finite, parse_constant=_constant)


def _parsed(text: str) -> Any:
    """Return the value that a text of JSON holds.

    Raises:
        json.JSONDecodeError: It is not JSON.
        _NotJSONError: It is, but for a value that is refused.
    """
    return _parsed_at(text, None)[0]


def _parsed_at(text: str, start: int | None) -> tuple[Any, int]:
    """Return the value that begins at a place of a text, all of it for None, and where it ends."""
    try:
        found, end = (_decoder.decode(text), len(text)) if start is None else _decoder.raw_decode(text, start)
        if text.count("[", start or 0, end) + text.count("{", start or 0, end) > DEEPEST:
            _check_depth(found)
        if _HALF_PAIR.search(text, start or 0, end):
            json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError as error:
        raise _TooDeepError from error
    except UnicodeEncodeError as error:
        raise _NotJSONError(
            f"a text holds {error.object[error.start : error.end]!r}, half of a surrogate pair, which is no Unicode"
        ) from error
    return found, end


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        inside = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, (dict, list)))
        level = [item for items in inside for item in items]
        if not level:
            return
    raise _TooDeepError


def _read_json_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for place, line in _lines(text):
        try:
            yield place, _parsed(line)
        except json.JSONDecodeError as error:
            raise TextEnvError(
                f"{path}, {place}: not JSON ({error.msg}, column {error.colno}): {short(line)}; expected a JSON value "
                "on each line."
            ) from error
        except _NotJSONError as error:
            raise TextEnvError(f"{path}, {place}: {error}: {short(line)}") from error


def _read_json(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    place, line = _next(text, 0), 1
    counted = 0
    while place < len(text):
        line += text.count("\n", counted, place)
        counted = place
        try:
            found, end = _parsed_at(text, place)
            following = _next(text, end)
            if isinstance(found, list):
                if counted != _next(text, 0) or following < len(text):
                    raise json.JSONDecodeError("a list and more; put all into one list", text, following)
                yield from ((f"item {number}", row) for number, row in enumerate(found, start=1))
            else:
                yield f"line {line}", found
        except json.JSONDecodeError as error:
            excerpt = text.split("\n")[error.lineno - 1]
            raise TextEnvError(
                f"{path}, line {error.lineno}: not JSON ({error.msg}, column {error.colno}): {short(excerpt)}"
            ) from error
        except _NotJSONError as error:
            raise TextEnvError(f"{path}, in the value that begins on line {line}: {error}.") from error
        place = following


def _next(text: str, place: int) -> int:
    """Return the place of the next character that is not blank."""
    found = re.compile(r"\S").search(text, place)
    return len(text) if found is None else found.start()


# CSV


def _read_csv(path: Path, text: str) -> list[tuple[str, dict[str, str]]]:
    header: list[str] = []
    rows: list[tuple[str, dict[str, str]]] = []
    begun = 1  # the line on which a row begins
    with _csv_limit:
        before = csv.field_size_limit()
        csv.field_size_limit(max(before, len(text)))
        try:
            reader = csv.reader(io.StringIO(text, newline=""), strict=True)
            for cells in reader:
                if cells and not header:
                    header = _unique(cells, f"{path}, line {begun}")
                elif cells and len(cells) != len(header):
                    raise TextEnvError(
                        f"{path}, line {begun}: {len(cells)} cells under {len(header)} headings {short(header)}."
                    )
                elif cells:
                    rows.append((f"line {begun}", dict(zip(header, cells, strict=True))))
                begun = reader.line_num + 1
        except csv.Error as error:
            raise TextEnvError(
                f"{path}, line {begun}: not CSV ({error}): {short(_line(text, begun))}. A cell that begins with a "
                "quote ends with one, and quotes inside it are doubled."
            ) from error
        finally:
            csv.field_size_limit(before)
    return rows


def _line(text: str, number: int) -> str:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[min(number, len(lines)) - 1]


def _unique(names: list[str], where: str) -> list[str]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise TextEnvError(f"{where}: the headings {short(twice)} come more than once; expected each once.")
    return names


# Parquet


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    data = _bytes(path)
    pyarrow, parquet = _pyarrow(path)
    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(data))
        _unique(file.schema_arrow.names, f"{path}")
        rows = file.read().to_pylist()
    except TextEnvError:
        raise
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())  # of several lines
        raise TextEnvError(f"{path}: not a parquet file ({reason}).") from error
    for number, row in enumerate(rows, start=1):
        try:
            for name, cell in row.items():
                check_cell(cell, name)
        except TextEnvError as error:
            raise TextEnvError(f"{path}, row {number}: {error}") from error
        yield f"row {number}", row


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow  # noqa: PLC0415 (an optional dependency)
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as error:
        raise TextEnvError(f"{path}: parquet needs pyarrow; run: pip install 'textenv[data]'") from error
    return pyarrow, parquet


# Writing


def _serialized(path: Path, rows: Sequence[Row], kind: str, json_columns: Collection[str]) -> bytes:
    if kind == ".parquet":
        return _parquet(path, rows)
    if kind == ".csv":
        return _csv(rows, json_columns)
    lines = [to_json(row, ensure_ascii=False) for row in rows]
    return ("[\n" + ",\n".join(lines) + "\n]\n" if kind == ".json" else "\n".join(lines) + "\n").encode()


def _csv(rows: Sequence[Row], json_columns: Collection[str]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    for row in rows:
        cells = {}
        for name, value in row.items():
            if name in json_columns:
                cells[name] = "" if value is None else to_json(value, ensure_ascii=False)
            elif isinstance(value, str):
                cells[name] = value
            else:
                raise TextEnvError(f"{name}={short(value)}: CSV has texts; write conversations to .jsonl or .parquet.")
        writer.writerow(cells)
    return file.getvalue().encode()


def _parquet(path: Path, rows: Sequence[Row]) -> bytes:
    pyarrow, parquet = _pyarrow(path)
    try:
        table = pyarrow.Table.from_pylist([dict(row) for row in rows])
    except (pyarrow.ArrowException, OverflowError) as error:
        raise TextEnvError(
            f"The records do not make a table ({error}). Are some prompts texts and some conversations? Use .jsonl."
        ) from error
    file = pyarrow.BufferOutputStream()
    parquet.write_table(table, file)
    return bytes(file.getvalue())
