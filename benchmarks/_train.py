"""One training run of ``ppo_iteration.py``, in a process of its own; prints its figures as JSON on the last line.

    python -m benchmarks._train '{"trainer": "trl-ppo", "episodes": 128, ...}'

It runs in our environment and in the peers', so each trainer imports its own libraries. All train the same model in
fp32 without dropout, with AdamW at a constant rate, on completions that never end early, scored by their last token.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

BEGAN = time.perf_counter()

import torch  # noqa: E402 (its import is part of the time before training)
from transformers import GPT2ForSequenceClassification  # noqa: E402

from benchmarks import _jobs  # noqa: E402

Trainer = Literal["textenv-head", "textenv-model", "trl-ppo", "trl-grpo", "trl-rloo"]
RATE, BETA, CLIP, LAMBDA = 1e-4, 0.05, 0.2, 0.95


@dataclass(frozen=True, slots=True)
class Job:
    """What to train; every trainer rounds the episodes up to whole batches."""

    trainer: Trainer
    size: _jobs.Size
    episodes: int
    batch: int
    prompt: int
    response: int
    epochs: int
    samples: int  # completions of a prompt, in the trainers that compare them

    @property
    def iterations(self) -> int:
        """Batches of episodes."""
        return math.ceil(self.episodes / self.batch)


@dataclass(slots=True)
class Work:
    """What was really done, counted from outside the trainers: tokens written, and episodes seen with gradients."""

    tokens: int = 0
    episodes: int = 0

    def watch(self, model: Any) -> Any:
        """Count what a model generates and learns from."""
        generate = model.generate

        def counted(*args: Any, **kwargs: Any) -> Any:
            output = generate(*args, **kwargs)
            sequences = output if isinstance(output, torch.Tensor) else output.sequences
            self.tokens += sequences.shape[0] * (sequences.shape[1] - kwargs["input_ids"].shape[1])
            return output

        def seen(module: Any, args: Any, kwargs: Any) -> None:
            if torch.is_grad_enabled():
                self.episodes += len(kwargs["input_ids"])

        model.generate = counted
        model.register_forward_pre_hook(seen, with_kwargs=True)
        return model


def textenv(job: Job, work: Work, folder: str) -> Callable[[], None]:
    from benchmarks._ours import make_env  # noqa: PLC0415
    from textenv.agents.ppo import PPO, PPOConfig  # noqa: PLC0415

    env = make_env(_jobs.model(job.size), batch=job.batch, prompt=job.prompt, response=job.response, kl_coef=BETA)
    config = PPOConfig(
        learning_rate=RATE, embedding_learning_rate=None, value_learning_rate=RATE, lr_schedule="constant",
        lr_warmup=0.0, adam_epsilon=1e-8, epochs=job.epochs, minibatch_size=None, clip=CLIP, lam=LAMBDA,
        value="head" if job.trainer == "textenv-head" else "model", precision="float32",
    )  # fmt: skip
    agent = PPO(env, config)

    def train() -> None:
        agent.learn(job.iterations * job.batch * job.response, progress=count)

    def count(steps: int, metrics: Any) -> None:
        work.tokens = steps
        work.episodes += int(metrics["train/updates"]) * job.batch

    return train


def trl_ppo(job: Job, work: Work, folder: str) -> Callable[[], Any]:
    from datasets import Dataset  # noqa: PLC0415
    from trl.experimental.ppo import PPOConfig, PPOTrainer  # noqa: PLC0415

    policy = work.watch(_trainable(job.size))
    value = GPT2ForSequenceClassification(copy.deepcopy(policy.config))
    value.config.num_labels = 1
    value.score = torch.nn.Linear(policy.config.n_embd, 1, bias=False)
    value.transformer.load_state_dict(policy.transformer.state_dict())
    config = PPOConfig(
        **_arguments(job, folder), total_episodes=job.episodes, num_ppo_epochs=job.epochs, num_mini_batches=1,
        local_rollout_forward_batch_size=job.batch, num_sample_generations=0, response_length=job.response,
        stop_token_id=_jobs.END, temperature=1.0, kl_coef=BETA, cliprange=CLIP, lam=LAMBDA,
    )  # fmt: skip
    tokenizer = _jobs.tokenizer(policy.config.vocab_size)
    rows = Dataset.from_dict({"input_ids": tokenizer(_prompts(job))["input_ids"]})
    trainer = PPOTrainer(config, tokenizer, policy, _jobs.model(job.size), _LastToken(), rows, value, eval_dataset=rows)
    train: Callable[[], Any] = trainer.train
    return train


def trl_groups(job: Job, work: Work, folder: str) -> Callable[[], Any]:
    import trl  # noqa: PLC0415
    from datasets import Dataset  # noqa: PLC0415

    trainer_class, config_class = {
        "trl-grpo": (trl.GRPOTrainer, trl.GRPOConfig),
        "trl-rloo": (trl.RLOOTrainer, trl.RLOOConfig),
    }[job.trainer]
    policy = _trainable(job.size)
    policy.save_pretrained(folder)  # the trainer loads its reference from where the policy came from
    policy.config._name_or_path = folder
    config = config_class(
        **_arguments(job, folder), max_steps=job.iterations * job.epochs, num_iterations=job.epochs,
        steps_per_generation=1, num_generations=job.samples, max_completion_length=job.response, temperature=1.0,
        top_k=0, beta=BETA, epsilon=CLIP, disable_dropout=True, shuffle_dataset=False,
    )  # fmt: skip
    rows = Dataset.from_dict({"prompt": _prompts(job)})
    trainer = trainer_class(
        work.watch(policy),
        reward_funcs=_jobs.last_token,
        args=config,
        train_dataset=rows,
        processing_class=_jobs.tokenizer(policy.config.vocab_size),
    )
    train: Callable[[], Any] = trainer.train
    return train


TRAINERS: dict[str, Callable[[Job, Work, str], Callable[[], Any]]] = {
    "textenv-head": textenv,
    "textenv-model": textenv,
    "trl-ppo": trl_ppo,
    "trl-grpo": trl_groups,
    "trl-rloo": trl_groups,
}


def _arguments(job: Job, folder: str) -> dict[str, Any]:
    """Return what all of TRL's trainers are given: the optimizer as ours has it, and nothing written or logged."""
    return {
        "output_dir": folder, "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "per_device_train_batch_size": job.batch, "gradient_accumulation_steps": 1,
        "learning_rate": RATE, "lr_scheduler_type": "constant", "optim": "adamw_torch_fused", "max_grad_norm": 1.0,
        "report_to": "none", "logging_strategy": "no", "save_strategy": "no", "eval_strategy": "no",
        "disable_tqdm": True, "dataloader_pin_memory": False, "seed": 0,
    }  # fmt: skip


