"""Fitting an ensemble of reward models to comparisons of clips (Christiano et al. 2017, section 2.2.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from textenv.clips.comparisons import Comparisons
from textenv.clips.ensemble import RewardEnsemble
from textenv.training.preferences import pair_loss

__all__ = ["FitReport", "RewardLearner", "adapted_l2", "preference_losses"]

L2_RATIOS = (1.1, 1.5)  # target range of the validation loss, as a multiple of the training loss
_L2_STEP, _L2_LEAST = 1.1, 1e-7
_L2_MOST = 0.03  # above, the ratio is reached by underfitting: at 0.16 a hopper's validation loss rose by a third
_L2_EVERY = 30  # updates between two evaluations of the losses, which read all comparisons
_BATCH = 64  # comparisons in an update


def preference_losses(scores: torch.Tensor, preferred: torch.Tensor, error_rate: float = 0.1) -> torch.Tensor:
    """Return the loss of judgements, in nats: the cross-entropy under Bradley and Terry's model with random errors.

    Christiano et al. 2017, section 2.2.3.

    Args:
        scores: Scores of both clips of each pair, shape ``(members, n, 2)``.
        preferred: See ``Comparisons``, shape ``(n,)``, without nan.
        error_rate: Share of the judgements that are assumed to be random.

    Returns:
        Shape ``(members, n)``.
    """
    first, second = scores.unbind(dim=-1)
    tied, ahead = (preferred == 0.5).expand(first.shape), preferred >= 0.5
    better, worse = torch.where(ahead, first, second), torch.where(ahead, second, first)
    return pair_loss(better, worse, tied, error_rate=error_rate)


@dataclass(frozen=True, slots=True)
class FitReport:
    """How well the members fit the comparisons; means over members.

    Attributes:
        training: Loss on a member's bootstrap sample, in nats.
        validation: Loss on the comparisons that are not in its sample, in nats; nan if there are none.
        l2: Coefficient of the L2 penalty, geometric mean.
        accuracy: Share of the comparisons that are not in its sample, without ties, whose winner a member predicts; nan
            if there are none.
    """

    training: float
    validation: float
    l2: float
    accuracy: float


class RewardLearner:
    """An ensemble, its optimizer, and the members' L2 coefficients, which adapt themselves.

    Attributes:
        ensemble: The networks.
        optimizer: Adam; each member has its own slices of the parameters, so members learn independently.
        l2: Coefficient of each member's penalty, which is the sum of its squared weights; shape ``(members,)``.
    """

    def __init__(
        self, ensemble: RewardEnsemble, *, learning_rate: float = 1e-3, l2: float = 1e-4, error_rate: float = 0.1
    ) -> None:
        """Make a learner.

        Args:
            ensemble: The networks.
            learning_rate: Adam's learning rate.
            l2: Initial value of the coefficients.
            error_rate: Share of the judgements that are assumed to be random.
        """
        self.ensemble = ensemble
        self.optimizer = torch.optim.Adam(ensemble.parameters(), lr=learning_rate)
        self.l2 = torch.full((len(ensemble.member_mean),), l2)
        self.error_rate = error_rate

    def fit(self, comparisons: Comparisons, updates: int, generator: torch.Generator) -> FitReport:
        """Train the networks on comparisons, starting from their present weights.

        Args:
            comparisons: At least one, all judged.
            updates: Number of minibatches of 64 comparisons.
            generator: Draws the minibatches.

        Returns:
            How well the comparisons are fitted afterwards.
        """
        clips, preferred, counts = comparisons.clips, comparisons.preferred, comparisons.counts
        order = torch.empty(0, dtype=torch.int64)
        for update in range(updates):
            if not len(order):
                order = torch.randperm(len(preferred), generator=generator)
            batch, order = order[:_BATCH], order[_BATCH:]
            losses = preference_losses(self.ensemble.scores(clips[batch]), preferred[batch], self.error_rate)
            weights: Any = self.ensemble.weights
            squares = torch.stack([(weight**2).sum(dim=(1, 2)) for weight in weights]).sum(dim=0)
            loss = (counts[:, batch] * losses).mean(dim=1) + self.l2 * squares  # the expected count is 1
            self.optimizer.zero_grad()
            loss.sum().backward()  # members share no parameter, so each gets the gradient of its own loss
            self.optimizer.step()
            if (update + 1) % _L2_EVERY == 0:
                training, validation, _ = self._losses(comparisons)
                self.l2 = adapted_l2(self.l2, training, validation)
        training, validation, accuracy = self._losses(comparisons)
        mean_l2 = self.l2.log().mean().exp()
        return FitReport(*(float(value.nanmean()) for value in (training, validation, mean_l2, accuracy)))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint holds of the networks, the optimizer and the L2 coefficients, by name."""
        tensors = {f"ensemble/{name}": value.detach() for name, value in self.ensemble.state_dict().items()}
        for index, parameter in enumerate(self.ensemble.parameters()):
            for name, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{index}/{name}"] = torch.as_tensor(value)
        return {**tensors, "l2": self.l2}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take up what ``tensors`` returned.

        Raises:
            KeyError: A tensor is missing.
            RuntimeError: A tensor has another shape.
        """
        names = self.ensemble.state_dict()
        self.ensemble.load_state_dict({name: tensors[f"ensemble/{name}"] for name in names})
        for index, parameter in enumerate(self.ensemble.parameters()):
            prefix = f"optimizer/{index}/"
            moments = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if moments:
                self.optimizer.state[parameter] = moments
        self.l2 = tensors["l2"]

    @torch.no_grad()
    def _losses(self, comparisons: Comparisons) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return each member's training loss, validation loss and validation accuracy, each ``(members,)``."""
        scores = self.ensemble.scores(comparisons.clips)
        preferred = comparisons.preferred
        losses = preference_losses(scores, preferred, self.error_rate)
        held_out = (comparisons.counts == 0).to(losses.dtype)
        decided = held_out * (preferred != 0.5)
        right = ((scores[..., 0] > scores[..., 1]) == (preferred > 0.5)).to(losses.dtype)
        return (
            (losses * comparisons.counts).sum(dim=1) / comparisons.counts.sum(dim=1),
            (losses * held_out).sum(dim=1) / held_out.sum(dim=1),
            (right * decided).sum(dim=1) / decided.sum(dim=1),
        )


def adapted_l2(l2: torch.Tensor, training: torch.Tensor, validation: torch.Tensor) -> torch.Tensor:
    """Return L2 coefficients that move the validation loss to 1.1 to 1.5 times the training loss (section 2.2.3).

    The coefficient grows by a tenth for a member that overfits, shrinks by a tenth for one that underfits, and stays
    for one without a validation set. It is bounded, because with a large enough penalty every model fits both sets
    equally badly. All shapes are ``(members,)``.
    """
    ratio = validation / training
    l2 = torch.where(ratio > L2_RATIOS[1], l2 * _L2_STEP, torch.where(ratio < L2_RATIOS[0], l2 / _L2_STEP, l2))
    return l2.clamp(_L2_LEAST, _L2_MOST)
