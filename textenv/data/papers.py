"""Papers of computational linguistics with their abstracts: texts of some thousand words with summaries by people."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from textenv.data.files import parse_json
from textenv.data.packages import fetch_wheel

__all__ = ["Paper", "load_papers"]

_SHA256 = "c75ffc48d3eabc5f37c68ea087943780a85950087957759e89746f21111f2213"
_FOLDER = "aclsum/dataset"
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Paper:
    """A paper.

    Attributes:
        id: Its id in the ACL Anthology.
        title: Its title.
        text: Its text without the abstract, a line for each heading and paragraph, an empty line between them.
        abstract: Its abstract.
        summaries: Sentences by experts on its challenge, its approach and its outcome.
        split: ``"train"``, ``"val"`` or ``"test"``, those of the data set.
    """

    id: str
    title: str
    text: str
    abstract: str
    summaries: tuple[str, ...]
    split: str


def load_papers() -> list[Paper]:
    """Return the 250 papers of ACLSum (Takeshita et al. 2024, arXiv:2403.05303), sorted by id.

    They are fetched on first use, out of the package ``aclsum`` 0.1.2, and are no part of textenv. The package is under
    the MIT license; the papers are under the terms of the ACL Anthology, CC BY 4.0 from 2016 on and CC BY-NC-SA 3.0
    before.

    Raises:
        TextEnvError: The package cannot be fetched, or is not what was published.
    """
    with zipfile.ZipFile(fetch_wheel("aclsum", "0.1.2", _SHA256)) as wheel:
        papers = [
            _paper(row, split, _parsed(wheel, f"paper_jsons/{row['id']}.json"))
            for split in _SPLITS
            for row in _rows(wheel, split)
        ]
    return sorted(papers, key=lambda paper: paper.id)


def _rows(wheel: zipfile.ZipFile, split: str) -> Iterator[Mapping[str, Any]]:
    name = f"{_FOLDER}/{split}.jsonl"
    for number, line in enumerate(wheel.read(name).decode().splitlines(), start=1):
        yield parse_json(line, f"{name}, line {number}")


def _parsed(wheel: zipfile.ZipFile, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = parse_json(wheel.read(f"{_FOLDER}/{name}").decode(), name)
    return found


def _paper(row: Mapping[str, Any], split: str, parsed: Mapping[str, Any]) -> Paper:
    parts, heading = list[str](), ""
    for paragraph in parsed["pdf_parse"]["body_text"]:
        if paragraph["section"] != heading:
            heading = paragraph["section"]
            parts.append(heading)
        parts.append(paragraph["text"])
    text = "\n\n".join(filter(None, (" ".join(part.split()) for part in parts)))
    summaries = tuple(row["summary"][aspect] for aspect in ("challenge", "approach", "outcome"))
    return Paper(row["id"], row["title"], text, " ".join(parsed["abstract"].split()), summaries, split)
