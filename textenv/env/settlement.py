"""Scoring episodes that have ended: the reference reads them, the reward scores them, every token is paid."""

from __future__ import annotations

import numpy as np

from textenv.env.endings import Endings
from textenv.env.episodes import EpisodeBatch
from textenv.env.kl import kl_estimate
from textenv.env.scoring import Score, Scorer
from textenv.env.settings import TextEnvSettings
from textenv.env.turns import context_of, joined
from textenv.models.causal_lm import CausalLM
from textenv.types import Episode, IntArray, Turn

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
        ids, lengths, first = ended.all_texts()
        rows, times = written.nonzero()
        texts = first[rows] + ended.text_numbers()[written]
        places = ended.places[written]
        asked = np.zeros(ids.shape, dtype=bool)
        asked[texts, places] = True
        found = np.zeros(len(rows))
        by_length = np.argsort(lengths, kind="stable")[::-1]  # so that little of a forward is padding
        for part in in_parts(by_length, at_once):
            width = int(lengths[part].max())
            log_probs = self._reference.token_log_probs(
                ids[part, :width], lengths[part], self._settings.temperature, asked=asked[part, :width]
            )
            number = np.full(len(ids), -1)
            number[part] = np.arange(len(part))
            mine = np.flatnonzero(number[texts] >= 0)
            found[mine] = log_probs[number[texts[mine]], places[mine] - 1]
        ended.ref_log_probs[rows, times] = found
        kl = kl_estimate(ended.log_probs, ended.ref_log_probs, self._settings.kl_estimator)
        ended.kl = np.where(written, kl, 0.0)

    def score(self, ended: EpisodeBatch) -> list[Episode]:
        """Return episodes that the reference has read, scored.

        Raises:
            TextEnvError: The reward fails, as ``Scorer.score`` says.
        """
        ids = [ended.completion_ids(row) for row in range(len(ended.prompts))]
        completions = [self._completion(ended, row, tokens) for row, tokens in enumerate(ids)]
        scored = np.flatnonzero(~ended.truncated).tolist()
        turns = [ended.turns[row] for row in scored]
        ends = [each[-1].end if each else ended.reasons[row] for row, each in zip(scored, turns, strict=True)]
        scores = [self._scorer.no_score] * len(ids)
        found = self._scorer.scores(
            [ended.prompts[row] for row in scored],
            [completions[row] for row in scored],
            [ids[row] for row in scored],
            unfinished=[end == "length" for end in ends],
            turns=turns,
        )
        for row, score in zip(scored, found, strict=True):
            scores[row] = score
        return [
            self._episode(ended, row, tokens, completion, score)
            for row, (tokens, completion, score) in enumerate(zip(ids, completions, scores, strict=True))
        ]

    def unfinished(self, episodes: EpisodeBatch, row: int) -> Episode:
        """Return the episode of a row so far, not scored; its KL is known where the reference reads every token."""
        ids = episodes.completion_ids(row)
        return self._episode(episodes, row, ids, self._completion(episodes, row, ids), self._scorer.no_score)

    def completion(self, batch: EpisodeBatch, row: int) -> str:
        """Return the text of a row's episode after its prompt, as the reward is given it."""
        return self._completion(batch, row, batch.completion_ids(row))

    def turns_so_far(self, batch: EpisodeBatch, row: int) -> tuple[Turn, ...]:
        """Return the turns of a row's episode in which a world answers, the one that goes on as if it ended here."""
        turns = batch.turns[row]
        size = int(batch.sizes[row]) - sum(turn.tokens for turn in turns)
        if not size:
            return turns
        before, written = batch.spans(row)[-1]
        text, _ = self._endings.completion_text(context_of(self._reference, before), written)
        return (*turns, Turn(text, size, "length", "", (), 0.0))

    def _completion(self, batch: EpisodeBatch, row: int, ids: list[int]) -> str:
        """Return the text of a row's episode after its prompt, cut before the stop string that has ended it.

        A world's answers are in it. Where each turn begins with the world's answer alone, it is turns and answers one
        after the other.
        """
        prompt, turns = batch.prompts[row], batch.turns[row]
        if not turns:
            return self._endings.completion_text(prompt, ids)[0]
        if batch.earlier[row]:
            return "".join(f"{turn.text}{joined(turn.answer)}" for turn in turns[:-1]) + turns[-1].text
        before, written = batch.spans(row)[len(turns) - 1]
        whole = self._reference.completion_text(prompt, [*before, *written][len(prompt.ids) :])
        last = self._reference.completion_text(context_of(self._reference, before), written)
        return whole[: len(whole) - (len(last) - len(turns[-1].text))]

    def _token_texts(self, batch: EpisodeBatch, row: int, ids: list[int]) -> tuple[str, ...]:
        """Return the text of each token of the agent, as what it adds to those before it."""
        if not batch.turns[row]:
            return self._reference.token_texts(ids, batch.prompts[row])
        spans = ((context_of(self._reference, span.before), span.written) for span in batch.spans(row))
        return tuple(text for before, written in spans for text in self._reference.token_texts(written, before))

    def _episode(self, batch: EpisodeBatch, row: int, ids: list[int], completion: str, score: Score) -> Episode:
        prompt, size = batch.prompts[row], len(ids)
        rewards = batch.paid[row, :size] + batch.shaping[row, :size] - batch.kl_coefs[row] * batch.kl[row, :size]
        if score.tokens:
            rewards += score.tokens
        else:
            rewards[size - 1 :] += score.total
        return Episode(
            start=prompt,
            completion=completion,
            completion_ids=tuple(ids),
            completion_tokens=self._token_texts(batch, row, ids),
            log_probs=tuple(batch.log_probs[row, :size].tolist()),
            ref_log_probs=tuple(batch.ref_log_probs[row, :size].tolist()),
            kl=tuple(batch.kl[row, :size].tolist()),
            token_rewards=tuple(rewards.tolist()),
            score=score.total,
            stop_reason=batch.reasons[row] or "length",
            turns=batch.turns[row],
            truncated=bool(batch.truncated[row]),
            token_scores=score.tokens,
            scores=score.parts,
            logged=score.logged,
            metrics=score.metrics,
            shaping=() if self._settings.potential is None else tuple(batch.shaping[row, :size].tolist()),
        )


def in_parts(places: IntArray, size: int) -> list[IntArray]:
    """Return ``places`` in parts of ``size``, the last of which may be smaller."""
    return np.split(places, range(size, len(places), size))
