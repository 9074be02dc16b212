"""Call a reward on a batch of finished completions, and check what it returns.

A score that is missing, NaN or infinite would surface thousands of steps later as a policy that stopped learning. Here
it becomes an error that names the reward and the completion.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from textenv import plugins
from textenv.data.files import json_state
from textenv.types import FloatArray, Prompt, Reward, TextEnvError, Turn, is_stateful

__all__ = [
    "RewardSpec",
    "Scorer",
    "checked_scores",
    "resolve_reward",
    "reward_name",
    "score",
    "signature_mismatch",
    "unscored",
]

RewardSpec: TypeAlias = str | Mapping[str, Any] | Callable[..., Any]

_RESERVED = ("prompts", "completions", "completion_ids")
_SHOWN = 120  # characters of a text in a message
_LARGEST = float(np.finfo(np.float32).max)


class Scorer:
    """Scores finished completions: the reward, with the prompts' columns, less the penalty for a missing end.

    Attributes:
        reward: The reward.
        missing_eos_penalty: Subtracted from the score of a completion that the token budget ended.
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
        """Return what completions are paid, shape ``(n,)``.

        Args:
            prompts: ``n`` prompts.
            completions: Texts, as ``textenv.env.endings.Endings.completion_text`` gives them.
            completion_ids: Their token ids.
            unfinished: Whether the token budget ended each, or its last turn.
            turns: The turns of each, where worlds answered.

        Raises:
            TextEnvError: The reward raises, or returns anything but ``n`` finite numbers.
        """
        turns = [()] * len(prompts) if turns is None else turns
        names = sorted({name for prompt in prompts for name in prompt.columns})
        given = [prompt.for_reward(text, each) for prompt, text, each in zip(prompts, completions, turns, strict=True)]
        scores = score(
            self.reward,
            prompts=[prompt for prompt, _ in given],
            completions=[completion for _, completion in given],
            completion_ids=completion_ids,
            columns={name: [prompt.columns.get(name) for prompt in prompts] for name in names},
        ).astype(np.float64)
        return np.asarray(scores - self.missing_eos_penalty * np.array(unfinished, dtype=bool))

    def check_columns(self, prompts: Sequence[Prompt]) -> None:
        """Check that the reward can be called with the columns of prompts, before anything is written.

        Raises:
            TextEnvError: It needs a column that the prompts lack, or takes none that they have.
        """
        if wrong := signature_mismatch(self.reward, sorted({name for prompt in prompts for name in prompt.columns})):
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
                f"The saved state of a reward is {_shorten(repr(state))}, but {reward_name(self.reward)} has {has}; "
                "give the reward that the run was started with."
            )


def _holds_anything(state: Any) -> bool:
    """Tell whether a state holds a value; that of a reward which only passes on the states of others may not."""
    if isinstance(state, Mapping):
        return any(map(_holds_anything, state.values()))
    return any(map(_holds_anything, state)) if isinstance(state, list | tuple) else state is not None


def resolve_reward(spec: RewardSpec, *, device: str | None = None) -> Reward:
    """Build a reward from a name, a mapping or an import path; a callable is returned as it is.

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


def reward_name(reward: Callable[..., Any]) -> str:
    """Return what to call a reward in a message: a function's name, otherwise its ``repr``, shortened."""
    name = getattr(reward, "__qualname__", None)
    return name if isinstance(name, str) else _shorten(repr(reward))


def score(
    reward: Callable[..., Any],
    *,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]],
) -> FloatArray:
    """Score ``n`` finished completions with one call of the reward; arguments and errors as of ``checked_scores``.

    Returns:
        The scores, finite, shape ``(n,)``.
    """
    found = checked_scores(
        reward, prompts=prompts, completions=completions, completion_ids=completion_ids, columns=columns
    )
    return np.array(found, dtype=np.float32)


