"""Token-level proximal policy optimisation (Schulman et al. 2017), as RLHF uses it (Ziegler et al. 2019).

An iteration writes one episode in every row of a vector environment, through ``reset`` and ``step`` alone, and then
makes a few passes over these episodes. The KL penalty is in the reward that the environment pays.

Started by ``accelerate launch`` or ``torchrun``, several processes are one run: see ``textenv.distributed``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import nn

from textenv.agents.losses import (
    approximate_kl,
    clip_fraction,
    clipped_policy_loss,
    clipped_value_loss,
    gae,
    masked_whiten,
)
from textenv.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from textenv.distributed import World, connect, full
from textenv.files import write_atomically
from textenv.models.policy import Evaluation, Lora, TextPolicy
from textenv.rollouts import Rollout, collect, text_env, vectorise
from textenv.types import IntArray, Observation, TextEnvError
from textenv.vector import TextVectorEnv

__all__ = ["PPO", "PPOConfig"]

Schedule = Literal["constant", "linear", "cosine"]
Progress = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True, slots=True)
class PPOConfig:
    """Settings of PPO; the defaults suit models of a few million parameters, such as the bundled one.

    Attributes:
        learning_rate: Of Adam, at its peak.
        embedding_learning_rate: That of the token embeddings and of the head tied to them. They say which words are
            likelier everywhere, which is what pays first; the same step in the trunk costs far more KL. None for
            ``learning_rate``.
        value_learning_rate: That of the value head, which starts at zero.
        lr_schedule: How it falls to zero over ``learn``'s steps: ``"constant"`` (not), ``"linear"`` or ``"cosine"``.
        lr_warmup: Share of the steps over which it first rises from zero. Adam's first steps are as long as its rate
            whatever the gradient, so without it the policy leaves the reference before it knows where to go.
        adam_epsilon: Of Adam.
        weight_decay: Decoupled (AdamW).
        epochs: Passes over the episodes of an iteration.
        minibatch_size: Episodes an update, in all processes together; None for all.
        micro_batch_size: Episodes a forward pass, their gradients accumulated; None for as many as suit the device, or
            on several processes for a process's whole share of the minibatch.
        clip: Width of the trust region of the probability ratio.
        value: Where values come from: a ``"head"`` on the policy's trunk, a ``"model"`` of its own, or ``"none"``.
        value_coef: Weight of the value loss.
        value_clip: Width of the range a value may move before its loss stops rewarding it; None for no limit.
        entropy_coef: Weight of an entropy bonus.
        gamma: Discount.
        lam: Lambda of generalised advantage estimation.
        whiten_advantages: Shift and scale an iteration's advantages to mean 0 and variance 1.
        max_grad_norm: Gradients are scaled down to this norm.
        target_kl: Stop an iteration's passes once the new policy is this far from the old one, in nats a token.
        precision: ``"bfloat16"`` trains in mixed precision; ``"auto"`` does so on GPUs that have it.
        lora_rank: Learn a low-rank adapter (LoRA) of this rank on the reference's own weights, which are then in memory
            once; None to learn in all weights of a copy.
        lora_alpha: The adapter is scaled by ``lora_alpha / lora_rank``.
        lora_targets: Names of the layers that get an adapter; ``all-linear`` for all but the head.
        gradient_checkpointing: Keep only the inputs of layers for the backward pass: less memory, more time.
        seed: Seeds actions, minibatches and the environment.
    """

    learning_rate: float = 1e-4
    embedding_learning_rate: float | None = 8e-4
    value_learning_rate: float = 3e-3
    lr_schedule: Schedule = "linear"
    lr_warmup: float = 0.1
    adam_epsilon: float = 1e-5
    weight_decay: float = 0.0
    epochs: int = 1
    minibatch_size: int | None = 32
    micro_batch_size: int | None = None
    clip: float = 0.2
    value: Literal["head", "model", "none"] = "head"
    value_coef: float = 0.1
    value_clip: float | None = 0.2
    entropy_coef: float = 0.0
    gamma: float = 1.0
    lam: float = 1.0
    whiten_advantages: bool = True
    max_grad_norm: float = 1.0
    target_kl: float | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    lora_rank: int | None = None
    lora_alpha: int = 16
    lora_targets: tuple[str, ...] = ("all-linear",)
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("learning_rate", "value_learning_rate", "adam_epsilon", "clip", "max_grad_norm", "lora_alpha"):
            if not 0 < getattr(self, name) < math.inf:
                raise TextEnvError(f"{name}={getattr(self, name)}: expected a finite number above 0.")
        for name in ("weight_decay", "value_coef", "entropy_coef"):
            if not 0 <= getattr(self, name) < math.inf:
                raise TextEnvError(f"{name}={getattr(self, name)}: expected a finite number of at least 0.")
        for name in ("gamma", "lam", "lr_warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise TextEnvError(f"{name}={getattr(self, name)}: expected a number from 0 to 1.")
        object.__setattr__(self, "lora_targets", tuple(self.lora_targets))
        for name in ("epochs", "minibatch_size", "micro_batch_size", "lora_rank"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise TextEnvError(f"{name}={getattr(self, name)}: expected a whole number of at least 1.")
        for name in ("embedding_learning_rate", "value_clip", "target_kl"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise TextEnvError(f"{name}={getattr(self, name)}: expected a number above 0, or None.")
        for name, choices in (("lr_schedule", get_args(Schedule)), ("value", ("head", "model", "none"))):
            if getattr(self, name) not in choices:
                raise TextEnvError(f"{name}={getattr(self, name)!r}: expected one of {list(choices)}.")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise TextEnvError(f"precision={self.precision!r}: expected 'auto', 'float32' or 'bfloat16'.")


class PPO:
    """Learns to act in a text environment.

    Attributes:
        policy: What it learns.
        steps: Tokens written so far.
        iterations: Iterations done so far.
        world: The processes of the run.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any],
        config: PPOConfig | None = None,
        *,
        policy: TextPolicy | None = None,
        world: World | None = None,
    ) -> None:
        """Start from a copy of the environment's reference model.

        Args:
            env: A text environment: single, or vectorised with ``AutoresetMode.DISABLED``. On several processes, each
                gives one with its share of the rows.
            config: Settings; None for the defaults.
            policy: Where to start instead; it is what learns, no copy of it.
            world: The processes of the run; None for those that a launcher has started, if it has.

        Raises:
            TextEnvError: The environment is of another kind, or cannot be shared out among the processes.
        """
        self.config = config = config or PPOConfig()
        self.envs = vectorise(env)
        self.world = connect() if world is None else world
        base = text_env(self.envs)
        self._check_shares(base)
        torch.manual_seed(config.seed)
        self.policy = _new_policy(base, config) if policy is None else policy
        self._network = self.world.trainable(self.policy)
        device = base.reference.device
        lm = self.policy.model
        peaks = dict.fromkeys(self.policy.learned.parameters(), config.learning_rate)
        if config.embedding_learning_rate is not None:
            for module in (lm.get_input_embeddings(), lm.get_output_embeddings()):
                if module is not None and config.lora_rank is None:
                    peaks |= dict.fromkeys(module.parameters(), config.embedding_learning_rate)
        if self.policy.value_head is not None:
            peaks |= dict.fromkeys(self.policy.value_head.parameters(), config.value_learning_rate)
        groups = [
            {"params": [p for p in peaks if peaks[p] == peak], "peak": peak} for peak in sorted(set(peaks.values()))
        ]
        self.optimizer = torch.optim.AdamW(
            groups, eps=config.adam_epsilon, weight_decay=config.weight_decay, fused=True
        )
        self.steps = 0
        self.iterations = 0
        self._generator = torch.Generator(device).manual_seed(config.seed)
        self._shuffle = torch.Generator().manual_seed(config.seed)
        self._seeded = False
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        half = config.precision == "bfloat16" or (config.precision == "auto" and native)
        self._precision: Callable[[], contextlib.AbstractContextManager[Any]] = (
            (lambda: torch.autocast(device.type, torch.bfloat16)) if half else contextlib.nullcontext
        )

    def learn(
        self,
        total_steps: int,
        *,
        progress: Progress | None = None,
        checkpoints: Path | None = None,
        checkpoint_every: int = 5,
    ) -> PPO:
        """Learn until ``total_steps`` tokens are written, in all calls together.

        Args:
            total_steps: Tokens; the iteration that reaches them is finished.
            progress: Called after each iteration with the tokens so far and the metrics, in every process that
                gives one.
            checkpoints: Folder to keep the last checkpoint in; a run that finds one there goes on from it, with the
                numbers of a run that was never stopped.
            checkpoint_every: Iterations between checkpoints.

        Returns:
            Itself.
        """
        if total_steps < 1 or checkpoint_every < 1:
            raise TextEnvError(f"total_steps={total_steps}, checkpoint_every={checkpoint_every}: expected at least 1.")
        if checkpoints is not None:
            self.resume(checkpoints, total_steps)
        while self.steps < total_steps:
            began = time.perf_counter()
            seed = None if self._seeded else self.config.seed
            self._seeded = True
            with self.whole():
                rollout = collect(self.envs, self.policy, self._generator, seed=seed, world=self.world)
            wrote = time.perf_counter()
            rate = self._rate(self.steps / total_steps, (self.steps + rollout.tokens) / total_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * rate
            losses = self.update(rollout)
            self.steps += rollout.tokens
            self.iterations += 1
            metrics = {
                **_describe(rollout),
                "objective/kl_coef": text_env(self.envs).kl_coef,
                **losses,
                "train/learning_rate": self.config.learning_rate * rate,
                "time/iterations": float(self.iterations),
                "time/tokens_per_second": rollout.tokens / (time.perf_counter() - began),
                "time/rollout_seconds": wrote - began,
                "time/update_seconds": time.perf_counter() - wrote,
            }
            if progress is not None:
                progress(self.steps, metrics)
            if checkpoints is not None and (self.iterations % checkpoint_every == 0 or self.steps >= total_steps):
                self.checkpoint(checkpoints, total_steps)
        return self

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Make the passes of an iteration over its episodes.

        Args:
            rollout: The episodes of all processes, the same everywhere. Of each minibatch, every process computes the
                gradients of its share.

        Returns:
            Means over the updates, under the usual names.
        """
        config, device = self.config, self.policy.lm.device
        mask = torch.from_numpy(rollout.mask)
        advantages, returns = gae(
            torch.from_numpy(rollout.rewards),
            torch.from_numpy(rollout.values),
            mask,
            torch.from_numpy(rollout.bootstrap),
            gamma=config.gamma,
            lam=config.lam,
        )
        explained = 1 - (returns - torch.from_numpy(rollout.values))[mask].var() / returns[mask].var().clamp(min=1e-8)
        if config.whiten_advantages:
            advantages = masked_whiten(advantages, mask)
        columns = (torch.from_numpy(rollout.log_probs), torch.from_numpy(rollout.values), advantages, returns)
        history: list[dict[str, float]] = []
        for rows in self._minibatches(len(rollout.lengths)):
            tokens = int(rollout.mask[rows].sum())
            sums: dict[str, float] = {}
            mine, size = rows[self.world.rank :: self.world.size], config.micro_batch_size
            if size is None and self.world.size == 1:
                room = (_LOGITS_CPU if device.type == "cpu" else _LOGITS_GPU) // self.policy.lm.vocab_size
                parts = _parts(mine, rollout.lengths, rollout.starts, room)
            else:  # several processes make the same number of passes
                parts = torch.split(_by_length(mine, rollout.lengths), size or len(mine))
            for number, part in enumerate(parts, start=1):
                log_probs, values, advantage, target = (column[part][mask[part]].to(device) for column in columns)
                with self.world.accumulate(self._network, last=number == len(parts)):
                    with self._precision():
                        episodes = _episodes(rollout, part, device, self.policy.lm.vocab_size)
                        now: Evaluation = self._network(*episodes, entropy=config.entropy_coef > 0)
                    policy_loss = clipped_policy_loss(now.log_probs, log_probs, advantage, config.clip).sum() / tokens
                    value_loss = clipped_value_loss(now.values, values, target, config.value_clip).sum() / tokens
                    loss = policy_loss + config.value_coef * value_loss
                    loss = loss - config.entropy_coef * now.entropy.sum() / tokens
                    (loss * self.world.size).backward()  # the processes' gradients are averaged, and are to be summed
                with torch.no_grad():
                    share = len(log_probs) / tokens
                    for name, value in (
                        ("policy_loss", policy_loss),
                        ("value_loss", value_loss),
                        ("approx_kl", approximate_kl(now.log_probs, log_probs).mean() * share),
                        ("clip_fraction", clip_fraction(now.log_probs, log_probs, config.clip) * share),
                        ("ratio", (now.log_probs - log_probs).exp().mean() * share),
                    ):
                        sums[name] = sums.get(name, 0.0) + float(value)
            sums = self.world.sums(sums)
            if not math.isfinite(sums["policy_loss"] + sums["value_loss"]):
                raise TextEnvError(
                    f"The losses are {sums} after {self.steps} tokens. Lower learning_rate (now "
                    f"{config.learning_rate}) or clip the reward; the run's last checkpoint is from before."
                )
            norm = nn.utils.clip_grad_norm_(self.policy.parameters(), config.max_grad_norm)
            history.append({**sums, "grad_norm": float(full(norm))})
            if config.target_kl is not None and sums["approx_kl"] > config.target_kl:
                self.optimizer.zero_grad(set_to_none=True)
                break
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        means = {f"train/{name}": sum(row[name] for row in history) / len(history) for name in history[0]}
        means["train/first_ratio"] = history[0]["ratio"]
        return {**means, "train/updates": float(len(history)), "train/explained_variance": float(explained)}

    def predict(self, obs: Observation, *, deterministic: bool = True) -> IntArray:
        """Choose the next token.

        Args:
            obs: An observation, single or batched.
            deterministic: Take the likeliest token instead of drawing one.

        Returns:
            Actions, shape ``(batch,)``, or ``()`` for a single observation.
        """
        single = np.asarray(obs["input_ids"]).ndim == 1
        batch = {name: np.asarray(values)[None] for name, values in obs.items()} if single else obs
        with self.whole():
            actions, _ = self.policy.act(batch, generator=None if deterministic else self._generator)
        return actions[0] if single else actions

    def save(self, folder: str | Path) -> None:
        """Save the policy as a Hugging Face folder, with its value function and settings; every process calls it."""
        folder = Path(folder)
        policy = self._unsharded()
        if not self.world.first:
            return
        folder.mkdir(parents=True, exist_ok=True)
        policy.save(folder)
        about = {"agent": "ppo", "steps": self.steps, "config": dataclasses.asdict(self.config)}
        write_atomically(folder / "agent.json", json.dumps(about, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path, env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> PPO:
        """Load an agent that ``save`` wrote, to act in ``env`` or learn on.

        Args:
            folder: Where it was saved.
            env: A text environment over the same vocabulary.

        Raises:
            TextEnvError: The folder holds no such agent, or it does not fit the environment.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / "agent.json").read_text("utf-8"))
            config = PPOConfig(**about["config"])
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise TextEnvError(
                f"{folder} holds no PPO agent ({error}); expected a folder that PPO.save wrote."
            ) from error
        envs = vectorise(env)
        policy = _new_policy(text_env(envs), config)
        policy.load(folder)
        agent = cls(envs, config, policy=policy)
        agent.steps = int(about["steps"])
        return agent

    def checkpoint(self, folder: Path, total_steps: int) -> None:
        """Write all that the rest of the run depends on, whatever the number of processes; each of them calls it."""
        states = self.world.gather(text_env(self.envs).state_dict())
        rows = [generator for state in states for generator in state["generators"]]
        save_checkpoint(
            folder,
            self.steps,
            modules={"policy": self.policy.learned},
            optimizer=self.optimizer,
            generators={"actions": self._generator, "minibatches": self._shuffle},
            state={
                "iterations": self.iterations,
                "total_steps": total_steps,
                "config": dataclasses.asdict(self.config),
                "env": {**states[0], "generators": rows},
            },
            write=self.world.first,
        )

    def resume(self, folder: Path, total_steps: int) -> bool:
        """Go on from the last checkpoint in ``folder``, if there is one; every process calls it.

        Returns:
            Whether there was one.

        Raises:
            TextEnvError: It was written with other settings.
        """
        path = latest_checkpoint(folder)
        if len(found := {str(path and path.name) for path in self.world.gather(path)}) > 1:
            raise TextEnvError(f"The processes find different checkpoints in {folder}, {sorted(found)}: share it.")
        if path is None:
            return False
        before = json.loads((path / "state.json").read_text("utf-8"))
        settings = json.loads(json.dumps({"total_steps": total_steps, **dataclasses.asdict(self.config)}))
        earlier = {"total_steps": before["total_steps"], **before["config"]}
        if changed := sorted(name for name in settings if settings[name] != earlier.get(name)):
            raise TextEnvError(
                f"{folder} holds a run with other settings: "
                + ", ".join(f"{name} was {earlier.get(name)!r}, is {settings[name]!r}" for name in changed)
                + ". Go on with those it was started with, or take another folder."
            )
        state = load_checkpoint(
            path,
            modules={"policy": self.policy.learned},
            optimizer=self.optimizer,
            generators={"actions": self._generator, "minibatches": self._shuffle},
        )
        self.steps, self.iterations, self._seeded = state["step"], state["iterations"], True
        rows = state["env"]["generators"]
        if len(rows) != (total := self.envs.num_envs * self.world.size):
            raise TextEnvError(f"{path} is of {len(rows)} rows, but this run has {total}; go on with as many.")
        text_env(self.envs).load_state_dict({**state["env"], "generators": list(self.world.own(rows))})
        return True

    def whole(self) -> contextlib.AbstractContextManager[None]:
        """Let the policy act or be read inside, which FSDP otherwise keeps in parts; every process enters it."""
        return self.world.whole(self._network)

    def _unsharded(self) -> TextPolicy:
        if not self.world.sharded:
            return self.policy
        policy = _new_policy(text_env(self.envs), self.config)
        with torch.no_grad():
            for mine, theirs in zip(policy.parameters(), self.policy.parameters(), strict=True):
                mine.copy_(full(theirs))
        return policy

    def _check_shares(self, base: TextVectorEnv) -> None:
        """Refuse what the processes of a run could not do as one."""
        if self.world.size == 1:
            return
        if self.world.sharded and self.config.lora_rank is not None:
            raise TextEnvError("FSDP shards weights that learn, and with lora_rank few do: launch without --use_fsdp.")
        if self.config.minibatch_size is not None:
            self.world.share("minibatch_size", self.config.minibatch_size)
        if _any(base.state_dict()["reward"]):
            raise TextEnvError(
                "The reward keeps statistics of what it has scored, and each process would keep its own; train with it "
                "on one process."
            )
        if len(rows := set(self.world.counts(self.envs.num_envs))) > 1:
            raise TextEnvError(f"The processes have {sorted(rows)} rows; expected as many in each.")

    def _rate(self, before: float, after: float) -> float:
        """Return the learning rate, as a share of its peak, of the iteration between two shares of the steps."""
        config = self.config
        warm = min(1.0, after / config.lr_warmup) if config.lr_warmup else 1.0
        falls = {"constant": 1.0, "linear": 1 - before, "cosine": 0.5 * (1 + math.cos(math.pi * before))}
        return warm * falls[config.lr_schedule]

    def _minibatches(self, episodes: int) -> Iterator[torch.Tensor]:
        for _ in range(self.config.epochs):
            order = torch.randperm(episodes, generator=self._shuffle)
            yield from torch.split(order, self.config.minibatch_size or len(order))


