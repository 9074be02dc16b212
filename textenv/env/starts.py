"""What episodes begin with: a prompt of the environment, or what a world says first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from textenv.env.prompt_set import PromptSet
from textenv.env.prompts import movie_openings
from textenv.env.settings import TextEnvSettings
from textenv.env.turns import TurnEncoder
from textenv.env.world_rows import WorldRows
from textenv.models.causal_lm import CausalLM
from textenv.types import Prompt, TextEnvError

__all__ = ["PromptStarts", "Starts", "WorldStarts", "make_starts", "room"]

_SEEDS = 2**31 - 1
_DEFAULT_ROOM = 1024


class _Start(NamedTuple):
    """What a reset was told about a row.

    Attributes:
        prompt: The prompt; None to draw one, if there are prompts.
        seed: Of its world; None to draw one.
    """

    prompt: Prompt | None
    seed: int | None


class PromptStarts:
    """Begins episodes with prompts, drawn evenly unless they are given.

    Attributes:
        prompts: Those that are drawn from.
        max_prompt_tokens: The most tokens of a prompt.
    """

    def __init__(self, prompts: PromptSet) -> None:
        """Take the prompts."""
        self._set, self.prompts, self.max_prompt_tokens = prompts, prompts.prompts, prompts.max_tokens

    @property
    def stand_in(self) -> Prompt:
        """A prompt for rows that have begun no episode."""
        return self.prompts[0]

    def chosen(self, options: dict[str, Any], n: int) -> list[_Start] | None:
        """Take what the options of a reset say of ``n`` rows out of them; None where they say nothing.

        Raises:
            TextEnvError: They are not what is expected.
        """
        prompts = self._set.of_options(options, n)
        return None if prompts is None else [_Start(prompt, None) for prompt in prompts]

    def begin(
        self, rows: Sequence[int], chosen: Sequence[_Start] | None, generator: Callable[[int], np.random.Generator]
    ) -> list[Prompt]:
        """Return the prompts of episodes that begin.

        Args:
            rows: The rows that begin one.
            chosen: What a reset was told about all rows, or None.
            generator: Returns the random numbers of a row.
        """
        given = [None if chosen is None else chosen[row].prompt for row in rows]
        return [
            self.prompts[int(generator(row).integers(len(self.prompts)))] if prompt is None else prompt
            for row, prompt in zip(rows, given, strict=True)
        ]

    def contains(self, ids: tuple[int, ...]) -> bool:
        """Tell whether one of the prompts has these token ids."""
        return self._set.contains(ids)

    def find(self, ids: tuple[int, ...]) -> Prompt:
        """Return the prompt of some token ids; see ``PromptSet.find``."""
        return self._set.find(ids)


class WorldStarts:
    """Begins episodes with what worlds say first.

    Attributes:
        prompts: Those that worlds are given, drawn evenly; empty where they begin by themselves.
        max_prompt_tokens: The most tokens of what a world says first.
        stand_in: A prompt for rows that have begun no episode.
    """

    def __init__(
        self, worlds: WorldRows, encoder: TurnEncoder, model: CausalLM, prompts: PromptSet | None, max_tokens: int
    ) -> None:
        """Take the worlds of the rows.

        Args:
            worlds: One a row.
            encoder: Encodes what they say.
            model: Decodes.
            prompts: What worlds are given; None where they begin by themselves.
            max_tokens: Room for what they say first.
        """
        self._worlds, self._encoder, self._model, self._set = worlds, encoder, model, prompts
        self.prompts: list[Prompt] = [] if prompts is None else prompts.prompts
        self.max_prompt_tokens = max_tokens
        self.stand_in = Prompt("", model.encode(""))

    def chosen(self, options: dict[str, Any], n: int) -> list[_Start] | None:
        """Take what the options of a reset say of ``n`` rows out of them, ``world_seed`` included; else None.

        Raises:
            TextEnvError: They are not what is expected.
        """
        prompts = None if self._set is None else self._set.of_options(options, n)
        seeds = _as_seeds(options.pop("world_seed", None), n)
        if prompts is None and seeds is None:
            return None
        return [
            _Start(None if prompts is None else prompts[row], None if seeds is None else seeds[row]) for row in range(n)
        ]

    def begin(
        self, rows: Sequence[int], chosen: Sequence[_Start] | None, generator: Callable[[int], np.random.Generator]
    ) -> list[Prompt]:
        """Have worlds begin; arguments as in ``PromptStarts.begin``.

        Raises:
            TextEnvError: A world fails, or says more than there is room for.
        """
        starts = [self._draw(None if chosen is None else chosen[row], generator(row)) for row in rows]
        options = [
            None if p is None else {"prompt": p.text if p.given is None else p.given, **p.columns} for p, _ in starts
        ]
        begun = self._worlds.begin(rows, [seed or 0 for _, seed in starts], options)
        prompts = [
            self._encoder.first(first.said, {**(prompt.columns if prompt else {}), **first.columns}, first.tools)
            for first, (prompt, _) in zip(begun, starts, strict=True)
        ]
        for prompt in prompts:
            if len(prompt.ids) > self.max_prompt_tokens:
                raise TextEnvError(
                    f"The world {self._worlds.name} began with {prompt.text[:80]!r}, {len(prompt.ids)} tokens, and "
                    f"there is room for {self.max_prompt_tokens}; raise max_tokens and max_prompt_tokens."
                )
        return prompts

    def contains(self, ids: tuple[int, ...]) -> bool:
        """Return False: what a world says first is not known before."""
        return False

    def find(self, ids: tuple[int, ...]) -> Prompt:
        """Return some token ids as a prompt without columns."""
        return self._model.prompt(ids)

    def _draw(self, start: _Start | None, generator: np.random.Generator) -> _Start:
        prompt, seed = start or _Start(None, None)
        if prompt is None and self.prompts:
            prompt = self.prompts[int(generator.integers(len(self.prompts)))]
        return _Start(prompt, int(generator.integers(_SEEDS)) if seed is None else seed)


Starts = PromptStarts | WorldStarts


def make_starts(settings: TextEnvSettings, model: CausalLM, worlds: WorldRows | None) -> Starts:
    """Return what the episodes of an environment begin with.

    Raises:
        TextEnvError: The prompts cannot be read, or are too long.
    """
    if worlds is None:
        source = movie_openings("train") if settings.prompts is None else settings.prompts
        return PromptStarts(PromptSet(source, model, chat=settings.chat, max_tokens=settings.max_prompt_tokens))
    room = _world_room(settings, model) - 1
    given = (
        None
        if settings.prompts is None
        else PromptSet(settings.prompts, model, chat=settings.chat, max_tokens=settings.max_prompt_tokens)
    )
    encoder = TurnEncoder(model, chat=settings.chat)
    return WorldStarts(worlds, encoder, model, given, min(settings.max_prompt_tokens or room, room))


def room(settings: TextEnvSettings, max_prompt_tokens: int, model: CausalLM) -> int:
    """Return the most tokens of an observation.

    Raises:
        TextEnvError: The model takes fewer.
    """
    if settings.world is not None:
        return _world_room(settings, model)
    width, limit = max_prompt_tokens + settings.max_new_tokens, model.max_positions
    if limit is not None and width > limit:
        raise TextEnvError(
            f"max_prompt_tokens={max_prompt_tokens} and max_new_tokens={settings.max_new_tokens} make {width} tokens, "
            f"but the model takes {limit}; lower one of them."
        )
    return width


def _world_room(settings: TextEnvSettings, model: CausalLM) -> int:
    limit = model.max_positions
    if settings.max_tokens is None:
        return _DEFAULT_ROOM if limit is None else min(limit, _DEFAULT_ROOM)
    if limit is not None and settings.max_tokens > limit:
        raise TextEnvError(f"max_tokens={settings.max_tokens}, but the model takes {limit}; lower it.")
    if settings.max_tokens < 2:
        raise TextEnvError(f"max_tokens={settings.max_tokens}: expected room for a prompt and a token.")
    return settings.max_tokens


def _as_seeds(value: Any, n: int) -> list[int] | None:
    if value is None:
        return None
    seeds = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value] * n
    if len(seeds) != n or not all(isinstance(seed, (int, np.integer)) and 0 <= seed <= _SEEDS for seed in seeds):
        raise TextEnvError(f"options['world_seed']={value!r}: expected a number from 0 to {_SEEDS}, or {n} of them.")
    return [int(seed) for seed in seeds]
