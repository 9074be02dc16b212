"""Many texts side by side: equal to Gymnasium's own vector, and to a model of the process in plain Python."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import DictInfoToList, NumpyToTorch, RecordEpisodeStatistics
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.conftest import Forwards, build_lm
from textenv import CausalLM, Handle, TextEnv, TextEnvError, TextVectorEnv
from textenv.env.handle import unwrap
from textenv.models.policy import TextPolicy

PROMPTS = ["the film", "a plot that was thin", "it"]
EOS, PAD, VOCABULARY = 0, 1, 300
MODES = list(AutoresetMode)


def vowels(completions: Sequence[str], **_: Any) -> list[float]:
    """A number of its own for most completions, and nothing is random about it."""
    return [sum(text.count(vowel) for vowel in "aeiou") + len(text) / 100 for text in completions]


def keywords(lm: CausalLM, **given: Any) -> dict[str, Any]:
    return {"model": lm, "prompts": PROMPTS, "reward": vowels, "max_new_tokens": 5, **given}


@pytest.fixture
def make_envs(tiny_lm: CausalLM) -> Callable[..., TextVectorEnv]:
    def make(num_envs: int = 3, **given: Any) -> TextVectorEnv:
        return TextVectorEnv(num_envs, **keywords(tiny_lm, **given))

    return make


def random_tokens(rng: np.random.Generator, n: int) -> Any:
    """Draw actions of which one in five ends the text."""
    return np.where(rng.random(n) < 0.2, EOS, rng.integers(VOCABULARY, size=n))


# -- the same as Gymnasium's own vector ---------------------------------------------------------------------------


def assert_equal(mine: Any, theirs: Any, where: str = "") -> None:
    """Assert that two results are of the same structure and types, equal but for the last bits of a float."""
    assert type(mine) is type(theirs), where
    if isinstance(mine, dict):
        assert mine.keys() == theirs.keys(), where
        for name in mine:
            assert_equal(mine[name], theirs[name], f"{where}/{name}")
    elif isinstance(mine, np.ndarray):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape), where
        if mine.dtype == object:
            for row, (one, other) in enumerate(zip(mine, theirs, strict=True)):
                assert_equal(one, other, f"{where}[{row}]")
        else:
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5, err_msg=where)
    elif isinstance(mine, tuple):
        assert len(mine) == len(theirs), where
        for place, (one, other) in enumerate(zip(mine, theirs, strict=True)):
            assert_equal(one, other, f"{where}[{place}]")
    elif isinstance(mine, float):
        assert mine == pytest.approx(theirs, abs=1e-5), where
    else:
        assert mine == theirs, where


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"kl_mode": "lump"},
        {"top_k": 20},
        {"stop": "e", "missing_eos_penalty": 1.0},
        {"info": "fixed"},
        {"info": "fixed", "top_k": 20},
        {"info": "fixed", "kl_mode": "lump"},
    ],
    ids=["dense", "lump", "masks", "stop", "fixed", "fixed-masks", "fixed-lump"],
)
@pytest.mark.parametrize("mode", MODES)
def test_equals_the_vector_of_single_environments(
    make_envs: Callable[..., TextVectorEnv], tiny_lm: CausalLM, mode: AutoresetMode, given: dict[str, Any]
) -> None:
    mine = make_envs(4, autoreset_mode=mode, **given)
    theirs = SyncVectorEnv([lambda: TextEnv(**keywords(tiny_lm, **given))] * 4, autoreset_mode=mode)
    assert mine.observation_space == theirs.observation_space
    assert mine.action_space == theirs.action_space
    assert_equal(mine.reset(seed=5), theirs.reset(seed=5), "reset")
    rng = np.random.default_rng(0)
    ended = 0
    for step in range(25):
        actions = random_tokens(rng, 4)
        mine_now = mine.step(actions)
        assert_equal(mine_now, theirs.step(actions), f"step {step}")
        over = mine_now[2]
        ended += over.sum()
        if mode is AutoresetMode.DISABLED and over.any():
            assert_equal(
                mine.reset(options={"reset_mask": over.copy()}),
                theirs.reset(options={"reset_mask": over.copy()}),
                f"reset after step {step}",
            )
    assert ended > 10


def test_make_vec_makes_both(tiny_lm: CausalLM) -> None:
    results = []
    for mode in ("vector_entry_point", "sync"):
        same_step: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}
        extra: dict[str, Any] = {"vector_kwargs": same_step} if mode == "sync" else same_step
        envs = gym.make_vec("textenv/Text-v0", 2, vectorization_mode=mode, **extra, **keywords(tiny_lm))
        envs.reset(seed=1)
        results.append([envs.step(np.array([70, EOS])) for _ in range(6)])
    for mine, theirs in zip(*results, strict=True):
        assert_equal(mine[:4], theirs[:4])


def test_the_spec_of_make_vec_makes_it_again_with_the_same_model(tiny_lm: CausalLM) -> None:
    envs = gym.make_vec("textenv/Text-v0", 2, autoreset_mode=AutoresetMode.DISABLED, **keywords(tiny_lm))
    assert envs.spec is not None
    assert isinstance(envs.spec.kwargs["model"], Handle)
    assert unwrap(envs.spec.kwargs["model"]) is tiny_lm
    again = gym.make_vec(envs.spec)
    assert again.num_envs == 2
    assert again.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert isinstance(again.unwrapped, TextVectorEnv)
    assert again.unwrapped.reference is tiny_lm


def test_the_spec_of_make_vec_can_be_written_down() -> None:
    envs = gym.make_vec("textenv/MovieReview-v0", 2, autoreset_mode=AutoresetMode.DISABLED, max_new_tokens=3)
    assert envs.spec is not None
    again = gym.make_vec(type(envs.spec).from_json(envs.spec.to_json()))
    assert_equal(envs.reset(seed=3), again.reset(seed=3))


# -- autoreset -----------------------------------------------------------------------------------------------------


def test_same_step_hands_over_the_last_observation_and_begins_anew(make_envs: Callable[..., TextVectorEnv]) -> None:
    envs = make_envs(2)
    before, _ = envs.reset(seed=0)
    obs, rewards, terminations, _, infos = envs.step(np.array([70, EOS]))
    assert terminations.tolist() == [False, True]
    last = infos["final_obs"][1]
    begun = int(before["attention_mask"][1].sum())
    assert last["input_ids"][: begun + 1].tolist() == [*before["input_ids"][1, :begun], EOS]
    assert last["attention_mask"].sum() == begun + 1
    assert infos["final_info"]["score"][1] == 0.0
    assert infos["final_info"]["stop_reason"].tolist() == [None, "eos"]
    assert rewards[1] == pytest.approx(-0.035 * infos["final_info"]["kl"][1])
    assert infos["_prompt"].tolist() == [False, True]
    assert obs["attention_mask"][1].sum() == len(envs.reference.encode(infos["prompt"][1]))
    assert [episode is not None for episode in envs.last_episodes] == [False, True]
    envs.step(np.array([70, 70]))
    assert envs.last_episodes == (None, None)


def test_next_step_spends_a_step_on_the_reset(make_envs: Callable[..., TextVectorEnv]) -> None:
    envs = make_envs(2, autoreset_mode=AutoresetMode.NEXT_STEP)
    envs.reset(seed=0)
    *_, terminations, _, infos = envs.step(np.array([70, EOS]))
    assert terminations.tolist() == [False, True]
    assert infos["stop_reason"].tolist() == [None, "eos"]
    _, rewards, terminations, _, infos = envs.step(np.array([70, -5]))  # the action of a resetting row is ignored
    assert terminations.tolist() == [False, False]
    assert rewards[1] == 0
    assert infos["_prompt"].tolist() == [False, True]
    assert envs.last_episodes == (None, None)


@pytest.mark.parametrize("given", [{}, {"kl_mode": "lump"}, {"top_k": 5}, {"kl_estimator": "full"}])
def test_a_finished_row_ignores_its_action_and_costs_no_model_time(
    make_lm: Callable[..., CausalLM], given: dict[str, Any]
) -> None:
    lm = make_lm()
    envs = TextVectorEnv(3, autoreset_mode=AutoresetMode.DISABLED, **keywords(lm, **given))
    envs.reset(seed=0)
    with Forwards(lm) as counted:
        obs, *_ = envs.step(np.array([EOS, 70, EOS]))
        finished = envs.last_episodes
        begun = counted.rows
        later, rewards, terminations, _, infos = envs.step(np.array([-1, 71, 10**9]))
        assert counted.rows - begun == (0 if given.get("kl_mode") == "lump" else 1)
        _, more, *_ = envs.step(np.array([7, EOS, 7]))
        begun = counted.rows
        _, rest, terminations, _, infos_at_rest = envs.step(np.array([7, 7, 7]))
        assert counted.rows == begun
    for row in (0, 2):
        assert all(np.array_equal(obs[name][row], later[name][row]) for name in obs)
        assert not any(mask[row] for name, mask in infos.items() if name.startswith("_"))
        assert envs.last_episodes[row] is finished[row] is not None
    assert rewards[[0, 2]].tolist() == more[[0, 2]].tolist() == [0, 0]
    assert rest.tolist() == [0, 0, 0]
    assert terminations.all()
    assert infos_at_rest == {}


def test_a_reset_mask_begins_the_chosen_rows_alone(make_envs: Callable[..., TextVectorEnv]) -> None:
    envs = make_envs(3, autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    obs, *_ = envs.step(np.array([70, EOS, 72]))
    chosen = np.array([False, True, False])
    options = {"reset_mask": chosen, "prompt": ["", "it", ""]}
    after, infos = envs.reset(seed=1, options=options)
    assert options.keys() == {"reset_mask", "prompt"}
    assert infos["_prompt"].tolist() == chosen.tolist()
    assert infos["prompt"][1] == "it"
    for row in (0, 2):
        assert all(np.array_equal(obs[name][row], after[name][row]) for name in obs)


# -- rows do not touch each other ---------------------------------------------------------------------------------


def test_a_rows_episodes_depend_on_its_seed_alone(make_envs: Callable[..., TextVectorEnv]) -> None:
    def episodes(num_envs: int, row: int, seed: Any) -> list[Any]:
        envs = make_envs(num_envs, kl_coef=0.0)
        envs.reset(seed=seed)
        tokens = np.random.default_rng(3).integers(2, VOCABULARY, size=40)
        rng = np.random.default_rng(num_envs)
        found = []
        for token in tokens:
            actions = random_tokens(rng, num_envs)
            actions[row] = token
            _, rewards, terminations, _, infos = envs.step(actions)
            if terminations[row]:
                final = infos["final_info"]
                found.append((rewards[row], final["prompt"][row], final["completion"][row]))
        return found

    expected = episodes(1, 0, 12)
    assert len(expected) == 8
    assert episodes(4, 2, 10) == expected
    assert episodes(2, 1, [None, 12]) == expected


def test_prompts_are_drawn_evenly_and_go_on_where_the_last_reset_left_them(
    make_envs: Callable[..., TextVectorEnv],
) -> None:
    envs = make_envs(200)
    drawn = [list(envs.reset(seed=0 if not number else None)[1]["prompt"]) for number in range(3)]
    assert drawn[0] != drawn[1] != drawn[2]
    counts = [sum(prompts.count(prompt) for prompts in drawn) for prompt in PROMPTS]
    assert sum(counts) == 600
    assert min(counts) > 150


def test_the_state_goes_through_json_and_back(make_envs: Callable[..., TextVectorEnv]) -> None:
    def play(envs: TextVectorEnv) -> Any:
        rng = np.random.default_rng(1)
        first = envs.reset()
        return [first, *(envs.step(random_tokens(rng, 3)) for _ in range(12))], envs.kl_coef

    reward = {"name": "normalize", "reward": {"name": "length", "target": 3}}
    adaptive = {"kl_target": 2.0, "kl_horizon": 20, "reward": reward}
    envs = make_envs(**adaptive)
    envs.reset(seed=0)
    play(envs)
    state = json.loads(json.dumps(envs.state_dict()))
    expected, coef = play(envs)
    again = make_envs(**adaptive)
    again.load_state_dict(state)
    with pytest.raises(TextEnvError, match="reset"):
        again.step(np.zeros(3, dtype=np.int64))
    found, coef_again = play(again)
    assert coef_again == coef != 0.05
    for mine, theirs in zip(found, expected, strict=True):
        assert_equal(mine, theirs)
    with pytest.raises(TextEnvError, match="3 rows, this environment has 2"):
        make_envs(2).load_state_dict(state)


# -- KL ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "full"])
@pytest.mark.parametrize("mode", ["dense", "lump"])
def test_rewards_sum_to_the_score_less_the_kl_under_a_policy(
    make_envs: Callable[..., TextVectorEnv], make_lm: Callable[..., CausalLM], mode: str, estimator: str
) -> None:
    envs = make_envs(6, kl_mode=mode, kl_estimator=estimator, kl_coef=0.3, autoreset_mode=AutoresetMode.SAME_STEP)
    policy = TextPolicy(make_lm(seed=2))
    envs.attach_policy(policy)
    generator = torch.Generator().manual_seed(0)
    obs, _ = envs.reset(seed=0)
    paid = np.zeros(6)
    finished = 0
    for _ in range(20):
        actions, _ = policy.act(obs, generator=generator)
        obs, rewards, terminations, _, infos = envs.step(actions)
        paid += rewards
        for row in np.flatnonzero(terminations):
            final = {name: values[row] for name, values in infos["final_info"].items()}
            assert paid[row] == pytest.approx(final["score"] - 0.3 * sum(final["token_kl"]), abs=1e-5)
            assert paid[row] == pytest.approx(sum(final["token_rewards"]), abs=1e-5)
            finished += 1
        paid[terminations] = 0
    assert finished > 10


def test_an_episode_keeps_the_coefficient_it_began_with(make_envs: Callable[..., TextVectorEnv]) -> None:
    envs = make_envs(2, kl_coef=0.1, kl_target=1.0, kl_horizon=2)
    envs.reset(seed=0)
    envs.step(np.array([70, EOS]))
    assert envs.kl_coef == pytest.approx(0.1 * 1.1)  # clipped error 0.2, one episode of a horizon of two
    _, rewards, _, _, infos = envs.step(np.array([70, 70]))
    assert rewards[0] == pytest.approx(-0.1 * infos["kl"][0])
    assert rewards[1] == pytest.approx(-0.1 * 1.1 * infos["kl"][1])


def test_lump_reads_an_episode_once_and_dense_once_a_token(make_lm: Callable[..., CausalLM]) -> None:
    rows = {}
    for mode in ("lump", "dense"):
        lm = make_lm()
        envs = TextVectorEnv(2, kl_mode=mode, **keywords(lm))
        envs.reset(seed=0)
        envs.step(np.array([EOS, EOS]))  # the cache has been checked once
        envs.reset(seed=0)
        with Forwards(lm) as counted:
            for _ in range(5):
                envs.step(np.array([70, 71]))
        rows[mode] = counted.rows
    assert rows == {"lump": 2, "dense": 10}


@pytest.mark.parametrize("mode", ["dense", "lump"])
def test_another_architecture_with_padding_that_is_an_end_token(make_lm: Callable[..., CausalLM], mode: str) -> None:
    lm = make_lm("gpt2")
    lm.tokenizer.pad_token = lm.tokenizer.eos_token
    lm = CausalLM(lm.model, lm.tokenizer)
    assert lm.pad_id == EOS
    envs = TextVectorEnv(4, autoreset_mode=AutoresetMode.DISABLED, **keywords(lm, kl_mode=mode))
    policy = TextPolicy(lm)
    envs.attach_policy(policy)
    obs, _ = envs.reset(options={"prompt": [*PROMPTS, "the"]})
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        obs, *_ = envs.step(policy.act(obs, generator=generator)[0])
    episodes = [episode for episode in envs.last_episodes if episode is not None]
    assert len(episodes) == 4
    for row, episode in enumerate(episodes):
        assert episode.kl == pytest.approx([0.0] * len(episode.kl), abs=1e-5)
        assert obs["attention_mask"][row].sum() == len(episode.prompt_ids) + len(episode.completion_ids)


@pytest.mark.parametrize("mode", ["dense", "lump"])
def test_an_episode_holds_all_that_is_known_of_it(tiny_lm: CausalLM, mode: str) -> None:
    rows = [{"prompt": text, "label": number} for number, text in enumerate(PROMPTS)]
    envs = TextVectorEnv(
        3, autoreset_mode=AutoresetMode.DISABLED, **keywords(tiny_lm, kl_mode=mode, kl_coef=0.3, prompts=rows)
    )
    policy = TextPolicy(tiny_lm, temperature=1.0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.3)
    envs.attach_policy(policy)
    obs, infos = envs.reset(options={"prompt_index": [2, 0, 1]})
    generator = torch.Generator().manual_seed(0)
    drawn = np.zeros((3, 5))
    for step in range(5):
        actions = policy.act(obs, generator=generator)[0]
        drawn[:, step] = policy.action_log_prob(actions)
        obs, _, _, _, infos = envs.step(actions)
    for row, episode in enumerate(envs.last_episodes):
        assert episode is not None
        assert episode.start is envs.row_prompts[row]
        assert (episode.prompt, episode.columns) == (PROMPTS[[2, 0, 1][row]], {"label": [2, 0, 1][row]})
        size = len(episode.completion_ids)
        assert episode.log_probs == pytest.approx(drawn[row, :size].tolist(), abs=1e-6)
        difference = np.subtract(episode.log_probs, episode.ref_log_probs)
        assert np.abs(difference).max() > 1e-3
        assert episode.kl == pytest.approx(difference.tolist(), abs=1e-6)
        expected = [-0.3 * kl for kl in episode.kl]
        expected[-1] += episode.score
        assert episode.token_rewards == pytest.approx(expected, abs=1e-6)
        assert infos["ref_logprob"][row] == episode.ref_log_probs[-1]


# -- wrappers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_record_episode_statistics_sees_the_returns(tiny_lm: CausalLM, mode: AutoresetMode) -> None:
    envs = RecordEpisodeStatistics(gym.make_vec("textenv/Text-v0", 2, autoreset_mode=mode, **keywords(tiny_lm)))
    envs.reset(seed=0)
    _, first, *_ = envs.step(np.array([70, 71]))
    _, second, terminations, _, infos = envs.step(np.array([72, EOS]))
    assert terminations.tolist() == [False, True]
    assert infos["episode"]["r"][1] == pytest.approx(first[1] + second[1])
    assert infos["episode"]["l"].tolist() == [0, 2]
    if mode is AutoresetMode.DISABLED:
        envs.reset(options={"reset_mask": terminations})
        assert envs.step(np.array([70, EOS]))[4]["episode"]["l"].tolist() == [0, 1]


def test_dict_info_to_list_takes_the_infos_apart(make_envs: Callable[..., TextVectorEnv]) -> None:
    envs: Any = DictInfoToList(make_envs(2))
    envs.reset(seed=0)
    infos = envs.step(np.array([70, EOS]))[4]
    assert infos[0].keys() == {"kl", "logprob", "ref_logprob"}
    assert infos[1]["final_info"]["stop_reason"] == "eos"


class NumbersOnly(VectorWrapper[Any, Any, Any, Any, Any]):
    """Drops the texts from ``infos``: Gymnasium's conversion of vector infos takes arrays of numbers alone."""

    def reset(self, **given: Any) -> tuple[Any, dict[str, Any]]:
        obs, infos = self.env.reset(**given)
        return obs, self._numbers(infos)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        *rest, infos = self.env.step(actions)
        return (*rest, self._numbers(infos))

    @staticmethod
    def _numbers(infos: dict[str, Any]) -> dict[str, Any]:
        return {
            name: values
            for name, values in infos.items()
            if isinstance(values, np.ndarray) and values.dtype.kind != "O"
        }


