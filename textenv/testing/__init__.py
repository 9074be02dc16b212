"""Contracts to subclass in a test module: what every environment, world, reward and agent must do.

A contract is a class of tests with a few hooks. Pytest collects the subclass, not the contract::

    from textenv.testing import RewardContract

    class TestMyReward(RewardContract):
        def make_reward(self):
            return MyReward()

It needs ``pytest`` (``pip install 'textenv[testing]'``).
"""

import pytest

pytest.register_assert_rewrite(
    *(f"{__name__}.{contract}" for contract in ("agents", "environments", "rewards", "worlds"))
)

# ruff: noqa: E402
from textenv.testing.agents import AgentContract
from textenv.testing.environments import EnvironmentContract, Trace
from textenv.testing.rewards import COMPLETIONS, PROMPTS, RewardContract
from textenv.testing.worlds import Exchange, WorldContract

__all__ = [
    "COMPLETIONS",
    "PROMPTS",
    "AgentContract",
    "EnvironmentContract",
    "Exchange",
    "RewardContract",
    "Trace",
    "WorldContract",
]
