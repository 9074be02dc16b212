"""Fine-tuning on conversations: what is learned, token by token, the template that is made, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.complaints import one_line
from tests.families import make_family, save_family
from textenv import CausalLM
from textenv.commands.cli import main
from textenv.models.chat import PLAIN_TEMPLATE
from textenv.training.configs import SftConfig
from textenv.training.examples import collate, encode_conversation, encode_examples
from textenv.training.next_token import IGNORED_LABEL
from textenv.training.sft import sft
from textenv.types import TextEnvError

ASKED, ANSWERED = ["How is the film?", "Why?", "And it?"], ["It was great, and thin.", "the plot", "a film of it"]
TURNS = [
    {"role": role, "content": content}
    for pair in zip(ASKED, ANSWERED, strict=True)
    for role, content in zip(("user", "assistant"), pair, strict=True)
]
SYSTEM = {"role": "system", "content": "Be brief."}
ENDS = {
    "llama": "<|eot_id|>", "smollm2": "<|im_end|>", "qwen2": "<|im_end|>", "qwen3": "<|im_end|>",
    "gemma": "<end_of_turn>", "gemma2": "<end_of_turn>", "gemma3": "<end_of_turn>", "mistral": "<|endoftext|>",
}  # fmt: skip


def runs_of(ids: list[int], learned: list[bool]) -> list[list[int]]:
    """Return the tokens that are learned, those side by side together."""
    found: list[list[int]] = []
    for place, (token, is_learned) in enumerate(zip(ids, learned, strict=True)):
        if is_learned and not learned[place - 1]:
            found.append([])
        if is_learned:
            found[-1].append(token)
    return found


@pytest.mark.parametrize("system", [False, True], ids=["", "system"])
@pytest.mark.parametrize("family", ENDS)
def test_exactly_the_assistants_tokens_are_learned(family: str, system: bool) -> None:
    if system and family.startswith("gemma"):
        pytest.skip("its template has no system message")
    if system and family == "mistral":
        pytest.skip("its template takes a system message for an answer")
    lm = make_family(family)
    messages = tuple([SYSTEM, *TURNS] if system else TURNS)
    example = encode_conversation(lm, messages, "here")
    whole = lm.tokenizer.apply_chat_template(list(messages))["input_ids"]
    rest = lm.tokenizer.decode(whole[len(example.ids) :])
    assert example.ids == whole[: len(example.ids)], "the text is what the template makes of all messages"
    assert rest.strip() == ""
    learned = [lm.tokenizer.decode(run) for run in runs_of(*example)]
    space = " " if family == "mistral" else ""  # which its template writes before an answer
    assert learned == [f"{space}{answer}{ENDS[family]}" for answer in ANSWERED]


def test_what_is_read_before_an_answer_is_what_an_episode_reads() -> None:
    lm = make_family("qwen2")
    ids, learned = encode_conversation(lm, tuple(TURNS), "here")
    assert tuple(ids[: learned.index(True)]) == lm.encode_conversation((TURNS[0],))[1]


def test_answers_one_after_the_other_and_messages_behind_the_last() -> None:
    lm = make_family("qwen2")
    said = ({"role": "user", "content": "Why?"}, *TURNS[1::2], {"role": "user", "content": "And then?"})
    ids, learned = encode_conversation(lm, said, "here")
    assert [lm.tokenizer.decode(run) for run in runs_of(ids, learned)] == [f"{text}<|im_end|>" for text in ANSWERED]
    assert "And then?" not in lm.tokenizer.decode(ids)


def write(path: Path, *conversations: Any) -> Path:
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in conversations), "utf-8")
    return path


def test_labels_of_a_batch(tmp_path: Path) -> None:
    lm = make_family("llama")
    path = write(tmp_path / "a.jsonl", TURNS, TURNS[:2])
    examples = encode_examples(lm, (path,), 1000)
    batch = collate(examples, pad=1)
    for (ids, learned), labels in zip(examples, batch.labels.tolist(), strict=True):
        expected = [token if is_learned else IGNORED_LABEL for token, is_learned in zip(ids, learned, strict=True)][1:]
        assert labels == [*expected, *[IGNORED_LABEL] * (len(labels) - len(expected))]
    both = encode_examples(lm, (path,), 1000, train_on="both")
    assert [example.ids for example in both] == [example.ids for example in examples]
    assert [example.learned.count(False) for example in both] == [1, 1]
    short = encode_examples(lm, (path,), 40)
    assert [len(example.ids) for example in short] == [min(40, len(example.ids)) for example in examples]


def test_pairs_and_conversations_share_a_file(tmp_path: Path) -> None:
    lm = make_family("qwen2")
    path = tmp_path / "a.jsonl"
    records = [{"prompt": "the film", "completion": " was"}, {"messages": TURNS}, {"text": "a plot"}]
    path.write_text("\n".join(map(json.dumps, records)), "utf-8")
    first, second, third = encode_examples(lm, (path,), 1000)
    assert lm.decode(first.ids) == "the film was"
    assert second == encode_conversation(lm, tuple(TURNS), "")
    assert lm.decode(third.ids) == "a plot"


def test_a_template_is_made_saved_and_ends_answers(tmp_path: Path) -> None:
    base = save_family(tmp_path / "base", "gpt2")
    talks = write(tmp_path / "talks.jsonl", TURNS[:2])
    sft(SftConfig(model=base, files=(talks,), out=tmp_path / "out", epochs=1))
    lm = CausalLM.from_pretrained(tmp_path / "out")
    assert lm.tokenizer.chat_template == PLAIN_TEMPLATE
    text, ids = lm.encode_conversation(tuple(TURNS[:1]))
    assert text.endswith("user:\nHow is the film?<|endoftext|>\nassistant:\n")
    example = encode_conversation(lm, tuple(TURNS[:2]), "here")
    assert tuple(example.ids[: len(ids)]) == ids
    assert lm.tokenizer.decode(example.ids[len(ids) :]) == f"{ANSWERED[0]}<|endoftext|>"
    assert example.learned == [False] * len(ids) + [True] * (len(example.ids) - len(ids))

    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "the film", "completion": " was"}), "utf-8")
    sft(SftConfig(model=base, files=(pairs,), out=tmp_path / "plain", epochs=1))
    assert CausalLM.from_pretrained(tmp_path / "plain").tokenizer.chat_template is None


def test_the_command_learns_what_chat_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_family(tmp_path / "base", "qwen2", max_position_embeddings=256)
    talks = write(tmp_path / "talks.jsonl", *[TURNS] * 8)
    arguments = ["sft", "--model", base, "--files", str(talks), "--validation", str(talks), "--out"]
    assert (
        main([*arguments, str(tmp_path / "out"), "--epochs", "6", "--batch-size", "4", "--learning-rate", "3e-3"]) == 0
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if "validation" in line]
    losses = [float(line.rsplit("validation", 1)[1]) for line in lines]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([], "line 1: messages is []; expected a list of messages"),
        ("Hello", "line 1: messages is 'Hello'"),
        ([{"role": "human", "content": "Hi"}], "message 0 has the role 'human', expected one of"),
        ([{"role": "user"}], "the content of message 0 of messages is None"),
        (TURNS[1:2], "line 1: the assistant speaks first"),
        ([SYSTEM, TURNS[1]], "line 1: the assistant speaks first"),
        (TURNS[:1], "none of the assistant"),
        ([{"role": "user", "content": "film " * 300}, TURNS[1]], "leaves none of 256"),
    ],
    ids=["empty", "text", "role", "content", "first", "behind-system", "silent", "long"],
)
def test_what_is_no_conversation_to_learn_from(messages: Any, what: str, tmp_path: Path) -> None:
    lm = make_family("qwen2", max_position_embeddings=2000)
    with one_line(what):
        encode_examples(lm, (write(tmp_path / "a.jsonl", messages),), 256)


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{{ raise_exception('no system') }}", "line 1: The chat template of the tokenizer"),
        ("{% for m in messages %}{{ m['content'] | frobnicate }}{% endfor %}", "line 1: The chat template"),
        ("{{ messages[0]['content'] }}", "line 1: The chat template"),
    ],
    ids=["raises", "no-filter", "hides"],
)
def test_a_template_that_cannot_render(template: str, what: str, tmp_path: Path) -> None:
    lm = make_family("qwen2")
    lm.tokenizer.chat_template = template
    with one_line(what):
        encode_examples(lm, (write(tmp_path / "a.jsonl", TURNS),), 1000)


def test_reading_without_messages_names_them(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "Why?"}', "utf-8")
    with pytest.raises(TextEnvError, match="or the list 'messages'"):
        encode_examples(make_family("qwen2"), (path,), 100)
