"""Every agent keeps the contract, learns, resumes bit for bit, and refuses what it cannot do."""

import dataclasses
import importlib
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from tests.agents.test_ppo import PROMPTS, count_e, make_envs
from textenv import plugins
from textenv.agents import config_of, find, names
from textenv.agents.a2c import A2CConfig
from textenv.agents.agent import Agent
from textenv.agents.best_of_n import BestOfN, BestOfNConfig
from textenv.agents.config import AgentConfig
from textenv.agents.environment import split_kl_penalty
from textenv.agents.expert_iteration import ExpertIteration, ExpertIterationConfig
from textenv.agents.grpo import GRPO, GRPOConfig
from textenv.agents.guided import Guided, GuidedConfig
from textenv.agents.mac import MAC, MACConfig
from textenv.agents.nlpo import NLPO, NLPOConfig
from textenv.agents.online_dpo import OnlineDPO, OnlineDPOConfig
from textenv.agents.reinforce import REINFORCE, REINFORCEConfig
from textenv.agents.rloo import RLOO, RLOOConfig
from textenv.agents.soft_q import SoftQ, SoftQConfig
from textenv.analysis.exact import Outcome
from textenv.compare.plan import Budget, ComparedTask
from textenv.compare.runs import Evaluator
from textenv.models.causal_lm import CausalLM
from textenv.rewards.normalize import Normalize
from textenv.rollouts.collect import Rollout, text_env
from textenv.testing import AgentContract
from textenv.types import TextEnvError

NAMES = set(names())
WITHOUT_WEIGHTS = {"best_of_n", "guided"}
LEARNERS = sorted(NAMES - WITHOUT_WEIGHTS)


def make(name: str, lm: CausalLM, *, rows: int = 8, env: dict[str, Any] | None = None, **settings: Any) -> Any:
    agent = find(name)
    quicker = {"candidates": 64} if name in ("guided", "mac") else {}  # each of which is scored at every token
    return agent(make_envs(lm, rows, **(env or {})), config_of(agent, {**quicker, **settings}))


def parameters(agent: Any) -> torch.Tensor:
    flat: torch.Tensor = torch.cat([p.detach().flatten() for p in agent.policy.parameters()])
    return flat


@pytest.mark.parametrize("name", names())
class TestContract(AgentContract):
    @pytest.fixture(autouse=True)
    def _agent(self, name: str, tiny_lm: CausalLM) -> None:
        self.lm, self.agent = tiny_lm, find(name)
        self.learns, self.masked = name not in WITHOUT_WEIGHTS, name == "nlpo"

    def make_env(self) -> Any:
        return make_envs(self.lm, kl_target=3.0, kl_horizon=20)

    def make_agent(self, env: Any) -> Any:
        return self.agent(env, config_of(self.agent, {"seed": 3, **({"learning_rate": 5e-3} if self.learns else {})}))

    def load_agent(self, folder: Path, env: Any) -> Any:
        return self.agent.load(folder, env)


TUNED = {"learning_rate": 5e-3, "embedding_learning_rate": None, "adam_epsilon": 1e-8, "minibatch_size": 64}
OWN: dict[str, dict[str, Any]] = {
    "ppo": {"epochs": 2},
    "grpo": {"normalization": "dr_grpo", "samples": 8, "epochs": 2},
    "nlpo": {"top_p": 0.99},
    "soft_q": {"replay": 16, "updates": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "letters"), [("dense", 6), ("sparse", 4)])
@pytest.mark.parametrize("name", LEARNERS)
def test_it_reaches_the_optimum(name: str, family: str, letters: int) -> None:
    """16,000 tokens to a regret of 2 %, of expert iteration 3 %; benchmarks/exact_agents.toml has longer texts."""
    task = ComparedTask("", "textenv/Exact-v0", {"reward": family, "vocab_size": letters, "max_new_tokens": 3})
    evaluator = Evaluator(task, Budget(total_steps=16_000, seconds=None, evaluations=1, eval_episodes=1, num_envs=64))
    agent = find(name)
    tuned = {**TUNED, "value_learning_rate": 3e-3}
    shared = {setting: value for setting, value in tuned.items() if setting in agent.Config.__dataclass_fields__}
    learner = agent(evaluator.envs, config_of(agent, {**shared, **OWN.get(name, {})})).learn(16_000)
    found = evaluator.measure(learner)
    assert evaluator.tree is not None
    regret = evaluator.tree.regret_of(Outcome(found.score, found.kl, found.value))
    assert regret <= (0.03 if name == "expert_iteration" else 0.02)


