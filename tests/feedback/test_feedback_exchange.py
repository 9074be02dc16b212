"""Files of rankings into a store and out of it, and tasks from policies, by the functions and by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.families import save_family
from textenv.commands.cli import main
from textenv.feedback.exchange import add_questions, add_rankings, read_questions
from textenv.feedback.formats import read_rankings, write_rankings
from textenv.feedback.sampling import AddTasks, add_tasks, sample_completions
from textenv.feedback.store import FeedbackStore
from textenv.types import Ranking, TextEnvError

ASKED = ({"role": "user", "content": "Sky?"},)
ANN = Ranking("Sky?", ("blue", "green", "red"), (0, 1, None), "ann")
BOB = Ranking("Sky?", ("blue", "green", "red"), (0, 0, 1), "bob")
CHAT = Ranking(ASKED, ("blue", "blue"), (1, 0), "ann")


def kept(store: FeedbackStore) -> list[Ranking]:
    return [ranking for _, ranking in store.rankings()]


def told(ranking: Ranking) -> str:
    return json.dumps([ranking.annotator, ranking.prompt, ranking.completions, ranking.ranks], sort_keys=True)


def test_judgements_of_the_same_completions_are_one_task(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "x.db") as store:
        assert add_rankings(store, [ANN, BOB, CHAT]) == 3
        assert kept(store) == [ANN, BOB, CHAT]
        assert [(len(task.items), task.judgements) for task in store.tasks()] == [(3, 2), (2, 1)]
        assert len(store.completions()) == 3 + 2  # that of the chat stands there twice
        assert store.progress().wanted == store.progress().done == 3
        assert store.lease(store.annotator("ann")) is None  # nothing is left to be judged


def test_what_is_there_is_not_added_again(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "x.db") as store:
        assert add_rankings(store, [ANN, ANN]) == 2  # asked twice: two judgements
        assert add_rankings(store, [ANN, ANN, BOB]) == 1
        assert sorted(kept(store), key=told) == [ANN, ANN, BOB]
        assert len(store.completions()) == 3


drawn = st.lists(
    st.builds(
        lambda prompt, texts, first, name: Ranking(
            prompt, tuple(texts), tuple((0 if place == first % len(texts) else 1) for place in range(len(texts))), name
        ),
        st.sampled_from(["p", "q", ASKED]),
        st.lists(st.sampled_from("abc"), min_size=2, max_size=4),
        st.integers(0, 3),
        st.sampled_from(["ann", "bob"]),
    ),
    min_size=1,
    max_size=8,
)


@given(rankings=drawn)
@settings(max_examples=10)
def test_into_a_store_and_out_of_it(rankings: list[Ranking], tmp_path_factory: pytest.TempPathFactory) -> None:
    with FeedbackStore(tmp_path_factory.mktemp("store") / "x.db") as store:
        assert add_rankings(store, rankings) == len(rankings)
        assert sorted(kept(store), key=told) == sorted(rankings, key=told)
        assert add_rankings(store, rankings) == 0


@pytest.mark.parametrize(
    ("ranking", "part"),
    [
        (Ranking("p", ("a", "b"), (0, 1), "", None), "--annotator"),
        (Ranking("p", ("a", "b"), (0, 1), "ann", 1.0), "--drop-margins"),
    ],
)
def test_what_a_store_cannot_keep(ranking: Ranking, part: str, tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "x.db") as store:
        with pytest.raises(TextEnvError, match=part):
            add_rankings(store, [ANN, ranking])
        assert store.tasks() == []


def test_a_judgement_made_elsewhere_is_recorded_once(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "x.db") as store:
        (task,) = add_questions(store, [("p", ("a", "b"))])
        ann = store.annotator("ann")
        with pytest.raises(TextEnvError, match="ranks"):
            store.record(task, ann, [1, 1])
        store.record(task, ann, [1, 0])
        with pytest.raises(TextEnvError, match="already"):
            store.record(task, ann, [0, 1])
        assert kept(store) == [Ranking("p", ("a", "b"), (1, 0), "ann")]


def test_questions_wait_to_be_judged(tmp_path: Path) -> None:
    file, sheet = tmp_path / "x.jsonl", tmp_path / "x.csv"
    rows = [{"prompt": "p", "completions": ["a", "b", "c"]}, {"prompt": list(ASKED), "completions": ["d", "e"]}]
    file.write_text("\n".join(map(json.dumps, rows)))
    sheet.write_text('prompt,completions\np,"[""a"", ""b"", ""c""]"\n')
    assert read_questions(sheet) == [("p", ("a", "b", "c"))]
    assert main(["feedback", "import", str(tmp_path / "x.db"), str(file), "--unjudged", "--judgements", "2"]) == 0
    with FeedbackStore(tmp_path / "x.db", create=False) as store:
        assert store.progress().wanted == 4
        given = store.lease(store.annotator("ann"))
        assert given is not None
        assert sorted(item.text for item in given.items) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p"},
        {"prompt": "p", "completions": ["a"]},
        {"prompt": "p", "completions": list("abcdefghij")},
        {"prompt": "p", "completions": "ab"},
        {"completions": ["a", "b"]},
    ],
)
def test_bad_questions(row: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    with pytest.raises(TextEnvError, match="line 1: "):
        read_questions(tmp_path / "x.jsonl")


def test_from_one_format_to_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, first, second = tmp_path / "x.db", tmp_path / "a.jsonl", tmp_path / "b.json"
    write_rankings(first, [ANN], "native")
    write_rankings(second, [Ranking("q", ("a", "b"), (1, 0), "cho")], "label_studio")
    assert main(["feedback", "import", str(store), str(first), str(second)]) == 0
    assert main(["feedback", "import", str(store), str(first)]) == 0
    assert "0 judgements added, 1 were there already" in capsys.readouterr().out
    assert main(["feedback", "export", str(store), str(tmp_path / "c.csv"), "--format", "trl"]) == 0
    assert [(r.prompt, r.completions, r.annotator) for r in read_rankings(tmp_path / "c.csv")] == [
        ("Sky?", ("blue", "green"), "ann"),
        ("Sky?", ("blue", "red"), "ann"),
        ("Sky?", ("green", "red"), "ann"),
        ("q", ("b", "a"), "cho"),
    ]
    assert main(["feedback", "export", str(tmp_path / "none.db"), str(tmp_path / "c.csv")]) == 1
    assert "there is no such store" in capsys.readouterr().out.replace("\n", " ")


def test_options_of_import_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, file, out = str(tmp_path / "x.db"), tmp_path / "x.jsonl", str(tmp_path / "y.jsonl")
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 2.0},
        {"prompt": "p", "chosen": "a", "rejected": 3},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert main(["feedback", "import", store, str(file), "--annotator", "us", "--drop-margins"]) == 1
    said = capsys.readouterr().out
    assert f"{file}, line 2" in said
    assert "--skip-unreadable" in said
    assert (
        main(["feedback", "import", store, str(file), "--annotator", "us", "--drop-margins", "--skip-unreadable"]) == 0
    )
    assert "1 could not be read and were left out" in capsys.readouterr().out
    with FeedbackStore(store) as opened:
        add_rankings(opened, [Ranking("p", ("a", "c"), (0, 0), "us")])
        task = opened.add_task(opened.tasks()[0].items)
        opened.judge(opened.lease(opened.annotator("ann")).id, [], verdict="both_bad")  # type: ignore[union-attr]
        gold = opened.add_task(opened.tasks()[0].items, gold=[0, 1])
        opened.record(gold, opened.annotator("ann"), [1, 0])
        assert task
    assert main(["feedback", "export", store, out, "--format", "trl"]) == 1
    assert "Drop 'ties'" in capsys.readouterr().out
    assert main(["feedback", "export", store, out, "--format", "trl", "--drop", "ties", "annotators"]) == 0
    assert "2 judgements cannot be learned from" in capsys.readouterr().out
    assert read_rankings(out) == [Ranking("p", ("a", "b"), (0, 1))]
    assert main(["feedback", "export", store, out, "--all"]) == 0
    assert len(read_rankings(out)) == 3


def test_token_ids_are_decoded(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from textenv.models.loading import bundled_folder

    tokenizer = AutoTokenizer.from_pretrained(bundled_folder())
    row: dict[str, Any] = {f"sample{place}": tokenizer.encode(f" was {place}") + [50259] * 2 for place in range(4)}
    file = tmp_path / "x.json"
    file.write_text(json.dumps([row | {"query": tokenizer.encode("The film"), "best": 3}]))
    arguments = ["--annotator", "ann", "--tokenizer", str(bundled_folder())]
    assert main(["feedback", "import", str(tmp_path / "x.db"), str(file), *arguments]) == 0
    with FeedbackStore(tmp_path / "x.db") as store:
        (ranking,) = kept(store)
    assert ranking == Ranking("The film", (" was 0", " was 1", " was 2", " was 3"), (None, None, None, 0), "ann")


# Tasks from policies


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": text, "topic": place} for place, text in enumerate(("The film", "A plot", "It", "The cast"))]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.mark.parametrize("pairing", ["across", "within", "any"])
def test_tasks_of_policies(pairing: Any, prompts: Path, tmp_path: Path) -> None:
    gold = tmp_path / "gold.jsonl"
    write_rankings(gold, [Ranking("The film", (" was good.", " xx"), (0, 1))])
    command = AddTasks(
        tmp_path / "x.db", prompts, ("old=bundled", "new=bundled"), max_prompts=3, samples=3, tasks=2, pairing=pairing,
        judgements=2, repeats=0.5, gold=gold, max_new_tokens=6,
    )  # fmt: skip
    (told,) = add_tasks(command)
    assert "6 tasks added, 3 of them to be repeated, and 1 gold tasks" in told
    with FeedbackStore(command.store) as store:
        items = {item.id: item for item in store.completions()}
        asked = [task for task in store.tasks() if task.gold is None and task.repeat_of is None]
        assert {policy.name: policy.folder for policy in store.policies()} == {"old": "bundled", "new": "bundled"}
        assert len({frozenset(task.items) for task in asked}) == 6
        for task in asked:
            one, other = (items[item] for item in task.items)
            assert one.text != other.text
            assert one.prompt == other.prompt == task.prompt
            assert pairing == "any" or (one.policy != other.policy) == (pairing == "across")
        assert [task.gold for task in store.tasks() if task.gold] == [(0, 1)]
        repeated = {task.repeat_of: task.items for task in store.tasks() if task.repeat_of}
        assert repeated == {task.id: task.items for task in asked if task.id in repeated}
        assert len(repeated) == 3
        assert {task.judgements for task in store.tasks()} == {2}
        given = store.lease(store.annotator("ann"))
        assert given is not None
        assert given.columns.keys() == {"topic"}


def test_the_same_seed_gives_the_same_completions(prompts: Path) -> None:
    def texts(seed: int) -> list[list[str]]:
        return sample_completions("bundled", ["The film", "A plot"], samples=2, seed=seed, max_new_tokens=6)

    assert texts(1) == texts(1) != texts(2)
    assert [len(row) for row in texts(1)] == [2, 2]


def test_conversations_are_asked_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": [{"role": "user", "content": "the film?"}]}))
    model = save_family(tmp_path / "model", "smollm2")
    add_tasks(AddTasks(tmp_path / "x.db", file, (f"a={model}",), max_new_tokens=4))
    with FeedbackStore(tmp_path / "x.db") as store:
        assert list(store.prompts().values()) == [({"role": "user", "content": "the film?"},)]
        assert len(store.tasks()) == 1


def test_policies_that_say_the_same_give_fewer_tasks(prompts: Path, tmp_path: Path) -> None:
    command = AddTasks(
        tmp_path / "x.db", prompts, ("a=bundled", "b=bundled"), max_new_tokens=3, temperature=1e-4, samples=1
    )
    assert "4 tasks fewer than asked for" in add_tasks(command)[1]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--policies", "bundled"], "expected NAME=FOLDER"),
        (["--policies", "a=bundled", "a=other"], "names that differ"),
        (["--policies", "a=bundled", "--pairing", "across"], "give 0 different tasks"),
        (["--policies", "a=bundled", "--tasks", "2"], "give 1 different tasks of 2 completions"),
        (["--policies", "a=bundled", "--items", "10"], "items=10: expected a whole number from 2 to 9"),
        (["--policies", "a=bundled", "--repeats", "2"], "repeats=2.0: expected"),
        (["--policies", "a=bundled", "--max-prompts", "0"], "max_prompts=0: expected"),
        (["--policies", "a=/nowhere"], "/nowhere"),
    ],
)
def test_bad_commands(
    arguments: list[str], part: str, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["feedback", "add", str(tmp_path / "x.db"), "--prompts", str(prompts), *arguments]) == 1
    assert part in capsys.readouterr().out
    assert not (tmp_path / "x.db").exists()


@pytest.mark.slow
def test_from_a_trained_run_to_a_task(prompts: Path, tmp_path: Path) -> None:
    run, store = str(tmp_path / "run"), str(tmp_path / "x.db")
    tiny = ["--total-steps", "250", "--num-envs", "4", "--eval-episodes", "4", "--max-new-tokens", "8"]
    assert main(["train", "--out", run, *tiny]) == 0
    policies = ["--policies", "before=bundled", f"after={run}", "--pairing", "across", "--max-new-tokens", "5"]
    assert main(["feedback", "add", store, "--prompts", str(prompts), *policies]) == 0
    with FeedbackStore(store) as opened:
        assert len(opened.tasks()) == 4
        assert {item.policy for item in opened.completions()} == {1, 2}
    # A run's policy, not the model that it started from, writes.
    texts = [
        sample_completions(str(Path(run, *part)), ["The film"], samples=8, max_new_tokens=8)
        for part in ((), ("policy",))
    ]
    assert texts[0] == texts[1]


def test_names_that_look_the_same_are_one_annotator(tmp_path: Path) -> None:
    composed = Ranking("p", ("a", "b"), (0, 1), "Ren\u00e9e")
    decomposed = Ranking("p", ("a", "b"), (0, 1), "Rene\u0301e ")
    with FeedbackStore(tmp_path / "store.db") as store:
        assert add_rankings(store, [composed]) == 1
        assert add_rankings(store, [decomposed]) == 0
        assert [annotator.name for annotator in store.annotators()] == ["Ren\u00e9e"]


def test_more_completions_than_people_are_shown_are_refused(tmp_path: Path) -> None:
    ranking = Ranking("p", tuple("abcdefghij"), tuple(range(10)), "ann")
    with FeedbackStore(tmp_path / "store.db") as store, pytest.raises(TextEnvError, match="people are shown 9 at most"):
        add_rankings(store, [ranking])
