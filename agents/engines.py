"""Rollouts that an inference server writes: it is given the weights, and what it wrote is read by the policy itself."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch

from textenv.agents.minibatches import room_for_tokens, split_by_length
from textenv.data.files import make_folder
from textenv.models.loading import quiet
from textenv.models.lora import merged_weights
from textenv.models.policy import TextPolicy
from textenv.rollouts import engines
from textenv.rollouts.engines.policy import EnginePolicy
from textenv.types import FloatArray, IntArray, TextEnvError

if TYPE_CHECKING:
    from textenv.agents.config import AgentConfig
    from textenv.env.vector import TextVectorEnv
    from textenv.rollouts.collect import Rollout
    from textenv.rollouts.distributed import Processes

__all__ = ["EngineWriter"]

_FURTHEST = 0.2
"""Nats a token, in the mean, by which an engine's log-probabilities may differ from the policy's: some ten times what
linear layers in int8 make of them. Those of another model differ by several nats."""


class EngineWriter:
    """Has an engine write with the weights of a policy.

    Attributes:
        policy: Acts with what the engine writes.
        writers: The processes of the run, as those that write exchange what they wrote: where they do so while the
            policy learns, over a connection of their own.
        metrics: Of the last iteration: mean and largest difference of the log-probabilities of engine and policy, in
            nats; by how many iterations the weights that wrote were behind; and the seconds that it took to hand over
            weights.
    """

    def __init__(self, config: AgentConfig, base: TextVectorEnv, policy: TextPolicy, processes: Processes) -> None:
        """Find the engine.

        Args:
            config: Names it.
            base: The environment to write in.
            policy: The policy that learns.
            processes: The processes of the run, of which the first hands over the weights.

        Raises:
            TextEnvError: It cannot be reached or reads shorter texts; or it could not draw as the environment or the
                policy want tokens to be drawn.
        """
        assert config.rollout_engine is not None
        assert config.rollout_engine_url is not None
        _refuse(config.rollout_engine, base, policy)
        if config.max_lag:
            _refuse_lag(config.max_lag, base)
        self._engine = engines.connect(
            config.rollout_engine, config.rollout_engine_url, timeout=config.rollout_engine_timeout
        )
        space: Any = base.single_observation_space
        width = space["input_ids"].shape[0]
        if self._engine.context is not None and self._engine.context < width:
            raise TextEnvError(
                f"{self._engine.label} reads texts of {self._engine.context} tokens, and those of the environment have "
                f"up to {width}. Start it with more (--max-model-len of vLLM, --context-length of SGLang), or lower "
                "max_new_tokens, max_prompt_tokens or max_tokens."
            )
        sampling = engines.Sampling(
            base.settings.temperature, tuple(sorted(base.reference.eos_ids)), tuple(base.endings.stop)
        )
        self.policy = EnginePolicy(
            policy, self._engine, sampling, base.endings.max_new_tokens, computes=not config.max_lag
        )
        self.metrics: dict[str, float] = {}
        self.writers = processes.beside() if config.max_lag else processes
        self._learner, self._processes = policy, processes
        self._checked = False
        self._pushed = 0
        self._ahead: Rollout | None = None
        self._given = config.rollout_engine_folder
        self._own: Path | None = None

    def push(self, policy: TextPolicy) -> None:
        """Give the engine the weights of the policy, whole ones; every process calls it.

        Raises:
            TextEnvError: They cannot be written, or the engine does not take them.
        """
        began, failed = time.perf_counter(), None
        if self._processes.first:
            try:
                self._push(policy)
            except TextEnvError as error:
                failed = str(error)
        if (message := self._processes.gather(failed)[0]) is not None:
            raise TextEnvError(message)
        self.metrics["time/push_seconds"] = time.perf_counter() - began

    @contextlib.contextmanager
    def meanwhile(self, write: Callable[[], Rollout]) -> Iterator[None]:
        """Have episodes written while the block runs; ``take`` returns them once it is left.

        Args:
            write: Writes them, in a thread of its own.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="textenv-rollout") as thread:
            written = thread.submit(write)
            try:
                yield
                self._ahead = written.result()
            except BaseException:
                self._engine.give_up()
                raise

    def take(self) -> Rollout | None:
        """Return the episodes that were written meanwhile, as ``read`` does; None where there are none."""
        ahead, self._ahead = self._ahead, None
        return None if ahead is None else self.read(ahead, lag=1)

    def forget(self) -> None:
        """Drop the episodes that were written meanwhile."""
        self._ahead = None

    def read(self, rollout: Rollout, *, lag: int = 0) -> Rollout:
        """Return episodes that the engine has written, with the policy's values; every process calls it.

        Args:
            rollout: The episodes.
            lag: By how many iterations the weights that wrote are behind.

        Raises:
            TextEnvError: The engine had the weights of the policy as it is now, and its log-probabilities are others.
        """
        own = np.array(self._processes.own(range(len(rollout.episodes))), dtype=np.int64)
        mine, values = self._evaluate(rollout, own, self._learner.temperature)
        off = np.abs(mine - rollout.log_probs)[rollout.mask]
        if not lag:
            self._check(rollout, own, float(off.mean()))
        self.metrics |= {
            "rollout/engine_log_ratio": float(off.mean()),
            "rollout/engine_log_ratio_max": float(off.max()),
            "rollout/lag": float(lag),
        }
        return dataclasses.replace(rollout, values=values)

    def _check(self, rollout: Rollout, own: IntArray, mean: float) -> None:
        """Refuse log-probabilities that are ``mean`` nats a token off, or, at first, such without the temperature."""
        temperature = self._learner.temperature
        if not self._checked and temperature != 1:
            plain, _ = self._evaluate(rollout, own, 1.0)
            if np.abs(plain - rollout.log_probs)[rollout.mask].mean() < mean:
                raise TextEnvError(
                    f"{self._engine.label} tells log-probabilities without the temperature of {temperature:g} that it "
                    "draws with. Start vLLM with --logprobs-mode processed_logprobs, SGLang without "
                    "SGLANG_RETURN_ORIGINAL_LOGPROB; or use temperature=1."
                )
        self._checked = True
        if not mean <= _FURTHEST:
            raise TextEnvError(
                f"{self._engine.label} draws by log-probabilities that differ from the policy's by {mean:.3g} nats a "
                f"token; expected less than {_FURTHEST}. Does it serve the environment's model, does it take the "
                "weights, and is it free of settings that change how tokens are drawn?"
            )

    def _evaluate(self, rollout: Rollout, own: IntArray, temperature: float) -> tuple[FloatArray, FloatArray]:
        """Return log pi and values of all tokens, ``(batch, time)`` each; this process computes those of its share."""
        policy, written = self._learner, rollout.mask[own]
        log_probs, values = np.zeros(written.shape, np.float32), np.zeros(written.shape, np.float32)
        for part in split_by_length(rollout.longest[own], written.sum(axis=1), room_for_tokens(policy.lm)):
            picks = part.numpy()
            tensors = rollout.tensors(own[picks], policy.lm.device, policy.lm.vocab_size)
            with torch.no_grad():
                now = policy.evaluate(*tensors, entropy=False, temperature=temperature)
            for column, packed in ((log_probs, now.log_probs), (values, now.values)):
                lines = np.zeros((len(picks), written.shape[1]), dtype=np.float32)
                lines[written[picks]] = packed.float().cpu().numpy()
                column[picks] = lines
        parts = self._processes.gather((log_probs, values))
        return np.concatenate([mine for mine, _ in parts]), np.concatenate([theirs for _, theirs in parts])

    def _push(self, policy: TextPolicy) -> None:
        """Write the weights into a folder of their own, have the engine read it, and remove the one before."""
        number = self._pushed + 1
        try:
            parent = self._own_folder()
            folder, part = parent / f"weights-{number}", parent / f".weights-{number}"
            _write(policy, part)
            part.rename(folder)
        except (OSError, safetensors.SafetensorError) as error:
            raise TextEnvError(
                f"The weights for {self._engine.label} cannot be written ({error}). Expected a folder with room for "
                "them; name one with rollout_engine_folder."
            ) from error
        self._engine.load(folder)
        shutil.rmtree(parent / f"weights-{self._pushed}", ignore_errors=True)
        self._pushed = number

    def _own_folder(self) -> Path:
        """Return a folder that no other run writes, which is removed with this object."""
        if self._own is None:
            if self._given is None:
                self._own = Path(tempfile.mkdtemp(prefix="textenv-engine-")).resolve()
            else:  # as open as the folder that it is in, since the server may be of another user
                self._own = Path(self._given).resolve() / f"run-{secrets.token_hex(4)}"
                make_folder(self._own)
            weakref.finalize(self, shutil.rmtree, self._own, ignore_errors=True)
        return self._own


