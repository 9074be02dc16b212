"""The recipe on conversations about words: its data, its judge on them, and the whole of it on a tiny model."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import build_lm
from textenv.commands.cli import main
from textenv.commands.rlhf import Rlhf
from textenv.data.wordnet import Synset, WordNet
from textenv.env.prompts import read_prompts
from textenv.recipes import chatgpt
from textenv.recipes.base import Data
from textenv.rewards import make
from textenv.types import TextEnvError


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def words_of(data: Data) -> tuple[set[str], set[str], set[str]]:
    """Return the words of demonstrations, of prompts and of held-out prompts."""
    assert data.prompts is not None
    assert data.eval_prompts is not None
    asked = (row["messages"][0]["content"] for row in rows(data.sft[0]))
    told = {text.removesuffix(" mean?").rstrip(".?").split()[-1] for text in asked}
    return told, {row["word"] for row in rows(data.prompts)}, {row["word"] for row in rows(data.eval_prompts)}


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """The quick recipe, with a tiny model that reads whole conversations, letter by letter."""
    lm, folder = build_lm(), tmp_path / "model"
    lm.model.config.max_position_embeddings = 1024
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return ["rlhf", "--recipe", "chatgpt", "--quick", "--model", str(folder), "--out", str(tmp_path / "run")]


@pytest.fixture
def wordnet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> WordNet:
    """A database of 400 invented animals, of which every fifth has a sentence, and data of a tenth of the size."""
    animals = ["bird", "fish", "beetle", "worm", "snake", "bat"]
    synsets = {name: Synset(name, (name,), "an animal", (), (), 5) for name in animals}
    index = {name: (name,) for name in animals}
    rng = random.Random(0)
    for number in range(1, 401):
        word, kind = "".join(rng.choices("abcdefgh", k=9)), animals[number % 6]
        sentences = (f"we saw the {word} today",) if number % 5 == 0 else ()
        synset = Synset(f"n{number}", (word,), f"{kind} with {word[::-1]} wings", sentences, (("@", kind),), 5)
        synsets[synset.key], index[word] = synset, (synset.key,)
    net = WordNet(synsets, index)
    devil = tmp_path / "devil.dict.dz"
    devil.write_bytes(gzip.compress("\n\n".join(f"ENTRY {i}, n. {'Very long. ' * 9}" for i in range(80)).encode()))
    for name, size in (("_HELD_OUT", 24), ("_PROMPTS", 76), ("_DEMONSTRATIONS", 200), ("_TEXTS", 300)):
        monkeypatch.setattr(chatgpt, name, size)
    monkeypatch.setattr(chatgpt, "load_wordnet", lambda: net)
    monkeypatch.setattr(chatgpt, "fetch_debian_files", lambda *_: {chatgpt._DEVIL[0]: devil})
    return net


def test_the_data_of_wordnet(wordnet: WordNet, tmp_path: Path) -> None:
    data = chatgpt.ChatGPT().prepare(tmp_path, quick=False, seed=0)
    told, asked, held_out = words_of(data)
    assert (len(told), len(asked), len(held_out)) == (200, 76, 24)
    assert not told & asked
    assert not (told | asked) & held_out
    texts = [row["text"] for row in rows(data.ptx_files[0])]
    assert not any(text.split(":")[0].lower() in held_out for text in texts)
    assert not set(texts) & {row["text"] for row in rows(chatgpt._held_out_texts(data))}
    assert sum(text.startswith("ENTRY") for text in texts) == 40
    assert data.eval_prompts is not None
    prompts, columns = read_prompts(data.eval_prompts)
    assert all(prompt[-1]["role"] == "user" for prompt in prompts if not isinstance(prompt, str))
    assert set(columns["question"]) == {"meaning", "kind", "sentence"}
    again = tmp_path / "again"
    again.mkdir()
    same = chatgpt.ChatGPT().prepare(again, quick=False, seed=0)
    assert same.eval_prompts is not None
    assert same.eval_prompts.read_bytes() == data.eval_prompts.read_bytes()


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.usefixtures("wordnet")
def test_the_judge_finds_demonstrations_right_and_those_of_others_wrong(quick: bool, tmp_path: Path) -> None:
    data = chatgpt.ChatGPT().prepare(tmp_path, quick=quick, seed=0)
    assert data.prompts is not None
    prompts, columns = read_prompts(data.prompts)
    judge: Any = make("dictionary_answer")
    ids = [[0]] * len(prompts)
    right = judge(prompts=prompts, completion_ids=ids, **{"completions": columns["completion"], **columns})
    assert right == pytest.approx(np.ones(len(prompts)))
    said = ["It was a fine day."] * len(prompts)
    wrong = judge(prompts=prompts, completions=said, completion_ids=ids, **columns)
    expected = [0.5 if question == "sentence" else 0.0 for question in columns["question"]]  # a sentence, at least
    assert wrong == pytest.approx(expected)


@pytest.mark.slow
def test_the_whole_of_it(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(command[-1])
    assert main([*command, "--labels", "4", "--total-steps", "100", "--eval-episodes", "4"]) == 0
    shown = capsys.readouterr().out
    assert "noise ceiling" in shown
    results = json.loads((out / "results.json").read_text())
    assert [set(row["measures"]) for row in results] == [
        {"follow-ups right", "without history", "bits per character"}
    ] * 2
    assert json.loads((out / "demonstrations.json").read_text())["gold"]["mean"] == pytest.approx(1.0)
    (prompt, *_) = rows(out / "data" / "held-out-prompts.jsonl")
    assert prompt["prompt"][-1]["role"] == "user"
    trained = json.loads((out / "round-1" / "policy" / "config.json").read_text())
    assert trained["agent_settings"]["ptx_coef"] == dict(chatgpt.ChatGPT.settings.ppo)["ptx_coef"]
    found = json.loads((out / "round-1" / "reward-model.json").read_text())
    assert set(found) == {"model", "ceiling", "judges"}
    assert all(each is None for each in found.values()), "letters at random are equally wrong, and nothing is preferred"


def test_people_in_place_of_the_judge(tmp_path: Path) -> None:
    assert Rlhf.of_recipe("chatgpt")(out=tmp_path / "run", gold=None).gold is None


def test_data_that_is_out_of_reach(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEXTENV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert main(["rlhf", "--recipe", "chatgpt", "--out", str(tmp_path / "run")]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "error: Fetching the Debian package 'wordnet-base' needs apt-get, which is not on this machine. Or" in shown
    with pytest.raises(TextEnvError):
        chatgpt.ChatGPT().prepare(tmp_path, quick=False, seed=0)


@pytest.mark.parametrize(
    ("flag", "row", "message"),
    [
        ("--prompts", {"prompt": []}, "prompt is []; expected a text, or a list of messages"),
        ("--prompts", {"prompt": [{"role": "robot", "content": "Hello"}]}, "robot"),
        ("--sft", {"messages": []}, "messages is []; expected"),
        ("--sft", {"messages": [{"role": "assistant", "content": "Hello"}]}, "speaks first"),
    ],
    ids=["empty prompt", "role", "empty demonstration", "first"],
)
def test_conversations_that_are_none(
    flag: str, row: dict[str, Any], message: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path = Path(command[-1]).parent
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert main([*command, flag, str(tmp_path / "rows.jsonl")]) == 1
    assert message in capsys.readouterr().out