@pytest.mark.parametrize("name", LEARNERS)
class TestLearnerContract:
    """What holds of every agent that learns."""

    def test_with_masks_and_a_temperature_too_it_starts_at_ratio_one_and_kl_zero(
        self, name: str, tiny_lm: CausalLM
    ) -> None:
        history: list[dict[str, float]] = []
        settings = {"top_k": 9, "temperature": 0.7, "kl_mode": "dense"}
        make(name, tiny_lm, env=settings).learn(1, progress=lambda _, metrics: history.append(dict(metrics)))
        assert history[0]["train/first_ratio"] == pytest.approx(1.0, abs=1e-4)
        if name != "nlpo":  # whose mask is a part of its policy
            assert history[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)

    def test_it_learns(self, name: str, tiny_lm: CausalLM) -> None:
        rate = {"soft_q": 1e-2, "online_dpo": 2e-2}.get(name, 1e-2)
        value = {"value_learning_rate": 3e-3} if hasattr(find(name).Config(), "value_learning_rate") else {}
        agent = make(
            name, tiny_lm, rows=32, env={"kl_coef": 0.02}, learning_rate=rate, lr_schedule="constant", seed=1,
            embedding_learning_rate=rate, **value,
        )  # fmt: skip
        scores: list[float] = []
        agent.learn(8000, progress=lambda _, metrics: scores.append(metrics["objective/score"]))
        assert np.mean(scores[-5:]) > np.mean(scores[:5]) + 0.1

    def test_the_reference_stays_as_it_is(self, name: str, tiny_lm: CausalLM) -> None:
        before = {key: value.clone() for key, value in tiny_lm.model.state_dict().items()}
        make(name, tiny_lm, learning_rate=1e-2).learn(60)
        assert all(torch.equal(value, before[key]) for key, value in tiny_lm.model.state_dict().items())

    def test_accumulated_gradients_equal_those_of_the_whole_minibatch(self, name: str, tiny_lm: CausalLM) -> None:
        found = []
        rates: dict[str, Any] = {"learning_rate": 1e-3, "embedding_learning_rate": 8e-4}
        for micro in (None, 3):
            agent = make(name, tiny_lm, seed=5, micro_batch_size=micro, minibatch_size=None, **rates)
            found.append(parameters(agent.learn(1)))
        torch.testing.assert_close(found[0], found[1], atol=2e-5, rtol=1e-4)

    def test_one_environment_is_enough_for_those_without_groups(self, name: str, tiny_lm: CausalLM) -> None:
        env = gym.make("textenv/Text-v0", model=tiny_lm, prompts=PROMPTS, reward=count_e, max_new_tokens=6)
        agent = find(name)
        if hasattr(agent.Config(), "samples"):
            with pytest.raises(TextEnvError, match="a multiple of it"):
                agent(env)
        else:
            agent(env).learn(20)

    def test_lora(self, name: str, make_lm: Any) -> None:
        lm = make_lm()
        before = {key: value.clone() for key, value in lm.model.named_parameters()}
        make(name, lm, lora_rank=2, learning_rate=1e-2).learn(60)
        after = {key.replace(".base_layer", ""): value for key, value in lm.model.named_parameters()}
        assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_groups_are_written_from_one_prompt(tiny_lm: CausalLM) -> None:
    agent = RLOO(make_envs(tiny_lm, 12), RLOOConfig(samples=3))
    prompts: list[str] = []
    for _ in range(3):
        prompts = [episode.prompt for episode in agent.collect().finished]
        assert all(len({*group}) == 1 for group in zip(prompts[::3], prompts[1::3], prompts[2::3], strict=True))
    assert len({*prompts}) > 1


def gradient(agent: Agent[Any], rollout: Rollout) -> torch.Tensor:
    """Return the gradient of an agent's loss of all episodes, scaled to norm 1."""
    agent.update(rollout)
    moments = [agent.optimizer.state[p]["exp_avg"] for group in agent.optimizer.param_groups for p in group["params"]]
    flat = torch.cat([moment.flatten() for moment in moments])
    return torch.as_tensor(flat / flat.norm())


def surrogate_gradient(agent: Agent[Any], rollout: Rollout, weights: torch.Tensor) -> torch.Tensor:
    """Return the gradient of ``-sum weights * log pi``, scaled to norm 1, by the plainest code."""
    policy = agent.policy
    policy.zero_grad()
    total = torch.zeros(())
    for row, (length, start) in enumerate(zip(rollout.lengths.tolist(), rollout.starts.tolist(), strict=True)):
        ids = torch.from_numpy(rollout.input_ids[row : row + 1, :length])
        logits = policy.model(input_ids=ids).logits[0, start - 1 : -1]
        chosen = torch.log_softmax(logits, dim=-1).gather(1, ids[0, start:, None])[:, 0]
        total = total - (weights[row, : len(chosen)] * chosen).sum()
    total.backward()
    learned = [p for group in agent.optimizer.param_groups for p in group["params"]]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in learned])
    return torch.as_tensor(flat / flat.norm())


