"""The wheel holds everything, nothing else, and works outside the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUNDLED = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
EPISODE = """
import textenv, textenv.agents.ppo, textenv.commands.cli, textenv.rewards
import gymnasium
print(textenv.__file__)
env = gymnasium.make("textenv/MovieReview-v0")
env.action_space.seed(1)
obs, info = env.reset(seed=1)
done = False
while not done:
    obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
    done = terminated or truncated
print(sorted(textenv.rewards.names()), type(info["score"]).__name__)
"""

pytestmark = pytest.mark.slow


def run(*command: str, **keywords: object) -> str:
    """Run a command and return what it printed; fail with what it complained of."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **keywords)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return str(done.stdout)


def modules(folder: str) -> Iterator[str]:
    """Yield the modules below a folder of the checkout, as they are to be in the wheel."""
    for path in (ROOT / folder).rglob("*.py"):
        where = path.relative_to(ROOT)
        if folder != "textenv":
            yield f"textenv/{where.as_posix()}"
        elif where.parts[1] not in ("agents", "rewards"):  # these are links
            yield where.as_posix()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the work tree as it is, built in a copy: a build leaves folders behind that the next one reads."""
    folder = tmp_path_factory.mktemp("wheel")
    git = ["git", "-c", "safe.directory=*"]  # the checkout may belong to another user
    listing = run(*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listing.split("\0")):
        source, target = ROOT / name, folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.exists():
            shutil.copy(source, target, follow_symlinks=False)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*build, "--wheel-dir", str(folder), str(folder / "source"))
    (built,) = folder.glob("*.whl")
    return built


def test_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    code = {name for name in sizes if name.endswith(".py")}
    assert code == {*modules("textenv"), *modules("agents"), *modules("rewards")}
    assert {name.split("/")[0] for name in sizes} == {"textenv", "textenv-0.1.0.dist-info"}
    assert {"textenv/py.typed", "textenv/data/openings.json"} <= set(sizes)
    bundled = {name: size for name, size in sizes.items() if name.startswith("textenv/models/bundled/")}
    assert {f"textenv/models/bundled/{name}" for name in BUNDLED} <= set(bundled)
    reward = {name: size for name, size in sizes.items() if name.startswith("textenv/models/bundled_reward/")}
    also = {*BUNDLED, "reward.json", "reward_head.safetensors"}
    assert {f"textenv/models/bundled_reward/{name}" for name in also} <= set(reward)
    assert sum(bundled.values()) + sum(reward.values()) < 16 * 2**20
    assert not [name for name in sizes if name.endswith((".bin", ".pt", ".pkl", ".pickle"))]  # these run code


def test_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    printed = run(sys.executable, "-c", EPISODE, cwd=elsewhere, env={**os.environ, "PYTHONPATH": str(site)})
    where, rewards = printed.splitlines()
    assert Path(where).is_relative_to(site)
    assert "'vader'" in rewards
    assert rewards.endswith("float")
