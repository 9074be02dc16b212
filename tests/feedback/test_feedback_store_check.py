"""Stores that were changed by hand, damaged, or are none: each is refused when it is opened, and left as it is."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from textenv.commands.cli import main
from textenv.feedback.exchange import add_questions, add_rankings
from textenv.feedback.store import FeedbackStore
from textenv.feedback.store_check import find_damage
from textenv.feedback.store_schema import SCHEMA
from textenv.types import Ranking, TextEnvError

MODES: list[dict[str, Any]] = [{}, {"create": False}, {"read_only": True}]
TRIGGERS = SCHEMA[SCHEMA.index("CREATE TRIGGER") : SCHEMA.index("CREATE VIEW")]
TRIGGERS_OF_DEMONSTRATIONS = SCHEMA[SCHEMA.index("CREATE TRIGGER demonstrations_stay") : SCHEMA.rindex("CREATE VIEW")]
COMMANDS = {
    "status": ("feedback", "status", "STORE"),
    "export": ("feedback", "export", "STORE", "FOLDER/out.jsonl"),
    "import": ("feedback", "import", "STORE", "FOLDER/in.jsonl"),
    "annotate": ("feedback", "annotate", "STORE", "--kind", "lazy"),
    "label": ("label", "STORE", "--port", "0"),
}


def make_store(path: Path, *, demonstrations: bool = False) -> Path:
    """Make a store of two prompts, judged by two annotators, an undone judgement, a gold task, a clip task and more."""
    conversation = ({"role": "user", "content": "Hi"},)
    rankings = [Ranking(p, ("a", "b"), (0, 1), who) for p in ("The film", conversation) for who in ("ann", "bob")]
    with FeedbackStore(path) as store:
        add_rankings(store, rankings)
        add_rankings(store, [Ranking("The film", ("c", "d", "e"), (0, None, None))], gold=True)
        add_questions(store, [("The film", tuple("abcdefghi"))])
        store.undo(store.annotator("bob"))
        given = store.lease(store.annotator("cid"))
        assert given is not None
        store.judge(given.id, [], verdict="both_bad", confidence=5, note="no", seconds=2.0)
        policy = store.add_policy("p", folder="f", details={"a": 1})
        store.add_task([store.add_clip(f"{place}.gif", task="t", policy=policy) for place in range(2)], kind="clip")
        store.add_reward_model("rm", judgements=[1])
        if demonstrations:
            _add_demonstrations(store, conversation)
    return path


def _add_demonstrations(store: FeedbackStore, conversation: tuple[dict[str, str], ...]) -> None:
    """Add a demonstration, one beside a ranking that replaces another, one for a task, and one that was undone."""
    ann, dan, eve = map(store.annotator, ("ann", "dan", "eve"))
    store.add_demonstration(1, " is good.", annotator=ann, item=1)
    beside = store.lease(dan)
    assert beside is not None
    store.demonstrate(beside.id, " is.", supersedes=store.demonstrate(beside.id, " was."))
    store.add_demonstration_task(store.add_prompt(conversation), demonstrations=2, priority=9.0)
    for who in (dan, eve):
        store.release(beside.id)
        given = store.lease(who, kinds=["demonstration"])
        assert given is not None
        store.demonstrate(given.id, ["Hi.", "Bye.", "Bye."])
    store.undo(eve)


def change(path: Path, script: str) -> None:
    """Run SQL on a store as somebody might by hand, without what SQLite would check; the triggers come back."""
    connection = sqlite3.connect(path)
    connection.executescript(
        "PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON;"
        "DROP TRIGGER judgements_stay; DROP TRIGGER judgements_are_kept; "
        "DROP TRIGGER IF EXISTS demonstrations_stay; DROP TRIGGER IF EXISTS demonstrations_are_kept;"
    )
    connection.executescript(script)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if "DROP TRIGGER" not in script:
        connection.executescript(TRIGGERS)
        if version > 1 and "DROP TABLE demonstrations" not in script:
            connection.executescript(TRIGGERS_OF_DEMONSTRATIONS)
    connection.close()


# SQL that changes a store, and what the message says of it.
CHANGED = {
    "a prompt that is no JSON": ("UPDATE prompts SET prompt = '{' WHERE id = 1", "prompts: prompt is '{'"),
    "a prompt that is a number": ("UPDATE prompts SET prompt = '5' WHERE id = 1", "prompts: prompt is '5'"),
    "a prompt of texts": ("UPDATE prompts SET prompt = '[\"a\"]' WHERE id = 1", "that a prompt is a text, or"),
    "a message without content": ("UPDATE prompts SET prompt = '[{}]' WHERE id = 1", "a list of messages"),
    "a prompt that is no text": ("UPDATE prompts SET prompt = x'ff00' WHERE id = 1", "prompts: prompt is"),
    "a prompt that is no UTF-8": ("UPDATE prompts SET prompt = CAST(x'22ff22' AS TEXT) WHERE id = 1", "UTF-8"),
    "columns that are a list": ("UPDATE prompts SET columns = '[1]'", "prompts: columns is '[1]'"),
    "ranks that are no JSON": ("UPDATE judgements SET ranks = '[0'", "judgements: ranks is '[0'"),
    "ranks that are NaN": ("UPDATE judgements SET ranks = '[0, NaN]'", "judgements: ranks is"),
    "a rank too few": ("UPDATE judgements SET ranks = '[0]'", "judgement 1: expected that a judgement ranks"),
    "ranks that are booleans": ("UPDATE judgements SET ranks = '[false, true]'", "that a judgement ranks the items"),
    "a rank that is huge": ("UPDATE judgements SET ranks = '[0, 1e20]' WHERE id = 1", "that a judgement ranks"),
    "a rank of three for two": ("UPDATE judgements SET ranks = '[0, 2]' WHERE id = 1", "that a judgement ranks"),
    "no rank that is the best": ("UPDATE judgements SET ranks = '[1, 1]' WHERE id = 1", "that a judgement ranks"),
    "no ranks where it ranks": ("UPDATE judgements SET ranks = '[null, null]' WHERE id = 1", "that a judgement ranks"),
    "ranks where it does not": ("UPDATE judgements SET verdict = 'cant_tell' WHERE id = 1", "that a judgement ranks"),
    "ranks nested deeply": (f"UPDATE judgements SET ranks = '{'[' * 2000 + ']' * 2000}'", "that a judgement ranks"),
    "gold of another length": ("UPDATE tasks SET gold = '[0, 1]' WHERE gold IS NOT NULL", "that the right ranks"),
    "gold without a rank": ("UPDATE tasks SET gold = '[null, null, null]' WHERE gold IS NOT NULL", "the right ranks"),
    "an order of one": ("UPDATE assignments SET display = '[0]'", "shown in an order of all"),
    "an order with an item twice": ("UPDATE assignments SET display = '[0, 0]' WHERE id = 1", "an order of all"),
    "an order beyond the items": ("UPDATE assignments SET display = '[0, 7]' WHERE id = 1", "an order of all"),
    "tasks of other prompts": ("UPDATE tasks SET prompt = 3 - prompt WHERE id < 3", "of its kind and its prompt"),
    "a task without a prompt": ("UPDATE tasks SET prompt = NULL WHERE id = 1", "of its kind and its prompt"),
    "an item of another prompt": ("UPDATE items SET prompt = 2 WHERE id = 1", "of its kind and its prompt"),
    "an item of another kind": ("UPDATE items SET kind = 'clip' WHERE id = 1", "of its kind and its prompt"),
    "a task of another kind": ("UPDATE tasks SET kind = 'clip' WHERE id = 1", "of its kind and its prompt"),
    "a task without items": ("DELETE FROM task_items WHERE task = 1", "task 1: expected that a task has 2 to 9 items"),
    "a task with one item": ("DELETE FROM task_items WHERE position = 1", "that a task has 2 to 9 items"),
    "places that are moved": ("UPDATE task_items SET position = 17 WHERE position = 0", "in places from 0"),
    "items that are gone": ("DELETE FROM items", "there is no such row in items"),
    "prompts that are gone": ("DELETE FROM prompts", "there is no such row in prompts"),
    "annotators that are gone": ("DELETE FROM annotators", "there is no such row in annotators"),
    "assignments that are gone": ("DELETE FROM assignments", "there is no such row in assignments"),
    "tasks that are gone": ("DELETE FROM tasks", "there is no such row in tasks"),
    "a judgement of another annotator": (
        "UPDATE judgements SET annotator = 2 WHERE id = 1", "the task and the annotator of its assignment",
    ),
    "a judgement of another task": (
        "UPDATE judgements SET task = 2 WHERE id = 1", "the task and the annotator of its assignment",
    ),
    "a judgement that replaces itself": ("UPDATE judgements SET supersedes = 1 WHERE id = 1", "replaces an earlier"),
    "a judgement that replaces none": ("UPDATE judgements SET supersedes = 99 WHERE id = 1", "no such row"),
    "a confidence of 77": ("UPDATE judgements SET confidence = 77", "that a confidence is from 1 to 5"),
    "a confidence that is a text": ("UPDATE judgements SET confidence = 'x'", "judgements: confidence is 'x'"),
    "seconds without end": ("UPDATE judgements SET seconds = 9e999", "judgements: seconds is 'inf'"),
    "a time that is a text": ("UPDATE tasks SET created = 'today'", "tasks: created is 'today'"),
    "an unknown verdict": ("UPDATE judgements SET verdict = 'maybe' WHERE id = 5", ""),
    "a text that counts": ("UPDATE annotators SET details = '{\"signed_out\": \"x\"}'", "signed out so many times"),
    "an unknown kind of annotator": ("UPDATE annotators SET kind = 'cat'", ""),
    "an unknown kind of item": ("UPDATE items SET kind = 'poem' WHERE kind = 'clip'", ""),
    "a task that nobody is to judge": ("UPDATE tasks SET judgements = 0", ""),
    "a name that is empty": ("UPDATE annotators SET name = ' ' WHERE id = 1", "that an annotator has a name"),
    "a table that is missing": ("DROP TABLE trained_on", "trained_on: expected reward_model INTEGER judgement INTEGER"),
    "a view that is missing": ("DROP VIEW effective", "effective: expected"),
    "triggers that are missing": ("DROP TRIGGER IF EXISTS judgements_stay", "expected trigger of judgements, found"),
    "a column of another name": ("ALTER TABLE items RENAME COLUMN text TO words", "items: expected id"),
    "two tables in each other's place": (
        "DROP VIEW effective; ALTER TABLE policies RENAME TO p; ALTER TABLE reward_models RENAME TO policies; "
        "ALTER TABLE p RENAME TO reward_models",
        ": expected id INTEGER",
    ),
}  # fmt: skip


# The same of a store with demonstrations.
CHANGED_DEMONSTRATIONS = {
    "texts that are no JSON": ("UPDATE demonstrations SET texts = '[' WHERE id = 1", "demonstrations: texts is '['"),
    "texts that are a text": ("UPDATE demonstrations SET texts = '\"a\"'", "demonstrations: texts is"),
    "two texts": ("UPDATE demonstrations SET texts = '[\"a\", \"b\"]' WHERE id = 4", "an odd number of them"),
    "a text that is a number": ("UPDATE demonstrations SET texts = '[5]' WHERE id = 1", "texts that are not blank"),
    "a text that is blank": ("UPDATE demonstrations SET texts = '[\" \"]' WHERE id = 1", "texts that are not blank"),
    "three texts after one": (
        "UPDATE demonstrations SET texts = '[\"a\", \"b\", \"c\"]' WHERE id = 1", "demonstration of a text is one text",
    ),
    "nothing that takes back nothing": ("UPDATE demonstrations SET texts = '[]' WHERE id = 1", "replaces an earlier"),
    "an item of another prompt": (
        "UPDATE demonstrations SET item = (SELECT id FROM items WHERE prompt = 2) WHERE id = 1", "of its prompt",
    ),
    "an item that is none": ("UPDATE demonstrations SET item = 99 WHERE id = 1", "no such row in items"),
    "another author": ("UPDATE demonstrations SET annotator = 1 WHERE id = 4", "the annotator of its assignment"),
    "another prompt": ("UPDATE demonstrations SET prompt = 1 WHERE id = 4", "of a text is one text"),
    "one that replaces another's": ("UPDATE demonstrations SET supersedes = 1 WHERE id = 3", "of the same annotator"),
    "one that replaces itself": ("UPDATE demonstrations SET supersedes = id WHERE id = 3", "replaces an earlier"),
    "an answer that is gone": ("DELETE FROM demonstrations WHERE id = 4", "what was written for a task is there"),
    "seconds without end": ("UPDATE demonstrations SET seconds = 9e999", "demonstrations: seconds is 'inf'"),
    "a ranking that was written": (
        "UPDATE judgements SET verdict = 'written', ranks = '[null, null]' WHERE id = 1", "answers a task that asks",
    ),
    "an answer that is a verdict": ("UPDATE judgements SET verdict = 'both_bad' WHERE verdict = 'written'", "answers"),
    "a task with a right answer": ("UPDATE tasks SET gold = '[]' WHERE kind = 'demonstration'", "a prompt and nothing"),
    "a task without a prompt": ("UPDATE tasks SET prompt = NULL WHERE kind = 'demonstration'", "a prompt and nothing"),
    "a task with items": (
        "INSERT INTO task_items SELECT id, 0, 1 FROM tasks WHERE kind = 'demonstration'", "and nothing else",
    ),
    "a table that is missing": (
        "DROP VIEW effective_demonstrations; DROP TABLE demonstrations", "demonstrations: expected id INTEGER",
    ),
    "triggers that are missing": ("DROP TRIGGER IF EXISTS demonstrations_stay", "expected trigger of"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGED_DEMONSTRATIONS)
def test_demonstrations_that_were_changed_by_hand_are_refused(case: str, tmp_path: Path) -> None:
    script, part = CHANGED_DEMONSTRATIONS[case]
    path = make_store(tmp_path / "x.db", demonstrations=True)
    change(path, script)
    for mode in MODES:
        with pytest.raises(TextEnvError) as caught:
            FeedbackStore(path, **mode)
        assert part in str(caught.value)


@pytest.mark.parametrize("case", CHANGED)
def test_a_store_that_was_changed_by_hand_is_refused(case: str, tmp_path: Path) -> None:
    script, part = CHANGED[case]
    path = make_store(tmp_path / "x.db")
    change(path, script)
    before = path.read_bytes()
    for mode in MODES:
        with pytest.raises(TextEnvError) as caught:
            FeedbackStore(path, **mode)
        assert part in str(caught.value)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("demonstrations", [False, True], ids=["", "demonstrations"])
def test_a_store_as_it_was_made_is_whole(tmp_path: Path, *, demonstrations: bool) -> None:
    path = make_store(tmp_path / "x.db", demonstrations=demonstrations)
    for mode in MODES:
        with FeedbackStore(path, **mode) as store, store._connection() as connection:
            assert find_damage(connection) is None
            assert len(store.judgements()) == 4 + demonstrations
            assert len(store.demonstrations()) == 3 * demonstrations
    change(path, "")
    with FeedbackStore(path) as store:
        assert len(store.judgements()) == 4 + demonstrations


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", ["ranks that are no JSON", "a table that is missing", "items that are gone"])
def test_every_command_says_so_in_one_line(
    command: str, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_store(tmp_path / "x.db")
    change(path, CHANGED[case][0])
    (tmp_path / "in.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b", "annotator": "ann"}')
    given = [word.replace("STORE", str(path)).replace("FOLDER", str(tmp_path)) for word in COMMANDS[command]]
    assert main(given) == 1
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"error: {path} is damaged, or was changed by hand (")


def cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def overwritten(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xab" * (len(data) - 4096)
    path.write_bytes(data)
    return path


def other_program(path: Path, *, with_table: bool, application: int) -> Path:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA application_id = {application}")
    if with_table:
        connection.execute("CREATE TABLE prompts (x)")
    connection.commit()
    connection.close()
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def linked(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


NO_STORES: dict[str, Callable[[Path], Path]] = {
    "one byte": lambda path: written(path, b"x"),
    "zeros": lambda path: written(path, b"\0" * 5000),
    "a header alone": lambda path: written(path, b"SQLite format 3\0"),
    "a header and zeros": lambda path: written(path, b"SQLite format 3\0" + b"\0" * 5000),
    "a file of records": lambda path: written(path, b'{"prompt": "a"}\n'),
    "half a store": lambda path: cut(make_store(path), 40_000),
    "a store with pages of something else": lambda path: overwritten(make_store(path)),
    "another program's database": lambda path: other_program(path, with_table=True, application=0),
    "another program's, named": lambda path: other_program(path, with_table=True, application=1234),
    "another program's, empty": lambda path: other_program(path, with_table=False, application=1234),
    "a folder": lambda path: path.parent,
    "a device": lambda path: Path("/dev/null"),
    "a pipe": fifo,
    "below a file": lambda path: written(path, b"x") / "x.db",
    "a name that is too long": lambda path: path.with_name("x" * 300),
    "a name with a NUL": lambda path: path.with_name("x\0.db"),
    "a link to itself": lambda path: linked(path, path.name),
}


@pytest.mark.parametrize("case", NO_STORES)
def test_what_is_no_store_is_refused_and_left_as_it_is(case: str, tmp_path: Path) -> None:
    path = NO_STORES[case](tmp_path / "x.db")
    before = path.read_bytes() if (tmp_path / "x.db").is_file() and path == tmp_path / "x.db" else b""
    listed = sorted(each.name for each in tmp_path.iterdir())
    for mode in MODES:
        with pytest.raises(TextEnvError) as caught:
            FeedbackStore(path, **mode)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)
    assert not before or path.read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == listed


def test_a_store_through_a_link_is_read_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = linked(tmp_path / "x.db", "elsewhere/x.db")
    with FeedbackStore(link) as store:
        store.add_prompt("The film")
        with FeedbackStore(link, read_only=True) as reader:
            assert list(reader.prompts().values()) == ["The film"]
    assert link.is_symlink()


HALF = "\ud83d"


@pytest.mark.parametrize(
    ("act", "part"),
    [
        (lambda store, items: store.annotator(HALF), "annotator is '\\ud83d'; character 0 is half"),
        (lambda store, items: store.annotator(5), "annotator is 5; expected a text"),
        (lambda store, items: store.annotator("a", details={"a": HALF}), "surrogates not allowed"),
        (lambda store, items: store.annotator("a", details={"a": object()}), "expected JSON values"),
        (lambda store, items: store.add_prompt(HALF), "prompt is '\\ud83d'; character 0 is half"),
        (lambda store, items: store.add_prompt(None), "prompt is None; expected a text"),
        (lambda store, items: store.add_prompt(["a"]), "message 0 is 'a'"),
        (lambda store, items: store.add_prompt("a", columns={"a": float("nan")}), "value['a'] is nan"),
        (lambda store, items: store.add_completion(1, HALF), "text is '\\ud83d'; character 0 is half"),
        (lambda store, items: store.add_completion(1, 5), "text is 5; expected a text"),
        (lambda store, items: store.add_completion(2**70, "a"), "prompts has no number 1180591620717411303424"),
        (lambda store, items: store.add_completion(10**5000, "a"), "too long to show"),
        (lambda store, items: store.add_completion(True, "a"), "prompts has no number True"),
        (lambda store, items: store.add_policy(HALF), "name is '\\ud83d'; character 0 is half"),
        (lambda store, items: store.add_policy("x", parent=99), "FOREIGN KEY"),
        (lambda store, items: store.add_clip("x", task=HALF), "task is '\\ud83d'; character 0 is half"),
        (lambda store, items: store.add_task(5), "items=5: expected a list"),
        (lambda store, items: store.add_task(items, judgements="2"), "judgements is '2'; expected a whole number"),
        (lambda store, items: store.add_task(items, judgements=True), "judgements is True"),
        (lambda store, items: store.add_task(items, priority="x"), "priority is 'x'; expected a finite number"),
        (lambda store, items: store.add_task(items, gold="01"), "expected a list of 2 ranks"),
        (lambda store, items: store.judge(1, 5), "expected a list of 2 ranks"),
        (lambda store, items: store.judge(1, [0, 10**5000]), "too long to show"),
        (lambda store, items: store.judge(1, [0, 1], note=HALF), "note is '\\ud83d'; character 0 is half"),
        (lambda store, items: store.judge(1, [0, 1], confidence=True), "confidence is True"),
        (lambda store, items: store.judge(1, [0, 1], confidence="5"), "confidence is '5'"),
        (lambda store, items: store.judge(1, [0, 1], seconds="5"), "seconds is '5'"),
        (lambda store, items: store.judge(1, [0, 1], seconds=float("nan")), "seconds is nan"),
        (lambda store, items: store.record(1, 1, 5), "expected a list of 2 ranks"),
        (lambda store, items: store.lease(1, seconds="x"), "seconds is 'x'; expected a finite number"),
    ],
)
def test_values_that_a_store_does_not_take(
    act: Callable[[FeedbackStore, list[int]], object], part: str, tmp_path: Path
) -> None:
    with FeedbackStore(tmp_path / "x.db") as store:
        prompt = store.add_prompt("p")
        items = [store.add_completion(prompt, text) for text in "ab"]
        store.add_task(items)
        store.lease(store.annotator("ann"))
        before = (store.tasks(), store.prompts(), store.completions(), store.annotators(), store.policies())
        with pytest.raises(TextEnvError) as caught:
            act(store, items)
        assert part in str(caught.value)
        assert before == (store.tasks(), store.prompts(), store.completions(), store.annotators(), store.policies())
        assert store.judgements(effective=False) == []