@pytest.mark.parametrize("name", ["rloo", "grpo", "dr_grpo", "reinforce", "a2c", "expert_iteration"])
def test_the_gradient_is_that_of_the_paper(name: str, tiny_lm: CausalLM) -> None:
    settings: dict[str, Any] = {"minibatch_size": None, "seed": 5, "max_grad_norm": 1e6}
    if name in ("reinforce", "a2c"):
        settings |= {"value": "none" if name == "reinforce" else "head", "whiten_advantages": False, "value_coef": 0.0}
    if name == "dr_grpo":
        settings["normalization"] = "dr_grpo"
    if name == "a2c":
        settings["n_steps"] = 2
    agent = make("grpo" if name == "dr_grpo" else name, tiny_lm, env={"max_new_tokens": 8}, **settings)
    rollout = agent.collect()
    rewards, lengths = rollout.rewards.astype(np.float64), rollout.mask.sum(axis=1)
    groups = rewards.sum(axis=1).reshape(-1, 4)
    if name == "rloo":
        others = [(group.sum() - own) / 3 for group in groups for own in group]
        weights = np.tile((rewards.sum(axis=1) - others)[:, None], rewards.shape[1])
    elif name in ("grpo", "dr_grpo"):
        centered = groups - groups.mean(axis=1, keepdims=True)
        if name == "grpo":
            centered /= groups.std(axis=1, keepdims=True) + 1e-4
        weights = np.tile(centered.reshape(-1, 1), rewards.shape[1]) / (lengths[:, None] if name == "grpo" else 8)
    elif name == "reinforce":
        weights = np.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]
    elif name == "a2c":  # values are 0 at first
        weights = rewards + np.pad(rewards[:, 1:], ((0, 0), (0, 1)))
    else:
        best = (groups == groups.max(axis=1, keepdims=True)) & (groups.max(axis=1) > groups.min(axis=1))[:, None]
        first = best & (np.cumsum(best, axis=1) == 1)
        weights = np.tile(first.reshape(-1, 1).astype(float), rewards.shape[1])
    expected = surrogate_gradient(agent, rollout, torch.from_numpy(weights.copy()).float())
    found = gradient(agent, rollout)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_rewards_split_into_the_score_and_the_kl_from_the_reference(
    tiny_lm: CausalLM,
) -> None:
    agent = REINFORCE(make_envs(tiny_lm, kl_coef=0.3), REINFORCEConfig(learning_rate=1e-2)).learn(100)
    rollout = agent.collect()
    kl, rewards = split_kl_penalty(text_env(agent.envs), rollout)
    for row, episode in enumerate(rollout.finished):
        length = len(episode.kl)
        np.testing.assert_allclose(rewards[row, : length - 1], 0, atol=1e-6)
        assert rewards[row, length - 1] == pytest.approx(episode.score, abs=1e-5)
        ids = torch.tensor([[*episode.prompt_ids, *episode.completion_ids]])
        log_probs = torch.log_softmax(tiny_lm.model(input_ids=ids).logits[0], dim=-1)
        expected = [float(log_probs[len(episode.prompt_ids) - 1 + t, ids[0, len(episode.prompt_ids) + t]])
                    for t in range(length)]  # fmt: skip
        np.testing.assert_allclose((rollout.log_probs - kl)[row, :length], expected, atol=1e-4)


@pytest.mark.parametrize("agent", [OnlineDPO, SoftQ])
def test_agents_that_need_the_kl_refuse_what_hides_it(agent: Any, tiny_lm: CausalLM) -> None:
    with pytest.raises(TextEnvError, match="kl_estimator='k3'"):
        agent(make_envs(tiny_lm, kl_estimator="k3")).learn(1)
    with pytest.raises(TextEnvError, match="kl_coef=0"):
        agent(make_envs(tiny_lm, kl_coef=0.0)).learn(1)
    envs = gym.wrappers.vector.TransformReward(make_envs(tiny_lm, kl_mode="dense"), lambda reward: 2 * reward + 1)
    with pytest.raises(TextEnvError, match="wrapper"):
        agent(envs).learn(1)


