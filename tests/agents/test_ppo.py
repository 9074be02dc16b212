"""PPO: it learns, it starts at ratio 1 and KL 0, it resumes bit for bit, and it refuses what it cannot do."""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from tests.conftest import build_lm, written_places
from tests.families import make_family
from textenv.agents import minibatches
from textenv.agents.ppo import PPO, PPOConfig
from textenv.models.causal_lm import CausalLM
from textenv.models.policy import TextPolicy
from textenv.rollouts.checkpoint import latest_checkpoint
from textenv.rollouts.collect import collect, sample_episodes
from textenv.testing import AgentContract
from textenv.types import TextEnvError

PROMPTS = ["the film", "a plot", "it"]
RATES: dict[str, Any] = {"embedding_learning_rate": 8e-4, "value_learning_rate": 3e-3}


def count_e(completions: Sequence[str], **_: Any) -> list[float]:
    """Pays for every letter e: easy to learn, and nothing is random about it."""
    return [float(text.count("e")) / 4 for text in completions]


def make_envs(lm: CausalLM, num_envs: int = 8, **settings: Any) -> Any:
    keywords = {"model": lm, "prompts": PROMPTS, "reward": count_e, "max_new_tokens": 6, "kl_mode": "lump", **settings}
    return gym.make_vec("textenv/Text-v0", num_envs=num_envs, autoreset_mode=AutoresetMode.DISABLED, **keywords)


def parameters(agent: PPO) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in agent.policy.parameters()])


class TestPPOContract(AgentContract):
    @pytest.fixture(autouse=True)
    def _model(self, tiny_lm: CausalLM) -> None:
        self.lm = tiny_lm

    def make_env(self) -> Any:
        return make_envs(self.lm)

    def make_agent(self, env: Any) -> PPO:
        return PPO(env, PPOConfig(learning_rate=1e-2, seed=3))

    def load_agent(self, folder: Path, env: Any) -> PPO:
        return PPO.load(folder, env)


def test_learns(tiny_lm: CausalLM) -> None:
    envs = make_envs(tiny_lm, 32, kl_coef=0.0)
    agent = PPO(envs, PPOConfig(learning_rate=1e-2, seed=1, lr_schedule="constant", **RATES))
    history: list[dict[str, float]] = []
    agent.learn(6000, progress=lambda steps, metrics: history.append(dict(metrics)))
    scores = [row["objective/score"] for row in history]
    assert np.mean(scores[-3:]) > np.mean(scores[:3]) + 0.5
    assert history[-1]["objective/kl"] > 1  # nothing holds it back


def test_the_kl_penalty_holds_it_back(tiny_lm: CausalLM) -> None:
    reached = {}
    for coef in (0.0, 0.5):
        agent = PPO(
            make_envs(tiny_lm, 32, kl_coef=coef), PPOConfig(learning_rate=3e-3, lr_schedule="constant", **RATES)
        )
        history: list[float] = []
        agent.learn(3000, progress=lambda steps, metrics, h=history: h.append(metrics["objective/kl"]))  # type: ignore[misc]
        reached[coef] = history[-1]
    assert reached[0.5] < 0.5 * reached[0.0]


