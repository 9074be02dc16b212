"""What is imported for what: names, help and tab completion come without the libraries that take seconds to load."""

import subprocess
import sys
from pathlib import Path

import pytest

import textenv
from textenv.env.registry import record_of

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "scipy", "stable_baselines3", "matplotlib", "pandas", "datasets", "tensorboard"}
REGISTRATION = "import gymnasium, textenv; gymnasium.spec('textenv/MovieReview-v0'); dir(textenv); textenv.TextEnvError"
COMMANDS = ["", "reward", "feedback", "clips", "sample", "doctor", "corpus", "compare", "label"]
COMMANDS += ["reward serve", "reward eval", "reward data", "clips train"]
COMMANDS += ["feedback add", "feedback import", "feedback export", "feedback annotate", "feedback status"]
COMMANDS += ["train", "train --agent rloo", "rlhf", "pretrain", "sft", "reward train"]


def loaded_by(source: str) -> set[str]:
    """Return which of the heavy modules a new process has imported at its end."""
    report = f"print('\\n' + ' '.join(set({sorted(HEAVY)!r}) & sys.modules.keys()))"
    ending = f"import atexit, sys; atexit.register(lambda: {report})"
    done = subprocess.run(
        [sys.executable, "-c", f"{ending}\n{source}"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return set(done.stdout.splitlines()[-1].split())


def command(arguments: str) -> str:
    """Return a program that runs a command as ``python -m textenv`` does."""
    words = ["textenv", *arguments.split()]
    return f"import runpy, sys; sys.argv = {words!r}; runpy.run_module('textenv', alter_sys=True)"


def test_importing_and_registering_load_nothing_heavy() -> None:
    assert loaded_by(REGISTRATION) == set()


def test_the_check_can_fail() -> None:
    assert loaded_by("import scipy") == {"scipy"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_loads_nothing_heavy(name: str) -> None:
    assert loaded_by(command(f"{name} --help")) == set()


def test_training_begins_without_what_draws_at_its_end() -> None:
    assert "matplotlib" not in loaded_by("import textenv.commands.training_run")


def test_tab_completion_loads_nothing_heavy() -> None:
    assert loaded_by(command("--tyro-print-completion bash")) == set()


@pytest.mark.parametrize("name", [name for name in textenv.__all__ if name != "EnvRecord"])
def test_every_public_name_can_be_used(name: str) -> None:
    assert getattr(textenv, name) is not None
    assert name in dir(textenv)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'textenv' has no attribute 'Nonesuch'"):
        _ = textenv.Nonesuch


def test_an_environment_of_another_package_registers_with_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    import gymnasium
    from gymnasium.envs import registration

    monkeypatch.setattr(registration, "registry", dict(gymnasium.registry))
    record = textenv.EnvRecord(held_out={"prompts": ["b"]}, takes_model=False)
    textenv.register("tests/Letters-v0", entry_point="a:b", vector_entry_point="a:c", record=record)
    assert record_of("tests/Letters-v0") == record
    with pytest.raises(textenv.TextEnvError, match="'textenv/Nonesuch-v0' is not registered"):
        record_of("textenv/Nonesuch-v0")
