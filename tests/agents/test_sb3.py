"""Stable-Baselines3 and sb3-contrib as they are, with a language model as the policy."""

from __future__ import annotations

import io
import itertools
import json
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from hypothesis import given
from hypothesis import strategies as st
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor

from benchmarks import sb3_agreement
from tests.conftest import Forwards, build_lm
from textenv.agents import ppo
from textenv.agents.sb3 import CausalLMPolicy, EpisodeBuffer, TextVecEnv, TokenFeatures, _shared_texts
from textenv.agents.sb3_contrib import MaskableCausalLMPolicy, MaskableEpisodeBuffer
from textenv.models.causal_lm import CausalLM
from textenv.rollouts.collect import collect
from textenv.types import TextEnvError

PROMPTS = ["the film", "a plot", "it"]


def count_e(completions: Sequence[str], **_: Any) -> list[float]:
    """Pays for every letter e: easy to learn, and nothing is random about it."""
    return [float(text.count("e")) / 4 for text in completions]


@pytest.fixture(scope="module")
def folder(tiny_lm: CausalLM, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Hold the tiny model in Hugging Face format: SB3 saves what a policy is made with, so it gets a name."""
    path = tmp_path_factory.mktemp("tiny")
    tiny_lm.model.save_pretrained(path)
    tiny_lm.tokenizer.save_pretrained(path)
    return str(path)


def native(folder: str, num_envs: int = 4, **settings: Any) -> Any:
    keywords = {"model": folder, "prompts": PROMPTS, "reward": count_e, "max_new_tokens": 6, **settings}
    return gym.make_vec("textenv/Text-v0", num_envs=num_envs, **keywords)


def make_agent(folder: str, envs: Any = None, kind: Any = PPO, **settings: Any) -> Any:
    masked = kind is MaskablePPO
    keywords = {
        "policy": MaskableCausalLMPolicy if masked else CausalLMPolicy,
        "env": TextVecEnv(native(folder)) if envs is None else envs,
        "rollout_buffer_class": MaskableEpisodeBuffer if masked else EpisodeBuffer,
        "n_steps": 16,
        "seed": 3,
        **({} if kind is A2C else {"batch_size": 32, "n_epochs": 1}),
        **settings,
    }
    return kind(**{**keywords, "policy_kwargs": {"model": folder, **settings.get("policy_kwargs", {})}})


def excite(agent: Any) -> None:
    """Give the value head weights that say something."""
    head = agent.policy.text.value_head
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        head.weight.normal_(std=0.3)
        head.bias.fill_(0.1)


class Watch(BaseCallback):
    """Keeps what SB3 shows its callbacks: infos of every step, and the buffer's arrays after every rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.infos: list[list[dict[str, Any]]] = []
        self.rollouts: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        self.infos.append(self.locals["infos"])
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        names = ("actions", "values", "log_probs", "advantages", "returns", "rewards", "episode_starts")
        self.rollouts.append({name: getattr(buffer, name).copy() for name in names})
        self.rollouts[-1]["observations"] = {name: values.copy() for name, values in buffer.observations.items()}


def collected(agent: Any) -> dict[str, Any]:
    """Let it write one rollout, and learn nothing from it."""
    watch = Watch()
    _, callback = agent._setup_learn(10**6, watch)
    callback.on_training_start({}, {})
    keywords = {"use_masking": True} if isinstance(agent, MaskablePPO) else {}
    collect_rollouts: Any = agent.collect_rollouts
    collect_rollouts(agent.env, callback, agent.rollout_buffer, agent.n_steps, **keywords)
    return {**watch.rollouts[0], "infos": watch.infos}


# -- the policy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_it_says_what_the_model_says(folder: str, tiny_lm: CausalLM, temperature: float) -> None:
    agent = make_agent(
        folder, TextVecEnv(native(folder, temperature=temperature)), policy_kwargs={"temperature": temperature}
    )
    excite(agent)
    rollout = collected(agent)
    head = agent.policy.text.value_head
    obs = {name: torch.from_numpy(values[:, 0]) for name, values in rollout["observations"].items()}
    actions = torch.from_numpy(rollout["actions"][:, 0, 0])
    with torch.no_grad():
        values, log_probs, entropies = agent.policy.evaluate_actions(obs, actions)
        logits = agent.policy.get_distribution(obs).distribution.logits
        for step in range(len(actions)):
            ids = obs["input_ids"][step][: obs["attention_mask"][step].sum()][None]
            output = tiny_lm.model(input_ids=ids, output_hidden_states=True)
            plain = torch.log_softmax(output.logits[0, -1] / temperature, dim=-1)
            value = head(output.hidden_states[-1][0, -1])
            assert torch.allclose(logits[step], plain, atol=1e-5)
            for found in (log_probs[step].item(), rollout["log_probs"][step, 0]):
                assert found == pytest.approx(plain[actions[step]].item(), abs=1e-5)
            for found in (values[step].item(), rollout["values"][step, 0]):
                assert found == pytest.approx(value.item(), abs=1e-5)
            assert entropies[step].item() == pytest.approx(-(plain.exp() * plain).sum().item(), abs=1e-5)
        assert torch.allclose(agent.policy.predict_values(obs), values, atol=1e-5)


def test_acting_reads_a_token_a_row(folder: str) -> None:
    agent = make_agent(folder)
    with Forwards(agent.policy.text.lm) as forwards:
        rollout = collected(agent)
    begun = int(rollout["episode_starts"].sum()) + 4  # the values after the last step are of four texts
    prompt = agent.env.text_env.max_prompt_tokens
    assert sum(rows * tokens for rows, tokens in forwards.shapes) <= 64 + begun * prompt
    lengths = rollout["observations"]["attention_mask"].sum()  # what there is to read, without a cache
    assert 64 + begun * prompt < 0.5 * lengths


@pytest.mark.parametrize("kind", [PPO, MaskablePPO])
def test_the_first_ratio_is_one(folder: str, kind: Any) -> None:
    settings = {"top_k": 9} if kind is MaskablePPO else {}
    agent = make_agent(folder, TextVecEnv(native(folder, **settings)), kind)
    collected(agent)
    seen = 0
    for batch in agent.rollout_buffer.get(20):
        masks = {"action_masks": batch.action_masks} if kind is MaskablePPO else {}
        _, log_probs, entropies = agent.policy.evaluate_actions(
            batch.observations, batch.actions.long().flatten(), **masks
        )
        assert ((log_probs - batch.old_log_prob).exp() - 1).abs().max() < 1e-4
        assert torch.isfinite(entropies).all()
        seen += len(log_probs)
    assert seen == 64


def test_dropout_stays_off(tmp_path: Path) -> None:
    lm = build_lm("gpt2")  # whose config has a dropout of 0.1
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    agent = make_agent(str(tmp_path))
    rollout = collected(agent)
    agent.policy.set_training_mode(True)
    obs = {name: torch.from_numpy(values[:, 0]) for name, values in rollout["observations"].items()}
    _, log_probs, _ = agent.policy.evaluate_actions(obs, torch.from_numpy(rollout["actions"][:, 0, 0]))
    assert np.allclose(log_probs.detach(), rollout["log_probs"][:, 0], atol=1e-5)


def test_deterministic_predictions_are_the_likeliest_tokens(folder: str, tiny_lm: CausalLM) -> None:
    agent = make_agent(folder)
    obs = agent.env.reset()
    actions, _ = agent.predict(obs, deterministic=True)
    logits = tiny_lm.next_token_logits(obs["input_ids"], obs["attention_mask"].sum(axis=1))
    assert actions.tolist() == logits.argmax(dim=1).tolist()
    single, _ = agent.predict({name: values[1] for name, values in obs.items()}, deterministic=True)
    assert single == actions[1]


def test_learning_rates_are_multiples(folder: str) -> None:
    """The first step of SGD is as long as the gradient times the rate: SB3's, times the group's multiple."""
    settings = {"embedding_rate": 8.0, "value_rate": 30.0, "optimizer_class": torch.optim.SGD}
    agent = make_agent(folder, n_steps=8, learning_rate=0.01, max_grad_norm=1e9, policy_kwargs=settings)
    text = agent.policy.text
    embedding = text.model.get_input_embeddings().weight
    found = {id(embedding): 8.0, id(text.value_head.weight): 30.0, id(text.value_head.bias): 30.0}
    assert text.model.get_output_embeddings().weight is not embedding
    found[id(text.model.get_output_embeddings().weight)] = 8.0
    before = [p.detach().clone() for p in agent.policy.parameters()]
    agent.learn(32)
    for old, new in zip(before, agent.policy.parameters(), strict=True):
        assert new.grad is not None
        assert torch.allclose(old - new, 0.01 * found.get(id(new), 1.0) * new.grad, atol=1e-6)
    assert {group["lr"] for group in agent.policy.optimizer.param_groups} == {0.01}


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=12))
def test_shared_texts(rows: list[list[int]]) -> None:
    lengths = np.array([len(row) for row in rows])
    ids = np.full((len(rows), 4), 2)
    for place, written in enumerate(rows):
        ids[place, : len(written)] = written
    texts, places = _shared_texts(ids, lengths)
    for row, place in zip(rows, places, strict=True):
        assert rows[texts[place]][: len(row)] == row
    going_on = {tuple(row[:end]) for row in rows for end in range(1, len(row))}
    assert sorted(tuple(rows[text]) for text in texts) == sorted({tuple(row) for row in rows} - going_on)


