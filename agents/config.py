"""Settings that agents share; they import no torch, so that a command line can read them at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval, Le, MinLen

from textenv.types import TextEnvError
from textenv.validation import (
    Count,
    LearningRate,
    NonEmpty,
    NonNegative,
    Positive,
    Probability,
    Seconds,
    Seed,
    validate,
)

__all__ = [
    "MAY_CHANGE",
    "ActorConfig",
    "AdvantageConfig",
    "AgentConfig",
    "Cap",
    "GroupConfig",
    "Schedule",
    "ValueConfig",
]

MAY_CHANGE = ("rollout_engine_url", "rollout_engine_folder", "rollout_engine_timeout")
"""Settings that a run which was stopped may go on with otherwise: an engine may be elsewhere then."""

Schedule = Literal["constant", "linear", "cosine"]

Cap = Annotated[float, Ge(1), Le(1e6)]
"""Of importance weights, which are 1 where the policy is the one that drew."""


@dataclass(frozen=True, slots=True)
class ActorConfig:
    """Settings of every agent.

    Attributes:
        seed: Seeds actions, minibatches and the environment.
    """

    seed: Seed = 0

    def __post_init__(self) -> None:
        """Check the settings, those of a derived class too."""
        validate(self)


@dataclass(frozen=True, slots=True)
class AgentConfig(ActorConfig):
    """Settings of every agent that trains a policy; the defaults suit models of a few million parameters.

    Attributes:
        learning_rate: Of Adam, at its peak.
        embedding_learning_rate: That of the token embeddings and of the head tied to them. They say which words are
            likelier everywhere, which raises the score first; the same step in the other layers costs far more KL.
            ``"auto"`` for 8 times ``learning_rate``, None for ``learning_rate``.
        lr_schedule: How it falls to zero over ``learn``'s steps: ``"constant"`` (not), ``"linear"`` or ``"cosine"``.
        lr_warmup: Share of the steps over which it first rises from zero. Adam's first steps are as long as its rate
            whatever the gradient, so without it the policy leaves the reference before it knows where to go.
        adam_epsilon: Of Adam.
        weight_decay: Decoupled (AdamW).
        episodes: Number of episodes an iteration, in all processes together; None for one in every row. With more,
            rows whose texts end early begin others, and none is idle for long.
        minibatch_size: Episodes an update, in all processes together; None for all.
        micro_batch_size: Episodes a forward pass, their gradients accumulated; None for as many as suit the device, or
            on several processes for a process's whole share of the minibatch.
        max_grad_norm: Gradients are scaled down to this norm.
        precision: ``"bfloat16"`` trains in mixed precision, with weights in float32; ``"auto"`` does so on GPUs that
            have it, and on CPUs that have it where a short measurement at the start finds it faster.
        rollout_precision: What the policy's linear layers are rounded to, once an iteration, while it writes:
            ``"int8"``, ``"bfloat16"``, or ``"float32"`` for not at all; ``"auto"`` for what a measurement of about a
            tenth of a second at the start finds fastest, if it gains a fifth and moves log pi by less than 0.1 nats a
            token. The losses weigh what was drawn so by the ratio of the two policies (see
            ``textenv.agents.losses.importance_ratio``).
        rollout_engine: An inference server that writes for the policy, ``"vllm"`` or ``"sglang"``: it is given the
            policy's weights before every iteration, and the losses weigh what it has drawn as they do with
            ``rollout_precision``. None for the policy itself.
        rollout_engine_url: Its address, such as ``"http://127.0.0.1:8000"``.
        rollout_engine_folder: Folder that weights are handed over in, which the server reads under the same path; None
            for a temporary one, which a server on this machine reads.
        rollout_engine_timeout: Seconds that the server may take for an answer.
        max_lag: By how many iterations the weights that write may be behind those that learn: with 1, an engine writes
            the texts of the next iteration while this one's are learned from; with 0, one waits for the other.
        lora_rank: Learn a low-rank adapter (LoRA) of this rank on the reference's own weights, which are then in memory
            once; None to learn in all weights of a copy.
        lora_alpha: The adapter is scaled by ``lora_alpha / lora_rank``.
        lora_targets: Names of the layers that get an adapter; ``all-linear`` for all but the head.
        gradient_checkpointing: Keep only the inputs of layers for the backward pass: less memory, more time.
        ptx_coef: Weight of the mean log-likelihood of pre-training text, in nats a token, in what each minibatch
            maximizes: PPO-ptx (Ouyang et al. 2022, equation 2), for any agent. 0 for none.
        ptx_files: The pre-training text: .txt (documents between blank lines), .jsonl, .json, .csv or .parquet
            (``text``, or ``prompt`` and ``completion``).
        ptx_examples: Examples of it in a minibatch, for each of its episodes.
        ptx_context: Tokens of an example.
    """

    learning_rate: LearningRate = 1e-4
    embedding_learning_rate: LearningRate | Literal["auto"] | None = "auto"
    lr_schedule: Schedule = "linear"
    lr_warmup: Probability = 0.1
    adam_epsilon: Positive = 1e-5
    weight_decay: NonNegative = 0.0
    episodes: Count | None = None
    minibatch_size: Count | None = 32
    micro_batch_size: Count | None = None
    max_grad_norm: Positive = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    rollout_precision: Literal["auto", "float32", "bfloat16", "int8"] = "float32"
    rollout_engine: Literal["vllm", "sglang"] | None = None
    rollout_engine_url: NonEmpty | None = None
    rollout_engine_folder: NonEmpty | None = None
    rollout_engine_timeout: Seconds = 600.0
    max_lag: Annotated[int, Interval(ge=0, le=1)] = 0
    lora_rank: Count | None = None
    lora_alpha: Count = 16
    lora_targets: Annotated[tuple[NonEmpty, ...], MinLen(1)] = ("all-linear",)
    gradient_checkpointing: bool = False
    ptx_coef: NonNegative = 0.0
    ptx_files: tuple[NonEmpty, ...] = ()
    ptx_examples: Count = 1
    ptx_context: Count = 64

    def __post_init__(self) -> None:
        """Check the settings, those of a derived class too."""
        ActorConfig.__post_init__(self)  # slots: a new class, which super() does not know
        if self.ptx_coef and not self.ptx_files:
            raise TextEnvError(f"ptx_coef={self.ptx_coef} without text: name the pre-training text with ptx_files.")
        if self.ptx_files and not self.ptx_coef:
            raise TextEnvError(f"ptx_files={list(self.ptx_files)} with ptx_coef=0, its weight: give one above 0.")
        self._check_engine()

    def _check_engine(self) -> None:
        """Check the settings of the engine together."""
        if self.rollout_engine is None:
            for name in ("rollout_engine_url", "rollout_engine_folder"):
                if (value := getattr(self, name)) is not None:
                    raise TextEnvError(f"{name}={value!r} says something of an engine: give rollout_engine too.")
        elif self.rollout_engine_url is None:
            raise TextEnvError(
                f"rollout_engine={self.rollout_engine!r} without an address: give rollout_engine_url, such as "
                "'http://127.0.0.1:8000'."
            )
        elif self.rollout_precision != "float32":
            raise TextEnvError(
                f"rollout_precision={self.rollout_precision!r} is of a policy that writes itself, and with "
                "rollout_engine the server does: set its precision where it is started."
            )
        if self.max_lag and self.rollout_engine is None:
            raise TextEnvError(
                f"max_lag={self.max_lag} is of texts that a server writes while the policy learns: give rollout_engine "
                "too."
            )
        if self.max_lag and self.lora_rank is not None:
            raise TextEnvError(
                f"max_lag={self.max_lag} with lora_rank={self.lora_rank}: the adapter is trained in the reference's "
                "own network, which cannot read texts at the same time. Leave one of them out."
            )


@dataclass(frozen=True, slots=True)
class ValueConfig(AgentConfig):
    """Settings of an agent that judges a token by a learned value of the state.

    Attributes:
        value: Where values come from: a ``"head"`` on the policy's layers, a ``"model"`` of its own, or ``"none"``.
        value_learning_rate: That of the value head, which starts at zero; ``"auto"`` for 30 times ``learning_rate``.
        value_coef: Weight of the value loss.
        gamma: Discount.
        whiten_advantages: Shift and scale an iteration's advantages to mean 0 and variance 1.
        importance_cap: The largest weight of a token that a policy of fewer bits or an engine has drawn; None for no
            limit. Of no effect where the policy itself writes in float32.
    """

    value: Literal["head", "model", "none"] = "head"
    value_learning_rate: LearningRate | Literal["auto"] = "auto"
    value_coef: NonNegative = 0.1
    gamma: Probability = 1.0
    whiten_advantages: bool = True
    importance_cap: Cap | None = 2.0


@dataclass(frozen=True, slots=True)
class GroupConfig(AgentConfig):
    """Settings of an agent that judges a completion by others of the same prompt.

    Attributes:
        samples: Completions of one prompt, a group; the episodes of an iteration are to be a multiple of it.
    """

    samples: Annotated[int, Ge(2)] = 4


@dataclass(frozen=True, slots=True)
class AdvantageConfig(GroupConfig):
    """Settings of an agent that compares returns within a group.

    Attributes:
        credit: What is compared: with ``"episode"`` what whole episodes earned, with ``"turn"`` what they earned from
            each turn on, where a world answers.
        importance_cap: The largest weight of what a policy of fewer bits or an engine has drawn: of a token, or with
            RLOO of a whole completion; None for no limit. Of no effect where the policy itself writes in float32.
    """

    credit: Literal["episode", "turn"] = "episode"
    importance_cap: Cap | None = 2.0
