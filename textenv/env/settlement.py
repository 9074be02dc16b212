"""Scoring episodes that have ended: the reference reads them, the reward scores them, every token is paid."""

from __future__ import annotations

import numpy as np

from textenv.env.endings import Endings
from textenv.env.episodes import EpisodeBatch
from textenv.env.kl import kl_estimate
from textenv.env.scoring import Scorer
from textenv.env.settings import TextEnvSettings
from textenv.models.causal_lm import CausalLM
from textenv.types import Episode, IntArray, StopReason

__all__ = ["Settlement", "in_parts"]


class Settlement:
    """Turns rows whose texts have ended into scored episodes."""

    def __init__(self, reference: CausalLM, scorer: Scorer, endings: Endings, settings: TextEnvSettings) -> None:
        """Take the reference that reads, the scorer, the decoder of completions, and the settings of the KL."""
        self._reference, self._scorer, self._endings, self._settings = reference, scorer, endings, settings

    def read(self, ended: EpisodeBatch, *, at_once: int) -> None:
        """Have the reference read whole episodes, and fill in ``ref_log_probs`` and ``kl``.

        Args:
            ended: Episodes whose tokens the reference has not read one by one.
            at_once: Episodes in a forward.
        """
        written = ended.written
        ended.ref_log_probs = ended.log_probs.copy()
        by_length = np.argsort(ended.lengths, kind="stable")[::-1]  # so that little of a forward is padding
        for part in in_parts(by_length, at_once):
            lengths, starts = ended.lengths[part], ended.starts[part]
            width = int(lengths.max())
            log_probs = self._reference.token_log_probs(
                ended.ids[part, :width], lengths, self._settings.temperature, starts=starts
            )
            places = np.minimum(starts[:, None] - 1 + np.arange(written.shape[1]), width - 2)
            found = np.take_along_axis(log_probs, places, axis=1)
            ended.ref_log_probs[part] = np.where(written[part], found, ended.ref_log_probs[part])
        kl = kl_estimate(ended.log_probs, ended.ref_log_probs, self._settings.kl_estimator)
        ended.kl = np.where(written, kl, 0.0)

    def score(self, ended: EpisodeBatch) -> list[Episode]:
        """Return episodes that the reference has read, scored.

        Raises:
            TextEnvError: The reward fails, as ``Scorer.score`` says.
        """
        ids = [ended.completion_ids(row) for row in range(len(ended.prompts))]
        completions = [self._endings.completion_text(*pair)[0] for pair in zip(ended.prompts, ids, strict=True)]
        reasons: list[StopReason] = [reason for reason in ended.reasons if reason is not None]
        scores = self._scorer.score(ended.prompts, completions, ids, reasons).tolist()
        return [
            self._episode(ended, row, *columns)
            for row, columns in enumerate(zip(ids, completions, scores, reasons, strict=True))
        ]

    def unfinished(self, episodes: EpisodeBatch, row: int) -> Episode:
        """Return the episode of a row so far, not scored; its KL is known where the reference reads every token."""
        ids = episodes.completion_ids(row)
        text, _ = self._endings.completion_text(episodes.prompts[row], ids)
        return self._episode(episodes, row, ids, text, 0.0, "length")

    def _episode(  # noqa: PLR0917
        self, batch: EpisodeBatch, row: int, ids: list[int], completion: str, score: float, reason: StopReason
    ) -> Episode:
        prompt, size = batch.prompts[row], len(ids)
        rewards = -batch.kl_coefs[row] * batch.kl[row, :size]
        rewards[size - 1 :] += score
        return Episode(
            start=prompt,
            completion=completion,
            completion_ids=tuple(ids),
            completion_tokens=self._reference.token_texts(ids, prompt),
            log_probs=tuple(batch.log_probs[row, :size].tolist()),
            ref_log_probs=tuple(batch.ref_log_probs[row, :size].tolist()),
            kl=tuple(batch.kl[row, :size].tolist()),
            token_rewards=tuple(rewards.tolist()),
            score=score,
            stop_reason=reason,
        )


def in_parts(places: IntArray, size: int) -> list[IntArray]:
    """Return ``places`` in parts of ``size``, the last of which may be smaller."""
    return np.split(places, range(size, len(places), size))