def test_ids_sort_as_numbers() -> None:
    """Ids whose bytes would sort otherwise, or hold zeros, as text."""
    ids = np.array([[255, 256, 65535], [255, 256, 0], [255, 0, 0], [65535, 0, 0], [255, 256, 65535]])
    texts, places = _shared_texts(ids, np.array([3, 2, 1, 1, 3]))
    assert len(texts) == 2
    assert places.tolist() == [0, 0, 0, 1, 0]


# -- learning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [PPO, A2C, MaskablePPO])
def test_an_update_reads_each_episode_once(folder: str, kind: Any) -> None:
    settings = {"top_k": 9} if kind is MaskablePPO else {}
    agent = make_agent(folder, TextVecEnv(native(folder, 8, max_new_tokens=8, **settings)), kind)
    rollout = collected(agent)
    agent.set_logger(configure(None, []))
    begins = rollout["episode_starts"].T.copy()
    begins[:, 0] = 1
    segments = int(begins.sum())
    updates = 1 if kind is A2C else 4  # of 128 steps
    with Forwards(agent.policy.text.lm) as forwards:
        agent.train()
    assert segments < 128 / 3
    assert len(forwards.shapes) == updates
    assert 0.8 * segments <= forwards.rows <= segments  # a text that begins another costs nothing


