"""Why a turn has ended: the one place that says so, for the process, the exact tree and the critics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from textenv.models.causal_lm import CausalLM
from textenv.types import IntArray, Prompt, TurnEnd

__all__ = ["Endings"]


class Endings:
    """Ends a turn at an end-of-sequence token, at a stop string, or when the token budget is spent.

    Attributes:
        stop: The stop strings.
        max_new_tokens: The token budget of a turn.
    """

    def __init__(self, model: CausalLM, *, stop: Sequence[str], max_new_tokens: int) -> None:
        """Take the end-of-sequence tokens from a model.

        Args:
            model: Decodes completions, and says which tokens end a turn.
            stop: Strings that end a turn when they appear in it.
            max_new_tokens: Token budget of a turn.
        """
        self.stop, self.max_new_tokens = tuple(stop), max_new_tokens
        self._model = model
        self._is_eos = np.zeros(model.vocab_size, dtype=bool)
        self._is_eos[list(model.eos_ids)] = True

    def completion_text(self, prompt: Prompt, ids: Sequence[int]) -> tuple[str, bool]:
        """Return what a completion's tokens add to its prompt, cut before the first stop string; and if there is one.

        Args:
            prompt: What the tokens follow.
            ids: Token ids of the completion.
        """
        text = self._model.completion_text(prompt, ids)
        found = [place for place in (text.find(string) for string in self.stop) if place >= 0]
        return text[: min(found, default=None)], bool(found)

    def ends(
        self, tokens: IntArray, sizes: IntArray, has_stop: Callable[[], Sequence[bool] | NDArray[np.bool_]]
    ) -> dict[int, TurnEnd]:
        """Return why turns have ended, by their places; those that go on are left out.

        Where several reasons hold, an end-of-sequence token comes before a stop string, and that before the budget.

        Args:
            tokens: Last tokens of ``n`` completions, shape ``(n,)``; those of empty completions may be any.
            sizes: Number of tokens of each completion, shape ``(n,)``.
            has_stop: Says of each completion whether a stop string is in it, ``n`` booleans, as ``completion_text``
                does. It is called only if there are stop strings, since it has to decode the texts.
        """
        eos = self._is_eos[tokens] & (sizes > 0)
        ended = eos | (sizes == self.max_new_tokens)
        stopped = np.zeros(len(tokens), dtype=bool)
        if self.stop:
            stopped[:] = has_stop()
            ended |= stopped
        return {
            place: "eos" if eos[place] else "stop" if stopped[place] else "length"
            for place in ended.nonzero()[0].tolist()
        }
