"""The settings of a text environment: declared once, checked at once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from annotated_types import Interval

from textenv.types import KLEstimator, KLMode, TextEnvError
from textenv.validation import Count, NonEmpty, NonNegative, Positive, Probability, Temperature, build, validate

__all__ = ["POTENTIAL_SETTINGS", "WORLD_SETTINGS", "TextEnvSettings", "as_one_reward", "unshaped"]

WORLD_SETTINGS = ("world", "max_turns", "max_tokens", "context", "turn_discount", "world_workers", "world_timeout")
"""Settings that say something only where a world answers."""
POTENTIAL_SETTINGS = ("potential", "potential_every", "potential_discount")
"""Settings of the shaping, which say nothing of an environment that texts are only written and measured in."""

DType: TypeAlias = Literal["float32", "bfloat16", "float16", "auto"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEnvSettings:
    """Keywords of ``gymnasium.make("textenv/Text-v0", ...)``.

    Attributes:
        model: The reference model, which also gives the vocabulary: ``"bundled"``, ``"smollm2"``, a folder, a Hugging
            Face id, or a ``CausalLM``. Agents start from a copy of it.
        device: Where the models run: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"`` for a GPU if there is one. None
            for the CPU, or for where a given ``CausalLM`` is.
        torch_dtype: Data type of the weights: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"`` for the one
            they are saved in. None for float32, or for that of a given ``CausalLM``. An agent's weights are of this
            type too, and an update that is small beside its weight is lost in 16 bits.
        reference_precision: What the linear layers of the reference are rounded to when it reads, ``"float32"``,
            ``"bfloat16"`` or ``"int8"``; None for float32, or for that of a given ``CausalLM``. Agents still start from
            its own weights, so their KL from the rounded reference starts a little off 0.
        prompts: A list of texts, of conversations (each a list of messages with ``role`` and ``content``), or of
            mappings with one of these as ``prompt`` and further columns for the reward; a ``.txt``, ``.jsonl``,
            ``.csv`` or ``.parquet`` file; or a ``datasets.Dataset``. None for the bundled openings of movie reviews.
            Conversations go through the tokenizer's chat template, and the reward gets them as messages.
        chat: Take a prompt that is a text as one message of a user to a chat model. The reward gets it as a text.
        reward: A name, a JSON mapping with ``name`` and arguments, ``"package.module:attribute"``, or a callable
            (see ``textenv.types.Reward``); or a list of these, which are added up. None for ``"learned"``, or with a
            world for what the world pays alone.
        reward_weights: A number for each of a list of rewards, by which it is multiplied; None for 1 each.
        potential: Anything that ``reward`` takes, as the potential of unfinished texts: rewards are shaped by it, which
            leaves the optimum where it is and is no part of the score (see ``textenv.env.potential``). None for none.
        potential_every: Tokens after which the potential is asked, or ``"turn"``: at the end of each turn, where a
            world answers.
        potential_discount: Discount of the shaping. It has to be the agent's own, ``gamma``, or else the optimum moves;
            between turns it is multiplied by ``turn_discount``.
        world: What answers the agent at the end of each turn (see ``textenv.types.World``): a name, a JSON mapping with
            ``name`` and arguments, ``"gymnasium:ID"`` and other prefixes of ``textenv.worlds.adapters``,
            ``"package.module:Class"``, or a class or function that makes one. None for texts that nobody answers: an
            episode is then one turn.
        max_turns: Turns of an episode, at most.
        max_tokens: Room for all that the model reads and writes in an episode with a world; None for 1,024 or as many
            as the model takes.
        context: With a world, ``"transcript"`` has the model read all turns and answers so far, ``"fresh"`` the world's
            last answer alone.
        turn_discount: Share of the reward after a turn that counts towards it, for agents: 1 for the whole episode, 0
            for each turn by itself.
        world_workers: Threads that ask the worlds of different rows, where these cannot be asked together.
        world_timeout: Seconds that a world may take for an answer.
        max_new_tokens: Token budget of a turn; without a world, of an episode.
        max_prompt_tokens: Room for the prompt; None for that of the longest prompt, and with a world for all that
            ``max_tokens`` leaves. Longer ones are refused.
        kl_coef: Weight of the KL penalty, beta.
        kl_estimator: ``"k1"``, ``"k2"``, ``"k3"`` or ``"full"`` (see ``textenv.env.kl``).
        kl_mode: ``"dense"`` pays the KL at every token; ``"lump"`` pays an episode's KL at its end, which takes one
            forward of the reference an episode instead of one a token.
        kl_target: KL of an episode, in nats, that ``kl_coef`` is adapted towards; None keeps it fixed.
        kl_horizon: Episodes over which it adapts.
        temperature: Divides the logits of the reference; the policy must sample with the same.
        stop: Strings that end a turn when they appear in it; the text that is scored or answered stops before them.
        missing_eos_penalty: Subtracted from the score of an episode whose last turn the token budget ended.
        top_k: Put an ``action_mask`` of the reference's ``k`` likeliest tokens into ``info``.
        top_p: The same, of the fewest tokens that hold this probability.
        info: ``"full"`` has infos hold what is known at each step, texts included; ``"fixed"`` numbers and padded
            arrays alone, with the same keys and shapes at every step (see ``textenv.env.fixed_infos``), as libraries
            that lay infos out as arrays need them.
    """

    model: Any = "bundled"
    device: NonEmpty | None = None
    torch_dtype: DType | None = None
    reference_precision: Literal["float32", "bfloat16", "int8"] | None = None
    prompts: Any = None
    chat: bool = False
    reward: Any = None
    reward_weights: tuple[float, ...] | None = None
    potential: Any = None
    potential_every: Count | Literal["turn"] = 1
    potential_discount: Probability = 1.0
    world: Any = None
    max_turns: Count = 8
    max_tokens: Count | None = None
    context: Literal["transcript", "fresh"] = "transcript"
    turn_discount: Probability = 1.0
    world_workers: Count = 1
    world_timeout: Positive = 60.0
    max_new_tokens: Count = 12
    max_prompt_tokens: Count | None = None
    kl_coef: NonNegative = 0.035
    kl_estimator: KLEstimator = "k1"
    kl_mode: KLMode = "dense"
    kl_target: Positive | None = None
    kl_horizon: Count = 10_000
    temperature: Temperature = 1.0
    stop: tuple[NonEmpty, ...] = ()
    missing_eos_penalty: float = 0.0
    top_k: Count | None = None
    top_p: Annotated[float, Interval(gt=0, le=1)] | None = None
    info: Literal["full", "fixed"] = "full"

    @classmethod
    def of(cls, keywords: Mapping[str, Any]) -> TextEnvSettings:
        """Make settings from keywords.

        Raises:
            TextEnvError: A keyword is unknown, or its value is not what is expected.
        """
        # Other libraries probe for a keyword, and look for Python's own words in the error: TorchRL's GymEnv does.
        return build(cls, keywords, what="The environment got an unexpected keyword argument")

    def __post_init__(self) -> None:
        """Check the settings."""
        stop: Any = self.stop
        if isinstance(stop, str):
            object.__setattr__(self, "stop", (stop,))
        elif isinstance(stop, Iterable) and not isinstance(stop, Sequence):
            object.__setattr__(self, "stop", tuple(stop))
        validate(self)
        object.__setattr__(self, "reward", as_one_reward(self.reward, self.reward_weights))
        object.__setattr__(self, "reward_weights", None)  # it is in the reward now
        object.__setattr__(self, "potential", as_one_reward(self.potential, None))
        if self.reward is None and self.world is None:
            object.__setattr__(self, "reward", "learned")
        self._check_potential()

    def _check_potential(self) -> None:
        every = self.potential_every
        if self.potential is None:
            for field in dataclasses.fields(self):
                if field.name in POTENTIAL_SETTINGS and getattr(self, field.name) != field.default:
                    value = getattr(self, field.name)
                    raise TextEnvError(f"{field.name}={value!r} says something of a potential; give a potential too.")
            return
        turns = 1 if self.world is None else self.max_turns
        if every == "turn" and turns == 1:
            raise TextEnvError(
                "potential_every='turn', and an episode is one turn: the potential would be asked nowhere between its "
                "beginning and its end. Give a number of tokens, or a world and at least 2 max_turns."
            )
        if every != "turn" and every >= (most := turns * self.max_new_tokens):
            raise TextEnvError(
                f"potential_every={every}, and an episode has at most {most} tokens: the potential would be asked "
                f"nowhere between its beginning and its end. Expected less than {most}."
            )

    @property
    def masks_actions(self) -> bool:
        """Whether ``top_k`` or ``top_p`` masks actions."""
        return self.top_k is not None or self.top_p is not None

    def most_tokens(self, width: int) -> int:
        """Return the most tokens that an agent can write in an episode.

        Args:
            width: The most tokens of a text, prompt included.
        """
        if self.world is None:
            return self.max_new_tokens
        budget = self.max_turns * self.max_new_tokens
        return budget if self.context == "fresh" else min(budget, width - 1)

    @property
    def reads_each_step(self) -> bool:
        """Whether the reference reads every token as it is written, and not a whole episode at its end."""
        return self.kl_mode == "dense" or self.needs_distributions

    @property
    def needs_distributions(self) -> bool:
        """Whether a step needs the reference's whole distribution, and not the probability of a token alone."""
        return self.kl_estimator == "full" or self.masks_actions


def as_one_reward(reward: Any, weights: Sequence[float] | None) -> Any:
    """Return the specification of a reward: of a list, or of one with weights, that of their sum.

    Raises:
        TextEnvError: The list is empty, a weight is not finite, or there are weights and no reward.
    """
    if weights is not None and reward is None:
        raise TextEnvError(
            f"reward_weights={list(weights)} without a reward; expected a list of rewards with it, one for each."
        )
    if weights is not None and not all(map(math.isfinite, weights)):
        raise TextEnvError(f"reward_weights={tuple(weights)}: expected finite numbers, one for each reward.")
    listed = isinstance(reward, list | tuple)
    if weights is None and not listed:
        return reward
    if listed and not reward:
        raise TextEnvError(f"reward={reward!r}: expected a non-empty list of rewards, or a name.")
    mix = {"name": "weighted_sum", "rewards": list(reward) if listed else [reward]}
    return mix if weights is None else {**mix, "weights": list(weights)}


def unshaped(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return keywords of ``gymnasium.make`` without those of the shaping: for texts that nobody learns from."""
    return {name: value for name, value in keywords.items() if name not in POTENTIAL_SETTINGS}
