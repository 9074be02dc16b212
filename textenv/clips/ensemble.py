"""An ensemble of reward models, fitted to comparisons of clips (Christiano et al. 2017, section 2.2.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from textenv.training.preferences import pair_loss

__all__ = ["Comparisons", "FitReport", "RewardEnsemble", "RewardLearner", "preference_losses"]

L2_RATIOS = (1.1, 1.5)  # what the validation loss is to be, as a multiple of the training loss
_L2_STEP, _L2_LEAST = 1.1, 1e-7
_L2_MOST = 0.03  # beyond, the ratio is reached because nothing fits: at 0.16 a hopper's validation loss rose by a third
_L2_EVERY = 30  # updates between two looks at the losses, which read all comparisons
_BATCH = 64  # comparisons in an update
_TINY = 1e-6  # a feature that never changes is not divided by its standard deviation


@dataclass(slots=True)
class Comparisons:
    """Pairs of clips, and which of the two is preferred.

    Attributes:
        clips: Features of the steps, shape ``(n, 2, steps, features)``, float32.
        preferred: Probability that the first is the better one, shape ``(n,)``: 1, 0, or 0.5 for a tie; nan where
            nobody has judged yet, or could not tell.
        counts: How often each comparison stands in each member's bootstrap sample, shape ``(members, n)``.
    """

    clips: torch.Tensor
    preferred: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def none(cls, steps: int, features: int, members: int) -> Comparisons:
        """Return no comparisons, to which some can be added."""
        return cls(torch.empty(0, 2, steps, features), torch.empty(0), torch.empty(members, 0, dtype=torch.int64))

    def __len__(self) -> int:
        """Return the number of pairs, judged or not."""
        return len(self.preferred)

    def add(self, clips: torch.Tensor, generator: torch.Generator) -> None:
        """Add pairs that nobody has judged yet.

        A bootstrap sample of a data set that grows: how often a comparison stands in a member's sample is drawn from a
        Poisson distribution of mean 1 when the comparison arrives, and stays (online bagging, Oza & Russell 2001). It
        is 0 with probability 1/e. Those are the member's validation set, so it never sees what it is validated on.

        Args:
            clips: Shape ``(new, 2, steps, features)``.
            generator: Where randomness comes from.
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


class RewardEnsemble(nn.Module):
    """Networks that each read the features of a step and give its reward; their normalised mean is the reward.

    All members run as one batched matrix product. Two hidden layers with leaky ReLU, as in the paper.
    """

    input_mean: torch.Tensor
    input_std: torch.Tensor
    member_mean: torch.Tensor
    member_std: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, features: int, *, members: int = 3, hidden: int = 64, seed: int = 0) -> None:
        """Make the networks, each with random weights of its own.

        Args:
            features: Length of a step's vector.
            members: Number of networks.
            hidden: Width of a hidden layer.
            seed: Seeds the weights.
        """
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in ((features, hidden), (hidden, hidden), (hidden, 1)):
            weight = torch.empty(members, inputs, outputs)
            bound = 1 / math.sqrt(inputs)
            self.weights.append(nn.Parameter(weight.uniform_(-bound, bound, generator=generator)))
            self.biases.append(nn.Parameter(torch.zeros(members, 1, outputs)))
        self.register_buffer("input_mean", torch.zeros(features))
        self.register_buffer("input_std", torch.ones(features))
        self.register_buffer("member_mean", torch.zeros(members))
        self.register_buffer("member_std", torch.ones(members))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def members(self, steps: torch.Tensor) -> torch.Tensor:
        """Return each member's reward as it was learnt: in units of log odds, of unknown mean.

        Args:
            steps: Features, shape ``(..., features)``.

        Returns:
            Shape ``(members, ...)``.
        """
        x = ((steps - self.input_mean) / self.input_std).reshape(1, -1, steps.shape[-1])
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.matmul(functional.leaky_relu(x) if index else x, weight) + bias
        return x.reshape(len(x), *steps.shape[:-1])

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        """Return the reward: the mean of the normalised members, normalised itself.

        Args:
            steps: Features, shape ``(..., features)``.

        Returns:
            Shape ``(...)``.
        """
        return (self._average(self.members(steps)) - self.mean) / self.std

    def scores(self, clips: torch.Tensor) -> torch.Tensor:
        """Return each member's sum of rewards over each clip.

        Args:
            clips: Shape ``(..., steps, features)``.

        Returns:
            Shape ``(members, ...)``.
        """
        return self.members(clips).sum(dim=-1)

    @torch.no_grad()
    def disagreement(self, clips: torch.Tensor) -> torch.Tensor:
        """Return the variance, over members, of the probability that the first clip is preferred (section 2.2.4).

        Args:
            clips: Pairs, shape ``(n, 2, steps, features)``.

        Returns:
            Shape ``(n,)``.
        """
        scores = self.scores(clips)
        return torch.sigmoid(scores[..., 0] - scores[..., 1]).var(dim=0, unbiased=False)

    @torch.no_grad()
    def read_inputs(self, steps: torch.Tensor) -> None:
        """Give every feature mean 0 and variance 1 on these steps, shape ``(n, features)``."""
        std = steps.std(dim=0, unbiased=False)
        self.input_mean.copy_(steps.mean(dim=0))
        self.input_std.copy_(torch.where(std > _TINY, std, 1.0))

    @torch.no_grad()
    def normalise(self, steps: torch.Tensor, std: float = 1.0) -> None:
        """Give each member mean 0 and variance 1 on these steps, and the reward mean 0 and a standard deviation.

        Args:
            steps: Features, shape ``(n, features)``.
            std: What the reward's standard deviation is to be.
        """
        members = self.members(steps)
        self.member_mean.copy_(members.mean(dim=1))
        self.member_std.copy_(members.std(dim=1, unbiased=False).clamp(min=_TINY))
        average = self._average(members)
        self.mean.copy_(average.mean())
        self.std.copy_(average.std(unbiased=False).clamp(min=_TINY) / std)

    def _average(self, members: torch.Tensor) -> torch.Tensor:
        shape = (-1, *[1] * (members.ndim - 1))
        return ((members - self.member_mean.view(shape)) / self.member_std.view(shape)).mean(dim=0)


