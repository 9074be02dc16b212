"""Names of agents and rewards, and import paths: where modules are looked for, and whose names are looked up."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.envs import registration

from tests.complaints import one_line
from textenv import EnvRecord, plugins
from textenv.commands.cli import main
from textenv.env.registry import record_of
from textenv.rewards import make

REWARD = "import shared_here\n\n\ndef reward(completions, **_):\n    return [shared_here.SCORE] * len(completions)\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Write modules into a working folder that Python does not look in by itself, as for the script ``textenv``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", ".")])

    def written(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source, "utf-8")

    yield written
    for name in [name for name in sys.modules if name.endswith("_here")]:
        del sys.modules[name]


def test_a_module_in_the_working_folder_is_found(write: Callable[[str, str], None]) -> None:
    write("shared_here", "SCORE = 2.5\n")
    write("rewards_here", REWARD)
    reward: Any = make("rewards_here:reward")
    assert reward(prompts=[""], completions=[""], completion_ids=[[]]) == [2.5]
    assert sys.path[-1] == str(Path.cwd())  # after all others


def test_an_id_of_a_module_in_the_working_folder(
    write: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "registry", dict(gym.registry))
    write("ids_here", "import textenv\ntextenv.register('here/My-v0', entry_point='a:b', vector_entry_point='a:c')\n")
    assert record_of("ids_here:here/My-v0") == EnvRecord()
    write("broken_here", "raise ZeroDivisionError('by\\nzero')\n")
    with one_line("ZeroDivisionError: by zero"):
        record_of("broken_here:here/My-v0")


def test_what_is_installed_is_not_hidden(write: Callable[[str, str], None]) -> None:
    write("colorsys", "raise AssertionError\n")
    before = list(sys.path)
    with one_line("no attribute 'reward'"):
        make("colorsys:reward")
    assert sys.path == before


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def\n", "SyntaxError: invalid syntax"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("import no_such_module_anywhere\n", "No module named 'no_such_module_anywhere'"),
        ("raise ValueError('a\\n\\nb')\n", "a b"),
        ("raise KeyboardInterrupt\n", None),
    ],
    ids=str,
)
def test_a_module_that_cannot_be_imported(source: str, said: str | None, write: Callable[[str, str], None]) -> None:
    write("broken_here", source)
    if said is None:
        with pytest.raises(KeyboardInterrupt):
            make("broken_here:reward")
        return
    with one_line(said):
        make("broken_here:reward")


@pytest.mark.parametrize(
    "name", [3, None, ["ppo"], b"ppo", "", "ppoo", "nomod:Agent", "json:loads", "json:", ":"], ids=str
)
def test_what_is_no_agent(name: Any) -> None:
    with one_line():
        plugins.agents().find(name)


def test_a_run_of_others_imports_nothing_from_the_working_folder(
    write: Callable[[str, str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("evil_here", "open('imported', 'w').close()\n\n\ndef reward(**_):\n    return []\n")
    run = tmp_path / "run"
    run.mkdir()
    config = {"env": "textenv/MovieReview-v0", "agent": "ppo", "model": "bundled", "settings": {}, "reward": "vader"}
    changes: list[dict[str, Any]] = [
        {"reward": "evil_here:reward"},
        {"agent": "evil_here:Agent"},
        {"env": "evil_here:My-v0"},
        {"settings": {"reward": "evil_here:reward"}},
    ]
    for change in changes:
        (run / "config.json").write_text(json.dumps({**config, **change}), "utf-8")
        assert main(["sample", str(run), "--prompt", "a", "--reward", "run"]) == 1
        assert "--trust" in capsys.readouterr().out
    assert not Path("imported").exists()
