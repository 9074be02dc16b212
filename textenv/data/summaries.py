"""Texts with reference summaries: Debian's descriptions, a few that come with textenv, or those of a file."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from textenv.data.descriptions import Description, DescriptionSplit, load_descriptions, split_of
from textenv.data.records import read_records
from textenv.data.values import as_text, short
from textenv.types import TextEnvError
from textenv.validation import Count, NonEmpty, unknown_name, validate

__all__ = ["DEBIAN", "FEW", "SummaryData", "few_descriptions"]

DEBIAN, FEW = "debian", "few"
"""Names of data: Debian's descriptions, and a few of packages that do not exist, which come with textenv."""

_OF_DESCRIPTIONS = "SECTION: {section}\nPACKAGE: {package}\nDESCRIPTION: {text}\nTL;DR:"
_OF_FILES = "{text}\n\nTL;DR:"
_COLUMN = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryData:
    r"""Texts with reference summaries, and how a prompt is made of each.

    Attributes:
        data: ``"debian"``, descriptions of packages and their synopses; ``"few"``, some thirty that come with textenv;
            or the path of a file of records (.jsonl, .json, .csv, .parquet).
        split: ``"train"``, ``"judge"`` for what a judge learns from, ``"heldout"`` for measuring, or ``"all"``: by the
            source package, or in a file by ``group_column``, see ``textenv.data.descriptions.split_of``.
        template: The prompt, in which ``{column}`` stands for the value of a column. None for one with section, name
            and description of a package, and for ``"{text}\n\nTL;DR:"`` with a file.
        text_column: In a file, the column of the texts.
        reference_column: In a file, the column of their summaries.
        group_column: In a file, a column whose values keep rows together in one split; None for the texts.
        max_characters: Longer texts are left out.
    """

    data: NonEmpty = DEBIAN
    split: DescriptionSplit | Literal["all"] = "train"
    template: NonEmpty | None = None
    text_column: NonEmpty = "text"
    reference_column: NonEmpty = "reference"
    group_column: NonEmpty | None = None
    max_characters: Count = 600

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            TextEnvError: A value is not what is expected.
        """
        validate(self)

    def rows(self) -> list[dict[str, str]]:
        """Return a mapping for each text.

        It has ``text``, ``reference``, and the other columns that hold texts or numbers, as texts; those of
        descriptions are ``package``, ``source`` and ``section``.

        Raises:
            TextEnvError: The data cannot be had, a row lacks a column, or no row is left.
        """
        found = self._of_descriptions() if self.data in (DEBIAN, FEW) else list(self._of_file())
        rows = [row for group, row in found if self.split in ("all", split_of(group))]
        left = [row for row in rows if len(row["text"]) <= self.max_characters]
        if not left:
            raise TextEnvError(
                f"data={self.data!r}: {len(rows)} of its {len(found)} rows are in the split {self.split!r}, none "
                f"with a text of at most {self.max_characters} characters; expected at least one."
            )
        return left

    def prompts(self) -> list[dict[str, str]]:
        """Return a prompt for each text, with the columns ``text`` and ``reference``.

        Raises:
            TextEnvError: As in ``rows``, or the template names a column that there is not.
        """
        template = self.template or (_OF_DESCRIPTIONS if self.data in (DEBIAN, FEW) else _OF_FILES)
        return [
            {"prompt": _filled(template, row), "text": row["text"], "reference": row["reference"]}
            for row in self.rows()
        ]

    def _of_descriptions(self) -> list[tuple[str, dict[str, str]]]:
        found = load_descriptions() if self.data == DEBIAN else few_descriptions()
        rows = [dataclasses.asdict(each) for each in found]
        return [(row["source"], {"reference": row.pop("synopsis"), **row}) for row in rows]

    def _of_file(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield the group of each row of the file, and the row."""
        group = self.group_column or self.text_column
        for where, row in read_records(self.data):
            for column in (self.text_column, self.reference_column, group):
                if not isinstance(row.get(column), str) or not row[column].strip():
                    raise TextEnvError(
                        f"{where}: {column!r} is {short(row.get(column))}; expected a text that is not empty. Name the "
                        f"columns of the text and the summary: there are {sorted(row)}."
                    )
            others = {name: str(value) for name, value in row.items() if isinstance(value, str | int | float)}
            texts = {"text": row[self.text_column], "reference": row[self.reference_column]}
            yield row[group], {name: as_text(value, name) for name, value in {**others, **texts}.items()}


@functools.cache
def few_descriptions() -> tuple[Description, ...]:
    """Return some thirty descriptions, made up for tests and demonstrations."""
    content = (resources.files("textenv") / "data" / "few_descriptions.json").read_text("utf-8")
    return tuple(Description(**row) for row in json.loads(content))


def _filled(template: str, row: Mapping[str, str]) -> str:
    """Return a template with the value of a column for each ``{column}`` in it."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in row:
            raise unknown_name(f"template={short(template)}: there is no column", found[1], row)
        return row[found[1]]

    return _COLUMN.sub(value, template)
