"""The Markov decision process of writing text, batched: beginning episodes, appending tokens, paying for them.

Without a world an episode is one turn. With one, the world answers each turn that ends, in the same step: its tokens
are appended, or begin another text, and the next token is the agent's again.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenv.env.behavior import Behavior
from textenv.env.endings import Endings
from textenv.env.episodes import EpisodeBatch
from textenv.env.kl import AdaptiveKL, full_kl, kl_estimate
from textenv.env.potential import Shaping
from textenv.env.reference import NextTokens
from textenv.env.scoring import Scorer
from textenv.env.settings import TextEnvSettings
from textenv.env.settlement import Settlement, in_parts
from textenv.env.turns import TurnEncoder, context_of
from textenv.env.world_rows import Answer, WorldRows
from textenv.models.causal_lm import CausalLM
from textenv.types import Episode, IntArray, Prompt, StopReason, TextEnvError, Turn, TurnEnd

__all__ = ["TextProcess"]


class TextProcess:
    """Rows of texts that are written token by token.

    Attributes:
        episodes: The rows' episodes, while they are written.
        done: Rows whose episode is over, or that have none yet, shape ``(num_envs,)``.
        begun: Rows that have begun an episode; a reward that raises takes it from those it was to score.
        finished: Of each row, the episode that it has just finished, or None.
        kl: The weight of the KL penalty, which may adapt.
        behavior: Finds log pi of the actions.
        next_tokens: What the reference says of each row's next token.
        endings: Says why a text has ended.
        settlement: Scores episodes.
        worlds: What answers the rows' turns; None where nothing does.
        turns: Encodes what worlds say.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        settings: TextEnvSettings,
        reference: CausalLM,
        scorer: Scorer,
        potential: Scorer | None,
        width: int,
        prompt: Prompt,
        worlds: WorldRows | None,
    ) -> None:
        """Make rows without episodes.

        Args:
            num_envs: Number of rows.
            settings: Of the environment.
            reference: The reference model.
            scorer: Scores finished completions.
            potential: Scores unfinished ones, by which rewards are shaped; None where they are not.
            width: The most tokens of a text, prompt included.
            prompt: Stands in for the rows' prompts until they have one.
            worlds: What answers the rows' turns; None where nothing does.
        """
        self._num_envs, self._settings, self._reference = num_envs, settings, reference
        self.kl = AdaptiveKL(settings.kl_coef, settings.kl_target, settings.kl_horizon)
        self.endings = Endings(reference, stop=settings.stop, max_new_tokens=settings.max_new_tokens)
        self.settlement = Settlement(reference, scorer, self.endings, settings)
        self.behavior = Behavior(settings, num_envs, reference.vocab_size)
        self.next_tokens = NextTokens(reference, settings, num_envs)
        self._shaping = None if potential is None else Shaping(potential, self.settlement, settings)
        self.worlds = worlds
        self.turns = TurnEncoder(reference, chat=settings.chat)
        self.episodes = EpisodeBatch.empty(
            num_envs, width=width, time=settings.most_tokens(width), pad_id=reference.pad_id, prompt=prompt
        )
        self.done = np.ones(num_envs, dtype=bool)
        self.begun = np.zeros(num_envs, dtype=bool)
        self.finished: NDArray[np.object_] = np.full(num_envs, None, dtype=object)
        self._turn_sizes = np.zeros(num_envs, dtype=np.int64)  # tokens of each row's present turn
        self._before: list[Prompt] = [prompt] * num_envs  # what precedes each row's present turn
        self._writing: IntArray | None = None  # rows that go on; None where they have to be looked up again
        self._unscored: list[EpisodeBatch] | None = None  # those that ended while scoring waits, or None

    def clear(self) -> None:
        """Give up all episodes."""
        self.done[:], self.begun[:], self._writing = True, False, None

    def begin(self, rows: IntArray, prompts: Sequence[Prompt]) -> None:
        """Begin an episode in each of some rows."""
        self.episodes.begin(rows, prompts, kl_coef=self.kl.coef, pad_id=self._reference.pad_id)
        self.done[rows], self.begun[rows], self._writing = False, True, None
        self._turn_sizes[rows] = 0
        for row, prompt in zip(rows.tolist(), prompts, strict=True):
            self._before[row] = prompt
        self._reference.forget(rows)
        if self._shaping is not None:
            self.begun[rows] = False  # a potential that raises leaves rows that have not begun
            self._shaping.begin(self.episodes, rows)
            self.begun[rows] = True
        if self._settings.masks_actions:
            self.next_tokens.read(self.episodes, rows)

    def writing(self) -> IntArray:
        """Return the rows whose episode goes on.

        Raises:
            TextEnvError: A row has not begun one.
        """
        if self._writing is None:
            if not self.begun.all():
                raise TextEnvError("step before reset: call reset() first.")
            self._writing = np.flatnonzero(~self.done)
        return self._writing

    def advance(self, rows: IntArray, tokens: IntArray) -> tuple[NDArray[np.float64], IntArray]:
        """Append a token to each of some rows.

        Args:
            rows: Rows that are ``writing``.
            tokens: Actions of all rows, shape ``(num_envs,)``.

        Returns:
            What all rows are paid, shape ``(num_envs,)``; and the rows whose episode is over and in ``finished``.

        Raises:
            TextEnvError: Policy or reward are not what is expected.
        """
        episodes, settings = self.episodes, self._settings
        chosen = tokens[rows]
        at = episodes.sizes[rows]
        log_probs, distributions = self.behavior.log_probs(episodes, rows, tokens)
        episodes.log_probs[rows, at] = log_probs
        if settings.reads_each_step and self._unscored is None:
            ref_log_probs = self.next_tokens.log_prob_of(episodes, rows, chosen)
            episodes.ref_log_probs[rows, at] = ref_log_probs
            episodes.kl[rows, at] = self._kl(rows, log_probs, ref_log_probs, distributions)
        episodes.append(rows, chosen)
        self._turn_sizes[rows] += 1
        rewards = np.zeros(self._num_envs)
        if settings.kl_mode == "dense" and self._unscored is None:
            rewards[rows] = -episodes.kl_coefs[rows] * episodes.kl[rows, at]
        over = self._end(rows, chosen, rewards)
        if self._shaping is not None:
            self.begun[rows], self._writing = False, None  # as where a reward raises
            rewards[rows] += self._shaping.pay(episodes, rows, over, self._turn_sizes[rows] == 0)
            self.begun[rows] = True
        return rewards, self._settle(over, rewards)

    def _kl(
        self, rows: IntArray, log_probs: NDArray[Any], ref_log_probs: NDArray[Any], distributions: NDArray[Any] | None
    ) -> NDArray[np.float64]:
        """Return the KL of a token of each of some rows, in nats."""
        estimator = self._settings.kl_estimator
        if estimator != "full":
            return kl_estimate(log_probs, ref_log_probs, estimator)
        if distributions is None:  # all probability is on the action: the sum has one term
            return kl_estimate(log_probs, ref_log_probs, "k1")
        assert self.next_tokens.log_probs is not None
        return full_kl(distributions, self.next_tokens.log_probs[rows])

    def _end(self, rows: IntArray, tokens: IntArray, rewards: NDArray[np.float64]) -> IntArray:
        """End the turns of ``rows`` that are over, and have worlds answer; return the rows whose episode is over."""
        episodes = self.episodes
        sizes = self._turn_sizes[rows]
        if self.worlds is not None:  # a text without room has spent its budget
            full = episodes.lengths[rows] == episodes.ids.shape[1]
            sizes = np.where(full, self._settings.max_new_tokens, sizes)
        ends = self.endings.ends(tokens, sizes, lambda: [self._turn_text(row)[1] for row in rows.tolist()])
        ended = rows[list(ends)]
        if self.worlds is not None and len(ended):
            return self._answer(self.worlds, ended, list(ends.values()), rewards)
        for row, end in zip(ended.tolist(), ends.values(), strict=True):
            episodes.reasons[row] = end
        return ended

    def _turn_text(self, row: int) -> tuple[str, bool]:
        """Return the text of a row's present turn, and whether a stop string is in it."""
        episodes, size = self.episodes, int(self._turn_sizes[row])
        end = int(episodes.lengths[row])
        return self.endings.completion_text(self._before[row], episodes.ids[row, end - size : end].tolist())

    def _answer(
        self, worlds: WorldRows, rows: IntArray, ends: Sequence[TurnEnd], rewards: NDArray[np.float64]
    ) -> IntArray:
        """Have worlds answer turns that have ended, and begin the next turns; return the rows whose episode is over."""
        places, episodes = rows.tolist(), self.episodes
        texts = [self._turn_text(row)[0] for row in places]
        self.begun[rows], self._writing = False, None  # a world that raises leaves rows that neither go on nor are over
        answers = worlds.answer(places, texts, [len(episodes.turns[row]) + 1 for row in places])
        over = []
        for row, text, end, answer in zip(places, texts, ends, answers, strict=True):
            reason, ids = self._what_follows(row, answer)
            turn = Turn(text, int(self._turn_sizes[row]), end, answer.said, ids, answer.reward)
            episodes.turns[row] = (*episodes.turns[row], turn)
            if answer.columns:
                prompt = episodes.prompts[row]
                episodes.prompts[row] = dataclasses.replace(prompt, columns={**prompt.columns, **answer.columns})
            episodes.paid[row, episodes.sizes[row] - 1] = answer.reward
            episodes.reasons[row], episodes.truncated[row] = reason, answer.truncated and not answer.terminated
            rewards[row] += answer.reward
            if reason is None or episodes.truncated[row]:
                self._go_on(row, ids)
            if reason is not None:
                over.append(row)
        self.begun[rows] = True
        return np.array(over, dtype=np.int64)

    def _what_follows(self, row: int, answer: Answer) -> tuple[StopReason | None, tuple[int, ...]]:
        """Return why an episode is over after an answer, or None; and the tokens that the next turn begins with."""
        episodes, fresh = self.episodes, self._settings.context == "fresh"
        if answer.terminated:
            return "world", ()
        if fresh:
            ids = self.turns.first(answer.said, {}).ids
        else:
            last_id = int(episodes.ids[row, episodes.lengths[row] - 1])
            ids = self.turns.answer(episodes.prompts[row], answer.said, last_id)
        fits = (0 if fresh else int(episodes.lengths[row])) + len(ids) < episodes.ids.shape[1]
        if answer.truncated:
            return "world", ids if fits else ()
        if len(episodes.turns[row]) + 1 == self._settings.max_turns:
            return "turns", ()
        return (None, ids) if fits else ("context", ())

    def _go_on(self, row: int, ids: tuple[int, ...]) -> None:
        """Let the model read what a world has answered, at which the next turn begins."""
        if not ids and self.episodes.truncated[row]:
            return
        if self._settings.context == "fresh":
            self.episodes.begin_texts(np.array([row]), [ids], pad_id=self._reference.pad_id)
        else:
            self.episodes.extend(row, ids)
        self._turn_sizes[row] = 0
        text: list[int] = self.episodes.ids[row, : self.episodes.lengths[row]].tolist()
        self._before[row] = context_of(self._reference, text)

    def _settle(self, over: IntArray, rewards: NDArray[np.float64]) -> IntArray:
        """Score the episodes of rows that are over, and pay for them; return the rows that were scored."""
        if not len(over):
            return over
        ended = self.episodes.select(over)
        self._writing = None
        if self._unscored is not None:
            self._unscored.append(ended)
            self.done[over] = True
            return over[:0]
        self.begun[over] = False  # a reward that raises leaves rows that neither go on nor are over
        if not self._settings.reads_each_step:
            self.settlement.read(ended, at_once=self._num_envs)
        finished = self.settlement.score(ended)
        self.begun[over] = True
        totals = ended.kl.sum(axis=1)
        if self._settings.kl_mode == "lump":
            rewards[over] += -ended.kl_coefs * totals
        rewards[over] += [episode.score for episode in finished]
        self.done[over] = True
        self.kl.update(float(totals.mean()), len(over))
        for row, episode in zip(over.tolist(), finished, strict=True):
            self.finished[row] = episode
        return over

    @contextlib.contextmanager
    def scoring_later(self) -> Iterator[Callable[[], list[Episode]]]:
        """Keep the episodes that end inside, and score them when the function that the context gives is called."""
        self._unscored = []
        try:
            yield self._score_kept
        finally:
            self._unscored = None

    def _score_kept(self) -> list[Episode]:
        if not self._unscored:
            return []
        parts, self._unscored = self._unscored, []
        ended = EpisodeBatch.concatenate(parts)
        self.settlement.read(ended, at_once=self._num_envs)
        places = in_parts(np.arange(len(ended.prompts)), self._num_envs)
        finished = [episode for some in places for episode in self.settlement.score(ended.select(some))]
        totals = ended.kl.sum(axis=1)
        for part in np.split(totals, np.cumsum([len(part.prompts) for part in parts])[:-1]):  # as they ended
            self.kl.update(float(part.mean()), len(part))
        return finished