def _new_policy(base: TextVectorEnv, config: PPOConfig) -> TextPolicy:
    rank = config.lora_rank
    return TextPolicy(
        base.reference,
        value=config.value,
        temperature=base.settings.temperature,
        lora=None if rank is None else Lora(rank, config.lora_alpha, config.lora_targets),
        gradient_checkpointing=config.gradient_checkpointing,
    )


def _any(state: Any) -> bool:
    """Tell whether a reward's state holds anything; one that only passes on the state of others may not."""
    return any(map(_any, state.values())) if isinstance(state, Mapping) else state is not None


_ROWS = 8  # fewer are not worth a pass of their own
_SHORTER = 0.75  # of the longest row's length: from there a row is left to the next pass
_LOGITS_CPU, _LOGITS_GPU = 2**20, 2**28  # of a pass: as many as a processor's caches hold, or as keep a GPU busy


def _by_length(rows: torch.Tensor, lengths: IntArray) -> torch.Tensor:
    return rows[torch.from_numpy(np.argsort(-lengths[rows.numpy()], kind="stable"))]


def _parts(rows: torch.Tensor, lengths: IntArray, starts: IntArray, room: int) -> Sequence[torch.Tensor]:
    """Split a minibatch into what is computed at a time: rows of about the same length, with ``room`` for tokens."""
    ordered = _by_length(rows, lengths)
    sizes, written = lengths[ordered.numpy()], (lengths - starts)[ordered.numpy()]
    ends = [0]
    for place in range(1, len(sizes)):
        full = written[ends[-1] : place + 1].sum() > room
        if place - ends[-1] >= _ROWS and (full or sizes[place] <= _SHORTER * sizes[ends[-1]]):
            ends.append(place)
    return [ordered[begin:end] for begin, end in itertools.pairwise([*ends, len(sizes)])]