def test_the_replay_keeps_the_last_episodes(tiny_lm: CausalLM) -> None:
    agent = SoftQ(make_envs(tiny_lm, 8), SoftQConfig(replay=2))
    for _ in range(2):
        agent.update(agent.collect())
    rollout = agent.collect()
    agent.update(rollout)
    replay = dict(agent._replay.named_buffers())
    time = rollout.mask.shape[1]
    assert np.array_equal(replay["mask"][:8, :time], rollout.mask)  # the third iteration is where the first was
    assert np.array_equal(replay["log_probs"][:8, :time], rollout.log_probs)
    assert int(replay["added"]) == 24


def spaces(completions: Any, **_: Any) -> list[float]:
    return [text.count(" ") / 2 for text in completions]


def optimal(rollout: Rollout) -> Rollout:
    """Return the episodes as if the policy that wrote them were the best there is: ``beta * log pi/pi_ref = score``."""
    beta, kl = rollout.kl_coef, np.zeros_like(rollout.rewards)
    episodes = []
    for row, episode in enumerate(rollout.finished):
        last = len(episode.kl) - 1
        kl[row, last] = episode.score / beta
        episodes.append(dataclasses.replace(episode, kl=(*(0.0,) * last, episode.score / beta), token_rewards=(0.0,)))
    return dataclasses.replace(rollout, rewards=np.zeros_like(kl), episodes=tuple(episodes))


@pytest.mark.parametrize("agent", [OnlineDPO, SoftQ])
def test_the_loss_is_least_at_the_optimum(agent: Any, tiny_lm: CausalLM) -> None:
    """There the path is consistent with values of 0, and the margin of DPO's soft labels is the scores' difference."""
    norms = []
    for change in (optimal, lambda rollout: rollout):
        learner = agent(make_envs(tiny_lm, reward=spaces), agent.Config(minibatch_size=None))
        norms.append(learner.update(change(learner.collect()))["train/grad_norm"])
    assert norms[0] < 1e-2 * norms[1]


def test_nlpo_draws_and_shows_only_what_is_likely_to_the_lagged_policy(tiny_lm: CausalLM) -> None:
    agent = NLPO(make_envs(tiny_lm, 16), NLPOConfig(top_p=0.5, mask_every=2, learning_rate=1e-2))
    rollout = agent.collect()
    assert rollout.action_masks is not None
    ref = tiny_lm
    for row in range(4):
        ids, start = rollout.input_ids[row], int(rollout.starts[row])
        for place in range(start, int(rollout.lengths[row])):
            logits = ref.model(input_ids=torch.from_numpy(ids[None, :place])).logits[0, -1]
            probabilities, order = torch.softmax(logits, dim=-1).sort(descending=True)
            inside = set(order[probabilities.cumsum(0) - probabilities < 0.5].tolist())
            assert int(ids[place]) in inside
            kept = np.unpackbits(rollout.action_masks[row, place - start], count=ref.vocab_size)
            assert set(np.flatnonzero(kept).tolist()) == inside
            expected = math.log(
                float(torch.softmax(logits, dim=-1)[ids[place]]) / float(probabilities[: len(inside)].sum())
            )
            assert rollout.log_probs[row, place - start] == pytest.approx(expected, abs=1e-3)
    obs, _ = agent.envs.reset(seed=1)
    drawn = {int(agent.predict(obs, deterministic=False)[0]) for _ in range(200)}
    assert len(drawn) < 100


def test_nlpos_mask_follows_every_few_iterations(tiny_lm: CausalLM) -> None:
    agent = NLPO(make_envs(tiny_lm), NLPOConfig(mask_every=2, learning_rate=1e-2))
    lagged = agent._nucleus._policy

    def apart() -> bool:
        pairs = zip(lagged.model.parameters(), agent.policy.model.parameters(), strict=True)
        return any(not torch.equal(old, new) for old, new in pairs)

    found: list[bool] = []
    agent.learn(200, progress=lambda steps, metrics: found.append(apart()))
    assert found[:4] == [True, False, True, False]


def walk(agent: BestOfN, envs: Any, **options: Any) -> float:
    """Return the mean score of what ``predict`` writes from its prompts."""
    obs, _ = envs.reset(seed=0)
    done = np.zeros(envs.num_envs, dtype=bool)
    while not done.all():
        obs, _, terminations, _, _ = envs.step(agent.predict(obs, **options))
        done |= terminations
    return float(np.mean([episode.score for episode in envs.last_episodes]))