def test_numpy_to_torch_hands_over_tensors(make_envs: Callable[..., TextVectorEnv], tiny_lm: CausalLM) -> None:
    envs: Any = NumpyToTorch(NumbersOnly(make_envs(2, autoreset_mode=AutoresetMode.DISABLED)))
    obs, _ = envs.reset(seed=0)
    assert tiny_lm.model(**obs).logits.shape[-1] == VOCABULARY
    obs, rewards, terminations, _, infos = envs.step(torch.tensor([70, EOS]))
    assert obs["input_ids"].dtype == torch.int64
    assert rewards.dtype == torch.float64
    assert terminations.tolist() == [False, True]
    assert isinstance(infos["kl"], torch.Tensor)


def test_time_limits_inside_gymnasiums_own_vector(tiny_lm: CausalLM) -> None:
    envs = SyncVectorEnv([lambda: TimeLimit(TextEnv(**keywords(tiny_lm)), 2)] * 2, autoreset_mode="SameStep")
    envs.reset(seed=0)
    envs.step(np.array([70, 70]))
    *_, terminations, truncations, infos = envs.step(np.array([70, EOS]))
    assert terminations.tolist() == [False, True]
    assert truncations.tolist() == [True, True]  # as TimeLimit counts
    assert infos["final_info"]["_score"].tolist() == [False, True]