def _episodes(
    rollout: Rollout, rows: torch.Tensor, device: torch.device, vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return the arguments of ``TextPolicy.evaluate`` for some episodes, trimmed to the longest."""
    picks = rows.numpy()
    lengths = rollout.lengths[picks]
    ids = torch.from_numpy(rollout.input_ids[picks, : int(lengths.max())]).to(device)
    masks = None
    if rollout.action_masks is not None:
        packed = rollout.action_masks[picks][rollout.mask[picks]]
        masks = torch.from_numpy(np.unpackbits(packed, axis=1, count=vocab_size).astype(bool)).to(device)
    return ids, torch.from_numpy(lengths).to(device), torch.from_numpy(rollout.starts[picks]).to(device), masks


def _describe(rollout: Rollout) -> dict[str, float]:
    finished = rollout.finished
    means = {
        "rollout/ep_rew_mean": float(rollout.rewards.sum(axis=1).mean()),
        "rollout/ep_len_mean": float(rollout.mask.sum(axis=1).mean()),
    }
    if finished:
        means["objective/score"] = float(np.mean([episode.score for episode in finished]))
        means["objective/kl"] = float(np.mean([math.fsum(episode.kl) for episode in finished]))
        means["objective/entropy"] = -float(rollout.log_probs[rollout.mask].sum() / len(rollout.lengths))
        means["rollout/eos_fraction"] = float(np.mean([episode.stop_reason == "eos" for episode in finished]))
    return means
