"""What the agents share: a policy and its optimizer, the loop of iterations, passes over episodes, files.

An agent is a class derived from ``Agent`` with one method, ``update``: what it learns from the episodes of an
iteration. Nothing here is to be overridden.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar, cast, final

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import nn

from textenv.agents.losses import approximate_kl
from textenv.data.files import to_json, write_json
from textenv.env.scoring import unscored
from textenv.env.vector import TextVectorEnv
from textenv.models import acting
from textenv.models.lora import Lora
from textenv.models.policy import Evaluation, TextPolicy, observation_arrays
from textenv.rollouts.checkpoint import latest_checkpoint, load_checkpoint, read_state, save_checkpoint
from textenv.rollouts.collect import ActionMask, Rollout, collect, sample_episodes, text_env, vectorise
from textenv.rollouts.distributed import World, connect, full
from textenv.types import Episode, FloatArray, IntArray, Observation, TextEnvError

__all__ = [
    "Agent",
    "AgentConfig",
    "Batch",
    "GroupConfig",
    "Loss",
    "Progress",
    "ValueConfig",
    "check",
    "describe",
    "episode_tensors",
    "new_policy",
    "paid",
    "read_saved",
    "refuse_unscored",
]

Schedule = Literal["constant", "linear", "cosine"]
Progress = Callable[[int, Mapping[str, float]], bool | None]


def check(
    config: Any,
    *,
    positive: Iterable[str] = (),
    not_negative: Iterable[str] = (),
    share: Iterable[str] = (),
    whole: Iterable[str] = (),
    **choices: Sequence[str],
) -> None:
    """Check settings by name; None and ``"auto"`` pass where they are a choice of their own, with ``| None``, say.

    Args:
        config: A dataclass.
        positive: Names of finite numbers above 0.
        not_negative: Names of finite numbers of at least 0.
        share: Names of numbers from 0 to 1.
        whole: Names of whole numbers of at least 1.
        **choices: The values that a setting may have.

    Raises:
        TextEnvError: A setting is not what is expected.
    """
    others: dict[str, list[Any]] = {
        field.name: [other for other, word in (("auto", "'auto'"), (None, "None")) if word in _quoted(field.type)]
        for field in dataclasses.fields(config)
    }

    def demand(names: Iterable[str], holds: Callable[[Any], bool], expected: str) -> None:
        for name in names:
            value = getattr(config, name)
            if any(value is other or value == other for other in others[name]):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not holds(value):
                besides = "".join(f", or {other!r}" for other in others[name])
                raise TextEnvError(f"{name}={value!r}: expected {expected}{besides}.")

    demand(positive, lambda value: 0 < value < math.inf, "a finite number above 0")
    demand(not_negative, lambda value: 0 <= value < math.inf, "a finite number of at least 0")
    demand(share, lambda value: 0 <= value <= 1, "a number from 0 to 1")
    demand(whole, lambda value: isinstance(value, int) and value >= 1, "a whole number of at least 1")
    for name, values in choices.items():
        if getattr(config, name) not in values:
            raise TextEnvError(f"{name}={getattr(config, name)!r}: expected one of {list(values)}.")


def _quoted(annotation: Any) -> str:
    return str(annotation).replace('"', "'")


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Settings of every agent that learns; the defaults suit models of a few million parameters.

    Attributes:
        learning_rate: Of Adam, at its peak.
        embedding_learning_rate: That of the token embeddings and of the head tied to them. They say which words are
            likelier everywhere, which is what pays first; the same step in the trunk costs far more KL. ``"auto"`` for
            8 times ``learning_rate``, None for ``learning_rate``.
        lr_schedule: How it falls to zero over ``learn``'s steps: ``"constant"`` (not), ``"linear"`` or ``"cosine"``.
        lr_warmup: Share of the steps over which it first rises from zero. Adam's first steps are as long as its rate
            whatever the gradient, so without it the policy leaves the reference before it knows where to go.
        adam_epsilon: Of Adam.
        weight_decay: Decoupled (AdamW).
        episodes: An iteration's, in all processes together; None for one in every row. With more, rows whose texts end
            early begin others, and none stands idle for long.
        minibatch_size: Episodes an update, in all processes together; None for all.
        micro_batch_size: Episodes a forward pass, their gradients accumulated; None for as many as suit the device, or
            on several processes for a process's whole share of the minibatch.
        max_grad_norm: Gradients are scaled down to this norm.
        precision: ``"bfloat16"`` trains in mixed precision; ``"auto"`` does so on GPUs that have it.
        lora_rank: Learn a low-rank adapter (LoRA) of this rank on the reference's own weights, which are then in memory
            once; None to learn in all weights of a copy.
        lora_alpha: The adapter is scaled by ``lora_alpha / lora_rank``.
        lora_targets: Names of the layers that get an adapter; ``all-linear`` for all but the head.
        gradient_checkpointing: Keep only the inputs of layers for the backward pass: less memory, more time.
        seed: Seeds actions, minibatches and the environment.
    """

    learning_rate: float = 1e-4
    embedding_learning_rate: float | Literal["auto"] | None = "auto"
    lr_schedule: Schedule = "linear"
    lr_warmup: float = 0.1
    adam_epsilon: float = 1e-5
    weight_decay: float = 0.0
    episodes: int | None = None
    minibatch_size: int | None = 32
    micro_batch_size: int | None = None
    max_grad_norm: float = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    lora_rank: int | None = None
    lora_alpha: int = 16
    lora_targets: tuple[str, ...] = ("all-linear",)
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        object.__setattr__(self, "lora_targets", tuple(self.lora_targets))
        check(
            self,
            positive=("learning_rate", "embedding_learning_rate", "adam_epsilon", "max_grad_norm", "lora_alpha"),
            not_negative=("weight_decay",),
            share=("lr_warmup",),
            whole=("episodes", "minibatch_size", "micro_batch_size", "lora_rank"),
            lr_schedule=("constant", "linear", "cosine"),
            precision=("auto", "float32", "bfloat16"),
        )


