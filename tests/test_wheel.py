"""The wheel holds everything and works outside the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EPISODE = """
import gymnasium, textenv, textenv.agents.ppo, textenv.rewards, textenv.cli
print(textenv.__file__)
env = gymnasium.make("textenv/MovieReview-v0")
obs, info = env.reset(seed=1)
done = False
while not done:
    obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
    done = terminated or truncated
print(sorted(textenv.rewards.names()), type(info["score"]).__name__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(source)], check=True)
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in filter(None, listing.stdout.decode().split("\0")):  # the work tree as it is, not as last committed
        path, target = ROOT / name, source / name
        if path.is_file() and not path.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, str(folder), str(source)], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        bundled = sum(info.file_size for info in archive.infolist() if "/bundled/" in info.filename)
    modules = {path.name for path in (ROOT / "textenv").glob("*.py")}
    assert {f"textenv/{name}" for name in modules} <= names
    for package in ("agents", "rewards"):
        assert {f"textenv/{package}/{path.name}" for path in (ROOT / package).glob("*.py")} <= names
    assert {f"textenv/models/{path.name}" for path in (ROOT / "textenv" / "models").glob("*.py")} <= names
    assert {"textenv/py.typed", "textenv/data/openings.json", "textenv/models/bundled/model.safetensors"} <= names
    assert {"textenv/models/bundled/README.md", "textenv/models/bundled/tokenizer.json"} <= names
    assert not any(name.startswith(("agents", "rewards", "tests")) for name in names)
    assert bundled < 16 * 2**20
    assert not any(name.endswith((".bin", ".pt", ".pkl", ".pickle")) for name in names)


@pytest.mark.slow
def test_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-c", EPISODE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    where, names = done.stdout.splitlines()
    assert Path(where).is_relative_to(site)
    assert "'vader'" in names
    assert names.endswith("float")
