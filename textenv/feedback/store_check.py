"""What holds in every feedback store that textenv made; a file that was changed by hand may break it.

Each check is a query that returns what breaks it, so that a store is refused when it is opened, before anything is read
from it or added to it.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterator, Mapping

from textenv.data.values import MOST_COMPLETIONS
from textenv.feedback.store_schema import VERSION, schema_of

__all__ = ["find_damage"]

_STORED_AS = {"INTEGER": ("integer",), "REAL": ("real", "integer"), "TEXT": ("text",)}
"""By the type of a column, how SQLite may have stored a value: it keeps a text in a column of numbers as it is."""

_JSON: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "policies": {"details": ("object",)},
    "prompts": {"prompt": ("text", "array"), "columns": ("object",)},
    "items": {"details": ("object",)},
    "annotators": {"details": ("object",)},
    "reward_models": {"details": ("object",)},
    "tasks": {"gold": ("array",)},
    "assignments": {"display": ("array",)},
    "judgements": {"ranks": ("array",)},
    "demonstrations": {"texts": ("array",)},
}
"""Columns that hold JSON, and of what type it is."""

_ITEMS_OF = "(SELECT count(*) FROM task_items AS l WHERE l.task = {task})"
_RANKS_OF = "(SELECT {what} FROM json_each({ranks}) AS r)"


def _wrong_ranks(ranks: str, task: str) -> str:
    """Return the SQL condition that these are no ranks of the items of a task."""
    count = _ITEMS_OF.format(task=task)
    wrong = f"sum(r.type NOT IN ('integer', 'null') OR r.value NOT BETWEEN 0 AND {count} - 1)"
    return " OR ".join(
        (
            f"json_array_length({ranks}) <> {count}",
            f"{_RANKS_OF.format(what=wrong, ranks=ranks)} > 0",
            f"{_RANKS_OF.format(what='min(r.value)', ranks=ranks)} <> 0",
        )
    )


_CHECKS = {
    "a prompt is a text, or a list of messages": """SELECT 'prompt', p.id FROM prompts AS p
      WHERE json_type(p.prompt) = 'array' AND (json_array_length(p.prompt) = 0
      OR EXISTS (SELECT 1 FROM json_each(p.prompt) AS m WHERE CASE m.type WHEN 'object'
        THEN json_type(m.value, '$.role') IS NOT 'text' OR json_type(m.value, '$.content') IS NOT 'text'
        ELSE 1 END))""",
    f"a task has 2 to {MOST_COMPLETIONS} items, in places from 0": f"""SELECT 'task', t.id FROM tasks AS t
      LEFT JOIN task_items AS l ON l.task = t.id WHERE t.kind <> 'demonstration' GROUP BY t.id
      HAVING count(l.item) NOT BETWEEN 2 AND {MOST_COMPLETIONS} OR min(l.position) <> 0
      OR max(l.position) <> count(*) - 1""",
    "a task that asks for a demonstration has a prompt and nothing else": """SELECT 'task', t.id FROM tasks AS t
      WHERE t.kind = 'demonstration' AND (t.prompt IS NULL OR t.gold IS NOT NULL OR t.repeat_of IS NOT NULL
      OR EXISTS (SELECT 1 FROM task_items AS l WHERE l.task = t.id))""",
    "a judgement is wanted of a task": "SELECT 'task', id FROM tasks WHERE judgements < 1",
    "the items of a task are of its kind and its prompt": """SELECT 'task', t.id FROM tasks AS t
      JOIN task_items AS l ON l.task = t.id JOIN items AS i ON i.id = l.item
      WHERE i.kind <> t.kind OR i.prompt IS NOT t.prompt OR (i.kind = 'completion') <> (i.prompt IS NOT NULL)""",
    "the right ranks of a task rank its items": f"""SELECT 'task', t.id FROM tasks AS t
      WHERE t.gold IS NOT NULL AND ({_RANKS_OF.format(what="count(r.value) = 0", ranks="t.gold")}
      OR {_wrong_ranks("t.gold", "t.id")})""",
    "the items of an assignment are shown in an order of all": f"""SELECT 'assignment', a.id FROM assignments AS a
      WHERE json_array_length(a.display) <> {_ITEMS_OF.format(task="a.task")}
      OR (SELECT count(DISTINCT d.value) FROM json_each(a.display) AS d WHERE d.type = 'integer'
        AND d.value BETWEEN 0 AND json_array_length(a.display) - 1) <> json_array_length(a.display)""",
    "a judgement has the task and the annotator of its assignment": """SELECT 'judgement', j.id FROM judgements AS j
      JOIN assignments AS a ON a.id = j.assignment WHERE j.task <> a.task OR j.annotator <> a.annotator""",
    "a judgement ranks the items of its task": f"""SELECT 'judgement', j.id FROM judgements AS j
      WHERE json_array_length(j.ranks) <> {_ITEMS_OF.format(task="j.task")}
      OR (j.verdict = 'ranked') <> {_RANKS_OF.format(what="count(r.value) > 0", ranks="j.ranks")}
      OR {_wrong_ranks("j.ranks", "j.task")}""",
    "a judgement replaces an earlier one of the same assignment": """SELECT 'judgement', j.id FROM judgements AS j
      LEFT JOIN judgements AS e ON e.id = j.supersedes
      WHERE j.supersedes IS NOT NULL AND (e.id IS NULL OR e.id >= j.id OR e.assignment <> j.assignment)""",
    "a verdict is known": """SELECT 'judgement', id FROM judgements
      WHERE verdict NOT IN ('ranked', 'both_bad', 'cant_tell', 'written', 'undone')""",
    "what was written answers a task that asks for a demonstration": """SELECT 'judgement', j.id FROM judgements AS j
      JOIN tasks AS t ON t.id = j.task WHERE CASE t.kind WHEN 'demonstration'
        THEN j.verdict NOT IN ('written', 'cant_tell', 'undone') ELSE j.verdict = 'written' END""",
    "a confidence is from 1 to 5": "SELECT 'judgement', id FROM judgements WHERE confidence NOT BETWEEN 1 AND 5",
    "an annotator has a name, and is a person or a program": """SELECT 'annotator', id FROM annotators
      WHERE trim(name) = '' OR kind NOT IN ('person', 'program')""",
    "an annotator has signed out so many times": """SELECT 'annotator', id FROM annotators
      WHERE json_type(details, '$.signed_out') <> 'integer'""",
    "an item is a completion or a clip": "SELECT 'item', id FROM items WHERE kind NOT IN ('completion', 'clip')",
}
_CHECKS_OF_DEMONSTRATIONS = {
    "a demonstration is texts that are not blank, an odd number of them": """SELECT 'demonstration', d.id
      FROM demonstrations AS d WHERE json_array_length(d.texts) % 2 = 0 AND d.texts <> '[]'
      OR EXISTS (SELECT 1 FROM json_each(d.texts) AS e
        WHERE CASE e.type WHEN 'text' THEN trim(e.value, char(9, 10, 11, 12, 13, 32)) = '' ELSE 1 END)""",
    "a demonstration of a text is one text": """SELECT 'demonstration', d.id FROM demonstrations AS d
      JOIN prompts AS p ON p.id = d.prompt WHERE json_type(p.prompt) = 'text' AND json_array_length(d.texts) > 1""",
    "a demonstration was made of a completion of its prompt": """SELECT 'demonstration', d.id FROM demonstrations AS d
      JOIN items AS i ON i.id = d.item WHERE i.prompt IS NOT d.prompt""",
    "a demonstration has the prompt and the annotator of its assignment": """SELECT 'demonstration', d.id
      FROM demonstrations AS d JOIN assignments AS a ON a.id = d.assignment JOIN tasks AS t ON t.id = a.task
      WHERE t.prompt IS NOT d.prompt OR a.annotator <> d.annotator""",
    "a demonstration replaces an earlier one of the same annotator": """SELECT 'demonstration', d.id
      FROM demonstrations AS d LEFT JOIN demonstrations AS e ON e.id = d.supersedes
      WHERE CASE WHEN d.supersedes IS NULL THEN d.texts = '[]' ELSE e.id >= d.id OR e.prompt <> d.prompt
        OR e.annotator <> d.annotator OR e.assignment IS NOT d.assignment END""",
    "what was written for a task is there": """SELECT 'judgement', j.id FROM effective AS j
      JOIN tasks AS t ON t.id = j.task WHERE t.kind = 'demonstration' AND (j.verdict = 'written')
      <> EXISTS (SELECT 1 FROM effective_demonstrations AS d WHERE d.assignment = j.assignment)""",
}


def find_damage(connection: sqlite3.Connection, version: int = VERSION) -> str | None:
    """Return what is wrong with a store whose application and version are right, or None.

    Args:
        connection: To the store.
        version: Its version.
    """
    found = _tables(connection)
    for name, columns in _expected(version).items():
        if found.get(name) != columns:
            return f"{name}: expected {' '.join(columns)}, found {' '.join(found.get(name, ('nothing',)))}"
    return next(_damaged_rows(connection, version), None)


def _damaged_rows(connection: sqlite3.Connection, version: int) -> Iterator[str]:
    """Yield what is wrong with the rows, in an order in which each check may rely on those before it."""
    for (text,) in connection.execute("PRAGMA integrity_check(1)"):
        if text != "ok":
            yield " ".join(str(text).split())
    for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check"):
        yield f"{table}, row {row}: there is no such row in {parent}"
    for table, query in _value_queries(version).items():
        for place, *row in connection.execute(query):
            column = _expected(version)[table][place].partition(" ")[0]
            yield f"{table}: {column} is {str(row[place])[:80]!r}"
        for _ in connection.execute(f"SELECT * FROM {table}"):
            pass  # an error if a text is no UTF-8
    for rule, query in (_CHECKS | (_CHECKS_OF_DEMONSTRATIONS if version > 1 else {})).items():
        for what, number in connection.execute(f"{query} LIMIT 1"):
            yield f"{what} {number}: expected that {rule}"


def _tables(connection: sqlite3.Connection) -> dict[str, tuple[str, ...]]:
    """Return the columns of each table and view; of an index and a trigger, what it belongs to."""
    found = {}
    for kind, name, table in connection.execute("SELECT type, name, tbl_name FROM sqlite_master").fetchall():
        if kind in ("table", "view"):
            columns = connection.execute("SELECT name, type FROM pragma_table_info(?)", (name,)).fetchall()
            found[name] = tuple(f"{column} {declared}".strip() for column, declared in columns)
        elif not name.startswith("sqlite_"):
            found[name] = (kind, "of", table)
    return found


@functools.cache
def _expected(version: int) -> Mapping[str, tuple[str, ...]]:
    """Return the tables of a new store, as ``_tables`` does."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(schema_of(version))
        return _tables(connection)
    finally:
        connection.close()


