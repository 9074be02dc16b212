"""Guided decoding: the reference, steered at every token by what the reward model says of its likeliest next tokens.

It acts by ``pi(a|s) = pi_ref(a|s) * exp(Q(s, a) / beta) / Z(s)`` with ``beta = kl_coef``, the policy that maximises
the KL-regularised return under ``Q`` (controlled decoding, Mudgal et al. 2024, theorem 2.1). ``Q`` is a function of a
few numbers, ``SoftValues``. It is fitted by soft value iteration to the states of the latest episodes, those of the
reference at first, then its own; no weights of the model change. The price is paid when it acts: the reward model reads
``candidates`` texts a token, so it should be quick, and it should say something of texts that are not finished
(reward-guided search, Khanov et al. 2024).
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import gymnasium as gym
import numpy as np
import safetensors.numpy
import torch
from gymnasium.vector import VectorEnv
from safetensors import SafetensorError

from textenv.agents.agent import Progress, check, describe, read_saved, refuse_unscored
from textenv.agents.critic import refuse_statistics, score_next
from textenv.agents.soft_values import Choices, SoftValues, join
from textenv.data.files import write_json
from textenv.env.vector import TextVectorEnv
from textenv.models import acting
from textenv.models.policy import TextPolicy, observation_arrays
from textenv.rollouts.collect import collect, sample_episodes, text_env, vectorise
from textenv.rollouts.distributed import ALONE, World
from textenv.types import Episode, IntArray, Observation, Prompt, TextEnvError

__all__ = ["Guided", "GuidedConfig"]


@dataclass(frozen=True, slots=True)
class GuidedConfig:
    """Settings of guided decoding.

    Attributes:
        candidates: Tokens a state that the reward model is asked about: the likeliest ones. Others are taken to leave
            the score as it is.
        replay: Iterations whose states the values are fitted to.
        seed: Seeds actions and the environment.
    """

    candidates: int = 256
    replay: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        check(self, whole=("candidates", "replay"))


class Guided:
    """Acts with the reference's probabilities, tilted by what every next token is worth.

    Attributes:
        actor: The steered policy.
        values: What it believes of unfinished texts.
        steps: Tokens that ``learn`` has written.
    """

    Config: ClassVar[type[GuidedConfig]] = GuidedConfig

    def __init__(
        self,
        env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any],
        config: GuidedConfig | None = None,
        *,
        world: World = ALONE,
    ) -> None:
        """Act in an environment, as the reference does until ``learn`` has written something.

        Args:
            env: A text environment: single, or vectorised with ``AutoresetMode.DISABLED``.
            config: Settings; None for the defaults.
            world: The processes of the run, of which there is one.

        Raises:
            TextEnvError: The environment is of another kind, scores nothing or has no KL penalty, its reward keeps
                statistics of what it scores, or there are several processes.
        """
        if world.size > 1:
            raise TextEnvError(f"Guided decoding has no weights that {world.size} processes could share: start one.")
        self.config = config or GuidedConfig()
        self.envs = vectorise(env)
        self.steps = self.iterations = 0
        self.world = world
        base = text_env(self.envs)
        if not base.kl_coef > 0:
            raise TextEnvError("kl_coef=0: guided decoding divides by it; give the environment a kl_coef above 0.")
        refuse_statistics(base)
        refuse_unscored(base, "guided")
        embedding = cast("torch.nn.Embedding", base.reference.model.get_input_embeddings())
        self.values = SoftValues(base.settings.max_new_tokens, embedding.weight.detach().float().cpu().numpy())
        self._states: deque[Choices] = deque(maxlen=self.config.replay)
        self.actor = _Steered(base, self.values, self.config.candidates)
        self._generator = torch.Generator(base.reference.device).manual_seed(self.config.seed)

    def learn(
        self,
        total_steps: int,
        *,
        progress: Progress | None = None,
        checkpoints: Path | None = None,
        checkpoint_every: int = 5,
    ) -> Self:
        """Write until ``total_steps`` tokens are written, and fit the values after each iteration.

        Args:
            total_steps: Tokens; the iteration that reaches them is finished.
            progress: Called after each iteration with the tokens so far and the metrics. Learning ends where it returns
                False.
            checkpoints: Not used: a few iterations are enough, so a run that was stopped starts again.
            checkpoint_every: Not used.

        Returns:
            Itself.
        """
        if total_steps < 1 or checkpoint_every < 1:
            raise TextEnvError(f"total_steps={total_steps}, checkpoint_every={checkpoint_every}: expected at least 1.")
        base = text_env(self.envs)
        while self.steps < total_steps:
            began = time.perf_counter()
            self.actor.act_in(base)  # whoever is told of the progress may have it sample elsewhere
            seed = None if self.iterations else self.config.seed
            with self.actor.remembering() as states:
                rollout = collect(self.envs, self.actor, self._generator, seed=seed)
            if len(rollout.finished) < len(rollout.episodes):
                raise TextEnvError("A wrapper truncated an episode, which has no score then; leave the wrapper out.")
            self._states.append(join(states))
            self.values.fit(join(self._states), base.kl_coef)
            self.steps += rollout.tokens
            self.iterations += 1
            metrics = {
                **describe(rollout),
                "objective/kl_coef": rollout.kl_coef,
                "time/iterations": float(self.iterations),
                "time/tokens_per_second": rollout.tokens / (time.perf_counter() - began),
            }
            if progress is not None and progress(self.steps, metrics) is False:
                break
        return self

    def predict(self, obs: Observation, *, deterministic: bool = True) -> IntArray:
        """Choose the next token.

        An observation that is not the last one of its row, or that one and a token more, is taken as a prompt.

        Args:
            obs: An observation, single or batched.
            deterministic: Take the likeliest token instead of drawing one.

        Returns:
            Actions, shape ``(batch,)``, or ``()`` for a single observation, drawn within the environment's masks.

        Raises:
            TextEnvError: The environment has taken the actions before these without their log-probabilities.
        """
        single = np.asarray(obs["input_ids"]).ndim == 1
        base = text_env(self.envs)
        self.actor.act_in(base)
        batch = {name: np.asarray(values)[None] for name, values in obs.items()} if single else obs
        acting.refuse_unseen(*observation_arrays(batch))
        masks = base.action_masks_at(batch)
        actions, _ = self.actor.act(batch, generator=None if deterministic else self._generator, masks=masks)
        return actions[0] if single else actions

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
        refuse_unscored(text_env(env), "guided")
        self.actor.act_in(text_env(env))
        return sample_episodes(env, self.actor, generator, prompts)

    def save(self, folder: str | Path) -> None:
        """Save the settings and the values; of the states that they are fitted to nothing is kept."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.numpy.save_file(self.values.arrays(), folder / _VALUES_FILE)
        about = {"agent": "guided", "steps": self.steps, "config": dataclasses.asdict(self.config)}
        write_json(folder / "agent.json", about)

    @classmethod
    def load(cls, folder: str | Path, env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> Self:
        """Load an agent that ``save`` wrote, to act in ``env`` or learn on.

        Raises:
            TextEnvError: The folder holds no such agent, or one for texts of another length or vocabulary.
        """
        folder = Path(folder)
        config, about = read_saved(folder, cls)
        agent = cls(env, config)
        agent.steps = int(about["steps"])
        try:
            agent.values.restore(safetensors.numpy.load_file(folder / _VALUES_FILE))
        except (OSError, KeyError, SafetensorError) as error:
            raise TextEnvError(
                f"{folder / _VALUES_FILE}: cannot be read ({error}); was the agent saved there?"
            ) from error
        return agent

    def resume(self, folder: Path, total_steps: int) -> bool:
        """Return False: a run that was stopped starts again."""
        return False


_VALUES_FILE = "values.safetensors"


class _Steered(TextPolicy):
    """The reference, its distributions tilted by values."""

    def __init__(self, base: TextVectorEnv, values: SoftValues, candidates: int) -> None:
        super().__init__(base.reference, value="none", temperature=base.settings.temperature, trainable=False)
        self._values, self._candidates = values, candidates
        self._texts: dict[int, tuple[Prompt, tuple[int, ...]]] = {}  # of each row: its prompt, all its tokens
        self._memory: list[Choices] | None = None
        self.act_in(base)

    @contextlib.contextmanager
    def remembering(self) -> Iterator[list[Choices]]:
        """Keep the states that it acts in."""
        memory: list[Choices] = []
        self._memory = memory
        try:
            yield memory
        finally:
            self._memory = None

    def act_in(self, base: TextVectorEnv) -> None:
        """Take prompts, scores and the weight of the KL from an environment."""
        self._base = base

    def prompt(self, row: int, state: tuple[int, ...]) -> Prompt:
        """Return what a row that has come to ``state`` began with.

        That is what the environment's row began with, if it is there. Else a text that goes on from the row's last one
        has the prompt of that, and any other is a prompt.
        """
        prompt = self._base.prompt_at(row, state)
        if prompt is None and row in self._texts:
            begun, before = self._texts[row]
            goes_on = state[: len(before)] == before and len(state) - len(before) <= 1
            prompt = begun if goes_on and not self._base.has_prompt(state) else None
        prompt = prompt or self._base.prompt_of(state)
        self._texts[row] = prompt, state
        return prompt

    def forget(self) -> None:
        super().forget()
        self._texts = {}

    def steer(self, logits: torch.Tensor, ids: IntArray, lengths: IntArray, rows: IntArray) -> torch.Tensor:
        if self._memory is None and not self._values.fitted:
            return logits
        log_probs = torch.log_softmax(logits, dim=-1)
        likeliest = log_probs.topk(min(self._candidates, log_probs.shape[1]), dim=-1)
        states = self._ask(likeliest.indices, likeliest.values, ids, lengths, rows)
        if self._memory is not None:
            self._memory.append(states)
        if not self._values.fitted:
            return logits
        q = self._values.q(states)
        tilt = torch.from_numpy((q[:, :-1] - q[:, -1:]) / self._base.kl_coef).to(log_probs)
        return log_probs.scatter_add(1, likeliest.indices, tilt)

    def _ask(
        self, tokens: torch.Tensor, log_probs: torch.Tensor, ids: IntArray, lengths: IntArray, rows: IntArray
    ) -> Choices:
        """Have the reward model score the texts so far, alone and with each of ``tokens``, ``(n, candidates)``."""
        prompts: list[Prompt] = []
        texts: list[tuple[int, ...]] = []
        for row, line, length, more in zip(rows.tolist(), ids, lengths.tolist(), tokens.tolist(), strict=True):
            state = tuple(line[:length].tolist())
            prompt = self.prompt(row, state)
            begun = state[len(prompt.ids) :]
            texts += [begun, *((*begun, token) for token in more)]
            prompts += [prompt] * (1 + len(more))
        found, ended = score_next(self._base, prompts, texts)
        scores, over = found.reshape(len(rows), -1), ended.reshape(len(rows), -1)
        return Choices(
            written=np.array([len(text) for text in texts[:: 1 + tokens.shape[1]]]),
            scores=scores[:, 0],
            last=ids[np.arange(len(ids)), lengths - 1],
            tokens=tokens.cpu().numpy().astype(np.int32),
            log_probs=log_probs.float().cpu().numpy(),
            next_scores=scores[:, 1:].astype(np.float32),
            over=over[:, 1:],
        )
