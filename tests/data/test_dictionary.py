"""Conversations about words: which words, and that every answer is what was asked for."""

from __future__ import annotations

import random

import pytest

from textenv.data.dictionary import Entry, columns_of, conversation, dictionary_entries, document, turns_of
from textenv.data.wordnet import Synset, WordNet

BIRD = Synset("n2", ("wading bird", "bird"), "an animal with feathers", (), (("@", "n1"),), 5)
HERON = Synset(
    "n3",
    ("heron",),
    "tall (often grey) bird with long legs; it wades",
    ("the heron", "a heron stood in the pond", "herons fly"),
    (("#m", "n1"), ("@", "n2")),
    5,
)
ANIMAL = Synset("n1", ("animal", "beast"), "a living thing", (), (), 3)
ENTRY = Entry(
    "n3",
    "heron",
    "tall bird with long legs",
    (("wading bird", "bird"), ("animal", "beast")),
    "wading bird",
    "a heron stood in the pond",
)


def net(*synsets: Synset) -> WordNet:
    index: dict[str, tuple[str, ...]] = {}
    for synset in synsets:
        for word in synset.words:
            index[word.lower()] = (*index.get(word.lower(), ()), synset.key)
    return WordNet({synset.key: synset for synset in synsets}, index)


def changed(**fields: object) -> Synset:
    values = {name: getattr(HERON, name) for name in HERON.__slots__}
    return Synset(**{**values, **fields})


def entries(*synsets: Synset) -> list[Entry]:
    return dictionary_entries(net(*synsets), least=0, most=1)


def test_an_entry() -> None:
    assert entries(ANIMAL, BIRD, HERON) == [ENTRY]


def test_the_kind_is_a_common_one() -> None:
    others = [changed(key=f"n{number}", words=(word,)) for number, word in enumerate(("stork", "crane", "ibis"), 4)]
    cow = changed(key="n7", words=("cow",), links=(("@", "n1"),))
    found = dictionary_entries(net(ANIMAL, BIRD, HERON, *others, cow), least=0.85, most=1)
    assert {entry.kind for entry in found} == {"animal"}  # of which all five are, and of birds four
    assert found[0].kinds == (("wading bird", "bird", "animal", "beast"),)
    assert [entry.kind for entry in dictionary_entries(net(ANIMAL, BIRD, HERON, *others, cow), most=0.9)] == [
        "wading bird"
    ] * 4


@pytest.mark.parametrize(
    "synset",
    [
        changed(words=("Heron",)),
        changed(words=("gray heron",)),
        changed(gloss="a bird"),
        changed(gloss="a bird that is called heron"),
        changed(gloss="a bird (2 m) with 2 legs"),
        changed(gloss="a bird " + "very " * 12 + "tall"),
        changed(links=(("@i", "n2"),)),
        changed(key="v3"),
    ],
    ids=["name", "words", "short", "circular", "digits", "long", "instance", "verb"],
)
def test_what_is_no_entry(synset: Synset) -> None:
    assert entries(ANIMAL, BIRD, synset) == []


def test_a_word_in_a_rarer_sense_is_no_entry() -> None:
    person = Synset("n0", ("Heron",), "an inventor", (), (), 18)
    assert entries(person, ANIMAL, BIRD, HERON) == []


def test_both_sides_of_a_conversation() -> None:
    questions = set()
    for seed in range(20):
        turns = turns_of(ENTRY, random.Random(seed))
        assert {turn.question: turn.answer for turn in turns} == {
            "meaning": "Tall bird with long legs.",
            "kind": "A kind of wading bird.",
            "sentence": "A heron stood in the pond.",
        }
        assert turns[0].question == "meaning"
        assert ["heron" in turn.asked for turn in turns] == [True, False, False]  # who has forgotten cannot tell
        questions.add(tuple(turn.question for turn in turns))
    assert len(questions) == 2
    assert [turn.question for turn in turns_of(Entry("1", "a", "b", (("c",),), "c"), random.Random(0))] == [
        "meaning",
        "kind",
    ]


def test_messages() -> None:
    turns = turns_of(ENTRY, random.Random(0))
    whole = conversation(turns)
    assert [message["role"] for message in whole] == ["user", "assistant"] * 3
    assert [message["content"] for message in whole[::2]] == [turn.asked for turn in turns]
    assert conversation(turns, answered=0) == whole[:1]
    assert conversation(turns, answered=2) == whole[:5]


def test_columns_and_documents() -> None:
    assert columns_of(ENTRY, "kind") == {
        "question": "kind",
        "word": "heron",
        "meaning": "tall bird with long legs",
        "kinds": [["wading bird", "bird"], ["animal", "beast"]],
    }
    assert document(BIRD) == "Wading bird: an animal with feathers"
    assert document(changed(examples=("a heron", "two"))).endswith('; it wades; "a heron"; "two"')
