"""Every command and snippet of the README runs, and what is neither stops the test."""

import json
import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from textenv.cli import main
from textenv.reviews import load_reviews
from textenv.types import TextEnvError

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    hint: str  # of the comment <!-- test: ... --> above it
    line: int


def blocks() -> list[Block]:
    pattern = re.compile(r"(?:<!-- test: (?P<hint>.*?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
    return [
        Block(m["language"], m["code"], m["hint"] or "", README[: m.start()].count("\n") + 1)
        for m in pattern.finditer(README)
    ]


def with_flags(command: list[str], flags: list[str]) -> list[str]:
    """Replace flags of the command by the same ones with smaller values."""
    kept: list[str] = []
    skip = False
    for word in command:
        skip = word in flags if word.startswith("--") else skip
        if not skip:
            kept.append(word)
    return kept + flags


def test_every_block_is_of_a_kind_that_is_run() -> None:
    assert README.count("```") == 2 * len(blocks())
    assert {block.language for block in blocks()} == {"python", "sh"}


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in blocks() if b.language == "python"], ids=lambda b: f"line{b.line}")
def test_python(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if block.hint == "network":
        try:
            load_reviews("train")
        except TextEnvError as error:
            pytest.skip(f"the reviews cannot be fetched here: {error}")
    exec(compile(block.code, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in blocks() if b.language == "sh"], ids=lambda b: f"line{b.line}")
def test_commands(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if block.hint == "files":
        sentences = [f"The film number {i} is good, and the plot is number {i % 7}." for i in range(200)]
        Path("texts.txt").write_text("\n\n".join(sentences))
        Path("prompts.txt").write_text("The film\nThe plot\n")
        pair = {"prompt": "The film", "completion": " is good."}
        Path("pairs.jsonl").write_text("\n".join([json.dumps(pair)] * 8))
    flags = shlex.split(block.hint) if block.hint.startswith("--") else []
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for line in block.code.splitlines():
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            assert words[1] in targets
        else:
            assert words[0] == "textenv"
            assert main(with_flags(words[1:], flags if words[1] == "train" else [])) == 0, capsys.readouterr().out


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_metrics_extra_and_the_settings_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(re.findall(r"textenv\[(\w+)\]", README))
    assert extras <= set(project["optional-dependencies"])