def test_render_shows_every_row(make_envs: Callable[..., TextVectorEnv], capsys: pytest.CaptureFixture[str]) -> None:
    envs = make_envs(2, render_mode="ansi", autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(options={"prompt": ["the film", "it"]})
    for _ in range(2):  # a finished row goes on being shown as finished
        envs.step(np.array([70, EOS]))
        frames = envs.render()
        assert frames is not None
        assert "unfinished" in frames[0]
        assert "the film" in frames[0]
        assert "score" in frames[1]
    human = make_envs(2, render_mode="human", autoreset_mode=AutoresetMode.DISABLED)
    human.reset(options={"prompt": ["the film", "it"]})
    for _ in range(3):
        human.step(np.array([70, EOS]))
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 1
    assert "eos" in printed


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_envs": 0}, "num_envs=0"),
        ({"num_envs": 2.0}, "num_envs=2.0"),
        ({"num_envs": True}, "num_envs=True"),
        ({"autoreset_mode": "sometimes"}, "autoreset_mode='sometimes'.*SameStep"),
        ({"kl_coeff": 0.1}, "Did you mean 'kl_coef'"),
    ],
)
def test_bad_arguments_are_refused(
    make_envs: Callable[..., TextVectorEnv], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(TextEnvError, match=message):
        make_envs(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": [1, 2]}, r"seed=\[1, 2\]: expected a whole number of at least 0, or 3"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"seed": ["a", "b", "c"]}, "seed="),
        ({"options": {"reset_mask": np.array([True, False])}}, "3 booleans"),
        ({"options": {"reset_mask": np.array([1, 0, 1])}}, "3 booleans"),
        ({"options": {"reset_mask": np.zeros(3, dtype=bool)}}, "at least one"),
        ({"options": {"reset_mask": np.array([True, True, False])}}, "never begun"),
        ({"options": {"prompt": ["a", "b"]}}, "'prompt'.*a text or a list of messages, or 3 of them"),
        ({"options": {"prompt_index": -1}}, "from 0 to 2"),
    ],
)
def test_reset_refuses_what_it_cannot_do(
    make_envs: Callable[..., TextVectorEnv], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(TextEnvError, match=message):
        make_envs().reset(**given)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.array([1, 2]), r"shape \(2,\).*3 rows"),
        (np.array([[1], [2], [3]]), r"shape \(3, 1\)"),
        (5, r"shape \(\)"),
        (np.array([1.0, 2.0, 3.0]), "float64"),
        (np.array([True, False, True]), "bool"),
        (np.array([1, 2, VOCABULARY]), "from 0 to 299"),
        (np.array([1, -1, 2]), "from 0 to 299"),
    ],
)
def test_step_refuses_what_is_no_action(make_envs: Callable[..., TextVectorEnv], actions: Any, message: str) -> None:
    envs = make_envs()
    envs.reset(seed=0)
    with pytest.raises(TextEnvError, match=message):
        envs.step(actions)


