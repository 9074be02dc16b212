"""A run that is cut off after any of its iterations goes on with the bits of one that was not."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.agents.test_ppo import count_e, make_envs
from tests.conftest import build_lm
from textenv.agents import config_of, find, names
from textenv.models.causal_lm import CausalLM
from textenv.models.network import Network
from textenv.models.prefix_cache import PrefixCache
from textenv.rewards.normalize import Normalize
from textenv.rollouts.checkpoint import latest_checkpoint

KEEPS_NO_CHECKPOINT = {"best_of_n", "guided"}  # which have nothing to go on with
LEARNERS = sorted(set(names()) - KEEPS_NO_CHECKPOINT)
Row = dict[str, Any]


FORWARDS: list[tuple[int, ...]] = []


@pytest.fixture(autouse=True)
def _forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record the shape of every forward, the trials of a new cache aside.

    Kernels are chosen by it, and with them the last bits; those of a model as small as here seldom differ.
    """
    FORWARDS.clear()
    run, find_fault = Network.run, PrefixCache._find_fault

    def recorded(self: Network, ids: torch.Tensor, *rest: Any, **given: Any) -> torch.Tensor:
        FORWARDS.append(tuple(ids.shape))
        return run(self, ids, *rest, **given)

    def unrecorded(self: PrefixCache) -> str:
        before = len(FORWARDS)
        found = find_fault(self)
        del FORWARDS[before:]
        return found

    monkeypatch.setattr(Network, "run", recorded)
    monkeypatch.setattr(PrefixCache, "_find_fault", unrecorded)


def ragged_lm(seed: int = 0) -> CausalLM:
    """Return a tiny model whose texts end at very different lengths."""
    lm = build_lm(seed=seed)
    head: Any = lm.model.get_output_embeddings()
    with torch.no_grad():
        head.weight[list(lm.eos_ids)] *= 3.0
    return lm


def assert_resumes_from_everywhere(
    name: str,
    folder: Path,
    *,
    rows: int,
    iterations: int,
    env: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    normalized: bool = False,
    after_cut: int | None = None,
) -> None:
    """Cut a run off after each of its iterations, go on, and compare all that a run leaves.

    Args:
        name: Of the agent.
        folder: An empty one.
        rows: Of the environment.
        iterations: At most so many make the run.
        env: Settings of the environment.
        settings: Those of the agent.
        normalized: Whether the reward keeps statistics, and a potential too.
        after_cut: Go on for so many iterations; None for all that are left.
    """
    lm, agent = ragged_lm(), find(name)
    keywords = {"max_new_tokens": 16, "kl_target": 3.0, "kl_horizon": 20, **(env or {})}
    quicker = {"candidates": 16} if name == "mac" else {}  # each of which is scored at every token
    config = config_of(agent, {"seed": 3, "learning_rate": 5e-3, **quicker, **(settings or {})})
    total = (config.episodes or rows) * 10 * iterations

    def run(checkpoints: Path, keep: Path | None, most: int | None = None) -> list[Row]:
        """Learn in an environment and with a model of the run's own, as a new process would."""
        metrics: list[Row] = []

        def log(steps: int, values: Mapping[str, float]) -> bool:
            told = {name: value for name, value in values.items() if not name.startswith("time/")}
            metrics.append({"steps": steps, **told, "forwards": FORWARDS.copy()})
            FORWARDS.clear()
            if keep is not None and (last := latest_checkpoint(checkpoints)) is not None:
                shutil.copytree(last, keep / last.name / last.name)
            return len(metrics) != most

        mine = CausalLM(copy.deepcopy(lm.model), lm.tokenizer)
        reward = {"reward": Normalize(count_e), "potential": Normalize(count_e)} if normalized else {}
        learner = agent(make_envs(mine, rows, **keywords, **reward), config)
        if keep is None:
            torch.rand(7)  # a new process would not know the old one's random numbers
        FORWARDS.clear()
        learner.learn(total, progress=log, checkpoints=checkpoints, checkpoint_every=1)
        return metrics

    def left(checkpoints: Path) -> tuple[bytes, dict[str, Any]]:
        last = latest_checkpoint(checkpoints)
        assert last is not None
        return (last / "tensors.safetensors").read_bytes(), json.loads((last / "state.json").read_text("utf-8"))

    whole = run(folder / "whole", folder / "cut")
    assert any(0 < row["rollout/eos_fraction"] < 1 for row in whole), "some texts end early, and others do not"
    cuts = sorted((folder / "cut").iterdir(), key=lambda cut: int(cut.name.rpartition("-")[2]))
    assert len(cuts) == len(whole) - 1 >= 3
    checkpoints = [left(cut) for cut in cuts] + [left(folder / "whole")]
    for done, cut in enumerate(cuts, start=1):
        rows_after = run(cut, None, after_cut)
        assert rows_after == whole[done : done + len(rows_after)], f"cut off after iteration {done}"
        assert len(rows_after) == min(after_cut or len(whole), len(whole) - done)
        found, expected = left(cut), checkpoints[done + len(rows_after) - 1]
        assert found[1] == expected[1], f"cut off after iteration {done}"
        assert found[0] == expected[0], f"cut off after iteration {done}"


@pytest.mark.parametrize("name", LEARNERS)
def test_it_goes_on_from_every_iteration(name: str, tmp_path: Path) -> None:
    assert_resumes_from_everywhere(name, tmp_path, rows=8, iterations=6)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [4, 16, 32, 128])
@pytest.mark.parametrize("name", LEARNERS)
def test_it_goes_on_from_every_iteration_whatever_the_number_of_rows(name: str, rows: int, tmp_path: Path) -> None:
    assert_resumes_from_everywhere(name, tmp_path, rows=rows, iterations=10 if rows < 128 else 5, after_cut=3)


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ({"kl_mode": "dense"}, {}),  # in which the reference has a cache of its own
        ({"top_k": 40, "kl_estimator": "full"}, {}),
        ({}, {"value": "model"}),
        ({}, {"episodes": 20}),
        ({}, {"lora_rank": 2}),
    ],
)
def test_it_goes_on_under_every_setting_that_has_a_state(
    env: dict[str, Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    assert_resumes_from_everywhere("ppo", tmp_path, rows=9, iterations=5, env=env, settings=settings, normalized=True)