def test_best_of_n_writes_the_best_of_n(tiny_lm: CausalLM) -> None:
    envs = make_envs(tiny_lm, 6)
    scores = {n: walk(BestOfN(envs, BestOfNConfig(samples=n)), envs) for n in (1, 32)}
    assert scores[32] > scores[1] + 0.2
    agent = BestOfN(envs, BestOfNConfig(samples=32))
    assert walk(agent, envs, deterministic=False) > scores[1] + 0.2
    kept = agent.sample(envs, PROMPTS, generator=torch.Generator().manual_seed(0))
    assert [episode.prompt for episode in kept] == PROMPTS
    assert np.mean([episode.score for episode in kept]) > scores[1] + 0.2


def test_best_of_n_has_nothing_to_share_among_processes(tiny_lm: CausalLM) -> None:
    from textenv.rollouts.distributed import Processes

    with pytest.raises(TextEnvError, match="start one"):
        BestOfN(make_envs(tiny_lm), processes=Processes(size=2))


def test_grpo_and_dr_grpo_differ(tiny_lm: CausalLM) -> None:
    found = [
        parameters(GRPO(make_envs(tiny_lm), GRPOConfig(normalization=which, seed=2, learning_rate=1e-3)).learn(100))
        for which in ("grpo", "dr_grpo")
    ]
    assert not torch.equal(*found)


def test_a_group_whose_returns_are_equal_teaches_nothing(tiny_lm: CausalLM) -> None:
    def nothing(completions: Any, **_: Any) -> list[float]:
        return [0.0] * len(completions)

    config = ExpertIterationConfig(learning_rate=1e-2)
    agent = ExpertIteration(make_envs(tiny_lm, reward=nothing, kl_coef=0.0), config)
    before = parameters(agent).clone()
    agent.learn(30)
    assert torch.equal(before, parameters(agent))


