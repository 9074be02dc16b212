"""The contract of a world."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import pytest

from textenv.env.turns import as_observation
from textenv.types import Conversation, World

__all__ = ["Exchange", "WorldContract"]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A turn, and how a world took it.

    Attributes:
        text: What was written.
        answer: What the world said.
        reward: What it paid.
        terminated: Whether that was the end.
        truncated: Whether the world cut the episode off.
    """

    text: str
    answer: str | Conversation
    reward: float
    terminated: bool
    truncated: bool


class WorldContract:
    """The contract of ``textenv.types.World``.

    Attributes:
        texts: What is written in it, drawn evenly: moves that do something, and such as are none.
        most_turns: Turns after which an episode is over, whatever is written; None for a world that may go on.
    """

    texts: ClassVar[Sequence[str]] = ("1", "a", " great.\n", "", "日本の猫 😀", "x" * 2000)
    most_turns: ClassVar[int | None] = 20

    def make_world(self) -> World:
        """Return a new world."""
        raise NotImplementedError

    def options(self) -> dict[str, Any] | None:
        """Return what ``reset`` is given: a ``prompt`` and its columns, or None."""
        return None

    @pytest.fixture
    def world(self) -> World:
        return self.make_world()

    def begin(self, world: World, seed: int) -> str | Conversation:
        """Begin an episode; return what the world says first, checked."""
        found: Any = world.reset(seed=seed, options=self.options())
        assert isinstance(found, tuple)
        assert len(found) == 2
        assert isinstance(found[1], dict)
        return as_observation(found[0], type(world).__name__, "reset")

    def write(self, world: World, text: str) -> Exchange:
        """Take a turn; return it, checked."""
        return self.checked(text, world.step(text))

    def checked(self, text: str, found: Any) -> Exchange:
        """Assert that ``step`` has returned what it should."""
        assert isinstance(found, tuple)
        assert len(found) == 5
        answer, reward, terminated, truncated, info = found
        assert isinstance(reward, Real)
        assert math.isfinite(reward)
        assert isinstance(terminated, (bool, np.bool_))
        assert isinstance(truncated, (bool, np.bool_))
        assert isinstance(info, dict)
        return Exchange(text, as_observation(answer, "it", "step"), float(reward), bool(terminated), bool(truncated))

    def turns(self, seed: int) -> list[str]:
        """Return texts to write, the same for the same seed."""
        generator = np.random.default_rng(seed)
        places: list[int] = generator.integers(len(self.texts), size=self.most_turns or 20).tolist()
        return [self.texts[place] for place in places]

    def play(
        self, world: World, seed: int, between: Callable[[], object] = lambda: None
    ) -> tuple[str | Conversation, list[Exchange]]:
        """Play the episode of a seed; ``between`` is called before every turn."""
        first, said = self.begin(world, seed), list[Exchange]()
        for text in self.turns(seed):
            between()
            said.append(self.write(world, text))
            if said[-1].terminated or said[-1].truncated:
                break
        return first, said

    def test_has_the_methods_of_a_world(self, world: World) -> None:
        assert isinstance(world, World)

    def test_takes_whatever_is_written(self, world: World) -> None:
        for text in self.texts:
            self.begin(world, 0)
            self.write(world, text)

    def test_ends(self, world: World) -> None:
        if self.most_turns is None:
            pytest.skip("this world may go on")
        for seed in range(5):
            assert any(turn.terminated or turn.truncated for turn in self.play(world, seed)[1])

    def test_a_seed_repeats_the_episode(self, world: World) -> None:
        first = self.play(world, 7)
        self.play(world, 8)
        assert self.play(world, 7) == first
        assert self.play(self.make_world(), 7) == first

    def test_a_seed_is_not_needed(self, world: World) -> None:
        world.reset(options=self.options())
        self.write(world, self.texts[0])

    def test_an_episode_can_begin_before_the_last_one_is_over(self, world: World) -> None:
        first = self.play(world, 3)
        self.begin(world, 4)
        self.write(world, self.texts[0])
        assert self.play(world, 3) == first

    def test_worlds_side_by_side_do_not_disturb_each_other(self, world: World) -> None:
        alone, other = self.play(world, 5), self.make_world()

        def disturb() -> None:
            self.begin(other, 6)
            self.write(other, self.texts[0])

        assert self.play(world, 5, between=disturb) == alone

    def test_leaves_the_random_numbers_of_the_process_alone(self, world: World) -> None:
        before = random.getstate(), copy.deepcopy(np.random.get_state())  # noqa: NPY002
        self.play(world, 9)
        self.play(self.make_world(), 9)
        after = random.getstate(), np.random.get_state()  # noqa: NPY002
        assert str(before) == str(after)

    def test_keeps_what_it_is_given(self, world: World) -> None:
        options, same = self.options(), self.options()
        world.reset(seed=0, options=options)
        assert options == same

    def test_a_state_is_json_and_goes_on_where_it_was_saved(self, world: World) -> None:
        save = getattr(world, "state_dict", None)
        if save is None:
            pytest.skip("this world has no state of its own")
        self.play(world, 1)
        state = json.loads(json.dumps(save(), allow_nan=False))
        expected, again = self.play(world, 2), self.make_world()
        load: Any = again
        load.load_state_dict(state)
        assert self.play(again, 2) == expected

    def test_worlds_that_answer_together_answer_as_each_would(self, world: World) -> None:
        together: Any = getattr(world, "step_many", None)
        if together is None:
            pytest.skip("these worlds are asked one by one")
        worlds, others = [world, self.make_world()], [self.make_world(), self.make_world()]
        for seed, (one, other) in enumerate(zip(worlds, others, strict=True)):
            assert self.begin(one, seed) == self.begin(other, seed)
        texts = self.turns(0)[:2]
        found = [self.checked(*pair) for pair in zip(texts, together(worlds, texts), strict=True)]
        assert found == [self.write(other, text) for other, text in zip(others, texts, strict=True)]
