"""What the agents that train a policy share: the loop of iterations, passes over episodes, checkpoints.

An agent is a class derived from ``Agent`` with one method, ``update``: what it learns from the episodes of an
iteration. One that keeps more than a policy makes it in ``start_learning``; nothing else is to be overridden.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, final

from textenv.agents.actor import Actor
from textenv.agents.config import AgentConfig
from textenv.agents.environment import refuse_other_discount
from textenv.lazy import lazy
from textenv.types import TextEnvError, short

if TYPE_CHECKING:
    import gymnasium as gym
    import torch
    from gymnasium.vector import VectorEnv
    from torch import nn

    from textenv.agents import engines, losses, minibatches, optimizer, precisions, pretraining, random_state
    from textenv.env.vector import TextVectorEnv
    from textenv.models import lora
    from textenv.models import policy as policies
    from textenv.rollouts import checkpoint as checkpointing
    from textenv.rollouts import collect as collecting
    from textenv.rollouts import distributed, runs
else:
    torch, nn = lazy("torch"), lazy("torch.nn")
    engines = lazy("textenv.agents.engines")
    losses, minibatches = lazy("textenv.agents.losses"), lazy("textenv.agents.minibatches")
    pretraining = lazy("textenv.agents.pretraining")
    optimizer, random_state = lazy("textenv.agents.optimizer"), lazy("textenv.agents.random_state")
    precisions = lazy("textenv.agents.precisions")
    lora, policies = lazy("textenv.models.lora"), lazy("textenv.models.policy")
    checkpointing = lazy("textenv.rollouts.checkpoint")
    collecting = lazy("textenv.rollouts.collect")
    distributed, runs = lazy("textenv.rollouts.distributed"), lazy("textenv.rollouts.runs")

__all__ = ["Agent", "new_policy"]

ConfigT = TypeVar("ConfigT", bound=AgentConfig)


_FIRST = ("ratio", "approx_kl", "log_ratio", "log_ratio_max")
_ONLY_FIRST = ("train/log_ratio", "train/log_ratio_max")  # later ones are of what was learned since

_OF_ROWS = ("generators", "worlds")  # of an environment's state, what is a list with an item a row


class Agent(Actor[ConfigT]):
    """Trains a policy in a text environment, an iteration at a time.

    An iteration writes one episode in every row of a vector environment, through ``reset`` and ``step`` alone, and
    learns from them. The KL penalty is in the reward that the environment pays.

    Started by ``accelerate launch`` or ``torchrun``, several processes are one run: see
    ``textenv.rollouts.distributed``.

    Attributes:
        Config: The class of its settings. Those with a ``value`` get a value function, those with ``samples`` as many
            completions of each prompt, in consecutive rows.
        policy: What it trains.
        kept: Networks that a checkpoint keeps, by name.
        optimizer: Of the policy; there is none before learning starts.
    """

    Config: ClassVar[type[AgentConfig]]  # pyright: ignore[reportIncompatibleVariableOverride]
    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any],
        config: ConfigT | None = None,
        *,
        policy: policies.TextPolicy | None = None,
        processes: distributed.Processes | None = None,
        learning: bool = True,
    ) -> None:
        """Start from a copy of the environment's reference model.

        Args:
            env: A text environment: single, or vectorized with ``AutoresetMode.DISABLED``. On several processes, each
                gives one with its share of the rows.
            config: Settings; None for the defaults.
            policy: Where to start instead; it is what learns, no copy of it.
            processes: The processes of the run; None for those that a launcher has started, if it has.
            learning: Check the environment for training, and make what training needs. False leaves that to the first
                iteration, for an agent that is to act.

        Raises:
            TextEnvError: The environment is of another kind, or cannot be shared out among the processes.
        """
        super().__init__(env, config, processes=processes)
        given: Any = policy
        if given is not None and not isinstance(given, policies.TextPolicy):
            raise TextEnvError(f"{type(self).__name__} got policy={short(given)}; expected a TextPolicy, or None.")
        self.policy = new_policy(self.base, self.config) if policy is None else policy
        self.kept: dict[str, nn.Module] = {"policy": self.policy.learned}
        self._samples: int = getattr(self.config, "samples", 1)
        self._network: nn.Module | None = None
        self._seeded = False
        if learning:
            self.start_learning()

    def start_learning(self) -> None:
        """Check the environment for training, and make what training needs; called once, before the first iteration.

        An agent that keeps more than a policy extends it: networks and buffers in ``kept`` are in its checkpoints.

        Raises:
            TextEnvError: The agent cannot learn in this environment.
        """
        self._check_shares(self.base)
        refuse_other_discount(self.base, getattr(self.config, "gamma", 1.0))
        self._mix = pretraining.PretrainingMix(self.policy.lm, self.config) if self.config.ptx_coef else None
        device, seed = self.base.reference.device, self.config.seed
        self._network = self.processes.trainable(self.policy)
        self.optimizer = optimizer.make_optimizer(self.policy, self.config)
        self._shuffle = torch.Generator().manual_seed(seed)
        self._random = random_state.RandomState(seed, device)
        self._precisions = precisions.choose(self.config, self.policy.lm, self.envs.num_envs, self.processes)
        engine = self.config.rollout_engine is not None
        self._engine = engines.EngineWriter(self.config, self.base, self.policy, self.processes) if engine else None

    def _ensure_learning(self) -> nn.Module:
        """Start learning unless it has started; return the training forward."""
        if self._network is None:
            self.start_learning()
        assert self._network is not None
        return self._network

    @abstractmethod
    def update(self, rollout: collecting.Rollout) -> dict[str, float]:
        """Learn from the episodes of an iteration.

        Torch's global random numbers are the agent's own in it, from its seed on; a checkpoint keeps their state.

        Args:
            rollout: The episodes of all processes, the same everywhere.

        Returns:
            Metrics, under the usual names.
        """

    @final
    def iterate(self, total_steps: int) -> tuple[collecting.Rollout, Mapping[str, float]]:
        """Write episodes and learn from them, at the learning rates of the schedule."""
        began = time.perf_counter()
        ahead = None if self._network is None or self._engine is None else self._engine.take()
        rollout = self.collect() if ahead is None else ahead
        wrote = time.perf_counter()
        share = optimizer.rate_share(self.config, self.steps / total_steps, (self.steps + rollout.tokens) / total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        goes_on = self.steps + rollout.tokens < total_steps
        with contextlib.ExitStack() as stack:
            if self._engine is not None and self.config.max_lag and goes_on:
                stack.enter_context(self._engine.meanwhile(self._begin_episodes()))
            stack.enter_context(self._random.active())
            metrics = self.update(rollout)
        return rollout, {
            **metrics,
            "train/learning_rate": self.config.learning_rate * share,
            **({"rollout/bits": self._precisions.bits} if self._engine is None else self._engine.metrics),
            "time/rollout_seconds": wrote - began,
            "time/update_seconds": time.perf_counter() - wrote,
        }

    def _of_groups(self, count: int) -> list[int]:
        """Draw a number below ``count`` for each group; return it for each of this process's episodes."""
        drawn = torch.randint(count, (self.episodes // self._samples,), generator=self._shuffle)
        return list(self.processes.own(drawn.repeat_interleave(self._samples).tolist()))

    @final
    def collect(self) -> collecting.Rollout:
        """Write the episodes of an iteration, those of a group from the same prompt."""
        write = self._begin_episodes()
        with self.whole_weights(), self.policy.rounded(self._precisions.rollout):
            rollout = write()
            return rollout if self._engine is None else self._engine.read(rollout)

    def _begin_episodes(self) -> Callable[[], collecting.Rollout]:
        """Draw what the episodes of an iteration begin with, and give an engine its weights; return what writes them.

        What it returns draws from no generator that ``update`` draws from.
        """
        self._ensure_learning()
        seed = None if self._seeded else self.config.seed
        self._seeded = True
        options = None
        if self._samples > 1:
            options = {}
            if self.base.prompts:
                options["prompt_index"] = self._of_groups(len(self.base.prompts))
            if self.base.worlds is not None:
                options["world_seed"] = self._of_groups(2**31 - 1)
        if self._engine is not None:
            self._engine.push(self._unsharded())
        return functools.partial(
            collecting.collect,
            self.envs,
            self.policy if self._engine is None else self._engine.policy,
            self._generator,
            episodes=self.episodes // self.processes.size,
            seed=seed,
            options=options,
            processes=self.processes if self._engine is None else self._engine.writers,
            mask=self.mask,
        )

    @property
    def episodes(self) -> int:
        """Number of episodes an iteration, in all processes together."""
        return self.config.episodes or super().episodes

    @final
    def optimize(
        self,
        rollout: collecting.Rollout,
        columns: Mapping[str, torch.Tensor],
        loss: minibatches.Loss,
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
            Means of the loss's metrics over the updates, and the usual ones, under ``train/``. Those that begin with
            ``first_`` are of the first minibatch, before any update: how far the policy is from the one that drew.

        Raises:
            TextEnvError: A loss or gradient is not finite, or a minibatch cannot be shared out among the processes.
        """
        self._ensure_learning()
        columns = {"log_probs": torch.from_numpy(rollout.log_probs), **columns}
        history: list[dict[str, float]] = []
        for rows in minibatches.minibatch_rows(
            len(rollout.episodes),
            self.config.minibatch_size,
            epochs=epochs,
            group=group,
            generator=self._shuffle,
            processes=self.processes,
        ):
            sums = self._accumulate(rows, rollout, columns, loss, group=group, entropy=entropy)
            gradients = nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
            norm = float(distributed.full(gradients))
            if not math.isfinite(norm):
                raise self._diverged(f"The norm of the gradients is {norm}")
            history.append({**sums, "grad_norm": norm})
            if target_kl is not None and sums["approx_kl"] > target_kl:
                self.optimizer.zero_grad(set_to_none=True)
                break
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        means = {f"train/{name}": sum(row[name] for row in history) / len(history) for name in history[0]}
        first = {f"train/first_{name}": history[0][name] for name in _FIRST}
        kept = {name: value for name, value in means.items() if name not in _ONLY_FIRST}
        return {**kept, **first, "train/updates": float(len(history))}

    def _accumulate(
        self,
        rows: torch.Tensor,
        rollout: collecting.Rollout,
        columns: Mapping[str, torch.Tensor],
        loss: minibatches.Loss,
        *,
        group: int,
        entropy: bool,
    ) -> dict[str, float]:
        """Add up the gradients of a minibatch, part by part; return the sums of its metrics over all processes."""
        network, lm = self._ensure_learning(), self.policy.lm
        mask = torch.from_numpy(rollout.mask)
        tokens, sums, largest = int(rollout.mask[rows].sum()), self._accumulate_pretraining(len(rows)), 0.0
        parts = minibatches.split_minibatch(
            rows, rollout, group=group, size=self.config.micro_batch_size, lm=lm, processes=self.processes
        )
        for number, part in enumerate(parts, start=1):
            packed = {name: column[part][mask[part]].to(lm.device) for name, column in columns.items()}
            batch = minibatches.Batch(packed, mask[part].to(lm.device), tokens, len(rows))
            with self.processes.accumulate(network, last=number == len(parts)):
                with self._precisions.autocast(lm.device):
                    episodes = rollout.tensors(part.numpy(), lm.device, lm.vocab_size)
                    now: policies.Evaluation = network(*episodes, entropy=entropy, candidates=packed.get("candidates"))
                total, metrics = loss(now, batch)
                (total * self.processes.size).backward()  # the processes' gradients are averaged, and are to be summed
            with torch.no_grad():
                log_probs = packed["log_probs"]
                share, off = len(log_probs) / tokens, (now.log_probs - log_probs).abs()
                largest = max(largest, float(off.max()) if len(off) else 0.0)
                for name, value in (
                    *metrics.items(),
                    ("approx_kl", losses.approximate_kl(now.log_probs, log_probs).mean() * share),
                    ("ratio", (now.log_probs - log_probs).exp().mean() * share),
                    ("log_ratio", off.mean() * share),
                ):
                    sums[name] = sums.get(name, 0.0) + float(value)
        sums = self.processes.sums(sums)
        sums["log_ratio_max"] = max(self.processes.gather(largest))
        found = {name: value for name, value in sums.items() if name.endswith("_loss")}
        if not math.isfinite(sum(found.values())):
            raise self._diverged(f"The losses are {found}")
        return sums

    def _accumulate_pretraining(self, episodes: int) -> dict[str, float]:
        """Add up the gradients of the pre-training text of a minibatch; return this process's share of its loss.

        It comes before the episodes: the last pass of a minibatch exchanges gradients, and has those of the value
        function too.
        """
        if self._mix is None:
            return {}
        network, lm, total = self._ensure_learning(), self.policy.lm, 0.0
        examples = self._mix.draw(episodes)
        tokens = examples[:, 1:].numel()
        for part in self._mix.parts(examples, lm, self.processes):
            ids = part.to(lm.device)
            lengths = torch.full((len(ids),), ids.shape[1], device=lm.device)
            places = torch.arange(ids.numel(), device=lm.device).view_as(ids)[:, 1:].flatten()
            with self.processes.accumulate(network, last=False):
                with self._precisions.autocast(lm.device):
                    log_probs = network(ids, lengths, places, entropy=False, temperature=1.0).log_probs
                loss = -log_probs.sum() / tokens
                (self.config.ptx_coef * loss * self.processes.size).backward()
            total += float(loss.detach())
        return {"ptx_loss": total}

    @property
    def importance_cap(self) -> float | None:
        """The largest importance weight, where the policy that draws is rounded or an engine's; None for no limit."""
        cap: float | None = getattr(self.config, "importance_cap", None)
        return cap if self._engine is not None or self._precisions.rollout != "float32" else None

    def _diverged(self, what: str) -> TextEnvError:
        return TextEnvError(
            f"{what} after {self.steps} tokens. Lower learning_rate (now {self.config.learning_rate}) or clip the "
            "reward; the run's last checkpoint is from before."
        )

    @final
    def save_weights(self, folder: Path) -> None:
        """Save the policy as a Hugging Face folder, with its value function; every process calls it."""
        policy = self._unsharded()
        if self.processes.first:
            policy.save(folder)

    @classmethod
    @final
    def restore(cls, folder: Path, envs: VectorEnv[Any, Any, Any], config: Any) -> Self:
        """Return an agent with the policy that was saved in a folder; it acts, and learns once it is asked to."""
        policy = new_policy(collecting.text_env(envs), config)
        policy.load(folder)
        return cls(envs, config, policy=policy, learning=False)

    @final
    def checkpoint(self, folder: Path, total_steps: int) -> None:
        """Write all that the rest of the run depends on, whatever the number of processes; each of them calls it."""
        self._ensure_learning()
        states = self.processes.gather(self.base.state_dict())
        rows = {name: [row for state in states for row in state[name]] for name in _OF_ROWS if name in states[0]}
        checkpointing.save_checkpoint(
            folder,
            self.steps,
            modules=self.kept,
            optimizer=self.optimizer,
            generators=self._generators(),
            state={
                "iterations": self.iterations,
                "total_steps": total_steps,
                "config": optimizer.resolved_settings(self.config),
                "precisions": self._precisions._asdict(),
                "env": {**states[0], **rows},
                **({} if self._mix is None else {"pretraining": self._mix.digest}),
            },
            write=self.processes.first,
        )

    @final
    def resume(self, folder: Path, total_steps: int) -> bool:
        """Go on from the last checkpoint in ``folder``, if there is one; every process calls it.

        Returns:
            Whether there was one.

        Raises:
            TextEnvError: It was written with other settings.
        """
        path = checkpointing.latest_checkpoint(folder)
        if len(found := {str(path and path.name) for path in self.processes.gather(path)}) > 1:
            raise TextEnvError(f"The processes find different checkpoints in {folder}, {sorted(found)}: share it.")
        if path is None:
            return False
        self._ensure_learning()
        before = checkpointing.read_state(path)
        settings = {"total_steps": total_steps, **optimizer.resolved_settings(self.config)}
        earlier = {"total_steps": before["total_steps"], **before["config"]}
        if changed := runs.differences(earlier, settings):
            raise TextEnvError(
                f"{folder} holds a run with other settings ({', '.join(changed)}). Go on with those it was started "
                "with, or take another folder."
            )
        if self._mix is not None and before.get("pretraining") != self._mix.digest:
            raise TextEnvError(
                f"{folder} holds a run with other pre-training text than ptx_files={list(self.config.ptx_files)} hold "
                "now. Give the files as they were, or take another folder."
            )
        state = checkpointing.load_checkpoint(
            path,
            modules=self.kept,
            optimizer=self.optimizer,
            generators=self._generators(),
        )
        self.steps, self.iterations, self._seeded = state["step"], state["iterations"], True
        if self._engine is not None:
            self._engine.forget()
        if "precisions" in state:  # what "auto" stood for must not depend on how fast this machine is now
            self._precisions = precisions.Precisions(**state["precisions"])
        rows = state["env"]["generators"]
        if len(rows) != (total := self.envs.num_envs * self.processes.size):
            raise TextEnvError(f"{path} is of {len(rows)} rows, but this run has {total}; go on with as many.")
        own = {name: list(self.processes.own(state["env"][name])) for name in _OF_ROWS if name in state["env"]}
        self.base.load_state_dict({**state["env"], **own})
        return True

    @final
    def whole_weights(self) -> contextlib.AbstractContextManager[None]:
        """Let the policy act or be read inside, where its weights are shared out (FSDP); every process enters it."""
        return contextlib.nullcontext() if self._network is None else self.processes.whole(self._network)

    def _generators(self) -> dict[str, torch.Generator]:
        """Return what random numbers come from; torch's own are for what an ``update`` draws by itself."""
        found = {"actions": self._generator, "minibatches": self._shuffle, **self._random.generators}
        return found if self._mix is None else {**found, "pretraining": self._mix.generator}

    def _unsharded(self) -> policies.TextPolicy:
        if self._network is None or not self.processes.sharded:
            return self.policy
        policy = new_policy(self.base, self.config)
        with torch.no_grad():
            for mine, theirs in zip(policy.parameters(), self.policy.parameters(), strict=True):
                mine.copy_(distributed.full(theirs))
        return policy

    def _check_shares(self, base: TextVectorEnv) -> None:
        """Refuse groups that do not fit the rows, and what the processes of a run could not do as one."""
        rows = self.envs.num_envs * self.processes.size
        if self.episodes < rows:
            raise TextEnvError(f"episodes={self.episodes}, with {rows} rows: expected at least one for each.")
        if self.episodes % self._samples:
            what = f"an environment of {rows} rows" if self.config.episodes is None else f"episodes={self.episodes}"
            raise TextEnvError(
                f"samples={self._samples} completions of a prompt, with {what}: expected a multiple of it."
            )
        if self.processes.size == 1:
            return
        self.processes.share("episodes", self.episodes)
        if self.processes.sharded and self.config.lora_rank is not None:
            raise TextEnvError("FSDP shards weights that learn, and with lora_rank few do: launch without --use_fsdp.")
        if self.config.minibatch_size is not None:
            self.processes.share("minibatch_size", self.config.minibatch_size)
        if base.scorer.keeps_state or (base.potential is not None and base.potential.keeps_state):
            raise TextEnvError(
                "The reward keeps statistics of what it has scored, and each process would keep its own; train with it "
                "on one process."
            )
        if len(sizes := set(self.processes.counts(self.envs.num_envs))) > 1:
            raise TextEnvError(f"The processes have {sorted(sizes)} rows; expected as many in each.")


def new_policy(base: TextVectorEnv, config: AgentConfig) -> policies.TextPolicy:
    """Return a policy as the settings say, a copy of the environment's reference.

    Weights that begin at random, those of LoRA, come from the settings' seed.
    """
    rank = config.lora_rank
    with random_state.RandomState(config.seed, base.reference.device).active():
        return policies.TextPolicy(
            base.reference,
            value=getattr(config, "value", "none"),
            temperature=base.settings.temperature,
            lora=None if rank is None else lora.Lora(rank, config.lora_alpha, config.lora_targets),
            gradient_checkpointing=config.gradient_checkpointing,
        )
