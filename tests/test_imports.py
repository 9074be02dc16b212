"""Who may import whom: rewards and agents depend on textenv, never the other way round, and never on each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"textenv": ROOT / "textenv", "textenv.agents": ROOT / "agents", "textenv.rewards": ROOT / "rewards"}
LINKS = {ROOT / "textenv" / "agents", ROOT / "textenv" / "rewards"}


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            if any(link in path.parents for link in LINKS):
                continue
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def imported(source: str) -> Iterator[str]:
    """Yield every module that the source names in an import statement, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide who imports whom"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def complaint(module: str, target: str) -> str | None:
    """Return why ``module`` may not import ``target``, or None."""
    if target.split(".", maxsplit=1)[0] in {"agents", "rewards"}:
        return "the import names are textenv.agents and textenv.rewards"

    def inside(*packages: str) -> bool:
        return any(target == package or target.startswith(f"{package}.") for package in packages)

    if not inside("textenv"):
        core = {"numpy", "collections", "dataclasses", "typing", "__future__"}
        return (
            "types imports numpy only"
            if module == "textenv.types" and target.split(".", maxsplit=1)[0] not in core
            else None
        )
    if module == "textenv.types":
        return "types imports nothing of ours"
    if module.startswith("textenv.rewards"):
        return None if inside("textenv.types", "textenv.models", "textenv.rewards") else "rewards know types and models"
    if module.startswith("textenv.agents"):
        return "agents do not know rewards" if inside("textenv.rewards") else None
    if module not in {"textenv.cli", "textenv.__main__"} and inside("textenv.agents", "textenv.rewards"):
        return "textenv knows neither agents nor rewards"
    return None


@pytest.mark.parametrize("module", sorted(modules()))
def test_directions(module: str) -> None:
    for target in imported(modules()[module].read_text("utf-8")):
        assert complaint(module, target) is None, f"{module} imports {target}: {complaint(module, target)}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("textenv.vector", "def f():\n    from textenv.agents import ppo"),
        ("textenv.agents.ppo", "import textenv.rewards.vader"),
        ("textenv.rewards.vader", "from textenv.vector import TextVectorEnv"),
        ("textenv.rewards.vader", "from textenv.agents import ppo"),
        ("textenv.types", "import torch"),
        ("textenv.types", "from textenv import kl"),
        ("textenv.agents.ppo", "import agents.ppo"),
    ],
)
def test_the_check_can_fail(module: str, source: str) -> None:
    assert any(complaint(module, target) for target in imported(source))


def test_no_cycles() -> None:
    known = modules()
    graph = {
        name: {
            candidate
            for target in imported(path.read_text("utf-8"))
            for candidate in (target, target.rpartition(".")[0])
            if candidate in known and candidate not in (name, "textenv")
        }
        for name, path in known.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import cycle: {' -> '.join((*trail[trail.index(name) :], name))}"
        if name not in done:
            for target in graph[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())
