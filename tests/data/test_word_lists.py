"""Lists of words: ours, those of packages, and a user's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from textenv import TextEnvError
from textenv.data import word_lists
from textenv.data.word_lists import built_in_words, count_words, package_words, read_word_lists


def test_ours_are_offline_and_say_no_shares() -> None:
    words = built_in_words()
    assert set(words.jobs.values()) == {None}
    assert len(words.words) == len(set(words.words))
    assert {"nurse", "the man", "the woman", "career", "family"} <= set(words.words)


def test_those_of_packages_are_read_as_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {
        "winobias_jobs.py": 'jobs = {\n    "carpenter": 2,\n    "ceo": 39,\n}\n',
        "WEAT.json": json.dumps(
            {"male_names": ["John"], "female_names": ["Amy"], "career": ["salary"], "family": ["home"], "math": ["x"]}
        ),
    }

    def fetch(package: str, version: str, member: str, sha256: str) -> Path:
        assert len(sha256) == 64
        path = tmp_path / Path(member).name
        path.write_text(files[path.name])
        return path

    monkeypatch.setattr(word_lists, "fetch_package_file", fetch)
    words = package_words()
    assert words.jobs == {"carpenter": 2.0, "CEO": 39.0}
    assert words.persons == [("John", "Amy")]
    assert (words.career, words.family) == (("salary",), ("home",))


def test_a_users_lists_take_the_place_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    path.write_text('{"jobs": {"nurse": 87, "poet": null}, "persons": [["Paul", "Ann"]]}')
    words = read_word_lists(path)
    assert words.jobs == {"nurse": 87.0, "poet": None}
    assert words.persons == [("Paul", "Ann")]
    assert words.career == built_in_words().career
    path.write_text('{"jobs": ["nurse"], "family": ["kin"]}')
    assert read_word_lists(path).jobs == {"nurse": None}
    assert read_word_lists(path).family == ("kin",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is no JSON"),
        ("{}", "expected an object with jobs, persons, career, family"),
        ("[1]", "expected an object with jobs"),
        ('{"job": ["nurse"]}', "has a list 'job'. Did you mean 'jobs'?"),
        ('{"jobs": []}', "jobs is []; expected a list of different words"),
        ('{"jobs": {}}', "jobs is []; expected a list of different words"),
        ('{"jobs": {"nurse": 870}}', "expected the percentage of women, from 0 to 100"),
        ('{"jobs": {"nurse": "many"}}', "jobs['nurse'] is 'many'"),
        ('{"career": ["work", "work"]}', "expected a list of different words"),
        ('{"career": ["{he}"]}', "no braces"),
        ('{"career": "work"}', "expected a list of different words"),
        ('{"family": [3]}', "family is 3"),
        ('{"persons": [["Paul"]]}', "expected a list of pairs"),
        ('{"persons": "Paul"}', "expected a list of pairs"),
    ],
)
def test_what_is_no_list_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "words.json").write_text(text)
    with pytest.raises(TextEnvError) as refused:
        read_word_lists(tmp_path / "words.json")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_words_are_counted_by_themselves_in_any_case() -> None:
    texts = ["The nurse and The Man; nursery, nurse's", "A woman, the mannequin.", "CEO ceo"]
    assert count_words(texts, ["nurse", "the man", "woman", "man", "CEO", "poet"]) == {
        "nurse": 2, "the man": 1, "woman": 1, "man": 1, "CEO": 2, "poet": 0
    }  # fmt: skip
