"""Every reward, with prompts that are texts, conversations, and texts to a chat model; served over HTTP too."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from tests.families import family_tokenizer, make_family
from textenv import CausalLM, TextEnv, TextEnvError
from textenv.models.reward_model import RewardModel
from textenv.rewards import Http, Learned, _http_client, make, names
from textenv.web.reward_server import make_app
from textenv.web.server import make_server

USER = "How is the film?"
MESSAGES = [{"role": "user", "content": USER}]
WRITTEN = "the film was great"
COLUMNS: dict[str, Any] = {
    "reference": "the film", "question": "sentence", "word": "film", "meaning": "a story in pictures",
    "kinds": [["story"]], "right": "great", "answers": ["great"], "quotes": ["a great film"], "about": "A film.",
}  # fmt: skip
"""What some rewards read besides."""
FORMS = ["texts", "conversations", "chat"]
COMPLETION_ALONE: dict[str, Any] = {
    "bleu": "bleu",
    "chrf": "chrf",
    "rouge": "rouge",
    "letters": "letters",
    "pattern": {"name": "pattern", "pattern": "great"},
    "vader": "vader",
    "length": {"name": "length", "target": 3},
    "length of tokens": {"name": "length", "target": 3, "unit": "tokens"},
    "clip": {"name": "clip", "reward": "vader", "low": -0.25, "high": 0.25},
    "counterfactual_gap": {"name": "counterfactual_gap", "reward": "vader"},
    "dictionary_answer": "dictionary_answer",
    "exact_match": {"name": "exact_match", "answers": "right", "contained": True},
    "quoted": {"name": "quoted", "what": "answers"},
    "summary_judge": {"name": "summary_judge", "data": "few", "column": "about"},
    "normalize": {"name": "normalize", "reward": "vader"},
    "period_rule": {"name": "period_rule", "reward": "vader", "after": 0},
    "weighted_sum": {"name": "weighted_sum", "rewards": ["vader", {"name": "length", "target": 9}], "weights": [2, -1]},
}
"""Rewards that score what the assistant says, whatever the prompt."""


def characters(completions: Sequence[Any], **_: Any) -> list[float]:
    """A function as it is written for TRL, for texts and for conversations."""
    return [float(len(each if isinstance(each, str) else each[0]["content"])) for each in completions]


class Place(NamedTuple):
    """What the rewards need: folders of models, and the address of a server that scores with the first."""

    learned: str
    classifier: str
    url: str


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return make_family("qwen2")


@pytest.fixture(scope="module")
def place(lm: CausalLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    RewardModel(lm).save(folder / "learned")
    config = Qwen2Config(
        vocab_size=lm.vocab_size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        id2label={0: "score"},
        pad_token_id=lm.pad_id,
        initializer_range=0.5,
    )
    Qwen2ForSequenceClassification(config).save_pretrained(folder / "classifier")
    family_tokenizer("qwen2").save_pretrained(folder / "classifier")
    server = make_server(make_app(Learned(str(folder / "learned"))), None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield Place(str(folder / "learned"), str(folder / "classifier"), url)
        _http_client.connections(os.getpid()).close()  # or its connections would keep the server up
        _http_client.connections.cache_clear()
        server.should_exit = True
        thread.join()


def reads_the_prompt(place: Place) -> dict[str, tuple[Any, Callable[..., Any]]]:
    """Return rewards that read the prompt too: what an environment is given, and what is to say the same."""
    learned = make({"name": "learned", "model": place.learned})
    classifier = {"name": "classifier", "model": place.classifier}
    openrlhf = {"name": "http", "url": f"{place.url}/get_reward", "protocol": "openrlhf", "tokenizer": place.learned}
    tokenizer = family_tokenizer("qwen2")

    def of_rendered(prompts: Sequence[Any], completions: Sequence[Any], **others: Any) -> Any:
        """Score what a server is sent that knows texts alone."""
        texts = []
        for prompt, completion in zip(prompts, completions, strict=True):
            if isinstance(prompt, str):
                texts.append((prompt, completion))
            else:
                start = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
                texts.append((start, completion[0]["content"]))
        return learned(prompts=[text for text, _ in texts], completions=[said for _, said in texts], **others)

    return {
        "learned": ({"name": "learned", "model": [place.learned] * 2, "combine": "min"}, learned),
        "classifier": (classifier, make(classifier)),
        "mix": (
            {"name": "clip", "reward": {"name": "weighted_sum", "rewards": [classifier]}, "low": -50, "high": 50},
            make(classifier),
        ),
        "http": ({"name": "http", "url": f"{place.url}/score"}, learned),
        "http for openrlhf": (openrlhf, of_rendered),
        "function": (characters, characters),
    }


READERS = ("learned", "classifier", "mix", "http", "http for openrlhf", "function")


def played(lm: CausalLM, form: str, reward: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write an episode; return its last info, and what the reward is to be called with."""
    given: Any = MESSAGES if form == "conversations" else USER
    prompts = [{"prompt": given, **COLUMNS}]
    env = TextEnv(model=lm, prompts=prompts, chat=form == "chat", reward=reward, max_new_tokens=40)
    env.reset(seed=0)
    tokenizer = env.reference.tokenizer
    for token in tokenizer(WRITTEN, add_special_tokens=False)["input_ids"]:
        assert not env.step(token)[2]
    *_, terminated, _, info = env.step(env.reference.eos_ids[0])
    assert terminated
    assert info["completion"] == WRITTEN
    said: Any = [{"role": "assistant", "content": WRITTEN}] if form == "conversations" else WRITTEN
    columns = {name: [value] for name, value in COLUMNS.items()}
    return info, {
        "prompts": [given], "completions": [said], "completion_ids": [info["completion_ids"]], **columns
    }  # fmt: skip


