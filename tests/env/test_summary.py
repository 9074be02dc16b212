"""``textenv/Summary-v0``."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest

from textenv import TextEnvError
from textenv.data.summaries import SummaryData
from textenv.env.registry import record_of
from textenv.testing import EnvironmentContract


class TestSummaryContract(EnvironmentContract):
    def make_env(self, **settings: Any) -> Any:
        return gym.make("textenv/Summary-v0", data="few", max_new_tokens=4, **settings)

    def make_vec_env(self, num_envs: int, **settings: Any) -> Any:
        return gym.make_vec("textenv/Summary-v0", num_envs=num_envs, data="few", max_new_tokens=4, **settings)


def test_prompts_are_those_of_its_split() -> None:
    for split in ("train", "heldout"):
        env: Any = gym.make("textenv/Summary-v0", data="few", split=split).unwrapped
        assert [p.text for p in env.prompts] == [
            row["prompt"] for row in SummaryData(data="few", split=split).prompts()
        ]
    assert record_of("textenv/Summary-v0").held_out == {"split": "heldout"}


def test_prompts_of_ones_own_take_the_place_of_the_data() -> None:
    env: Any = gym.make("textenv/Summary-v0", prompts=[{"prompt": "x", "reference": "a"}], data="none.jsonl").unwrapped
    assert [prompt.text for prompt in env.prompts] == ["x"]


def test_a_summary_is_one_line_and_scored_by_rouge() -> None:
    env: Any = gym.make("textenv/Summary-v0", data="few").unwrapped
    prompt = env.prompts[0]
    _, _ = env.reset(options={"prompt": prompt})
    newline = env.reference.tokenizer.encode("\n", add_special_tokens=False)[-1]
    ids = env.reference.tokenizer.encode(f" {prompt.columns['reference']}", add_special_tokens=False)
    for token in ids:
        env.step(token)
    _, _, over, _, info = env.step(newline)
    assert over
    assert (info["stop_reason"], info["score"]) == ("stop", pytest.approx(1.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "test"}, "split='test'"),
        ({"data": 3}, "data=3"),
        ({"max_new_token": 3}, "Did you mean 'max_new_tokens'"),
    ],
    ids=["split", "data", "unknown"],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TextEnvError, match=message):
        gym.make("textenv/Summary-v0", **{"data": "few", **settings})
    with pytest.raises(TextEnvError, match=message):
        gym.make_vec("textenv/Summary-v0", num_envs=2, **{"data": "few", **settings})