def _write(policy: TextPolicy, folder: Path) -> None:
    """Make a Hugging Face folder with a policy's language model, an adapter merged into the weights."""
    folder.mkdir()
    if policy.lm.adapter is None:
        with quiet():
            policy.model.save_pretrained(folder)
        return
    weights = {name: tensor.contiguous() for name, tensor in merged_weights(policy.lm).items()}
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    policy.model.config.save_pretrained(folder)


def _refuse(name: str, base: TextVectorEnv, policy: TextPolicy) -> None:
    """Refuse what an engine cannot do."""
    given = f"rollout_engine={name!r}"
    if base.settings.masks_actions:
        raise TextEnvError(
            f"{given} with top_k or top_p: these are of the reference's probabilities, which no engine knows. Leave "
            "them out, or the engine."
        )
    if base.settings.kl_estimator == "full":
        raise TextEnvError(
            f"{given} with kl_estimator='full': an engine tells log pi of the tokens that it wrote alone. Use 'k1', "
            "'k2' or 'k3'."
        )
    if type(policy).steer is not TextPolicy.steer:
        raise TextEnvError(
            f"{given} with a {type(policy).__name__}, which changes the logits that tokens are drawn from: an engine "
            "draws from those of the model. Expected a TextPolicy."
        )


def _refuse_lag(lag: int, base: TextVectorEnv) -> None:
    """Refuse what cannot be while episodes are written in another thread."""
    if base.settings.kl_target is not None:
        raise TextEnvError(
            f"max_lag={lag} with kl_target={base.settings.kl_target}: kl_coef would move while the policy learns. "
            "Leave one of them out."
        )
