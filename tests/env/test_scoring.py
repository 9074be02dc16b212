"""The environment's call of a reward: what it takes, and what it says when a reward misbehaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from textenv.env.reward_calls import SERVICES, reward_name
from textenv.env.scoring import Scorer, resolve_reward, score
from textenv.rewards.clip import Clip
from textenv.rewards.normalize import Normalize
from textenv.rewards.weighted_sum import WeightedSum
from textenv.types import Prompt, TextEnvError

PROMPTS = ["a prompt", "another prompt", "the third prompt"]
COMPLETIONS = ["one", "two words", "three words here"]
IDS = [[1], [2, 3], [4, 5, 6]]


def call(reward: Callable[..., Any], **columns: Sequence[Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return score(reward, prompts=PROMPTS, completions=COMPLETIONS, completion_ids=IDS, columns=columns)


def returning(value: Any) -> Callable[..., Any]:
    def constant(**columns: Any) -> Any:
        return value

    return constant


def trl_style(completions: list[str], **kwargs: Any) -> list[float]:
    """Written as TRL's documentation shows it."""
    return [float(len(completion)) for completion in completions]


def narrow(prompts: list[str], completions: list[str], completion_ids: list[list[int]]) -> list[float]:
    """Takes no columns."""
    return [0.0] * len(completions)


