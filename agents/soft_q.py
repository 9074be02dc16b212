"""Soft Q-learning on tokens (Haarnoja et al. 2017) by path consistency (Nachum et al. 2017), with a replay.

It minimises the soft Bellman residual of the KL-regularised return, ``score - kl_coef * KL``. With ``beta = kl_coef``
the language model's logits, normalised, are the dueling form of

    Q(s, a) = V(s) + beta * log(pi(a|s) / pi_ref(a|s)),

of which ``V(s) = beta * log sum_a pi_ref(a|s) * exp(Q(s, a) / beta)`` holds whatever the weights, and ``pi`` is the
policy that is soft-greedy under the reference. At the optimum the residual is 0 on every path, whichever policy wrote
it, so episodes are replayed without importance weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from textenv.agents.agent import Agent, AgentConfig, Batch, check, paid
from textenv.agents.losses import n_step_advantages
from textenv.env.vector import TextVectorEnv
from textenv.models.policy import Evaluation
from textenv.rollouts.collect import Rollout, text_env
from textenv.types import FloatArray, TextEnvError

__all__ = ["SoftQ", "SoftQConfig"]


@dataclass(frozen=True, slots=True)
class SoftQConfig(AgentConfig):
    """Settings of soft Q-learning.

    Attributes:
        value: Where V comes from: a ``"head"`` on the policy's trunk, or a ``"model"`` of its own.
        value_learning_rate: That of the value head, which starts at zero; ``"auto"`` for 30 times ``learning_rate``.
        value_coef: Weight of the residual's gradient in V, against that in the policy.
        n_steps: Tokens that a residual spans before V stands in for the rest; None for all.
        replay: Iterations whose episodes are kept.
        updates: Minibatches an iteration; None for as many as its episodes make.
    """

    value: Literal["head", "model"] = "head"
    value_learning_rate: float | Literal["auto"] = "auto"
    value_coef: float = 0.1
    n_steps: int | None = None
    replay: int = 4
    updates: int | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        AgentConfig.__post_init__(self)
        check(
            self,
            positive=("value_learning_rate",),
            not_negative=("value_coef",),
            whole=("n_steps", "replay", "updates"),
            value=("head", "model"),
        )


class SoftQ(Agent[SoftQConfig]):
    """Makes values and log-probabilities consistent along the paths of its replay."""

    Config: ClassVar[type[AgentConfig]] = SoftQConfig

    def __init__(self, env: Any, config: SoftQConfig | None = None, **keywords: Any) -> None:
        """Start from a copy of the environment's reference model (see ``Agent``).

        Raises:
            TextEnvError: The environment has no KL penalty, which is what makes Q-learning soft.
        """
        super().__init__(env, config, **keywords)
        base = text_env(self.envs)
        if not base.kl_coef > 0:
            raise TextEnvError("kl_coef=0: soft Q-learning divides by it; give the environment a kl_coef above 0.")
        self._replay = _Replay(self.config.replay * self.episodes, base)
        self.kept["replay"] = self._replay

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learn from the replay; return means over the updates, under the usual names."""
        config = self.config
        base = text_env(self.envs)
        self._replay.add(rollout, *paid(base, rollout))
        beta = base.kl_coef

        def loss(now: Evaluation, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            rewards = batch.padded(batch["rewards"])
            penalty = batch.padded(beta * (now.log_probs - batch["reference"]))
            values = batch.padded(now.values)
            end = torch.zeros(len(values), device=values.device)

            def residuals(penalty: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
                return n_step_advantages(rewards - penalty, values, batch.mask, end, gamma=1.0, steps=config.n_steps)

            policy_loss = 0.5 * (residuals(penalty, values.detach()) ** 2).sum() / batch.tokens / beta
            value_loss = 0.5 * (residuals(penalty.detach(), values) ** 2).sum() / batch.tokens
            return policy_loss + config.value_coef * value_loss, {"policy_loss": policy_loss, "value_loss": value_loss}

        size = config.minibatch_size or len(rollout.lengths)
        updates = config.updates or -(-len(rollout.lengths) // size)
        replayed, columns = self._replay.draw(size * updates, self._shuffle)
        return self.optimise(replayed, columns, loss)


class _Replay(nn.Module):
    """The last episodes, in arrays of a fixed size that a checkpoint keeps."""

    def __init__(self, capacity: int, base: TextVectorEnv) -> None:
        super().__init__()
        time = base.settings.max_new_tokens
        width = base.max_prompt_tokens + time
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "input_ids": ((width,), torch.int64),
            "lengths": ((), torch.int64),
            "starts": ((), torch.int64),
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
        """Put episodes in the place of the oldest."""
        buffers = dict(self.named_buffers())
        capacity, added = len(buffers["lengths"]), int(buffers["added"])
        places = (added + torch.arange(len(rollout.lengths))) % capacity
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
        """Return episodes drawn with replacement, and what the loss needs to know of their tokens."""
        buffers = dict(self.named_buffers())
        held = min(len(buffers["lengths"]), int(buffers["added"]))
        picks = torch.randint(held, (number,), generator=generator)
        rows = {name: buffers[name][picks] for name in self._names}
        time = int(rows["mask"].sum(dim=1).max())
        replayed = Rollout(
            input_ids=rows["input_ids"].numpy(),
            lengths=rows["lengths"].numpy(),
            starts=rows["starts"].numpy(),
            log_probs=rows["log_probs"][:, :time].numpy(),
            values=np.zeros((number, time), dtype=np.float32),
            rewards=rows["rewards"][:, :time].numpy(),
            mask=rows["mask"][:, :time].numpy(),
            bootstrap=np.zeros(number, dtype=np.float32),
            action_masks=rows["action_masks"][:, :time].numpy() if "action_masks" in rows else None,
            episodes=(None,) * number,
            prompts=(),
            kl_coef=0.0,
        )
        return replayed, {name: rows[name][:, :time] for name in ("rewards", "reference")}
