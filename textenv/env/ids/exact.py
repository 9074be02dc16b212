"""``textenv/Exact-v0``: texts of a few letters, so few and short that all of them can be enumerated."""

from textenv.env.registry import EnvRecord, register

# Agents' defaults are made for models a thousand times as large as that of this environment.
_AGENT_SETTINGS = {"learning_rate": 5e-3, "embedding_learning_rate": None, "value_learning_rate": 1e-2}

register(
    "textenv/Exact-v0",
    entry_point="textenv.env.letters:exact",
    vector_entry_point="textenv.env.letters:exact_vector",
    record=EnvRecord(agent_settings=_AGENT_SETTINGS, enumerable=True, takes_model=False),
)
