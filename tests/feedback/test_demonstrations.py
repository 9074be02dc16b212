"""Demonstrations: written, changed, taken back and undone in a store; to files and back; and read by fine-tuning."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.families import save_family
from tests.feedback.test_feedback_store_check import change, make_store
from textenv.commands.cli import main
from textenv.commands.rlhf_run import _fine_tuned
from textenv.commands.settings import RlhfSettings
from textenv.feedback import store_database
from textenv.feedback.annotators import Lazy, annotate
from textenv.feedback.demonstrations import (
    WrittenAnswer,
    add_demonstrations,
    demonstration_records,
    read_demonstrations,
    with_stores_read,
    write_demonstrations,
)
from textenv.feedback.store import FeedbackStore
from textenv.feedback.store_check import find_damage
from textenv.feedback.store_schema import APPLICATION_ID, UPGRADE, schema_of
from textenv.training.configs import SftConfig
from textenv.training.sft import sft
from textenv.training.texts import read_examples
from textenv.types import TextEnvError

CHAT = ({"role": "user", "content": "What is a heron?"},)
BEGUN = (*CHAT, {"role": "assistant", "content": "A heron is"})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    with FeedbackStore(tmp_path / "store.db") as opened:
        yield opened
        with opened._connection() as connection:
            assert find_damage(connection) is None


def ranking(store: FeedbackStore, who: str = "ann") -> Any:
    prompt = store.add_prompt(CHAT)
    store.add_task([store.add_completion(prompt, text) for text in ("A bird.", "A fish.")])
    return store.lease(store.annotator(who))


def texts_of(store: FeedbackStore, **which: Any) -> list[tuple[str, ...]]:
    return [each.texts for each in store.demonstrations(**which)]


def test_writing_beside_a_ranking_leaves_it_as_it_is(store: FeedbackStore) -> None:
    given = ranking(store)
    first = store.demonstrate(given.id, "A wading bird.", seconds=2.5)
    edited = store.demonstrate(given.id, ["A large bird.", "Where does it live?", "By water."], item=given.items[1].id)
    assert store.demonstrate(given.id, "A wading bird.") == first, "sent twice, stored once"
    (one, other) = store.demonstrations()
    assert (one.id, one.prompt, one.annotator, one.item, one.assignment, one.seconds) == (first, 1, 1, None, 1, 2.5)
    assert (other.id, other.texts, other.item) == (
        edited, ("A large bird.", "Where does it live?", "By water."), given.items[1].id,
    )  # fmt: skip
    assert store.judgements() == []
    assert store.lease(given.annotator) is not None
    store.judge(given.id, [0, 1])
    store.demonstrate(given.id, "A bird that wades.")  # late, and welcome
    assert len(store.demonstrations()) == 3
    store.undo(given.annotator)
    assert len(store.demonstrations()) == 3, "undoing a ranking takes no answer back"


def test_changing_supersedes_and_nothing_is_changed(store: FeedbackStore) -> None:
    given = ranking(store)
    first = store.demonstrate(given.id, "One.")
    second = store.demonstrate(given.id, "Two.", supersedes=first)
    assert store.demonstrate(given.id, "Two.", supersedes=first) == second, "the same form, sent again"
    assert store.demonstrate(given.id, "Two.", supersedes=second) == second, "nothing was changed"
    assert texts_of(store) == [("Two.",)]
    assert texts_of(store, effective=False) == [("One.",), ("Two.",)]
    with pytest.raises(TextEnvError, match="replaced already"):
        store.demonstrate(given.id, "Three.", supersedes=first)
    ben = store.annotator("ben")
    with pytest.raises(TextEnvError, match="not annotator 2's"):
        store.take_back(second, ben)
    with pytest.raises(TextEnvError, match="not annotator 2's"):
        store.add_demonstration(1, "Mine.", annotator=ben, supersedes=second)
    with pytest.raises(TextEnvError, match="another task"):
        store.add_demonstration(1, "Mine.", annotator=given.annotator, supersedes=second)
    for _ in range(2):
        store.take_back(second, given.annotator)
    assert texts_of(store) == []
    assert texts_of(store, effective=False) == [("One.",), ("Two.",), ()]
    for command in ("DELETE FROM demonstrations", "UPDATE demonstrations SET texts = '[]'"):
        with pytest.raises(TextEnvError, match="demonstrations are never"), store.transaction() as connection:
            connection.execute(command)


def test_a_task_that_asks_for_an_answer(store: FeedbackStore) -> None:
    task = store.add_demonstration_task(store.add_prompt(CHAT, columns={"topic": "birds"}), demonstrations=2)
    ann, ben, eve = map(store.annotator, ("ann", "ben", "eve"))
    given = store.lease(ann)
    assert given is not None
    assert (given.kind, given.prompt, given.items, given.columns) == ("demonstration", CHAT, (), {"topic": "birds"})
    number = store.demonstrate(given.id, "A bird.")
    assert store.demonstrate(given.id, "A bird.") == number
    with pytest.raises(TextEnvError, match="already, in another way"):
        store.demonstrate(given.id, "Another.")
    with pytest.raises(TextEnvError, match="undo that answer"):
        store.take_back(number, ann)
    (judgement,) = store.judgements()
    assert (judgement.verdict, judgement.ranks, judgement.task) == ("written", (), task)
    assert store.rankings() == []
    undone = store.undo(ann)
    assert undone is not None
    assert undone.id == given.id
    assert store.demonstrations() == []
    again = store.demonstrate(given.id, "A bird.")  # what was taken back may be written again
    assert again != number
    assert store.lease(ann) is None
    skipped = store.lease(ben)
    assert skipped is not None
    store.judge(skipped.id, [], verdict="cant_tell")
    assert store.lease(ben) is None
    assert store.progress().done == 1, "who cannot answer has not answered"
    last = store.lease(eve)
    assert last is not None
    store.demonstrate(last.id, "A wader.")
    assert store.progress() == type(store.progress())(wanted=2, done=2, open=0)
    assert store.lease(store.annotator("dan")) is None


def test_a_lease_of_an_answer_that_ran_out(tmp_path: Path) -> None:
    now = [1000.0]
    with FeedbackStore(tmp_path / "x.db", clock=lambda: now[0]) as store:
        store.add_demonstration_task(store.add_prompt("The film"))
        ann, ben = store.annotator("ann"), store.annotator("ben")
        late, other = store.lease(ann, seconds=60), None
        assert late is not None
        now[0] += 61
        other = store.lease(ben)
        assert other is not None
        store.demonstrate(other.id, " is good.")
        with pytest.raises(TextEnvError, match="ran out, and others"):
            store.demonstrate(late.id, " is bad.")
        assert texts_of(store) == [(" is good.",)]


def test_programs_are_not_asked_to_write(store: FeedbackStore) -> None:
    store.add_demonstration_task(store.add_prompt("The film"), priority=5.0)
    prompt = store.add_prompt("The acting")
    store.add_task([store.add_completion(prompt, text) for text in "ab"])
    assert annotate(store, Lazy(), "program") == 1
    assert store.progress().done == 1


@pytest.mark.parametrize(
    ("prompt", "texts", "part"),
    [
        ("The film", "", "texts[0], the assistant's, is ''"),
        ("The film", " \n", "expected something that is written"),
        ("The film", [], "0 texts; expected an answer"),
        ("The film", [" is", "good", "."], "a prompt that is a text; expected one"),
        ("The film", 5, "texts is 5; expected a text"),
        ("The film", [5], "texts[0] is 5; expected a text"),
        ("The film", "\ud83d", "half"),
        (CHAT, ["a", "b"], "2 texts; expected an answer"),
        (CHAT, ["a", " ", "c"], "texts[1], the user's, is ' '"),
        (({"role": "system", "content": "Be brief."},), "Hello.", "The assistant would speak first"),
    ],
)
def test_what_is_no_answer(store: FeedbackStore, prompt: Any, texts: Any, part: str) -> None:
    number, ann = store.add_prompt(prompt), store.annotator("ann")
    with pytest.raises(TextEnvError) as caught:
        store.add_demonstration(number, texts, annotator=ann)
    assert part in str(caught.value)
    assert store.demonstrations(effective=False) == []


def test_what_else_a_store_does_not_take(store: FeedbackStore) -> None:
    ann = store.annotator("ann")
    prompt, other = store.add_prompt("The film"), store.add_prompt("The acting")
    item = store.add_completion(other, " is bad.")
    system = store.add_prompt(({"role": "system", "content": "x"},))
    with pytest.raises(TextEnvError, match="expected a completion of prompt 1"):
        store.add_demonstration(prompt, " is good.", annotator=ann, item=item)
    with pytest.raises(TextEnvError, match="prompts has no number 9"):
        store.add_demonstration(9, " is good.", annotator=ann)
    with pytest.raises(TextEnvError, match="would speak first"):
        store.add_demonstration_task(system)
    with pytest.raises(TextEnvError, match="demonstrations=0"):
        store.add_demonstration_task(prompt, demonstrations=0)
    store.add_task([store.add_clip(f"{place}.gif", task="t") for place in range(2)], kind="clip")
    clips = store.lease(ann)
    assert clips is not None
    with pytest.raises(TextEnvError, match="about clips"):
        store.demonstrate(clips.id, "text")
    store.judge(clips.id, [0, 1])
    store.add_demonstration_task(prompt)
    given = store.lease(ann)
    assert given is not None
    for verdict in ("ranked", "both_bad"):
        with pytest.raises(TextEnvError, match="asks for a demonstration"):
            store.judge(given.id, [], verdict=verdict)
    with pytest.raises(TextEnvError, match="seconds=-1"):
        store.demonstrate(given.id, "x", seconds=-1)
    with pytest.raises(TextEnvError, match="asks for a demonstration, not for a ranking"):
        store.record(given.task, store.annotator("ben"), [])
    assert store.demonstrations(effective=False) == []


# Stores of version 1

TABLES = (
    "reward_models", "policies", "prompts", "items", "tasks", "task_items", "annotators", "assignments", "judgements",
    "trained_on",
)  # fmt: skip


def make_old(path: Path) -> Path:
    """Make a store of version 1 with what ``make_store`` puts into one of today."""
    newer = make_store(path.with_suffix(".new"))
    connection = sqlite3.connect(path)
    connection.executescript(schema_of(1))
    connection.execute("ATTACH ? AS newer", (str(newer),))
    for table in TABLES:
        connection.execute(f"INSERT INTO {table} SELECT * FROM newer.{table}")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 1")
    connection.commit()
    connection.close()
    return path


def test_the_tables_of_version_1_are_what_they_were() -> None:
    connection = sqlite3.connect(":memory:")
    connection.executescript(schema_of(1))
    made = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    connection.close()
    plain = "\n".join(sorted(" ".join(sql.split()) for (sql,) in made))
    assert (
        hashlib.sha256(plain.encode()).hexdigest() == "2d28dcdb29e23ccb7841c2784dcfef74b3b903b816d27fedc76e8782f23e07ea"
    )


def test_an_old_store_is_read_as_it_is_and_brought_up_to_be_written(tmp_path: Path) -> None:
    path = make_old(tmp_path / "x.db")
    before = path.read_bytes()
    with FeedbackStore(path, read_only=True) as old:
        judgements, rankings, tasks = old.judgements(effective=False), old.rankings(), old.tasks()
        assert len(judgements) == 6
        assert old.demonstrations() == []
    assert path.read_bytes() == before
    with FeedbackStore(path) as store:
        assert (store.judgements(effective=False), store.rankings(), store.tasks()) == (judgements, rankings, tasks)
        assert [model.judgements for model in store.reward_models()] == [(1,)]
        for command in ("DELETE FROM judgements", "UPDATE judgements SET note = 'x'", "DELETE FROM items"):
            with pytest.raises(TextEnvError, match=r"never|FOREIGN KEY"), store.transaction() as connection:
                connection.execute(command)
        store.add_demonstration_task(store.add_prompt("The film"), priority=9.0)
        given = store.lease(store.annotator("dan"))
        assert given is not None
        store.demonstrate(given.id, " is good.")
    with FeedbackStore(path, read_only=True) as store:
        assert texts_of(store) == [(" is good.",)]
        assert len(store.judgements(effective=False)) == 7


def test_an_old_store_is_brought_up_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_old(tmp_path / "x.db")
    monkeypatch.setattr(store_database, "UPGRADE", UPGRADE + "SELECT nonsense;\n")
    with pytest.raises(TextEnvError, match="nonsense"):
        FeedbackStore(path)
    monkeypatch.undo()
    with FeedbackStore(path, read_only=True) as store:
        assert store._version == 1
        assert len(store.judgements(effective=False)) == 6
    with FeedbackStore(path) as store:
        assert store._version == 2


def test_a_damaged_old_store_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = make_old(tmp_path / "x.db")
    change(path, "UPDATE judgements SET ranks = '[0'")
    with pytest.raises(TextEnvError, match="damaged"):
        FeedbackStore(path)
    with pytest.raises(TextEnvError, match="damaged"):
        FeedbackStore(path, read_only=True)
    (version,) = sqlite3.connect(path).execute("PRAGMA user_version").fetchone()
    assert version == 1


# Files


def written(store: FeedbackStore) -> None:
    """Write one demonstration of each form."""
    ann, ben = store.annotator("ann"), store.annotator("Bén")
    film, chat, begun = store.add_prompt("The film"), store.add_prompt(CHAT), store.add_prompt(BEGUN)
    item = store.add_completion(film, " is bad.")
    store.add_demonstration(film, " is good.", annotator=ann, item=item)
    store.add_demonstration(chat, ["A bird.", "Of what kind?", "A wader."], annotator=ben)
    store.add_demonstration(begun, " a bird.", annotator=ann)


def test_records(store: FeedbackStore) -> None:
    written(store)
    assistant = [{"role": "assistant", "content": text} for text in ("A bird.", "A wader.", "A heron is a bird.")]
    assert demonstration_records(store) == [
        {"prompt": "The film", "completion": " is good.", "annotator": "ann", "edited_from": " is bad."},
        {
            "messages": [*CHAT, assistant[0], {"role": "user", "content": "Of what kind?"}, assistant[1]],
            "written": 3, "annotator": "Bén", "edited_from": None,
        },
        {"messages": [*CHAT, assistant[2]], "written": 1, "annotator": "ann", "edited_from": None},
    ]  # fmt: skip


def test_to_a_file_and_back(store: FeedbackStore, tmp_path: Path) -> None:
    written(store)
    for name in ("x.jsonl", "x.json"):
        assert write_demonstrations(tmp_path / name, store) == 3
        answers = read_demonstrations(tmp_path / name)
        with FeedbackStore(tmp_path / f"{name}.db") as other:
            assert add_demonstrations(other, answers) == 3
            assert add_demonstrations(other, answers) == 0
            assert demonstration_records(other) == demonstration_records(store)
            other_texts = texts_of(other)
            other.take_back(1, other.annotator("ann"))
            assert add_demonstrations(other, answers) == 1
            assert sorted(texts_of(other)) == sorted(other_texts)
    examples = [found for _, found in read_examples(tmp_path / "x.jsonl")]
    assert examples[0] == ("The film", " is good.")
    assert [message["role"] for message in examples[1]] == ["user", "assistant", "user", "assistant"]  # type: ignore[index]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_hold_demonstrations_of_one_form(store: FeedbackStore, tmp_path: Path, kind: str) -> None:
    film, ann = store.add_prompt("The film"), store.annotator("ann")
    item = store.add_completion(film, " is bad.")
    store.add_demonstration(film, " is good.", annotator=ann, item=item)
    store.add_demonstration(film, " is fine.", annotator=ann)
    path = tmp_path / f"x.{kind}"
    write_demonstrations(path, store)
    assert read_demonstrations(path) == [
        WrittenAnswer("The film", (" is good.",), "ann", " is bad."),
        WrittenAnswer("The film", (" is fine.",), "ann", None),
    ]
    store.add_demonstration(store.add_prompt(CHAT), "A bird.", annotator=ann)
    with pytest.raises(TextEnvError, match="expected the same in every record"):
        write_demonstrations(path, store)


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"prompt": "p"}, "expected the texts 'prompt' and 'completion'"),
        ({"prompt": "p", "completion": " "}, "expected something that is written"),
        ({"messages": [dict(CHAT[0])]}, "the messages are of ['user'], and what was written of []"),
        ({"messages": [{"role": "assistant", "content": "Hi."}]}, "expected a prompt"),
        ({"messages": [{"role": "cat", "content": "Hi."}]}, "cat"),
        ({"messages": [dict(m) for m in BEGUN], "written": 2}, "written"),
        ({"messages": [dict(m) for m in BEGUN], "written": "1"}, "written is '1'"),
        ({"messages": [dict(m) for m in (*BEGUN, *CHAT)]}, "2 texts; expected"),
    ],
)
def test_records_that_are_no_demonstrations(tmp_path: Path, row: dict[str, Any], part: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"annotator": "ann", **row}, allow_nan=False))
    with pytest.raises(TextEnvError) as caught:
        read_demonstrations(path)
    assert part in str(caught.value)
    assert str(caught.value).startswith(f"{path}, line 1: ")


def test_conversations_of_others_are_taken_whole(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"messages": [*BEGUN, *BEGUN]}, allow_nan=False))
    (answer,) = read_demonstrations(tmp_path / "x.jsonl")
    assert answer == WrittenAnswer(CHAT, ("A heron is", "What is a heron?", "A heron is"), "", None)
    with FeedbackStore(tmp_path / "x.db") as store:
        with pytest.raises(TextEnvError, match="does not say who wrote it"):
            add_demonstrations(store, [answer])
        assert store.prompts() == {}
        assert add_demonstrations(store, [answer], annotator="ann") == 1


# Commands


def said(capsys: pytest.CaptureFixture[str], *words: str | Path, fails: bool = False) -> str:
    assert main([str(word) for word in words]) == int(fails)
    found = capsys.readouterr().out
    assert not fails or found.count("\n") == 1, found
    return " ".join(found.split())


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, prompts, out = tmp_path / "x.db", tmp_path / "p.txt", tmp_path / "out.jsonl"
    prompts.write_text("The film\nThe acting\nThe plot\n")
    add = ("feedback", "add", store, "--prompts", prompts)
    assert "Name policies" in said(capsys, *add, fails=True)
    assert "--samples is about completions" in said(capsys, *add, "--demonstrations", "--samples", "3", fails=True)
    assert "--policies is about" in said(capsys, *add, "--demonstrations", "--policies", "a=bundled", fails=True)
    assert not store.exists()
    asked = said(capsys, *add, "--demonstrations", "--max-prompts", "2", "--judgements", "2", "--chat")
    assert "2 prompts added, each to be answered by 2." in asked
    assert "no demonstrations in it" in said(capsys, "feedback", "export", store, out, "--demonstrations", fails=True)
    with FeedbackStore(store) as opened:
        given = opened.lease(opened.annotator("ann"))
        assert given is not None
        assert given.prompt == ({"role": "user", "content": given.prompt[0]["content"]},)  # type: ignore[index]
        opened.demonstrate(given.id, "Good.")
    status = said(capsys, "feedback", "status", store)
    assert "demonstrations │ 1 │" in status
    assert "1 of 4" in status
    assert "1 demonstrations" in said(capsys, "feedback", "export", store, out, "--demonstrations")
    wrong = said(capsys, "feedback", "export", store, out, "--demonstrations", "--format", "trl", fails=True)
    assert "--format is about rankings" in wrong
    load = ("feedback", "import", tmp_path / "y.db", out, "--demonstrations")
    assert "--unjudged is about rankings" in said(capsys, *load, "--unjudged", fails=True)
    assert "1 demonstrations added, 0 were there" in said(capsys, *load)
    assert "0 demonstrations added, 1 were there" in said(capsys, *load)
    assert "none of its 0 judgements" in said(capsys, "feedback", "export", store, out, fails=True)


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"prompt": [{"role": "system", "content": "x"}]}, "prompt 1: The assistant would speak first"),
        ({"prompt": []}, "expected a text, or a list of messages"),
        ({"prompt": [{"role": "cat", "content": "x"}]}, "cat"),
    ],
)
def test_prompts_that_nobody_can_answer(
    row: dict[str, Any], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps(row, allow_nan=False))
    command = ("feedback", "add", tmp_path / "x.db", "--prompts", tmp_path / "p.jsonl", "--demonstrations")
    assert part in said(capsys, *command, fails=True)


# Fine-tuning


def test_fine_tuning_reads_a_store_and_keeps_what_it_began_with(tmp_path: Path) -> None:
    save_family(tmp_path / "lm", "llama")
    path, out = tmp_path / "odd name", tmp_path / "out"  # known by what it holds, where its suffix says nothing
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "p", "completion": "c"}\n')
    with FeedbackStore(path) as store:
        written(store)
    config = SftConfig(str(tmp_path / "lm"), (path, pairs, path), out, validation=path, epochs=1)
    read, copy = with_stores_read(config), out / "demonstrations.jsonl"
    assert (read.files, read.validation) == ((copy, pairs, copy), copy)
    assert len(list(read_examples(copy))) == 3
    assert with_stores_read(SftConfig("x", (pairs,), out)).files == (pairs,)
    with FeedbackStore(path) as store:
        store.add_demonstration(1, " is fine.", annotator=1)
    assert with_stores_read(config) == read
    assert len(list(read_examples(copy))) == 4, "the training had not begun"
    sft(read)
    with FeedbackStore(path) as store:
        store.add_demonstration(1, " is late.", annotator=1)
    assert with_stores_read(config) == read
    assert len(list(read_examples(copy))) == 4, "a run goes on with what it began with"
    with pytest.raises(TextEnvError, match=r"other settings \(epochs differ\)"):
        with_stores_read(dataclasses.replace(config, epochs=2))


def test_the_command_for_fine_tuning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_family(tmp_path / "lm", "llama")
    command = ("sft", "--model", tmp_path / "lm", "--out", tmp_path / "out", "--epochs", "1", "--files")
    assert "there is no such store" in said(capsys, *command, tmp_path / "none.db", fails=True)
    make_old(tmp_path / "old.db")
    assert "old.db: no demonstrations in it" in said(capsys, *command, tmp_path / "old.db", fails=True)
    with FeedbackStore(tmp_path / "x.db") as store:
        written(store)
    assert "The model is in" in said(capsys, *command, tmp_path / "x.db")


def test_rlhf_fine_tunes_on_a_store(tmp_path: Path) -> None:
    save_family(tmp_path / "lm", "llama")
    with FeedbackStore(tmp_path / "x.db") as store:
        written(store)
    settings = RlhfSettings(tmp_path / "run", model=str(tmp_path / "lm"), sft=(tmp_path / "x.db",), sft_epochs=1)
    assert _fine_tuned(settings) == str(tmp_path / "run" / "sft")
    assert len(list(read_examples(tmp_path / "run" / "sft" / "demonstrations.jsonl"))) == 3