@pytest.mark.parametrize(
    ("config", "setting"),
    [
        (A2CConfig, {"n_steps": 0}), (A2CConfig, {"value": "none"}), (A2CConfig, {"entropy_coef": -1.0}),
        (REINFORCEConfig, {"gamma": 2.0}), (RLOOConfig, {"samples": 1}), (GRPOConfig, {"normalization": "no"}),
        (GRPOConfig, {"clip": math.nan}), (NLPOConfig, {"top_p": 0.0}), (NLPOConfig, {"mask_every": 0}),
        (OnlineDPOConfig, {"beta": 0.0}), (OnlineDPOConfig, {"labels": "none"}), (SoftQConfig, {"replay": 0}),
        (SoftQConfig, {"value": "none"}), (BestOfNConfig, {"samples": 0}), (ExpertIterationConfig, {"epochs": 0}),
        (AgentConfig, {"learning_rate": "1e-4"}), (AgentConfig, {"minibatch_size": 1.5}),
    ],
)  # fmt: skip
def test_settings_are_checked(config: Any, setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(TextEnvError, match=name):
        config(**setting)


def test_agents_are_found_by_name_and_by_import_path() -> None:
    assert find("rloo") is RLOO
    assert find("textenv.agents.rloo:RLOO") is RLOO
    with pytest.raises(TextEnvError, match="Did you mean 'rloo'"):
        find("rlo")
    with pytest.raises(TextEnvError, match="cannot be imported"):
        find("no.such:Agent")
    with pytest.raises(TextEnvError, match="without"):
        find("collections:Counter")
    with pytest.raises(TextEnvError, match="Did you mean 'samples'"):
        config_of(RLOO, {"sample": 4})


def test_unknown_agents_are_told_of_those_that_exist() -> None:
    with pytest.raises(TextEnvError, match="Expected one of a2c, best_of_n, expert_iteration, grpo"):
        find("dqn")


OWN_AGENT = """
from dataclasses import dataclass
from textenv.agents.agent import Agent
from textenv.agents.config import AgentConfig

@dataclass(frozen=True, slots=True)
class IdleWriterConfig(AgentConfig):
    pace: float = 0.5

class IdleWriter(Agent[IdleWriterConfig]):
    Config = IdleWriterConfig

    def update(self, rollout):
        return {"train/pace": self.config.pace}
"""


def test_a_new_agent_is_one_file(tiny_lm: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = importlib.import_module("textenv.agents")
    folders = [*package.__path__, str(tmp_path)]
    (tmp_path / "idle_writer.py").write_text(OWN_AGENT)
    monkeypatch.setattr(package, "__path__", folders)
    monkeypatch.setattr(package.__spec__, "submodule_search_locations", folders)
    plugins.built_in.cache_clear()
    try:
        assert set(names()) - {"idle_writer"} == NAMES
        agent = find("idle_writer")(make_envs(tiny_lm), config_of(find("idle_writer"), {"pace": 0.25, "seed": 1}))
        told: list[float] = []
        agent.learn(1, progress=lambda _, metrics: told.append(metrics["train/pace"]))
        assert told == [0.25]
        agent.save(tmp_path / "saved")
        assert agent.load(tmp_path / "saved", make_envs(tiny_lm, 1)).config == agent.config
    finally:
        plugins.built_in.cache_clear()
        sys.modules.pop("textenv.agents.idle_writer", None)
        vars(package).pop("idle_writer", None)


HEAVY = {"torch", "transformers", "scipy", "stable_baselines3"}


@pytest.mark.parametrize("name", names())
def test_settings_are_read_without_loading_what_is_heavy(name: str) -> None:
    """In a process of its own, as the command line reads them for ``--help``."""
    program = (
        "import sys\n"
        "from textenv.agents import config_of, find\n"
        f"config = config_of(find({name!r}), {{}})\n"
        f"print(config.seed, sorted({HEAVY!r} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == "0 []"


@pytest.mark.parametrize("name", LEARNERS)
def test_a_loaded_agent_acts_where_it_could_not_learn(name: str, tiny_lm: CausalLM, tmp_path: Path) -> None:
    """The rows of a group, a KL to divide by, and a reward without statistics matter to training alone."""
    agent = make(name, tiny_lm)
    agent.learn(1)
    agent.save(tmp_path)
    one_row = make_envs(tiny_lm, 1)
    (expected,) = agent.sample(one_row, ["it"])
    for envs in (one_row, make_envs(tiny_lm, 1, kl_coef=0.0, reward=Normalize(count_e))):
        loaded = agent.load(tmp_path, envs)
        (episode,) = loaded.sample(envs, ["it"])
        assert episode.completion_ids == expected.completion_ids or name == "nlpo"  # its mask lags while it learns
        obs, _ = envs.reset(seed=0)
        assert loaded.predict(obs).shape == (1,)
    if hasattr(agent.config, "samples"):
        with pytest.raises(TextEnvError, match="a multiple of it"):
            agent.load(tmp_path, one_row).learn(100)
    learned = agent.load(tmp_path, make_envs(tiny_lm, 8)).learn(agent.steps + 1)
    assert learned.steps > agent.steps


def test_a_loaded_agent_acts_in_more_rows_than_an_iteration_has_episodes(tiny_lm: CausalLM, tmp_path: Path) -> None:
    REINFORCE(make_envs(tiny_lm, 2), REINFORCEConfig(episodes=2)).save(tmp_path)
    envs = make_envs(tiny_lm, 3)
    loaded = REINFORCE.load(tmp_path, envs)
    assert [episode.prompt for episode in loaded.sample(envs, PROMPTS)] == PROMPTS
    with pytest.raises(TextEnvError, match="episodes=2, with 3 rows"):
        loaded.learn(1)


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 2}], ids=["all weights", "LoRA"])
@pytest.mark.parametrize("name", ["ppo", "nlpo"])
def test_the_callers_random_numbers_stay_as_they_are(
    name: str, settings: dict[str, Any], make_lm: Any, tmp_path: Path
) -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    agent = make(name, make_lm(), **settings)
    agent.learn(60, checkpoints=tmp_path / "checkpoints")
    agent.save(tmp_path / "agent")
    again = make(name, make_lm(), **settings)
    assert again.resume(tmp_path / "checkpoints", 60)
    agent.load(tmp_path / "agent", make_envs(make_lm()))
    assert torch.equal(torch.random.get_rng_state(), before)


class Noisy(Agent[AgentConfig]):
    """Draws from torch's global random numbers as it learns."""

    Config = AgentConfig

    def update(self, rollout: Rollout) -> dict[str, float]:
        return {"train/drawn": float(torch.rand(()))}


def test_what_an_update_draws_comes_from_the_seed_and_goes_on_after_a_stop(tiny_lm: CausalLM, tmp_path: Path) -> None:
    def run(folder: Path, iterations: int, caller: int) -> list[float]:
        torch.manual_seed(caller)
        drawn: list[float] = []

        def progress(_: int, metrics: Any) -> bool:
            drawn.append(metrics["train/drawn"])
            return len(drawn) < iterations

        agent = Noisy(make_envs(tiny_lm), AgentConfig(seed=5))
        agent.learn(800, progress=progress, checkpoints=folder, checkpoint_every=1)
        return drawn

    whole = run(tmp_path / "whole", 99, caller=1)
    first = run(tmp_path / "parts", 4, caller=2)
    rest = run(tmp_path / "parts", 99, caller=3)
    assert first + rest == whole
    assert len(first) == 4
    assert len(set(whole)) == len(whole) > 6


