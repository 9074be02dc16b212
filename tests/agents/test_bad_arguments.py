"""Bad arguments of agents, rollouts, reward models, exact trees and Stable-Baselines3's side end in one clear line."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs import registration
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO as TheirPPO  # noqa: N811
from stable_baselines3.common.vec_env import VecNormalize

from tests.complaints import one_line, plain
from textenv import PPO, CausalLM, PPOConfig, TextEnv, TextVectorEnv, collect
from textenv.agents import config_of, find, names
from textenv.agents.sb3 import CausalLMPolicy, EpisodeBuffer, TextVecEnv, TokenFeatures
from textenv.analysis.exact import Tree
from textenv.models.reward_model import Ensemble, RewardModel
from textenv.rollouts.collect import sample_episodes


def zeros(completions: Sequence[str], **_: Any) -> list[float]:
    return [0.0] * len(completions)


def lengths(completions: Sequence[str], **_: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


def make_envs(lm: CausalLM, rows: int = 2, mode: Any = AutoresetMode.DISABLED, **settings: Any) -> TextVectorEnv:
    settings = {"model": lm, "prompts": ["the film"], "reward": lengths, "max_new_tokens": 3, **settings}
    return TextVectorEnv(rows, autoreset_mode=mode, **settings)


@pytest.fixture(scope="module")
def agent(tiny_lm: CausalLM) -> PPO:
    return PPO(make_envs(tiny_lm), PPOConfig(value="none"))


# -- making an agent ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("env", [None, 3, "textenv/MovieReview-v0", TextVectorEnv, []], ids=plain)
def test_what_is_no_environment(name: str, env: Any) -> None:
    with one_line("is no environment"):
        find(name)(env)


@pytest.mark.parametrize("name", names())
def test_an_environment_that_an_agent_cannot_write_in(name: str, tiny_lm: CausalLM) -> None:
    with one_line("is no text environment"):
        find(name)(gym.make("CartPole-v1"))
    with one_line("autoreset_mode"):
        find(name)(make_envs(tiny_lm, mode=AutoresetMode.SAME_STEP))


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("config", [3, {}, {"seed": 1}, "default", PPOConfig], ids=plain)
def test_what_is_no_config(name: str, config: Any, tiny_lm: CausalLM) -> None:
    with one_line("got config="):
        find(name)(make_envs(tiny_lm, rows=4), config)


@pytest.mark.parametrize("name", names())
def test_what_are_no_processes(name: str, tiny_lm: CausalLM) -> None:
    with one_line("got processes="):
        find(name)(make_envs(tiny_lm, rows=4), processes=3)


@pytest.mark.parametrize("name", [name for name in names() if name not in ("best_of_n", "guided")])
@pytest.mark.parametrize("policy", [3, "policy", zeros], ids=plain)
def test_what_is_no_policy(name: str, policy: Any, tiny_lm: CausalLM) -> None:
    with one_line("got policy="):
        find(name)(make_envs(tiny_lm, rows=4), policy=policy)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("settings", [{"sede": 1}, {"seed": "0"}, {"seed": -1}, {"seed": True}], ids=plain)
def test_a_setting(name: str, settings: Any) -> None:
    with one_line():
        config_of(find(name), settings)


class OwnEnv(TextEnv):
    """What somebody writes who wants the single environment with settings of their own."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"reward": lengths, "prompts": ["the film"], "max_new_tokens": 2, **settings})


@pytest.fixture
def _own_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "registry", dict(gym.registry))
    gym.register("own/Env-v0", entry_point=OwnEnv)


@pytest.mark.usefixtures("_own_id")
def test_an_id_without_a_vector_environment_says_what_to_do(tiny_lm: CausalLM) -> None:
    envs = gym.make_vec("own/Env-v0", num_envs=2, model=tiny_lm)
    for use in (PPO, TextVecEnv):
        with one_line("textenv.register('own/Env-v0', entry_point=..., vector_entry_point=...)"):
            use(envs)
    with one_line("Leave vectorization_mode out"):
        PPO(gym.make_vec("textenv/Exact-v0", num_envs=2, vectorization_mode="sync"))
    with one_line("without a vector_entry_point"):
        gym.make_vec("own/Env-v0", num_envs=2, model=tiny_lm, autoreset_mode=AutoresetMode.DISABLED)
    agent = PPO(gym.make("own/Env-v0", model=tiny_lm), PPOConfig(value="none"))
    assert agent.learn(2).steps == 2


