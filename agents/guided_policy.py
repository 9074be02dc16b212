"""The policy of guided decoding: the reference, steered by values of its likeliest next tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

from textenv.agents.critic import score_next
from textenv.agents.soft_values import Choices, SoftValues
from textenv.env.vector import TextVectorEnv
from textenv.models.policy import TextPolicy
from textenv.types import IntArray, Prompt

__all__ = ["GuidedPolicy"]


class GuidedPolicy(TextPolicy):
    """The reference, its probabilities weighted by values: ``pi_ref(a|s) * exp(Q(s, a) / beta) / Z(s)``."""

    def __init__(self, base: TextVectorEnv, values: SoftValues, candidates: int) -> None:
        """Act in an environment.

        Args:
            base: Gives prompts, scores and the weight of the KL.
            values: What ``Q`` is computed from; as long as they are not fitted it acts as the reference.
            candidates: Tokens a state that are scored, the likeliest ones.
        """
        super().__init__(base.reference, value="none", temperature=base.settings.temperature, trainable=False)
        self._values, self._candidates = values, candidates
        self._texts: dict[int, tuple[Prompt, tuple[int, ...]]] = {}  # of each row: its prompt, all its tokens
        self._recorded: list[Choices] | None = None
        self.act_in(base)

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[Choices]]:
        """Record the states that it acts in, inside the block."""
        recorded: list[Choices] = []
        self._recorded = recorded
        try:
            yield recorded
        finally:
            self._recorded = None

    def act_in(self, base: TextVectorEnv) -> None:
        """Take prompts, scores and the weight of the KL from an environment."""
        self._base = base

    def prompt(self, row: int, state: tuple[int, ...]) -> Prompt:
        """Return the prompt of a row whose text is now ``state``.

        That is the prompt of the environment's row, if the row is at this text. Else a text that continues the row's
        last one has the same prompt, and any other text is a prompt itself.
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
        """Empty the caches: other texts begin."""
        super().forget()
        self._texts = {}

    def steer(self, logits: torch.Tensor, ids: IntArray, lengths: IntArray, rows: IntArray) -> torch.Tensor:
        """Return the logits of the steered policy, ``(n, vocab_size)``; see ``TextPolicy.steer``."""
        if self._recorded is None and not self._values.fitted:
            return logits
        log_probs = torch.log_softmax(logits, dim=-1)
        likeliest = log_probs.topk(min(self._candidates, log_probs.shape[1]), dim=-1)
        states = self._score_candidates(likeliest.indices, likeliest.values, ids, lengths, rows)
        if self._recorded is not None:
            self._recorded.append(states)
        if not self._values.fitted:
            return logits
        q = self._values.q(states)
        weights = torch.from_numpy((q[:, :-1] - q[:, -1:]) / self._base.kl_coef).to(log_probs)
        return log_probs.scatter_add(1, likeliest.indices, weights)

    def _score_candidates(
        self, tokens: torch.Tensor, log_probs: torch.Tensor, ids: IntArray, lengths: IntArray, rows: IntArray
    ) -> Choices:
        """Score the texts so far, alone and with each of ``tokens``, ``(n, candidates)``, appended."""
        prompts: list[Prompt] = []
        texts: list[tuple[int, ...]] = []
        for row, line, length, more in zip(rows.tolist(), ids, lengths.tolist(), tokens.tolist(), strict=True):
            state = tuple(line[:length].tolist())
            prompt = self.prompt(row, state)
            begun = state[len(prompt.ids) :]
            texts += [begun, *((*begun, token) for token in more)]
            prompts += [prompt] * (1 + len(more))
        found, ended = score_next(self._base, prompts, texts)
        scores, ends = found.reshape(len(rows), -1), ended.reshape(len(rows), -1)
        return Choices(
            written=np.array([len(text) for text in texts[:: 1 + tokens.shape[1]]]),
            scores=scores[:, 0],
            last=ids[np.arange(len(ids)), lengths - 1],
            tokens=tokens.cpu().numpy().astype(np.int32),
            log_probs=log_probs.float().cpu().numpy(),
            next_scores=scores[:, 1:].astype(np.float32),
            ended=ends[:, 1:],
        )
