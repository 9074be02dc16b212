"""Conversations: what the model reads is the template of the whole history, and each message costs its own tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.families import make_family
from textenv.env.dialogue import Dialogue
from textenv.env.endings import Endings
from textenv.models.causal_lm import CausalLM
from textenv.models.network import Network
from textenv.models.policy import TextPolicy
from textenv.types import Prompt, TextEnvError

ANSWERS = ["It was good.", "No, the film.", "the plot of it"]


class Scripted:
    """Writes given answers, each with the token that ends a turn; keeps what it was asked to go on from."""

    def __init__(self, lm: CausalLM, answers: list[str]) -> None:
        self.lm, self.answers, self.read = lm, iter(answers), list[tuple[int, ...]]()

    def __call__(self, prompt: Prompt) -> Iterator[int]:
        self.read.append(prompt.ids)
        yield from self.lm.tokenizer(next(self.answers), add_special_tokens=False)["input_ids"]
        yield self.lm.eos_ids[-1]


def make(lm: CausalLM, write: Any, *, new: int = 40, room: int = 400, stop: tuple[str, ...] = (), **about: Any) -> Any:
    return Dialogue(lm, write, endings=Endings(lm, stop=stop, max_new_tokens=new), max_tokens=room, **about)


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_it_is_the_template_of_the_whole_history(family: str, system: str | None) -> None:
    lm = make_family(family)
    write = Scripted(lm, ANSWERS)
    dialogue = make(lm, write, system=system)
    messages = [] if system is None else [{"role": "system", "content": system}]
    for number, answer in enumerate(ANSWERS):
        messages.append({"role": "user", "content": f"And {number}?"})
        assert "".join(dialogue.say(f"And {number}?")) == answer
        assert dialogue.end == "eos"
        how = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
        assert list(write.read[-1]) == lm.tokenizer.apply_chat_template(messages, **how)["input_ids"]
        messages.append({"role": "assistant", "content": answer})
        assert list(dialogue.messages) == messages
    dialogue.reset()
    assert (dialogue.ids, list(dialogue.messages)) == ((), messages[: int(system is not None)])


def test_an_answer_that_the_budget_cuts_is_ended_by_the_template() -> None:
    lm = make_family("qwen2")
    write = Scripted(lm, ["the film was a great film"] * 2)
    dialogue = make(lm, write, new=3)
    said = "".join(dialogue.say("Hello"))
    assert dialogue.end == "length"
    list(dialogue.say("Go on."))
    read = lm.tokenizer.decode(write.read[1])
    assert read.endswith(f"{said}<|im_end|>\n<|im_start|>user\nGo on.<|im_end|>\n<|im_start|>assistant\n")


def test_an_answer_ends_before_a_stop_string() -> None:
    lm = make_family("qwen2")
    dialogue = make(lm, Scripted(lm, ["It was. Good."]), stop=(".",))
    assert "".join(dialogue.say("Hello")) == "It was"
    assert (dialogue.end, dialogue.messages[-1]["content"]) == ("stop", "It was")


def test_what_is_no_whole_character_waits_for_the_rest() -> None:
    lm = make_family("qwen2")
    pieces = list(make(lm, Scripted(lm, ["a 猫 b"])).say("Hello"))
    assert "".join(pieces) == "a 猫 b"
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > 4


def test_a_message_without_room_is_refused_and_the_conversation_stays() -> None:
    lm = make_family("qwen2")
    dialogue = make(lm, Scripted(lm, ANSWERS), room=100)
    list(dialogue.say("Hello"))
    before = dialogue.ids, dialogue.messages
    with pytest.raises(TextEnvError, match=r"takes \d+ tokens, and there is room for \d+: of 100 tokens") as refused:
        dialogue.say("the film " * 30)
    assert "Shorten the message, or begin anew" in str(refused.value)
    assert (dialogue.ids, dialogue.messages) == before
    list(dialogue.say("Why?"))
    dialogue.reset()
    list(dialogue.say("Why?"))


def test_a_model_without_a_template_is_told() -> None:
    lm = make_family("gpt2")
    with pytest.raises(TextEnvError, match="has no chat template"):
        make(lm, Scripted(lm, ANSWERS)).say("Hello")


def test_each_message_costs_its_new_tokens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_family("qwen2")
    policy, read = TextPolicy(lm, value="none", trainable=False), list[int]()

    def write(prompt: Prompt) -> Iterator[int]:
        ids = list(prompt.ids)
        while True:
            obs = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), dtype=np.int8)}
            (token,), _ = policy.act(obs)
            plain = lm.token_log_probs(np.array([[*ids, int(token)]]), np.array([len(ids) + 1]))[0, -1]
            assert plain == pytest.approx(policy.action_log_prob(np.array([token]))[0], abs=1e-5)
            ids.append(int(token))
            yield ids[-1]

    dialogue = make(lm, write, new=5)
    list(dialogue.say("the film " * 20))
    run = Network.run

    def counted(self: Network, ids: torch.Tensor, positions: Any = None, *others: Any, **keywords: Any) -> Any:
        if positions is not None:  # behind tokens that are cached
            read.append(int(ids.shape[1]))
        return run(self, ids, positions, *others, **keywords)

    monkeypatch.setattr(Network, "run", counted)
    before = len(dialogue.ids)
    list(dialogue.say("And then?"))
    assert read[1:] == [1, 1, 1, 1]
    assert sum(read) == len(dialogue.ids) - before < before
