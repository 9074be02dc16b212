"""Tic-tac-toe against a player who moves at random."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from textenv.validation import validate

__all__ = ["TicTacToe"]

_SQUARE = re.compile(r"[1-9]")
_LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))


@dataclass
class TicTacToe:
    """The agent is X and moves first; O takes a free square at random. Squares are numbered 1 to 9, row by row.

    A win pays 1, a draw 0.5, a loss 0, and so does a move that is none, which ends the game. Who always takes the move
    of the largest expectation earns 383/384 = 0.9974 on average, and 1819/1890 = 0.9624 if the world moves first
    (``tests/worlds/test_tic_tac_toe.py`` computes both).

    Attributes:
        first: Who moves first.
    """

    first: Literal["agent", "world"] = "agent"

    _squares: list[str] = field(default_factory=lambda: [" "] * 9, init=False, repr=False)
    _rng: np.random.Generator = field(default_factory=np.random.default_rng, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the settings."""
        validate(self)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin with an empty board."""
        self._squares, self._rng = [" "] * 9, np.random.default_rng(seed)
        if self.first == "world":
            self._answer()
        return f"You are X. Name a square, 1 to 9.\n{self._board()}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take the first square that a text names, and answer with another."""
        found = _SQUARE.search(action)
        square = int(found[0]) - 1 if found is not None else -1
        if square < 0 or self._squares[square] != " ":
            return "\nThat is no move. You lose.\n", 0.0, True, False, {}
        self._squares[square] = "X"
        for player, paid, said in (("X", 1.0, "You win."), ("O", 0.0, "You lose.")):
            if player == "O":
                self._answer()
            if any(all(self._squares[place] == player for place in line) for line in _LINES):
                return f"\n{self._board()}{said}\n", paid, True, False, {}
            if " " not in self._squares:
                return f"\n{self._board()}A draw.\n", 0.5, True, False, {}
        return f"\n{self._board()}", 0.0, False, False, {}

    def _answer(self) -> None:
        free = [square for square, mark in enumerate(self._squares) if mark == " "]
        self._squares[free[int(self._rng.integers(len(free)))]] = "O"

    def _board(self) -> str:
        marks = [str(number) if mark == " " else mark for number, mark in enumerate(self._squares, start=1)]
        return "".join(" ".join(marks[begin : begin + 3]) + "\n" for begin in (0, 3, 6))
