"""Questions of reasoning-gym, whose answers can be checked: ``reasoning_gym:NAME``."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from textenv.types import TextEnvError, in_one_line
from textenv.worlds.adapters._randomness import OwnRandomness
from textenv.worlds.adapters._require import require

__all__ = ["ReasoningGym"]


class ReasoningGym:
    """Asks one of a data set's questions, and pays for the answer what the data set's ``score_answer`` says.

    An episode is one turn. ``info`` holds the ``entry``: question, answer and metadata.
    """

    def __init__(self, name: str, *, tag: str | None = None, seed: int = 0, **config: Any) -> None:
        """Make the data set.

        Args:
            name: Its name, such as ``"chain_sum"``.
            tag: The answer is what stands in the last ``<tag>...</tag>`` of what the agent writes; None for all of it.
                White space around it does not count.
            seed: Of the data set, which makes its questions of the numbers ``seed`` to ``seed + size - 1``. To evaluate
                with other questions, take a seed that is ``size`` away or more.
            **config: Fields of the data set's config. ``size`` is the number of questions, 500 by default; the seed of
                an episode draws one of them.

        Raises:
            TextEnvError: reasoning-gym is not installed, has no such data set, or refuses the config.
        """
        package = require("reasoning_gym", world=f"reasoning_gym:{name}", install="textenv[reasoning-gym]")
        self._tag = None if tag is None else re.compile(rf"<{re.escape(tag)}>(.*?)</{re.escape(tag)}>", re.DOTALL)
        try:
            self._dataset = package.create_dataset(name, seed=seed, **config)
        except Exception as error:  # a config checks itself with assertions
            raise TextEnvError(
                f"The world 'reasoning_gym:{name}' cannot be made with { ({'seed': seed} | config)!r}: "
                f"{in_one_line(error)}"
            ) from error
        self._randomness = OwnRandomness()  # some data sets draw from the numbers that all of a process shares
        self._entry: dict[str, Any] = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Ask a question."""
        place = int(np.random.default_rng(seed).integers(len(self._dataset)))
        with self._randomness.seeded(seed):
            self._entry = self._dataset[place]
        return self._entry["question"], {"entry": self._entry}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Score an answer."""
        answer: str | None = action
        if self._tag is not None:
            answer = found[-1] if (found := self._tag.findall(action)) else None
        with self._randomness.lent():
            score = self._dataset.score_answer(answer=None if answer is None else answer.strip(), entry=self._entry)
        return "", float(score), True, False, {"entry": self._entry}