@pytest.mark.parametrize("settings", [{}, {"top_k": 9}, {"top_p": 0.8}, {"temperature": 0.7}, {"kl_mode": "dense"}])
@pytest.mark.parametrize("value", ["head", "model"])
def test_starts_at_ratio_one_and_kl_zero(tiny_lm: CausalLM, settings: dict[str, Any], value: Any) -> None:
    agent = PPO(make_envs(tiny_lm, **settings), PPOConfig(value=value, epochs=1))
    rollout = collect(agent.envs, agent.policy, torch.Generator().manual_seed(0), seed=0)
    assert max(abs(kl) for episode in rollout.finished for kl in episode.kl) <= 1e-5
    assert not rollout.values.any()  # the value head starts at zero
    losses = agent.update(rollout)
    assert losses["train/first_ratio"] == pytest.approx(1.0, abs=1e-4)
    assert losses["train/approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert losses["train/clip_fraction"] == 0.0


def test_the_ratio_leaves_one_after_an_update(tiny_lm: CausalLM) -> None:
    agent = PPO(make_envs(tiny_lm), PPOConfig(learning_rate=1e-2, epochs=1))
    rollout = collect(agent.envs, agent.policy, torch.Generator().manual_seed(0), seed=0)
    agent.update(rollout)
    assert agent.update(rollout)["train/approx_kl"] > 1e-4


def test_dense_and_lump_kl_train_alike(tiny_lm: CausalLM) -> None:
    finals = []
    for mode in ("dense", "lump"):
        agent = PPO(make_envs(tiny_lm, kl_mode=mode), PPOConfig(seed=5))
        agent.learn(200)
        finals.append(parameters(agent))
    torch.testing.assert_close(finals[0], finals[1], atol=1e-4, rtol=1e-3)


def test_accumulated_gradients_equal_those_of_the_whole_minibatch(tiny_lm: CausalLM) -> None:
    finals = []
    for micro in (None, 3):
        agent = PPO(make_envs(tiny_lm), PPOConfig(seed=5, micro_batch_size=micro, learning_rate=1e-3))
        rollout = collect(agent.envs, agent.policy, torch.Generator().manual_seed(0), seed=0)
        agent.update(rollout)
        finals.append(parameters(agent))
    torch.testing.assert_close(finals[0], finals[1], atol=2e-5, rtol=1e-4)


def test_rows_of_a_pass_are_of_about_the_same_length() -> None:
    lengths, starts = np.array([9, 40, 8, 39, 7, 38, 7, 37] * 4), np.zeros(32, dtype=np.int64)
    parts = minibatches.split_by_length(lengths, lengths - starts, 10**6)
    assert [sorted(set(lengths[part.numpy()].tolist())) for part in parts] == [[37, 38, 39, 40], [7, 8, 9]]
    assert sorted(torch.cat(list(parts)).tolist()) == list(range(32))
    assert len(minibatches.split_by_length(lengths[:8], lengths[:8], 10**6)) == 1  # too few to part


def test_a_pass_has_no_more_tokens_than_there_is_room_for() -> None:
    lengths, starts = np.full(40, 30), np.full(40, 20)  # of which 10 are written
    assert [len(part) for part in minibatches.split_by_length(lengths, lengths - starts, 160)] == [16, 16, 8]
    assert [len(part) for part in minibatches.split_by_length(lengths, lengths - starts, 10)] == [
        8
    ] * 5  # but no fewer rows


def test_a_pass_keeps_no_more_activations_than_there_is_room_for(tiny_lm: CausalLM) -> None:
    lengths = np.array([30] * 5 + [20] * 7)
    parts = minibatches.split_by_length(lengths, lengths, 10**6, most=65)
    assert [len(part) for part in parts] == [2, 2, 2, 3, 3]  # the sixth text is padded to the length of the fifth
    assert sorted(torch.cat(list(parts)).tolist()) == list(range(12))
    assert [len(part) for part in minibatches.split_by_length(lengths, lengths, 10**6, most=9)] == [1] * 12
    assert minibatches.room_for_texts(tiny_lm) == 2**28 // tiny_lm.activation_bytes


def test_lengths_that_differ_change_no_gradient(tiny_lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for rows in (1, 10**6):
        monkeypatch.setattr(minibatches, "_ROWS", rows)
        monkeypatch.setattr(minibatches, "_LOGITS_CPU", rows)
        agent = PPO(make_envs(tiny_lm, 16, max_new_tokens=24), PPOConfig(minibatch_size=None, seed=5))
        agent.learn(1)
        found.append(parameters(agent))
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-5)


def test_gradient_checkpointing_changes_no_number() -> None:
    lm = build_lm()  # not one in which another test has left hooks, which would run through transformers
    found = []
    for checkpointing in (False, True):
        agent = PPO(make_envs(lm), PPOConfig(gradient_checkpointing=checkpointing, seed=5))
        agent.learn(60)
        found.append(parameters(agent))
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["gemma2", "gpt2"])
def test_gradient_checkpointing_of_other_architectures(name: str) -> None:
    lm = make_family(name)  # the first runs through transformers
    ids, lengths, starts = torch.arange(2, 20).view(2, 9), torch.full((2,), 9), torch.full((2,), 3)
    gradients = []
    for checkpointing in (False, True):
        policy = TextPolicy(lm, gradient_checkpointing=checkpointing)
        policy.evaluate(ids, lengths, written_places(starts, lengths, 9)).log_probs.sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-4)