class _LastToken(torch.nn.Module):
    """``_jobs.last_token`` as TRL's PPO reads a reward: the states of a backbone, scored at the last position."""

    base_model_prefix = "backbone"

    def backbone(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return type("Output", (), {"hidden_states": [input_ids[..., None].float()]})

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden / 1000


def _trainable(size: _jobs.Size) -> Any:
    return _jobs.model(size).requires_grad_(True)


def _prompts(job: Job) -> list[str]:
    return _jobs.prompts(max(256, job.batch), job.prompt, _jobs.SHAPES[job.size].vocab)


def _memory(name: str) -> float:
    """Return ``VmRSS`` or ``VmHWM``, its peak, in MiB (``ru_maxrss`` would count the parent's from before exec)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {name}; the benchmark needs Linux.")


def main(job: Job) -> None:
    work = Work()
    with tempfile.TemporaryDirectory() as folder:
        train = TRAINERS[job.trainer](job, work, folder)
        before, memory = time.perf_counter(), _memory("VmRSS")
        train()
        seconds = time.perf_counter() - before
    episodes = job.iterations * job.batch
    expected = Work(episodes * job.response, episodes * job.epochs)
    if work != expected:
        raise RuntimeError(f"{job.trainer} did {work}; expected {expected}, or the comparison is not of equal work.")
    figures = {"seconds": seconds, "setup": before - BEGAN, "peak": _memory("VmHWM"), "start": memory}
    print(json.dumps({**figures, "tokens": work.tokens, "episodes": work.episodes}))


if __name__ == "__main__":
    main(Job(**json.loads(sys.argv[1])))
