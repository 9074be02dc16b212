"""How commands are found, read and helped with."""

import re
import sys
from pathlib import Path

import pytest

import textenv
from textenv.commands import cli
from textenv.commands.cli import main
from textenv.commands.flags import last_value

COMMANDS = [
    "train", "compare", "sample", "chat", "detect", "bias", "doctor", "pretrain", "sft", "corpus", "rlhf", "label",
    "summarize",
    "clips train",
    "reward serve", "reward train", "reward eval", "reward data",
    "browse index", "browse demonstrate", "browse record", "browse compare",
    "feedback add", "feedback import", "feedback export", "feedback annotate", "feedback status",
]  # fmt: skip

HELLO = '''
from dataclasses import dataclass

from textenv.commands.base import Command
from textenv.commands.console import tell


@dataclass(frozen=True)
class SayHello(Command):
    """Greet somebody.

    Attributes:
        name: Whom.
    """

    name: str

    def run(self) -> int:
        tell(f"Hello, {self.name}.")
        return 3
'''


def helped(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_a_command_is_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "__init__.py").write_text('"""Commands of others."""\n')
    (tmp_path / "others" / "say_hello.py").write_text(HELLO)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cli, "_ROOT", cli._Entry("others", tmp_path / "others" / "__init__.py"))
    assert "say-hello" in (text := helped([], capsys))
    assert "Greet somebody." in text
    assert "others.say_hello" not in sys.modules  # nothing is imported to list it
    assert main(["say-hello", "--name", "Ann"]) == 3
    assert capsys.readouterr().out == "Hello, Ann.\n"


def test_all_commands_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    def names(entry: cli._Entry, prefix: str = "") -> list[str]:
        found = []
        for name, inner in entry.entries().items():
            found += [prefix + name] if inner.class_name else names(inner, f"{prefix}{name} ")
        return found

    assert sorted(names(cli._ROOT)) == sorted(COMMANDS)
    text = helped([], capsys)
    assert all(re.search(rf"^ *{name.split()[0]} ", text, re.M) for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_speaks_to_users(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    usage, first = helped(name.split(), capsys).split("\n\n")[:2]
    assert usage.startswith(f"usage: textenv {name}")
    assert not re.match("Settings of|Commands of|``", first.strip())
    assert first.strip().endswith((".", "!"))


def test_flags_are_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    text = helped(["train"], capsys)
    marks = [
        " run options ", "--out ", "--total-steps ", " tracking options ", "--eval-prompts ", " environment options ",
        "--max-new-tokens ", " KL options ", "--kl-coef ", " agent options ", "--value-clip ", " optimizer options ",
        "--learning-rate ", "--value-learning-rate ", " LoRA options ", "--lora-rank ",
    ]  # fmt: skip
    places = [text.rindex(mark) for mark in marks]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "name", ["train", "rlhf", "sample", "bias", "doctor", "compare", "reward train", "clips train"]
)
def test_commands_that_compute_take_threads(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--threads " in helped(name.split(), capsys)


@pytest.mark.parametrize(("no_color", "colored"), [("", True), ("1", False)])
def test_help_is_colored_in_a_terminal_alone(
    no_color: str, colored: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "\x1b[" not in helped(["sample"], capsys)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", no_color)
    assert ("\x1b[" in helped(["sample"], capsys)) is colored


@pytest.mark.parametrize(
    ("agent", "flags"),
    [
        (["--agent", "rloo"], ["--samples", "--learning-rate"]),
        (["--agent=best_of_n"], ["--samples"]),
        (["--agent", "textenv.agents.nlpo:NLPO"], ["--mask-every", "--agent.top-p", "--top-p"]),
        (["--agent", "rloo", "--agent", "guided"], ["--candidates"]),
    ],
)
def test_every_setting_of_an_agent_is_a_flag(
    agent: list[str], flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = helped(["train", *agent], capsys)
    assert all(f" {flag} " in text for flag in flags)
    assert "--value-clip" not in text or "nlpo" in agent[1]  # a setting of PPO


def test_a_flag_of_another_agent_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--out", str(tmp_path / "x"), "--agent", "rloo", "--value-clip", "0.3"]) == 2
    assert "Unrecognized options: --value-clip" in capsys.readouterr().out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"textenv {textenv.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "textenv has no command 'trian'. Did you mean 'train'?"),
        (["reward", "trian"], "textenv reward has no command 'trian'. Did you mean 'train'?"),
        (["--verison"], "Did you mean '--version'?"),
    ],
)
def test_what_is_misspelled_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert message in line


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert "sample" in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_tab_completion_knows_commands_and_flags(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--tyro-print-completion", shell])
    assert not stopped.value.code
    text = capsys.readouterr().out
    assert all(word in text for name in COMMANDS for word in name.split())
    assert all(flag in text for flag in ("--kl-coef", "--value-clip", "--allow-host", "--skip-unreadable"))


def test_the_last_value_of_a_flag_counts() -> None:
    arguments = ["--out", "x", "--agent", "rloo", "--seed", "1", "--agent=grpo", "--agent"]
    assert last_value(arguments, "--agent", "ppo") == "grpo"
    assert last_value(arguments, "--agent-settings", "{}") == "{}"