@dataclass(frozen=True, slots=True)
class ValueConfig(AgentConfig):
    """Settings of an agent that judges a token by a learned value of the state.

    Attributes:
        value: Where values come from: a ``"head"`` on the policy's trunk, a ``"model"`` of its own, or ``"none"``.
        value_learning_rate: That of the value head, which starts at zero; ``"auto"`` for 30 times ``learning_rate``.
        value_coef: Weight of the value loss.
        gamma: Discount.
        whiten_advantages: Shift and scale an iteration's advantages to mean 0 and variance 1.
    """

    value: Literal["head", "model", "none"] = "head"
    value_learning_rate: float | Literal["auto"] = "auto"
    value_coef: float = 0.1
    gamma: float = 1.0
    whiten_advantages: bool = True

    def __post_init__(self) -> None:
        """Check the settings."""
        AgentConfig.__post_init__(self)  # a class with slots is made anew, and super() would miss it
        check(
            self,
            positive=("value_learning_rate",),
            not_negative=("value_coef",),
            share=("gamma",),
            value=("head", "model", "none"),
        )


@dataclass(frozen=True, slots=True)
class GroupConfig(AgentConfig):
    """Settings of an agent that judges a completion by others of the same prompt.

    Attributes:
        samples: Completions of one prompt, a group; the episodes of an iteration are to be a multiple of it.
    """

    samples: int = 4

    def __post_init__(self) -> None:
        """Check the settings."""
        AgentConfig.__post_init__(self)
        check(self, whole=("samples",))
        if self.samples < 2:
            raise TextEnvError(f"samples={self.samples}: expected at least 2, since one is judged by the others.")