def checked_scores(
    reward: Callable[..., Any],
    *,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]],
) -> list[float]:
    """Call a reward on ``n`` finished completions, and check what it returns.

    Args:
        reward: The reward, as ``Reward`` describes it. It may return a sequence, an array or a tensor, shape ``(n,)``.
        prompts: ``n`` prompts, texts or lists of messages.
        completions: ``n`` completions. With none of them the reward isn't called.
        completion_ids: Their token ids.
        columns: The prompts' other columns, ``n`` values each.

    Returns:
        ``n`` scores, as precise as the reward returned them.

    Raises:
        TextEnvError: If the reward raises, or returns anything but ``n`` numbers that are finite in float32.
    """
    clashing = sorted(set(columns) & set(_RESERVED))
    if clashing:
        raise TextEnvError(
            f"The prompts have columns named {clashing}, which a reward gets from the environment. Rename them."
        )
    if not completions:
        return []
    # Lists, because functions written for TRL get lists, and copies, because such a function may change them.
    arguments: dict[str, Any] = {
        "prompts": list(prompts),
        "completions": list(completions),
        "completion_ids": [list(ids) for ids in completion_ids],
        **{name: list(values) for name, values in columns.items()},
    }
    try:
        values = _as_list(reward, reward(**arguments), len(completions))
    except TextEnvError:
        raise
    except Exception as error:
        raise TextEnvError(
            signature_mismatch(reward, columns)
            or f"The reward {reward_name(reward)} raised {type(error).__name__}: {' '.join(str(error).split())}. It "
            f"was scoring a batch of {len(completions)}, of which the first {_row(prompts[0], completions[0])}."
        ) from error
    for value, prompt, completion in zip(values, prompts, completions, strict=True):
        if not isinstance(value, int | float) or not abs(value) <= _LARGEST:
            raise TextEnvError(
                f"The reward {reward_name(reward)} returned {_shorten(repr(value))}. The {_row(prompt, completion)}. "
                "Expected a finite float32 number. A reward that has no opinion returns 0.0."
            )
    return [float(value) for value in values]


def _as_list(reward: Callable[..., Any], returned: Any, count: int) -> list[Any]:
    """Turn what the reward returned into ``count`` Python values, not checked yet."""
    unawaited: Any = returned
    if inspect.iscoroutine(unawaited):
        unawaited.close()  # else Python warns that nobody has awaited it
    if hasattr(returned, "tolist"):  # arrays and tensors, wherever they are and whether they need a gradient or not
        values = returned.tolist()
    else:
        values = list(returned) if isinstance(returned, Sequence) else returned
    if not isinstance(values, list) or len(values) != count:
        what = f"{len(values)} scores" if isinstance(values, list) else f"{_shorten(repr(returned))}"
        raise TextEnvError(
            f"The reward {reward_name(reward)} returned {what} for {count} completions; "
            "expected a list of floats, one for each completion."
        )
    return [value.tolist() if hasattr(value, "tolist") else value for value in values]


def signature_mismatch(reward: Callable[..., Any], columns: Iterable[str]) -> str | None:
    """Say why a reward cannot be called with columns of these names; ``None`` if it can."""
    names = [*_RESERVED, *columns]
    for call, by_place in _as_called(reward):
        try:
            signature = inspect.signature(call)
        except (TypeError, ValueError):  # a builtin without one
            continue
        try:
            signature.bind(*by_place, **dict.fromkeys(names))
        except TypeError as error:
            return (
                f"The reward {reward_name(reward)}{signature} cannot be called with the keywords {', '.join(names)}: "
                f"{error}. Expected (*, prompts, completions, completion_ids, **columns), columns being the prompts' "
                "other columns. Add **columns to take those that it doesn't use; a column that it needs must be in the "
                "prompts."
            )
    return None


def _as_called(reward: Callable[..., Any]) -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Yield a reward, and the function behind it with what it is given by position: ``self``, which a column may be."""
    yield reward, ()
    if inspect.ismethod(reward):
        yield reward.__func__, (reward.__self__,)
    elif inspect.isfunction(type(reward).__call__):
        yield type(reward).__call__, (reward,)


def _row(prompt: Any, completion: Any) -> str:
    return f"prompt is {_shorten(repr(prompt))} and the completion {_shorten(repr(completion))}"


def _shorten(text: str) -> str:
    half = _SHOWN // 2
    return text if len(text) <= _SHOWN else f"{text[:half]}…{text[-half:]}"
