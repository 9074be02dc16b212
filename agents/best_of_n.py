"""Best of n: sample n completions, keep the one with the best score (Stiennon et al. 2020). There is nothing to learn.

It maximizes the score alone, at a KL from the reference of at most ``log n - (n - 1) / n`` nats
(``textenv.analysis.frontier``). The completions are written and scored in an environment of its own, like the one it
acts in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from textenv.agents.actor import Actor
from textenv.agents.config import ActorConfig
from textenv.agents.environment import refuse_processes, refuse_unscored, refuse_world
from textenv.agents.metrics import reward_metrics
from textenv.lazy import lazy
from textenv.types import Episode, IntArray, Observation, Prompt
from textenv.validation import Count

if TYPE_CHECKING:
    import torch
    from gymnasium import vector as gym_vector
    from gymnasium.vector import VectorEnv

    from textenv.analysis import frontier
    from textenv.env import vector
    from textenv.models import policy as policies
    from textenv.rollouts import collect as collecting
else:
    torch, gym_vector = lazy("torch"), lazy("gymnasium.vector")
    frontier, vector = lazy("textenv.analysis.frontier"), lazy("textenv.env.vector")
    policies, collecting = lazy("textenv.models.policy"), lazy("textenv.rollouts.collect")

__all__ = ["BestOfN", "BestOfNConfig"]


@dataclass(frozen=True, slots=True)
class BestOfNConfig(ActorConfig):
    """Settings of best-of-n.

    Attributes:
        samples: Completions that the best is kept of.
    """

    samples: Count = 16


class BestOfN(Actor[BestOfNConfig]):
    """Acts by looking for the best of n completions, and writing that.

    Attributes:
        policy: What the completions are drawn from: the reference.
        best_of: The number of completions.
    """

    Config: ClassVar[type[ActorConfig]] = BestOfNConfig
    learns: ClassVar[bool] = False

    def set_up(self) -> None:
        """Take the reference as what completions are drawn from, and make the environment that they are written in.

        Raises:
            TextEnvError: The environment scores nothing or has a world, or there are several processes.
        """
        refuse_processes(self.processes, "Best-of-n")
        base = self.base
        refuse_unscored(base, "best_of_n")
        refuse_world(base, "best_of_n")
        self.best_of = self.config.samples
        self.policy = policies.TextPolicy.of_reference(base)
        self._sampling_env = _make_alike(base, self.config.samples)
        self._plans: dict[int, tuple[int, ...]] = {}  # of each row, the whole text that it is writing

    def iterate(self, total_steps: int) -> tuple[collecting.Rollout, Mapping[str, float]]:
        """Write n completions of a prompt, for the metrics alone; their score is that of the best one."""
        prompts = self.base.prompts
        prompt = prompts[int(torch.randint(len(prompts), (), generator=self._generator))]
        rollout = self._completions(prompt, self._generator)
        best = max(rollout.finished, key=lambda episode: episode.score)
        kl = float(frontier.best_of_n_kl(self.config.samples))
        return rollout, {
            **reward_metrics([best]),
            "rollout/ep_rew_mean": best.score - self.base.kl_coef * kl,
            "objective/score": best.score,
            "objective/kl": kl,
        }

    def choose(self, obs: Observation, *, deterministic: bool) -> IntArray:
        """Choose the next tokens: those of the completions that the rows are writing, or of the best of n new ones.

        An observation that the row's completion does not lead to is taken as a prompt. The environment takes the tokens
        as deterministic, log pi = 0; the KL of choosing the best of n is not in its rewards.

        Args:
            obs: Observations, batched.
            deterministic: Draw the same n completions whenever a prompt is the same.

        Returns:
            Actions, shape ``(batch,)``.

        Raises:
            TextEnvError: An observation that is taken as a prompt is longer than prompts may be.
        """
        base = self.base
        actions = np.zeros(len(obs["input_ids"]), dtype=np.int64)
        for row, (line, mask) in enumerate(zip(obs["input_ids"], obs["attention_mask"], strict=True)):
            state = tuple(line[mask.astype(bool)].tolist())
            plan = self._plans.get(row, ())
            if plan == state:  # the text is whole; until all rows have ended, any token does
                continue
            if base.has_prompt(state) or plan[: len(state)] != state:
                here = base.prompt_at(row, state)
                prompt = here if here is not None and here.ids == state else base.prompt_of(state)
                finished = self._completions(prompt, self._generator_of(state, deterministic)).finished
                best = max(finished, key=lambda episode: episode.score)
                plan = self._plans[row] = state + best.completion_ids
            actions[row] = plan[len(state)]
        return actions

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
        refuse_unscored(collecting.text_env(env), "best_of_n")
        generator = generator or torch.Generator(self.policy.lm.device).manual_seed(self.config.seed)
        size = self.config.samples
        repeated = [prompt for prompt in prompts for _ in range(size)]
        episodes = collecting.sample_episodes(env, self.policy, generator, repeated)
        return [max(episodes[at : at + size], key=lambda each: each.score) for at in range(0, len(episodes), size)]

    def _generator_of(self, state: tuple[int, ...], deterministic: bool) -> torch.Generator:
        """Return what the completions of a prompt are drawn with."""
        if not deterministic:
            return self._generator
        number = int(np.random.SeedSequence((self.config.seed, *state)).generate_state(1, np.uint64)[0])
        return torch.Generator(self._generator.device).manual_seed(number)

    def _completions(self, prompt: Prompt, generator: torch.Generator) -> collecting.Rollout:
        """Write n completions of a prompt."""
        options = {"prompt": [prompt] * self.config.samples}
        return collecting.collect(self._sampling_env, self.policy, generator, options=options)


def _make_alike(base: vector.TextVectorEnv, rows: int) -> vector.TextVectorEnv:
    """Return an environment of as many rows that writes, scores and ends as another does."""
    settings = {field.name: getattr(base.settings, field.name) for field in dataclasses.fields(base.settings)}
    first = base.prompts[0]
    live = {"model": base.reference, "reward": base.reward, "prompts": [{"prompt": first.text, **first.columns}]}
    live |= {"device": None, "torch_dtype": None, "chat": False, "kl_mode": "lump", "kl_target": None}
    live["max_prompt_tokens"] = base.max_prompt_tokens
    disabled = gym_vector.AutoresetMode.DISABLED
    return vector.TextVectorEnv(rows, autoreset_mode=disabled, **{**settings, **live})