class TestScore:
    def test_calls_the_reward_once_with_lists_and_columns(self) -> None:
        calls: list[dict[str, Any]] = []

        def spy(**arguments: Any) -> list[float]:
            calls.append({name: value for name, value in arguments.items() if name not in SERVICES})
            assert set(SERVICES) <= set(arguments)
            return [1.0, 2.0, 3.0]

        scores = score(
            spy,
            prompts=tuple(PROMPTS),
            completions=tuple(COMPLETIONS),
            completion_ids=np.array([[1, 2]] * 3).tolist(),
            columns={"label": ("x", "y", "z")},
        )
        np.testing.assert_array_equal(scores, np.array([1, 2, 3], dtype=np.float32))
        assert scores.dtype == np.float32
        assert calls == [
            {
                "prompts": PROMPTS,
                "completions": COMPLETIONS,
                "completion_ids": [[1, 2]] * 3,
                "label": ["x", "y", "z"],
            }
        ]

    def test_runs_a_function_written_for_trl(self) -> None:
        assert call(trl_style, label=["x"] * 3).tolist() == [3, 9, 16]

    def test_a_reward_that_changes_its_arguments_changes_copies(self) -> None:
        def rude(completions: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
            completions.clear()
            completion_ids[0].clear()
            columns["label"].clear()
            return [0.0] * 3

        label = ["x"] * 3
        call(rude, label=label)
        assert (len(COMPLETIONS), IDS[0], label) == (3, [1], ["x"] * 3)

    @pytest.mark.parametrize(
        "returned",
        [
            [1, 2.5, True],
            (1, 2.5, 1),
            np.array([1, 2.5, 1]),
            [np.float32(1), np.array(2.5), np.int64(1)],
            torch.tensor([1, 2.5, 1], requires_grad=True),
            torch.tensor([1, 2.5, 1], dtype=torch.bfloat16),
            [torch.tensor(1), torch.tensor(2.5), torch.tensor(1.0)],
        ],
        ids=repr,
    )
    def test_takes_sequences_arrays_and_tensors(self, returned: Any) -> None:
        assert call(returning(returned)).tolist() == [1, 2.5, 1]

    def test_an_empty_batch_is_not_scored(self) -> None:
        def never(**columns: Any) -> list[float]:
            raise AssertionError

        empty = score(never, prompts=[], completions=[], completion_ids=[], columns={})
        assert empty.shape == (0,)
        assert empty.dtype == np.float32

    @pytest.mark.parametrize(
        "bad",
        [float("nan"), float("inf"), -float("inf"), 1e300, -1e300, 10**400, None, "1.0", 1j, Fraction(1, 2)],
        ids=repr,
    )
    def test_names_the_row_whose_score_is_no_finite_number(self, bad: Any) -> None:
        with pytest.raises(TextEnvError, match="Expected a finite float32 number") as caught:
            call(returning([1.0, bad, 1.0]))
        for part in ("constant", repr(bad)[:20], "'another prompt'", "'two words'"):
            assert part in str(caught.value)
        assert "'one'" not in str(caught.value)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_the_largest_float32_is_finite(self, dtype: Any) -> None:
        largest = dtype(np.finfo(np.float32).max)
        assert call(returning([largest] * 3)).tolist() == [float(largest)] * 3

    @pytest.mark.parametrize(
        ("returned", "said"),
        [
            ([1.0, 2.0], "2 scores for 3"),
            ([1.0] * 4, "4 scores for 3"),
            ([], "0 scores for 3"),
            (np.zeros((2, 3)), "2 scores for 3"),
            (1.0, "1.0 for 3"),
            (np.float64(1.0), "for 3"),
            (torch.tensor(1.0), "for 3"),
            (None, "None for 3"),
            ({0: 1.0, 1: 1.0, 2: 1.0}, "for 3"),
            (iter([1.0, 1.0, 1.0]), "list_iterator"),
        ],
    )
    def test_says_what_was_returned_instead_of_a_score_for_each(self, returned: Any, said: str) -> None:
        with pytest.raises(TextEnvError, match="expected a list of floats, one for each completion") as caught:
            call(returning(returned))
        assert said in str(caught.value)

    def test_a_column_vector_is_no_score_of_each_token(self) -> None:
        with pytest.raises(TextEnvError, match=r"returned 1 scores for the 2 tokens of a completion. The prompt is"):
            call(returning(np.zeros((3, 1))))

    def test_keeps_the_exception_that_a_reward_raised(self) -> None:
        error = KeyError("sentiment")

        def broken(**columns: Any) -> list[float]:
            raise error

        with pytest.raises(
            TextEnvError, match=r"broken raised KeyError: 'sentiment'.*batch of 3, of which the first"
        ) as caught:
            call(broken)
        assert caught.value.__cause__ is error
        assert "'a prompt'" in str(caught.value)

    def test_what_a_reward_of_ours_says_is_repeated_as_it_is(self) -> None:
        def refusing(**columns: Any) -> list[float]:
            raise TextEnvError("No server answers at x; start it.")

        with pytest.raises(TextEnvError, match=r"^No server answers at x; start it\.$"):
            call(refusing)

    def test_a_type_error_inside_a_reward_is_no_matter_of_its_signature(self) -> None:
        def broken(completions: list[str], **columns: Any) -> Any:
            return len(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

        with pytest.raises(TextEnvError, match="raised TypeError"):
            call(broken)

    @pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
    def test_an_interrupt_passes_through(self, stop: type[BaseException]) -> None:
        def interrupted(**columns: Any) -> list[float]:
            raise stop

        with pytest.raises(stop):
            call(interrupted)

    def test_says_that_a_function_takes_no_columns(self) -> None:
        assert call(narrow).tolist() == [0, 0, 0]
        with pytest.raises(TextEnvError, match=r"unexpected keyword argument 'label'.*Add \*\*columns"):
            call(narrow, label=["x"] * 3)

    def test_says_which_column_a_function_needs(self) -> None:
        def needs_label(completions: list[str], label: list[str], **columns: Any) -> list[float]:
            return [0.0] * len(label)

        with pytest.raises(TextEnvError, match=r"missing a required argument: 'label'.*must be in the prompts"):
            call(needs_label)

    def test_a_column_cannot_take_the_place_of_an_argument(self) -> None:
        with pytest.raises(TextEnvError, match=r"columns named \['completions', 'prompts'\].*Rename"):
            call(trl_style, prompts=["x"] * 3, completions=["x"] * 3)

    def test_long_texts_are_shortened(self) -> None:
        with pytest.raises(TextEnvError) as caught:
            score(
                returning([float("nan")]),
                prompts=["begin" + "x" * 10_000 + "end"],
                completions=["y" * 10_000],
                completion_ids=[[1]],
                columns={},
            )
        message = str(caught.value)
        assert len(message) < 600
        assert "'beginxxx" in message
        assert "xxxend'" in message


class TestRewardName:
    def test_names_functions_and_objects(self) -> None:
        class Thing:
            def __repr__(self) -> str:
                return "Thing(" + "0" * 1000 + ")"

        assert reward_name(trl_style) == "trl_style"
        assert reward_name(resolve_reward({"name": "length", "target": 3})) == "Length(target=3, unit='words')"
        assert len(reward_name(Thing)) < 200
        assert len(reward_name(lambda **columns: [])) < 200


class TestResolveReward:
    def test_builds_from_a_name_or_takes_a_callable(self) -> None:
        assert resolve_reward("vader")(prompts=[""], completions=["good"], completion_ids=[[1]]) == [0.4404]
        assert resolve_reward(trl_style) is trl_style

    def test_refuses_what_is_no_reward(self) -> None:
        with pytest.raises(TextEnvError, match=r"no reward named 'vadder'.*'vader'"):
            resolve_reward("vadder")


plain: Any = narrow  # for wrappers, which ask for ``**columns`` by their types


class Network(torch.nn.Module):
    """A reward that is a module, as many are: its ``state_dict`` holds tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0), requires_grad=False)

    def forward(self, completions: Sequence[str], **_: Any) -> torch.Tensor:
        return self.weight * torch.tensor([float(len(text)) for text in completions])


class Counter:
    """Pays for how often it was called before."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __call__(self, completions: Sequence[str], **_: Any) -> list[float]:
        self.state = {"calls": self.state["calls"] + 1}
        return [float(self.state["calls"])] * len(completions)

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.state = dict(state)


class TestScorer:
    def test_penalizes_a_missing_end_and_hands_over_the_columns(self) -> None:
        def wanted(completions: Sequence[str], want: Sequence[str], **_: Any) -> list[float]:
            return [float(text == each) for text, each in zip(completions, want, strict=True)]

        prompts = [Prompt("a", (1,), {"want": "x"}), Prompt("b", (2,), {"want": "y"}), Prompt("c", (3,), {"want": "y"})]
        scores = Scorer(wanted, missing_eos_penalty=0.25).score(
            prompts, ["x", "x", "y"], IDS, unfinished=[False, True, True]
        )
        assert scores.tolist() == [1.0, -0.25, 0.75]
        assert scores.dtype == np.float64

    @pytest.mark.parametrize(
        ("reward", "keeps"),
        [
            (plain, False),
            (Clip(plain, low=0.0, high=1.0), False),
            (WeightedSum([plain, Clip(plain, low=0.0, high=1.0)]), False),
            (Normalize(plain), True),
            (Clip(Normalize(plain), low=0.0, high=1.0), True),
            (WeightedSum([plain, Normalize(plain)]), True),
            (Network(), False),
            (Clip(Network(), low=0.0, high=1.0), False),
            (Counter({"calls": 0}), True),
            (Counter({}), False),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_says_whether_the_reward_keeps_a_state(self, reward: Any, keeps: bool) -> None:
        scorer = Scorer(reward)
        assert scorer.keeps_state is keeps
        scorer.load_state(json.loads(json.dumps(scorer.state())))

    def test_a_state_goes_on_where_it_was(self) -> None:
        one, other = Scorer(Counter({"calls": 3})), Scorer(Counter({"calls": 0}))
        arguments: Any = ([Prompt("a", (1,))], ["x"], [[1]])
        assert one.score(*arguments, unfinished=[False]).tolist() == [4.0]
        other.load_state(one.state())
        assert [each.score(*arguments, unfinished=[False]).tolist() for each in (one, other)] == [[5.0], [5.0]]

    @pytest.mark.parametrize("value", [torch.zeros(2), np.zeros(2), float("nan")], ids=["tensor", "array", "nan"])
    def test_a_state_that_no_checkpoint_can_hold_is_refused_at_once(self, value: Any) -> None:
        for reward in (Counter({"mean": value}), Clip(Counter({"mean": value}), low=0.0, high=1.0)):
            with pytest.raises(TextEnvError, match=r"state of the reward .* Expected state_dict\(\) to return JSON"):
                Scorer(reward)

    def test_the_state_of_another_reward_is_refused(self) -> None:
        with pytest.raises(TextEnvError, match=r"\{'calls': 1\}, but narrow has no state"):
            Scorer(narrow).load_state({"calls": 1})
        with pytest.raises(TextEnvError, match=r"None, but .* has a state, and none was saved"):
            Scorer(Counter({"calls": 1})).load_state(None)