def test_a_reward_that_raises_leaves_rows_that_can_be_reset(make_envs: Callable[..., TextVectorEnv]) -> None:
    calls = 0

    def once(completions: Sequence[str], **_: Any) -> list[float]:
        nonlocal calls
        calls += 1
        return [1.0] * len(completions) if calls > 1 else [1.0]

    envs = make_envs(3, reward=once, autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    with pytest.raises(TextEnvError, match="1 scores for 2 completions"):
        envs.step(np.array([EOS, 70, EOS]))
    with pytest.raises(TextEnvError, match="reset"):
        envs.step(np.array([70, 70, 70]))
    envs.reset(options={"reset_mask": np.array([True, False, True])})
    *_, terminations, _, infos = envs.step(np.array([70, EOS, 70]))
    assert terminations.tolist() == [False, True, False]
    assert len(infos["completion_ids"][1]) == 2


# -- against a model of the process in plain Python ---------------------------------------------------------------

_LM = build_lm()
_ENCODED = [list(_LM.encode(prompt)) for prompt in PROMPTS]
_ROWS, _BUDGET, _COEF = 3, 4, 0.5


class Row:
    """One row of the process, as its definition reads; nothing is shared with the implementation but the models."""

    def __init__(self) -> None:
        self.generator: np.random.Generator
        self.over = True

    def begin(self) -> None:
        place = int(self.generator.integers(len(PROMPTS)))
        self.prompt, self.start = PROMPTS[place], len(_ENCODED[place])
        self.ids = list(_ENCODED[place])
        self.over = False

    def act(self, token: int) -> float:
        ids = np.array([[*self.ids, token]])
        log_prob = float(_LM.token_log_probs(ids, np.array([ids.shape[1]]))[0, -1])
        self.ids.append(token)
        self.over = token == EOS or len(self.ids) - self.start == _BUDGET
        reward = _COEF * log_prob
        return reward + vowels([_LM.decode(self.ids[self.start :])])[0] if self.over else reward


class TextVectorMachine(RuleBasedStateMachine):
    """Random seeds, resets, masks and actions, in every autoreset mode."""

    @initialize(mode=st.sampled_from(MODES), seed=st.integers(0, 99), masked=st.sampled_from([None, VOCABULARY]))
    def make(self, mode: AutoresetMode, seed: int, masked: int | None) -> None:
        given = keywords(_LM, max_new_tokens=_BUDGET, kl_coef=_COEF, top_k=masked)
        self.envs = TextVectorEnv(_ROWS, autoreset_mode=mode, **given)
        self.mode = mode
        self.rows = [Row() for _ in range(_ROWS)]
        self.reset(seed, [True] * _ROWS)

    @rule(seed=st.none() | st.integers(0, 99), mask=st.lists(st.booleans(), min_size=_ROWS, max_size=_ROWS).filter(any))
    def reset(self, seed: int | None, mask: list[bool]) -> None:
        self.obs, infos = self.envs.reset(seed=seed, options={"reset_mask": np.array(mask)})
        for place, row in enumerate(self.rows):
            if mask[place]:
                if seed is not None:
                    row.generator, _ = seeding.np_random(seed + place)
                row.begin()
                assert infos["prompt"][place] == row.prompt
        assert infos["_prompt"].tolist() == mask

    @rule(tokens=st.lists(st.sampled_from([EOS, PAD]) | st.integers(0, VOCABULARY - 1), min_size=_ROWS, max_size=_ROWS))
    def step(self, tokens: list[int]) -> None:
        self.obs, rewards, terminations, truncations, infos = self.envs.step(np.array(tokens))
        assert not truncations.any()
        for place, (row, token) in enumerate(zip(self.rows, tokens, strict=True)):
            if row.over:
                assert rewards[place] == 0
                assert terminations[place] == (self.mode is AutoresetMode.DISABLED)
                if self.mode is AutoresetMode.NEXT_STEP:
                    row.begin()
                continue
            assert rewards[place] == pytest.approx(row.act(token), abs=1e-4)
            assert terminations[place] == row.over
            if row.over:
                same_step = self.mode is AutoresetMode.SAME_STEP
                final = infos["final_info"] if same_step else infos
                assert list(final["completion_ids"][place]) == row.ids[row.start :]
                assert final["stop_reason"][place] == ("eos" if token == EOS else "length")
                if same_step:
                    assert infos["final_obs"][place]["input_ids"][: len(row.ids)].tolist() == row.ids
                    row.begin()

    @invariant()
    def observations_are_the_rows(self) -> None:
        if not hasattr(self, "rows"):
            return
        width = max(map(len, _ENCODED)) + _BUDGET
        for place, row in enumerate(self.rows):
            rest = width - len(row.ids)
            assert self.obs["input_ids"][place].tolist() == row.ids + [PAD] * rest
            assert self.obs["attention_mask"][place].tolist() == [1] * len(row.ids) + [0] * rest


TestTextVectorMachine = TextVectorMachine.TestCase
TestTextVectorMachine.settings = settings(max_examples=25, stateful_step_count=20)


@pytest.mark.parametrize(
    "prompt",
    [
        {"role": "user", "content": "the film"},  # a mapping of two keys is not two prompts
        b"it",
        {"the film", "it"},
        ["the film", "\ud83d"],
        ["the film", 5],
        ["the film", "it", "the"],
    ],
)
def test_what_are_no_prompts_for_two_rows(tiny_lm: CausalLM, prompt: object) -> None:
    envs = TextVectorEnv(2, **keywords(tiny_lm))
    with pytest.raises(TextEnvError, match=r"a text or a list of messages|half of a surrogate pair"):
        envs.reset(options={"prompt": prompt})