def test_the_stock_buffer_reads_more(folder: str) -> None:
    agent = make_agent(folder, rollout_buffer_class=None)
    collected(agent)
    agent.set_logger(configure(None, []))
    with Forwards(agent.policy.text.lm) as forwards:
        agent.train()
    assert forwards.rows > 20


@pytest.mark.parametrize("kind", [PPO, MaskablePPO])
def test_gradients_are_those_of_the_stock_buffer(folder: str, kind: Any) -> None:
    """The same rollout, in whole episodes and in random prefixes, each prefix by itself and all at once."""
    settings = {"top_k": 9} if kind is MaskablePPO else {}
    found = []
    for buffer, size in ((None, 1), (None, 64), (MaskableEpisodeBuffer if settings else EpisodeBuffer, 20)):
        agent = make_agent(folder, TextVecEnv(native(folder, **settings)), kind, rollout_buffer_class=buffer)
        excite(agent)
        collected(agent)
        for batch in agent.rollout_buffer.get(size):
            masks = {"action_masks": batch.action_masks} if settings else {}
            actions = batch.actions.long().flatten()
            values, log_probs, entropies = agent.policy.evaluate_actions(batch.observations, actions, **masks)
            error = (values.flatten() - batch.returns) ** 2
            ((-batch.advantages * log_probs + error - 0.1 * entropies).sum() / 64).backward()
        found.append(torch.cat([p.grad.flatten() for p in agent.policy.parameters()]))
    assert found[0].abs().max() > 0.1
    for gradients in found[1:]:
        assert torch.allclose(gradients, found[0], atol=1e-5)


def test_minibatches_of_whole_episodes(folder: str) -> None:
    agent = make_agent(folder, TextVecEnv(native(folder, 8)), n_steps=20)
    rollout = collected(agent)
    begins = rollout["episode_starts"].T.copy()
    begins[:, 0] = 1
    episode = (np.cumsum(begins.ravel()) - 1).astype(int)
    tags = np.arange(160, dtype=np.float32).reshape(8, 20).T
    agent.rollout_buffer.returns = tags.copy()
    for _ in range(2):  # epochs
        batches = [batch.returns.numpy().astype(int) for batch in agent.rollout_buffer.get(40)]
        assert len(batches) == 4
        assert max(map(len, batches)) <= 40 + 2 * 6
        assert sorted(np.concatenate(batches).tolist()) == list(range(160))
        parts = [set(episode[batch].tolist()) for batch in batches]
        assert sum(map(len, parts)) == len(set.union(*parts)) == episode[-1] + 1


def test_its_update_is_that_of_our_ppo(folder: str, tiny_lm: CausalLM) -> None:
    """One rollout of ours, put into SB3's buffer: the same losses, gradients and, after two epochs, weights."""
    settings: dict[str, Any] = {"model": tiny_lm, "prompts": PROMPTS, "reward": count_e, "max_new_tokens": 6}
    envs = gym.make_vec("textenv/Text-v0", num_envs=16, autoreset_mode=AutoresetMode.DISABLED, kl_coef=0.1, **settings)
    ours = ppo.PPO(
        envs,
        ppo.PPOConfig(
            learning_rate=1e-3,
            embedding_learning_rate=8e-3,
            value_learning_rate=3e-2,
            epochs=2,
            minibatch_size=None,
            value_clip=None,
            value_coef=0.2,
            entropy_coef=0.01,
            whiten_advantages=False,
            lam=0.9,
            max_grad_norm=0.7,
        ),
    )
    rollout = collect(ours.envs, ours.policy, torch.Generator().manual_seed(0), seed=0)
    for group in ours.optimizer.param_groups:
        group["lr"] = group["peak"]
    theirs = make_agent(
        folder,
        TextVecEnv(native(folder, 1)),
        n_steps=rollout.tokens,
        batch_size=rollout.tokens,
        n_epochs=2,
        gamma=1.0,
        gae_lambda=0.9,
        vf_coef=0.1,  # ours is halved
        ent_coef=0.01,
        normalize_advantage=False,
        max_grad_norm=0.7,
        learning_rate=1e-3,
        policy_kwargs={"embedding_rate": 8.0, "value_rate": 30.0},
    )
    theirs.set_logger(configure(None, []))
    width = theirs.observation_space["input_ids"].shape[0]
    places = np.arange(width)[None]
    for row in range(16):
        ids = np.ones((1, width), dtype=np.int64)
        ids[0, : rollout.input_ids.shape[1]] = rollout.input_ids[row]
        for step in range(int(rollout.mask[row].sum())):
            length = int(rollout.starts[row]) + step
            theirs.rollout_buffer.add(
                {"input_ids": np.where(places < length, ids, 1), "attention_mask": (places < length).astype(np.int8)},
                ids[:, length],
                rollout.rewards[row, step : step + 1],
                np.array([step == 0]),
                torch.tensor([rollout.values[row, step]]),
                torch.tensor([rollout.log_probs[row, step]]),
            )
    theirs.rollout_buffer.compute_returns_and_advantage(torch.zeros(1), np.array([True]))
    gradients: dict[str, list[torch.Tensor]] = {"ours": [], "theirs": []}

    def keep(name: str, parameters: Any) -> Callable[..., None]:
        return lambda *_: gradients[name].append(torch.cat([p.grad.flatten().clone() for p in parameters]))

    ours.optimizer.register_step_pre_hook(keep("ours", list(ours.policy.parameters())))
    theirs.policy.optimizer.register_step_pre_hook(keep("theirs", list(theirs.policy.parameters())))
    start = torch.cat([p.detach().flatten() for p in ours.policy.parameters()])
    metrics = ours.update(rollout)
    theirs.train()
    logged = theirs.logger.name_to_value
    assert logged["train/policy_gradient_loss"] == pytest.approx(metrics["train/policy_loss"], abs=1e-4)
    assert logged["train/value_loss"] == pytest.approx(2 * metrics["train/value_loss"], abs=1e-4)
    assert len(gradients["ours"]) == len(gradients["theirs"]) == 2
    for mine, its in zip(gradients["ours"], gradients["theirs"], strict=True):
        assert mine.norm() > 0.01
        assert (mine - its).norm() < 1e-4 * mine.norm()
    moved = [
        torch.cat([p.detach().flatten() for p in them.parameters()]) - start for them in (ours.policy, theirs.policy)
    ]
    assert (moved[0] - moved[1]).norm() < 1e-3 * moved[0].norm()  # Adam divides small gradients by their size


