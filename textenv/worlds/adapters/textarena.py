"""Games of TextArena, alone or against an opponent that stays the same: ``textarena:ID``."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from textenv.types import TextEnvError, in_one_line
from textenv.worlds._resolve import resolve
from textenv.worlds.adapters._randomness import OwnRandomness
from textenv.worlds.adapters._require import require

__all__ = ["TextArena"]

_MOVE = re.compile(r"\[[^\[\]\n]+\]")
_GAME = -1  # who speaks where the game does


class _Said(NamedTuple):
    """A message of a game: the number of the player that wrote it, what that one is called, and the text."""

    who: int
    role: str
    text: str


class TextArena:
    """A game. At its end it pays what TextArena does: for most games of two players 1, 0 or -1.

    After each turn the agent reads what it was told since its last one. A move that is none costs what the game says,
    most often a second try and then the game. TextArena draws from the random numbers that all of a process shares;
    here each world has its own.
    """

    def __init__(
        self,
        name: str,
        *,
        opponent: str | Sequence[str] | Callable[[str], str] | None = None,
        player: int = 0,
        **settings: Any,
    ) -> None:
        """Make the game.

        Args:
            name: Its id, such as ``"GuessTheNumber-v0"``. The wrappers of an id do with actions what they do; what they
                do with observations is left out: with ``context="transcript"`` the agent reads all of them anyway.
            opponent: Who plays the other side of a game of two: a function that makes a move of all that the player has
                been told, or its import path ``"package.module:function"``; a list of moves, drawn evenly; or
                ``"random"``, which draws evenly from the moves in brackets of the game's last message that has any, for
                games that list the moves there are, as TicTacToe-v0 does; elsewhere it soon makes a move that is none.
                None for a game of one.
            player: Which side the agent plays, 0 or 1.
            **settings: Keywords of ``textarena.make``.

        Raises:
            TextEnvError: TextArena is not installed or has no such game, the game is not for so many players, or an
                argument is not what is expected.
        """
        package = require("textarena", world=f"textarena:{name}", install="textenv[textarena]")
        self._opponent = None if opponent is None else _as_opponent(opponent)
        self._players = 1 if opponent is None else 2
        if player not in range(self._players):
            raise TextEnvError(f"player={player!r}: expected a number below that of the players, {self._players}.")
        self._player, self._told = player, list[_Said]()
        self._randomness = OwnRandomness()
        self._package, self._make = package, functools.partial(package.make, name, **settings)
        self._env: Any = None
        self._game: Any = None  # without its wrappers
        try:
            self._begin(0)
        except Exception as error:  # games check what they are given with assertions
            hint = " A game of two needs an opponent, such as 'random'." if self._opponent is None else ""
            raise TextEnvError(
                f"The world 'textarena:{name}' cannot be made for {self._players} player{'s' * (self._players > 1)} "
                f"({in_one_line(error)}).{hint}"
            ) from error

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin a game; if the opponent moves first, it has moved."""
        self._begin(seed)
        with self._randomness.lent():
            self._let_opponent_move(done=False)
            return self._news(), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Make a move, and have the opponent make its own until it is the agent's turn again."""
        with self._randomness.lent():
            done, _ = self._env.step(action)
            done = self._let_opponent_move(done)
            said = f"\n{self._news()}"
            if not done:
                return said, 0.0, False, False, {}
            rewards, infos = self._env.close()
        about = infos[self._player]
        return f"{said}{about.get('reason') or ''}\n", rewards[self._player], True, False, about

    def _begin(self, seed: int | None) -> None:
        """Begin a new game: some keep more than their settings over a reset, Kuhn poker its shuffled deck."""
        self._told = []
        with self._randomness.seeded(seed):
            self._env = self._game = self._make()
            while isinstance(self._game, self._package.Wrapper):
                self._game = self._game.env
            self._env.reset(num_players=self._players, seed=seed)

    def _let_opponent_move(self, done: bool) -> bool:
        """Have the opponent move while it is its turn; return whether the game is over."""
        while not done and self._game.state.current_player_id != self._player:
            assert self._opponent is not None
            self._told += self._messages(self._game.state.current_player_id)
            done, _ = self._env.step(self._opponent(self._told))
        return bool(done)

    def _messages(self, player: int) -> list[_Said]:
        """Take what a player has been told since it was last asked for, its own words left out."""
        state = self._game.state
        new, state.observations[player] = state.observations[player], []
        roles = state.role_mapping
        return [_Said(who, roles.get(who, f"Player {who}"), text) for who, text, _ in new if who != player]

    def _news(self) -> str:
        return _lines(self._messages(self._player))


def _lines(said: Sequence[_Said]) -> str:
    return "".join(f"[{role}] {text}\n" for _, role, text in said)


def _as_opponent(given: str | Sequence[str] | Callable[[str], str]) -> Callable[[Sequence[_Said]], str]:
    """Return a function of what the opponent has been told."""
    if given == "random":
        return _random_move
    if isinstance(given, Sequence) and not isinstance(given, str):
        moves = list(given)
        if not moves or not all(isinstance(move, str) for move in moves):
            raise TextEnvError(f"opponent={given!r}: expected a list of moves, each a text.")
        return lambda told: random.choice(moves)
    function = resolve("opponent", given)
    return lambda told: str(function(_lines(told)))


def _random_move(told: Sequence[_Said]) -> str:
    for who, _, text in reversed(told):
        if who == _GAME and (moves := _MOVE.findall(text)):
            return str(random.choice(moves))
    raise TextEnvError(
        "opponent='random': the game has named no moves in brackets; give a list of moves, or a function that moves."
    )