def test_an_agent_of_another_kind_is_not_loaded(tiny_lm: CausalLM, tmp_path: Path) -> None:
    RLOO(make_envs(tiny_lm)).save(tmp_path)
    with pytest.raises(TextEnvError, match="holds no GRPO agent"):
        GRPO.load(tmp_path, make_envs(tiny_lm))
    with pytest.raises(TextEnvError, match="expected a GRPOConfig"):
        GRPO(make_envs(tiny_lm), RLOOConfig())  # type: ignore[arg-type]


# -- masks, columns and rates --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["best_of_n", "guided", "nlpo", "ppo"])
@pytest.mark.parametrize("settings", [{"top_k": 5}, {"top_p": 0.4, "temperature": 0.7}], ids=["top_k", "top_p"])
def test_predictions_are_within_the_environments_mask(name: str, settings: dict[str, Any], tiny_lm: CausalLM) -> None:
    envs = make_envs(tiny_lm, 3, kl_mode="dense", **settings)
    agent = find(name)(envs, config_of(find(name), {"samples": 2} if name == "best_of_n" else {}))
    if name == "guided":
        agent.learn(1)
    obs, _ = envs.reset(seed=0)
    for _ in range(3):
        masks = envs.unwrapped.action_masks()
        assert (masks.sum(axis=1) < 100).all()
        for _ in range(30):
            assert masks[np.arange(3), agent.predict(obs, deterministic=False)].all()
        actions = agent.predict(obs)
        assert masks[np.arange(3), actions].all()
        if name != "best_of_n":  # which takes a row out of its place for a prompt
            assert masks[1, agent.predict({key: values[1] for key, values in obs.items()})]
        obs, *_ = envs.step(actions)


def test_masks_of_texts_from_elsewhere(tiny_lm: CausalLM) -> None:
    envs = make_envs(tiny_lm, 3, top_k=5, top_p=0.8)
    base = text_env(envs)
    obs, infos = envs.reset(options={"prompt": PROMPTS})
    for batch, masks in (
        (obs, infos["action_mask"]),
        ({k: v[::-1] for k, v in obs.items()}, infos["action_mask"][::-1]),
    ):
        np.testing.assert_array_equal(base.action_masks_at(batch), masks)
    assert text_env(make_envs(tiny_lm)).action_masks_at(obs) is None


