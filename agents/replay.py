"""The replay of soft Q-learning: the last episodes, to be drawn from again."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from textenv.env.vector import TextVectorEnv
from textenv.rollouts.collect import Rollout
from textenv.types import FloatArray, TextEnvError

__all__ = ["Replay"]


class Replay(nn.Module):
    """The last episodes, in arrays of a fixed size that a checkpoint keeps."""

    def __init__(self, capacity: int, base: TextVectorEnv) -> None:
        """Begin without episodes.

        Args:
            capacity: Number of episodes that are kept.
            base: The environment that they are of.
        """
        super().__init__()
        if base.settings.context == "fresh" and base.worlds is not None:
            raise TextEnvError(
                "context='fresh' has several texts an episode, and the replay of soft Q-learning keeps one: use "
                "context='transcript', or another agent."
            )
        self._turn_discount = base.settings.turn_discount
        time, width = base.most_tokens, base.width
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "input_ids": ((width,), torch.int64),
            "lengths": ((), torch.int64),
            "places": ((time,), torch.int64),
            "turns": ((time,), torch.int64),
            "log_probs": ((time,), torch.float32),
            "rewards": ((time,), torch.float32),
            "reference": ((time,), torch.float32),
            "mask": ((time,), torch.bool),
        }
        if base.has_action_masks:
            shapes["action_masks"] = ((time, -(-base.reference.vocab_size // 8)), torch.uint8)
        for name, (shape, dtype) in shapes.items():
            self.register_buffer(name, torch.zeros((capacity, *shape), dtype=dtype))
        self.register_buffer("added", torch.zeros((), dtype=torch.int64))
        self._names = tuple(shapes)

    def add(self, rollout: Rollout, kl: FloatArray, rewards: FloatArray) -> None:
        """Put episodes in the place of the oldest.

        Args:
            rollout: The episodes.
            kl: Of each token from the reference, in nats, ``(batch, time)``.
            rewards: Of each token without the KL penalty, ``(batch, time)``.
        """
        buffers = dict(self.named_buffers())
        capacity, added = len(buffers["lengths"]), int(buffers["added"])
        places = (added + torch.arange(len(rollout.episodes))) % capacity
        given = {"reference": rollout.log_probs - kl, "rewards": rewards}
        for name in self._names:
            array = given[name] if name in given else getattr(rollout, name)
            rows = torch.zeros((len(places), *buffers[name].shape[1:]), dtype=buffers[name].dtype)
            if array.ndim == 1:
                rows[:] = torch.from_numpy(array)
            else:
                rows[:, : array.shape[1]] = torch.from_numpy(array)
            buffers[name][places] = rows
        buffers["added"] += len(places)

    def draw(self, number: int, generator: torch.Generator) -> tuple[Rollout, dict[str, torch.Tensor]]:
        """Draw episodes with replacement.

        Args:
            number: How many.
            generator: Source of randomness.

        Returns:
            The episodes, and of their tokens ``rewards`` without the KL penalty and ``reference``, the reference's
            log-probabilities in nats, each ``(number, time)``.
        """
        buffers = dict(self.named_buffers())
        held = min(len(buffers["lengths"]), int(buffers["added"]))
        picks = torch.randint(held, (number,), generator=generator)
        rows = {name: buffers[name][picks] for name in self._names}
        time = int(rows["mask"].sum(dim=1).max())
        replayed = Rollout(
            input_ids=rows["input_ids"].numpy(),
            lengths=rows["lengths"].numpy(),
            text_counts=np.ones(number, dtype=np.int64),
            texts=np.zeros((number, time), dtype=np.int64),
            places=rows["places"][:, :time].numpy(),
            turns=rows["turns"][:, :time].numpy(),
            log_probs=rows["log_probs"][:, :time].numpy(),
            values=np.zeros((number, time), dtype=np.float32),
            rewards=rows["rewards"][:, :time].numpy(),
            mask=rows["mask"][:, :time].numpy(),
            bootstrap=np.zeros(number, dtype=np.float32),
            action_masks=rows["action_masks"][:, :time].numpy() if "action_masks" in rows else None,
            episodes=(None,) * number,
            prompts=(),
            kl_coef=0.0,
            turn_discount=self._turn_discount,
        )
        return replayed, {name: rows[name][:, :time] for name in ("rewards", "reference")}
