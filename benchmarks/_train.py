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

Trainer = Literal[
    "textenv-head", "textenv-model", "textenv-grpo", "textenv-rloo", "trl-ppo", "trl-grpo", "trl-rloo", "torchrl-grpo",
    "agilerl-grpo",
]  # fmt: skip
RATE, BETA, CLIP, LAMBDA = 1e-4, 0.05, 0.2, 0.95
ALPHA = 16  # of LoRA


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
    micro_batch: int | None  # episodes a forward with gradients; None for our own choice, and all of a batch in TRL's
    lora_rank: int | None  # None to learn in all weights

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
    from textenv.agents.agent import Agent  # noqa: PLC0415
    from textenv.agents.grpo import GRPO, GRPOConfig  # noqa: PLC0415
    from textenv.agents.ppo import PPO, PPOConfig  # noqa: PLC0415
    from textenv.agents.rloo import RLOO, RLOOConfig  # noqa: PLC0415

    env = make_env(_jobs.model(job.size), batch=job.batch, prompt=job.prompt, response=job.response, kl_coef=BETA)
    settings: dict[str, Any] = {
        "learning_rate": RATE, "embedding_learning_rate": None, "lr_schedule": "constant", "lr_warmup": 0.0,
        "adam_epsilon": 1e-8, "minibatch_size": None, "micro_batch_size": job.micro_batch, "precision": "float32",
        "lora_rank": job.lora_rank, "lora_alpha": ALPHA,
    }  # fmt: skip
    agent: Agent[Any]
    if job.trainer == "textenv-grpo":
        agent = GRPO(env, GRPOConfig(**settings, samples=job.samples, epochs=job.epochs, clip=CLIP))
    elif job.trainer == "textenv-rloo":
        agent = RLOO(env, RLOOConfig(**settings, samples=job.samples))
    else:
        value: Any = "head" if job.trainer == "textenv-head" else "model"
        values = {"value_learning_rate": RATE, "value": value, "lam": LAMBDA}
        agent = PPO(env, PPOConfig(**settings, **values, epochs=job.epochs, clip=CLIP))

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
    policy, adapter = _trainable(job.size), None
    if job.lora_rank is None:
        policy.save_pretrained(folder)  # the trainer loads its reference from where the policy came from
        policy.config._name_or_path = folder
    else:  # its reference is the policy without the adapter
        from peft import LoraConfig  # noqa: PLC0415

        adapter = LoraConfig(**_adapter(job))
    arguments = _arguments(job, folder)
    config = config_class(
        **arguments, max_steps=job.iterations * job.epochs, num_iterations=job.epochs,
        steps_per_generation=arguments["gradient_accumulation_steps"], num_generations=job.samples,
        max_completion_length=job.response, temperature=1.0, top_k=0, beta=BETA, epsilon=CLIP, disable_dropout=True,
        shuffle_dataset=False,
    )  # fmt: skip
    rows = Dataset.from_dict({"prompt": _prompts(job)})
    trainer = trainer_class(
        policy,
        reward_funcs=_jobs.last_token,
        args=config,
        train_dataset=rows,
        processing_class=_jobs.tokenizer(policy.config.vocab_size),
        peft_config=adapter,
    )
    work.watch(trainer.model)  # peft's own, where there is an adapter: it calls no hooks of the one inside
    train: Callable[[], Any] = trainer.train
    return train


def torchrl(job: Job, work: Work, folder: str) -> Callable[[], None]:
    """TorchRL's parts of GRPO (wrappers, advantages on a buffer, loss), put together as its own script does.

    That script itself needs GPUs and Ray. Here the model that writes is the one that learns, so no weights are sent.
    The log-probabilities are those of its writer, which gives a completion's first token 0.
    """
    from tensordict import set_list_to_stack  # noqa: PLC0415
    from torchrl.data import LazyStackStorage, ReplayBuffer, SamplerWithoutReplacement  # noqa: PLC0415
    from torchrl.modules.llm import TransformersWrapper  # noqa: PLC0415
    from torchrl.objectives.llm import GRPOLoss, MCAdvantage  # noqa: PLC0415

    set_list_to_stack(True).set()
    policy, reference = _trainable(job.size), _jobs.model(job.size)
    for model in (policy, reference):  # its wrapper gives the mask as the second argument, which GPT-2's is not
        model.register_forward_pre_hook(
            lambda _, args, given: ((), {"input_ids": args[0], "attention_mask": args[1], **given}) if args else None,
            with_kwargs=True,
        )
    work.watch(policy)
    tokenizer = _jobs.tokenizer(policy.config.vocab_size)
    settings = {"tokenizer": tokenizer, "input_mode": "tokens", "pad_output": True}
    policy.generation_config.top_k = 0  # the wrapper refuses it
    draws = {"max_new_tokens": job.response, "do_sample": True, "temperature": 1.0}
    writer = TransformersWrapper(policy, generate=True, generate_kwargs=draws, return_log_probs=True, **settings)
    learner = TransformersWrapper(policy, generate=False, return_log_probs=True, **settings)
    reader = TransformersWrapper(reference, generate=False, return_log_probs=True, **settings)
    loss_of = GRPOLoss(learner, clip_epsilon=CLIP, kl_to_ref_coeff=BETA, entropy_bonus=False)
    buffer = ReplayBuffer(
        storage=LazyStackStorage(job.batch),
        sampler=SamplerWithoutReplacement(),
        batch_size=job.micro_batch or job.batch,
        transform=MCAdvantage(grpo_size=job.samples, prompt_key="group"),
    )
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    prompts = torch.tensor(tokenizer(_prompts(job))["input_ids"])

    def train() -> None:
        for iteration in range(job.iterations):
            rows = _rows(job, iteration, prompts).repeat_interleave(job.samples)
            buffer.empty()
            buffer.extend(_torchrl_episodes(rows, prompts[rows], writer, reader))
            for _ in range(job.epochs):
                for batch in buffer:
                    losses = loss_of(batch)
                    loss = losses.loss_objective + losses.loss_kl_to_ref
                    (loss * len(batch) / job.batch).backward()
                torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

    return train


