"""The score of a text up to its first period in time, against a reading of its tokens one by one."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textenv.models.loading import load_tokenizer, resolve_model
from textenv.rewards import make
from textenv.rewards.period_rule import PeriodRule
from textenv.rewards.vader import Vader
from textenv.testing import RewardContract
from textenv.types import Reward, TextEnvError

TOKENIZER = load_tokenizer(resolve_model("bundled"))


def encode(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.encode(text, add_special_tokens=False)
    return ids


def seen(found: list[str]) -> Any:
    """Return a reward that notes the texts that it is given, and says how long each is."""

    def length(completions: Sequence[str], **_: Any) -> list[float]:
        found.extend(completions)
        return [float(len(text)) for text in completions]

    return length


def score(reward: Any, text: str) -> float:
    (value,) = reward(prompts=["The"], completions=[text], completion_ids=[encode(text)])
    return float(value)


def expected(text: str, after: int) -> str | None:
    """Add tokens one by one from ``after`` on, until there is a period in what they have added."""
    ids = encode(text)
    early = str(TOKENIZER.decode(ids[:after]))
    for end in range(after + 1, len(ids) + 1):
        added = str(TOKENIZER.decode(ids[:end]))[len(early) :]
        if "." in added:
            return early + added[: added.index(".") + 1]
    return None


@given(
    st.lists(st.sampled_from([" film", " good", ".", " It", " is", "...", " bad.", " a"]), max_size=12).map("".join),
    st.integers(0, 8),
)
def test_the_first_period_at_or_after_a_token(text: str, after: int) -> None:
    found: list[str] = []
    rule = PeriodRule(seen(found), after=after, penalty=-7.0)
    value, cut = score(rule, text), expected(text, after)
    assert value == (-7.0 if cut is None else len(cut))
    assert cut is None or found == [cut]


def test_conversations_are_cut_too() -> None:
    text = " It is good. It is bad. He said it. So"
    given_to: list[Any] = []

    def remember(completions: Any, **_: Any) -> list[float]:
        given_to.extend(completions)
        return [0.5]

    (value,) = PeriodRule(remember, after=5)(
        prompts=[[{"role": "user", "content": "The"}]],
        completions=[[{"role": "assistant", "content": text}]],
        completion_ids=[encode(text)],
    )
    assert value == 0.5
    assert given_to == [[{"role": "assistant", "content": " It is good. It is bad."}]]


def test_what_it_wraps_may_not_apply() -> None:
    mix = make([{"name": "period_rule", "reward": lambda completions, **_: [None], "after": 0}, "vader"])
    assert score(mix, "good") == score(Vader(), "good")
    assert score(mix, "good.") == score(Vader(), "good.")


def test_a_tokenizer_that_is_not_there() -> None:
    with pytest.raises(TextEnvError, match="/nowhere"):
        PeriodRule(Vader(), model="/nowhere")


class TestPeriodRule(RewardContract):
    def make_reward(self) -> Reward:
        return PeriodRule(Vader(), after=2)