def test_lora_learns_and_leaves_the_reference_alone(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm()
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    agent = PPO(
        make_envs(lm, 32, kl_coef=0.0),
        PPOConfig(learning_rate=3e-2, lora_rank=4, seed=1, lr_schedule="constant", **RATES),
    )
    history: list[dict[str, float]] = []
    agent.learn(5000, progress=lambda steps, metrics: history.append(dict(metrics)))
    scores = [row["objective/score"] for row in history]
    assert np.mean(scores[-3:]) > np.mean(scores[:3]) + 0.3
    assert history[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert history[0]["train/first_ratio"] == pytest.approx(1, abs=1e-4)
    after = {name.replace(".base_layer", ""): p for name, p in lm.model.named_parameters()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_lora_resumes_and_keeps_only_what_it_learns(make_lm: Callable[..., CausalLM], tmp_path: Path) -> None:
    config = PPOConfig(learning_rate=1e-2, lora_rank=2, seed=11)
    straight, stopped, resumed = (PPO(make_envs(make_lm()), config) for _ in range(3))
    straight.learn(300)
    stopped.learn(300, progress=lambda steps, _: None, checkpoints=tmp_path / "whole", checkpoint_every=2)
    checkpoint = latest_checkpoint(tmp_path / "whole")
    assert checkpoint is not None
    assert (checkpoint / "tensors.safetensors").stat().st_size < 0.5 * sum(
        p.nbytes for p in straight.policy.parameters()
    )
    resumed.learn(300, checkpoints=tmp_path / "whole")
    assert resumed.steps == straight.steps
    learned = [torch.cat([p.flatten() for p in agent.policy.learned.parameters()]) for agent in (straight, resumed)]
    assert torch.equal(learned[0], learned[1])


def test_target_kl_stops_the_passes(tiny_lm: CausalLM) -> None:
    config = PPOConfig(learning_rate=5e-2, epochs=8, target_kl=1e-3)
    agent = PPO(make_envs(tiny_lm), config)
    history: list[float] = []
    agent.learn(50, progress=lambda steps, metrics: history.append(metrics["train/updates"]))
    assert max(history) < 8
    unlimited = PPO(make_envs(tiny_lm), dataclasses.replace(config, target_kl=None))
    unlimited.learn(50, progress=lambda steps, metrics: history.append(metrics["train/updates"]))
    assert history[-1] == 8


def test_schedules(tiny_lm: CausalLM) -> None:
    rates: dict[str, list[float]] = {}
    for schedule in ("constant", "linear", "cosine"):
        agent = PPO(make_envs(tiny_lm), PPOConfig(learning_rate=1e-3, lr_schedule=schedule, lr_warmup=0.0))
        seen: list[tuple[int, float]] = []
        agent.learn(200, progress=lambda steps, m, s=seen: s.append((steps, m["train/learning_rate"])))  # type: ignore[misc]
        rates[schedule] = [rate for _, rate in seen]
        assert rates[schedule][0] == 1e-3
        if schedule == "linear":
            assert rates[schedule][1] == pytest.approx(1e-3 * (1 - seen[0][0] / 200))
        if schedule == "cosine":
            assert rates[schedule][1] == pytest.approx(0.5e-3 * (1 + np.cos(np.pi * seen[0][0] / 200)))
    assert set(rates["constant"]) == {1e-3}


def test_warmup_rises_linearly(tiny_lm: CausalLM) -> None:
    agent = PPO(make_envs(tiny_lm), PPOConfig(learning_rate=1e-3, lr_schedule="constant", lr_warmup=0.5))
    seen: list[tuple[int, float]] = []
    agent.learn(300, progress=lambda steps, metrics: seen.append((steps, metrics["train/learning_rate"])))
    assert len(seen) > 4
    for steps, rate in seen:
        assert rate == pytest.approx(1e-3 * min(1.0, steps / 150))


def test_an_outer_time_limit_bootstraps(tiny_lm: CausalLM) -> None:
    env = gym.wrappers.TimeLimit(
        gym.make("textenv/Text-v0", model=tiny_lm, prompts=PROMPTS, reward=count_e, max_new_tokens=50), 3
    )
    agent = PPO(env, PPOConfig(learning_rate=1e-2))
    assert agent.policy.value_head is not None
    torch.nn.init.constant_(agent.policy.value_head.bias, 2.0)
    rollout = collect(agent.envs, agent.policy, torch.Generator().manual_seed(2), seed=2)
    assert rollout.episodes == (None,)
    assert rollout.bootstrap.tolist() == pytest.approx([2.0])
    assert rollout.mask.sum() == 3
    agent.update(rollout)


def test_a_time_limit_with_lump_kl_is_refused(tiny_lm: CausalLM) -> None:
    settings: dict[str, Any] = {"model": tiny_lm, "prompts": PROMPTS, "reward": count_e, "max_new_tokens": 50}
    settings["kl_mode"] = "lump"
    agent = PPO(gym.wrappers.TimeLimit(gym.make("textenv/Text-v0", **settings), 2))
    with pytest.raises(TextEnvError, match="truncated an episode"):
        collect(agent.envs, agent.policy, torch.Generator().manual_seed(2), seed=2)


def test_a_reward_wrapper_reaches_the_agent_with_dense_kl_and_is_refused_with_lump(tiny_lm: CausalLM) -> None:
    def doubled(envs: Any) -> Any:
        return gym.wrappers.vector.TransformReward(envs, lambda reward: 2 * reward)

    generator = torch.Generator().manual_seed(0)
    dense = PPO(doubled(make_envs(tiny_lm, kl_mode="dense")))
    rollout = collect(dense.envs, dense.policy, generator, seed=0)
    earned = [2 * sum(episode.token_rewards) for episode in rollout.finished]
    np.testing.assert_allclose(rollout.rewards.sum(axis=1), earned, atol=1e-5)
    lump = PPO(doubled(make_envs(tiny_lm)))
    with pytest.raises(TextEnvError, match="kl_mode='dense'"):
        collect(lump.envs, lump.policy, generator, seed=0)


@pytest.mark.parametrize("episodes", [None, 20])
def test_resumes_bit_for_bit(tiny_lm: CausalLM, tmp_path: Path, episodes: int | None) -> None:
    class StopError(Exception):
        pass

    config = PPOConfig(learning_rate=5e-3, seed=11, minibatch_size=4, episodes=episodes)
    steps = 50 * (episodes or 8)
    whole: list[dict[str, float]] = []
    straight = PPO(make_envs(tiny_lm, kl_target=3.0, kl_horizon=20), config)
    straight.learn(steps, progress=lambda steps, metrics: whole.append({"steps": steps, **metrics}))

    parts: list[dict[str, float]] = []

    def until_third(steps: int, metrics: Any) -> None:
        parts.append({"steps": steps, **metrics})
        if len(parts) == 5:
            raise StopError

    with pytest.raises(StopError):
        PPO(make_envs(tiny_lm, kl_target=3.0, kl_horizon=20), config).learn(
            steps, progress=until_third, checkpoints=tmp_path, checkpoint_every=2
        )
    del parts[4:]  # the last checkpoint was after the fourth iteration
    resumed = PPO(make_envs(tiny_lm, kl_target=3.0, kl_horizon=20), config)
    resumed.learn(steps, progress=lambda s, m: parts.append({"steps": s, **m}), checkpoints=tmp_path)
    assert torch.equal(parameters(resumed), parameters(straight))

    def timeless(rows: list[dict[str, float]]) -> list[dict[str, float]]:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]

    assert timeless(parts) == timeless(whole)


def test_other_settings_do_not_resume(tiny_lm: CausalLM, tmp_path: Path) -> None:
    PPO(make_envs(tiny_lm), PPOConfig()).learn(50, checkpoints=tmp_path)
    with pytest.raises(TextEnvError, match=r"clip was 0\.2, is 0\.3"):
        PPO(make_envs(tiny_lm), PPOConfig(clip=0.3)).learn(50, checkpoints=tmp_path)


@pytest.mark.slow
def test_a_killed_run_resumes_with_the_numbers_of_one_that_was_not(tiny_lm: CausalLM, tmp_path: Path) -> None:
    tiny_lm.model.save_pretrained(tmp_path / "model")
    tiny_lm.tokenizer.save_pretrained(tmp_path / "model")
    arguments = [
        "--env", "textenv/Text-v0", "--model", str(tmp_path / "model"), "--reward", '{"name":"length","target":5}',
        "--total-steps", "1500", "--num-envs", "8", "--checkpoint-every", "1", "--max-new-tokens", "6",
        "--eval-episodes", "4", "--threads", "1",
    ]  # fmt: skip

    def command(out: str) -> list[str]:
        return [sys.executable, "-m", "textenv", "train", "--out", str(tmp_path / out), *arguments]

    subprocess.run(command("whole"), check=True, capture_output=True)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    for _ in range(3):
        before = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        with subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < before + 3):
                time.sleep(0.01)
            process.kill()
    done = subprocess.run(command("killed"), check=True, capture_output=True, text=True)
    assert "Going on from the checkpoint" in done.stdout

    def rows(out: str) -> list[dict[str, Any]]:
        lines = (tmp_path / out / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]

    assert rows("killed") == rows("whole")
    weights = [(tmp_path / out / "policy" / "model.safetensors").read_bytes() for out in ("whole", "killed")]
    assert weights[0] == weights[1]


def test_save_and_load_keep_the_policy_and_its_values(tiny_lm: CausalLM, tmp_path: Path) -> None:
    for value in ("head", "model"):
        agent = PPO(make_envs(tiny_lm), PPOConfig(learning_rate=1e-2, value=value))
        agent.learn(100)
        agent.save(tmp_path / value)
        again = PPO.load(tmp_path / value, make_envs(tiny_lm))
        assert torch.equal(parameters(agent), parameters(again))
        assert (again.steps, again.config) == (agent.steps, agent.config)


def test_a_folder_without_an_agent_is_refused(tiny_lm: CausalLM, tmp_path: Path) -> None:
    with pytest.raises(TextEnvError, match="holds no PPO agent"):
        PPO.load(tmp_path, make_envs(tiny_lm))


def test_samples_come_in_the_order_of_the_prompts(tiny_lm: CausalLM) -> None:
    agent = PPO(make_envs(tiny_lm, 3, max_prompt_tokens=20))
    prompts = ["one", "two", "three", "four", "five"]
    episodes = sample_episodes(agent.envs, agent.policy, None, prompts)
    assert [episode.prompt for episode in episodes] == prompts


def test_an_environment_that_resets_by_itself_is_refused(tiny_lm: CausalLM) -> None:
    envs = gym.make_vec("textenv/Text-v0", num_envs=2, model=tiny_lm, prompts=PROMPTS, reward=count_e)
    with pytest.raises(TextEnvError, match=r"AutoresetMode\.DISABLED"):
        PPO(envs)
    with pytest.raises(TextEnvError, match="no text environment"):
        PPO(gym.make("CartPole-v1"))


@pytest.mark.parametrize(
    "setting",
    [
        {"learning_rate": 0.0}, {"clip": -1.0}, {"gamma": 1.1}, {"epochs": 0}, {"minibatch_size": 0},
        {"lr_schedule": "step"}, {"value": "both"}, {"precision": "half"}, {"target_kl": 0.0}, {"entropy_coef": -1.0},
    ],
)  # fmt: skip
def test_settings_are_checked(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(TextEnvError, match=name):
        PPOConfig(**setting)


def test_a_diverging_run_says_what_to_do(tiny_lm: CausalLM) -> None:
    agent = PPO(make_envs(tiny_lm), PPOConfig())
    rollout = collect(agent.envs, agent.policy, torch.Generator().manual_seed(0), seed=0)
    rollout.log_probs[:] = -np.inf
    with pytest.raises(TextEnvError, match="Lower learning_rate"):
        agent.update(rollout)
