"""Debian's package descriptions with their one-line synopses: texts and summaries that people wrote.

Every package of Debian has a description of some sentences and a synopsis of one line, which says the same. They come
with the lists that apt keeps of an archive: ``apt-get update`` fetches these into a folder of ours, checks their
signatures, and leaves those of the system as they are. Descriptions are published under the license of their package,
all of them free ones (Debian's policy, section 2.2.1); none of the text is part of textenv.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from textenv.data.files import make_folder, to_json, write_atomically
from textenv.data.records import read_records
from textenv.data.reviews import cache_folder
from textenv.types import TextEnvError
from textenv.validation import build

__all__ = ["Description", "DescriptionSplit", "load_descriptions", "parse_descriptions", "split_of"]

DescriptionSplit: TypeAlias = Literal["train", "judge", "heldout"]

_FILE = "debian-descriptions.jsonl"
_SHORTEST, _LONGEST = 40, 200  # words
_ACCOMPANYING = re.compile(r"-(dev|docs?|dbg|dbgsym|prof|data|common|l10n|i18n|examples|headers|source|tests?)$")
_ORIGIN = re.compile(r"^Origin: (Debian|Ubuntu)$", re.M)
_SECONDS = 900.0  # that apt-get may take


@dataclass(frozen=True, slots=True)
class Description:
    """What a package says of itself.

    Attributes:
        package: Its name.
        source: The source package that it is built from; packages of one source resemble each other.
        section: Part of the archive, such as ``"games"``.
        synopsis: One line.
        text: The description, of 40 to 200 words: a line for each paragraph and each item of a list.
    """

    package: str
    source: str
    section: str
    synopsis: str
    text: str


def load_descriptions(split: DescriptionSplit | None = None) -> list[Description]:
    """Return the descriptions of one split, sorted by package, fetching them on first use.

    Left out are packages that accompany another one (``-dev``, ``-doc``, ``-data`` and so on), and descriptions that
    another package has too. They are those of the archives of Debian or Ubuntu that this machine uses, on the day when
    they were fetched: the file ``debian-descriptions.jsonl`` in ``textenv.data.reviews.cache_folder()`` keeps them.

    Args:
        split: ``"train"``, ``"judge"`` for what a judge of summaries learns from, or ``"heldout"``, see ``split_of``;
            None for all.

    Raises:
        TextEnvError: There is no such split, or the lists cannot be fetched or read.
    """
    if split not in ("train", "judge", "heldout", None):
        raise TextEnvError(f"split={split!r}: expected 'train', 'judge', 'heldout', or None for all of them.")
    path = cache_folder() / _FILE
    if not path.exists():
        found = _fetch(path)
        make_folder(path.parent)
        lines = [to_json(dataclasses.asdict(each), ensure_ascii=False) for each in found]
        write_atomically(path, "\n".join(lines) + "\n")
    return [each for each in _read(path) if split is None or split_of(each.source) == split]


def split_of(source: str) -> DescriptionSplit:
    """Return the split of a source package: by the SHA-256 of its name modulo 10.

    0 to 5 are ``"train"``, 6 to 8 ``"judge"``, 9 is ``"heldout"``. It depends on nothing else, and packages of one
    source are in the same split.
    """
    number = int.from_bytes(hashlib.sha256(source.encode()).digest()) % 10
    return "train" if number < 6 else "judge" if number < 9 else "heldout"


def parse_descriptions(packages: Iterable[str], translations: Iterable[str]) -> Iterator[Description]:
    """Yield the descriptions that are fit for summarizing, in the order of the translations.

    Args:
        packages: Lines of a file ``Packages`` of an archive.
        translations: Lines of its file ``Translation-en``.
    """
    known = {
        each["Package"]: each for each in _paragraphs(packages, ("Package", "Source", "Section", "Description-md5"))
    }
    for each in _paragraphs(translations, ("Package", "Description-md5", "Description-en")):
        package = known.get(each["Package"], {})
        if package.get("Description-md5") != each["Description-md5"] or _ACCOMPANYING.search(each["Package"]):
            continue
        synopsis, _, rest = each["Description-en"].partition("\n")
        text = _unwrapped(rest)
        if synopsis and _SHORTEST <= len(text.split()) <= _LONGEST:
            source = (package.get("Source") or each["Package"]).split(" ")[0]  # a version may follow
            yield Description(each["Package"], source, package.get("Section", ""), synopsis, text)


def _paragraphs(lines: Iterable[str], fields: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Yield some fields of each paragraph of a control file; lines after the first keep what is behind their blank."""
    found: dict[str, str] = {}
    name = ""
    for line in map(_without_end, lines):
        if not line:
            if found:
                yield found
            found, name = {}, ""
        elif line.startswith(" "):
            if name in found:
                found[name] += "\n" + line[1:]
        else:
            name, _, value = line.partition(":")
            if name in fields:
                found[name] = value.strip()
    if found:
        yield found


