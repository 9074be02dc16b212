"""Bad keywords, actions, seeds, options and policies of the environments end in one clear line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import textenv
from tests.complaints import one_line, plain
from textenv import CausalLM, TextEnv, TextVectorEnv
from textenv.types import Prompt

USER = {"role": "user", "content": "Hi"}


def zeros(completions: Sequence[str], **_: Any) -> list[float]:
    return [0.0] * len(completions)


def settings(lm: CausalLM, **given: Any) -> dict[str, Any]:
    return {"model": lm, "prompts": ["the film", "a plot"], "reward": zeros, "max_new_tokens": 3, **given}


KEYWORDS: dict[str, list[Any]] = {
    "model": [3, None, "", "/nowhere", ["bundled"]],
    "device": ["gpu", "", "cuda:99", 3],
    "torch_dtype": ["float64", 32, "int8"],
    "reference_precision": ["float16", "auto", 8],
    "prompts": [
        [],
        "",
        "prompts.pdf",
        3,
        [3],
        [None],
        [b"a"],
        {"prompt": "a"},
        [{"text": "a"}],
        [["a"]],
        ["a", [USER]],
    ],
    "chat": ["yes", 1, None],
    "reward": ["vadder", 3, {}, {"name": "clip"}, '{"name": "vader"}', dict, len, lambda texts: texts, ["vadder"], []],
    "reward_weights": [[1.0, 2.0], [], ["1"], [math.nan], 2.0, "1"],
    "max_new_tokens": [0, -1, "12", 1.5, True, None, 10**6],
    "max_prompt_tokens": [0, "8", 1.5, 1, 10**9],
    "kl_coef": [-0.1, "0.1", math.nan, math.inf, None, True],
    "kl_estimator": ["k4", None],
    "kl_mode": ["sparse", 3],
    "kl_target": [0, -1, "6"],
    "kl_horizon": [0, "9", 1.5],
    "temperature": [0, -1, "1", math.nan, None, 1e-30, 1e30],
    "stop": ["", [""], [3], 3, None],
    "missing_eos_penalty": ["1", math.inf, None],
    "top_k": [0, "5", 1.5],
    "top_p": [0, 1.5, "0.9", math.nan],
    "rewrad": ["vader"],
}
MADE = [(name, value) for name, values in KEYWORDS.items() for value in values]
IDS = [f"{name}-{value if not callable(value) else 'callable'!r}" for name, value in MADE]


@pytest.mark.parametrize(("name", "value"), MADE, ids=IDS)
def test_a_keyword(name: str, value: Any, tiny_lm: CausalLM) -> None:
    with one_line():
        gym.make("textenv/Text-v0", **settings(tiny_lm, **{name: value}))


@pytest.mark.parametrize("mode", ["rgb", "rgb_array_list", "ANSI", "", 3, True, ["ansi"]], ids=plain)
@pytest.mark.parametrize("cls", [TextEnv, TextVectorEnv])
def test_a_render_mode(cls: Any, mode: Any, tiny_lm: CausalLM) -> None:
    with one_line("render_mode="):
        cls(render_mode=mode, **settings(tiny_lm))


@pytest.mark.parametrize(
    ("id", "given"),
    [
        *(("textenv/Text-v0", {"num_envs": value}) for value in (0, -1, "3", 1.5, True, None)),
        *(("textenv/Text-v0", {"autoreset_mode": value}) for value in ("same", 3, None, ["SameStep"], True)),
        *(("textenv/MovieReview-v0", {"split": value}) for value in ("test", None, 3, ["train"])),
        *(("textenv/Exact-v0", {"vocab_size": value}) for value in (1, 27, "8", True, 2.5, None)),
        *(("textenv/Exact-v0", {"stop_token": value}) for value in ("no", 1, None)),
        *(("textenv/Exact-v0", {"task_seed": value}) for value in (-1, "0", 1.5)),
        *(("textenv/Exact-v0", {"reward": value}) for value in ("densse", 3)),
        *(("textenv/Exact-v0", {"model": value}) for value in ("bundled", 3)),
        ("textenv/Exact-v0", {"max_new_tokens": "6"}),
        ("textenv/Exact-v0", {"prompts": ["ä"]}),
    ],
    ids=plain,
)
def test_a_keyword_of_a_vector_environment(id: str, given: dict[str, Any]) -> None:
    with one_line():
        gym.make_vec(id, **{"num_envs": 1, **given})


def needs_a_column(completions: Sequence[str], label: Sequence[str], **_: Any) -> list[float]:
    return [0.0] * len(label)


def takes_no_column(prompts: Any, completions: Any, completion_ids: Any) -> list[float]:
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("reward", "prompts", "said"),
    [
        (needs_a_column, ["a"], "missing a required argument: 'label'"),
        (takes_no_column, [{"prompt": "a", "label": "x"}], "unexpected keyword argument 'label'"),
        ({"name": "clip", "reward": takes_no_column, "low": 0, "high": 1}, ["a"], ""),
    ],
)
def test_a_reward_that_cannot_be_called_with_the_columns(
    reward: Any, prompts: Any, said: str, tiny_lm: CausalLM
) -> None:
    given = settings(tiny_lm, reward=reward, prompts=prompts)
    if said:
        with one_line(said):
            TextEnv(**given)
    else:
        TextEnv(**given)


@pytest.mark.parametrize(
    "returned",
    [["1.0"], "1", [math.nan], [math.inf], [None], [], [1.0, 2.0], 1.0, None, {0: 1.0}, [[1.0] * 9]],
    ids=plain,
)
def test_what_a_reward_returns(returned: Any, tiny_lm: CausalLM) -> None:
    env = TextEnv(**settings(tiny_lm, reward=lambda **_: returned, max_new_tokens=1))
    env.reset(seed=0)
    with one_line("The reward"):
        env.step(5)


def test_what_a_reward_raises(tiny_lm: CausalLM) -> None:
    def broken(**_: Any) -> list[float]:
        raise RuntimeError("the server\nsaid\nno")

    env = TextEnv(**settings(tiny_lm, reward=broken, max_new_tokens=1))
    env.reset(seed=0)
    with one_line("RuntimeError: the server said no"):
        env.step(5)


@pytest.fixture(params=["single", "vector"])
def env(request: pytest.FixtureRequest, tiny_lm: CausalLM) -> Any:
    if request.param == "single":
        return TextEnv(**settings(tiny_lm))
    return TextVectorEnv(2, autoreset_mode=AutoresetMode.DISABLED, **settings(tiny_lm))


@pytest.mark.parametrize(
    "seed", ["0", -1, 1.5, True, math.nan, [0, -1], [0, 1, 2], ["a", "b"], {}, object()], ids=plain
)
def test_a_seed(seed: Any, env: Any) -> None:
    with one_line("seed="):
        env.reset(seed=seed)


@pytest.mark.parametrize(
    "options",
    [
        3,
        "prompt",
        ["prompt"],
        [("prompt", "a")],
        {"promt": "a"},
        {3: "a"},
        {"prompt": 3},
        {"prompt": None},
        {"prompt": b"the film"},
        {"prompt": []},
        {"prompt": {"role": "user"}},
        {"prompt": {"role": "user", "content": "Hi"}},
        {"prompt": ["a", "b", "c"]},
        {"prompt": [USER]},
        {"prompt": "\ud83d"},
        {"prompt": "the film " * 99},
        {"prompt": Prompt("a", ())},
        {"prompt": Prompt("a", ("a",))},  # type: ignore[arg-type]
        {"prompt": Prompt("a", (10**6,))},
        {"prompt": "a", "prompt_index": 0},
        {"prompt_index": -1},
        {"prompt_index": 2},
        {"prompt_index": "0"},
        {"prompt_index": True},
        {"prompt_index": 0.0},
        {"prompt_index": [0] * 9},
        {"reset_mask": True},
        {"reset_mask": [1, 0]},
        {"reset_mask": [False, False]},
        {"reset_mask": [[True], [True, False]]},
        {"reset_mask": "all"},
    ],
    ids=lambda options: repr(options)[:60].encode("ascii", "backslashreplace").decode(),
)
def test_options(options: Any, env: Any) -> None:
    with one_line():
        env.reset(options=options)


@pytest.mark.parametrize(
    "action", [None, "5", 5.0, True, -1, 10**6, 10**30, [[5]], [5, [6]], [1.5, 2.0], {}, [None, None]], ids=plain
)
def test_an_action(action: Any, env: Any) -> None:
    env.reset(seed=0)
    with one_line("actions"):
        env.step(action)


class Wrong:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def action_log_prob(self, actions: Any) -> Any:
        return self.answer


@pytest.mark.parametrize("policy", [3, "policy", Wrong, zeros], ids=plain)
def test_what_is_no_policy(policy: Any, env: Any) -> None:
    with one_line("attach_policy got"):
        env.attach_policy(policy)


@pytest.mark.parametrize("answer", [None, "x", ["x"], [math.nan, math.nan], [0.0] * 3, [[0.0], [0.0, 1.0]]], ids=plain)
def test_what_a_policy_answers(answer: Any, env: Any) -> None:
    env.reset(seed=0)
    env.attach_policy(Wrong(answer))
    with one_line("Wrong.action_log_prob returned"):
        env.step(5 if isinstance(env, TextEnv) else np.array([5, 5]))


@pytest.mark.parametrize("state", [3, None, {}, {"generators": []}, {"generators": [], "kl_coef": 1, "reward": None}])
def test_a_state(state: Any, tiny_lm: CausalLM) -> None:
    with one_line("state is"):
        TextVectorEnv(2, **settings(tiny_lm)).load_state_dict(state)


@pytest.mark.parametrize(
    ("id", "record"), [("tests/Bad-v0", {}), ("tests/Bad-v0", "record"), (3, None)], ids=["mapping", "text", "number"]
)
def test_what_is_no_registration(id: Any, record: Any) -> None:
    with one_line():
        textenv.register(id, entry_point="a:b", vector_entry_point="a:c", record=record)


@pytest.mark.parametrize(
    "id", ["textenv/MovieReviews-v0", "", "nope", "nomod:My-v0", ":My-v0", "json:My-v0", 3, None, "textenv/Text-v0:"]
)
def test_what_is_no_id(id: Any) -> None:
    with one_line("env="):
        textenv.env.registry.record_of(id)
