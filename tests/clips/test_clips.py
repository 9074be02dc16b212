"""Clips: segments, oracle, queries, ensemble and wrappers, each against numbers made by hand."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from textenv.clips.comparisons import Comparisons
from textenv.clips.ensemble import RewardEnsemble
from textenv.clips.oracle import Oracle, true_return
from textenv.clips.queries import choose_pairs, features_of, labels_due
from textenv.clips.reward_learner import RewardLearner, adapted_l2, preference_losses
from textenv.clips.segments import Features, Recorder, Segment, Trajectory, sample_segments
from textenv.clips.wrappers import FixedLength, LearnedReward
from textenv.types import FloatArray, TextEnvError


class Walk(gym.Env[Any, Any]):
    """A walk on a line that begins at random, ends beyond ±1, and pays where it stands; noise comes from the seed."""

    observation_space = spaces.Box(-10, 10, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (Gymnasium's)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def render(self) -> Any:
        """A white picture with a black column at the place."""
        picture = np.full((300, 60, 3), 255, np.uint8)
        picture[:, round(float(np.clip(30 + 20 * self.place, 2, 57))) + np.arange(-2, 3)] = 0
        return picture

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-0.5, 0.5)
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = self.place
        self.place = float(np.clip(self.place + 0.3 * action[0] + self.np_random.normal(scale=0.1), -10, 10))
        return self._seen(), reward, abs(self.place) > 1, False, {}

    def _seen(self) -> Any:
        return np.array([self.place], np.float32)


def trajectory(rewards: list[float], seed: int = 0) -> Trajectory:
    """Observations are the rewards, actions are 0."""
    values = np.array(rewards)
    return Trajectory(seed, values[:, None].astype(np.float32), np.zeros((len(values), 1), np.float32), values)


FEATURES = Features(Walk.observation_space, Walk.action_space)


# --- segments ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_segments_lie_within_one_trajectory(lengths: list[int], steps: int, seed: int) -> None:
    # The reward is 100 times the trajectory's number, plus the step's.
    made = [trajectory([100.0 * number + step for step in range(length)]) for number, length in enumerate(lengths)]
    rng = np.random.default_rng(seed)
    if max(lengths) < steps:
        with pytest.raises(TextEnvError, match=f"No episode has the {steps} steps"):
            sample_segments(made, 4, steps, rng)
        return
    for clip in sample_segments(made, 20, steps, rng):
        assert clip.observations.shape == clip.actions.shape == (steps, 1)
        assert np.array_equal(np.diff(clip.rewards), np.ones(steps - 1))
        assert np.array_equal(clip.observations[:, 0], clip.rewards)


def test_every_place_is_as_likely_as_any_other() -> None:
    made = [trajectory([0.0] * 5), trajectory([0.0] * 2), trajectory([0.0] * 8)]  # 3, 0 and 6 places for three steps
    drawn = sample_segments(made, 9000, 3, np.random.default_rng(0))
    counts = [sum(clip.trajectory is made[n] and clip.start == start for clip in drawn) for n, start in PLACES]
    assert sum(counts) == 9000
    assert min(counts) > 850
    assert max(counts) < 1150


PLACES = [(0, 0), (0, 1), (0, 2), *((2, start) for start in range(6))]


def test_a_segment_beyond_the_end_is_refused() -> None:
    with pytest.raises(TextEnvError, match="Steps 3 to 6: expected some of 0 to 5"):
        Segment(trajectory([0.0] * 5), 3, 6)


def test_the_recorder_keeps_each_episode_apart() -> None:
    env = FixedLength(Recorder(Walk(), seed=3), steps=40)
    env.reset(seed=1)
    seen, paid = [], []
    rng = np.random.default_rng(0)
    for _ in range(100):
        action = rng.uniform(-1, 1, 1).astype(np.float32)
        observation, reward, terminated, cut_off, _ = env.step(action)
        assert not terminated
        paid.append(reward)
        seen.append(observation)
        if cut_off:
            env.reset()
    env.reset()
    taken = env.env.take()  # type: ignore[attr-defined]
    assert env.env.take() == []  # type: ignore[attr-defined]
    assert sum(map(len, taken)) == 100
    assert np.array_equal(np.concatenate([one.rewards for one in taken]), paid)
    assert len(taken) > 3  # the walk ends by itself too
    for one in taken:
        again = Walk()
        observation, _ = again.reset(seed=one.seed)
        for step in range(len(one)):  # the seed and the actions give the same episode: none crosses a reset
            assert np.array_equal(observation, one.observations[step])
            observation, reward, *_ = again.step(one.actions[step])
            assert reward == one.rewards[step]


@settings(max_examples=20)
@given(st.integers(0, 30))
def test_the_recorder_goes_on_where_another_stopped(steps: int) -> None:
    rng = np.random.default_rng(steps)
    actions = rng.uniform(-0.1, 0.1, (steps + 5, 1)).astype(np.float32)
    first, second = Recorder(Walk(), seed=1), Recorder(Walk(), seed=2)
    seen: Any = first.reset(seed=7)[0]
    for action in actions[:steps]:
        seen, _, terminated, *_ = first.step(action)
        if terminated:
            seen, _ = first.reset()
    assert np.array_equal(second.restore(first.state()), seen)
    second.take()
    first.take()
    for action in actions[steps:]:
        one, other = first.step(action), second.step(action)
        assert np.array_equal(one[0], other[0])
        assert one[1:3] == other[1:3]
        if one[2]:
            assert np.array_equal(first.reset()[0], second.reset()[0])
    assert np.array_equal(first.reset()[0], second.reset()[0])  # the seeds to come are the same too
    for one_taken, other_taken in zip(first.take(), second.take(), strict=True):
        assert np.array_equal(one_taken.actions, other_taken.actions)


def test_options_of_a_reset_are_refused() -> None:
    with pytest.raises(TextEnvError, match="a recorded task takes none"):
        Recorder(Walk()).reset(options={"low": 1})


def test_features_are_flat_and_actions_one_hot() -> None:
    features = Features(spaces.Box(-1, 1, (2, 2)), spaces.Discrete(3, start=1))
    assert features.size == 7
    made = features(np.arange(8.0).reshape(2, 2, 2), np.array([1, 3]))
    assert made.tolist() == [[0, 1, 2, 3, 1, 0, 0], [4, 5, 6, 7, 0, 0, 1]]
    assert made.dtype == np.float32
    with pytest.raises(TextEnvError, match="expected a Box of observations"):
        Features(spaces.Discrete(3), spaces.Discrete(2))


# --- the synthetic judge ----------------------------------------------------------------------------------------------

GOOD, BAD = Segment(trajectory([1.0, 2.0]), 0, 2), Segment(trajectory([1.0, 1.0]), 0, 2)


def test_the_oracle_prefers_the_higher_true_return() -> None:
    oracle = Oracle()
    assert true_return(GOOD) == 3
    assert [oracle.prefer(0, GOOD, BAD), oracle.prefer(1, BAD, GOOD), oracle.prefer(2, GOOD, GOOD)] == [1, 0, 0.5]


@pytest.mark.parametrize(
    ("oracle", "share"),
    [
        (Oracle(error_rate=0.4), 0.8),
        (Oracle(temperature=0.5), 1 / (1 + math.exp(-2))),
        (Oracle(temperature=0.5, error_rate=0.5), 0.25 + 0.5 / (1 + math.exp(-2))),
    ],
)
def test_the_oracle_errs_as_often_as_it_should(oracle: Oracle, share: float) -> None:
    judged = [oracle.prefer(number, GOOD, BAD) for number in range(3000)]
    assert np.mean(judged) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 3000))
    assert judged[7] == oracle.prefer(7, GOOD, BAD)  # whatever was judged between


@pytest.mark.parametrize("bad", [{"error_rate": 1.1}, {"temperature": -1.0}, {"temperature": math.inf}])
def test_an_impossible_oracle_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(TextEnvError, match=next(iter(bad))):
        Oracle(**bad)  # type: ignore[arg-type]


def test_a_score_that_is_not_finite_is_refused() -> None:
    with pytest.raises(TextEnvError, match="expected finite numbers"):
        Oracle(lambda clip: math.nan).prefer(0, GOOD, BAD)


# --- queries ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 2000), st.floats(0, 1), st.integers(1, 50), st.floats(0.01, 100))
def test_the_schedule_sums_to_the_budget_and_never_falls(
    labels: int, share: float, rounds: int, anneal_steps: float
) -> None:
    initial = round(labels * share)
    due = [
        labels_due(step, labels=labels, initial=initial, last_step=rounds, anneal_steps=anneal_steps)
        for step in range(rounds + 3)
    ]
    assert due[0] == initial
    assert due[rounds:] == [labels] * 3
    assert due == sorted(due)


def test_the_rate_is_half_after_the_annealing_steps() -> None:
    due = [labels_due(s, labels=10**9, initial=0, last_step=10**5, anneal_steps=1000) for s in (0, 1, 1000, 1001)]
    assert (due[3] - due[2]) / (due[1] - due[0]) == pytest.approx(0.5, rel=1e-3)


class Disputed(RewardEnsemble):
    """Two members that agree on clips of features below 1, and contradict each other above."""

    def members(self, steps: torch.Tensor) -> torch.Tensor:
        value = steps[..., 0]
        return torch.stack([value, torch.where(value < 1, value, -value)])


def test_disagreement_is_the_variance_of_probabilities() -> None:
    clips = torch.tensor([[[[0.5], [0.5]], [[0.2], [0.2]]], [[[2.0], [2.0]], [[0.2], [0.2]]]])
    probabilities = [1 / (1 + math.exp(-3.6)), 1 / (1 + math.exp(4.4))]  # of the second pair, by member
    expected = [0.0, np.var(probabilities)]
    assert Disputed(1, members=2).disagreement(clips).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_most_disputed_pairs_are_asked_for() -> None:
    calm = [trajectory([0.1] * 6) for _ in range(9)]
    wild = [trajectory([3.0] * 6)]
    keywords: dict[str, Any] = {"features": FEATURES, "candidates": 40}
    rng = np.random.default_rng(0)
    chosen = choose_pairs([*calm, *wild], 5, 3, ensemble=Disputed(2, members=2), rng=rng, **keywords)
    assert all(sum(clip.trajectory is wild[0] for clip in pair) == 1 for pair in chosen)
    rng = np.random.default_rng(0)
    by_chance = choose_pairs([*calm, *wild], 200, 3, ensemble=None, rng=rng, **keywords)
    wild_share = np.mean([clip.trajectory is wild[0] for pair in by_chance for clip in pair])
    assert wild_share == pytest.approx(0.1, abs=0.06)


def test_features_of_pairs() -> None:
    made = features_of([(GOOD, BAD)], FEATURES)
    assert made.tolist() == [[[[1, 0], [2, 0]], [[1, 0], [1, 0]]]]


# --- the ensemble -----------------------------------------------------------------------------------------------------


def test_losses_against_numbers_made_by_hand() -> None:
    scores = torch.tensor([[[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]], [[0.0, 0.0], [-1.0, 1.0], [3.0, 3.0]]])
    preferred = torch.tensor([1.0, 0.0, 0.5])
    right = 0.9 / (1 + math.exp(-2)) + 0.05
    wrong = 1 - right
    expected = [
        [-math.log(right), -math.log(wrong), -0.5 * math.log(right) - 0.5 * math.log(wrong)],
        [math.log(2), -math.log(right), math.log(2)],
    ]
    assert torch.allclose(preference_losses(scores, preferred, 0.1), torch.tensor(expected), atol=1e-6)
    assert preference_losses(torch.tensor([[[-99.0, 99.0]]]), torch.tensor([1.0]), 0.1).item() == pytest.approx(
        -math.log(0.05)
    )


def test_members_are_networks_of_their_own() -> None:
    ensemble = RewardEnsemble(2, members=3, hidden=4, seed=1)
    with torch.no_grad():
        for bias in ensemble.biases:
            bias.uniform_(-1, 1)
    clips = torch.randn(5, 7, 2, generator=torch.Generator().manual_seed(0))
    for member, rewards in enumerate(ensemble.members(clips)):
        hidden = clips
        weights: Any = ensemble.weights
        biases: Any = ensemble.biases
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            hidden = hidden @ weight[member] + bias[member]
            if layer < 2:
                hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
        assert torch.allclose(rewards, hidden[..., 0], atol=1e-6)
    assert torch.allclose(ensemble.scores(clips), ensemble.members(clips).sum(dim=2))


def test_normalization() -> None:
    ensemble = RewardEnsemble(3, members=3, seed=2)
    steps = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 50.0, 0.0]) + 7
    ensemble.fit_input_scale(steps)
    scaled = (steps - ensemble.input_mean) / ensemble.input_std
    assert torch.allclose(scaled.mean(dim=0), torch.zeros(3), atol=1e-4)
    assert torch.allclose(scaled.std(dim=0, unbiased=False), torch.tensor([1.0, 1.0, 0.0]), atol=1e-4)
    ensemble.normalize(steps, std=0.25)
    members = (ensemble.members(steps) - ensemble.member_mean[:, None]) / ensemble.member_std[:, None]
    assert torch.allclose(members.mean(dim=1), torch.zeros(3), atol=1e-4)
    assert torch.allclose(members.std(dim=1, unbiased=False), torch.ones(3), atol=1e-4)
    reward = ensemble(steps)
    assert reward.mean().item() == pytest.approx(0, abs=1e-4)
    assert reward.std(unbiased=False).item() == pytest.approx(0.25, abs=1e-4)
    average = members.mean(dim=0)
    assert torch.allclose(reward, average * 0.25 / average.std(unbiased=False), atol=1e-4)


def test_bagging() -> None:
    comparisons = Comparisons.none(1, 1, 3)
    generator = torch.Generator().manual_seed(0)
    comparisons.add(torch.zeros(2000, 2, 1, 1), generator)
    before = comparisons.counts.clone()
    comparisons.add(torch.zeros(2000, 2, 1, 1), generator)
    assert torch.equal(comparisons.counts[:, :2000], before)  # whoever is held out stays held out
    held_out = (comparisons.counts == 0).double()
    assert held_out.mean().item() == pytest.approx(math.exp(-1), abs=0.015)
    assert comparisons.counts.double().mean().item() == pytest.approx(1, abs=0.03)
    for one, other in ((0, 1), (0, 2), (1, 2)):  # the samples are independent
        assert (held_out[one] * held_out[other]).mean().item() == pytest.approx(math.exp(-2), abs=0.02)


def test_a_member_learns_from_its_own_sample_only() -> None:
    comparisons = Comparisons(
        clips=torch.tensor([[[[1.0]], [[-1.0]]], [[[0.3]], [[-0.3]]]]),
        preferred=torch.tensor([1.0, 0.0]),  # the two contradict each other
        counts=torch.tensor([[3, 0], [0, 2], [0, 0]]),
    )
    ensemble = RewardEnsemble(1, members=3, hidden=8)
    untrained = ensemble.members(torch.tensor([[1.0]]))[2].item()
    learner = RewardLearner(ensemble, learning_rate=5e-2, l2=0.0)  # which 20 updates do not change yet
    learner.fit(comparisons, 20, torch.Generator().manual_seed(0))
    up, down, _ = (ensemble.members(torch.tensor([[1.0], [-1.0]])) @ torch.tensor([1.0, -1.0])).tolist()
    assert up > 1
    assert down < -1
    assert ensemble.members(torch.tensor([[1.0]]))[2].item() == untrained


def test_l2_goes_towards_the_wanted_ratio() -> None:
    l2 = torch.full((5,), 1e-3)
    training = torch.ones(5)
    validation = torch.tensor([1.6, 1.3, 1.05, 0.5, math.nan])
    expected = torch.tensor([1.1e-3, 1e-3, 1e-3 / 1.1, 1e-3 / 1.1, 1e-3])
    assert torch.allclose(adapted_l2(l2, training, validation), expected)
    assert adapted_l2(torch.tensor([0.03]), torch.ones(1), torch.full((1,), 9.0)).item() == pytest.approx(0.03)
    assert 0 < adapted_l2(torch.tensor([1e-7]), torch.ones(1), torch.ones(1)).item() < 1.1e-7  # it can come back


def test_a_linear_reward_is_recovered_from_comparisons() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([1.0, -2.0, 0.5])
    comparisons = Comparisons.none(10, 3, 3)
    comparisons.add(torch.randn(300, 2, 10, 3, generator=generator), generator)
    returns = (comparisons.clips @ truth).sum(dim=-1)
    comparisons.preferred = (returns[:, 0] > returns[:, 1]).float()
    flipped = torch.rand(300, generator=generator) < 0.05
    comparisons.preferred[flipped] = 1 - comparisons.preferred[flipped]
    comparisons.preferred[:20] = math.nan  # nobody has judged these
    ensemble = RewardEnsemble(3)
    learner = RewardLearner(ensemble)
    judged = comparisons.judged()
    assert len(judged) == 280
    learner.fit(judged, 250, generator)
    report = learner.fit(judged, 50, generator)  # it goes on
    held_out = torch.randn(500, 3, generator=generator)
    with torch.no_grad():
        correlation = np.corrcoef(ensemble(held_out), held_out @ truth)[0, 1]
    assert correlation > 0.9
    assert report.training < report.validation < math.log(2)
    assert report.accuracy > 0.85


# --- wrappers ---------------------------------------------------------------------------------------------------------


def twice_the_place(observations: Any, actions: Any) -> FloatArray:
    assert observations.shape == actions.shape == (len(observations), 1)
    return np.asarray(2 * observations[:, 0] + actions[:, 0], dtype=np.float32)


@pytest.fixture
def wrapped() -> Iterator[LearnedReward]:
    env = LearnedReward(FixedLength(Recorder(Walk(), seed=0), steps=30), twice_the_place)
    yield env
    env.close()


def test_the_wrappers_pass_both_checkers(wrapped: LearnedReward) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version.*")
        warnings.filterwarnings("ignore", message=".*environment.*spec.*")
        warnings.filterwarnings("ignore", message=".*Not able to test alternative render modes.*")
        check_env(wrapped, skip_render_check=True)
        sb3_check_env(wrapped)


def test_the_learned_reward_is_paid_and_the_true_one_is_told(wrapped: LearnedReward) -> None:
    observation, _ = wrapped.reset(seed=0)
    rng = np.random.default_rng(0)
    for step in range(1, 31):
        action = rng.uniform(-1, 1, 1).astype(np.float32)
        after, reward, terminated, truncated, info = wrapped.step(action)
        assert reward == pytest.approx(2 * observation[0] + action[0])
        assert info["true_reward"] == pytest.approx(observation[0])
        assert (terminated, truncated) == (False, step == 30)
        observation = after


def test_episodes_are_of_one_length_whatever_the_task_does() -> None:
    recorder = Recorder(Walk(), seed=0)
    env = FixedLength(recorder, steps=50)
    env.reset(seed=0)
    lengths, length, total, totals = [], 0, 0.0, []
    for _ in range(200):
        _, reward, terminated, truncated, _ = env.step(np.ones(1, np.float32))
        length, total = length + 1, total + float(reward)
        assert not terminated
        if truncated:
            lengths.append(length)
            totals.append(total)
            length, total = 0, 0.0
            env.reset()
    assert lengths == [50] * 4
    assert env.returns == pytest.approx(totals)
    assert max(map(len, recorder.take())) < 20  # the task itself ended long before