@dataclass(frozen=True, slots=True)
class Batch:
    """Some episodes of a minibatch, as a loss gets them.

    Attributes:
        columns: What ``Agent.optimise`` was given, and ``log_probs`` of the tokens when they were drawn, at every token
            written, packed row by row, each of shape ``(tokens,)``.
        mask: True at tokens written, ``(episodes, time)``.
        tokens: Number of tokens of the whole minibatch, of which this may be a part.
        episodes: Number of its episodes.
    """

    columns: Mapping[str, torch.Tensor]
    mask: torch.Tensor
    tokens: int
    episodes: int

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.columns[name]

    def padded(self, packed: torch.Tensor) -> torch.Tensor:
        """Return packed values as ``(episodes, time)``, with 0 where no token was written."""
        return torch.zeros(self.mask.shape, dtype=packed.dtype, device=packed.device).masked_scatter(self.mask, packed)


Loss = Callable[[Evaluation, Batch], tuple[torch.Tensor, Mapping[str, torch.Tensor]]]
"""A loss and metrics of some episodes, each already divided by the minibatch's number of tokens, or of episodes."""

ConfigT = TypeVar("ConfigT", bound=AgentConfig)


class Agent(ABC, Generic[ConfigT]):
    """Learns to act in a text environment, an iteration at a time.

    An iteration writes one episode in every row of a vector environment, through ``reset`` and ``step`` alone, and
    learns from them. The KL penalty is in the reward that the environment pays.

    Started by ``accelerate launch`` or ``torchrun``, several processes are one run: see
    ``textenv.rollouts.distributed``.

    Attributes:
        Config: The class of its settings. Those with a ``value`` get a value function, those with ``samples`` as many
            completions of each prompt, in consecutive rows.
        config: Its settings.
        envs: The vector environment it acts in.
        policy: What it learns.
        mask: Which tokens it may draw; None for all that the environment allows.
        steps: Tokens written so far.
        iterations: Iterations done so far.
        world: The processes of the run.
        kept: Networks that a checkpoint keeps, by name.
    """

    Config: ClassVar[type[AgentConfig]]

    def __init__(
        self,
        env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any],
        config: ConfigT | None = None,
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
        given: Any = self.Config() if config is None else config
        if not isinstance(given, self.Config):
            raise TextEnvError(f"{type(self).__name__} got config={given!r}; expected a {self.Config.__name__}.")
        self.config = cast("ConfigT", given)
        self.envs = vectorise(env)
        self.world = connect() if world is None else world
        self._samples: int = getattr(given, "samples", 1)
        base = text_env(self.envs)
        self._check_shares(base)
        torch.manual_seed(given.seed)
        self.policy = new_policy(base, given) if policy is None else policy
        self.mask: ActionMask | None = None
        self._network = self.world.trainable(self.policy)
        device = base.reference.device
        self.optimizer = _optimizer(self.policy, given)
        self.kept: dict[str, nn.Module] = {"policy": self.policy.learned}
        self.steps = 0
        self.iterations = 0
        self._generator = torch.Generator(device).manual_seed(given.seed)
        self._shuffle = torch.Generator().manual_seed(given.seed)
        self._seeded = False
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        half = given.precision == "bfloat16" or (given.precision == "auto" and native)
        self._precision: Callable[[], contextlib.AbstractContextManager[Any]] = (
            (lambda: torch.autocast(device.type, torch.bfloat16)) if half else contextlib.nullcontext
        )

    @abstractmethod
    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learn from the episodes of an iteration.

        Args:
            rollout: The episodes of all processes, the same everywhere.

        Returns:
            Metrics, under the usual names.
        """

    @final
    def learn(
        self,
        total_steps: int,
        *,
        progress: Progress | None = None,
        checkpoints: Path | None = None,
        checkpoint_every: int = 5,
    ) -> Self:
        """Learn until ``total_steps`` tokens are written, in all calls together.

        Args:
            total_steps: Tokens; the iteration that reaches them is finished.
            progress: Called after each iteration with the tokens so far and the metrics, in every process that
                gives one. Learning ends where one returns False.
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
            rollout = self.collect()
            wrote = time.perf_counter()
            rate = self._rate(self.steps / total_steps, (self.steps + rollout.tokens) / total_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * rate
            losses = self.update(rollout)
            self.steps += rollout.tokens
            self.iterations += 1
            metrics = {
                **describe(rollout),
                "objective/kl_coef": text_env(self.envs).kl_coef,
                **losses,
                "train/learning_rate": self.config.learning_rate * rate,
                "time/iterations": float(self.iterations),
                "time/tokens_per_second": rollout.tokens / (time.perf_counter() - began),
                "time/rollout_seconds": wrote - began,
                "time/update_seconds": time.perf_counter() - wrote,
            }
            stopped = progress is not None and progress(self.steps, metrics) is False
            ended = any(self.world.gather(stopped)) or self.steps >= total_steps
            if checkpoints is not None and (self.iterations % checkpoint_every == 0 or ended):
                self.checkpoint(checkpoints, total_steps)
            if ended:
                break
        return self

    @final
    def collect(self) -> Rollout:
        """Write the episodes of an iteration, those of a group from the same prompt."""
        seed = None if self._seeded else self.config.seed
        self._seeded = True
        options = None
        if self._samples > 1:
            prompts = len(text_env(self.envs).prompts)
            groups = self.episodes // self._samples
            drawn = torch.randint(prompts, (groups,), generator=self._shuffle).repeat_interleave(self._samples)
            options = {"prompt_index": list(self.world.own(drawn.tolist()))}
        with self.whole():
            return collect(
                self.envs,
                self.policy,
                self._generator,
                episodes=self.episodes // self.world.size,
                seed=seed,
                options=options,
                world=self.world,
                mask=self.mask,
            )

    @property
    def episodes(self) -> int:
        """Of an iteration, in all processes together."""
        return self.config.episodes or self.envs.num_envs * self.world.size

    @final
    def optimise(
        self,
        rollout: Rollout,
        columns: Mapping[str, torch.Tensor],
        loss: Loss,
        *,
        epochs: int = 1,
        group: int = 1,
        entropy: bool = False,
        target_kl: float | None = None,
    ) -> dict[str, float]:
        """Make passes over episodes, a step of the optimizer a minibatch.

        Args:
            rollout: The episodes of all processes. Of each minibatch, every process computes the gradients of its
                share.
            columns: What the loss needs to know of every token, each of shape ``(batch, time, ...)``. Tokens under
                ``candidates``, ``(batch, time, number)``, are evaluated beside those that were written.
            loss: Called with a part of a minibatch at a time; the parts' gradients and metrics are added up. Those
                whose name ends in ``_loss`` are to be finite.
            epochs: Passes.
            group: As many consecutive rows stay together in what the loss is called with.
            entropy: Compute the entropies.
            target_kl: Stop once the new policy is this far from the old one, in nats a token.

        Returns:
            Means of the loss's metrics over the updates, and the usual ones, under ``train/``.

        Raises:
            TextEnvError: A loss is not finite, or a minibatch cannot be shared out among the processes.
        """
        device = self.policy.lm.device
        mask = torch.from_numpy(rollout.mask)
        columns = {"log_probs": torch.from_numpy(rollout.log_probs), **columns}
        history: list[dict[str, float]] = []
        for rows in self._minibatches(len(rollout.lengths), epochs, group):
            tokens, sums = int(rollout.mask[rows].sum()), dict[str, float]()
            parts = self._parts(rows, rollout, group)
            for number, part in enumerate(parts, start=1):
                packed = {name: column[part][mask[part]].to(device) for name, column in columns.items()}
                batch = Batch(packed, mask[part].to(device), tokens, len(rows))
                with self.world.accumulate(self._network, last=number == len(parts)):
                    with self._precision():
                        episodes = episode_tensors(rollout, part, device, self.policy.lm.vocab_size)
                        others = packed.get("candidates")
                        now: Evaluation = self._network(*episodes, entropy=entropy, candidates=others)
                    total, metrics = loss(now, batch)
                    (total * self.world.size).backward()  # the processes' gradients are averaged, and are to be summed
                with torch.no_grad():
                    log_probs = packed["log_probs"]
                    share = len(log_probs) / tokens
                    for name, value in (
                        *metrics.items(),
                        ("approx_kl", approximate_kl(now.log_probs, log_probs).mean() * share),
                        ("ratio", (now.log_probs - log_probs).exp().mean() * share),
                    ):
                        sums[name] = sums.get(name, 0.0) + float(value)
            sums = self.world.sums(sums)
            losses = {name: value for name, value in sums.items() if name.endswith("_loss")}
            if not math.isfinite(sum(losses.values())):
                raise TextEnvError(
                    f"The losses are {losses} after {self.steps} tokens. Lower learning_rate (now "
                    f"{self.config.learning_rate}) or clip the reward; the run's last checkpoint is from before."
                )
            norm = nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
            history.append({**sums, "grad_norm": float(full(norm))})
            if target_kl is not None and sums["approx_kl"] > target_kl:
                self.optimizer.zero_grad(set_to_none=True)
                break
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        means = {f"train/{name}": sum(row[name] for row in history) / len(history) for name in history[0]}
        return {**means, "train/first_ratio": history[0]["ratio"], "train/updates": float(len(history))}

    @final
    def predict(self, obs: Observation, *, deterministic: bool = True) -> IntArray:
        """Choose the next token.

        Args:
            obs: An observation, single or batched.
            deterministic: Take the likeliest token instead of drawing one.

        Returns:
            Actions, shape ``(batch,)``, or ``()`` for a single observation. They are drawn within the masks of the
            agent's environment, those of its ``top_k`` and ``top_p`` at this observation.

        Raises:
            TextEnvError: The environment has taken the actions before these without their log-probabilities.
        """
        single = np.asarray(obs["input_ids"]).ndim == 1
        batch = {name: np.asarray(values)[None] for name, values in obs.items()} if single else obs
        acting.refuse_unseen(*observation_arrays(batch))
        with self.whole():
            masks = text_env(self.envs).action_masks_at(batch)
            if self.mask is not None:
                masks = self.mask(batch, np.arange(len(batch["input_ids"])), masks)
            generator = None if deterministic else self._generator
            actions, _ = self.policy.act(batch, generator=generator, masks=masks)
        return actions[0] if single else actions

    @final
    def sample(
        self, env: VectorEnv[Any, Any, Any], prompts: Sequence[Any], *, generator: torch.Generator | None = None
    ) -> list[Episode]:
        """Write one episode from each prompt, as ``predict`` would, in the rows of all processes.

        Args:
            env: A text environment with ``AutoresetMode.DISABLED``, which may be another than the agent learns in.
            prompts: Whatever ``reset(options={"prompt": ...})`` takes for a row.
            generator: Source of randomness; None for the likeliest tokens.
        """
        with self.whole():
            return sample_episodes(env, self.policy, generator, prompts, world=self.world, mask=self.mask)

    @final
    def save(self, folder: str | Path) -> None:
        """Save the policy as a Hugging Face folder, with its value function and settings; every process calls it."""
        folder = Path(folder)
        policy = self._unsharded()
        if not self.world.first:
            return
        folder.mkdir(parents=True, exist_ok=True)
        policy.save(folder)
        about = {"agent": type(self).__name__.lower(), "steps": self.steps, "config": dataclasses.asdict(self.config)}
        write_json(folder / "agent.json", about)

    @classmethod
    @final
    def load(cls, folder: str | Path, env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> Self:
        """Load an agent that ``save`` wrote, to act in ``env`` or learn on.

        Args:
            folder: Where it was saved.
            env: A text environment over the same vocabulary.

        Raises:
            TextEnvError: The folder holds no such agent, or it does not fit the environment.
        """
        folder = Path(folder)
        config, about = read_saved(folder, cls)
        envs = vectorise(env)
        policy = new_policy(text_env(envs), config)
        policy.load(folder)
        agent = cls(envs, config, policy=policy)
        agent.steps = int(about["steps"])
        return agent

    @final
    def checkpoint(self, folder: Path, total_steps: int) -> None:
        """Write all that the rest of the run depends on, whatever the number of processes; each of them calls it."""
        states = self.world.gather(text_env(self.envs).state_dict())
        rows = [generator for state in states for generator in state["generators"]]
        save_checkpoint(
            folder,
            self.steps,
            modules=self.kept,
            optimizer=self.optimizer,
            generators=self._generators(),
            state={
                "iterations": self.iterations,
                "total_steps": total_steps,
                "config": _settled(self.config),
                "env": {**states[0], "generators": rows},
            },
            write=self.world.first,
        )

    @final
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
        before = read_state(path)
        settings = {"total_steps": total_steps, **_settled(self.config)}
        earlier = {"total_steps": before["total_steps"], **before["config"]}
        if changed := sorted(name for name in settings if settings[name] != earlier.get(name)):
            raise TextEnvError(
                f"{folder} holds a run with other settings: "
                + ", ".join(f"{name} was {earlier.get(name)!r}, is {settings[name]!r}" for name in changed)
                + ". Go on with those it was started with, or take another folder."
            )
        state = load_checkpoint(
            path,
            modules=self.kept,
            optimizer=self.optimizer,
            generators=self._generators(),
        )
        self.steps, self.iterations, self._seeded = state["step"], state["iterations"], True
        rows = state["env"]["generators"]
        if len(rows) != (total := self.envs.num_envs * self.world.size):
            raise TextEnvError(f"{path} is of {len(rows)} rows, but this run has {total}; go on with as many.")
        text_env(self.envs).load_state_dict({**state["env"], "generators": list(self.world.own(rows))})
        return True

    @final
    def whole(self) -> contextlib.AbstractContextManager[None]:
        """Let the policy act or be read inside, which FSDP otherwise keeps in parts; every process enters it."""
        return self.world.whole(self._network)

    def _generators(self) -> dict[str, torch.Generator]:
        """Return what random numbers come from; torch's own generators are for what an ``update`` draws by itself."""
        device = self._generator.device
        found = {"actions": self._generator, "minibatches": self._shuffle, "torch": torch.default_generator}
        if device.type == "cuda":
            found["cuda"] = torch.cuda.default_generators[device.index or 0]
        return found

    def _unsharded(self) -> TextPolicy:
        if not self.world.sharded:
            return self.policy
        policy = new_policy(text_env(self.envs), self.config)
        with torch.no_grad():
            for mine, theirs in zip(policy.parameters(), self.policy.parameters(), strict=True):
                mine.copy_(full(theirs))
        return policy

    def _check_shares(self, base: TextVectorEnv) -> None:
        """Refuse groups that do not fit the rows, and what the processes of a run could not do as one."""
        rows = self.envs.num_envs * self.world.size
        if self.episodes < rows:
            raise TextEnvError(f"episodes={self.episodes}, with {rows} rows: expected at least one for each.")
        if self.episodes % self._samples:
            what = f"an environment of {rows} rows" if self.config.episodes is None else f"episodes={self.episodes}"
            raise TextEnvError(
                f"samples={self._samples} completions of a prompt, with {what}: expected a multiple of it."
            )
        if self.world.size == 1:
            return
        self.world.share("episodes", self.episodes)
        if self.world.sharded and self.config.lora_rank is not None:
            raise TextEnvError("FSDP shards weights that learn, and with lora_rank few do: launch without --use_fsdp.")
        if self.config.minibatch_size is not None:
            self.world.share("minibatch_size", self.config.minibatch_size)
        if base.scorer.keeps_state:
            raise TextEnvError(
                "The reward keeps statistics of what it has scored, and each process would keep its own; train with it "
                "on one process."
            )
        if len(sizes := set(self.world.counts(self.envs.num_envs))) > 1:
            raise TextEnvError(f"The processes have {sorted(sizes)} rows; expected as many in each.")

    def _rate(self, before: float, after: float) -> float:
        """Return the learning rate, as a share of its peak, of the iteration between two shares of the steps."""
        config = self.config
        warm = min(1.0, after / config.lr_warmup) if config.lr_warmup else 1.0
        falls = {"constant": 1.0, "linear": 1 - before, "cosine": 0.5 * (1 + math.cos(math.pi * before))}
        return warm * falls[config.lr_schedule]

    def _minibatches(self, episodes: int, epochs: int, group: int) -> Iterator[torch.Tensor]:
        """Yield the rows of each minibatch, those of a group one after the other."""
        wanted = self.config.minibatch_size
        for _ in range(epochs):
            order = torch.randperm(episodes // group, generator=self._shuffle)
            for groups in torch.split(order, max(1, (wanted or episodes) // group)):
                self.world.share("groups of an update" if group > 1 else "episodes of an update", len(groups))
                yield (groups[:, None] * group + torch.arange(group)).flatten()

    def _parts(self, rows: torch.Tensor, rollout: Rollout, group: int) -> Sequence[torch.Tensor]:
        """Return this process's share of a minibatch, in the parts that are computed at a time."""
        groups = rows.view(-1, group)[self.world.rank :: self.world.size]
        longest = rollout.lengths[groups.numpy()].max(axis=1)
        written = (rollout.lengths - rollout.starts)[groups.numpy()].sum(axis=1)
        size = self.config.micro_batch_size
        if size is None and self.world.size == 1:
            lm = self.policy.lm
            room = (_LOGITS_CPU if lm.device.type == "cpu" else _LOGITS_GPU) // lm.vocab_size
            parts = _split(longest, written, room)
        else:  # several processes make the same number of passes
            order = torch.from_numpy(np.argsort(-longest, kind="stable"))
            parts = torch.split(order, len(order) if size is None else max(1, size // group))
        return [groups[part].flatten() for part in parts]


def new_policy(base: TextVectorEnv, config: AgentConfig) -> TextPolicy:
    """Return a policy as the settings say, a copy of the environment's reference."""
    rank = config.lora_rank
    return TextPolicy(
        base.reference,
        value=getattr(config, "value", "none"),
        temperature=base.settings.temperature,
        lora=None if rank is None else Lora(rank, config.lora_alpha, config.lora_targets),
        gradient_checkpointing=config.gradient_checkpointing,
    )


def paid(base: TextVectorEnv, rollout: Rollout) -> tuple[FloatArray, FloatArray]:
    """Return the KL of each token from the reference, in nats, and its reward without the KL penalty.

    Less this KL, ``rollout.log_probs`` are the reference's log-probabilities.

    Returns:
        Two arrays of shape ``(batch, time)``.

    Raises:
        TextEnvError: The environment estimates the KL in another way than by ``log pi - log pi_ref``, or a wrapper
            changes what it pays.
    """
    if base.settings.kl_estimator != "k1":
        raise TextEnvError(
            f"kl_estimator={base.settings.kl_estimator!r}: this agent reads log pi_ref off the KL, which takes 'k1'."
        )
    kl = np.zeros_like(rollout.rewards)
    for row, episode in enumerate(rollout.episodes):
        earned = None if episode is None else math.fsum(episode.token_rewards)
        if episode is None or earned is None or abs(earned - rollout.rewards[row].sum()) > 1e-4 * max(1.0, abs(earned)):
            raise TextEnvError(
                "A wrapper truncated an episode or changed its reward; this agent learns from the environment's own "
                "score and KL, so leave the wrapper out."
            )
        kl[row, : len(episode.kl)] = episode.kl
    return kl, np.asarray(rollout.rewards + np.float32(rollout.kl_coef) * kl, dtype=np.float32)


def read_saved(folder: Path, cls: Any) -> tuple[Any, dict[str, Any]]:
    """Return the settings of an agent that was saved, and what else its file says.

    Raises:
        TextEnvError: The folder holds no agent of this class.
    """
    try:
        about: dict[str, Any] = json.loads((folder / "agent.json").read_text("utf-8"))
        if about["agent"] != cls.__name__.lower():
            raise KeyError(f"agent is {about['agent']!r}")
        return cls.Config(**about["config"]), about
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise TextEnvError(
            f"{folder} holds no {cls.__name__} agent ({error}); expected a folder that {cls.__name__}.save wrote."
        ) from error


def describe(rollout: Rollout) -> dict[str, float]:
    """Return the usual metrics of episodes."""
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


_RATES = {"embedding_learning_rate": 8.0, "value_learning_rate": 30.0}
"""What ``"auto"`` stands for, as multiples of ``learning_rate``."""


def _settled(config: AgentConfig) -> dict[str, Any]:
    """Return settings as JSON values, learning rates that follow another as the numbers that they are."""
    settings = json.loads(to_json(dataclasses.asdict(config)))
    follow = {name: multiple * config.learning_rate for name, multiple in _RATES.items()}
    return {name: follow[name] if value == "auto" and name in follow else value for name, value in settings.items()}


def _optimizer(policy: TextPolicy, config: AgentConfig) -> torch.optim.Optimizer:
    """Return Adam, with learning rates of their own for embeddings and value head."""
    peaks: dict[Any, float] = dict.fromkeys(policy.learned.parameters(), config.learning_rate)
    rates = _settled(config)
    embedding_rate: float | None = rates["embedding_learning_rate"]
    if embedding_rate is not None:
        for module in (policy.model.get_input_embeddings(), policy.model.get_output_embeddings()):
            if module is not None and config.lora_rank is None:
                peaks |= dict.fromkeys(module.parameters(), embedding_rate)
    if policy.value_head is not None:  # agents with one have a rate for it
        value_rate: float = rates["value_learning_rate"]
        peaks |= dict.fromkeys(policy.value_head.parameters(), value_rate)
    groups = [{"params": [p for p in peaks if peaks[p] == peak], "peak": peak} for peak in sorted(set(peaks.values()))]
    return torch.optim.AdamW(groups, eps=config.adam_epsilon, weight_decay=config.weight_decay, fused=True)


def refuse_unscored(base: TextVectorEnv, agent: str) -> None:
    """Refuse an environment that scores nothing, for an agent that acts by scores.

    Raises:
        TextEnvError: The environment's reward is ``textenv.env.scoring.unscored``.
    """
    if base.reward is unscored:
        raise TextEnvError(
            f"{agent} chooses what it writes by the reward, and this environment has none; give it one (--reward of "
            "'textenv sample', where 'run' stands for the run's own)."
        )


_ROWS = 8  # fewer are not worth a pass of their own
_SHORTER = 0.75  # of the longest row's length: from there a row is left to the next pass
_LOGITS_CPU, _LOGITS_GPU = 2**20, 2**28  # of a pass: as many as a processor's caches hold, or as keep a GPU busy


def _split(lengths: IntArray, written: IntArray, room: int) -> Sequence[torch.Tensor]:
    """Split rows into what is computed at a time: of about the same length, with ``room`` for tokens written."""
    ordered = np.argsort(-lengths, kind="stable")
    sizes, written = lengths[ordered], written[ordered]
    ends = [0]
    for place in range(1, len(sizes)):
        full = written[ends[-1] : place + 1].sum() > room
        if place - ends[-1] >= _ROWS and (full or sizes[place] <= _SHORTER * sizes[ends[-1]]):
            ends.append(place)
    return [torch.from_numpy(ordered[begin:end]) for begin, end in itertools.pairwise([*ends, len(sizes)])]


def episode_tensors(
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