@torch.no_grad()
def _torchrl_episodes(groups: torch.Tensor, prompts: torch.Tensor, writer: Any, reader: Any) -> Any:
    """Have a wrapper of TorchRL's write, and another read what it wrote; return what its loss asks for."""
    from tensordict import TensorDict  # noqa: PLC0415
    from torchrl.modules.llm.policies import LogProbs, Tokens  # noqa: PLC0415

    size = [len(prompts)]
    found = writer(TensorDict({"group": groups, "tokens": Tokens(prompt=prompts, batch_size=size)}, size))
    drawn = found["log_probs"].response
    log_probs = torch.cat([drawn.new_full(prompts.shape, torch.nan), drawn], dim=1)  # nobody drew the prompt
    found["log_probs"] = LogProbs(full=log_probs, batch_size=size)
    rewards = _jobs.last_token(found["tokens"].response.tolist())
    found["next"] = TensorDict(
        {
            "reward": torch.tensor(rewards)[:, None, None],
            "done": torch.ones(*size, 1, dtype=torch.bool),
            "ref_log_probs": {"full": reader(found.copy())["log_probs"].full},
        },
        size,
    )
    return found


def agilerl(job: Job, work: Work, folder: str) -> Callable[[], None]:
    """AgileRL's GRPO, which always learns an adapter, and writes for one prompt at a time where vLLM is not."""
    import agilerl as package  # noqa: PLC0415

    package.HAS_LLM_DEPENDENCIES = True  # it asks for liger-kernel and bitsandbytes too, which this does not use
    from agilerl.algorithms import GRPO  # noqa: PLC0415
    from peft import LoraConfig  # noqa: PLC0415

    policy = _jobs.model(job.size)
    agent = GRPO(
        pad_token_id=_jobs.PAD, pad_token="<pad>", actor_network=policy, lora_config=LoraConfig(**_adapter(job)),
        batch_size=job.batch // job.samples, mini_batch_size=job.batch,
        micro_batch_size_per_gpu=job.micro_batch or job.batch,
        group_size=job.samples, update_epochs=job.epochs, lr=RATE, beta=BETA, clip_coef=CLIP, max_grad_norm=1.0,
        adv_norm="mean_std", temperature=1.0, top_k=0, max_output_tokens=job.response,
        max_model_len=job.prompt + job.response, device="cpu", gradient_checkpointing=False, use_liger_loss=False,
        use_separate_reference_adapter=False, off_policy_sequence_mask_threshold=None,
        off_policy_token_mask_bounds=None,
    )  # fmt: skip
    work.watch(agent.actor)
    prompts = torch.tensor(_jobs.tokenizer(policy.config.vocab_size)(_prompts(job))["input_ids"])

    def train() -> None:
        for iteration in range(job.iterations):
            asked = prompts[_rows(job, iteration, prompts)]
            ids, masks = agent.get_action([{"input_ids": prompt[None]} for prompt in asked])[:2]
            rewards = torch.tensor([_jobs.last_token(each.tolist()) for each in ids])
            agent.learn((ids, masks, rewards))

    return train


TRAINERS: dict[str, Callable[[Job, Work, str], Callable[[], Any]]] = {
    "textenv-head": textenv,
    "textenv-model": textenv,
    "textenv-grpo": textenv,
    "textenv-rloo": textenv,
    "trl-ppo": trl_ppo,
    "trl-grpo": trl_groups,
    "trl-rloo": trl_groups,
    "torchrl-grpo": torchrl,
    "agilerl-grpo": agilerl,
}


def _adapter(job: Job) -> dict[str, Any]:
    """Return the settings of an adapter as peft has them, those of ours."""
    return {
        "r": job.lora_rank, "lora_alpha": ALPHA, "lora_dropout": 0.0, "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
    }  # fmt: skip


def _arguments(job: Job, folder: str) -> dict[str, Any]:
    """Return what all of TRL's trainers are given: the optimizer as ours has it, and nothing written or logged."""
    micro = job.micro_batch or job.batch
    return {
        "output_dir": folder, "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": job.batch // micro, "learning_rate": RATE, "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused", "max_grad_norm": 1.0, "report_to": "none", "logging_strategy": "no",
        "save_strategy": "no", "eval_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False, "seed": 0,
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


def _rows(job: Job, iteration: int, prompts: torch.Tensor) -> torch.Tensor:
    """Return which prompts an iteration compares completions of, each once."""
    groups = job.batch // job.samples
    return (iteration * groups + torch.arange(groups)) % len(prompts)


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
