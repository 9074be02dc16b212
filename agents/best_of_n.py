"""Best of n: sample n completions, keep the one with the best score (Stiennon et al. 2020). There is nothing to learn.

It maximises the score alone, at a KL from the reference of at most ``log n - (n - 1) / n`` nats
(``textenv.analysis.best_of_n``). The completions are written and scored in an environment of its own, like the one it
acts in.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from textenv.agents.agent import Progress, check, describe, read_saved, refuse_unscored
from textenv.analysis.best_of_n import best_of_n_kl
from textenv.data.files import write_json
from textenv.env.vector import TextVectorEnv
from textenv.models.policy import TextPolicy
from textenv.rollouts.collect import collect, sample_episodes, text_env, vectorise
from textenv.rollouts.distributed import ALONE, World
from textenv.types import Episode, IntArray, Observation, Prompt, TextEnvError

__all__ = ["BestOfN", "BestOfNConfig"]


@dataclass(frozen=True, slots=True)
class BestOfNConfig:
    """Settings of best-of-n.

    Attributes:
        samples: Completions that the best is kept of.
        seed: Seeds them.
    """

    samples: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        check(self, whole=("samples",))


class BestOfN:
    """Acts by looking for the best of n completions, and writing that.

    Attributes:
        policy: What the completions are drawn from: the reference.
        steps: Tokens that ``learn`` has written.
    """

    Config: ClassVar[type[BestOfNConfig]] = BestOfNConfig

    def __init__(
        self,
        env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any],
        config: BestOfNConfig | None = None,
        *,
        world: World = ALONE,
    ) -> None:
        """Act in an environment.

        Args:
            env: A text environment: single, or vectorised with ``AutoresetMode.DISABLED``.
            config: Settings; None for the defaults.
            world: The processes of the run, of which there is one.

        Raises:
            TextEnvError: The environment is of another kind or scores nothing, or there are several processes.
        """
        if world.size > 1:
            raise TextEnvError(f"Best-of-n learns nothing that {world.size} processes could share: start one.")
        self.config = config or BestOfNConfig()
        self.envs = vectorise(env)
        self.steps = self.iterations = 0
        self.world = world
        base = text_env(self.envs)
        refuse_unscored(base, "best_of_n")
        self.policy = TextPolicy.of_reference(base)
        self._scratch = _like(base, self.config.samples)
        self._generator = torch.Generator(base.reference.device).manual_seed(self.config.seed)
        self._plans: dict[int, tuple[int, ...]] = {}  # of each row, the text it is writing

    def learn(
        self,
        total_steps: int,
        *,
        progress: Progress | None = None,
        checkpoints: Path | None = None,
        checkpoint_every: int = 5,
    ) -> Self:
        """Write until ``total_steps`` tokens are written, for the metrics alone.

        Args:
            total_steps: Tokens, of all n completions of a prompt.
            progress: Called after each prompt with the tokens so far and the metrics. Writing ends where it returns
                False.
            checkpoints: Not used: there is nothing to keep.
            checkpoint_every: Not used.

        Returns:
            Itself.
        """
        if total_steps < 1 or checkpoint_every < 1:
            raise TextEnvError(f"total_steps={total_steps}, checkpoint_every={checkpoint_every}: expected at least 1.")
        prompts = text_env(self.envs).prompts
        while self.steps < total_steps:
            began = time.perf_counter()
            prompt = prompts[int(torch.randint(len(prompts), (), generator=self._generator))]
            options = {"prompt": [prompt] * self.config.samples}
            rollout = collect(self._scratch, self.policy, self._generator, options=options)
            self.steps += rollout.tokens
            self.iterations += 1
            if progress is not None:
                score = max(episode.score for episode in rollout.finished)
                kl = float(best_of_n_kl(self.config.samples))
                metrics = {
                    **describe(rollout),
                    "rollout/ep_rew_mean": score - text_env(self.envs).kl_coef * kl,
                    "objective/score": score,
                    "objective/kl": kl,
                    "objective/kl_coef": text_env(self.envs).kl_coef,
                    "time/iterations": float(self.iterations),
                    "time/tokens_per_second": rollout.tokens / (time.perf_counter() - began),
                }
                if progress(self.steps, metrics) is False:
                    break
        return self

    def predict(self, obs: Observation, *, deterministic: bool = True) -> IntArray:
        """Choose the next token: that of the completion a row is writing, or of the best of n new ones.

        An observation that the row's completion does not lead to is taken as a prompt. The environment takes the tokens
        as deterministic, log pi = 0: what best-of-n comes to is ``sample``'s scores, at the KL of the choice.

        Args:
            obs: An observation, single or batched.
            deterministic: Draw the same n completions whenever a prompt is the same.

        Returns:
            Actions, shape ``(batch,)``, or ``()`` for a single observation.

        Raises:
            TextEnvError: An observation that is taken as a prompt is longer than prompts may be.
        """
        single = np.asarray(obs["input_ids"]).ndim == 1
        ids, masks = (np.atleast_2d(np.asarray(obs[name])) for name in ("input_ids", "attention_mask"))
        base = text_env(self.envs)
        actions = np.zeros(len(ids), dtype=np.int64)
        for row, (line, mask) in enumerate(zip(ids, masks, strict=True)):
            state = tuple(line[mask.astype(bool)].tolist())
            plan = self._plans.get(row, ())
            if plan == state:  # it is written; a row that is over waits here for the others, whatever it is given
                continue
            if base.has_prompt(state) or plan[: len(state)] != state:
                here = base.prompt_at(row, state)
                prompt = here if here is not None and here.ids == state else base.prompt_of(state)
                plan = self._plans[row] = state + self._best(prompt, self._source(state, deterministic)).completion_ids
            actions[row] = plan[len(state)]
        return actions[0] if single else actions

    def sample(
        self, env: VectorEnv[Any, Any, Any], prompts: Sequence[Any], *, generator: torch.Generator | None = None
    ) -> list[Episode]:
        """Write n episodes from each prompt and return the best of each.

        Args:
            env: A text environment with ``AutoresetMode.DISABLED``, which may be another than the agent acts in.
            prompts: Whatever ``reset(options={"prompt": ...})`` takes for a row.
            generator: Source of randomness; None for the agent's own seed.

        Raises:
            TextEnvError: The environment scores nothing.
        """
        refuse_unscored(text_env(env), "best_of_n")
        generator = generator or torch.Generator(self.policy.lm.device).manual_seed(self.config.seed)
        size = self.config.samples
        repeated = [prompt for prompt in prompts for _ in range(size)]
        episodes = sample_episodes(env, self.policy, generator, repeated)
        return [max(episodes[at : at + size], key=lambda each: each.score) for at in range(0, len(episodes), size)]

    def save(self, folder: str | Path) -> None:
        """Save the settings: there are no weights."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        about = {"agent": "bestofn", "steps": self.steps, "config": dataclasses.asdict(self.config)}
        write_json(folder / "agent.json", about)

    @classmethod
    def load(cls, folder: str | Path, env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> Self:
        """Load an agent that ``save`` wrote, to act in ``env``.

        Raises:
            TextEnvError: The folder holds no such agent.
        """
        config, about = read_saved(Path(folder), cls)
        agent = cls(env, config)
        agent.steps = int(about["steps"])
        return agent

    def resume(self, folder: Path, total_steps: int) -> bool:
        """Return False: there is nothing to go on with."""
        return False

    def _source(self, state: tuple[int, ...], deterministic: bool) -> torch.Generator:
        if not deterministic:
            return self._generator
        number = int(np.random.SeedSequence((self.config.seed, *state)).generate_state(1, np.uint64)[0])
        return torch.Generator(self._generator.device).manual_seed(number)

    def _best(self, prompt: Prompt, generator: torch.Generator) -> Episode:
        options = {"prompt": [prompt] * self.config.samples}
        finished = collect(self._scratch, self.policy, generator, options=options).finished
        return max(finished, key=lambda episode: episode.score)


def _like(base: TextVectorEnv, rows: int) -> TextVectorEnv:
    """Return an environment of as many rows that writes, scores and ends as another does."""
    settings = {field.name: getattr(base.settings, field.name) for field in dataclasses.fields(base.settings)}
    live = {"model": base.reference, "reward": base.reward, "prompts": [prompt.text for prompt in base.prompts[:1]]}
    live |= {"device": None, "torch_dtype": None, "chat": False, "kl_mode": "lump", "kl_target": None}
    live["max_prompt_tokens"] = base.max_prompt_tokens
    return TextVectorEnv(rows, autoreset_mode=AutoresetMode.DISABLED, **{**settings, **live})
