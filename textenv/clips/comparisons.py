"""Comparisons of clips: what the reward models learn from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch

__all__ = ["Comparisons"]


@dataclass(slots=True)
class Comparisons:
    """Pairs of clips, and which of the two is preferred.

    Attributes:
        clips: Features of the steps, shape ``(n, 2, steps, features)``, float32.
        preferred: Probability that the first is the better one, shape ``(n,)``: 1, 0, or 0.5 for a tie; nan where
            nobody has judged yet, or could not tell.
        counts: How often each comparison is in each member's bootstrap sample, shape ``(members, n)``.
    """

    clips: torch.Tensor
    preferred: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def none(cls, steps: int, features: int, members: int) -> Comparisons:
        """Return an empty set of comparisons, to which some can be added."""
        return cls(torch.empty(0, 2, steps, features), torch.empty(0), torch.empty(members, 0, dtype=torch.int64))

    def __len__(self) -> int:
        """Return the number of pairs, judged or not."""
        return len(self.preferred)

    def add(self, clips: torch.Tensor, generator: torch.Generator) -> None:
        """Add pairs that nobody has judged yet, to every member's bootstrap sample of the growing data set.

        How often a comparison is in a member's sample is drawn once, from a Poisson distribution of mean 1, when the
        comparison is added (online bagging, Oza & Russell 2001). It is 0 with probability 1/e: those comparisons are
        the member's validation set, which the member is never trained on.

        Args:
            clips: Features of the steps, shape ``(new, 2, steps, features)``.
            generator: Draws the counts.
        """
        ones = torch.ones(len(self.counts), len(clips))
        counts = torch.poisson(ones, generator=generator).to(torch.int64)
        self.clips = torch.cat([self.clips, clips])
        self.preferred = torch.cat([self.preferred, torch.full((len(clips),), torch.nan)])
        self.counts = torch.cat([self.counts, counts], dim=1)

    def judged(self) -> Comparisons:
        """Return those that somebody has judged."""
        known = ~self.preferred.isnan()
        return Comparisons(self.clips[known], self.preferred[known], self.counts[:, known])

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint holds of the comparisons, by name."""
        return {f"comparisons/{field.name}": getattr(self, field.name) for field in dataclasses.fields(self)}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take up what ``tensors`` returned.

        Raises:
            KeyError: A tensor is missing.
        """
        for field in dataclasses.fields(self):
            setattr(self, field.name, tensors[f"comparisons/{field.name}"])