@functools.cache
def _value_queries(version: int) -> Mapping[str, str]:
    """Return a query for each table that finds a value of another type than its column's, or of another type of JSON.

    It returns the place of the column and the row.
    """
    queries = {}
    for table, columns in _expected(version).items():
        if columns[0] in ("trigger", "index") or table.startswith("effective"):
            continue
        cases = [
            f"WHEN {_wrong_value(name, declared, _JSON.get(table, {}).get(name, ()))} THEN {place}"
            for place, (name, _, declared) in enumerate(column.partition(" ") for column in columns)
        ]
        queries[table] = f"SELECT CASE {' '.join(cases)} END AS place, * FROM {table} WHERE place IS NOT NULL LIMIT 1"
    return queries


def _wrong_value(column: str, declared: str, json_types: tuple[str, ...]) -> str:
    """Return the SQL condition that a column's value is there, and of another type."""
    stored = ", ".join(f"'{each}'" for each in (*_STORED_AS[declared], "null"))
    wrong = [f"typeof({column}) NOT IN ({stored})"]
    if declared == "REAL":
        wrong.append(f"abs({column}) = 9e999")  # infinite
    if json_types:
        expected = ", ".join(f"'{each}'" for each in json_types)
        wrong.append(f"NOT json_valid({column}) OR json_type({column}) NOT IN ({expected})")
    return f"{column} IS NOT NULL AND ({' OR '.join(wrong)})"
