"""Every command and snippet of the README runs, and what is neither stops the test."""

import contextlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import build_lm
from tests.rollouts.stand_in_engine import serving
from textenv.commands.cli import main
from textenv.data.reviews import load_reviews
from textenv.types import TextEnvError

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
FENCE = re.compile(r"(?:<!-- test: (?P<hint>.*?) -->\n)?^```(?P<language>.*)\n(?P<code>(?:.*\n)*?)^```$", re.M)


_IN_SHELLS = {"", "files", "rankings", "compare", "watermark", "engine", "web"}
HINTS = {"python": {"", "network"}, "sh": _IN_SHELLS, "toml": {""}}


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    hint: str  # of <!-- test: ... --> above it: one of HINTS, or flags that make `train` short
    line: int


def blocks_of(text: str) -> list[Block]:
    """Return the fenced blocks of a page; refuse code and comments that no test would see."""
    blocks = [
        Block(m["language"], m["code"], m["hint"] or "", text[: m.start()].count("\n") + 1)
        for m in FENCE.finditer(text)
    ]
    prose = FENCE.sub("", text)
    assert "```" not in prose, "a fence that is indented or not closed"
    assert not re.search(r"^(~~~|    |\t)", prose, re.M), "code without a fence"
    assert "<!-- test:" not in prose, "a test comment that is not right above a block"
    for block in blocks:
        assert block.language in {"python", "sh", "toml"}, f"line {block.line}: no test runs {block.language!r}"
        hints = HINTS[block.language]
        short = block.language == "sh" and block.hint.startswith("--")
        assert short or block.hint in hints, f"line {block.line}: no test knows the comment {block.hint!r}"
    return blocks


BLOCKS = blocks_of(README)


