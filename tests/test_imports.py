"""Who may import whom: rewards and agents depend on textenv, never the other way round, and never on each other."""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"textenv": ROOT / "textenv", "textenv.agents": ROOT / "agents", "textenv.rewards": ROOT / "rewards"}
LINKS = {ROOT / "textenv" / "agents", ROOT / "textenv" / "rewards"}
AROUND = sorted(path for folder in ("tests", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
BY_NAME = {("textenv.scoring", "textenv.rewards")}  # a reward's name is looked up when an environment is made
# The layers: commands, which put all together.
ABOVE = {"textenv.cli", "textenv.experiment", "textenv.rlhf", "textenv.compare.plan", "textenv.compare.runs"}
IMPORTERS = {"import_module", "__import__", "resolve_name"}


def modules() -> dict[str, Path]:
    """Return the file of every module, by its import name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            if any(link in path.parents for link in LINKS):
                continue
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def imported(source: str) -> Iterator[str]:
    """Yield every module or name that the source imports in a statement, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide who imports whom"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_by_name(source: str) -> Iterator[str]:
    """Yield the literal arguments of ``importlib.import_module`` and its like."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            if name in IMPORTERS:
                yield str(node.args[0].value)


def complaint(module: str, target: str) -> str | None:
    """Return why ``module`` may not import ``target``, or None."""
    root = target.split(".", maxsplit=1)[0]

    def inside(*packages: str) -> bool:
        return any(target == package or target.startswith(f"{package}.") for package in packages)

    if root in {"agents", "rewards"}:
        return "the import names are textenv.agents and textenv.rewards"
    if module == "textenv.types":
        return None if root in {"numpy", *sys.stdlib_module_names} else "types imports numpy and the standard library"
    if root != "textenv" or module.split(".", maxsplit=1)[0] != "textenv":
        return None
    if module.startswith("textenv.rewards"):
        return None if inside("textenv.types", "textenv.models", "textenv.rewards") else "rewards know types and models"
    if module.startswith("textenv.agents"):
        return "agents do not know rewards" if inside("textenv.rewards") else None
    if module not in ABOVE and inside("textenv.agents", "textenv.rewards"):
        return "textenv knows neither agents nor rewards"
    return None


def complaints(module: str, source: str) -> list[str]:
    targets = [*imported(source), *(name for name in imported_by_name(source) if (module, name) not in BY_NAME)]
    return [f"{module} imports {target}: {why}" for target in targets if (why := complaint(module, target))]


def graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Return which of the modules each one imports; ``from a import b`` is ``a.b`` where that is a module."""
    edges: dict[str, set[str]] = {}
    for name, source in sources.items():
        targets = (target if target in sources else target.rpartition(".")[0] for target in imported(source))
        edges[name] = {target for target in targets if target in sources}
    return edges


def cycle(edges: Mapping[str, set[str]]) -> list[str]:
    """Return modules that import each other in a circle, or nothing."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for target in sorted(edges[name]):
            if found := visit(target, [*trail, name]):
                return found
        done.add(name)
        return []

    return next(filter(None, (visit(name, []) for name in edges)), [])


def test_every_package_was_found() -> None:
    assert {"textenv", "textenv.cli", "textenv.models.causal_lm", "textenv.agents.ppo", "textenv.rewards.vader"} <= set(
        modules()
    )


@pytest.mark.parametrize("module", sorted(modules()))
def test_directions(module: str) -> None:
    assert complaints(module, modules()[module].read_text("utf-8")) == []


@pytest.mark.parametrize("path", AROUND, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nobody_imports_the_top_level_folders(path: Path) -> None:
    assert complaints(path.stem, path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("textenv.vector", "def f():\n    from textenv.agents import ppo"),
        ("textenv.vector", "from textenv import rewards"),
        ("textenv.vector", "import importlib\nimportlib.import_module('textenv.rewards')"),
        ("textenv.agents.ppo", "import textenv.rewards.vader"),
        ("textenv.agents.ppo", "import agents.losses"),
        ("textenv.rewards.vader", "from textenv.vector import TextVectorEnv"),
        ("textenv.rewards.vader", "from textenv.agents import ppo"),
        ("textenv.rewards.vader", "import textenv"),
        ("textenv.types", "import torch"),
        ("textenv.types", "from textenv import kl"),
        ("test_vector", "from rewards.vader import Vader"),
    ],
)
def test_the_check_can_fail(module: str, source: str) -> None:
    assert len(complaints(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("textenv.cli", "from textenv.agents.ppo import PPO"),
        ("textenv.agents.ppo", "from textenv.agents import losses\nfrom textenv.vector import TextVectorEnv"),
        ("textenv.rewards.classifier", "from textenv.models import causal_lm\nfrom textenv import types"),
        ("textenv.types", "import dataclasses\nimport numpy as np\nfrom numpy.typing import NDArray"),
        ("test_vector", "from textenv.rewards.vader import Vader"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert complaints(module, source) == []


def test_no_cycles() -> None:
    assert cycle(graph({name: path.read_text("utf-8") for name, path in modules().items()})) == []


def test_a_cycle_is_found() -> None:
    made_up = {
        "p": "from p.a import A",
        "p.a": "def f():\n    from p import b",
        "p.b": "import p.c",
        "p.c": "from p.a import A",
    }
    assert cycle(graph(made_up)) == ["p.a", "p.b", "p.c", "p.a"]
    assert cycle(graph(made_up | {"p.c": "import json"})) == []
    assert cycle(graph({"p": "from p.a import A", "p.a": "from p import B"})) == ["p", "p.a", "p"]
