"""Scoring finished completions with a reward, as an environment does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from textenv import plugins
from textenv.data.files import json_state
from textenv.env.reward_calls import Batch, reward_name, signature_mismatch, total
from textenv.env.reward_parts import evaluate, leaf_rewards, part_names
from textenv.types import FloatArray, Prompt, Reward, TextEnvError, TrainerState, Turn, is_stateful, short

__all__ = ["RewardSpec", "Score", "Scorer", "resolve_reward", "score", "unscored"]

RewardSpec: TypeAlias = str | Mapping[str, Any] | Callable[..., Any] | Sequence[Any]


@dataclass(frozen=True, slots=True)
class Score:
    """What a completion is paid, and what there is to tell of it.

    Attributes:
        total: The score, less the penalty for a missing end.
        tokens: What it is the sum of, where the reward says it token by token; else empty.
        parts: As ``scores`` of ``textenv.types.Episode``.
        logged: As there.
        metrics: As there.
    """

    total: float
    tokens: tuple[float, ...] = ()
    parts: Mapping[str, float | None] = field(default_factory=dict)
    logged: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


class Scorer:
    """Scores finished completions: the reward, with the prompts' columns, less the penalty for a missing end.

    Attributes:
        reward: The reward.
        missing_eos_penalty: Subtracted from the score of a completion that the token budget ended.
        part_names: Names of the parts that the reward reports; none for a reward without parts.
        trainer_state: How far the training is that the completions are written in; its agent sets it.
    """

    def __init__(self, spec: RewardSpec, *, missing_eos_penalty: float = 0.0, device: str | None = None) -> None:
        """Build the reward.

        Args:
            spec: As in ``resolve_reward``.
            missing_eos_penalty: In units of score.
            device: As in ``resolve_reward``.

        Raises:
            TextEnvError: ``spec`` describes no reward, or one whose state is not made of JSON values.
        """
        self.reward, self.missing_eos_penalty = resolve_reward(spec, device=device), missing_eos_penalty
        self.part_names = part_names(self.reward)
        self.trainer_state = TrainerState()
        self.state()  # refused here, and not at the first checkpoint

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        *,
        unfinished: Sequence[bool],
        turns: Sequence[Sequence[Turn]] | None = None,
    ) -> NDArray[np.float64]:
        """Return what completions are paid in all, shape ``(n,)``; arguments and errors are those of ``scores``."""
        found = self.scores(prompts, completions, completion_ids, unfinished=unfinished, turns=turns)
        return np.array([each.total for each in found], dtype=np.float64)

    def scores(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        *,
        unfinished: Sequence[bool],
        turns: Sequence[Sequence[Turn]] | None = None,
    ) -> list[Score]:
        """Return what each of ``n`` completions is paid.

        Args:
            prompts: ``n`` prompts.
            completions: Texts, as ``textenv.env.endings.Endings.completion_text`` gives them.
            completion_ids: Their token ids: those that the agent wrote.
            unfinished: Whether the token budget ended each, or its last turn.
            turns: The turns of each, where worlds answered.

        Raises:
            TextEnvError: The reward raises, or returns anything but ``n`` finite numbers, or sequences of one for each
                token.
        """
        turns = [()] * len(prompts) if turns is None else turns
        names = sorted({name for prompt in prompts for name in prompt.columns})
        given = [prompt.for_reward(text, each) for prompt, text, each in zip(prompts, completions, turns, strict=True)]
        batch = Batch(
            prompts=[prompt for prompt, _ in given],
            completions=[completion for _, completion in given],
            completion_ids=completion_ids,
            columns={name: [prompt.columns.get(name) for prompt in prompts] for name in names},
            trainer_state=self.trainer_state,
        )
        found = evaluate(self.reward, batch)
        return [
            self._score(
                value,
                unfinished[row],
                parts={name: values[row] for name, values in found.parts.items()},
                logged={name: values[row] for name, values in found.extra.items()},
                metrics=found.metrics,
            )
            for row, value in enumerate(found.values)
        ]

    def _score(self, value: float | tuple[float, ...], unfinished: bool, **told: Any) -> Score:
        penalty = self.missing_eos_penalty if unfinished else 0.0
        if isinstance(value, tuple):
            tokens = (*value[:-1], value[-1] - penalty) if value else ()
            return Score(total(value) - penalty, tokens, **told)
        return Score(float(np.float32(value)) - penalty, **told)

    @property
    def no_score(self) -> Score:
        """What is told of a completion that is not scored."""
        return Score(0.0, parts=dict.fromkeys(self.part_names))

    def check_columns(self, prompts: Sequence[Prompt], *, partial: bool = False) -> None:
        """Check that the reward can be called with the columns of prompts, before anything is written.

        Args:
            prompts: The prompts.
            partial: Whether a world may add columns to theirs.

        Raises:
            TextEnvError: It needs a column that the prompts lack, or takes none that they have.
        """
        columns = sorted({name for prompt in prompts for name in prompt.columns})
        for reward in leaf_rewards(self.reward):
            if wrong := signature_mismatch(reward, columns, partial=partial):
                raise TextEnvError(wrong)

    @property
    def keeps_state(self) -> bool:
        """Whether a completion's score depends on those that were scored before it."""
        return _holds_anything(self.state())

    def state(self) -> dict[str, Any] | None:
        """Return the reward's state as JSON values; None for a reward without one (``textenv.types.is_stateful``).

        Raises:
            TextEnvError: It holds anything else.
        """
        if not is_stateful(self.reward):
            return None
        return json_state(self.reward.state_dict(), f"the reward {reward_name(self.reward)}")

    def load_state(self, state: Mapping[str, Any] | None) -> None:
        """Go back to a state that ``state`` returned.

        Raises:
            TextEnvError: It is that of another reward.
        """
        if is_stateful(self.reward) and state is not None:
            self.reward.load_state_dict(state)
        elif state is not None or is_stateful(self.reward):
            has = "no state" if state is not None else "a state, and none was saved"
            raise TextEnvError(
                f"The saved state of a reward is {short(state)}, but {reward_name(self.reward)} has {has}; "
                "give the reward that the run was started with."
            )