# -- using an agent -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        *({"total_steps": value} for value in (0, -1, "5", 1.5, True, None, math.nan, math.inf)),
        *({"checkpoint_every": value} for value in (0, "5", 1.5, None)),
        *({"progress": value} for value in (3, "print")),
        *({"checkpoints": value} for value in (3, "", ["a"])),
    ],
    ids=plain,
)
def test_learning(given: dict[str, Any], agent: PPO) -> None:
    with one_line():
        agent.learn(**{"total_steps": 6, **given})
    assert agent.steps == 0


def test_checkpoints_in_a_file(agent: PPO, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x", "utf-8")
    for folder in (file, file / "below", str(file), "nul\0"):
        with one_line("cannot be made"):
            agent.learn(6, checkpoints=folder)


@pytest.mark.parametrize(
    "obs",
    [
        None,
        3,
        "the film",
        {},
        [1, 2],
        {"input_ids": [1]},
        {"input_ids": [1.0], "attention_mask": [1]},
        {"input_ids": [0.5, 0.5], "attention_mask": [1, 1]},
        {"input_ids": ["a"], "attention_mask": [1]},
        {"input_ids": [1, 2], "attention_mask": [1]},
        {"input_ids": [[1], [1, 2]], "attention_mask": [[1], [1, 1]]},
        {"input_ids": 3, "attention_mask": 1},
        {"input_ids": [[[1]]], "attention_mask": [[[1]]]},
        {"input_ids": [-1], "attention_mask": [1]},
        {"input_ids": [10**6], "attention_mask": [1]},
        {"input_ids": [1, 2], "attention_mask": [0, 0]},
        {"input_ids": [1, 2], "attention_mask": [0, 1]},
        {"input_ids": [], "attention_mask": []},
    ],
    ids=plain,
)
def test_predicting_from_what_is_no_observation(obs: Any, agent: PPO) -> None:
    with one_line("obs"):
        agent.predict(obs)


@pytest.mark.parametrize("deterministic", ["no", 1, None])
def test_predicting_neither_way(deterministic: Any, agent: PPO) -> None:
    with one_line("deterministic="):
        agent.predict(agent.envs.reset(seed=0)[0], deterministic=deterministic)


@pytest.mark.parametrize("folder", [3, None, "", "nul\0", ["a"]], ids=plain)
@pytest.mark.parametrize("use", ["save", "load"])
def test_a_folder(use: str, folder: Any, agent: PPO) -> None:
    with one_line():
        if use == "save":
            agent.save(folder)
        else:
            PPO.load(folder, agent.envs)


def test_saving_below_a_file(agent: PPO, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", "utf-8")
    for folder in ("file", "file/below"):
        with one_line("cannot be made"):
            agent.save(tmp_path / folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b"\xff\xfe",
        b"{}",
        b"[" * 100_000,
        json.dumps({"agent": "grpo", "steps": 0, "config": {}}).encode(),
        json.dumps({"agent": "ppo", "steps": "many", "config": {}}).encode(),
        json.dumps({"agent": "ppo", "steps": -1, "config": {}}).encode(),
        json.dumps({"agent": "ppo", "steps": 0, "config": []}).encode(),
        json.dumps({"agent": "ppo", "steps": 0, "config": {"clipp": 1}}).encode(),
        json.dumps({"agent": "ppo", "steps": 0, "config": {"clip": "wide"}}).encode(),
    ],
    ids=lambda content: content[:50].decode("ascii", "backslashreplace"),
)
def test_a_damaged_folder(content: bytes, agent: PPO, tmp_path: Path) -> None:
    agent.save(tmp_path)
    (tmp_path / "agent.json").write_bytes(content)
    with one_line("holds no PPO agent"):
        PPO.load(tmp_path, agent.envs)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"{"], ids=["empty", "zeros", "cut"])
def test_a_damaged_policy(file: str, content: bytes, agent: PPO, tmp_path: Path) -> None:
    agent.save(tmp_path)
    (tmp_path / file).write_bytes(content)
    with one_line("could not be loaded"):
        PPO.load(tmp_path, agent.envs)


