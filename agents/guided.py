"""Guided decoding: the reference, steered at every token by the reward model's scores of its likeliest next tokens.

It acts by ``pi(a|s) = pi_ref(a|s) * exp(Q(s, a) / beta) / Z(s)`` with ``beta = kl_coef``, the policy that maximizes
the KL-regularized return under ``Q`` (controlled decoding, Mudgal et al. 2024, theorem 2.1). ``Q`` is a function of a
few numbers, ``SoftValues``. It is fitted by soft value iteration to the states of the latest episodes, those of the
reference at first, then its own; no weights of the model change. Acting is what costs time: the reward model reads
``candidates`` texts a token, so it should be quick, and it should say something of texts that are not finished
(reward-guided search, Khanov et al. 2024).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from textenv.agents.actor import Actor
from textenv.agents.config import ActorConfig
from textenv.agents.environment import refuse_no_kl, refuse_processes, refuse_statistics, refuse_unscored, refuse_world
from textenv.lazy import lazy
from textenv.types import Episode, IntArray, Observation, TextEnvError
from textenv.validation import Count

if TYPE_CHECKING:
    import safetensors
    import torch
    from gymnasium.vector import VectorEnv
    from safetensors import numpy as safetensors_numpy

    from textenv.agents import guided_policy, soft_values
    from textenv.rollouts import collect as collecting
else:
    safetensors, safetensors_numpy = lazy("safetensors"), lazy("safetensors.numpy")
    guided_policy, soft_values = lazy("textenv.agents.guided_policy"), lazy("textenv.agents.soft_values")
    collecting = lazy("textenv.rollouts.collect")

__all__ = ["Guided", "GuidedConfig"]


@dataclass(frozen=True, slots=True)
class GuidedConfig(ActorConfig):
    """Settings of guided decoding.

    Attributes:
        candidates: Tokens a state that the reward model scores: the likeliest ones. Others are taken to leave the score
            as it is.
        replay: Iterations whose states the values are fitted to.
    """

    candidates: Count = 256
    replay: Count = 4


class Guided(Actor[GuidedConfig]):
    """Acts with the reference's probabilities, weighted by the value of every next token.

    Attributes:
        policy: The steered policy.
        values: The values of unfinished texts.
    """

    Config: ClassVar[type[ActorConfig]] = GuidedConfig
    policy: guided_policy.GuidedPolicy

    def set_up(self) -> None:
        """Make the values, with which the agent acts as the reference does until ``learn`` has written something.

        Raises:
            TextEnvError: The environment scores nothing, has no KL penalty or has a world, its reward keeps statistics
                of what it scores, or there are several processes.
        """
        refuse_processes(self.processes, "Guided decoding")
        base = self.base
        refuse_no_kl(base, "guided decoding")
        refuse_statistics(base)
        refuse_unscored(base, "guided")
        refuse_world(base, "guided")
        embedding = cast("torch.nn.Embedding", base.reference.model.get_input_embeddings())
        weights = embedding.weight.detach().float().cpu().numpy()
        self.values = soft_values.SoftValues(base.settings.max_new_tokens, weights)
        self._states: deque[soft_values.Choices] = deque(maxlen=self.config.replay)
        self.policy = guided_policy.GuidedPolicy(base, self.values, self.config.candidates)  # pyright: ignore[reportIncompatibleVariableOverride]

    def iterate(self, total_steps: int) -> tuple[collecting.Rollout, Mapping[str, float]]:
        """Write an episode in every row, and fit the values to the states of the latest iterations."""
        base = self.base
        self.policy.act_in(base)  # a progress callback may have had it sample in another environment
        seed = None if self.iterations else self.config.seed
        with self.policy.recording() as states:
            rollout = collecting.collect(self.envs, self.policy, self._generator, seed=seed)
        if len(rollout.finished) < len(rollout.episodes):
            raise TextEnvError("A wrapper truncated an episode, which has no score then; leave the wrapper out.")
        self._states.append(soft_values.concatenate_choices(states))
        self.values.fit(soft_values.concatenate_choices(self._states), base.kl_coef)
        return rollout, {"objective/kl_coef": rollout.kl_coef}

    def choose(self, obs: Observation, *, deterministic: bool) -> IntArray:
        """Choose the next tokens for a batch of observations, shape ``(batch,)``; see ``predict``.

        An observation that is not the last one of its row, or that one and a token more, is taken as a prompt.
        """
        self.policy.act_in(self.base)
        return super().choose(obs, deterministic=deterministic)

    def sample(
        self, env: VectorEnv[Any, Any, Any], prompts: Sequence[Any], *, generator: torch.Generator | None = None
    ) -> list[Episode]:
        """Write one episode from each prompt.

        Args:
            env: A text environment with ``AutoresetMode.DISABLED``, which may be another than the agent learns in; its
                reward guides.
            prompts: Whatever ``reset(options={"prompt": ...})`` takes for a row.
            generator: Source of randomness; None for the likeliest tokens.

        Raises:
            TextEnvError: The environment scores nothing.
        """
        refuse_unscored(collecting.text_env(env), "guided")
        self.policy.act_in(collecting.text_env(env))
        return super().sample(env, prompts, generator=generator)

    def save_weights(self, folder: Path) -> None:
        """Save the values; the states that they are fitted to are not kept."""
        folder.mkdir(parents=True, exist_ok=True)
        safetensors_numpy.save_file(self.values.arrays(), folder / _VALUES_FILE)

    @classmethod
    def restore(cls, folder: Path, envs: VectorEnv[Any, Any, Any], config: Any) -> Self:
        """Return an agent with the values that were saved in a folder, to act in ``envs`` or learn on.

        Raises:
            TextEnvError: The folder holds no values, or those of texts of another length or vocabulary.
        """
        agent = cls(envs, config)
        try:
            agent.values.restore(safetensors_numpy.load_file(folder / _VALUES_FILE))
        except (OSError, KeyError, safetensors.SafetensorError) as error:
            raise TextEnvError(
                f"{folder / _VALUES_FILE}: cannot be read ({error}); was the agent saved there?"
            ) from error
        return agent


_VALUES_FILE = "values.safetensors"
