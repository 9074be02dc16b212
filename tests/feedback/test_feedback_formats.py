"""Rankings in other people's files: what each of them looks like where it is published, and there and back."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from textenv.feedback import formats
from textenv.feedback.formats import FORMATS, read_rankings, write_rankings
from textenv.types import Ranking, TextEnvError

ASKED = ({"role": "user", "content": "What color is the sky?"},)
BLUE, GREEN = ({"role": "assistant", "content": text} for text in ("It is blue.", "It is green."))
TWO = ("It is blue.", "It is green.")


def in_parts(message: dict[str, str]) -> dict[str, Any]:
    middle = len(message["content"]) // 2
    parts = message["content"][:middle], message["content"][middle:]
    return {"role": message["role"], "content": [{"type": "text", "text": part, "image": None} for part in parts]}


# One record in the shape in which each was published, with texts of our own, and the rankings in it.
GOLDEN: dict[str, tuple[str, Any, list[Ranking]]] = {
    "native": (
        "native",
        {"prompt": "The sky", "completions": [" is blue", " is", " fell"], "ranks": [0, 1, None]},
        [Ranking("The sky", (" is blue", " is", " fell"), (0, 1, None))],
    ),
    "trl standard": (
        "trl",
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green.", "margin": 1.5},
        [Ranking("The sky is", (" blue.", " green."), (0, 1), margin=1.5)],
    ),
    "trl standard, implicit prompt": (
        "trl",
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        [Ranking("The sky is", (" blue.", " black."), (0, 1))],
    ),
    "hh-rlhf": (
        "trl",
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Sky?\n\nAssistant: It is blue.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Sky?\n\nAssistant: It is green.",
        },
        [
            Ranking(
                "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Sky?\n\nAssistant:",
                (" It is blue.", " It is green."),
                (0, 1),
            )
        ],
    ),
    "trl conversational": (
        "trl",
        {"prompt": list(ASKED), "chosen": [BLUE], "rejected": [GREEN]},
        [Ranking(ASKED, TWO, (0, 1))],
    ),
    "trl conversational, implicit prompt": (
        "trl",
        {"chosen": [*ASKED, BLUE], "rejected": [*ASKED, GREEN]},
        [Ranking(ASKED, TWO, (0, 1))],
    ),
    "ultrafeedback_binarized": (
        "scores",
        {
            "prompt": ASKED[0]["content"],
            "prompt_id": "af31",
            "chosen": [*ASKED, BLUE],
            "rejected": [*ASKED, GREEN],
            "messages": [*ASKED, BLUE],
            "score_chosen": 8.5,
            "score_rejected": 6.0,
        },
        [Ranking(ASKED, TWO, (0, 1), margin=2.5)],
    ),
    "stack exchange": (
        "scores",
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No.", "score_chosen": 3, "score_rejected": 3},
        [Ranking("Why?", ("Because.", "No."), (0, 0), margin=0.0)],
    ),
    "SHP": (
        "shp",
        {
            "post_id": "qt3nxl", "domain": "askculinary_train", "upvote_ratio": 0.98,
            "history": "How long do eggs boil?",
            "c_root_id_A": "hkh25sc", "c_root_id_B": "hkh25lp", "created_at_utc_A": 1636822112,
            "created_at_utc_B": 1636822110, "score_A": 2, "score_B": 7, "human_ref_A": "An hour.",
            "human_ref_B": "Eight minutes.", "labels": 0, "seconds_difference": 2.0, "score_ratio": 3.5,
        },
        [Ranking("How long do eggs boil?", ("An hour.", "Eight minutes."), (1, 0), margin=5.0)],
    ),
    "summarize-from-feedback, Reddit": (
        "openai",
        {
            "info": {"id": "t3_2v", "post": "My bike is gone.", "title": "Bike?", "subreddit": "legaladvice"},
            "summaries": [
                {"text": " Bike.", "policy": "sup4_ppo_rm3_kl10", "note": "Short."},
                {"text": " Somebody took my bike.", "policy": "ref", "note": None},
            ],
            "choice": 1,
            "worker": "ikNmucwunMnYJ",
            "batch": "batch9",
            "split": "train",
            "extra": {"confidence": 8},
        },
        [
            Ranking(
                "SUBREDDIT: r/legaladvice\n\nTITLE: Bike?\n\nPOST: My bike is gone.\n\nTL;DR:",
                (" Bike.", " Somebody took my bike."),
                (1, 0),
                "ikNmucwunMnYJ",
            )
        ],
    ),
    "summarize-from-feedback, news": (
        "openai",
        {
            "info": {"id": "8f", "site": "cnn", "title": "Rain", "article": "It rained all day."},
            "summaries": [
                {"text": "Rain.", "policy": "a", "note": None}, {"text": "Sun.", "policy": "b", "note": None},
            ],
            "choice": 0, "worker": "w", "batch": "cnndm0", "split": "valid2", "extra": {},
        },
        [Ranking("Article:\n\nIt rained all day.\n\nTL;DR:", ("Rain.", "Sun."), (0, 1), "w")],
    ),
    "lm-human-preferences": (
        "ziegler",
        {"query": [1, 2, 9], "sample0": [3, 9], "sample1": [4, 9], "sample2": [5, 6], "sample3": [9, 9], "best": 2},
        [Ranking("ab", ("c", "d", "ef", ""), (None, None, 0, None))],
    ),
    "chatbot_arena_conversations": (
        "arena",
        {
            "question_id": "58210e39b3fd4441a2bd4a518bb44c2d", "model_a": "chatglm-6b", "model_b": "koala-13b",
            "winner": "model_b", "judge": "arena_user_973", "conversation_a": [*ASKED, GREEN],
            "conversation_b": [*ASKED, BLUE], "turn": 1, "anony": True, "language": "English", "tstamp": 1682351591.1,
            "openai_moderation": {"flagged": False}, "toxic_chat_tag": {"roberta-large": {"flagged": False}},
        },
        [Ranking(ASKED, ("It is green.", "It is blue."), (1, 0), "arena_user_973")],
    ),
    "arena, contents in parts, both bad": (
        "arena",
        {
            "winner": "tie (bothbad)",
            "conversation_a": [in_parts(ASKED[0]), in_parts(BLUE)],
            "conversation_b": [in_parts(ASKED[0]), in_parts(GREEN)],
        },
        [Ranking(ASKED, TWO, (0, 0))],
    ),
    "argilla 2": (
        "argilla",
        {
            "id": "7", "fields": {"instruction": "Sky?", "first": "blue", "second": "green", "third": "red"},
            "metadata": {}, "suggestions": {"order": {"value": ["third"], "score": None, "agent": "m"}},
            "responses": {
                "order": [
                    {"value": ["second", "first", "third"], "user_id": "u-1"},
                    {"value": ["first", "second", "third"], "user_id": "u-2"},
                ],
                "comment": [{"value": "fine", "user_id": "u-1"}],
                "tags": [{"value": ["safe"], "user_id": "u-1"}],
            },
            "vectors": {}, "_server_id": "d0",
        },
        [
            Ranking("Sky?", ("blue", "green", "red"), (1, 0, 2), "u-1"),
            Ranking("Sky?", ("blue", "green", "red"), (0, 1, 2), "u-2"),
        ],
    ),
    "argilla 1": (
        "argilla",
        {
            "fields": {"prompt": "Sky?", "context": "day", "reply-1": "blue", "reply-2": "green", "reply-3": "red"},
            "responses": [
                {
                    "user_id": "u-1",
                    "status": "submitted",
                    "values": {
                        "preference": {
                            "value": [
                                {"rank": 2, "value": "reply-2"},
                                {"rank": 1, "value": "reply-1"},
                                {"rank": 2, "value": "reply-3"},
                            ]
                        }
                    },
                },
                {"user_id": "u-2", "status": "discarded", "values": {}},
                {
                    "user_id": "u-3",
                    "status": "draft",
                    "values": {"preference": {"value": [{"rank": 1, "value": "reply-2"}]}},
                },
            ],
        },
        [Ranking("Sky?", ("blue", "green", "red"), (0, 1, 1), "u-1")],
    ),
    "label studio pairwise": (
        "label_studio",
        {
            "id": 1,
            "data": {"prompt": "Sky?", "answer1": "blue", "answer2": "green"},
            "annotations": [
                {
                    "id": 1001, "completed_by": 10, "was_cancelled": False, "ground_truth": False, "lead_time": 4.3,
                    "result": [
                        {
                            "id": "Dx_aB91ISN", "from_name": "pw", "to_name": "txt-1,txt-2", "type": "pairwise",
                            "origin": "manual", "value": {"selected": "right"},
                        },
                        {"id": "x", "from_name": "why", "to_name": "txt-1", "type": "textarea", "value": {"text": []}},
                    ],
                },
                {"id": 1002, "completed_by": 11, "was_cancelled": True, "result": []},
            ],
            "predictions": [],
        },
        [Ranking("Sky?", ("blue", "green"), (1, 0), "10")],
    ),
    "label studio ranker": (
        "label_studio",
        {
            "data": {
                "prompt": "Sky?",
                "items": [
                    {"id": "blog", "title": "A", "body": "blue"},
                    {"id": "mdn", "title": "B", "body": "green"},
                    {"id": "wiki", "title": "C", "body": "red"},
                ],
            },
            "annotations": [
                {
                    "completed_by": {"id": 3, "email": "ann@example.org", "first_name": "Ann"},
                    "result": [{"from_name": "rank", "to_name": "items", "type": "ranker", "value": {"ranker": order}}],
                }
                for order in (["mdn", "wiki", "blog"], {"rank": ["wiki"], "_": ["blog", "mdn"]})
            ],
        },
        [
            Ranking("Sky?", ("blue", "green", "red"), (2, 0, 1), "ann@example.org"),
            Ranking("Sky?", ("blue", "green", "red"), (None, None, 0), "ann@example.org"),
        ],
    ),
}  # fmt: skip


def decode(ids: list[int]) -> str:
    return "".join(" abcdefgh"[token] for token in ids if token != 9)


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("kind", [".jsonl", ".json"])
def test_files_as_they_are_published(name: str, kind: str, tmp_path: Path) -> None:
    format, record, expected = GOLDEN[name]
    file = tmp_path / f"x{kind}"
    file.write_text(
        json.dumps([record, record]) if kind == ".json" else f"{json.dumps(record)}\n\n{json.dumps(record)}"
    )
    assert read_rankings(file, decode=decode) == expected * 2  # the format is recognized
    assert read_rankings(file, format, decode=decode) == expected * 2


@pytest.mark.parametrize("name", [name for name in GOLDEN if name[:3] not in ("arg", "lab")])
def test_parquet_as_it_is_published(name: str, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    _, record, expected = GOLDEN[name]
    if record.get("extra") == {}:
        record = {**record, "extra": None}  # a struct without fields cannot be written
    parquet.write_table(pyarrow.Table.from_pylist([record]), tmp_path / "x.parquet")
    assert read_rankings(tmp_path / "x.parquet", decode=decode) == expected


def test_csv_with_columns_of_others(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text('\ufeffid,prompt,chosen,rejected,margin\n007,"a\nb",c,"d ""e""",\n008,f,,g,0.5\n', "utf-8")
    assert read_rankings(file) == [Ranking("a\nb", ("c", 'd "e"'), (0, 1)), Ranking("f", ("", "g"), (0, 1), "", 0.5)]