@pytest.mark.parametrize("kind", [PPO, A2C, MaskablePPO])
def test_it_learns(folder: str, kind: Any) -> None:
    settings = {"top_k": 100} if kind is MaskablePPO else {}
    envs = VecMonitor(TextVecEnv(native(folder, 32, kl_coef=0.0, **settings)))
    rates = {"embedding_rate": 0.1, "value_rate": 0.3}
    steps = {"n_steps": 6} if kind is A2C else {"n_steps": 12, "batch_size": 192}
    agent = make_agent(folder, envs, kind, learning_rate=1e-2, gae_lambda=1.0, policy_kwargs=rates, **steps)
    watch = Watch()
    agent.learn(4000, callback=watch)
    scores = [info["score"] for infos in watch.infos for info in infos if "score" in info]
    assert np.mean(scores[-100:]) > 3 * np.mean(scores[:100])


@pytest.mark.parametrize(("shift", "inside"), [(0.0, 2), (0.2, 0)])
def test_the_benchmark_tells_curves_apart(
    shift: float, inside: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def made_up(arguments: Any, seed: int, more: float = 0.0) -> list[tuple[int, float, float]]:
        noise = np.random.default_rng(seed + round(100 * more)).normal(scale=0.05, size=400)
        return [(step, step / 400 + more + noise[step - 1], 1.0) for step in range(1, 401)]

    monkeypatch.setattr(sb3_agreement, "run_ours", made_up)
    monkeypatch.setattr(sb3_agreement, "run_sb3", partial(made_up, more=shift))
    arguments = sb3_agreement.Arguments(total_steps=400, intervals=2, out=tmp_path)
    for _ in range(2):  # the second time from the files
        sb3_agreement.main(arguments)
        printed = capsys.readouterr().out
        assert f"within the interval at {inside} of 2" in printed
        assert "0.25" in printed
    assert len(list(tmp_path.glob("*.json"))) == 10


@pytest.mark.slow
def test_the_benchmark_runs() -> None:
    arguments = sb3_agreement.Arguments(total_steps=96, num_envs=4, sb3_steps=24)
    for run in (sb3_agreement.run_ours, sb3_agreement.run_sb3):
        episodes = run(arguments, 0)
        assert len(episodes) >= 4
        assert all(0 < step <= 200 and abs(score) <= 1 for step, score, _ in episodes)


# -- the KL --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"kl_estimator": "full"}, {"kl_mode": "lump"}, {"temperature": 0.7}])
def test_the_reward_holds_the_kl_of_the_policy(folder: str, settings: dict[str, Any]) -> None:
    envs = TextVecEnv(native(folder, kl_coef=0.5, **settings))
    agent = make_agent(folder, envs, policy_kwargs={"temperature": settings.get("temperature", 1.0)})
    rollout = collected(agent)
    for infos in rollout["infos"]:  # the policy is the reference
        assert all(abs(info.get("kl", 0.0)) < 1e-5 for info in infos)
    with torch.no_grad():
        agent.policy.text.model.get_output_embeddings().weight.mul_(1.1)
    rollout = collected(agent)
    scores = 0
    for step, infos in enumerate(rollout["infos"]):
        for row, info in enumerate(infos):
            if settings.get("kl_mode") == "lump":
                expected = info["score"] - 0.5 * sum(info["token_kl"]) if "score" in info else 0.0
            else:
                assert info["logprob"] == pytest.approx(rollout["log_probs"][step, row], abs=1e-6)
                expected = info.get("score", 0.0) - 0.5 * info["kl"]
                if "kl_estimator" not in settings:
                    assert info["kl"] == pytest.approx(info["logprob"] - info["ref_logprob"], abs=1e-6)
            assert rollout["rewards"][step, row] == pytest.approx(expected, abs=1e-5)
            scores += "score" in info
    assert scores > 4


def test_the_policy_that_acts_is_recognized(folder: str) -> None:
    envs, others = TextVecEnv(native(folder)), TextVecEnv(native(folder))
    agent = make_agent(folder, envs)
    obs, elsewhere = envs.reset(), others.reset()
    agent.predict(elsewhere)  # as EvalCallback does within a rollout
    for its_own in (True, False, True):
        actions, _ = agent.predict(obs)
        agent.predict(elsewhere)
        if not its_own:  # another agent acts here
            actions = (actions + 1) % 300
        obs, _, _, infos = envs.step(actions)
        assert all((info["logprob"] < 0) == its_own for info in infos)

    class Own:
        def action_log_prob(self, actions: Any) -> Any:
            return np.full(len(actions), -0.5)

    others.text_env.attach_policy(Own())
    _, _, _, infos = others.step(actions)
    assert all(info["logprob"] == -0.5 for info in infos)


def single(folder: str, **settings: Any) -> Any:
    keywords = {"model": folder, "prompts": PROMPTS, "reward": zero, "kl_coef": 1.0, "max_new_tokens": 6, **settings}
    return gym.make("textenv/Text-v0", **keywords)


def zero(completions: Sequence[str], **_: Any) -> list[float]:
    """Pays nothing, so that what is left of a reward is the KL."""
    return [0.0] * len(completions)


@pytest.mark.parametrize("kind", [PPO, A2C, MaskablePPO])
@pytest.mark.parametrize("settings", [{}, {"kl_estimator": "full"}, {"kl_mode": "lump"}], ids=["k1", "full", "lump"])
def test_an_environment_in_sb3s_own_wrappers_knows_the_policy_too(
    folder: str, kind: Any, settings: dict[str, Any]
) -> None:
    settings |= {"top_k": 9} if kind is MaskablePPO else {}
    for env in (single(folder, **settings), make_vec_env(lambda: single(folder, **settings), n_envs=3)):
        agent = make_agent(folder, env, kind, **({} if kind is A2C else {"batch_size": 16}))
        kl = [info["token_kl"] for infos in collected(agent)["infos"] for info in infos if "token_kl" in info]
        assert len(kl) > 1
        assert all(abs(each) < 1e-5 for row in kl for each in row)  # the policy is the reference
        with torch.no_grad():
            agent.policy.text.model.get_output_embeddings().weight.mul_(1.1)
        rollout = collected(agent)
        for step, infos in enumerate(rollout["infos"]):
            for row, info in enumerate(infos):
                if "logprob" in info:
                    assert info["logprob"] == pytest.approx(rollout["log_probs"][step, row], abs=1e-6)
        assert max(abs(info.get("kl", 0.0)) for infos in rollout["infos"] for info in infos) > 1e-3


def test_kl_in_evaluations_of_environments_in_sb3s_own_wrappers(folder: str, tmp_path: Path) -> None:
    agent = make_agent(folder)
    for env in (Monitor(single(folder)), make_vec_env(lambda: single(folder), n_envs=3)):
        rewards, _ = evaluate_policy(agent, env, 4, deterministic=False, return_episode_rewards=True)
        assert np.abs(rewards).max() < 1e-4
    evaluation = EvalCallback(
        make_vec_env(lambda: single(folder), n_envs=2),
        n_eval_episodes=4, eval_freq=4, log_path=str(tmp_path), deterministic=False, verbose=0,
    )  # fmt: skip
    learner = make_agent(folder, single(folder), batch_size=16, learning_rate=1e-12)
    watch = Watch()
    learner.learn(16, callback=[evaluation, watch])  # evaluations between the steps of a rollout
    assert np.abs(np.load(tmp_path / "evaluations.npz")["results"]).max() < 1e-4
    kl = [each for infos in watch.infos for info in infos for each in info.get("token_kl", ())]
    assert len(kl) > 4
    assert max(map(abs, kl)) < 1e-5
    masked = make_agent(folder, single(folder, top_k=5), MaskablePPO, batch_size=16)
    rewards, _ = evaluate_masked(
        masked, Monitor(single(folder, top_k=5)), 4, deterministic=False, return_episode_rewards=True
    )
    assert np.abs(rewards).max() < 1e-4
    with pytest.raises(TextEnvError, match="MaskablePPO"):
        evaluate_policy(agent, Monitor(single(folder, top_k=5)), 1)
    with pytest.raises(TextEnvError, match=r"temperature=1\.0, the environment 0\.7"):
        evaluate_policy(agent, Monitor(single(folder, temperature=0.7)), 1)


def test_an_environment_in_another_process_is_refused(folder: str) -> None:
    envs = make_vec_env(
        lambda: single(folder), n_envs=2, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"}
    )
    try:
        agent = make_agent(folder, envs)
        with pytest.raises(TextEnvError, match=r"another process or thread.*DummyVecEnv instead of SubprocVecEnv"):
            agent.learn(32)
        with pytest.raises(TextEnvError, match="another process"):
            evaluate_policy(agent, envs, 1)
    finally:
        envs.close()


def test_kl_in_an_evaluation(folder: str) -> None:
    """The environment that SB3 evaluates in pays the same reward as the one that it learns in."""

    def lowest(evaluate: Any, agent: Any, **settings: Any) -> float:
        envs = VecMonitor(TextVecEnv(native(folder, kl_coef=100.0, **settings)))
        return float(min(evaluate(agent, envs, 4, deterministic=False, return_episode_rewards=True)[0]))

    agent = make_agent(folder)
    assert lowest(evaluate_policy, agent) >= -1e-3
    with pytest.raises(TextEnvError, match="MaskablePPO"):
        lowest(evaluate_policy, agent, top_k=5)
    masked = make_agent(folder, TextVecEnv(native(folder, top_k=5)), MaskablePPO)
    assert lowest(evaluate_masked, masked, top_k=5) >= -1e-3


# -- what SB3 surrounds it with ------------------------------------------------------------------------------------


def test_save_and_load(folder: str, tmp_path: Path) -> None:
    agent = make_agent(folder)
    agent.learn(64)
    agent.save(tmp_path / "agent.zip")
    obs = agent.env.reset()
    for env in (None, TextVecEnv(native(folder, 3))):
        loaded = PPO.load(tmp_path / "agent.zip", env)
        for mine, its in zip(agent.policy.parameters(), loaded.policy.parameters(), strict=True):
            assert torch.equal(mine, its)
        assert np.array_equal(agent.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
        old, new = (them.policy.optimizer.state_dict()["state"] for them in (agent, loaded))
        assert len(old) == len(new) == len(list(agent.policy.parameters()))
        assert all(torch.equal(old[key]["exp_avg"], new[key]["exp_avg"]) for key in old)
    loaded.learn(48, reset_num_timesteps=False)
    assert loaded.num_timesteps == 64 + 48
    agent.policy.save(str(tmp_path / "policy.pt"))
    policy = CausalLMPolicy.load(str(tmp_path / "policy.pt"))
    assert np.array_equal(agent.predict(obs, deterministic=True)[0], policy.predict(obs, deterministic=True)[0])
    agent.policy.text.save(tmp_path / "exported")
    exported = CausalLM.from_pretrained(tmp_path / "exported")
    logits = exported.next_token_logits(obs["input_ids"], obs["attention_mask"].sum(axis=1))
    assert logits.argmax(dim=1).tolist() == agent.predict(obs, deterministic=True)[0].tolist()


def test_neither_reference_nor_reward_is_in_optimizer_or_zip(folder: str) -> None:
    agent = make_agent(folder)
    agent.learn(64)
    own = {id(p) for p in agent.policy.parameters()}
    optimized = [p for group in agent.policy.optimizer.param_groups for p in group["params"]]
    assert len(optimized) == len(own)
    assert {id(p) for p in optimized} == own
    reference = agent.env.text_env.reference.model
    assert not own & {id(p) for p in reference.parameters()}
    written = io.BytesIO()
    agent.save(written)
    with zipfile.ZipFile(written) as archive:
        data = json.loads(archive.read("data"))
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        with archive.open("policy.pth") as file:
            names = set(torch.load(file, weights_only=True))
    assert names == set(agent.policy.state_dict())
    assert {name.split(".")[1] for name in names} == {"model", "value_head"}
    assert data["policy_kwargs"] == {"model": folder}
    assert "env" not in data
    assert sizes["data"] < 60_000  # no weights in it
    assert b"count_e" not in written.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [PPO, A2C, MaskablePPO])
def test_on_movie_reviews(kind: Any, tmp_path: Path) -> None:
    """The stock classes with their callbacks and loggers, on the real thing."""
    settings: dict[str, Any] = {"top_k": 50} if kind is MaskablePPO else {}
    envs, evaluation = (
        VecMonitor(
            TextVecEnv(
                gym.make_vec("textenv/MovieReview-v0", num_envs=4, split=split, max_prompt_tokens=13, **settings)
            )
        )
        for split in ("train", "heldout")
    )
    agent = make_agent("bundled", envs, kind, n_steps=14, **({} if kind is A2C else {"batch_size": 28}))
    agent.set_logger(configure(str(tmp_path), ["csv"]))
    callbacks: list[BaseCallback] = [CheckpointCallback(28, str(tmp_path / "checkpoints"))]
    if kind is not MaskablePPO:  # sb3-contrib has one of its own, which warns about masks
        callbacks.append(EvalCallback(evaluation, n_eval_episodes=2, eval_freq=14, log_path=str(tmp_path), verbose=0))
    agent.learn(112, callback=callbacks, log_interval=1)
    assert agent.num_timesteps == 112
    agent.logger.close()
    log = (tmp_path / "progress.csv").read_text()
    assert "rollout/ep_rew_mean" in log
    assert len(list((tmp_path / "checkpoints").glob("*.zip"))) == 1
    loaded = kind.load(next((tmp_path / "checkpoints").glob("*.zip")), envs)
    loaded.learn(56, reset_num_timesteps=False)


# -- the vector environment ----------------------------------------------------------------------------------------


def test_it_steps_as_the_vector_environment_of_sb3(folder: str) -> None:
    """The same seeds and actions as in a DummyVecEnv: the same observations, rewards, ends and infos."""
    make = partial(
        gym.make, "textenv/Text-v0", model=folder, prompts=PROMPTS, reward=count_e, max_new_tokens=3, top_k=40
    )
    theirs = DummyVecEnv([make, make, make])
    ours = TextVecEnv(native(folder, 3, max_new_tokens=3, top_k=40))
    assert (ours.observation_space, ours.action_space) == (theirs.observation_space, theirs.action_space)
    assert ours.seed(5) == theirs.seed(5)
    assert_same(ours.reset(), theirs.reset())
    assert_same(ours.reset_infos, theirs.reset_infos)
    actions = np.random.default_rng(0)
    ends = 0
    for _ in range(10):
        chosen = actions.integers(0, 300, size=3)
        mine, its = ours.step(chosen), theirs.step(chosen)
        assert_same(mine, its)
        assert mine[1].dtype == its[1].dtype
        assert_same(ours.reset_infos, theirs.reset_infos)
        assert_same(ours.env_method("action_masks"), theirs.env_method("action_masks"))
        ends += int(mine[2].sum())
    assert ends >= 9
    ours.seed(7)
    theirs.seed(7)
    ours.set_options({"prompt": "a plot"})
    theirs.set_options({"prompt": "a plot"})
    assert_same(ours.reset(), theirs.reset())
    assert [info["prompt"] for info in ours.reset_infos] == ["a plot"] * 3
    assert_same(ours.reset(), theirs.reset())  # seeds and options are used once
    ours.close()


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            assert_same(first, second)
    elif isinstance(one, (np.ndarray, float)):
        assert np.allclose(one, other, atol=1e-6)
    else:
        assert one == other


def test_what_it_returns_is_the_callers(folder: str) -> None:
    envs = TextVecEnv(native(folder))
    agent = make_agent(folder, envs)
    obs: Any = envs.reset()
    actions, _ = agent.predict(obs)
    obs["input_ids"][:] = 0
    _, _, _, infos = envs.step(actions)
    assert all(info["logprob"] < 0 for info in infos)


def test_a_time_limit_is_no_end(folder: str) -> None:
    settings = {"model": folder, "prompts": PROMPTS, "reward": count_e, "max_new_tokens": 6}
    envs = gym.make_vec(
        "textenv/Text-v0",
        num_envs=1,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        wrappers=[partial(TimeLimit, max_episode_steps=2)],
        **settings,
    )
    agent = make_agent(folder, TextVecEnv(envs), n_steps=12, batch_size=12, gamma=1.0)
    excite(agent)
    rollout = collected(agent)
    cut = [info[0] for info in rollout["infos"] if info[0]["TimeLimit.truncated"]]
    assert len(cut) > 2
    assert all("terminal_observation" in info and "score" not in info for info in cut)
    for step, (info,) in enumerate(rollout["infos"]):
        paid = -0.035 * info["kl"] + info.get("score", 0.0)
        if info["TimeLimit.truncated"]:  # SB3 adds the value of where it was cut
            obs = {name: torch.from_numpy(value)[None] for name, value in info["terminal_observation"].items()}
            paid += agent.policy.predict_values(obs).item()
        assert rollout["rewards"][step, 0] == pytest.approx(paid, abs=1e-5)


def test_episode_statistics_of_gymnasium_reach_the_log(folder: str) -> None:
    agent = make_agent(folder, TextVecEnv(RecordEpisodeStatistics(native(folder, max_new_tokens=3))))
    agent.learn(64)
    assert len(agent.ep_info_buffer) > 10
    assert all(0 < episode["l"] <= 3 for episode in agent.ep_info_buffer)


def test_attributes_methods_and_rendering(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    envs = TextVecEnv(native(folder, 3, top_k=4, render_mode="human"))
    envs.reset()
    assert envs.get_attr("kl_coef") == [0.035] * 3
    assert envs.get_attr("num_envs", indices=1) == [3]
    assert envs.has_attr("action_masks")
    assert not envs.has_attr("nothing")
    masks = envs.env_method("action_masks", indices=[0, 2])
    assert [mask.sum() for mask in masks] == [4, 4]
    assert envs.env_is_wrapped(TimeLimit) == [False] * 3
    assert list(envs.get_images()) == [None] * 3
    envs.render()
    assert capsys.readouterr().out.count("\n") == 3
    envs.set_attr("render_mode", None)
    assert envs.text_env.render_mode is None
    with pytest.raises(TextEnvError, match="share"):
        envs.set_attr("render_mode", "ansi", indices=[0])


def test_features_of_tokens(folder: str) -> None:
    features = TokenFeatures(TextVecEnv(native(folder)).observation_space)
    ids = torch.tensor([[3.0, 0.0, 1.0]])  # SB3 hands numbers over as floats
    found = features({"input_ids": ids, "attention_mask": torch.tensor([[1.0, 1.0, 0.0]])}).reshape(3, 300)
    assert found.sum(dim=1).tolist() == [1, 1, 0]
    assert (found[0, 3], found[1, 0]) == (1, 1)
    with pytest.raises(TextEnvError, match="text environment"):
        TokenFeatures(gym.spaces.Box(0, 1, (3,)))


# -- worlds of several turns ---------------------------------------------------------------------------------------


class Asks:
    """A world of three turns that pays for every letter e."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        self.turn = 0
        return "the film", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        return " a plot", action.count("e") / 4, self.turn == 3, False, {}


def in_turns(folder: str, num_envs: int = 4, world: Any = "guess_number", **settings: Any) -> Any:
    keywords = {"world": world, "max_turns": 3, "max_new_tokens": 4, "max_tokens": 80, **settings}
    return gym.make_vec("textenv/Text-v0", num_envs=num_envs, model=folder, **keywords)


@pytest.mark.parametrize("world", ["guess_number", "word_memory"])
@pytest.mark.parametrize("kind", [PPO, A2C, MaskablePPO])
def test_in_a_world_the_kl_is_0_and_the_first_ratio_1(folder: str, kind: Any, world: str) -> None:
    masked = kind is MaskablePPO
    envs = in_turns(folder, world=world, **({"top_k": 9} if masked else {}))
    agent = make_agent(folder, TextVecEnv(envs), kind, n_steps=24)
    rollout = collected(agent)
    infos = [info for step in rollout["infos"] for info in step]
    assert max(abs(info["kl"]) for info in infos) < 1e-5
    finished = [info for info in infos if "turns" in info]
    assert len(finished) > 2
    assert max(len(info["turns"]) for info in finished) == 3
    for batch in agent.rollout_buffer.get(20):
        masks = {"action_masks": batch.action_masks} if masked else {}
        actions = batch.actions.long().flatten()
        _, log_probs, _ = agent.policy.evaluate_actions(batch.observations, actions, **masks)
        assert ((log_probs - batch.old_log_prob).exp() - 1).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", [PPO, A2C, MaskablePPO])
def test_it_learns_in_a_world(folder: str, kind: Any) -> None:
    settings = {"top_k": 100} if kind is MaskablePPO else {}
    envs = VecMonitor(TextVecEnv(in_turns(folder, 32, Asks, kl_coef=0.0, **settings)))
    rates = {"embedding_rate": 0.1, "value_rate": 0.3}
    steps = {"n_steps": 12} if kind is A2C else {"n_steps": 12, "batch_size": 192}
    agent = make_agent(folder, envs, kind, learning_rate=1e-2, gae_lambda=1.0, policy_kwargs=rates, **steps)
    watch = Watch()
    agent.learn(6000, callback=watch)
    finished = [info for infos in watch.infos for info in infos if "turns" in info]
    paid = [sum(turn.reward for turn in info["turns"]) for info in finished]
    assert np.mean(paid[-60:]) > 2 * np.mean(paid[:60]) > 0


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"model": object()}, "a name or a folder"),
        ({"model": "bundled"}, "300.*'bundled' has 2,?048|'bundled' has"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"value_rate": float("inf")}, "value_rate=inf"),
        ({"use_sde": True}, "use_sde"),
    ],
)
def test_bad_arguments_of_the_policy(folder: str, keywords: dict[str, Any], message: str) -> None:
    envs = TextVecEnv(native(folder))
    with pytest.raises(TextEnvError, match=message):
        CausalLMPolicy(envs.observation_space, envs.action_space, lambda _: 1e-3, **{"model": folder, **keywords})
    with pytest.raises(TextEnvError, match="text environment"):
        CausalLMPolicy(gym.spaces.Box(0, 1, (3,)), envs.action_space, lambda _: 1e-3, model=folder)


def test_bad_environments(folder: str) -> None:
    with pytest.raises(TextEnvError, match="SAME_STEP"):
        TextVecEnv(native(folder, autoreset_mode=AutoresetMode.DISABLED))
    with pytest.raises(TextEnvError, match="is a single environment"):
        TextVecEnv(gym.make("textenv/Text-v0", model=folder, prompts=PROMPTS))  # type: ignore[arg-type]
    modes = {"autoreset_mode": AutoresetMode.SAME_STEP}
    with pytest.raises(TextEnvError, match="no text environment"):
        TextVecEnv(gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync", vector_kwargs=modes))
    envs = TextVecEnv(native(folder, 2))
    envs.set_options([{"prompt": "a plot"}, {}])
    with pytest.raises(TextEnvError, match="different options"):
        envs.reset()


def test_a_policy_of_another_temperature_or_without_masks(folder: str) -> None:
    with pytest.raises(TextEnvError, match=r"temperature=1\.0, the environment 0\.7"):
        make_agent(folder, TextVecEnv(native(folder, temperature=0.7))).learn(16)
    with pytest.raises(TextEnvError, match="MaskablePPO"):
        make_agent(folder, TextVecEnv(native(folder, top_k=5))).learn(16)


# -- their own networks, on texts of letters -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DQN, RecurrentPPO])
def test_stock_networks_learn_on_exact(kind: Any, tmp_path: Path) -> None:
    """Token ids as one-hot vectors; without a language model nothing is attached, and log pi is 0."""
    recurrent = kind is RecurrentPPO
    reward = gym.make("textenv/Exact-v0", max_new_tokens=3).unwrapped.batch.reward  # type: ignore[attr-defined]
    texts = ["".join(letters) for letters in itertools.product("abcdefg", repeat=3)]
    best = max(reward(prompts=["a"] * len(texts), completions=texts, completion_ids=[()] * len(texts)))
    envs = VecMonitor(TextVecEnv(gym.make_vec("textenv/Exact-v0", num_envs=8, max_new_tokens=3, kl_coef=0.0)))
    specific: dict[str, Any] = (
        {"n_steps": 32, "batch_size": 64, "learning_rate": 3e-3, "n_epochs": 4}
        if recurrent
        else {
            "learning_starts": 200,
            "gradient_steps": 4,
            "train_freq": 1,
            "learning_rate": 2e-3,
            "target_update_interval": 200,
            "exploration_fraction": 0.5,
        }
    )
    agent = kind(
        "MultiInputLstmPolicy" if recurrent else "MultiInputPolicy",
        envs,
        policy_kwargs={"features_extractor_class": TokenFeatures, **({"lstm_hidden_size": 32} if recurrent else {})},
        gamma=1.0,
        seed=0,
        **specific,
    )
    agent.learn(4000)
    after, _ = evaluate_policy(agent, envs, 8)
    assert after > 0.8 * best
    agent.save(tmp_path / "agent.zip")
    loaded = kind.load(tmp_path / "agent.zip", envs)
    again, _ = evaluate_policy(loaded, envs, 8)
    assert again == pytest.approx(after, abs=1e-6)