class Wants:
    """A reward that notes the column ``want`` of what it is asked."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, *, completions: Any, want: Any, **_: Any) -> list[float]:
        self.calls.append(list(want))
        return [float(text.count("e")) for text in completions]


def two_of_one_text(lm: CausalLM, rows: int) -> tuple[Any, Wants, list[str]]:
    """Return an environment whose prompts are one text with two columns, the reward, and what each row is to want."""
    reward = Wants()
    prompts = [{"prompt": "it", "want": "first"}, {"prompt": "it", "want": "second"}]
    envs = make_envs(lm, rows, prompts=prompts, reward=reward, kl_coef=0.3)
    return envs, reward, ["first", "second"] * (rows // 2)


def test_mac_asks_with_the_columns_of_the_row(tiny_lm: CausalLM) -> None:
    envs, reward, _ = two_of_one_text(tiny_lm, 8)
    agent = MAC(envs, MACConfig(candidates=2))
    rollout = agent.collect()
    wanted = [prompt.columns["want"] for prompt in rollout.prompts]
    assert set(wanted) == {"first", "second"}
    reward.calls.clear()
    agent.update(rollout)
    assert [call[0] for call in reward.calls] == wanted * 2  # with candidates, and without
    assert all(len(set(call)) == 1 for call in reward.calls)
    picked = rollout.rows(np.array([3, 1]))
    assert [prompt.columns["want"] for prompt in picked.prompts] == [wanted[3], wanted[1]]


def test_guided_asks_with_the_columns_of_the_row(tiny_lm: CausalLM) -> None:
    envs, reward, wanted = two_of_one_text(tiny_lm, 4)
    agent = Guided(envs, GuidedConfig(candidates=2)).learn(1)
    obs, _ = envs.reset(options={"prompt_index": [0, 1, 0, 1]})
    for _ in range(2):
        reward.calls.clear()
        actions = agent.predict(obs)
        assert reward.calls == [[want for want in wanted for _ in range(3)]]
        obs, *_ = envs.step(actions)
    agent.sample(envs, text_env(envs).prompts * 2)
    assert {tuple(call[::3]) for call in reward.calls if len(call) == 12} == {tuple(wanted)}
    alone, _ = make_envs(tiny_lm, 1, prompts=["it"]).reset()
    with pytest.raises(TextEnvError, match="2 prompts of the environment are 'it', with other columns"):
        agent.predict(alone)


def test_best_of_n_asks_with_the_columns_of_the_row(tiny_lm: CausalLM) -> None:
    envs, reward, wanted = two_of_one_text(tiny_lm, 4)
    agent = BestOfN(envs, BestOfNConfig(samples=2))
    obs, _ = envs.reset(options={"prompt_index": [0, 1, 0, 1]})
    reward.calls.clear()
    agent.predict(obs)
    asked = list(dict.fromkeys((place, call[0]) for place, call in enumerate(reward.calls)))
    per_row = [want for _, want in asked]
    assert sorted(per_row) == sorted(wanted * (len(per_row) // 4))
    assert len(per_row) >= 4


@pytest.mark.parametrize("name", ["a2c", "grpo", "nlpo", "ppo", "soft_q"])
def test_learning_rates_follow_the_one_that_is_set(name: str, tiny_lm: CausalLM) -> None:
    def peaks(**settings: Any) -> list[float]:
        return [group["peak"] for group in make(name, tiny_lm, **settings).optimizer.param_groups]

    valued = hasattr(find(name).Config(), "value_learning_rate")
    assert peaks() == [1e-4, 8e-4, 3e-3][: 2 + valued]
    assert peaks(learning_rate=1e-6) == pytest.approx([1e-6, 8e-6, 3e-5][: 2 + valued], rel=1e-12)
    assert peaks(learning_rate=1e-6, embedding_learning_rate=None)[:1] == [1e-6]
    assert 2e-3 in peaks(learning_rate=1e-6, embedding_learning_rate=2e-3)
    if valued:
        assert 2e-3 in peaks(learning_rate=1e-6, value_learning_rate=2e-3)
        with pytest.raises(
            TextEnvError, match=r"value_learning_rate='half': expected a finite number above 0 .*, or one of \['auto'\]"
        ):
            peaks(value_learning_rate="half")


def test_a_run_goes_on_whether_a_rate_was_said_or_followed(tiny_lm: CausalLM, tmp_path: Path) -> None:
    make("reinforce", tiny_lm).learn(60, checkpoints=tmp_path)
    again = make("reinforce", tiny_lm, embedding_learning_rate=8e-4)
    assert again.resume(tmp_path, 60)
    with pytest.raises(TextEnvError, match=r"embedding_learning_rate was 0\.0008, is 0\.001"):
        make("reinforce", tiny_lm, embedding_learning_rate=1e-3).resume(tmp_path, 60)


# -- rewards that are shaped by a potential ------------------------------------------------------------------------

COMPARES_WHOLE = {"expert_iteration", "grpo", "mac", "online_dpo", "rloo"}  # or has unfinished texts scored itself


@pytest.mark.parametrize("name", LEARNERS)
def test_shaping_is_told_and_moves_only_agents_that_credit_tokens(name: str, tiny_lm: CausalLM) -> None:
    found = []
    for env in ({}, {"potential": count_e}):
        history: list[dict[str, float]] = []
        agent = make(name, tiny_lm, env=env, seed=1)
        agent.learn(60, progress=lambda _, metrics: history.append(dict(metrics)))  # noqa: B023
        assert ("objective/shaping" in history[0]) == bool(env)
        found.append((parameters(agent), history[0]))
    assert found[1][1]["objective/shaping"] == pytest.approx(0.0, abs=1e-6)  # no letter e is in an empty text
    assert found[1][1]["objective/score"] == found[0][1]["objective/score"]
    moved = float((found[0][0] - parameters(make(name, tiny_lm))).abs().max())
    apart = float((found[0][0] - found[1][0]).abs().max())
    assert apart < 0.05 * moved if name in COMPARES_WHOLE else apart > 0.2 * moved


def test_another_discount_than_that_of_the_shaping_is_refused(tiny_lm: CausalLM) -> None:
    with pytest.raises(TextEnvError, match=r"potential_discount=1, and the agent discounts by 0\.9"):
        make("ppo", tiny_lm, env={"potential": count_e}, gamma=0.9)
    with pytest.raises(TextEnvError, match=r"potential_discount=0\.9, and the agent discounts by 1"):
        make("rloo", tiny_lm, env={"potential": count_e, "potential_discount": 0.9})
    assert make("ppo", tiny_lm, env={"potential": count_e, "potential_discount": 0.9}, gamma=0.9).learn(1).steps
    assert make("ppo", tiny_lm, gamma=0.9).learn(1).steps