def test_every_reward_is_here() -> None:
    assert set(names()) <= {*COMPLETION_ALONE, *READERS}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", COMPLETION_ALONE)
def test_what_the_assistant_says_scores_as_the_text_does(name: str, form: str, lm: CausalLM) -> None:
    spec = COMPLETION_ALONE[name]
    info, given = played(lm, form, spec)
    assert info["score"] == pytest.approx(make(spec)(**{**given, "completions": [WRITTEN]})[0], abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", READERS)
def test_a_conversation_is_read_whole(name: str, form: str, lm: CausalLM, place: Place) -> None:
    reward, same = reads_the_prompt(place)[name]
    info, given = played(lm, form, reward)
    assert info["score"] == pytest.approx(float(same(**given)[0]), abs=1e-4)
    if name != "function":
        other = {**given, "prompts": [[{"role": "user", "content": "?"}] if form == "conversations" else "?"]}
        assert abs(float(same(**other)[0]) - info["score"]) > 1e-4  # the prompt counts


def test_without_a_tokenizer_a_conversation_is_no_text(lm: CausalLM) -> None:
    reward = Http("http://127.0.0.1:9/get_reward", protocol="openrlhf")
    with pytest.raises(TextEnvError, match=r"sends texts and was given a conversation.*tokenizer="):
        played(lm, "conversations", reward)


@pytest.mark.parametrize("prompt", ["a text", MESSAGES])
def test_a_prompt_and_a_completion_of_different_forms(prompt: Any, place: Place) -> None:
    completion: Any = "a text" if prompt is MESSAGES else [{"role": "assistant", "content": "a text"}]
    classifier = {"name": "classifier", "model": place.classifier}
    for spec in (classifier, {"name": "http", "url": f"{place.url}/score"}):
        with pytest.raises(TextEnvError, match="expected two texts, or two lists of messages"):
            make(spec)(prompts=[prompt], completions=[completion], completion_ids=[[1]])


def test_a_template_that_refuses_a_conversation(lm: CausalLM, place: Place, tmp_path: Path) -> None:
    broken = family_tokenizer("qwen2")
    broken.chat_template = "{{ raise_exception('no\n systems') }}"
    Qwen2ForSequenceClassification.from_pretrained(place.classifier).save_pretrained(tmp_path)
    broken.save_pretrained(tmp_path)
    with pytest.raises(TextEnvError, match=r"chat template of Classifier.* refuses .*: no systems"):
        played(lm, "conversations", {"name": "classifier", "model": str(tmp_path)})
