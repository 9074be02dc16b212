"""Whether a question about a word is answered rightly, judged by what a dictionary says of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from textenv.rewards._texts import completion_texts
from textenv.types import TextEnvError, short

__all__ = ["DictionaryAnswer"]

_COLUMNS = ("question", "word", "meaning", "kinds")
_QUESTIONS = ("meaning", "kind", "sentence")
_COMMON = frozenset(
    re.findall(
        r"\w+",
        "a an and any are as at be been being by for from has have in into is it its of on one or other some somebody "
        "someone something such that the their them these they this those to usually used was were when where which "
        "who with you your",
    )
)
_OPENING = re.compile(r"^(?:(?:it|that|this)(?: is|'s) )?(?:(?:a|an|the|some) )?(?:(?:kind|sort|type) of )?(?:an? )?")
_NEARER = 0.5  # a kind is worth this much of the one below it
_GENUS = 0.5  # what a definition is worth of which the kind alone is right


@dataclass(frozen=True, slots=True)
class DictionaryAnswer:
    """Correctness of an answer to a question about a noun, from 0 to 1; a program, and no person.

    It judges by the prompts' columns, as ``textenv.data.dictionary`` writes them: ``word``, the noun; ``meaning``, its
    definition; ``kinds``, lists of names of what it is a kind of, the nearest first; and ``question``:

    - ``"kind"``: 1 for a name of the first list, half of it for each list further on; a name of several words whose
      last is right ("large bird" for "bird") counts by the F1 of its words, and anything else 0.
    - ``"meaning"``: F1 of the words that the answer and the definition have, common words such as "the" and the noun
      itself left out; but at least 1/2 of what the best kind that the answer names is worth above.
    - ``"sentence"``: 1/2 for the noun, and 1/6 each for 4 to 20 words, for a capital at the beginning and a mark at the
      end, and for words of which three quarters at least are different.

    What it does not see: a definition in other words, a kind that the dictionary does not name, and whether a sentence
    makes sense. A policy that is trained against it will find out.

    Raises:
        TextEnvError: When called, if a column is missing or holds anything else.
    """

    def __call__(
        self,
        /,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Sequence[Any],
    ) -> list[float]:
        """Return ``n`` scores from 0 to 1."""
        if missing := [name for name in _COLUMNS if name not in columns]:
            raise TextEnvError(
                f"The reward 'dictionary_answer' needs the columns {', '.join(_COLUMNS)} of the prompts, and there is "
                f"no {missing[0]!r}; expected prompts as textenv rlhf --recipe chatgpt writes them."
            )
        return [
            _score(text, {name: columns[name][row] for name in _COLUMNS}, row)
            for row, text in enumerate(completion_texts(completions))
        ]


def _score(text: str, given: Mapping[str, Any], row: int) -> float:
    question, word, meaning, kinds = (given[name] for name in _COLUMNS)
    if question not in _QUESTIONS or not all(isinstance(each, str) and each for each in (word, meaning)):
        raise TextEnvError(
            f"Row {row} has question={short(question)}, word={short(word)}, meaning={short(meaning)}; expected one of "
            f"{', '.join(_QUESTIONS)} and two texts."
        )
    if question == "sentence":
        return _sentence(text, word)
    if not (isinstance(kinds, Sequence) and kinds and all(map(_are_texts, kinds))):
        raise TextEnvError(f"Row {row} has kinds={short(kinds)}; expected lists of names, the nearest kind first.")
    steps = [(_NEARER**step, _words(name)) for step, names in enumerate(kinds) for name in names]
    if question == "kind":
        said = _words(_OPENING.sub("", " ".join(_words(text))))
        return max(worth * _named(said, name) for worth, name in steps)
    said = _words(text)
    genus = max(worth * _within(name, said) for worth, name in steps)
    return max(_f1(_content(text, word), _content(meaning, word)), _GENUS * genus)


def _are_texts(names: Any) -> bool:
    return isinstance(names, Sequence) and bool(names) and all(isinstance(name, str) for name in names)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['-]\w+)*", text.lower())


def _content(text: str, word: str) -> set[str]:
    """Return the words that matter, in the singular."""
    words = set(_words(text)) - {*_words(word), f"{word.lower()}s"}
    return {each.removesuffix("s") if len(each) > 3 else each for each in words - _COMMON or words}


def _f1(one: set[str], other: set[str]) -> float:
    return 2 * len(one & other) / (len(one) + len(other)) if one or other else 0.0


def _named(said: Sequence[str], name: Sequence[str]) -> float:
    return _f1(set(said), set(name)) if said and said[-1:] == name[-1:] else 0.0


def _within(name: Sequence[str], said: Sequence[str]) -> bool:
    """Return whether the words of a name stand in what was said, one behind the other."""
    size = len(name)
    return any(list(said[start : start + size]) == list(name) for start in range(len(said) - size + 1))


def _sentence(text: str, word: str) -> float:
    words, stripped = _words(text), text.strip()
    if not words:
        return 0.0
    used = not {word.lower() + ending for ending in ("", "s", "es", "'s", "s'")}.isdisjoint(words)
    signs = (
        4 <= len(words) <= 20,
        stripped[0].isupper() and stripped.endswith((".", "!", "?")),
        4 * len(set(words)) >= 3 * len(words),
    )
    return used / 2 + sum(signs) / 6
