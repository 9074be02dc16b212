"""Contracts to subclass in a test module: what every environment, reward and agent must do.

A contract is a class of tests with a few hooks. Pytest collects the subclass, not the contract::

    from textenv.testing import RewardContract

    class TestMyReward(RewardContract):
        def make_reward(self):
            return MyReward()

It needs ``pytest`` (``pip install 'textenv[testing]'``).
"""

import pytest

pytest.register_assert_rewrite("textenv.testing.agents", "textenv.testing.environments", "textenv.testing.rewards")

# ruff: noqa: E402
from textenv.testing.agents import AgentContract
from textenv.testing.environments import EnvironmentContract, Trace
from textenv.testing.rewards import COMPLETIONS, PROMPTS, RewardContract

__all__ = ["COMPLETIONS", "PROMPTS", "AgentContract", "EnvironmentContract", "RewardContract", "Trace"]