# -- rollouts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        *({"envs": value} for value in (3, None, "textenv/Text-v0")),
        *({"policy": value} for value in (3, None, zeros)),
        *({"generator": value} for value in (3, "seed", np.random.default_rng(0))),
        *({"episodes": value} for value in (0, 1, "3", 1.5, True)),
        *({"seed": value} for value in (-1, "0", 1.5)),
        *({"options": value} for value in ({"prompt": 3}, {"promt": "a"})),
    ],
    ids=plain,
)
def test_collecting(given: dict[str, Any], agent: PPO) -> None:
    arguments = {"envs": agent.envs, "policy": agent.policy, "generator": None, **given}
    with one_line():
        collect(**arguments)


def test_collecting_where_rows_reset_themselves(agent: PPO, tiny_lm: CausalLM) -> None:
    with one_line("autoreset_mode"):
        collect(make_envs(tiny_lm, mode=AutoresetMode.NEXT_STEP), agent.policy, None)


@pytest.mark.parametrize("prompts", [3, None, "the film", {"prompt": "a"}, [3], [[]]], ids=plain)
def test_sampling(prompts: Any, agent: PPO) -> None:
    with one_line():
        sample_episodes(agent.envs, agent.policy, None, prompts)


# -- reward models --------------------------------------------------------------------------------------------------


WRONG: dict[str, tuple[Any, ...]] = {
    "model": (3, None, "bundled"),
    "max_tokens": (0, -1, "8", 1.5, True, 10**9),
    "folder": (3, None, "", "/nowhere", ["a"], "nul\0"),
    "device": ("gpu", "cuda:99"),
    "dtype": ("int3", 3),
    "target": (3, None, "", "nul\0"),
    "members": ([], [3], 3, None),
}


@pytest.mark.parametrize(
    "call",
    [
        *(lambda lm, v=value: RewardModel(v) for value in WRONG["model"]),
        *(lambda lm, v=value: RewardModel(lm, max_tokens=v) for value in WRONG["max_tokens"]),
        *(lambda lm, v=value: RewardModel.load(v) for value in WRONG["folder"]),
        *(lambda lm, v=value: RewardModel.load(device=v) for value in WRONG["device"]),
        *(lambda lm, v=value: RewardModel.load(dtype=v) for value in WRONG["dtype"]),
        *(lambda lm, v=value: RewardModel(lm).save(v) for value in WRONG["target"]),
        lambda lm: RewardModel(lm).scores("abc", "abc"),
        lambda lm: RewardModel(lm).scores(["a"], ["a", "b"]),
        lambda lm: RewardModel(lm).scores(["a"], "b"),
        lambda lm: RewardModel(lm).scores(3, ["b"]),  # type: ignore[arg-type]
        lambda lm: RewardModel(lm).scores([3], ["b"]),  # type: ignore[list-item]
        lambda lm: RewardModel(lm).scores(["a"], [None]),
        lambda lm: RewardModel(lm).normalize(["a"], ["b"]),
        *(lambda lm, v=value: Ensemble(v) for value in WRONG["members"]),
        lambda lm: Ensemble([RewardModel(lm)], "max"),  # type: ignore[arg-type]
        lambda lm: Ensemble([RewardModel(lm)], penalty="1"),  # type: ignore[arg-type]
    ],
)
def test_reward_models(call: Callable[[CausalLM], Any], tiny_lm: CausalLM) -> None:
    with one_line():
        call(tiny_lm)


@pytest.mark.parametrize(
    "about",
    [b"", b"{", b"[]", b"{}", *(json.dumps({"shift": 0, "scale": s, "log_nu": 0, "max_tokens": t}).encode()
      for s, t in ((0, 8), (-1, 8), ("x", 8), (None, 8), (1, "8"), (1, 0), (1, 10**9)))],
    ids=plain,
)  # fmt: skip
def test_a_damaged_reward_model(about: bytes, tiny_lm: CausalLM, tmp_path: Path) -> None:
    RewardModel(tiny_lm).save(tmp_path)
    (tmp_path / "reward.json").write_bytes(about)
    with one_line():
        RewardModel.load(tmp_path)


# -- exact trees ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree() -> Tree:
    return Tree.of(gym.make("textenv/Exact-v0", vocab_size=3, max_new_tokens=2))


@pytest.mark.parametrize("env", [3, None, "textenv/Exact-v0", []], ids=plain)
def test_a_tree_of_no_environment(env: Any) -> None:
    with one_line("is no text environment"):
        Tree.of(env)


