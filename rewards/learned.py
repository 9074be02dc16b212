"""A reward model that was trained on what people prefer, as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from annotated_types import MinLen

from textenv.models.loading import BUNDLED
from textenv.models.reward_model import Ensemble, RewardModel
from textenv.rewards._texts import completion_texts
from textenv.validation import NonEmpty, NonNegative, validated

__all__ = ["Learned"]


class Learned:
    """The score of a reward model, or of several as one.

    The model reads prompt and completion, or a conversation by its chat template, with its own tokenizer; the policy
    may have another. A text that is too long for the model is cut at its beginning, never at its end. Scores have mean
    0 and variance 1 on the reference samples of its training.

    Several models of different seeds are harder to fool than one (Coste et al., 2023: *Reward Model Ensembles Help
    Mitigate Overoptimization*).

    Args:
        model: A folder that ``textenv reward train`` wrote, or ``"bundled"``; or a list of them.
        combine: How several scores become one: ``"mean"``; ``"min"``, the lowest; or ``"variance"``, the mean less
            ``penalty`` times the variance.
        penalty: Factor of the variance.
        include_prompt: Whether the model reads the prompt too, or the completion alone.
        device: A torch device, or ``"auto"`` for a GPU if there is one. None for that of the environment, else the CPU.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``, of the trunk's weights; the head is in float32.

    Raises:
        TextEnvError: If an argument is out of range or a model cannot be loaded.
    """

    @validated
    def __init__(
        self,
        model: NonEmpty | Annotated[Sequence[NonEmpty], MinLen(1)] = BUNDLED,
        *,
        combine: Literal["mean", "min", "variance"] = "mean",
        penalty: NonNegative = 0.5,
        include_prompt: bool = True,
        device: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        folders = [model] if isinstance(model, str) else list(model)
        members = [
            RewardModel.load(folder, device="cpu" if device is None else device, dtype=dtype) for folder in folders
        ]
        self.models = Ensemble(members, combine, penalty)
        self.include_prompt = include_prompt
        self._about = f"Learned({model!r})"

    def __call__(
        self,
        /,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Sequence[Any],
    ) -> list[float]:
        """Return ``n`` scores, any numbers."""
        if not self.include_prompt:
            prompts, completions = [""] * len(completions), completion_texts(completions)
        if not completions:
            return []
        scores: list[float] = self.models.scores(prompts, completions).tolist()
        return scores

    def __repr__(self) -> str:
        return self._about
