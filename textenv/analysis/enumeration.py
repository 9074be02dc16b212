"""All texts of a text environment, enumerated: the states of its tree, for ``textenv.analysis.exact``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from textenv.env.turns import TurnEncoder, context_of
from textenv.env.vector import TextVectorEnv
from textenv.types import EnumerableWorld, IntArray, Prompt, TextEnvError, Turn, TurnEnd

__all__ = ["LogProbs", "States", "enumerate_states", "first_prompts"]

LogProbs: TypeAlias = Callable[[IntArray], NDArray[Any]]
"""From token ids ``(n, length)``, all that the model has read, to ``log pi(.|s)`` in nats, ``(n, vocab_size)``."""


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """The states of one prompt whose texts are of the same length.

    Without a world each follows from one state and one token; with one, a token that ends a turn leads to a state for
    each answer.

    Attributes:
        ids: Token ids of what the model has read, shape ``(states, length)``.
        ref_log_probs: ``log pi_ref(.|s)`` in nats, shape ``(states, V)``.
        ended: Whether the token ends the episode, whatever the world answers, shape ``(states, V)``.
        scores: What is paid with it, in expectation over the answers, shape ``(states, V)``.
        parents: Of each state, which ``States`` it follows from, and its place in their ``ended.ravel()``, shape
            ``(states, 2)``; -1 for a first one.
        chances: Probability that it follows from that state and token, shape ``(states,)``.
    """

    ids: IntArray
    ref_log_probs: NDArray[np.float64]
    ended: NDArray[np.bool_]
    scores: NDArray[np.float64]
    parents: IntArray
    chances: NDArray[np.float64]


def first_prompts(base: TextVectorEnv) -> list[tuple[float, Prompt]]:
    """Return what episodes may begin with, and the probability of each.

    Raises:
        TextEnvError: A world answers that cannot say what it may say.
    """
    if base.worlds is None:
        return [(1 / len(base.prompts), prompt) for prompt in base.prompts]
    world = base.worlds.worlds[0]
    if not isinstance(world, EnumerableWorld) or base.prompts or base.settings.context != "transcript":
        raise TextEnvError(
            f"What the world {base.worlds.name} may answer is not known: expected one with 'beginnings' and 'outcomes' "
            "(textenv.types.EnumerableWorld), without prompts, and context='transcript'."
        )
    encoder = TurnEncoder(base.reference, chat=base.settings.chat)
    return [(chance, encoder.first(said, {})) for chance, said in world.beginnings()]


def enumerate_states(base: TextVectorEnv, prompt: Prompt, reference: LogProbs) -> tuple[States, ...]:
    """Return the states of all texts that begin with a prompt, those of shorter texts first.

    Args:
        base: The environment.
        prompt: One of ``first_prompts``.
        reference: log pi of the reference.

    Raises:
        TextEnvError: The reference gives a token no probability.
    """
    return _Enumeration(base, prompt).run(reference)


@dataclass(frozen=True, slots=True, eq=False)
class _Text:
    """A text in which the agent writes.

    Attributes:
        ids: Token ids of all of it.
        begin: Where the present turn begins.
        turns: The turns before.
        parent: As a row of ``States.parents``.
        chance: As in ``States.chances``.
    """

    ids: tuple[int, ...]
    begin: int
    turns: tuple[Turn, ...]
    parent: tuple[int, int]
    chance: float


@dataclass(slots=True, eq=False)
class _Ended:
    """Episodes that have ended, to be scored together.

    Attributes:
        places: Which token of a level each ended with.
        chances: Its probability, given that token.
        completions: What the reward is given of each.
        ids: The agent's token ids of each.
        ends: Why the last turn of each has ended.
        turns: The turns of each, where a world answers.
    """

    places: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    completions: list[str] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    ends: list[TurnEnd] = field(default_factory=list)
    turns: list[tuple[Turn, ...]] = field(default_factory=list)


class _Enumeration:
    """Follows every token and every answer from a prompt."""

    def __init__(self, base: TextVectorEnv, prompt: Prompt) -> None:
        self._base, self._prompt, self._model = base, prompt, base.reference
        self._encoder = TurnEncoder(base.reference, chat=base.settings.chat)
        world = None if base.worlds is None else base.worlds.worlds[0]
        self._world = world if isinstance(world, EnumerableWorld) else None
        self._texts: dict[int, list[_Text]] = {}  # by their length

    def run(self, reference: LogProbs) -> tuple[States, ...]:
        self._add(_Text(self._prompt.ids, len(self._prompt.ids), (), (-1, -1), 1.0))
        found: list[States] = []
        while self._texts:  # token budgets end every text
            texts = self._texts.pop(min(self._texts))
            ids = np.array([text.ids for text in texts], dtype=np.int64)
            ref = np.asarray(reference(ids), dtype=np.float64)
            if not np.isfinite(ref).all():
                raise TextEnvError("The reference gives a token no probability, or its logits are not finite.")
            ended, scores = self._extend(texts, len(found))
            parents = np.array([text.parent for text in texts], dtype=np.int64)
            found.append(States(ids, ref, ended, scores, parents, np.array([text.chance for text in texts])))
        return tuple(found)

    def _add(self, text: _Text) -> None:
        self._texts.setdefault(len(text.ids), []).append(text)

    def _extend(self, texts: Sequence[_Text], number: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Append every token to the texts of a level; return which end the episode, and what is paid with each."""
        base, vocab = self._base, self._model.vocab_size
        longer = [(text, (*text.ids, token)) for text in texts for token in range(vocab)]
        sizes = np.array([len(ids) - text.begin for text, ids in longer])
        if self._world is not None:  # as in the environment, a text without room has spent its budget
            sizes[[len(ids) == base.width for _, ids in longer]] = base.settings.max_new_tokens
        tokens = np.tile(np.arange(vocab), len(texts))
        ends = base.endings.ends(tokens, sizes, lambda: [self._turn_text(*pair)[1] for pair in longer])
        ended, paid = np.zeros(len(longer), dtype=bool), np.zeros(len(longer))
        over = _Ended()
        for place, (text, ids) in enumerate(longer):
            if place not in ends:
                self._add(_Text(ids, text.begin, text.turns, (number, place), 1.0))
            elif self._world is None:
                ended[place] = True
                self._end(over, place, 1.0, ids, ends[place], ())
            else:
                going, paid[place] = self._answer(self._world, over, text, ids, (number, place), ends[place])
                ended[place] = not going
        paid += self._scores(over, len(longer))
        return ended.reshape(-1, vocab), paid.reshape(-1, vocab)

    def _turn_text(self, text: _Text, ids: tuple[int, ...]) -> tuple[str, bool]:
        before = self._prompt if self._world is None else context_of(self._model, text.ids[: text.begin])
        return self._base.endings.completion_text(before, ids[text.begin :])

    def _answer(  # noqa: PLR0917
        self,
        world: EnumerableWorld,
        over: _Ended,
        text: _Text,
        ids: tuple[int, ...],
        parent: tuple[int, int],
        end: TurnEnd,
    ) -> tuple[bool, float]:
        """Follow every answer to a turn; return whether an episode goes on, and what the world pays on average."""
        settings, going, paid = self._base.settings, False, 0.0
        said, _ = self._turn_text(text, ids)
        history = [self._prompt.text, *(part for turn in text.turns for part in (turn.text, str(turn.answer))), said]
        for answer in world.outcomes(history):
            paid += answer.chance * answer.reward
            following = self._encoder.answer(self._prompt, answer.said, ids[-1])
            turn = Turn(said, len(ids) - text.begin, end, answer.said, following, answer.reward)
            turns, longer = (*text.turns, turn), (*ids, *following)
            if answer.terminated or len(turns) == settings.max_turns or len(longer) >= self._base.width:
                self._end(over, parent[1], answer.chance, ids, end, turns)
            else:
                going = True
                self._add(_Text(longer, len(longer), turns, parent, answer.chance))
        return going, paid

    def _end(  # noqa: PLR0917
        self, over: _Ended, place: int, chance: float, ids: tuple[int, ...], end: TurnEnd, turns: tuple[Turn, ...]
    ) -> None:
        begin = len(self._prompt.ids)
        over.places.append(place)
        over.chances.append(chance)
        over.completions.append(self._base.endings.completion_text(self._prompt, ids[begin:])[0])
        written: list[int] = []
        for turn in turns:
            written += ids[begin : begin + turn.tokens]
            begin += turn.tokens + len(turn.answer_ids)
        over.ids.append(written if turns else list(ids[begin:]))
        over.ends.append(end)
        over.turns.append(turns)

    def _scores(self, over: _Ended, count: int) -> NDArray[np.float64]:
        """Return what the reward pays with each of ``count`` tokens, on average over the answers."""
        scores = self._base.scorer.score(
            [self._prompt] * len(over.places),
            over.completions,
            over.ids,
            unfinished=[end == "length" for end in over.ends],
            turns=over.turns,
        )
        paid = np.zeros(count)
        np.add.at(paid, over.places, scores * over.chances)
        return paid
