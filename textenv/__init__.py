"""Reinforcement learning from human feedback as a Gymnasium environment.

``gymnasium.make("textenv/MovieReview-v0")`` after ``import textenv``; the general id is ``textenv/Text-v0``.
"""

import gymnasium

from textenv.process import limit_spinning

limit_spinning()  # before torch is loaded

# ruff: noqa: E402
from textenv.env import TextEnv
from textenv.handle import Handle
from textenv.models.causal_lm import CausalLM
from textenv.types import Episode, TextEnvError
from textenv.vector import TextVectorEnv

__all__ = ["CausalLM", "Episode", "Handle", "TextEnv", "TextEnvError", "TextVectorEnv"]
__version__ = "0.1.0"

gymnasium.register(
    id="textenv/Text-v0", entry_point="textenv.env:TextEnv", vector_entry_point="textenv.vector:TextVectorEnv"
)
gymnasium.register(
    id="textenv/MovieReview-v0",
    entry_point="textenv.env:movie_review",
    vector_entry_point="textenv.vector:movie_review",
)
gymnasium.register(
    id="textenv/Exact-v0",
    entry_point="textenv.letters:exact",
    vector_entry_point="textenv.letters:exact_vector",
)
