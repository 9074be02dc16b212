"""Shaping by a potential (Ng, Harada and Russell 1999, "Policy invariance under reward transformations", theorem 1).

A reward ``Phi`` of unfinished texts, the potential, tells an agent on its way what it will hardly learn from a score at
the end. Each token of the agent, from the state ``s`` to ``s'``, is paid

    F(s, s') = gamma * Phi(s') - Phi(s),    Phi = 0 where the episode has terminated,

on top of everything else. From any state on, the discounted sum of these is ``-Phi(s)`` whatever the agent writes: all
values move by it, ``V'(s) = V(s) - Phi(s)``, no difference between actions does, and the optimal policy, of any weight
of the KL, is the same. What an agent gains is that it need not learn ``Phi`` itself; a potential that is near the
optimal value leaves the least to learn. Agents that compare whole completions of one prompt gain nothing, and lose
nothing: all returns are lower by the same ``Phi`` of the prompt.

``Phi(s)`` is what the reward would score if the episode ended there: text and turns that the agent has written, with
the answers between them. It is asked at the beginning, and then every ``potential_every`` tokens of the agent or at the
end of each turn; in between it stays what it was when it was asked last, which is a function of the state too, as the
state holds all that was written. That also keeps the optimum where it is for a potential that changes with time, such
as one that is normalized (Devlin and Kudenko 2012, "Dynamic potential-based reward shaping").

``gamma`` is ``potential_discount``, which has to be the discount of the agent's returns, and between turns
``turn_discount`` times that. Where a world truncates an episode, agents bootstrap from the last state, and ``Phi(s')``
is paid with the discount of a token inside a turn, as ``textenv.rollouts.rollout.Rollout.discounts`` has it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from textenv.env.episodes import EpisodeBatch
from textenv.env.scoring import Scorer
from textenv.env.settings import TextEnvSettings
from textenv.env.settlement import Settlement
from textenv.types import IntArray, Prompt, TextEnvError

__all__ = ["Shaping", "make_potential"]


def make_potential(settings: TextEnvSettings, prompts: Sequence[Prompt], device: str) -> Scorer | None:
    """Return what scores unfinished texts; None where the settings name nothing.

    Args:
        settings: Of the environment.
        prompts: Of the environment.
        device: Where a model runs, unless the settings say otherwise.

    Raises:
        TextEnvError: They name no reward, or one that cannot be called with the prompts' columns.
    """
    if settings.potential is None:
        return None
    with _named():
        found = Scorer(settings.potential, device=device)
        found.check_columns(prompts, partial=settings.world is not None)
    return found


class Shaping:
    """Pays the tokens of episodes by the potential of the texts before and after them."""

    def __init__(self, potential: Scorer, settlement: Settlement, settings: TextEnvSettings) -> None:
        """Take what scores unfinished texts, what makes texts of episodes, and the settings."""
        self._potential, self._settlement = potential, settlement
        every = settings.potential_every
        self._every = None if every == "turn" else int(every)  # None for the ends of turns
        self._discount = settings.potential_discount
        self._turn_discount, self._in_turns = settings.turn_discount, settings.world is not None

    def begin(self, episodes: EpisodeBatch, rows: IntArray) -> None:
        """Ask for the potential of episodes that begin in some rows.

        Raises:
            TextEnvError: The potential fails, as ``Scorer.score`` says.
        """
        episodes.potentials[rows] = self._of(episodes, rows)

    def pay(
        self, episodes: EpisodeBatch, rows: IntArray, over: IntArray, begins: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Pay for the token that each of some rows has just written, and write it down in ``episodes.shaping``.

        Args:
            episodes: All rows.
            rows: Those that have written, ``n`` of them.
            over: Those of them whose episode is over.
            begins: Whether another turn of each begins if its episode is not over, shape ``(n,)``.

        Returns:
            What each is paid, shape ``(n,)``.

        Raises:
            TextEnvError: The potential fails, as ``Scorer.score`` says.
        """
        ended, sizes, kept = np.isin(rows, over), episodes.sizes[rows], episodes.potentials
        cut = ended & episodes.truncated[rows]
        begins = begins & ~ended
        reached = begins | cut if self._every is None else sizes % self._every == 0
        before = kept[rows]
        kept[rows[ended & ~cut]] = 0.0
        asked = rows[reached & (cut | ~ended)]
        kept[asked] = self._of(episodes, asked)
        paid: NDArray[np.float64] = self._discount * np.where(begins, self._turn_discount, 1.0) * kept[rows] - before
        episodes.shaping[rows, sizes - 1] = paid
        return paid

    def _of(self, episodes: EpisodeBatch, rows: IntArray) -> NDArray[np.float64]:
        """Return the potential of the texts in some rows, shape ``(rows,)``."""
        if not len(rows):
            return np.zeros(0)
        some = episodes.select(rows)
        places = range(len(rows))
        if self._in_turns:
            some.turns = [self._settlement.turns_so_far(some, row) for row in places]
        with _named():
            return self._potential.score(
                some.prompts,
                [self._settlement.completion(some, row) for row in places],
                [some.completion_ids(row) for row in places],
                unfinished=[False] * len(rows),
                turns=some.turns,
            )


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Say of an error that the reward which it names is the potential."""
    try:
        yield
    except TextEnvError as error:
        raise TextEnvError(f"potential: {error}") from error