def check_command(words: list[str]) -> None:
    """Check a command that a test can't run: that there is such a target, extra, or ``textenv`` command."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    match words:
        case ["make", target]:
            assert target in re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        case ["pip", "install", package]:
            found = re.fullmatch(r"(\.|textenv)(?:\[(\w+)\])?", package)
            assert found, package
            assert found[2] in {None, *project["optional-dependencies"]}
        case ["textenv", *command] if all(re.fullmatch(r"(--)?\w+", word) for word in command):
            with pytest.raises(SystemExit) as stopped:
                main([*command, "--help"])
            assert stopped.value.code == 0
        case _:
            raise AssertionError(f"no test knows {shlex.join(words)!r}")


def with_flags(command: list[str], flags: list[str]) -> list[str]:
    """Replace flags of the command by the same ones with smaller values."""
    kept: list[str] = []
    skip = False
    for word in command:
        skip = word in flags if word.startswith("--") else skip
        if not skip:
            kept.append(word)
    return kept + flags


@contextlib.contextmanager
def in_background(command: list[str]) -> Iterator[None]:
    """Run a ``textenv`` command that ends in ``&``, until the block is left; it is ready when it has said so."""
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": path}
    arguments = [sys.executable, "-m", *command]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            assert "http://" in process.stdout.readline()
            yield
            assert process.poll() is None
        finally:
            process.terminate()


def launch(arguments: list[str]) -> None:
    """Run ``accelerate launch`` on the CPU."""
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": path, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "accelerate.commands.launch", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


@pytest.mark.parametrize(
    "page",
    [
        "```bash\nls\n```\n",
        "```\nls\n```\n",
        "- item\n  ```sh\n  ls\n  ```\n",
        "```sh\nls\n",
        "~~~\nls\n~~~\n",
        "Run\n\n    ls\n",
        "<!-- test: fast -->\n```sh\nls\n```\n",
        "<!-- test: files -->\n```python\n1\n```\n",
        "<!-- test: network -->\n\n```python\n1\n```\n",
    ],
)
def test_what_no_test_would_run_is_refused(page: str) -> None:
    with pytest.raises(AssertionError):
        blocks_of(page)


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=lambda b: f"line{b.line}")
def test_python(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if block.hint == "network":
        try:
            load_reviews("train")
        except TextEnvError as error:
            pytest.skip(f"the reviews cannot be fetched here: {error}")
    exec(compile(block.code, f"README.md, line {block.line}", "exec"), {"__name__": "readme"})


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "sh"], ids=lambda b: f"line{b.line}")
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
    if block.hint == "rankings":
        ranked = {"prompt": "The film", "completions": [" is good.", " is bad."], "ranks": [0, 1], "annotator": "ann"}
        for name in ("rankings.jsonl", "held-out.jsonl"):
            Path(name).write_text("\n".join([json.dumps(ranked)] * 8))
    if block.hint == "watermark":
        Path("watermark.key").write_text("a key of these tests, no secret\n")
    if block.hint == "web":
        Path("pages").mkdir()
        Path("pages/heron.html").write_text("<title>Heron</title><p>A heron is a <a href='bird.html'>bird</a>.")
        Path("pages/bird.html").write_text("<title>Bird</title><p>A bird has feathers.")
        Path("questions.jsonl").write_text(json.dumps({"question": "What is a heron?", "answers": ["bird", "a bird"]}))
        answer = {"prompt": "What is a heron?■[1] Bird (pages)\n\nA bird has feathers.■", "completion": "A bird [1]."}
        Path("ann.jsonl").write_text(json.dumps({**answer, "annotator": "ann"}))
    if block.hint == "compare":
        (file,) = (each.code for each in BLOCKS if each.language == "toml")
        Path("compare.toml").write_text(re.sub("60_000", "200", file).replace("seeds = 5", "seeds = 1"))
        Path("mypackage.py").write_text("from textenv.agents.rloo import RLOO\n\n\nclass MyAgent(RLOO):\n    pass\n")
        monkeypatch.syspath_prepend(tmp_path)
    flags = shlex.split(block.hint) if block.hint.startswith("--") else []
    short = flags or ["--total-steps", "60", "--num-envs", "2", "--eval-episodes", "2"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])  # that of the page may be taken
    with contextlib.ExitStack() as background:
        code = re.sub("8900|8903", port, block.code)
        if block.hint == "engine":
            code = code.replace("http://127.0.0.1:8000", background.enter_context(serving(build_lm())).url)
        for line in code.splitlines():
            words = shlex.split(line, comments=True)
            if words[0] == "textenv" and words[-1] == "&":
                background.enter_context(in_background(words[:-1]))
            elif words[0] == "textenv":
                given = short if words[1] == "train" else flags if words[1] in ("clips", "rlhf") else []
                if words[1] == "compare" and "--config" not in words:
                    given = ["--seeds", "1", "--total-steps", "200"]
                status = main(with_flags(words[1:], given))
                assert status == 0, f"{line}\n{capsys.readouterr().out}"
            elif words[:2] == ["accelerate", "launch"]:
                launch(with_flags(words[2:], flags))
            else:
                check_command(words)


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`((?:make|pip|textenv) [^`]+)`", FENCE.sub("", README)))))
def test_commands_within_the_text(command: str) -> None:
    check_command(shlex.split(command))


def test_contributing_names_what_there_is() -> None:
    for block in blocks_of(CONTRIBUTING):
        for line in block.code.splitlines():
            check_command(shlex.split(line))
    places = re.findall(r"^\| `([\w./]+)` \|", CONTRIBUTING, re.M)
    assert len(places) > 15
    assert [place for place in places if not (ROOT / place).exists()] == []


@pytest.mark.parametrize("page", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", re.sub(r"<!--.*?-->", "", page, flags=re.S)):
        path = ROOT / target
        assert path.is_dir() or path.read_bytes(), f"{target} is missing or empty"


def test_rows_of_a_table_have_as_many_cells() -> None:
    """A bar ends a cell inside of code too, unless it is written with a backslash."""
    for table in re.findall(r"(?:^\|.*\n)+", README, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table