def _holds_anything(state: Any) -> bool:
    """Tell whether a state holds a value; that of a reward which only passes on the states of others may not."""
    if isinstance(state, Mapping):
        return any(map(_holds_anything, state.values()))
    return any(map(_holds_anything, state)) if isinstance(state, list | tuple) else state is not None


def resolve_reward(spec: RewardSpec, *, device: str | None = None) -> Reward:
    """Build a reward from a name, a mapping, an import path or a list of these; a callable is returned as it is.

    ``textenv.rewards`` is imported when it is asked for, and not before: the environment doesn't depend on it.

    Args:
        spec: The specification, see ``textenv.rewards.make``.
        device: Where a reward with a model runs, unless ``spec`` says otherwise; None for the CPU.

    Raises:
        TextEnvError: If ``spec`` describes no reward.
    """
    return cast("Reward", plugins.rewards().make(spec, device=device))


def unscored(*, completions: Sequence[Any], **_: Any) -> list[float]:
    """Return zeros, which say nothing: the reward of an environment whose texts are written and not scored.

    Its scores are shown to nobody, and agents that act by scores refuse it
    (``textenv.agents.environment.refuse_unscored``).
    """
    return [0.0] * len(completions)


def score(
    reward: Callable[..., Any],
    *,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]],
) -> FloatArray:
    """Score ``n`` finished completions with one call of the reward.

    Args:
        reward: The reward, as ``Reward`` describes it. It may return a sequence, an array or a tensor, shape ``(n,)``.
        prompts: ``n`` prompts, texts or lists of messages.
        completions: ``n`` completions. With none of them the reward isn't called.
        completion_ids: Their token ids.
        columns: The prompts' other columns, ``n`` values each.

    Returns:
        The scores, finite, shape ``(n,)``; those that a reward gives tokens are added up.

    Raises:
        TextEnvError: If the reward raises, or returns anything but ``n`` numbers that are finite in float32, or
            sequences of one for each token.
    """
    found = evaluate(reward, Batch(prompts, completions, completion_ids, columns))
    return np.array([total(value) for value in found.values], dtype=np.float32)
