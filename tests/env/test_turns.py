"""Turns of a conversation through chat templates: what stands between what the agent writes is the template's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.families import make_family
from textenv.env.single import TextEnv
from textenv.models.causal_lm import CausalLM
from textenv.models.chat import end_of_turn
from textenv.types import TextEnvError

# After Qwen 3: what the assistant thought is left out of all messages but the last.
_QWEN3 = (
    "{% for m in messages %}{% set text = m.content %}"
    "{% if m.role == 'assistant' and '</think>' in text and not loop.last %}"
    "{% set text = text.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\\n' + text + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_SYSTEM = (  # of SmolLM 2 and Qwen 2: a system message where none is given
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEMPLATES = {"qwen3": _QWEN3, "llama": "", "system": _SYSTEM, "qwen2": "", "gemma": "", "mistral": ""}


class Quiz:
    """Asks three questions, and keeps what it was told."""

    def __init__(self, messages: bool = True) -> None:
        self.messages, self.told = messages, list[str]()

    def say(self, text: str) -> Any:
        return [{"role": "user", "content": text}] if self.messages else text

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.told = []
        return self.say("First?"), {}

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.told.append(action)
        return self.say(f"Next, {len(self.told)}?"), 0.5, len(self.told) == 3, False, {}


def lm_with(name: str) -> CausalLM:
    lm = make_family(name if not TEMPLATES[name] else "qwen2")
    if TEMPLATES[name]:
        lm.tokenizer.chat_template = TEMPLATES[name]
    return lm


def kept(completions: list[Any], prompts: list[Any], **_: Any) -> list[float]:
    SCORED[:] = list(zip(prompts, completions, strict=True))
    return [0.0] * len(completions)


SCORED: list[Any] = []
SAID = ["It was good.", "<think>the film</think>\nNo.", "a film"]


def tell(env: TextEnv, text: str, *, ended: bool) -> tuple[Any, ...]:
    """Write a turn, and the token that ends it unless the budget does."""
    tokenizer = env.reference.tokenizer
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = [*tokens, end_of_turn(tokenizer)] if ended else tokens
    return [env.step(token) for token in tokens][-1]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", [False, True])
def test_the_model_reads_the_templates_conversation(name: str, messages: bool) -> None:
    lm = lm_with(name)
    world = Quiz(messages)
    env = TextEnv(model=lm, world=world, chat=True, reward=kept, max_new_tokens=60, max_tokens=128)
    env.reset(seed=0)
    obs, _, over, _, info = tell(env, SAID[0], ended=True)
    assert not over
    read = lm.tokenizer.decode(obs["input_ids"][: obs["attention_mask"].sum()])
    talk = [
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": SAID[0]},
        {"role": "user", "content": "Next, 1?"},
    ]
    wanted = lm.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    # Mistral's template puts a space before what the assistant says, which is for the assistant to write.
    assert read == wanted.replace("[/INST] It", "[/INST]It")
    for said in SAID[1:]:
        _, _, over, _, info = tell(env, said, ended=True)
    assert over
    assert info["stop_reason"] == "world"
    assert world.told == SAID
    prompts, completions = SCORED[0]
    assert prompts == [{"role": "user", "content": "First?"}]
    assert completions == [
        {"role": "assistant", "content": SAID[0]},
        {"role": "user", "content": "Next, 1?"},
        {"role": "assistant", "content": SAID[1]},
        {"role": "user", "content": "Next, 2?"},
        {"role": "assistant", "content": SAID[2]},
    ]


@pytest.mark.parametrize("name", ["qwen3", "llama", "system", "qwen2", "gemma"])
def test_a_turn_that_was_cut_is_closed_by_the_template(name: str) -> None:
    lm = lm_with(name)
    size = len(lm.tokenizer(SAID[0], add_special_tokens=False)["input_ids"])
    env = TextEnv(model=lm, world=Quiz(), max_new_tokens=size, max_tokens=128)
    env.reset(seed=0)
    obs, *_, info = tell(env, SAID[0], ended=False)
    read = lm.tokenizer.decode(obs["input_ids"][: obs["attention_mask"].sum()])
    talk = [
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": SAID[0]},
        {"role": "user", "content": "Next, 1?"},
    ]
    assert read == lm.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert not info.get("turns")


def test_the_agents_tokens_stay_as_they_were_drawn() -> None:
    lm = lm_with("qwen3")
    env = TextEnv(model=lm, world=Quiz(), max_new_tokens=7, max_tokens=128)
    rng = np.random.default_rng(0)
    for seed in range(5):
        env.reset(seed=seed)
        drawn: list[int] = []
        over, info = False, dict[str, Any]()
        while not over:
            drawn.append(int(rng.integers(lm.vocab_size)))
            _, _, over, _, info = env.step(drawn[-1])
        assert info["completion_ids"] == tuple(drawn)


def test_a_template_that_hides_what_was_said_is_refused() -> None:
    lm = make_family("qwen2")
    lm.tokenizer.chat_template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    env = TextEnv(model=lm, world=Quiz(), max_new_tokens=2, max_tokens=100)
    env.reset(seed=0)
    env.step(5)
    with pytest.raises(TextEnvError, match="leaves out what the assistant has said"):
        env.step(6)


def test_messages_without_a_template_are_refused() -> None:
    env = TextEnv(model=make_family("gpt2"), world=Quiz(), max_tokens=100)
    with pytest.raises(TextEnvError, match="no chat template"):
        env.reset(seed=0)
