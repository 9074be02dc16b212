"""The examples run, with small budgets."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from textenv.clips.media import Player
from textenv.types import TextEnvError

EXAMPLES = Path(__file__).parent.parent / "examples"
ARGUMENTS = {
    "cleanrl_ppo.py": (["--total-steps", "256", "--num-envs", "8", "--num-steps", "16"], "256: score"),
    "gem_world.py": (["--games", "5"], "both checkers pass"),
    "openenv_world.py": (["--episodes", "2"], "four rows have a session each"),
    "minari_dataset.py": (["--episodes", "2", "--max-new-tokens", "4"], "the same when read back"),
    "rllib_ppo.py": (["--iterations", "1", "--batch", "200"], "200 tokens: regret"),
    "tianshou_ppo.py": (["--iterations", "1", "--batch", "200"], "200 tokens: regret"),
    "gem_learning.py": (["--games", "40", "--total-steps", "400"], "report.html"),
    "torchrl_env.py": (["--max-new-tokens", "3", "--steps", "6"], "episodes in 6 steps"),
    "pendulum_from_preferences.py": (["--seeds", "1", "--labels", "20", "--total-steps", "400"], "| true reward | -"),
    "hopper_backflip.py": (["--labels", "8", "--total-steps", "600"], "turns backward in the 4 seconds"),
    "best_of_n.py": (["--n", "2", "--prompts", "2"], "best of 2: mean score"),
    "trl_rewards.py": (["--total-steps", "60"], "GRPO has learned from all of them"),
    "own_reward.py": (["--total-steps", "150", "--num-envs", "4"], "What begins as"),
}


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(ARGUMENTS)


NEEDS = {
    "gem_world.py": ("gem",),
    "openenv_world.py": ("openenv",),
    "minari_dataset.py": ("minari", "jax", "h5py"),
    "torchrl_env.py": ("torchrl",),
    "trl_rewards.py": ("trl", "math_verify"),
    "tianshou_ppo.py": ("tianshou",),
    "gem_learning.py": ("gem",),
    "rllib_ppo.py": ("ray", "tree", "lz4"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_example_runs(name: str, tmp_path: Path) -> None:
    if name == "hopper_backflip.py":
        try:
            player = Player("Hopper-v5", {})
            player.env.reset(seed=0)
            player.picture()
        except TextEnvError as error:
            pytest.skip(str(error))
    arguments, expected = ARGUMENTS[name]
    for package in NEEDS.get(name, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: see the first lines of {name}")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
