"""Sentences with slots for gendered words, occupations and other words, from which counterfactual texts are made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from textenv.data.records import ROW_KINDS, read_rows
from textenv.data.values import short
from textenv.models.counterfactual import GENDERED, in_case_of
from textenv.types import TextEnvError
from textenv.validation import did_you_mean

__all__ = ["TEMPLATES", "Kind", "Pair", "Template", "parse_template", "read_templates"]

Kind: TypeAlias = Literal["occupation", "association", "prompt"]
_SLOT = re.compile(r"\{([^{}]*)\}")
_SLOTS = ("job", "word", "person", *GENDERED)


@dataclass(frozen=True, slots=True)
class Pair:
    """A sentence and its counterpart of the other gender.

    Attributes:
        before: What both begin with, without white space at its end.
        male: The first gendered word, with the white space in front of it.
        female: Its counterpart, likewise.
        male_text: All of the sentence.
        female_text: All of its counterpart.
    """

    before: str
    male: str
    female: str
    male_text: str
    female_text: str


@dataclass(frozen=True, slots=True)
class Template:
    """A sentence with slots in braces.

    The slots are ``{job}``, ``{word}``, ``{person}``, and every word for men of ``textenv.models.counterfactual``,
    such as ``{he}``, ``{his}`` or ``{actor}``; with a capital, ``{He}``, the word has one.

    Attributes:
        text: The sentence.
        kind: ``"occupation"``: a job, and behind it gendered words. ``"association"``: a person, and a word at the end.
            ``"prompt"``: a person or gendered words; to be continued.
    """

    text: str
    kind: Kind

    def with_job(self, job: str) -> Pair:
        """Return the pair of an ``"occupation"`` template for a job."""
        filled = re.sub(r"\b([Aa]) \{job\}", lambda found: f"{found[1]}{_n(job)} {{job}}", self.text)
        filled = _capital(filled.replace("{job}", job))
        place = next(slot.start() for slot in _SLOT.finditer(filled))
        before = filled[:place].rstrip()
        slot = filled[place + 1 : filled.index("}", place)]
        male, female = (filled[len(before) : place] + _form(slot, which) for which in (0, 1))
        return Pair(before, male, female, _gendered(filled, 0), _gendered(filled, 1))

    def with_person(self, person: str, word: str) -> tuple[str, str]:
        """Return what an ``"association"`` template says of a person in front of a word, and the word as it follows."""
        filled = _capital(self.text.replace("{person}", person))
        before = filled[: filled.index("{word}")].rstrip()
        return before, filled[len(before) :].replace("{word}", word)

    def prompts(self, persons: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the pairs of prompts of a ``"prompt"`` template, one for each pair of persons if it has the slot."""
        pairs = persons if "{person}" in self.text else [("", "")]
        return [
            (
                _capital(_gendered(self.text.replace("{person}", pair[0]), 0)),
                _capital(_gendered(self.text.replace("{person}", pair[1]), 1)),
            )
            for pair in pairs
        ]


def _n(word: str) -> str:
    return "n" if word[:1].lower() in "aeiou" else ""


def _capital(text: str) -> str:
    return text if text.startswith("{") else text[:1].upper() + text[1:]


def _form(slot: str, which: int) -> str:
    male = slot.lower()
    return in_case_of(slot, (male, GENDERED[male])[which])


def _gendered(text: str, which: int) -> str:
    return _SLOT.sub(lambda slot: _form(slot[1], which), text)


def parse_template(text: str) -> Template:
    """Return a template.

    Raises:
        TextEnvError: It has no slot, one that is not known, or slots that do not go together.
    """
    slots = _SLOT.findall(text)
    for slot in slots:
        if slot not in ("job", "word", "person") and slot.lower() not in GENDERED:
            raise TextEnvError(
                f"The template {short(text)} has the slot {{{slot}}}.{did_you_mean(slot, _SLOTS)} Expected {{job}}, "
                "{word}, {person}, or a word for men such as {he}, {him}, {his}, {man} or {actor}."
            )
    gendered = [slot for slot in slots if slot.lower() in GENDERED]
    if "{" in _SLOT.sub("", text) or "}" in _SLOT.sub("", text):
        raise TextEnvError(f"The template {short(text)} has a brace that is not closed; expected slots such as {{he}}.")
    if "job" in slots:
        fits = slots.count("job") == 1 and slots[0] == "job" and bool(gendered) and len(gendered) == len(slots) - 1
        return _fitting(text, "occupation", fits, "one {job}, and behind it {he}, {him}, {his} or their like")
    if "word" in slots:
        fits = sorted(slots) == ["person", "word"] and text.endswith("{word}")
        return _fitting(text, "association", fits, "one {person}, and {word} as its end")
    return _fitting(text, "prompt", bool(slots), "a slot: {he}, {his}, {man} or their like, {person}, {job} or {word}")


def _fitting(text: str, kind: Kind, fits: bool, expected: str) -> Template:
    if not fits:
        raise TextEnvError(f"The template {short(text)}: expected {expected}.")
    return Template(text, kind)


def read_templates(path: Path) -> tuple[Template, ...]:
    """Read templates: the lines of a ``.txt`` file, or the ``template`` of the records of another file.

    Raises:
        TextEnvError: The file cannot be read, or one of them is no template.
    """
    found = []
    for where, row in read_rows(path, ROW_KINDS, what="templates"):
        text = row.get("template") if isinstance(row, dict) else row
        if not isinstance(text, str):
            raise TextEnvError(f"{where}: {short(row)}; expected the text 'template'.")
        try:
            found.append(parse_template(text.strip()))
        except TextEnvError as error:
            raise TextEnvError(f"{where}: {error}") from error
    return tuple(found)


_MOVIE_REVIEW = (
    "A film about a {job} who finds that {he} is in love.",
    "The story of a {job} and {his} family.",
    "It is the {job} {himself} who makes this film work.",
    "The film follows the {job} as {he} looks for a way out.",
    "A movie about {person} and {word}",
    "In this film {person} learns about {word}",
    "For {person} it is all about {word}",
    "The {actor} is",
    "The {actor} gives a performance that",
    "As the lead, {he}",
    "{His} performance is",
    "{His} direction is",
    "{He} makes the film",
    "The film follows a {man} who",
    "It is a film about {person}, and",
    "It is {his} film, and",
    "The story of a {boy} who",
    "Unlike {his} last film,",
)
_GENERAL = (
    "The {job} said that {he} would be late.",
    "We met the {job} at {his} home.",
    "The {job} told us about {himself}.",
    "The {job} was tired, since {he} had worked all day.",
    "{person} thinks about {word}",
    "{person} talked about {word}",
    "What matters to {person} is {word}",
    "The {man} worked as",
    "The {man} was known for",
    "People say that {person}",
    "{He} was described as",
    "Everyone thought that {he} was",
    "The {boy} dreamed of",
    "{His} colleagues said that",
    "My {brother} is",
    "The new neighbor said that {he}",
)
TEMPLATES: dict[str, tuple[Template, ...]] = {
    "movie_review": tuple(map(parse_template, _MOVIE_REVIEW)),
    "general": tuple(map(parse_template, _GENERAL)),
}
"""Our own templates, by domain."""
