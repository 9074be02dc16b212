"""An ensemble of reward models for steps of a control task (Christiano et al. 2017, section 2.2.3)."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

__all__ = ["RewardEnsemble"]

_SMALLEST_STD = 1e-6  # a feature that never changes is not divided by its standard deviation


class RewardEnsemble(nn.Module):
    """Networks that each predict the reward of a step from its features; the reward is their normalized mean.

    Each has two hidden layers with leaky ReLU, as in the paper. All members are computed in one batched matrix product.
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
        """Return each member's reward before normalization: in units of log odds, up to a constant.

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
        """Return the reward: the normalized mean of the normalized members.

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
    def fit_input_scale(self, steps: torch.Tensor) -> None:
        """Scale the input so that every feature has mean 0 and variance 1 on these steps, shape ``(n, features)``."""
        std = steps.std(dim=0, unbiased=False)
        self.input_mean.copy_(steps.mean(dim=0))
        self.input_std.copy_(torch.where(std > _SMALLEST_STD, std, 1.0))

    @torch.no_grad()
    def normalize(self, steps: torch.Tensor, std: float = 1.0) -> None:
        """Scale each member to mean 0 and variance 1 on these steps, and the reward to mean 0 and the given deviation.

        Args:
            steps: Features, shape ``(n, features)``.
            std: Standard deviation that the reward has on these steps afterwards.
        """
        members = self.members(steps)
        self.member_mean.copy_(members.mean(dim=1))
        self.member_std.copy_(members.std(dim=1, unbiased=False).clamp(min=_SMALLEST_STD))
        average = self._average(members)
        self.mean.copy_(average.mean())
        self.std.copy_(average.std(unbiased=False).clamp(min=_SMALLEST_STD) / std)

    def _average(self, members: torch.Tensor) -> torch.Tensor:
        shape = (-1, *[1] * (members.ndim - 1))
        return ((members - self.member_mean.view(shape)) / self.member_std.view(shape)).mean(dim=0)
