"""What is no reward, or no argument of one, is refused in one line when the reward is made."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.complaints import one_line, plain
from textenv.rewards import make, names
from textenv.types import Reward

URL = "http://127.0.0.1:9/score"
WRAPPED = {"reward": "vader", "low": -1, "high": 1}
NEEDED: dict[str, dict[str, Any]] = {
    "clip": WRAPPED,
    "counterfactual_gap": {"reward": "vader"},
    "http": {"url": URL},
    "length": {"target": 3},
    "normalize": {"reward": "vader"},
    "pattern": {"pattern": "a"},
    "period_rule": {"reward": "vader"},
    "summary_judge": {"data": "few"},
    "weighted_sum": {"rewards": ["vader"]},
    "classifier": {"model": "/nowhere"},
}
"""Arguments that a reward cannot do without."""
BAD: dict[str, dict[str, list[Any]]] = {
    "bleu": {
        "column": ["", 3, None, ["a"]],
        "tokenize": ["ja-mecab", "klingon", None, 3, ["13a"]],
        "lowercase": ["no", 1, None],
    },
    "chrf": {
        "column": ["", 3, None],
        "char_order": [0, -1, "6", 2.5, True, math.nan],
        "word_order": [-1, "0", True, None],
        "beta": [0, "2", 1.5],
    },
    "rouge": {"column": ["", None], "variant": ["rouge9", None, ["rouge1"]], "stem": ["no", 0, None]},
    "exact_match": {"answers": ["", 3, None], "said": ["", 3], "contained": ["no", 1]},
    "quoted": {"what": ["question", None, 3]},
    "summary_judge": {
        "data": ["", 3, None, "/nowhere.jsonl"],
        "text_column": ["", 3],
        "reference_column": ["", 3],
        "group_column": ["", 3],
        "max_characters": [0, "600", 1.5],
        "copy_penalty": [-1, "8", None, math.nan],
        "column": ["", 3, None],
        "seed": [-1, "0", 1.5],
    },
    "length": {"target": [0, -1, "8", 2.5, True, None, math.inf], "unit": ["letters", None, 3]},
    "letters": {
        "family": ["easy", None],
        "letters": ["", "aa", None, 3],
        "length": [0, "6", True],
        "seed": [-1, "0", 1.5],
    },
    "pattern": {"pattern": ["(", "*", None, 3, b"a"], "mode": ["find", None]},
    "clip": {
        "reward": ["vadar", 3, None, {}, []],
        "low": ["-1", None, math.nan, -math.inf, 2, True],
        "high": ["1", -2],
    },
    "counterfactual_gap": {"reward": ["vadar", 3, None, {}]},
    "period_rule": {
        "reward": ["vadar", 3, None, {}],
        "model": ["", 3, None, "/nowhere"],
        "after": [-1, "16", 1.5, True],
        "penalty": ["-1", None, math.nan],
    },
    "normalize": {"reward": ["vadar", 3], "keep_mean": ["no", 0], "training": ["no", None]},
    "weighted_sum": {
        "rewards": [[], "vader", {"name": "vader"}, 3, None, ["vadar"], [3]],
        "weights": [["1"], [1, 2], 1, "1", [None], [math.nan], [True], {"a": 1}],
    },
    "classifier": {
        "model": ["", 3, None, "/nowhere"],
        "label": [1.5, True],
        "output": ["logits", None],
        "include_prompt": ["no", 1],
        "batch_size": [0, "8", 1.5, True],
        "max_length": [0, "8", -1, 1.5],
        "device": ["gpu", "", 3, "cuda:99", "meta"],
        "dtype": ["int8", 32, None],
    },
    "learned": {
        "model": ["", 3, None, "/nowhere", [], [3], ["/nowhere"]],
        "combine": ["max", None],
        "penalty": ["1", -1, math.nan, None],
        "include_prompt": ["yes", 0],
        "device": ["gpu", "", 3, "cuda:99"],
        "dtype": ["int8", 16],
    },
    "http": {
        "url": ["", "127.0.0.1", None, 3],
        "headers": [["a"], "a", 3],
        "columns": ["label", [1], 3],
        "protocol": ["trl", None],
        "batch_size": [0, "1", True],
        "concurrency": [0, 1.5],
        "timeout": [0, "60", math.inf, None],
        "retries": [-1, 1.5],
        "backoff": [-1, "1"],
        "max_wait": [-1, math.nan],
        "tokenizer": ["bundled", 3],
    },
}
ARGUMENTS = [(name, key, value) for name, keys in BAD.items() for key, values in keys.items() for value in values]


def test_every_reward_with_arguments_is_in_the_table() -> None:
    assert set(BAD) == set(names()) - {"dictionary_answer", "vader"}


@pytest.mark.parametrize(
    ("name", "argument", "value"), ARGUMENTS, ids=[f"{name}-{key}-{value!r}" for name, key, value in ARGUMENTS]
)
def test_an_argument_of_another_type_or_range(name: str, argument: str, value: Any) -> None:
    with one_line():
        make({"name": name, **NEEDED.get(name, {}), argument: value})


@pytest.mark.parametrize("name", sorted(names()))
def test_an_unknown_argument(name: str) -> None:
    with one_line("has no argument 'tagret'"):
        make({"name": name, **NEEDED.get(name, {}), "tagret": 1})
    with one_line("names that are texts"):
        make({"name": name, **NEEDED.get(name, {}), 3: 1})  # type: ignore[dict-item]


def raises_in_making(size: int = 3) -> Reward:
    raise KeyError("several\nlines")


def without_completions(texts: Sequence[str]) -> list[float]:
    return [0.0] * len(texts)


@pytest.fixture(autouse=True)
def _module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("bad_rewards")
    module.__dict__.update(
        raises_in_making=raises_in_making, without_completions=without_completions, table=np.zeros(99)
    )
    monkeypatch.setitem(sys.modules, "bad_rewards", module)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ('{"name": ', "is JSON"),
        ('{"name": "vader"}', "is JSON"),
        ('["vader"]', "is JSON"),
        ("", "no reward named ''"),
        ("Vader", "Did you mean 'vader'?"),
        ("textenv.rewards.vader", "no reward named"),
        (b"vader", "is no reward"),
        (3, "is no reward"),
        (None, "is no reward"),
        (True, "is no reward"),
        ([], "non-empty list of rewards"),
        ([3], "is no reward"),
        ({}, "has no name"),
        ({"name": None}, "has no name"),
        ({"name": ["vader"]}, "has no name"),
        (np.zeros((9, 9)), "is no reward"),
        ("builtins:dict", "takes no 'completions'"),
        ("builtins:type", "takes no 'completions'"),
        ("builtins:object", "takes no 'completions'"),
        ("builtins:print", "takes no 'completions'"),
        ("builtins:__doc__", "expected something to call"),
        ("functools:partial", "'functools:partial'"),
        ("bad_rewards:table", "expected something to call"),
        ("bad_rewards:raises_in_making", "raised KeyError: 'several"),
        ("bad_rewards:without_completions", "takes no 'completions'"),
        ("bad_rewards:", "expected something to call"),
        (":", "cannot be imported"),
        (":Reward", "cannot be imported"),
        ("a:b:c", "cannot be imported"),
        ("..:b", "cannot be imported"),
        ("no module:b", "cannot be imported"),
        ("nomod:Reward", "in the working folder"),
        (dict, "takes no 'completions'"),
        (type, "takes no 'completions'"),
        (int, "takes no 'completions'"),
        (without_completions, "takes texts"),
        (lambda: [0.0], "takes nothing"),
        (print, "takes"),
        (len, "takes obj"),
    ],
    ids=plain,
)
def test_what_is_no_reward(spec: Any, said: str) -> None:
    with one_line(said):
        make(spec)


@pytest.mark.parametrize(
    "state",
    [{}, {"reward": 3}, 3, None, {"count": "1", "mean": 0.0, "squares": 0.0, "reward": {}}],
    ids=plain,
)
@pytest.mark.parametrize("name", ["clip", "counterfactual_gap", "normalize", "period_rule", "weighted_sum"])
def test_the_state_of_another_reward(name: str, state: Any) -> None:
    reward: Any = make({"name": name, **NEEDED[name]})
    with one_line():
        reward.load_state_dict(state)


def returning(value: Any) -> Callable[..., Any]:
    def constant(completions: Sequence[Any], **_: Any) -> Any:
        return value

    return constant


async def awaited(completions: Sequence[Any], **_: Any) -> list[float]:
    return [0.0] * (len(completions) + 1)


@pytest.mark.parametrize("wrap", ["clip", "counterfactual_gap", "normalize", "period_rule", "weighted_sum"])
@pytest.mark.parametrize(
    "function",
    [
        *map(
            returning, ([1.0], ["1.0", "2.0"], "12", [math.nan, 1.0], [None, 1.0], 1.0, None, [[1.0], [2.0, 3.0]], 1j)
        ),
        awaited,
        without_completions,
    ],
    ids=lambda function: function.__name__,
)
def test_what_is_no_score_inside_another_reward(wrap: str, function: Any) -> None:
    spec = {"name": wrap, **NEEDED[wrap], "rewards" if wrap == "weighted_sum" else "reward": function}
    if wrap == "weighted_sum":
        spec["rewards"] = [function]
    with one_line():
        make(spec)(prompts=["a", "b"], completions=["c", "d"], completion_ids=[[1], [2]])
