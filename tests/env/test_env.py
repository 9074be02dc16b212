"""One text at a time: the contract, Gymnasium's promises, and the settings as a user sees them."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import NumpyToTorch, RecordEpisodeStatistics, TimeLimit

import textenv
from textenv import CausalLM, Handle, TextEnv, TextEnvError
from textenv.env.handle import unwrap
from textenv.env.reward_calls import SERVICES
from textenv.models.policy import TextPolicy
from textenv.testing import EnvironmentContract
from textenv.types import Prompt

PROMPTS = ["the film", "a plot that was thin", "it"]
EOS, PAD = 0, 1


def vowels(completions: Sequence[str], **_: Any) -> list[float]:
    """A number of its own for most completions, and nothing is random about it."""
    return [sum(text.count(vowel) for vowel in "aeiou") + len(text) / 100 for text in completions]


@pytest.fixture
def make_env(tiny_lm: CausalLM) -> Callable[..., TextEnv]:
    def make(**settings: Any) -> TextEnv:
        return TextEnv(**{"model": tiny_lm, "prompts": PROMPTS, "reward": vowels, "max_new_tokens": 6, **settings})

    return make


def play(env: Any, tokens: Sequence[int], **options: Any) -> tuple[list[float], dict[str, Any]]:
    """Write ``tokens``; return the rewards and the last info."""
    env.reset(**options)
    rewards = []
    info: dict[str, Any] = {}
    for token in tokens:
        _, reward, terminated, _, info = env.step(token)
        rewards.append(reward)
        if terminated:
            break
    return rewards, info


def ids_of(lm: CausalLM, text: str) -> list[int]:
    """Return the tokens of a text in the middle of another, without the token that begins one."""
    return list(lm.encode(text))[1:]


class Acting:
    """Steps an environment with a policy other than the reference, as an agent would."""

    def __init__(self, env: Any, policy: TextPolicy) -> None:
        import torch

        self.env, self.policy = env, policy
        self.generator = torch.Generator().manual_seed(0)
        env.unwrapped.attach_policy(policy)

    def episode(self, seed: int) -> tuple[list[float], list[float], dict[str, Any]]:
        """Return the rewards, log pi of the tokens written, and the last info."""
        obs, info = self.env.reset(seed=seed)
        self.generator.manual_seed(seed)
        self.policy.forget()
        rewards: list[float] = []
        log_probs: list[float] = []
        while "score" not in info:
            masks = info["action_mask"][None].astype(bool) if "action_mask" in info else None
            actions, _ = self.policy.act(obs, generator=self.generator, masks=masks)
            log_probs.append(float(self.policy.action_log_prob(actions)[0]))
            obs, reward, _, _, info = self.env.step(int(actions[0]))
            rewards.append(reward)
        return rewards, log_probs, info


# -- the contract --------------------------------------------------------------------------------------------------


class TestTextEnvContract(EnvironmentContract):
    @pytest.fixture(autouse=True)
    def _settings(self, tiny_lm: CausalLM, tmp_path: Path) -> None:
        tiny_lm.model.save_pretrained(tmp_path)
        tiny_lm.tokenizer.save_pretrained(tmp_path)
        self.settings: dict[str, Any] = {
            "model": str(tmp_path),
            "prompts": PROMPTS,
            "reward": {"name": "length", "target": 3},
            "max_new_tokens": 6,
        }

    def make_env(self, **settings: Any) -> Any:
        return gym.make("textenv/Text-v0", **{**self.settings, **settings})

    def make_vec_env(self, num_envs: int, **settings: Any) -> Any:
        return gym.make_vec("textenv/Text-v0", num_envs=num_envs, **{**self.settings, **settings})


class TestLumpContract(TestTextEnvContract):
    @pytest.fixture(autouse=True)
    def _settings_of_lump(self, _settings: None) -> None:
        self.settings |= {"kl_mode": "lump", "stop": ["e"], "missing_eos_penalty": 1.0, "temperature": 0.7}


class TestMaskedContract(TestTextEnvContract):
    @pytest.fixture(autouse=True)
    def _settings_of_masks(self, _settings: None) -> None:
        self.settings |= {"top_k": 20, "top_p": 0.9}


class TestMovieReviewContract(EnvironmentContract):
    """The registered id with the bundled model: what it writes and scores may change, what it keeps to may not."""

    def make_env(self, **settings: Any) -> Any:
        return gym.make("textenv/MovieReview-v0", max_new_tokens=4, **settings)

    def make_vec_env(self, num_envs: int, **settings: Any) -> Any:
        return gym.make_vec("textenv/MovieReview-v0", num_envs=num_envs, max_new_tokens=4, **settings)


@pytest.mark.parametrize("env_id", ["textenv/MovieReview-v0", "textenv/Text-v0"])
def test_the_loop_of_gymnasiums_front_page_runs_unchanged(env_id: str) -> None:
    env = gym.make(env_id)
    observation, info = env.reset(seed=42)
    episodes = 0
    for _ in range(30):
        action = env.action_space.sample()
        observation, _reward, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            assert np.isfinite(info["score"])
            episodes += 1
            observation, info = env.reset()
    env.close()
    assert episodes >= 1
    assert env.observation_space.contains(observation)


# -- the process ---------------------------------------------------------------------------------------------------


def test_observations_are_the_prompt_and_the_tokens_padded_on_the_right(
    make_env: Callable[..., TextEnv], tiny_lm: CausalLM
) -> None:
    env = make_env(max_prompt_tokens=9, max_new_tokens=4)
    prompt = list(tiny_lm.encode("it"))
    obs, info = env.reset(options={"prompt": "it"})
    assert info == {"prompt": "it"}
    assert obs["input_ids"].tolist() == prompt + [PAD] * (13 - len(prompt))
    obs, *_ = env.step(PAD)
    obs, *_ = env.step(42)
    assert obs["input_ids"][: len(prompt) + 2].tolist() == [*prompt, PAD, 42]
    assert obs["attention_mask"].tolist() == [1] * (len(prompt) + 2) + [0] * (11 - len(prompt))
    assert obs["input_ids"].dtype == np.int64
    assert obs["attention_mask"].dtype == np.int8


@pytest.mark.parametrize(
    ("tokens", "reason", "length"), [([5, 6, EOS], "eos", 3), ([EOS], "eos", 1), ([5] * 9, "length", 6)]
)
def test_an_end_token_and_the_budget_both_terminate(
    make_env: Callable[..., TextEnv], tokens: list[int], reason: str, length: int
) -> None:
    rewards, info = play(make_env(), tokens)
    assert len(rewards) == len(info["completion_ids"]) == len(info["token_kl"]) == length
    assert info["stop_reason"] == reason


def test_the_score_is_paid_at_the_last_token(make_env: Callable[..., TextEnv]) -> None:
    rewards, info = play(make_env(kl_coef=0.0), [70, 71, EOS])
    assert rewards == [0.0, 0.0, info["score"]]
    assert info["score"] == pytest.approx(vowels([info["completion"]])[0])


def test_the_reward_sees_the_sampled_ids_and_its_columns(make_env: Callable[..., TextEnv]) -> None:
    calls: list[dict[str, Any]] = []

    def spy(**arguments: Any) -> list[float]:
        calls.append(arguments)
        return [0.25]

    env = make_env(reward=spy, prompts=[{"prompt": "the film", "label": 3}])
    text = env.reference.decode([70, 71])
    _, info = play(env, [70, 71, EOS])
    expected = {"prompts": ["the film"], "completions": [text], "completion_ids": [[70, 71, EOS]], "label": [3]}
    assert [{name: value for name, value in each.items() if name not in SERVICES} for each in calls] == [expected]
    assert info["completion_ids"] == (70, 71, EOS)


def test_ids_that_text_would_not_bring_back_stay_as_sampled(make_env: Callable[..., TextEnv]) -> None:
    env = make_env()
    tokens = [200, 130, 299, PAD, 131, EOS]  # bytes that are no text, an id beyond the tokenizer's, padding
    obs, info = env.reset(options={"prompt": "it"})
    begin = int(obs["attention_mask"].sum())
    for token in tokens:
        obs, _, _, _, info = env.step(token)
    assert obs["input_ids"][begin : begin + 6].tolist() == tokens
    assert info["completion_ids"] == tuple(tokens)
    assert env.last_episode is not None
    assert env.last_episode.completion_ids == tuple(tokens)


def test_pad_may_be_the_end_token(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm()
    lm.tokenizer.pad_token = lm.tokenizer.eos_token
    lm = CausalLM(lm.model, lm.tokenizer)
    assert lm.pad_id in lm.eos_ids
    env, usual = (
        TextEnv(model=model, prompts=PROMPTS, reward=vowels, max_prompt_tokens=9) for model in (lm, make_lm())
    )
    for prompt in PROMPTS:
        played = [play(e, [70, 71, 72, EOS], options={"prompt": prompt}) for e in (env, usual)]
        assert played[0] == played[1]
        assert played[0][1]["stop_reason"] == "eos"
    obs, _ = env.reset(options={"prompt": "it"})
    assert obs["attention_mask"].sum() == len(lm.encode("it"))


# -- KL and policies ----------------------------------------------------------------------------------------------


def test_without_a_policy_the_reward_is_a_bonus_of_the_references_log_probability(
    make_env: Callable[..., TextEnv], tiny_lm: CausalLM
) -> None:
    env = make_env(kl_coef=0.3)
    tokens = [70, 71, EOS]
    rewards, info = play(env, tokens, options={"prompt": "it"})
    ids = np.array([[*tiny_lm.encode("it"), *tokens]])
    log_probs = tiny_lm.token_log_probs(ids, np.array([ids.shape[1]]))[0, -3:]
    assert rewards[:2] == pytest.approx((0.3 * log_probs[:2]).tolist(), abs=1e-5)
    assert rewards[2] == pytest.approx(info["score"] + 0.3 * log_probs[2], abs=1e-5)
    assert info["token_kl"] == pytest.approx((-log_probs).tolist(), abs=1e-5)
    assert (info["logprob"], info["ref_logprob"]) == (0.0, pytest.approx(log_probs[2], abs=1e-5))


class Certain:
    """A policy that says it was as likely as told to choose what it chose."""

    def __init__(self, log_prob: float) -> None:
        self.log_prob = log_prob

    def action_log_prob(self, actions: Any) -> Any:
        return np.full(len(actions), self.log_prob)


def test_liking_a_token_better_than_the_reference_costs(make_env: Callable[..., TextEnv]) -> None:
    env = make_env(kl_coef=1.0)
    env.attach_policy(Certain(-0.01))  # surer than the reference is of anything
    rewards, info = play(env, [70])
    assert info["kl"] > 0
    assert rewards[0] < 0
    env.attach_policy(Certain(-50.0))
    rewards, info = play(env, [70])
    assert info["kl"] < 0
    assert rewards[0] > 0
    assert (info["kl"], rewards[0]) == (info["logprob"] - info["ref_logprob"], -info["kl"])


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.6}, {"top_k": 12}, {"top_p": 0.7}, {"kl_mode": "lump"}])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "full"])
def test_a_policy_equal_to_the_reference_has_no_kl(
    make_env: Callable[..., TextEnv], tiny_lm: CausalLM, settings: dict[str, Any], estimator: str
) -> None:
    env = make_env(kl_estimator=estimator, **settings)
    acting = Acting(env, TextPolicy(tiny_lm, temperature=settings.get("temperature", 1.0)))
    for seed in range(4):
        _, _, info = acting.episode(seed)
        assert info["token_kl"] == pytest.approx([0.0] * len(info["token_kl"]), abs=1e-5)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.7}, {"top_k": 15, "top_p": 0.95}])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "full"])
def test_dense_and_lump_pay_the_same_for_an_episode(
    make_env: Callable[..., TextEnv], make_lm: Callable[..., CausalLM], estimator: str, settings: dict[str, Any]
) -> None:
    policy = TextPolicy(make_lm(seed=1), temperature=settings.get("temperature", 1.0))
    played = {}
    for mode in ("dense", "lump"):
        env = make_env(kl_mode=mode, kl_estimator=estimator, kl_coef=0.2, **settings)
        played[mode] = Acting(env, policy).episode(3)
    (dense, log_probs, info), (lump, same, lump_info) = played["dense"], played["lump"]
    assert log_probs == same
    assert len(info["token_kl"]) > 1
    assert max(abs(kl) for kl in info["token_kl"]) > 0.1
    assert sum(dense) == pytest.approx(sum(lump), abs=1e-5)
    assert sum(dense) == pytest.approx(info["score"] - 0.2 * sum(info["token_kl"]), abs=1e-5)
    assert dense == pytest.approx(info["token_rewards"], abs=1e-9)
    assert lump[:-1] == [0.0] * (len(lump) - 1)
    for name in ("token_kl", "token_rewards", "kl", "logprob", "ref_logprob"):
        assert lump_info[name] == pytest.approx(info[name], rel=1e-5, abs=1e-5), name


def test_the_full_kl_is_the_mean_of_the_estimators(
    make_env: Callable[..., TextEnv], make_lm: Callable[..., CausalLM], tiny_lm: CausalLM
) -> None:
    policy = TextPolicy(make_lm(seed=1))
    env = make_env(kl_estimator="full")
    _, _, info = Acting(env, policy).episode(0)
    obs, _ = env.reset(seed=0)
    ids, lengths = obs["input_ids"][None], obs["attention_mask"].sum(keepdims=True).astype(np.int64)
    log_probs, ref = (
        lm.next_token_logits(ids, lengths).double().log_softmax(dim=-1)[0].numpy() for lm in (policy.lm, tiny_lm)
    )
    assert info["token_kl"][0] == pytest.approx(float((np.exp(log_probs) * (log_probs - ref)).sum()), abs=1e-5)


def test_the_coefficient_adapts_between_episodes_and_never_within_one(make_env: Callable[..., TextEnv]) -> None:
    env = make_env(kl_coef=0.1, kl_target=1.0, kl_horizon=10)
    coef = env.kl_coef
    for _ in range(3):
        rewards, info = play(env, [70, 71, EOS])
        assert rewards[:2] == pytest.approx([-coef * kl for kl in info["token_kl"][:2]])
        assert sum(rewards) == pytest.approx(info["score"] - coef * sum(info["token_kl"]), abs=1e-5)
        assert env.kl_coef == pytest.approx(coef * (1 + 0.2 / 10))  # its KL is far above the target
        coef = env.kl_coef


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_temperature_divides_the_logits_of_the_reference(
    make_env: Callable[..., TextEnv], tiny_lm: CausalLM, temperature: float
) -> None:
    _, info = play(make_env(temperature=temperature), [70], options={"prompt": "it"})
    ids = np.array([tiny_lm.encode("it")])
    logits = tiny_lm.next_token_logits(ids, np.array([ids.shape[1]]))[0].double() / temperature
    assert info["ref_logprob"] == pytest.approx(float(logits.log_softmax(dim=-1)[70]), abs=1e-5)


# -- stop strings, penalties, masks -------------------------------------------------------------------------------


def test_a_stop_string_ends_the_episode_and_the_scored_text_stops_before_it(
    make_env: Callable[..., TextEnv], tiny_lm: CausalLM
) -> None:
    tokens = ids_of(tiny_lm, "so. END more")
    env = make_env(stop=["END", "XYZ"], max_new_tokens=20)
    _, info = play(env, tokens)
    assert info["stop_reason"] == "stop"
    assert info["completion"] == "so. "
    assert info["score"] == pytest.approx(vowels(["so. "])[0])
    written = info["completion_ids"]
    assert list(written) == tokens[: len(written)]  # as sampled, the stop string included
    assert tiny_lm.decode(written) == "so. END"


@pytest.mark.parametrize(("tokens", "penalized"), [([70] * 6, True), ([70, EOS], False), ([70] * 5 + [EOS], False)])
def test_only_a_spent_budget_costs_the_missing_end_token(
    make_env: Callable[..., TextEnv], tokens: list[int], penalized: bool
) -> None:
    plain, costly = (play(make_env(missing_eos_penalty=penalty), tokens, seed=0) for penalty in (0.0, 2.5))
    assert costly[1]["score"] == pytest.approx(plain[1]["score"] - 2.5 * penalized)
    assert sum(costly[0]) == pytest.approx(sum(plain[0]) - 2.5 * penalized)
    assert costly[1]["completion_ids"] == tuple(tokens)


def brute_force_mask(log_probs: Any, top_k: int | None, top_p: float | None) -> list[int]:
    mask = [0] * len(log_probs)
    held = 0.0
    for rank, token in enumerate(sorted(range(len(log_probs)), key=lambda i: (-log_probs[i], i))):
        if (top_k is None or rank < top_k) and (top_p is None or held < top_p):
            mask[token] = 1
        held += float(np.exp(np.float64(log_probs[token])))
    return mask


@pytest.mark.parametrize(("top_k", "top_p"), [(1, None), (5, None), (None, 0.5), (None, 1e-9), (40, 0.8), (10**6, 1.0)])
def test_masks_leave_the_likeliest_tokens(
    make_env: Callable[..., TextEnv], tiny_lm: CausalLM, top_k: int | None, top_p: float | None
) -> None:
    env = make_env(top_k=top_k, top_p=top_p)
    obs, info = env.reset(seed=1)
    env.action_space.seed(0)
    for _ in range(4):
        lengths = obs["attention_mask"].sum(keepdims=True).astype(np.int64)
        logits = tiny_lm.next_token_logits(obs["input_ids"][None], lengths)
        log_probs = logits.log_softmax(dim=-1)[0].numpy()
        mask = info["action_mask"]
        assert mask.dtype == np.int8
        assert mask.tolist() == brute_force_mask(log_probs, top_k, top_p)
        assert mask.astype(bool).tolist() == env.action_masks().tolist()
        action = env.action_space.sample(mask)
        assert mask[action] == 1
        obs, _, terminated, _, info = env.step(action)
        if terminated:
            break
        renormalized = log_probs[action] - np.log(np.exp(log_probs[mask == 1]).sum())
        assert info["ref_logprob"] == pytest.approx(renormalized, abs=1e-5)


def test_a_token_outside_the_mask_is_legal_and_costs_a_finite_reward(make_env: Callable[..., TextEnv]) -> None:
    env = make_env(top_k=1)
    _, info = env.reset(seed=0)
    _, reward, _, _, info = env.step(int(np.flatnonzero(info["action_mask"] == 0)[0]))
    assert np.isfinite(reward)
    assert info["ref_logprob"] < -0.1


def test_without_a_setting_every_token_is_allowed(make_env: Callable[..., TextEnv]) -> None:
    env = make_env()
    _, info = env.reset(seed=0)
    assert "action_mask" not in info
    assert env.action_masks().shape == (300,)
    assert env.action_masks().all()


def test_maskable_ppo_of_sb3_finds_the_masks(make_env: Callable[..., TextEnv]) -> None:
    from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported

    env = make_env(top_k=7)
    env.reset(seed=0)
    assert is_masking_supported(env)
    assert get_action_masks(env).sum() == 7


# -- what is around it --------------------------------------------------------------------------------------------


def make(lm: CausalLM, **settings: Any) -> gym.Env[Any, Any]:
    keywords = {"model": lm, "prompts": PROMPTS, "reward": vowels, "max_new_tokens": 4, **settings}
    return gym.make("textenv/Text-v0", **keywords)


def test_record_episode_statistics_sees_the_return(tiny_lm: CausalLM) -> None:
    rewards, info = play(RecordEpisodeStatistics(make(tiny_lm)), [70, 71, EOS])
    assert info["episode"]["r"] == pytest.approx(sum(rewards))
    assert info["episode"]["l"] == 3


def test_numpy_to_torch_hands_over_tensors(tiny_lm: CausalLM) -> None:
    import torch

    env = NumpyToTorch(make(tiny_lm))
    obs, _ = env.reset(seed=0)
    assert isinstance(obs["input_ids"], torch.Tensor)
    with torch.no_grad():
        batch = {name: values[None].long() for name, values in obs.items()}
        assert tiny_lm.model(**batch).logits.shape[-1] == tiny_lm.vocab_size
    obs, reward, *_ = env.step(torch.tensor(70))
    assert obs["attention_mask"].dtype == torch.int8
    assert isinstance(reward, float)


def test_time_limit_truncates_without_a_score(tiny_lm: CausalLM) -> None:
    env = TimeLimit(make(tiny_lm), 2)
    env.reset(seed=0)
    assert env.step(70)[2:4] == (False, False)
    *_, terminated, truncated, info = env.step(71)
    assert (terminated, truncated) == (False, True)
    assert "score" not in info
    _, info = env.reset(seed=0)
    assert info["prompt"] in PROMPTS


def test_a_wrapped_environments_spec_shares_the_model(tiny_lm: CausalLM) -> None:
    env = RecordEpisodeStatistics(TimeLimit(make(tiny_lm), 3))
    spec = copy.deepcopy(env.spec)
    assert spec is not None
    assert isinstance(spec.kwargs["model"], Handle)
    assert unwrap(spec.kwargs["model"]) is tiny_lm
    again: Any = gym.make(spec)
    assert again.unwrapped.reference is tiny_lm
    assert isinstance(again, RecordEpisodeStatistics)
    assert play(again, [70, 71], seed=0)[0] == play(env, [70, 71], seed=0)[0]


def test_a_path_among_the_keywords_can_be_written_down(tiny_lm: CausalLM, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("the film\nit\n", "utf-8")
    env = make(tiny_lm, prompts=file)
    assert env.spec is not None
    assert json.loads(json.dumps(env.spec.kwargs["prompts"])) == str(file)


@pytest.mark.parametrize("mode", ["ansi", None])
def test_render_returns_the_episode_so_far(make_env: Callable[..., TextEnv], mode: Any) -> None:
    env = make_env(render_mode=mode)
    env.reset(options={"prompt": "the film"})
    env.step(70)
    unfinished = env.render()
    env.step(EOS)
    finished = env.render()
    if mode is None:
        assert (unfinished, finished) == (None, None)
    else:
        assert isinstance(unfinished, str)
        assert isinstance(finished, str)
        assert "the film" in unfinished
        assert "unfinished" in unfinished
        assert "score" in finished
        assert "eos" in finished


def test_human_rendering_prints_each_finished_episode_once(
    make_env: Callable[..., TextEnv], capsys: pytest.CaptureFixture[str]
) -> None:
    env = make_env(render_mode="human")
    for _ in range(2):
        play(env, [70, EOS], options={"prompt": "the film"})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("the film" in line and "score" in line for line in lines)
    assert env.render() is None
    assert "the film" in capsys.readouterr().out


def test_the_state_of_a_single_environment_survives_the_vector_it_is_put_in(make_env: Callable[..., TextEnv]) -> None:
    prompts = [f"film {number}" for number in range(50)]

    def drawn(env: TextEnv, n: int) -> list[str]:
        return [env.reset()[1]["prompt"] for _ in range(n)]

    env = make_env(prompts=prompts)
    env.reset(seed=9)
    state = json.loads(json.dumps(env.batch.state_dict()))
    expected = drawn(env, 10)
    other = make_env(prompts=prompts)
    other.batch.load_state_dict(state)
    assert drawn(other, 10) == expected
    assert drawn(other, 10) != expected


@pytest.mark.parametrize("action", [-1, 300, 2.0, "a", [1], None, True])
def test_actions_that_are_no_token_ids_are_refused_and_change_nothing(
    make_env: Callable[..., TextEnv], action: Any
) -> None:
    env = make_env()
    env.reset(seed=0)
    with pytest.raises(TextEnvError, match="token id"):
        env.step(action)
    assert_goes_on(env, make_env())


def assert_goes_on(env: TextEnv, other: TextEnv) -> None:
    """Assert that ``env``, reset with seed 0 and not stepped yet, plays as ``other`` does from there."""
    rewards, info = play(other, [70, EOS], seed=0)
    steps = [env.step(token) for token in (70, EOS)]
    assert [step[1] for step in steps] == pytest.approx(rewards, abs=1e-6)
    assert steps[-1][4].keys() == info.keys()
    assert steps[-1][4]["prompt"] == info["prompt"]
    assert steps[-1][4]["completion_ids"] == info["completion_ids"]


def test_a_reward_that_raises_leaves_an_environment_that_can_be_reset(make_env: Callable[..., TextEnv]) -> None:
    broken = True

    def moody(completions: Sequence[str], **_: Any) -> list[float]:
        if broken:
            raise RuntimeError("no scorer today")
        return [1.0] * len(completions)

    env = make_env(reward=moody)
    with pytest.raises(TextEnvError, match="no scorer today"):
        play(env, [EOS], seed=0)
    with pytest.raises(TextEnvError, match="reset"):  # the text is over, though it was not scored
        env.step(70)
    broken = False
    _, info = play(env, [70, EOS], seed=0)
    assert info["score"] == 1.0


def cases() -> Iterator[Any]:
    yield {"reset_mask": [True, False]}, "reset_mask"
    yield {"promt": "x"}, "promt"
    yield {"prompt": "x", "prompt_index": 0}, "not both"
    yield {"prompt": 5}, "a text"
    yield {"prompt": ["a", "b"]}, "a text"
    yield {"prompt": "the \ud83d"}, "character 4 is half of a surrogate pair"
    yield {"prompt": [{"role": "user", "content": "\ud83d"}]}, "half of a surrogate pair"
    yield {"prompt": {"role": "user", "content": "x"}}, "a text or a list of messages"
    yield {"prompt": b"x"}, "a text"
    yield {"prompt": 10**5000}, "too long to show"
    yield {"prompt": Prompt("x\ud83d", (70,))}, "half of a surrogate pair"
    yield {"prompt": Prompt("x", ("y",))}, "token ids from 0"  # type: ignore[arg-type]
    yield {"prompt": Prompt("x", (10**5000,))}, "token ids from 0"
    yield {"prompt_index": True}, "a number"
    yield {"prompt_index": 10**5000}, "from 0 to 2"
    yield {"prompt_index": 3}, "from 0 to 2"
    yield {"prompt_index": "0"}, "a number"
    yield {"prompt": "word " * 30}, "max_prompt_tokens"


@pytest.mark.parametrize(("options", "message"), list(cases()))
def test_reset_says_what_is_wrong_with_its_options_and_changes_nothing(
    make_env: Callable[..., TextEnv], options: dict[str, Any], message: str
) -> None:
    env = make_env()
    env.reset(seed=0)
    before = copy.deepcopy(options)
    with pytest.raises(TextEnvError, match=message):
        env.reset(options=options)
    assert options == before
    assert_goes_on(env, make_env())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_token": 3}, "Did you mean 'max_new_tokens'"),
        ({"num_envs": 2}, "make_vec"),
        ({"autoreset_mode": AutoresetMode.DISABLED}, "make_vec"),
        ({"render_mode": "depth_array"}, "render_mode='depth_array'"),
        ({"max_prompt_tokens": 2}, "'a plot that was thin' takes"),
        ({"max_new_tokens": 1000}, "the model takes 128"),
        ({"model": "no/such folder"}, "no/such folder"),
        ({"prompts": []}, "at least one"),
        ({"reward": "vadder"}, "vadder"),
    ],
)
def test_bad_settings_are_refused_when_it_is_made(
    make_env: Callable[..., TextEnv], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(TextEnvError, match=message):
        make_env(**settings)


@pytest.mark.parametrize(
    ("policy", "settings", "message"),
    [
        (object(), {}, "got object; expected a policy with the method action_log_prob"),
        (Certain(0.0), {"kl_estimator": "full"}, "action_log_probs"),
    ],
)
def test_attach_policy_says_which_method_is_missing(
    make_env: Callable[..., TextEnv], policy: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(TextEnvError, match=message):
        make_env(**settings).attach_policy(policy)


class Odd(Certain):
    """Says anything that is asked of it."""

    def __init__(self, answer: Any, whole: Any = None) -> None:
        self.answer, self.whole = answer, whole

    def action_log_prob(self, actions: Any) -> Any:
        return self.answer

    def action_log_probs(self) -> Any:
        return self.whole


@pytest.mark.parametrize(
    ("policy", "settings", "message"),
    [
        (Odd(np.zeros((1, 1))), {}, r"shape \(1, 1\); expected \(1,\)"),
        (Odd([np.nan]), {}, "nan.*finite"),
        (Odd([-np.inf]), {}, "inf.*finite"),
        (Odd([0.0], np.zeros(300)), {"kl_estimator": "full"}, r"shape \(300,\); expected \(1, 300\)"),
    ],
)
def test_a_policy_that_answers_nonsense_is_refused_and_changes_nothing(
    make_env: Callable[..., TextEnv], policy: Any, settings: dict[str, Any], message: str
) -> None:
    env = make_env(**settings)
    env.reset(seed=0)
    env.attach_policy(policy)
    with pytest.raises(TextEnvError, match=message):
        env.step(70)
    env.attach_policy(None)
    assert_goes_on(env, make_env(**settings))


def test_a_single_environment_in_gymnasiums_own_vector(tiny_lm: CausalLM) -> None:
    envs = SyncVectorEnv([lambda: make(tiny_lm), lambda: make(tiny_lm)])
    _, infos = envs.reset(seed=[4, 4])
    assert infos["prompt"][0] == infos["prompt"][1]


def test_importing_warns_of_nothing_and_offers_what_it_says() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in textenv.__all__:
            assert getattr(textenv, name) is not None
