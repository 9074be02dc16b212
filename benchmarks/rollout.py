"""Rollout speed: Hugging Face ``generate``, what TRL does around it, and ``TextVectorEnv.step``.

    python -m benchmarks.rollout --sizes tiny small gpt2

All sides write with the same random weights in fp32, sample at temperature 1 from the whole vocabulary, and watch for
the end-of-sequence token:

- ``generate``: with its cache of keys and values, alone. Nothing is known of the text but its tokens.
- ``generate + forwards``: what TRL's trainers need besides: log-probabilities of policy and reference, and values, by
  one forward each of the policy, the reference, and a value model.
- ``textenv``: the same through ``step``: an attached policy with a value head, the KL from the reference at every
  token (``kl_mode="lump"``), prompts drawn, text decoded and scored.

The process keeps memory that was freed, for all sides, as the commands of ``textenv`` do (``keep_memory``).

Two tables a model: texts that never end early, where the tokens of all sides are the same in number; and texts whose
end is drawn by the model with probability 3 / response at every token. There, only tokens up to the end count. ``all
rows`` is ours without leaving finished rows out, and with ``rows filled`` a rollout has several episodes a row, so that
rows begin others when they have finished.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import tyro
from transformers import GenerationConfig

from benchmarks import _jobs
from benchmarks._measure import Effort, environment, interleave, rate, remark, show
from benchmarks._ours import Rollouts, make_env
from textenv.models.policy import TextPolicy
from textenv.rollouts.runtime import keep_memory


@dataclass(frozen=True, slots=True)
class Config:
    """What to measure.

    Attributes:
        sizes: Shapes of the model.
        architecture: Of the model; several are measured one after the other.
        batch: Texts side by side.
        prompt: Tokens of a prompt.
        response: Tokens of a completion, at most.
        ragged: Measure texts that end at random, too.
        per_row: Episodes a row where rows are filled.
        effort: How often.
        seconds: Least length of one measurement.
    """

    sizes: tuple[_jobs.Size, ...] = ("tiny", "small")
    architecture: tuple[_jobs.Architecture, ...] = ("gpt2",)
    batch: int = 16
    prompt: int = 16
    response: int = 32
    ragged: bool = True
    per_row: int = 8
    effort: tyro.conf.OmitArgPrefixes[Effort] = field(default_factory=Effort)
    seconds: float = 0.4


class Generate:
    """``generate`` as a careful user calls it."""

    def __init__(self, model: Any, config: Config) -> None:
        self.model, self._prompt = model, config.prompt
        texts = _jobs.prompts(config.batch, config.prompt, model.config.vocab_size)
        tokenizer = _jobs.tokenizer(model.config.vocab_size)
        self._inputs = {
            name: torch.tensor(tokenizer(texts)[name], device=model.device) for name in ("input_ids", "attention_mask")
        }  # fmt: skip
        self._config = GenerationConfig(
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=config.response, use_cache=True,
            eos_token_id=_jobs.END, pad_token_id=_jobs.PAD,
        )  # fmt: skip

    def write(self) -> torch.Tensor:
        """Return prompts and completions, ``(batch, time)``."""
        sequences: torch.Tensor = self.model.generate(**self._inputs, generation_config=self._config)
        return sequences

    def tokens(self, sequences: torch.Tensor) -> int:
        """Return the number of tokens up to the end of each text, which counts."""
        ended = (sequences[:, self._prompt :] == _jobs.END).cumsum(dim=1)
        return int(((ended == 0) | ((ended == 1) & (sequences[:, self._prompt :] == _jobs.END))).sum())

    def __call__(self) -> int:
        """Write a batch of texts; return their tokens that count."""
        return self.tokens(self.write())


class GenerateAndForwards(Generate):
    """``generate``, then policy, reference and value model over the whole texts, with full logits as in TRL's PPO."""

    def __init__(self, model: Any, config: Config) -> None:
        super().__init__(model, config)
        self._reference, self._value = copy.deepcopy(model), copy.deepcopy(model.base_model)
        self._score = torch.nn.Linear(model.config.hidden_size, 1, bias=False)

    @torch.no_grad()
    def __call__(self) -> int:
        """Write and read a batch of texts; return their tokens that count."""
        sequences = self.write()
        mask = sequences != _jobs.PAD
        actions = sequences[:, self._prompt :]
        for model in (self.model, self._reference):
            logits = model(input_ids=sequences, attention_mask=mask, use_cache=False).logits[:, self._prompt - 1 : -1]
            torch.log_softmax(logits, dim=-1).gather(2, actions[..., None])
        hidden = self._value(input_ids=sequences, attention_mask=mask, use_cache=False).last_hidden_state
        self._score(hidden)[:, self._prompt - 1 : -1]
        return self.tokens(sequences)


class AllRows(TextPolicy):
    """A policy that acts in finished rows, too, as ``generate`` does."""

    def act(self, obs: Any, **options: Any) -> Any:
        """Choose the next token of every row; there is a random number for each."""
        rows, uniform = options["rows"], options["uniform"]
        options["uniform"] = torch.full((len(obs["input_ids"]), 1), 0.5).index_copy(0, torch.from_numpy(rows), uniform)
        return super().act(obs, **{**options, "rows": None})


def measure(size: _jobs.Size, architecture: _jobs.Architecture, config: Config, hazard: float) -> None:
    positions = max(64, config.prompt + config.response)
    model = _jobs.model(size, architecture, positions=positions, hazard=hazard)
    env = make_env(model, batch=config.batch, prompt=config.prompt, response=config.response)
    ours = Rollouts(env)
    runs: dict[str, Callable[[], int]] = {
        "generate": Generate(model, config),
        "generate + forwards": GenerateAndForwards(model, config),
        "textenv": ours,
    }
    if hazard:
        runs["textenv, all rows"] = Rollouts(env, policy=AllRows(env.reference))
        runs["textenv, rows filled"] = Rollouts(env, policy=ours.policy, per_row=config.per_row)
    seconds = 3 * config.seconds if hazard else config.seconds  # the lengths scatter
    cases = {name: rate(run, seconds) for name, run in runs.items()}
    results = interleave(cases, config.effort)
    mean = np.mean([ours() / config.batch for _ in range(8)])
    ends = f"end at random (mean {mean:.1f})" if hazard else "never end early"
    others = [name for name in results if name != "textenv"]
    show(
        f"{architecture} {size}: batch {config.batch}, prompt {config.prompt}, response {config.response}, {ends}",
        ("rollout", "tokens/s", *(f"to {name}" for name in others)),
        [
            (name, f"{case.median:,.0f}", *(f"{case.ratio(results[other]):.2f}" for other in others))
            for name, case in results.items()
        ],
        remark(results.values()),
    )


def main(config: Config) -> None:
    keep_memory()
    print(environment("textenv", "torch", "transformers"))
    for architecture in config.architecture:
        for size in config.sizes:
            for hazard in (0.0, 3 / config.response) if config.ragged else (0.0,):
                measure(size, architecture, config, hazard)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
