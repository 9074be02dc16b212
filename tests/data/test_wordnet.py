"""WordNet's database, on lines of its form that were written for this test."""

from __future__ import annotations

from pathlib import Path

import pytest

from textenv import TextEnvError
from textenv.data import wordnet
from textenv.data.wordnet import Synset, WordNet, load_wordnet, read_wordnet

FILES = {
    "data.noun": """  1 The license, which every file begins with.
00000001 03 n 01 thing 0 001 ~ 00000002 n 0000 | what there is
00000002 05 n 02 wading_bird 0 wader 1 002 @ 00000001 n 0000 ~ 00000003 n 0000 | a bird that walks in water
00000003 05 n 01 heron 0 003 @ 00000002 n 0000 @i 00000001 n 0000 + 00000005 a 0101 | gray wader | with a long neck; \
"a heron stood in the pond"; "two herons
00000004 18 n 0a a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 Heron 0 001 @i 00000001 n 0000 | one who said "eureka" (or so)
""",
    "index.noun": """  1 The license.
heron n 2 2 @ @i 2 1 00000003 00000004
wading_bird n 1 2 @ ~ 1 0 00000002
""",
    "data.verb": "00000009 30 v 01 wade 0 000 01 + 02 00 | walk in water\n",
    "index.verb": "wade v 1 0 1 0 00000009\n",
    "data.adj": "00000005 00 s 01 heron-like(p) 0 001 & 00000006 a 0000 | (of legs) long\n"
    "00000006 00 a 01 long 0 001 & 00000005 s 0000 | not short\n",
    "index.adj": "heron-like a 1 1 & 1 0 00000005\nheron a 1 1 & 1 0 00000005\n",
    "data.adv": "",
    "index.adv": "",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_synsets(folder: Path) -> None:
    net = read_wordnet(folder)
    assert "".join(key[0] + key[-1] for key in net.synsets) == "n1n2n3n4v9a5a6"
    assert net.synsets["n00000003"] == Synset(
        "n00000003",
        ("heron",),
        "gray wader | with a long neck",
        ("a heron stood in the pond", "two herons"),
        (("@", "n00000002"), ("@i", "n00000001"), ("+", "a00000005")),
        5,
    )
    assert net.synsets["n00000002"].words == ("wading bird", "wader")
    assert net.synsets["a00000005"].words == ("heron-like",)
    assert net.synsets["a00000006"].links == (("&", "a00000005"),)
    person = net.synsets["n00000004"]
    assert (person.words[-1], len(person.words), person.gloss) == ("Heron", 10, 'one who said "eureka" (or so)')


def test_senses_and_kinds(folder: Path) -> None:
    net = read_wordnet(folder)
    assert [synset.key for synset in net.senses("Heron")] == ["n00000003", "n00000004", "a00000005"]
    assert net.senses("wading bird")[0].words[1] == "wader"
    assert net.senses("stork") == ()
    heron = net.synsets["n00000003"]
    assert heron.hypernyms == ("n00000002", "n00000001")
    assert [synset.key for synset in net.above(heron)] == ["n00000002", "n00000001"]
    circle = {key: Synset(key, (key,), "", (), (("@", other),), 3) for key, other in (("a", "b"), ("b", "a"))}
    assert [synset.key for synset in WordNet(circle, {}).above(circle["a"])] == ["b", "a"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("00000001 03 n 02 thing 0 001", "'00000001 03 n 02 thing 0 001' is no synset; expected the form of wndb"),
        ("00000001 03 x 01 thing 0 000 | what", "is no synset"),
        ("00000001 03 n 01 thing 0 000", "has no definition"),
    ],
    ids=["cut", "letter", "gloss"],
)
def test_other_files_are_refused(folder: Path, line: str, message: str) -> None:
    (folder / "data.noun").write_text(line + "\n")
    with pytest.raises(TextEnvError, match=message):
        read_wordnet(folder)
    (folder / "data.noun").unlink()
    with pytest.raises(TextEnvError, match=r"data\.noun: No such file or directory; expected a file of WordNet"):
        read_wordnet(folder)


def test_it_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(package: str, name: str, members: dict[str, str]) -> dict[str, Path]:
        assert (package, name, len(members)) == ("wordnet-base", "wordnet-3.0", 8)
        return {member: folder / Path(member).name for member in members}

    monkeypatch.setattr(wordnet, "fetch_debian_files", fetch)
    wordnet._read.cache_clear()
    assert load_wordnet() is load_wordnet()
    wordnet._read.cache_clear()
