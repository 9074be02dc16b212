"""WordNet as an offline web: a page for each set of synonyms, linked as they are, and questions with known answers.

Questions ask for a word by its definition, for what a thing is a kind of, and, by the lists of the game ``quiz``, for
capitals and chemical elements. The lists (University of California, Berkeley; BSD license) are fetched on first use out
of the Debian package ``bsdgames``; see ``textenv.data.wordnet`` for WordNet itself. Neither is part of textenv.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from textenv.data.debian import fetch_debian_files
from textenv.data.files import locked
from textenv.data.offline_web import write_web
from textenv.data.records import read_text
from textenv.data.reviews import cache_folder
from textenv.data.web_pages import Question, WebPage
from textenv.data.wordnet import Synset, WordNet, load_wordnet

__all__ = ["expanded", "quiz_questions", "wordnet_pages", "wordnet_questions", "wordnet_web"]

_NAME = "wordnet-web-1"  # another number for other pages or questions
_DOMAIN = "wordnet"
_RELATIONS = {
    "Kind of": ("@",), "Instance of": ("@i",), "Kinds": ("~",), "Instances": ("~i",), "Part of": ("#m", "#s", "#p"),
    "Parts": ("%m", "%s", "%p"), "Opposite": ("!",), "Similar to": ("&",),
}  # fmt: skip
_MOST_LINKS = 12  # of a relation
_MOST_QUESTIONS = 4000  # of a kind
_FOLDER = "usr/share/games/bsdgames/quiz"
_LISTS = {
    "africa": "d01bb8d33ff5f33ddfaa056984d4fe64df9f7b0e2ba00b9b779fc24eba62c823",
    "america": "7c944a8081ae5cc82d7a12f5faccc9dcc623e893ee76f434f5bcb921198a42d0",
    "asia": "bbd4da4cee0dbcb2afc517d7261e25af5dae80075203d3297a58496e8ea96a2f",
    "elements": "389c43f6df09250664de06aa1ea011e31e741ebd9011189a37d6e25a6d4a3c26",
    "europe": "e00402d83b389dfd4eb249009623f7ade1e93d360ebcc3a3e0714e9a4963876b",
    "province": "1f028158498ff58563b3efe24e3700c90744ce1aa3e5a1f4f508fb40f0dfc63e",
    "state": "f983975d2ae1a79df50cd6b9608aa1ed2a629a8403acd0264f67b6f11f128cf8",
}
_MOST_FORMS = 64  # of an answer


def wordnet_web() -> Path:
    """Return the file of the web of WordNet, which is made on first use.

    Raises:
        TextEnvError: It is not in the cache, and Debian's archive is out of reach.
    """
    folder = cache_folder() / _NAME
    path = folder / "web.sqlite"
    if not path.exists():
        net, lists = load_wordnet(), _load_lists()
        with locked(folder, wait=True):
            if not path.exists():  # another process may have made it
                questions = itertools.chain(wordnet_questions(net), quiz_questions(lists, net))
                write_web(path, wordnet_pages(net), questions)
    return path


def wordnet_pages(net: WordNet) -> Iterator[WebPage]:
    """Yield a page for each synset: its words, its definition, links by relation, and examples."""
    for synset in net.synsets.values():
        text, links = f"{', '.join(synset.words)}: {synset.gloss}", list[tuple[int, int, str]]()
        for name, symbols in _RELATIONS.items():
            others = [key for symbol, key in synset.links if symbol in symbols][:_MOST_LINKS]
            for place, key in enumerate(others):
                text += ", " if place else f"\n{name}: "
                word = net.synsets[key].words[0]
                links.append((len(text), len(text) + len(word), key))
                text += word
        text += "".join(f"\nExample: {example}" for example in synset.examples)
        yield WebPage(synset.key, synset.words[0], text, tuple(links), _DOMAIN)


def wordnet_questions(net: WordNet, *, most: int = _MOST_QUESTIONS) -> Iterator[Question]:
    """Yield questions for words by their definitions, and for what words of one meaning are a kind of.

    Args:
        net: WordNet.
        most: The most questions of each of the two.
    """
    defined = [synset for synset in net.synsets.values() if _tells_no_word(synset)]
    for synset in _some(defined, most):
        yield Question(f"Which word means: {synset.gloss}?", synset.words, synset.key)
    kinds = [each for each in net.synsets.values() if each.key[0] == "n" and "@" in dict(each.links)]
    clear = [each for each in kinds if len(net.senses(each.words[0])) == 1]
    for synset in _some(clear, most):
        right = dict.fromkeys(word for key in synset.hypernyms for word in net.synsets[key].words)
        yield Question(f"What is {synset.words[0]} a kind of?", tuple(right), synset.key)


def quiz_questions(lists: Iterable[tuple[str, Path]], net: WordNet) -> Iterator[Question]:
    """Yield the questions of lists of the game ``quiz`` to which an answer stands in WordNet.

    Args:
        lists: Name and file of each list, some of those of the package.
        net: WordNet.
    """
    for name, path in lists:
        for line in read_text(path).replace("\\\n", "").splitlines():
            fields = line.split(":")
            for asked, place, answer in _ASKED[name]:
                forms = expanded(fields[answer]) if len(fields) > max(place, answer) else ()
                right = tuple(each for each in forms if each.isprintable())  # letters are struck over each other
                if any(each.lower() in net.index for each in right):
                    about = expanded(fields[place])[0]
                    yield Question(asked.format(about), right, f"quiz {name} {fields[0]}")


def expanded(pattern: str) -> tuple[str, ...]:
    """Return the texts that a pattern of the game ``quiz`` stands for, the longest first.

    Args:
        pattern: Text with ``{optional}``, ``[one|another]`` and ``one|another``; a backslash stands before a sign.
    """
    tokens = re.findall(r"\\.|[^\\]", pattern)
    found, _ = _alternatives(tokens, 0, "")
    return tuple(sorted(dict.fromkeys(" ".join(each.split()) for each in found), key=len, reverse=True))


def _alternatives(tokens: Sequence[str], at: int, end: str) -> tuple[list[str], int]:
    """Return the texts of a pattern from a token on, and the place behind the token that ends it."""
    done, texts = list[str](), [""]
    while at < len(tokens) and tokens[at] != end:
        token, at = tokens[at], at + 1
        if token == "|":
            done, texts = done + texts, [""]
            continue
        parts = [token[-1]]
        if token in "{[":
            parts, at = _alternatives(tokens, at, "}" if token == "{" else "]")
            parts += [""] if token == "{" else []
        texts = [text + part for text in texts for part in parts][:_MOST_FORMS]
    return (done + texts)[:_MOST_FORMS], at + 1


def _tells_no_word(synset: Synset) -> bool:
    """Tell whether a definition is of a length to ask by, and holds none of the words that it defines."""
    words = re.findall(r"\w+", synset.gloss.lower())
    inside = {part for word in synset.words for part in re.findall(r"\w+", word.lower())}
    return 4 <= len(words) <= 20 and not inside & set(words)


def _some(synsets: Sequence[Synset], most: int) -> Sequence[Synset]:
    return random.Random(0).sample(synsets, most) if len(synsets) > most else synsets


def _load_lists() -> list[tuple[str, Path]]:
    members = {f"{_FOLDER}/{name}": digest for name, digest in _LISTS.items()}
    files = fetch_debian_files("bsdgames", "bsdgames-2.17", members)
    return [(Path(member).name, path) for member, path in files.items()]


_CAPITAL = [("What is the capital of {}?", 0, 1)]
_ASKED = {
    **dict.fromkeys(("africa", "america", "asia", "europe", "province", "state"), _CAPITAL),
    "elements": [
        ("Which chemical element has the symbol {}?", 0, 3),
        ("Which chemical element has the atomic number {}?", 1, 3),
    ],
}
"""Of each list, what is asked, the field that it is asked of, and the field of the answer."""
