"""Functions with the signatures of TRL's own rewards, and of the forms that its documentation shows.

They are written for these tests; ``examples/trl_rewards.py`` runs TRL's.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from tests.conftest import build_lm
from textenv.agents import find
from textenv.env.vector import TextVectorEnv
from textenv.models.causal_lm import CausalLM
from textenv.types import Episode, TrainerState

TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


def tagged(completions: list[list[dict[str, str]]], **kwargs: Any) -> list[float]:
    """Look for a pattern in the first message."""
    return [1.0 if re.search(r"f.*m", completion[0]["content"], re.DOTALL) else 0.0 for completion in completions]


def answered(
    completions: list[list[dict[str, str]]],
    solution: list[str],
    log_extra: Callable[[str, list[Any]], None] | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """Compare with a column; skip the rows where it is none."""
    found = [completion[0]["content"] for completion in completions]
    if log_extra is not None:
        log_extra("solution", list(solution))
    return [None if not wanted else float(wanted in text) for text, wanted in zip(found, solution, strict=True)]


class _Overlong:
    __name__ = "overlong_penalty"

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __call__(self, completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        return [min(0.0, float(self.limit - len(ids))) for ids in completion_ids]


def get_overlong_penalty(limit: int) -> Callable[..., Any]:
    return _Overlong(limit)


async def remote(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
    await asyncio.sleep(0)
    return [1.0 if completion else 0.0 for completion in completions]


def curriculum(prompts: Any, completions: Any, trainer_state: TrainerState, log_metric: Any, **kwargs: Any) -> Any:
    share = trainer_state.global_step / trainer_state.max_steps
    log_metric("share", share)
    return [share] * len(completions)


@pytest.fixture(scope="module")
def chat_lm() -> CausalLM:
    lm = build_lm()
    tokenizer: PreTrainedTokenizerBase = lm.tokenizer
    tokenizer.chat_template = TEMPLATE
    return lm


def write(lm: CausalLM, **given: Any) -> list[Episode]:
    """Write episodes of random tokens, two of each prompt."""
    rows = [
        {"prompt": [{"role": "user", "content": "the film"}], "solution": "the", "task": "a"},
        {"prompt": [{"role": "user", "content": "the plot"}], "solution": "", "task": "b"},
    ]
    envs = TextVectorEnv(
        4, model=lm, prompts=rows, max_new_tokens=4, autoreset_mode="Disabled", kl_mode="lump", **given
    )
    envs.reset(seed=0, options={"prompt_index": [0, 0, 1, 1]})
    generator = torch.Generator().manual_seed(0)
    while not envs.over.all():
        envs.step(torch.randint(2, 300, (4,), generator=generator).numpy())
    return [episode for episode in envs.last_episodes if episode is not None]


def test_they_run_as_they_are(chat_lm: CausalLM) -> None:
    functions: list[Any] = [tagged, answered, get_overlong_penalty(2), remote, curriculum]
    episodes = write(chat_lm, reward=functions, reward_weights=[1.0, 2.0, 0.5, 1.0, 1.0])
    assert len(episodes) == 4
    for episode in episodes:
        solution, size = episode.columns["solution"], len(episode.completion_ids)
        expected = {
            "tagged": float(re.search("f.*m", episode.completion, re.DOTALL) is not None),
            "answered": float(solution in episode.completion) if solution else None,
            "overlong_penalty": float(min(0, 2 - size)),
            "remote": 1.0,
            "curriculum": 0.0,
        }
        assert episode.scores == expected
        weighted = zip([1.0, 2.0, 0.5, 1.0, 1.0], expected.values(), strict=True)
        assert episode.score == pytest.approx(math.fsum(weight * (score or 0.0) for weight, score in weighted))
        assert episode.logged == {"solution": solution}
        assert episode.metrics == {"share": 0.0}


def test_functions_for_different_tasks_are_a_mix(chat_lm: CausalLM) -> None:
    def for_task(name: str, score: float) -> Callable[..., Any]:
        def reward(prompts: Any, completions: Any, task: list[str], **kwargs: Any) -> list[float | None]:
            return [score if each == name else None for each in task]

        reward.__name__ = f"of_{name}"
        return reward

    episodes = write(chat_lm, reward=[for_task("a", 1.0), for_task("b", -1.0)])
    assert [episode.score for episode in episodes] == [1.0, 1.0, -1.0, -1.0]
    assert episodes[0].scores == {"of_a": 1.0, "of_b": None}


def test_a_training_tells_how_far_it_is(tiny_lm: CausalLM) -> None:
    envs: Any = TextVectorEnv(
        4, model=tiny_lm, prompts=["it"], max_new_tokens=2, reward=[curriculum, "vader"], autoreset_mode="Disabled"
    )
    rows: list[Any] = []
    agent = find("reinforce")(envs)
    agent.learn(40, progress=lambda steps, metrics: rows.append((steps, dict(metrics))))
    state = envs.scorer.trainer_state
    assert state.global_step == len(rows) - 1
    assert state.num_input_tokens_seen == rows[-2][0]
    assert state.epoch == rows[-2][0] / 40
    assert state.max_steps == state.global_step + math.ceil((40 - rows[-2][0]) / (rows[-2][0] / state.global_step))
    shares = [metrics["reward/share"] for _, metrics in rows]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert 0.5 < shares[-1] < 1
    for _, metrics in rows:
        assert metrics["objective/score/curriculum"] == pytest.approx(metrics["reward/share"])
        parts = metrics["objective/score/curriculum"] + metrics["objective/score/vader"]
        assert metrics["objective/score"] == pytest.approx(parts, abs=1e-6)
