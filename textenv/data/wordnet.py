"""WordNet 3.0: 117,659 sets of synonyms with definitions, example sentences and links between them.

The database (Princeton University, 2006; the WordNet license, which allows any use and asks to keep its notice) is
fetched on first use out of the Debian package ``wordnet-base``, checked against SHA-256, and cached; none of it is part
of textenv. Its form is that of the manual page ``wndb(5WN)``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from textenv.data.debian import fetch_debian_files
from textenv.types import TextEnvError

__all__ = ["LICENSE", "Synset", "WordNet", "load_wordnet", "read_wordnet"]

LICENSE = "WordNet 3.0, copyright 2006 by Princeton University, WordNet license (BSD-like)"

_FOLDER = "usr/share/wordnet"
_SHA256 = {
    "data.noun": "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2",
    "data.verb": "adcf43e35b581e8036d8b5a52d63d9cd3d3b4870b2720d3c03c799df44777bc2",
    "data.adj": "c89120dfc1f046ddff4a631bf9b7e9fa1a36b5e86565a23bf82dbe14f30b88a7",
    "data.adv": "444a63bf3955080ab7524f5079cfc07ff9bc682cb98bdb1db73b0fb9829f1139",
    "index.noun": "a490d99d93d017bf4822fe2f0ffa51fd73911ce271dc7535fade21f8814b5a04",
    "index.verb": "e2ac24816c3a8289dcb72aaa9cf8db81fdf25ec34d792bfc96ac5b7a20c8b4ae",
    "index.adj": "c9865d7b4d1f805bdef82ccdcea5282436e23083e6f6f1b33e716327c4eda810",
    "index.adv": "6f5465ed5758fe9c8a2f7ec17b1300f3aa875756c70ff7cba162f7e71bcf88ea",
}
_PARTS = ("noun", "verb", "adj", "adv")
_LETTERS = {"n": "n", "v": "v", "a": "a", "s": "a", "r": "r"}  # a satellite (s) stands among the adjectives
_FIRST_EXAMPLE = re.compile(r"(?:^|[;:,])\s*\"")
_MARKER = re.compile(r"\([a-z]+\)$")  # where an adjective may stand: (p), (a), (ip)


@dataclass(frozen=True, slots=True)
class Synset:
    """Words that share a meaning.

    Attributes:
        key: Its part of speech, ``n``, ``v``, ``a`` or ``r``, and its eight digits in the database: ``"n02008041"``.
        words: The synonyms, the first as the name of the synset; spaces between the words of a compound.
        gloss: The definition, without the examples.
        examples: Sentences and phrases that use one of the words.
        links: Others that it points to, each with WordNet's symbol of the relation: ``@`` hypernym, ``~`` hyponym,
            ``%p`` part, ``!`` antonym, ... (manual page ``wninput(5WN)``).
        field: Number of the lexicographers' file, which groups by subject: 5 animals, 18 persons, ... (``lexnames``).
    """

    key: str
    words: tuple[str, ...]
    gloss: str
    examples: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    field: int

    @property
    def hypernyms(self) -> tuple[str, ...]:
        """Keys of what it is a kind of, or an instance of."""
        return tuple(key for symbol, key in self.links if symbol in {"@", "@i"})


@dataclass(frozen=True)
class WordNet:
    """The database.

    Attributes:
        synsets: All synsets by their keys, in the order of the database: nouns, verbs, adjectives, adverbs.
        index: Keys of the synsets of each word, by the word in lower case: nouns first, and of each part of speech the
            most frequent sense first.
    """

    synsets: Mapping[str, Synset]
    index: Mapping[str, tuple[str, ...]]

    def senses(self, word: str) -> tuple[Synset, ...]:
        """Return the synsets of a word, in the order of ``index``; none if it is not in the database."""
        return tuple(self.synsets[key] for key in self.index.get(word.lower(), ()))

    def above(self, synset: Synset) -> tuple[Synset, ...]:
        """Return all that a synset is a kind of, nearest first, each once."""
        found: dict[str, None] = {}
        keys = list(synset.hypernyms)
        while keys:
            found.update(dict.fromkeys(keys))
            keys = [key for each in keys for key in self.synsets[each].hypernyms if key not in found]
        return tuple(self.synsets[key] for key in found)


def load_wordnet() -> WordNet:
    """Return WordNet, fetching it on first use.

    Raises:
        TextEnvError: It is not in the cache, and Debian's archive is out of reach.
    """
    files = fetch_debian_files(
        "wordnet-base", "wordnet-3.0", {f"{_FOLDER}/{name}": digest for name, digest in _SHA256.items()}
    )
    return _read(next(iter(files.values())).parent)


@functools.lru_cache(maxsize=1)
def _read(folder: Path) -> WordNet:
    return read_wordnet(folder)


def read_wordnet(folder: Path) -> WordNet:
    """Return the database in a folder: its files ``data.noun``, ``index.noun``, ``data.verb``, ...

    Raises:
        TextEnvError: A file is missing or a line is not of the form of ``wndb(5WN)``.
    """
    synsets: dict[str, Synset] = {}
    index: dict[str, tuple[str, ...]] = {}
    for part in _PARTS:
        path = folder / f"data.{part}"
        for line in _lines(path):
            synset = _synset(line, path)
            synsets[synset.key] = synset
        for line in _lines(folder / f"index.{part}"):
            word, letter, count, *rest = line.split()
            keys = tuple(letter + offset for offset in rest[-int(count) :])
            word = word.replace("_", " ")
            index[word] = index.get(word, ()) + keys
    return WordNet(synsets, index)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise TextEnvError(f"{path}: {error.strerror or error}; expected a file of WordNet's database.") from error
    return [line for line in text.split("\n") if line and not line.startswith("  ")]  # the license heads each file


def _synset(line: str, path: Path) -> Synset:
    fields, bar, gloss = line.partition(" | ")
    names = fields.split(" ")
    try:
        offset, field, letter, count = names[0], int(names[1]), _LETTERS[names[2]], int(names[3], 16)
        words = tuple(_MARKER.sub("", word).replace("_", " ") for word in names[4 : 4 + 2 * count : 2])
        start = 4 + 2 * count
        ends = range(start + 1, start + 1 + 4 * int(names[start]), 4)
        links = tuple((names[place], _LETTERS[names[place + 2]] + names[place + 1]) for place in ends)
    except (IndexError, KeyError, ValueError) as error:
        raise TextEnvError(f"{path}: {line[:60]!r} is no synset; expected the form of wndb(5WN).") from error
    if not bar:
        raise TextEnvError(f"{path}: {line[:60]!r} has no definition; expected one after ' | '.")
    definition, examples = _split(gloss.strip())
    return Synset(letter + offset, words, definition, examples, links, field)


def _split(gloss: str) -> tuple[str, tuple[str, ...]]:
    """Return the definition and the examples of a gloss, which are in quotation marks after it."""
    first = _FIRST_EXAMPLE.search(gloss)
    if first is None:
        return gloss, ()
    examples = re.findall(r'"([^"]*)(?:"|$)', gloss[first.start() :])
    return gloss[: first.start()].strip(), tuple(text.strip() for text in examples if text.strip())
