"""Why a text has ended: one rule, whoever asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from textenv import TextVectorEnv
from textenv.agents.critic import score_next
from textenv.analysis.exact import Tree
from textenv.env.endings import Endings
from textenv.env.letters import letter_model
from textenv.types import Prompt, StopReason

LM = letter_model(4)  # 0 ends a text, 1 to 3 are a, b, c
EOS, A, B, C = range(4)
PROMPT = Prompt("a", (A,))
CASES: list[tuple[list[int], StopReason | None, str]] = [
    ([], None, ""),
    ([A], None, "a"),
    ([EOS], "eos", ""),
    ([A, EOS], "eos", "a"),
    ([B, C], "stop", ""),
    ([A, B, C], "stop", "a"),  # the budget is spent too
    ([A, A, A], "length", "aaa"),
    ([A, A, EOS], "eos", "aa"),
]


def pay(completions: Sequence[str], **_: Any) -> list[float]:
    return [1.0 + len(text) for text in completions]


def env() -> TextVectorEnv:
    return TextVectorEnv(
        1, autoreset_mode=AutoresetMode.DISABLED, model=LM, prompts=["a"], reward=pay, max_new_tokens=3, stop=["bc"],
        missing_eos_penalty=0.5,
    )  # fmt: skip


def test_the_reasons_and_their_order() -> None:
    endings = Endings(LM, stop=["bc"], max_new_tokens=3)
    texts = [endings.completion_text(PROMPT, ids) for ids, *_ in CASES]
    assert [text for text, _ in texts] == [text for *_, text in CASES]
    last = np.array([ids[-1] if ids else EOS for ids, *_ in CASES])  # that of an empty completion says nothing
    sizes = np.array([len(ids) for ids, *_ in CASES])
    found = endings.ends(last, sizes, lambda: [stopped for _, stopped in texts])
    assert [found.get(place) for place in range(len(CASES))] == [reason for _, reason, _ in CASES]


def test_without_stop_strings_no_text_is_decoded() -> None:
    def decode() -> list[bool]:
        raise AssertionError

    endings = Endings(LM, stop=(), max_new_tokens=3)
    assert endings.ends(np.array([A, B]), np.array([1, 3]), decode) == {1: "length"}


@pytest.mark.parametrize(("ids", "reason", "text"), CASES[1:])
def test_the_process_the_tree_and_the_critics_agree(ids: list[int], reason: StopReason | None, text: str) -> None:
    envs = env()
    envs.reset(seed=0)
    done = [bool(envs.step(np.array([token]))[2][0]) for token in ids]
    assert done == [False] * (len(ids) - 1) + [reason is not None]
    expected = 1.0 + len(text) - 0.5 * (reason == "length")
    (episode,) = envs.last_episodes
    assert (episode and (episode.stop_reason, episode.completion, episode.score)) == (
        reason and (reason, text, expected)
    )
    scores, over = score_next(envs, [PROMPT], [tuple(ids)])
    assert over.tolist() == [reason is not None]
    assert scores.tolist() == [expected]
    at = Tree.of(envs).states[0][len(ids) - 1]
    (place,) = np.flatnonzero((at.ids[:, 1:] == ids[:-1]).all(axis=1))
    assert at.ended[place, ids[-1]] == (reason is not None)
    assert at.scores[place, ids[-1]] == (expected if reason else 0.0)
