"""Who may import whom: the rooms stand in an order, each imports what stands before it, and nothing in a circle."""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"textenv": ROOT / "textenv", "textenv.agents": ROOT / "agents", "textenv.rewards": ROOT / "rewards"}
LINKS = {ROOT / "textenv" / "agents", ROOT / "textenv" / "rewards"}
AROUND = sorted(path for folder in ("tests", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
ORDER = (
    "types",
    "lazy",
    "validation",
    "plugins",
    "data",
    "models",
    "env",
    "worlds",
    "rollouts",
    "training",
    "analysis",
    "web",
    "feedback",
    "recipes",
    "clips",
    "compare",
    "testing",
    "commands",
)
"""The rooms of ``textenv/``; each may import those before it."""
RUNTIME = "textenv.rollouts.runtime"  # asks the process for threads and memory; imports nothing of ours
BY_NAME = {"textenv.plugins", "textenv.env.registry"}  # find a file by the name that it has in a folder
SCORER = ("textenv.env.reward_calls.", "textenv.env.reward_parts.")  # what is made of rewards calls them so
IMPORTERS = {"import_module", "__import__", "resolve_name", "lazy"}


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


def room(module: str) -> str:
    """Return the room of a module of textenv: the folder, or the file, right below ``textenv/``."""
    return module.split(".")[1] if "." in module else ""


def complaint(module: str, target: str) -> str | None:
    """Return why ``module`` may not import ``target``, or None."""
    root = target.split(".", maxsplit=1)[0]
    if root in {"agents", "rewards"}:
        return "the import names are textenv.agents and textenv.rewards"
    if module == "textenv.types":
        return None if root in {"numpy", *sys.stdlib_module_names} else "types imports numpy and the standard library"
    if root != "textenv" or module.split(".", maxsplit=1)[0] != "textenv":
        return None
    return _between_rooms(module, target)


def _between_rooms(module: str, target: str) -> str | None:
    mine, theirs = room(module), room(target)
    if mine == "rewards":
        known = theirs in {"rewards", "models", "data", "types", "validation", "plugins"} or target.startswith(SCORER)
        return None if known else "rewards know types, validation, plugins, data, models, and how rewards are called"
    if mine == "agents":
        return "agents do not know rewards" if theirs == "rewards" else None
    if theirs in {"agents", "rewards"}:
        return None if mine in {"commands", ""} else "textenv knows neither agents nor rewards"
    if mine in {"", "__main__"} or not theirs or target.startswith(RUNTIME) or theirs not in ORDER:
        return None  # the public face shows all of them
    return None if ORDER.index(theirs) <= ORDER.index(mine) else f"{mine} stands before {theirs}"


def complaints(module: str, source: str) -> list[str]:
    by_name = () if module in BY_NAME else imported_by_name(source)
    targets = [*imported(source), *by_name]
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
    expected = {"textenv", "textenv.models.causal_lm", "textenv.agents.ppo", "textenv.rewards.vader"}
    assert expected <= set(modules())


def test_every_room_stands_in_the_order() -> None:
    rooms = {room(name) for name in modules()} - {"", "__main__", "agents", "rewards"}
    assert rooms <= set(ORDER)


@pytest.mark.parametrize("module", sorted(modules()))
def test_directions(module: str) -> None:
    assert complaints(module, modules()[module].read_text("utf-8")) == []


@pytest.mark.parametrize("path", AROUND, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nobody_imports_the_top_level_folders(path: Path) -> None:
    assert complaints(path.stem, path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("textenv.env.vector", "def f():\n    from textenv.agents import ppo"),
        ("textenv.env.vector", "from textenv import rewards"),
        ("textenv.env.vector", "import importlib\nimportlib.import_module('textenv.rewards')"),
        ("textenv.env.vector", "from textenv.rollouts.collect import collect"),
        ("textenv.models.policy", "from textenv.env.vector import TextVectorEnv"),
        ("textenv.data.records", "import textenv.feedback.store"),
        ("textenv.agents.ppo", "import textenv.rewards.vader"),
        ("textenv.agents.ppo", "import agents.losses"),
        ("textenv.rewards.vader", "from textenv.env.vector import TextVectorEnv"),
        ("textenv.rewards.vader", "from textenv.agents import ppo"),
        ("textenv.types", "import torch"),
        ("textenv.types", "from textenv.env import kl"),
        ("test_vector", "from rewards.vader import Vader"),
    ],
)
def test_the_check_can_fail(module: str, source: str) -> None:
    assert len(complaints(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("textenv.commands.train", "from textenv.agents.ppo import PPO"),
        ("textenv.agents.ppo", "from textenv.agents import losses\nfrom textenv.env.vector import TextVectorEnv"),
        ("textenv.rewards.classifier", "from textenv.models import causal_lm\nfrom textenv import types"),
        ("textenv.types", "import dataclasses\nimport numpy as np\nfrom numpy.typing import NDArray"),
        ("test_vector", "from textenv.rewards.vader import Vader"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert complaints(module, source) == []


def test_no_cycles() -> None:
    edges = graph({name: path.read_text("utf-8") for name, path in modules().items()})
    edges["textenv"] = set()  # the public face names all, and imports what is asked for
    assert cycle(edges) == []


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
