"""Which pairs of clips are judged, and at which step of training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from textenv.clips.ensemble import RewardEnsemble
from textenv.clips.segments import Features, Segment, Trajectory, sample_segments

__all__ = ["choose_pairs", "features_of", "labels_due"]

Pair = tuple[Segment, Segment]


def labels_due(step: int, *, labels: int, initial: int, last_step: int, anneal_steps: float) -> int:
    """Return how many comparisons should have been asked for after so many steps of training.

    After ``initial`` ones at step 0, the rate at step T is proportional to ``c / (T + c)``, where c is ``anneal_steps``
    (Christiano et al. 2017, appendix A.1, where c is two million), so the number is its integral.

    Args:
        step: Steps of training done.
        labels: Comparisons in all, which are reached at ``last_step``.
        initial: Comparisons that are asked for before training.
        last_step: Step by which all are asked for.
        anneal_steps: The constant c, above 0.
    """
    if step >= last_step:
        return labels
    share = math.log1p(step / anneal_steps) / math.log1p(last_step / anneal_steps)
    return initial + math.floor((labels - initial) * share)


def features_of(pairs: Sequence[Pair], features: Features) -> torch.Tensor:
    """Return what a reward model reads of pairs of clips of one length, shape ``(n, 2, steps, features)``."""
    clips = [[features(clip.observations, clip.actions) for clip in pair] for pair in pairs]
    return torch.from_numpy(np.array(clips, dtype=np.float32))


def choose_pairs(
    trajectories: Sequence[Trajectory],
    count: int,
    steps: int,
    *,
    features: Features,
    ensemble: RewardEnsemble | None,
    candidates: int,
    rng: np.random.Generator,
) -> list[Pair]:
    """Return pairs of clips to be judged: of random pairs, those on which the ensemble disagrees most (section 2.2.4).

    Args:
        trajectories: Episodes that the clips are cut from.
        count: Pairs to return, those with the largest disagreement first.
        steps: Length of a clip.
        features: Turns a step into the vector that the ensemble reads.
        ensemble: Reward models, whose disagreement chooses; None returns random pairs.
        candidates: Random pairs for each pair that is returned.
        rng: Draws the pairs.

    Raises:
        TextEnvError: No trajectory is as long as a clip.
    """
    number = count if ensemble is None else count * candidates
    segments = sample_segments(trajectories, 2 * number, steps, rng)
    pairs = list(zip(segments[::2], segments[1::2], strict=True))
    if ensemble is None:
        return pairs
    by_disagreement = torch.argsort(ensemble.disagreement(features_of(pairs, features)), descending=True, stable=True)
    return [pairs[int(index)] for index in by_disagreement[:count]]