def _without_end(line: str) -> str:
    return line.rstrip("\n")


def _unwrapped(text: str) -> str:
    """Return a description with a line for each paragraph; a line that is set in begins one."""
    paragraphs: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip() == "." or line.startswith(" "):
            paragraphs.append([])
        if line.strip() != ".":
            paragraphs[-1] += line.split()
    return "\n".join(" ".join(words) for words in paragraphs if words)


@functools.lru_cache(maxsize=1)
def _read(path: Path) -> tuple[Description, ...]:
    try:
        return tuple(build(Description, row) for _, row in read_records(path, (".jsonl",), what="descriptions"))
    except TextEnvError as error:
        raise TextEnvError(f"{error} Delete {path}, and it is fetched again.") from error


def _fetch(path: Path) -> list[Description]:
    """Return all descriptions of the archives that apt knows here; ``path`` is where they may be put by hand."""
    by_hand = f"put {path.name} of a machine that has it at {path}, or give a file of your own."
    if shutil.which("apt-get") is None:
        raise TextEnvError(f"Debian's descriptions are fetched with apt-get, which is not on this machine; {by_hand}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        problem = _update(folder)
        found: dict[str, Description] = {}
        for release in sorted(folder.glob("*_InRelease")):
            if _ORIGIN.search(release.read_text("utf-8")):
                _read_archive(folder, release.name.removesuffix("InRelease"), found)
    if not found:
        raise TextEnvError(
            f"Could not fetch Debian's descriptions: {problem or 'apt-get left none'}. Check the connection to the "
            f"archive that apt uses, or {by_hand}"
        )
    by_text = {each.text: each for each in reversed([found[name] for name in sorted(found)])}
    return sorted(by_text.values(), key=lambda each: each.package)


def _update(folder: Path) -> str:
    """Have apt fetch its lists into a folder; return what it complains of."""
    options = {
        "Dir::State::Lists": folder,
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "Acquire::Languages": "en",
        "Acquire::GzipIndexes": "false",
        "APT::Sandbox::User": "",  # who could not write into the folder
    }
    command = [
        "apt-get",
        "update",
        "-qq",
        *(part for name, value in options.items() for part in ("-o", f"{name}={value}")),
    ]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return f"apt-get took more than {_SECONDS:g} seconds"
    return " ".join(result.stderr.split())[-300:]


def _read_archive(folder: Path, prefix: str, found: dict[str, Description]) -> None:
    """Add the descriptions of an archive whose lists begin with a prefix; a package that is there stays."""
    for translations in sorted(folder.glob(f"{prefix}*_i18n_Translation-en")):
        component = translations.name.removesuffix("i18n_Translation-en")
        for packages in sorted(folder.glob(f"{component}binary-*_Packages")):
            with packages.open(encoding="utf-8") as known, translations.open(encoding="utf-8") as texts:
                for each in parse_descriptions(known, texts):
                    found.setdefault(each.package, each)
