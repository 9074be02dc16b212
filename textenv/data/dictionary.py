"""Questions about words as conversations, by a trainer who plays both sides, with what makes an answer right.

"What does heron mean?", and follow-ups that are understood only by who remembers the word: "What kind of thing is it?",
"Use it in a sentence." A question and its answer are a turn; the columns that go with a turn are what the reward
``dictionary_answer`` judges by.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from textenv.data.wordnet import Synset, WordNet
from textenv.types import Conversation

__all__ = ["Entry", "Question", "Turn", "columns_of", "conversation", "dictionary_entries", "document", "turns_of"]

Question: TypeAlias = Literal["meaning", "kind", "sentence"]

_ASKED: dict[Question, tuple[str, ...]] = {
    "meaning": ("What does {word} mean?", "What is the meaning of {word}?", "Explain the word {word}."),
    "kind": ("What kind of thing is it?", "What is it a kind of?"),
    "sentence": ("Use it in a sentence.", "Can you use it in a sentence?"),
}
_WORD = re.compile(r"[a-z]{3,14}")
_PLAIN = re.compile(r"[A-Za-z ,'-]+")
_PLAIN_SENTENCE = re.compile(r"[A-Za-z ,;'-]+[.!?]?")


@dataclass(frozen=True, slots=True)
class Entry:
    """A noun in one of its meanings.

    Attributes:
        key: Names the meaning.
        word: The noun.
        meaning: A definition in few words, without the noun.
        kinds: Names of what it is a kind of, those that are as good as ``kind`` first, then more and more general ones.
        kind: The name that a demonstration gives.
        sentence: A sentence with the noun, or None.
    """

    key: str
    word: str
    meaning: str
    kinds: tuple[tuple[str, ...], ...]
    kind: str
    sentence: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and the answer that a demonstration gives.

    Attributes:
        question: What is asked for.
        asked: The words of the question.
        answer: The answer.
    """

    question: Question
    asked: str
    answer: str


def dictionary_entries(wordnet: WordNet, *, least: float = 0.01, most: float = 0.2) -> list[Entry]:
    """Return what WordNet says of nouns, in its order.

    These are nouns of one word in their most frequent sense, whose definition takes 3 to 12 words. The kind that an
    answer names is a common one: the nearest that many of them are of, and not nearly all.

    Args:
        wordnet: The database.
        least: Share of the nouns that are of a common kind, at least.
        most: The same, at most.
    """
    found = [(synset, wordnet.above(synset)) for synset in wordnet.synsets.values() if _is_plain(synset, wordnet)]
    counts = Counter(kind.key for _, above in found for kind in above)
    common = {key for key, count in counts.items() if least * len(found) <= count <= most * len(found)}
    entries = []
    for synset, above in found:
        place = next((place for place, kind in enumerate(above) if kind.key in common), None)
        if place is not None:
            nearest = tuple(name for kind in above[: place + 1] for name in kind.words)
            kinds = (nearest, *(kind.words for kind in above[place + 1 :]))
            word = synset.words[0]
            sentence = next((text for text in synset.examples if _is_sentence(text, word)), None)
            meaning = _shortened(synset.gloss)
            entries.append(Entry(synset.key, word, meaning, kinds, above[place].words[0], sentence))
    return entries


def _is_plain(synset: Synset, wordnet: WordNet) -> bool:
    """Return whether a synset is a common noun of one word in its most frequent sense, with a short definition."""
    word, meaning = synset.words[0], _shortened(synset.gloss)
    return (
        any(symbol == "@" for symbol, _ in synset.links)
        and synset.key[0] == "n"
        and _WORD.fullmatch(word) is not None
        and wordnet.index[word][0] == synset.key
        and 3 <= len(meaning.split()) <= 12
        and _PLAIN.fullmatch(meaning) is not None
        and not _contains(meaning, word)
    )


def _shortened(gloss: str) -> str:
    """Return a gloss up to its first semicolon or colon, without what stands in parentheses."""
    return " ".join(re.split("[;:]", re.sub(r"\([^()]*\)", " ", gloss))[0].split())


def _contains(text: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", text, flags=re.IGNORECASE) is not None


def _is_sentence(text: str, word: str) -> bool:
    words = text.lower().split()
    return (
        4 <= len(words) <= 14
        and 4 * len(set(words)) >= 3 * len(words)
        and _contains(text, word)
        and _PLAIN_SENTENCE.fullmatch(text) is not None
    )


def turns_of(entry: Entry, rng: random.Random) -> list[Turn]:
    """Return the turns of a conversation about an entry: its meaning first, the follow-ups in random order.

    Args:
        entry: What it is about.
        rng: Draws the order and the words of the questions.
    """
    follow_ups: list[Question] = ["kind"] if entry.sentence is None else ["kind", "sentence"]
    rng.shuffle(follow_ups)
    questions: list[Question] = ["meaning", *follow_ups]
    return [
        Turn(question, rng.choice(_ASKED[question]).format(word=entry.word), _answer(entry, question))
        for question in questions
    ]


def _answer(entry: Entry, question: Question) -> str:
    text = {"meaning": entry.meaning, "kind": f"a kind of {entry.kind}", "sentence": entry.sentence or ""}[question]
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


def conversation(turns: Sequence[Turn], *, answered: int | None = None) -> Conversation:
    """Return turns as messages, the last ones without their answer.

    Args:
        turns: The turns, at least one.
        answered: Turns that are answered; None for all. The next one is asked, and those behind it are left out.
    """
    number = len(turns) if answered is None else answered
    said = [
        message
        for turn in turns[:number]
        for message in ({"role": "user", "content": turn.asked}, {"role": "assistant", "content": turn.answer})
    ]
    return (*said, *({"role": "user", "content": turn.asked} for turn in turns[number : number + 1]))


def columns_of(entry: Entry, question: Question) -> dict[str, Any]:
    """Return what ``dictionary_answer`` judges an answer by."""
    return {
        "question": question,
        "word": entry.word,
        "meaning": entry.meaning,
        "kinds": [list(names) for names in entry.kinds],
    }


def document(synset: Synset) -> str:
    """Return a synset as running text: its name, its definition and its examples."""
    name = synset.words[0]
    examples = "".join(f'; "{example}"' for example in synset.examples)
    return f"{name[:1].upper()}{name[1:]}: {synset.gloss}{examples}"