def preference_losses(scores: torch.Tensor, preferred: torch.Tensor, error_rate: float = 0.1) -> torch.Tensor:
    """Cross-entropy of judgements under Bradley and Terry's model with a share of random ones (section 2.2.3), in nats.

    Args:
        scores: Of both clips of each pair, shape ``(members, n, 2)``.
        preferred: See ``Comparisons``, shape ``(n,)``, without nan.
        error_rate: Share of judgements taken to be made at random.

    Returns:
        Shape ``(members, n)``.
    """
    first, second = scores.unbind(dim=-1)
    tied, ahead = (preferred == 0.5).expand(first.shape), preferred >= 0.5
    better, worse = torch.where(ahead, first, second), torch.where(ahead, second, first)
    return pair_loss(better, worse, tied, error_rate=error_rate)


@dataclass(frozen=True, slots=True)
class FitReport:
    """How the members fit the comparisons, means over members.

    Attributes:
        training: Loss on the members' bootstrap samples, in nats.
        validation: Loss on the comparisons that are not in them; nan where there are none.
        l2: Coefficient of the members' L2 penalties, geometric mean.
        accuracy: Share of those, ties aside, whose winner a member predicts; nan where there are none.
    """

    training: float
    validation: float
    l2: float
    accuracy: float


class RewardLearner:
    """An ensemble, its optimizer, and the members' L2 coefficients, which adapt themselves.

    Attributes:
        ensemble: The networks.
        optimizer: Adam; a member's parameters are its own slices, so members learn independently.
        l2: Coefficient of each member's penalty, the sum of its squared weights; shape ``(members,)``.
    """

    def __init__(
        self, ensemble: RewardEnsemble, *, learning_rate: float = 1e-3, l2: float = 1e-4, error_rate: float = 0.1
    ) -> None:
        """Make a learner.

        Args:
            ensemble: What learns.
            learning_rate: Adam's.
            l2: Where the coefficients start.
            error_rate: Share of judgements taken to be made at random.
        """
        self.ensemble = ensemble
        self.optimizer = torch.optim.Adam(ensemble.parameters(), lr=learning_rate)
        self.l2 = torch.full((len(ensemble.member_mean),), l2)
        self.error_rate = error_rate

    def fit(self, comparisons: Comparisons, updates: int, generator: torch.Generator) -> FitReport:
        """Go on learning from comparisons, from where the last call left off.

        Args:
            comparisons: At least one, all judged.
            updates: Minibatches of 64.
            generator: Draws them.
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
            loss = (counts[:, batch] * losses).mean(dim=1) + self.l2 * squares  # a count's mean is 1
            self.optimizer.zero_grad()
            loss.sum().backward()  # of members that share no parameter
            self.optimizer.step()
            if (update + 1) % _L2_EVERY == 0:
                training, validation, _ = self._losses(comparisons)
                self.l2 = adapted_l2(self.l2, training, validation)
        training, validation, accuracy = self._losses(comparisons)
        mean_l2 = self.l2.log().mean().exp()
        return FitReport(*(float(value.nanmean()) for value in (training, validation, mean_l2, accuracy)))

    @torch.no_grad()
    def _losses(self, comparisons: Comparisons) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return each member's training loss, validation loss and accuracy on the latter, each ``(members,)``."""
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
    """Return L2 coefficients that bring the validation loss to 1.1 to 1.5 times the training loss (section 2.2.3).

    A member that overfits gets more, one that could learn more gets less, by a tenth; one without a validation set
    keeps what it has. There is a most: penalised enough, every model fits both sets as badly. All shapes are
    ``(members,)``.
    """
    ratio = validation / training
    l2 = torch.where(ratio > L2_RATIOS[1], l2 * _L2_STEP, torch.where(ratio < L2_RATIOS[0], l2 / _L2_STEP, l2))
    return l2.clamp(_L2_LEAST, _L2_MOST)
