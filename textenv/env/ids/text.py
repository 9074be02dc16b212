"""``textenv/Text-v0``: any prompts, any reward, any model."""

from textenv.env.registry import register

register(
    "textenv/Text-v0", entry_point="textenv.env.single:TextEnv", vector_entry_point="textenv.env.vector:TextVectorEnv"
)
