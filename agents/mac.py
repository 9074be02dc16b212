"""Mean actor-critic (Allen et al. 2017): a gradient over many tokens at every state, not only over the one written.

The critic has the reward model score the text so far with each of the likeliest next tokens, and adds what texts of
such a score and such a length have earned from there on:

    Q(s, a) = F(score of s and a, tokens written)  -  beta * log(pi(a|s) / pi_ref(a|s)),  beta = kl_coef.

``F`` is fitted to the latest returns. An actor that follows the critic alone has the critic's bias, so the tokens
that were written correct it: with candidates ``C`` and ``Q = F(score of s, tokens written)`` for all others,

    grad J(s) = sum over C of grad pi(a|s) * Q(s, a)  +  (G - Q(s, a_t)) * grad log pi(a_t|s),

whose expectation, with ``G`` what was earned from ``s`` on, is the policy gradient whatever ``F`` says: a control
variate that depends on the action, as in Q-Prop (Gu et al. 2017, equation 3). The reward model reads ``candidates``
texts a token, so it should be quick, and it should say something of texts that are not finished.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from textenv.agents.agent import Agent
from textenv.agents.config import AgentConfig, Cap
from textenv.agents.environment import (
    refuse_statistics,
    refuse_world,
    scored_at_the_end,
    split_kl_penalty,
    without_shaping,
)
from textenv.lazy import lazy
from textenv.types import IntArray, TextEnvError
from textenv.validation import Count, Positive, Probability

if TYPE_CHECKING:
    import torch

    from textenv.agents import critic, losses, minibatches
    from textenv.models.causal_lm import CausalLM
    from textenv.models.policy import Evaluation
    from textenv.rollouts.collect import Rollout
else:
    torch, critic = lazy("torch"), lazy("textenv.agents.critic")
    losses, minibatches = lazy("textenv.agents.losses"), lazy("textenv.agents.minibatches")

__all__ = ["MAC", "MACConfig"]


@dataclass(frozen=True, slots=True)
class MACConfig(AgentConfig):
    """Settings of mean actor-critic.

    Attributes:
        candidates: Tokens a state that the reward model scores: the likeliest ones.
        replay: Iterations whose episodes the critic is fitted to.
        epochs: Passes over the episodes of an iteration.
        clip: Width of the trust region of the probability ratio, for the tokens that were written.
        lam: Lambda of the returns that correct the critic: at 1 they are what was earned, and the gradient has no bias;
            at 0 they are the critic's own estimates, and the gradient has little noise.
        importance_cap: The largest weight of a token that a policy of fewer bits or an engine has drawn; None for no
            limit. Of no effect where the policy itself writes in float32.
    """

    candidates: Count = 256
    replay: Count = 8
    epochs: Count = 2
    clip: Positive = 0.2
    lam: Probability = 0.7
    importance_cap: Cap | None = 2.0

    def __post_init__(self) -> None:
        """Check the settings."""
        AgentConfig.__post_init__(self)  # slots: a new class, which super() does not know
        if self.max_lag:
            raise TextEnvError(
                f"max_lag={self.max_lag}: MAC asks the reward while it learns, which then scores the next texts. Take "
                "another agent, such as PPO, or max_lag=0."
            )


class MAC(Agent[MACConfig]):
    """Ascends the exact gradient of the critic's Q, and the sampled gradient of the critic's error."""

    Config: ClassVar[type[AgentConfig]] = MACConfig

    def start_learning(self) -> None:
        """Make the critic.

        Raises:
            TextEnvError: The reward keeps statistics of what it scores, to which the candidates would be added.
        """
        super().start_learning()
        refuse_statistics(self.base)
        refuse_world(self.base, "mac")
        self._critic = critic.Critic(self.config.replay * self.episodes, self.base.settings.max_new_tokens)
        self.kept["critic"] = self._critic

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learn from the episodes of an iteration; return means over the updates, under the usual names."""
        config, beta = self.config, rollout.kl_coef
        base = self.base
        kl, _ = split_kl_penalty(base, rollout)
        # The critic has the reward score unfinished texts itself.
        rollout = without_shaping(scored_at_the_end(rollout))
        with self.whole_weights():
            tokens, reference = self._likeliest(rollout)
        texts = [(p, e.completion_ids) for p, e in zip(rollout.prompts, rollout.finished, strict=True)]
        scores, ended = critic.score_prefixes(base, texts, tokens)
        before = critic.score_prefixes(base, texts, None, time=rollout.mask.shape[1])[0][..., 0]  # before each token
        self._critic.add(before, rollout)
        written = np.arange(rollout.mask.shape[1])[None, :]
        values, unchanged = (
            self._critic.predict(before, written),
            self._critic.predict(before, written + 1),
        )
        gains = np.where(ended, scores, self._critic.predict(scores, written[..., None] + 1)) - unchanged[..., None]

        chosen = tokens == rollout.input_ids[np.arange(len(kl))[:, None], rollout.places][..., None]
        q = unchanged + np.where(chosen.any(axis=2), (gains * chosen).sum(axis=2) - beta * kl, 0.0)
        mask, end = torch.from_numpy(rollout.mask), torch.zeros(len(kl))
        _, returns = losses.gae(
            torch.from_numpy(rollout.rewards), torch.from_numpy(values.astype(np.float32)), mask, end,
            gamma=1.0, lam=config.lam,
        )  # fmt: skip
        errors = np.where(rollout.mask, returns.numpy() - q, 0.0)
        spread = (returns.numpy() - unchanged)[rollout.mask].std()
        scale = 1.0 / max(1e-8, float(spread))

        def loss(now: Evaluation, batch: minibatches.Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            ratio = now.candidates.detach() - batch["reference"]
            advantages = torch.where(torch.isfinite(ratio), batch["gains"] - beta * ratio, 0.0)
            expected_loss = -(now.candidates.exp() * advantages).sum() * scale / batch.tokens
            corrections = losses.clipped_policy_loss(
                now.log_probs, batch["log_probs"], batch["errors"] * scale, config.clip, self.importance_cap
            )
            error_loss = corrections.sum() / batch.tokens
            clipped = (
                losses.clip_fraction(now.log_probs, batch["log_probs"], config.clip) * len(corrections) / batch.tokens
            )
            policy_loss = expected_loss + error_loss
            return policy_loss, {"policy_loss": policy_loss, "clip_fraction": clipped}

        columns = {"candidates": torch.from_numpy(tokens)}
        for name, array in (("reference", reference), ("gains", gains), ("errors", errors)):
            columns[name] = torch.from_numpy(array.astype(np.float32))
        metrics = self.optimize(rollout, columns, loss, epochs=config.epochs)
        unexplained = errors[rollout.mask].std() / max(1e-8, float(spread))
        return {**metrics, "train/explained_variance": 1.0 - float(unexplained) ** 2}

    def _likeliest(self, rollout: Rollout) -> tuple[IntArray, NDArray[np.float32]]:
        """Return the policy's likeliest tokens at every state, and the reference's log-probabilities of them.

        Returns:
            Two arrays of shape ``(batch, time, candidates)``.
        """
        policy, base, device = self.policy.lm, self.base, self.policy.lm.device
        shape = (*rollout.mask.shape, min(self.config.candidates, policy.vocab_size))
        tokens, log_probs = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32)
        for rows in torch.arange(shape[0]).split(_ROWS):
            ids, lengths, places, masks = rollout.tensors(rows.numpy(), device, policy.vocab_size)

            def read(lm: CausalLM) -> torch.Tensor:
                logits = lm.head(lm.hidden_states(ids, lengths, places - 1)) / base.settings.temperature  # noqa: B023
                logits = logits if masks is None else logits.masked_fill(~masks, -torch.inf)  # noqa: B023
                return torch.log_softmax(logits, dim=-1)

            with torch.no_grad():
                likeliest = read(policy).topk(shape[2], dim=-1).indices
                found = read(base.reference).gather(1, likeliest)
            written = rollout.mask[rows.numpy()]
            for array, values in ((tokens, likeliest), (log_probs, found)):
                part = np.zeros((len(rows), *shape[1:]), dtype=array.dtype)
                part[written] = values.cpu().numpy()
                array[rows.numpy()] = part
        return tokens, log_probs


_ROWS = 32  # that are read at a time
