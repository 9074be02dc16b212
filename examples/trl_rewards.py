"""The reward functions of TRL, and those of its documentation, in an environment: https://github.com/huggingface/trl.

TRL is no dependency of textenv:

pip install trl==1.16.0 math-verify && python examples/trl_rewards.py
"""

from __future__ import annotations

import asyncio
from typing import Any

import gymnasium as gym
import numpy as np
import tyro
from gymnasium.vector import AutoresetMode
from trl import rewards as trl_rewards

import textenv
from textenv.agents.grpo import GRPO, GRPOConfig

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
ANSWERS = [
    r"<think>A third.</think>It is \boxed{\frac{1}{3}}.",
    r"It is \boxed{\frac{1}{2}}.",
    "<think>one one one one one one one one",
]
ROWS = [{"prompt": [{"role": "user", "content": "1/3 = "}], "solution": r"\frac{1}{3}"}]


def functions() -> dict[str, Any]:
    """Return every reward that TRL ships, by its name."""
    return {
        "think_format_reward": trl_rewards.think_format_reward,
        "accuracy_reward": trl_rewards.accuracy_reward,
        "reasoning_accuracy_reward": trl_rewards.reasoning_accuracy_reward,
        "cosine_scaled_reward": trl_rewards.get_cosine_scaled_reward(max_len=60),
        "repetition_penalty_reward": trl_rewards.get_repetition_penalty_reward(ngram_size=2),
        "soft_overlong_punishment_reward": trl_rewards.get_soft_overlong_punishment(60, 40),
    }


async def says_something(completions: Any, **kwargs: Any) -> list[float]:
    """Wait as for a server, and pay for a text that is not empty."""
    await asyncio.sleep(0.01)
    return [float(bool(completion[0]["content"])) for completion in completions]


def chat_model() -> textenv.CausalLM:
    """Return the bundled model with a chat template."""
    model = textenv.CausalLM.from_pretrained("bundled")
    model.tokenizer.chat_template = TEMPLATE
    return model


def check(model: textenv.CausalLM) -> None:
    """Have given answers scored by all functions, and compare with calling them directly."""
    named = functions()
    written = [model.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in ANSWERS]
    env: Any = gym.make(
        "textenv/Text-v0",
        model=model,
        prompts=ROWS,
        reward=[*named.values(), says_something],
        max_new_tokens=max(map(len, written)) + 1,
        kl_mode="lump",
    )
    for tokens in written:
        env.reset()
        ended, info = False, dict[str, Any]()
        for token in [*tokens, model.eos_ids[0]]:
            _, _, ended, _, info = env.step(token)
        assert ended
        given = {"completions": [[{"role": "assistant", "content": info["completion"]}]]}
        given |= {"completion_ids": [list(info["completion_ids"])], "solution": [ROWS[0]["solution"]]}
        for name, function in named.items():
            (expected,) = function(**given)
            assert info["scores"][name] == expected, (name, info["scores"][name], expected)
        told = ", ".join(f"{name} {score}" for name, score in info["scores"].items())
        print(f"{info['completion']!r}: score {info['score']:.3f}\n  {told}\n  logged {dict(info['logged'])}")


def main(total_steps: int = 400, num_envs: int = 8) -> None:
    model = chat_model()
    check(model)
    print(f"{len(functions())} functions of TRL say in an environment what they say alone")
    envs: Any = gym.make_vec(
        "textenv/Text-v0",
        num_envs=num_envs,
        model=model,
        prompts=ROWS,
        reward=list(functions().values()),
        reward_weights=[1.0, 1.0, 1.0, 0.5, 1.0, 1.0],
        max_new_tokens=12,
        kl_mode="lump",
        autoreset_mode=AutoresetMode.DISABLED,
    )
    rows: list[dict[str, float]] = []
    GRPO(envs, GRPOConfig(samples=4)).learn(total_steps, progress=lambda steps, metrics: rows.append(dict(metrics)))
    parts = {name: np.mean([row[name] for row in rows]) for name in rows[0] if name.startswith("objective/score/")}
    for name, score in parts.items():
        print(f"{name}: {score:.3f}")
    print("GRPO has learned from all of them")


if __name__ == "__main__":
    tyro.cli(main)
