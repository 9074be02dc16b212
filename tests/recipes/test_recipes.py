"""What all recipes keep to, and how their settings become those of ``textenv rlhf``."""

import dataclasses
import json
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import build_lm
from textenv import recipes
from textenv.commands.cli import main
from textenv.commands.rlhf import Rlhf
from textenv.recipes.base import Data, Recipe, Settings
from textenv.types import TextEnvError


class Tiny(Recipe):
    """Six words about films."""

    settings = Settings({"labels": 40, "rounds": 1, "samples": 2, "num_envs": 4}, {"max_new_tokens": 4}, {"epochs": 2})
    quick = Settings({"labels": 2, "eval_episodes": 3, "total_steps": 16, "reward_epochs": 1, "sft_epochs": 1})
    prepared = 0

    def prepare(self, folder: Path, *, quick: bool, seed: int) -> Data:
        type(self).prepared += 1
        pairs, prompts, held_out = folder / "pairs.jsonl", folder / "prompts.txt", folder / "held-out.jsonl"
        pairs.write_text('{"prompt": "the film", "completion": " was good."}\n' * 8)
        prompts.write_text("the film\nthe plot\n")
        held_out.write_text('{"prompt": "it was", "completion": " the plot of the film"}\n' * 3)
        return Data((pairs,), prompts, held_out, (prompts,))

    def measure(self, policy: Any, data: Data, *, seed: int) -> Mapping[str, Sequence[float]]:
        assert data.prompts is not None
        assert data.prompts.exists()
        return {"ones": [1.0, 1.0, 0.0, 0.0]}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    module = types.ModuleType("recipe_of_tests")
    module.Tiny = Tiny  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "recipe_of_tests", module)
    monkeypatch.setattr(Tiny, "prepared", 0)
    return "recipe_of_tests:Tiny"


def test_a_recipe_runs_and_goes_on(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lm = build_lm()
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    out = tmp_path / "run"
    command = ["rlhf", "--recipe", tiny, "--quick", "--out", str(out), "--model", str(tmp_path / "model"), "--gold",
               '{"name": "length", "target": 4}', "--minibatch-size", "4", "--epochs", "3"]  # fmt: skip
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert main(command) == 0
    assert Tiny.prepared == 1  # what has been written is not written again
    config = json.loads((out / "config.json").read_text())
    assert (config["labels"], config["num_envs"], config["ppo"]["epochs"]) == (2, 4, 3)  # what is typed counts
    assert config["settings"]["max_new_tokens"] == 4
    (start, trained) = json.loads((out / "results.json").read_text())
    assert start["measures"] == trained["measures"]
    assert start["measures"]["ones"]["mean"] == 0.5
    assert "ones" in shown
    wins = json.loads((out / "wins.json").read_text())
    assert wins["prompts"] == 3
    assert set(wins["elo"]) == {"start", "round 1", "demonstrations"}
    assert wins["elo"]["start"]["rating"] == pytest.approx(1000)
    shares = {(pair["side"], pair["against"]): pair["share"] for pair in wins["pairs"]}
    assert all(shares[a, b] == pytest.approx(1 - shares[b, a]) for a, b in shares)
    assert (out / "sft" / "tokenizer.json").exists()


def test_defaults_are_those_of_the_recipe(tiny: str, tmp_path: Path) -> None:
    made = Rlhf.of_recipe(tiny)(out=tmp_path / "run", gold="vader")
    assert (made.labels, made.eval_episodes, made.recipe, made.quick) == (40, 512, tiny, False)
    assert Rlhf.of_recipe(tiny, quick=True)(out=tmp_path / "run", labels=7).labels == 7
    with pytest.raises(TextEnvError, match="of_recipe"):
        Rlhf(out=tmp_path / "run", recipe=tiny)


def test_unknown_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rlhf", "--recipe", "zigler", "--out", str(tmp_path / "run")]) == 1
    assert "There is no recipe named 'zigler'" in capsys.readouterr().out
    assert main(["rlhf", "--quick", "--out", str(tmp_path / "run")]) == 1
    assert "--quick is of recipes" in capsys.readouterr().out


def test_a_folder_with_another_run(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert main(["rlhf", "--recipe", tiny, "--quick", "--gold", "vader", "--out", str(tmp_path)]) == 1
    assert "holds a run without the data of the recipe" in capsys.readouterr().out.replace("\n", " ")
    assert not (tmp_path / "data").exists()


def test_the_place_of_files_is_kept(tmp_path: Path) -> None:
    data = Data((tmp_path / "a.jsonl",), tmp_path / "b.txt", None, ())
    assert Data.from_json(json.loads(json.dumps(data.to_json(tmp_path), allow_nan=False)), tmp_path) == data


@pytest.mark.parametrize("name", recipes.names())
def test_settings_are_known(name: str, tmp_path: Path) -> None:
    recipe = recipes.find(name)
    assert type(recipe).__doc__
    for quick in (False, True):
        made = Rlhf.of_recipe(name, quick=quick)(out=tmp_path / "run")
        sizes = recipe.sized(quick=quick)
        assert {each: getattr(made, each) for each in sizes.command} == dict(sizes.command)
        assert dataclasses.replace(made, settings=dict(sizes.env), ppo=dict(sizes.ppo)).recipe == name