def test_a_tree_of_another_environment(tiny_lm: CausalLM) -> None:
    with one_line("is no text environment"):
        Tree.of(gym.make("CartPole-v1"))
    with one_line("too many to enumerate"):
        Tree.of(make_envs(tiny_lm, max_new_tokens=9))


@pytest.mark.parametrize(
    "policy",
    [
        3,
        None,
        "uniform",
        [],
        [[]],
        [3],
        [[np.zeros((1, 3))]],
        lambda ids: None,
        lambda ids: "x",
        lambda ids: np.zeros(3),
        lambda ids: np.zeros((len(ids), 3)),
        lambda ids: np.full((len(ids), 3), math.nan),
        lambda ids: [["a"] * 3] * len(ids),
    ],
)
def test_what_is_no_policy_of_a_tree(policy: Any, tree: Tree) -> None:
    with one_line("olicy"):
        tree.evaluate(policy)


@pytest.mark.parametrize("n", [0, 0.5, "3", None, True, math.nan, math.inf, [2]], ids=plain)
def test_best_of_no_number(n: Any, tree: Tree) -> None:
    with one_line("n="):
        tree.best_of_n(n)


@pytest.mark.parametrize("kl_coef", [-1, math.nan, math.inf, "0.1", None, True])
def test_a_weight_of_the_kl(kl_coef: Any, tree: Tree) -> None:
    with one_line("kl_coef="):
        dataclasses.replace(tree, kl_coef=kl_coef)


@pytest.mark.parametrize("ids", [3, [1], [[1.0]], [["a"]], np.zeros((1, 99), dtype=np.int64)], ids=plain)
def test_observations_of_no_token_ids(ids: Any, tree: Tree) -> None:
    with one_line("ids="):
        tree.observations(ids)


# -- Stable-Baselines3 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("envs", [3, None, "textenv/Text-v0", TextVecEnv], ids=plain)
def test_their_environment_of_none(envs: Any) -> None:
    with one_line("is no environment"):
        TextVecEnv(envs)


def test_their_environment_where_rows_wait(tiny_lm: CausalLM) -> None:
    with one_line("autoreset_mode"):
        TextVecEnv(make_envs(tiny_lm))


@pytest.mark.parametrize(
    "given",
    [
        *({"temperature": value} for value in (0, "1", math.nan, None, True)),
        *({"embedding_rate": value} for value in (-1, "1", math.inf)),
        *({"value_rate": value} for value in (0, None)),
        *({"model": value} for value in (3, None, "/nowhere", zeros)),
        *({"use_sde": value} for value in (True, "no")),
    ],
    ids=plain,
)
def test_their_policy(given: dict[str, Any]) -> None:
    envs = TextVecEnv(gym.make_vec("textenv/MovieReview-v0", num_envs=1, reward=zeros))
    with one_line():
        CausalLMPolicy(envs.observation_space, envs.action_space, lambda _: 1e-4, **given)


@pytest.mark.parametrize("keys", [None, ["input_ids"], ["attention_mask"]], ids=plain)
def test_token_ids_are_not_normalized(keys: Any) -> None:
    envs = TextVecEnv(gym.make_vec("textenv/MovieReview-v0", num_envs=2, reward=zeros))
    kinds: dict[str, Any] = {"n_steps": 4, "batch_size": 8, "rollout_buffer_class": EpisodeBuffer}
    agent = TheirPPO(CausalLMPolicy, VecNormalize(envs, norm_obs_keys=keys), **kinds)
    with one_line("use norm_obs=False"):
        agent.learn(8)
    TheirPPO(CausalLMPolicy, VecNormalize(envs, norm_obs=False), **kinds).learn(8)


def test_their_own_networks_read_token_ids() -> None:
    envs = TextVecEnv(gym.make_vec("textenv/Exact-v0", num_envs=2))
    kwargs = {"features_extractor_class": TokenFeatures}
    agent = TheirPPO("MultiInputPolicy", VecNormalize(envs), n_steps=4, batch_size=8, policy_kwargs=kwargs)
    with one_line("norm_obs=False"):
        agent.learn(8)


@pytest.mark.parametrize("actions", [None, [0], ["a", "b"], [0.5, 0.5], [-1, 0], [0, 10**9]], ids=plain)
def test_their_steps(actions: Any) -> None:
    envs = TextVecEnv(gym.make_vec("textenv/Exact-v0", num_envs=2))
    envs.reset()
    with one_line("actions"):
        envs.step(actions)