# There and back

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = st.sampled_from(["", "ann", "12", "Zoë"])
margins = st.none() | st.floats(0.125, 8)
conversations = st.tuples(st.builds(lambda text: {"role": "user", "content": text}, texts)) | st.tuples(
    st.just({"role": "system", "content": "Be brief."}),
    st.builds(lambda text: {"role": "user", "content": text}, texts),
)


@st.composite
def rankings(
    draw: st.DrawFn,
    *,
    prompts: st.SearchStrategy[Any] = texts,
    most: int = 5,
    ties: bool = True,
    unranked: bool = True,
    margin: st.SearchStrategy[float | None] = margins,
) -> list[Ranking]:
    """Rankings of one form of prompts, margins only where two are compared, ranks from 0 without gaps."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        count = draw(st.integers(2, most))
        levels = draw(
            st.lists(st.integers(0, 3), min_size=count, max_size=count) if ties else st.permutations(range(count))
        )
        dense = {level: place for place, level in enumerate(sorted(set(levels)))}
        ranks: list[int | None] = [dense[level] for level in levels]
        if unranked and draw(st.booleans()):
            ranks = [rank if rank == 0 else None for rank in ranks]
        completions = draw(st.lists(texts, min_size=count, max_size=count))
        told = draw(margin) if count == 2 and ranks[0] != ranks[1] else None
        found.append(Ranking(draw(prompts), tuple(completions), tuple(ranks), draw(names), told))
    return found


def as_pairs(rankings: list[Ranking]) -> list[tuple[Any, ...]]:
    """Who said of which prompt that what is better than what, in the order of the rankings."""
    return [
        (r.prompt, r.completions[better], r.completions[worse], tied, r.annotator, r.margin)
        for r in rankings
        for better, worse, tied in r.pairs()
    ]


def there_and_back(rankings: list[Ranking], format: str, kind: str, folder: Path) -> list[Ranking]:
    file = folder / f"x{kind}"
    records = write_rankings(file, rankings, format)
    assert records >= 1
    assert list(folder.glob(".*")) == []  # nothing temporary is left
    assert read_rankings(file) == read_rankings(file, format)
    return read_rankings(file, format)


quick = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
KINDS = [".jsonl", ".json", ".csv", ".parquet"]


@pytest.mark.parametrize("kind", KINDS)
@given(given_rankings=rankings())
@example(given_rankings=[Ranking("\u2028a\r\n", ("\x00", "\r"), (None, 0))])
@quick
def test_native_keeps_everything(kind: str, given_rankings: list[Ranking], tmp_path: Path) -> None:
    assert there_and_back(given_rankings, "native", kind, tmp_path) == given_rankings


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet"])
@given(given_rankings=rankings(prompts=conversations))
@quick
def test_native_keeps_conversations(kind: str, given_rankings: list[Ranking], tmp_path: Path) -> None:
    assert there_and_back(given_rankings, "native", kind, tmp_path) == given_rankings


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_margin", [False, True])
@given(data=st.data())
@quick
def test_trl_keeps_pairs(kind: str, with_margin: bool, data: st.DataObject, tmp_path: Path) -> None:
    prompts = texts if kind == ".csv" or data.draw(st.booleans()) else conversations
    margin = st.floats(0.125, 8) if with_margin else st.none()
    found = data.draw(rankings(prompts=prompts, ties=False, most=2 if with_margin else 5, margin=margin))
    assert as_pairs(there_and_back(found, "trl", kind, tmp_path)) == as_pairs(found)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@quick
def test_scores_keep_pairs_with_margins_and_ties(kind: str, data: st.DataObject, tmp_path: Path) -> None:
    prompts = texts if kind == ".csv" or data.draw(st.booleans()) else conversations
    found = data.draw(rankings(prompts=prompts, most=2, margin=st.floats(0.125, 8)))
    expected = [replace(ranking, margin=ranking.margin or 0.0) for ranking in found]  # a tie differs by 0
    assert as_pairs(there_and_back(found, "scores", kind, tmp_path)) == as_pairs(expected)


@pytest.mark.parametrize("kind", KINDS)
@given(given_rankings=rankings(ties=False, most=2) | rankings(ties=False, margin=st.none()))
@quick
def test_shp_keeps_pairs(kind: str, given_rankings: list[Ranking], tmp_path: Path) -> None:
    assert as_pairs(there_and_back(given_rankings, "shp", kind, tmp_path)) == as_pairs(given_rankings)


posts = texts | st.builds("SUBREDDIT: r/{}\n\nTITLE: {}\n\nPOST: {}\n\nTL;DR:".format, texts, texts, texts)


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet"])
@given(given_rankings=rankings(prompts=posts, ties=False, most=2) | rankings(ties=False, margin=st.none()))
@quick
def test_openai_keeps_pairs(kind: str, given_rankings: list[Ranking], tmp_path: Path) -> None:
    assert as_pairs(there_and_back(given_rankings, "openai", kind, tmp_path)) == as_pairs(given_rankings)


@pytest.mark.parametrize("kind", KINDS)
@given(best=st.lists(st.tuples(texts, st.integers(0, 3), st.tuples(texts, texts, texts, texts), names), min_size=1))
@quick
def test_ziegler_keeps_the_best_of_four(kind: str, best: list[Any], tmp_path: Path) -> None:
    found = [
        Ranking(prompt, four, tuple(0 if place == first else None for place in range(4)), name)
        for prompt, first, four, name in best
    ]
    assert there_and_back(found, "ziegler", kind, tmp_path) == found


@given(given_rankings=rankings(ties=False, margin=st.none()))
@quick
def test_ziegler_keeps_other_rankings_as_pairs(given_rankings: list[Ranking], tmp_path: Path) -> None:
    assert as_pairs(there_and_back(given_rankings, "ziegler", ".jsonl", tmp_path)) == as_pairs(given_rankings)


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet"])
@given(
    given_rankings=rankings(prompts=conversations, most=2) | rankings(prompts=conversations, margin=st.none()),
)
@quick
def test_arena_keeps_pairs_with_ties(kind: str, given_rankings: list[Ranking], tmp_path: Path) -> None:
    assert as_pairs(there_and_back(given_rankings, "arena", kind, tmp_path)) == as_pairs(given_rankings)


@pytest.mark.parametrize("format", ["argilla", "label_studio"])
@pytest.mark.parametrize("kind", [".jsonl", ".json"])
@pytest.mark.parametrize("unranked", [False, True])
@given(data=st.data())
@quick
def test_labeling_tools_keep_rankings(
    format: str, kind: str, unranked: bool, data: st.DataObject, tmp_path: Path
) -> None:
    prompts = data.draw(st.sampled_from([texts, conversations]))
    found = data.draw(rankings(prompts=prompts, ties=False, unranked=unranked, margin=st.none()))
    back = there_and_back(found, format, kind, tmp_path)
    assert as_pairs(back) == as_pairs(found)
    if not unranked:
        assert back == found


def test_several_annotators_answer_one_record(tmp_path: Path) -> None:
    found = [Ranking("a", ("b", "c", "d"), (0, 1, 2), name) for name in ("ann", "bob", "cho")]
    for format, key in (("argilla", "fields"), ("label_studio", "data")):
        assert write_rankings(tmp_path / "x.json", found, format) == 1
        assert key in json.loads((tmp_path / "x.json").read_text())[0]
        assert read_rankings(tmp_path / "x.json") == found


def test_all_pairs_of_a_ranking(tmp_path: Path) -> None:
    write_rankings(tmp_path / "x.jsonl", [Ranking("p", ("a", "b", "c"), (1, 0, None), "ann")], "trl")
    assert [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()] == [
        {"prompt": "p", "chosen": "b", "rejected": "a", "annotator": "ann"},
        {"prompt": "p", "chosen": "a", "rejected": "c", "annotator": "ann"},
        {"prompt": "p", "chosen": "b", "rejected": "c", "annotator": "ann"},
    ]


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_datasets_loads_what_trl_expects(kind: str, tmp_path: Path) -> None:
    import datasets

    found = [Ranking(ASKED, TWO, (1, 0), "ann", 0.5), Ranking(ASKED, TWO, (0, 1), "bob", 1.5)]
    write_rankings(tmp_path / f"x{kind}", found, "trl")
    loader = "json" if kind == ".jsonl" else "parquet"
    table = datasets.load_dataset(
        loader, data_files=str(tmp_path / f"x{kind}"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert set(table.column_names) == {"prompt", "chosen", "rejected", "margin", "annotator"}
    assert table[0]["prompt"] == list(ASKED)
    assert table[0]["chosen"] == [{"role": "assistant", "content": "It is green."}]
    assert table[1]["margin"] == 1.5


# What cannot be held is refused

TIE = Ranking("p", ("a", "b", "c"), (0, 0, 1), "ann")
WIDE = Ranking("p", ("a", "b", "c"), (0, 1, 2), "ann", 2.0)
PAIR = Ranking("p", ("a", "b"), (0, 1), "ann", 1.0)
CHAT = Ranking(ASKED, TWO, (0, 1))


@pytest.mark.parametrize(
    ("rankings", "format", "kind", "part"),
    [
        *(([TIE], format, ".jsonl", "it has a tie. Drop 'ties'") for format in ("trl", "shp", "openai", "ziegler")),
        *(([TIE], format, ".jsonl", "it has a tie") for format in ("argilla", "label_studio")),
        *(
            [[WIDE], format, ".jsonl", "has a margin, between the best and the worst of 3"]
            for format in ("trl", "arena")
        ),
        *(([PAIR], format, ".jsonl", "it has a margin. Drop 'margins'") for format in ("argilla", "label_studio")),
        *(([CHAT], format, ".jsonl", "its prompt is a conversation") for format in ("shp", "openai", "ziegler")),
        ([PAIR], "arena", ".jsonl", "its prompt is a text, and battles are conversations"),
        ([replace(PAIR, margin=None)], "scores", ".jsonl", "its margin is None"),
        ([replace(PAIR, margin=-1.0)], "scores", ".jsonl", "its margin is -1.0"),
        ([replace(PAIR, margin=-1.0)], "shp", ".jsonl", "its margin is -1.0"),
        ([PAIR, replace(PAIR, margin=None)], "trl", ".jsonl", "drop 'margins'"),
        ([replace(PAIR, margin=None), CHAT], "trl", ".jsonl", "use two files"),
        ([PAIR, CHAT], "native", ".parquet", "Use .jsonl"),
        ([CHAT], "native", ".csv", "CSV has texts"),
        ([PAIR], "arena", ".csv", "files of kind .jsonl, .json, .parquet"),
        ([PAIR], "argilla", ".parquet", "files of kind .jsonl, .json"),
        ([PAIR], "trl", ".txt", "files of kind .jsonl, .json, .csv, .parquet"),
        ([PAIR], "tlr", ".jsonl", "expected one of arena, argilla, "),
        ([], "trl", ".jsonl", "no rankings"),
    ],
)
def test_refusals(rankings: list[Ranking], format: str, kind: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(TextEnvError) as caught:
        write_rankings(tmp_path / f"x{kind}", rankings, format)
    assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_may_be_left_out(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    both = [TIE, replace(WIDE, completions=("d", "e", "f"))]
    assert write_rankings(file, both, "trl", drop=["ties", "margins", "annotators"]) == 2 + 3
    assert as_pairs(read_rankings(file)) == [
        ("p", better, worse, False, "", None)
        for better, worse in (("a", "c"), ("b", "c"), ("d", "e"), ("d", "f"), ("e", "f"))
    ]
    with pytest.raises(TextEnvError, match="drop="):
        write_rankings(file, both, "trl", drop=["tie"])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("name", "change", "part"),
    [
        ("native", {"ranks": [0, 1]}, "a list of 3 ranks"),
        ("native", {"ranks": [0, 1, 1.5]}, "whole numbers from 0"),
        ("native", {"completions": "abc"}, "a list of texts"),
        ("native", {"margin": "0.5"}, "finite number"),
        ("native", {"annotator": ["ann"]}, "expected a name"),
        ("trl standard", {"rejected": None}, "rejected is None; expected a text"),
        ("trl standard", {"rejected": [BLUE]}, "expected two texts, or two lists of messages"),
        ("trl conversational", {"chosen": [*ASKED, BLUE]}, "one message of the assistant"),
        ("trl conversational, implicit prompt", {"chosen": [BLUE]}, "share no message"),
        ("ultrafeedback_binarized", {"prompt": "Else?"}, "do not begin with the prompt 'Else?'"),
        ("ultrafeedback_binarized", {"score_chosen": 5}, "which is better?"),
        ("SHP", {"labels": 2}, "expected 1 (A is preferred)"),
        ("SHP", {"labels": 1.0}, "labels=1.0; expected 1 (A is preferred)"),
        ("SHP", {"labels": True}, "labels=True; expected 1 (A is preferred)"),
        ("SHP", {"labels": 1}, "lower score"),
        ("summarize-from-feedback, Reddit", {"choice": 2}, "below 2"),
        ("summarize-from-feedback, Reddit", {"summaries": [{"text": "a"}]}, "expected two"),
        ("summarize-from-feedback, Reddit", {"info": "x"}, "expected an object"),
        ("lm-human-preferences", {"best": 4}, "below 4"),
        *(
            ("lm-human-preferences", {name: ids}, f"{name} is {ids}; expected token ids, whole numbers from 0")
            for name, ids in (("query", [-5]), ("sample0", [-1]), ("sample1", [True]), ("sample2", [None]))
        ),
        *(
            ("lm-human-preferences", {"sample3": ids}, "expected token ids, whole numbers from 0")
            for ids in (["a"], [[1]], [1.5])
        ),
        ("chatbot_arena_conversations", {"winner": "a"}, "'tie (bothbad)'"),
        (
            "chatbot_arena_conversations",
            {"conversation_a": [*ASKED, BLUE, *ASKED, BLUE], "conversation_b": [*ASKED, GREEN, *ASKED, GREEN]},
            "a ranking compares answers to one prompt",
        ),
        ("argilla 2", {"responses": {"tags": [{"value": ["safe"], "user_id": "u"}]}}, "no response ranks fields"),
        ("argilla 1", {"responses": [3]}, "expected an object"),
        ("argilla 2", {"fields": {"a": "1", "b": "2", "first": "x", "second": "y", "third": "z"}}, "is the prompt?"),
        ("label studio pairwise", {"data": {"prompt": "p", "left": "a"}}, "not plain which two"),
        ("label studio pairwise", {"annotations": [{"id": 5, "result": []}]}, "annotation 5: it has 0 pairwise"),
        ("label studio ranker", {"data": {"prompt": "p"}}, "0 lists of items"),
        (
            "label studio ranker",
            {
                "annotations": [
                    {"result": [{"type": "ranker", "value": {"ranker": {"good": ["mdn"], "bad": ["blog"]}}}]}
                ]
            },
            "nobody says how these rank",
        ),
    ],
)
def test_a_bad_record_is_named(name: str, change: dict[str, Any], part: str, tmp_path: Path) -> None:
    format, record, expected = GOLDEN[name]
    file = tmp_path / "x.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in (record, {**record, **change}, record)))
    with pytest.raises(TextEnvError) as caught:
        read_rankings(file, decode=decode)
    assert str(caught.value).startswith(f"{file}, line 2: ")
    assert part in str(caught.value)
    refusals: list[TextEnvError] = []
    assert read_rankings(file, format, decode=decode, refused=refusals.append) == expected * 2
    assert str(refusals[0]) == str(caught.value)
    assert all(str(error).startswith(f"{file}, line 2: ") for error in refusals)


@pytest.mark.parametrize(
    ("name", "wrong", "part"),
    [
        ("label studio pairwise", {"id": 7, "result": []}, "annotation 7: it has 0 pairwise or ranker results"),
        ("label studio pairwise", {"id": 7, "result": None}, "annotation 7: it has 0 pairwise or ranker results"),
        ("label studio pairwise", {"id": "b", "result": 3}, "annotation 'b': result is 3; expected a list of objects"),
        ("label studio pairwise", None, "annotation None: it has 0"),
        (
            "label studio pairwise",
            {"id": 7, "result": [{"type": "pairwise", "value": {"selected": "up"}}]},
            "annotation 7: selected='up'",
        ),
        ("label studio ranker", {"id": 7, "result": [{"type": "ranker", "value": {}}]}, "annotation 7: ranker=None"),
        ("argilla 1", {"rank": "1"}, "the answer of 'u': rank is '1'; expected a whole number"),
        ("argilla 1", {"user_id": ["u"]}, "the answer of ['u']: annotator is ['u']; expected a name"),
    ],
)
def test_a_judgment_that_cannot_be_read_is_left_out_by_itself(name: str, wrong: Any, part: str, tmp_path: Path) -> None:
    format, record, expected = GOLDEN[name]
    record = json.loads(json.dumps(record))
    if format == "argilla":
        (first, *_) = record["responses"]
        one = json.loads(json.dumps(first)) | {"user_id": wrong.get("user_id", "u")}
        (question,) = one["values"].values()
        question["value"][0]["rank"] = wrong.get("rank", question["value"][0]["rank"])
        record["responses"].append(one)
    else:
        record["annotations"].insert(0, wrong)
    (tmp_path / "x.json").write_text(json.dumps([record, GOLDEN[name][1]]))
    refusals: list[TextEnvError] = []
    assert read_rankings(tmp_path / "x.json", refused=refusals.append) == expected * 2
    with pytest.raises(TextEnvError) as caught:
        read_rankings(tmp_path / "x.json")
    assert [str(error) for error in refusals] == [str(caught.value)]
    assert str(caught.value).startswith(f"{tmp_path / 'x.json'}, item 1: {part}")


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("x.jsonl", '{"chosen": "a"}', "none of the formats has the keys ['chosen']"),
        ("x.jsonl", '{"chosen": "a"}', "ziegler: query, sample0, sample1, best"),
        (
            "x.jsonl",
            '{"chosen": "a", "rejected": "b", "query": "", "sample0": "", "sample1": "", "best": 0}',
            "more than",
        ),
        ("x.jsonl", '{"chosen": "a", "rejected": "b"}\n{"chosen": "a"}', "line 2: ['rejected'] missing"),
        ("x.jsonl", '{"chosen": "a", "rejected": "b"}\n{"chosen"', "line 2: not JSON"),
        ("x.jsonl", "[1, 2]", "line 1: [1, 2]; expected an object"),
        ("x.json", "[1", "not JSON"),
        ("x.json", "[]", "no records"),
        ("x.jsonl", "\n\n", "no records"),
        ("x.csv", "chosen,rejected\na", "line 2: 1 cells under 2"),
        ("x.csv", "chosen,rejected,margin\na,b,c", "line 2: margin is 'c'; expected JSON"),
        ("x.csv", 'chosen,rejected\n"a,b', "not CSV"),
        ("x.parquet", "PAR1", "not a parquet file"),
        ("x.txt", "a", "expected a file of kind .jsonl"),
        ("x.jsonl", '{"query": [1], "sample0": [2], "sample1": [3], "best": 0}', "--tokenizer"),
    ],
)
def test_a_bad_file_is_named(name: str, content: str, part: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(TextEnvError) as caught:
        read_rankings(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert part in str(caught.value)


def test_files_that_are_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(TextEnvError, match="no such file"):
        read_rankings(tmp_path / "x.jsonl")
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(TextEnvError, match="not UTF-8"):
        read_rankings(tmp_path / "x.jsonl")
    with pytest.raises(TextEnvError, match="expected one of arena, argilla"):
        read_rankings(tmp_path / "x.jsonl", "nativ")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(TextEnvError, match=r"textenv\[data\]"):
        read_rankings(tmp_path / "x.parquet")
    with pytest.raises(TextEnvError, match=r"textenv\[data\]"):
        write_rankings(tmp_path / "y.parquet", [PAIR])


def test_every_format_is_tested() -> None:
    assert {format for format, *_ in GOLDEN.values()} == set(FORMATS)


def test_a_new_format_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "votes.py").write_text(
        "from textenv.feedback.formats.shared import Format\n"
        "from textenv.types import Ranking\n"
        "def read(row):\n"
        "    return [Ranking(row['asked'], (row['yes'], row['no']), (0, 1))]\n"
        "def write(rankings):\n"
        "    return [{'asked': r.prompt, 'yes': r.completions[0], 'no': r.completions[1]} for r in rankings]\n"
        "FORMAT = Format(('asked', 'yes', 'no'), read, write, ())\n"
    )
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    found = formats.find_formats()
    monkeypatch.delitem(sys.modules, "textenv.feedback.formats.votes")
    assert set(found) == {*FORMATS, "votes"}
    monkeypatch.setattr(formats, "FORMATS", found)
    for kind in KINDS:
        assert there_and_back([Ranking("p", ("a", "b"), (0, 1))], "votes", kind, tmp_path) == [
            Ranking("p", ("a", "b"), (0, 1))
        ]
