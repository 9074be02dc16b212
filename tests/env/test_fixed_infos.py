"""Infos of numbers alone, with the same keys and shapes at every step."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from tests.env.test_vector import assert_equal
from textenv import CausalLM, Handle, TextEnv, TextEnvError, TextVectorEnv
from textenv.types import StopReason

REASONS: tuple[StopReason, ...] = ("eos", "stop", "length", "world", "turns", "context")
WORLD: dict[str, Any] = {"world": "guess_number", "max_turns": 3, "max_tokens": 80, "max_new_tokens": 4}
TEXT: dict[str, Any] = {"prompts": ["the film", "it"], "reward": {"name": "length", "target": 3}, "max_new_tokens": 5}


def of_long_texts(completions: list[str], **_: Any) -> list[float | None]:
    """Say nothing of a text of less than ten letters."""
    return [len(text) / 10 if len(text) >= 10 else None for text in completions]


GIVEN = {
    "text": TEXT,
    "stop": {**TEXT, "stop": "e"},
    "lump": {**TEXT, "kl_mode": "lump"},
    "masks": {**TEXT, "top_k": 9},
    "world": WORLD,
    "fresh": {**WORLD, "context": "fresh"},
    "cut": {**WORLD, "max_tokens": 40},
    "parts": {**TEXT, "reward": [TEXT["reward"], of_long_texts]},
    "shaped": {**TEXT, "potential": TEXT["reward"], "potential_every": 2},
}


def played(env: Any, seed: int) -> list[dict[str, Any]]:
    """Play an episode of random tokens, one in five of which ends a turn; return the infos."""
    rng = np.random.default_rng(seed)
    infos = [env.reset(seed=seed)[1]]
    over = False
    while not over:
        token = 0 if rng.random() < 0.2 else int(rng.integers(300))
        *_, terminated, truncated, info = env.step(token)
        over = terminated or truncated
        infos.append(info)
    return infos


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_they_are_the_numbers_of_the_full_ones(given: dict[str, Any], tiny_lm: CausalLM) -> None:
    fixed, full = (TextEnv(model=tiny_lm, info=form, **given) for form in ("fixed", "full"))
    reasons = set()
    for seed in range(6):
        told, known = played(fixed, seed), played(full, seed)
        assert len(told) == len(known)
        for one, other in zip(told, known, strict=True):
            for name in ("kl", "logprob", "ref_logprob", "score"):
                assert one[name] == pytest.approx(other.get(name, 0.0), abs=1e-6)
            size = len(other.get("completion_ids", ()))
            assert one["completion_length"] == size
            for name in ("completion_ids", "token_kl", "token_rewards"):
                assert one[name][:size] == pytest.approx(other.get(name, ()), abs=1e-6)
                assert not one[name][size:].any()
            reason = other.get("stop_reason")
            assert one["stop_reason"] == (0 if reason is None else 1 + REASONS.index(reason))
            if "world" in given:
                turns = other.get("turns", ())
                assert one["turns"] == len(turns)
                assert one["turn_tokens"].tolist() == [turn.tokens for turn in turns] + [0] * (3 - len(turns))
                assert one["turn_rewards"].tolist() == [turn.reward for turn in turns] + [0] * (3 - len(turns))
            for name, score in other.get("scores", {}).items():
                assert one[f"scores/{name}"] == pytest.approx(score or 0.0)
                assert one[f"applies/{name}"] == (score is not None)
            if "potential" in given:
                assert one["shaping"] == pytest.approx(other.get("shaping", 0.0), abs=1e-6)
                assert one["token_shaping"][:size] == pytest.approx(other.get("token_shaping", ()), abs=1e-6)
            if "top_k" in given:
                allowed = other.get("action_mask", np.ones(300))
                assert one["action_mask"].tolist() == allowed.tolist()
            reasons.add(reason)
    assert len(reasons) > 1


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_keys_shapes_and_types_stay(given: dict[str, Any], tiny_lm: CausalLM) -> None:
    env = TextEnv(model=tiny_lm, info="fixed", **given)
    infos = [info for seed in range(4) for info in played(env, seed)]
    forms = {tuple((name, np.shape(value), np.asarray(value).dtype) for name, value in info.items()) for info in infos}
    assert len(forms) == 1
    assert all(dtype.kind in "if" for _, _, dtype in next(iter(forms)))
    for info in infos:
        for value in info.values():
            assert isinstance(value, (int, float, np.ndarray))
    arrays = [id(value) for info in infos for value in info.values() if isinstance(value, np.ndarray)]
    assert len(set(arrays)) == len(arrays)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_in_a_world_the_vector_is_that_of_single_environments(mode: AutoresetMode, tiny_lm: CausalLM) -> None:
    given: dict[str, Any] = {"model": tiny_lm, "info": "fixed", **WORLD}
    mine = TextVectorEnv(3, autoreset_mode=mode, **given)
    theirs = SyncVectorEnv([lambda: TextEnv(**given)] * 3, autoreset_mode=mode)
    assert_equal(mine.reset(seed=5), theirs.reset(seed=5), "reset")
    rng, ended = np.random.default_rng(0), 0
    for step in range(25):
        actions = np.where(rng.random(3) < 0.3, 0, rng.integers(300, size=3))
        found = mine.step(actions)
        assert_equal(found, theirs.step(actions), f"step {step}")
        ended += found[2].sum()
        if mode is AutoresetMode.DISABLED and found[2].any():
            for envs in (mine, theirs):
                envs.reset(options={"reset_mask": found[2].copy()})
    assert ended > 3


def test_without_autoreset_a_finished_row_has_none(tiny_lm: CausalLM) -> None:
    envs = TextVectorEnv(2, model=tiny_lm, info="fixed", top_k=5, autoreset_mode=AutoresetMode.DISABLED, **TEXT)
    envs.reset(seed=0)
    first = envs.step(np.array([70, 0]))[4]
    assert first["_kl"].tolist() == [True, True]
    assert first["stop_reason"].tolist() == [0, 1]
    later = envs.step(np.array([70, 0]))[4]
    assert first.keys() == later.keys()
    assert all(later[name].tolist() == [True, False] for name in later if name.startswith("_"))
    assert not any(later[name][1].any() for name in later)


@pytest.mark.parametrize("given", [TEXT, WORLD], ids=["text", "world"])
def test_both_checkers_pass(given: dict[str, Any], tiny_lm: CausalLM) -> None:
    env = gym.make("textenv/Text-v0", model=Handle(tiny_lm), info="fixed", **given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=True)
        sb3_check_env(env.unwrapped)


@pytest.mark.parametrize("info", ["some", "", None, True, 3])
def test_another_form_is_refused(info: Any, tiny_lm: CausalLM) -> None:
    with pytest.raises(TextEnvError, match=r"info=.*'full'.*'fixed'"):
        TextEnv(model=tiny_lm, info=info, **TEXT)
