"""Conversations: what the chat template makes of them, what ends them, and what a reward gets of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tests.families import family_model, family_tokenizer, make_family, save_family
from textenv import CausalLM, TextEnv, TextEnvError, TextVectorEnv
from textenv.models.chat import end_of_turn
from textenv.rewards import make
from textenv.training.tokenizer import END
from textenv.types import Prompt

USER = {"role": "user", "content": "How is the film?"}
SYSTEM = {"role": "system", "content": "Be brief."}
BEGUN = {"role": "assistant", "content": "It was"}
CONVERSATIONS = [[USER], [USER, {"role": "assistant", "content": "Good."}, {"role": "user", "content": "Why?"}]]
ENDS = {
    "llama": "<|eot_id|>", "smollm2": "<|im_end|>", "qwen2": "<|im_end|>", "qwen3": "<|im_end|>",
    "gemma": "<end_of_turn>", "gemma2": "<end_of_turn>", "gemma3": "<end_of_turn>",
}  # fmt: skip
# A model with sliding layers may go without the prefix cache where a text is longer than they see.
pytestmark = pytest.mark.filterwarnings("ignore:.*without the prefix cache")


def zeros(completions: Any, **_: Any) -> list[float]:
    return [0.0] * len(completions)


class Recorded:
    """A reward that keeps what it was called with."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, **arguments: Any) -> list[float]:
        self.calls.append(arguments)
        return [1.0] * len(arguments["completions"])


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    """A small Qwen2 with a ChatML template; its weights stay as they are."""
    return make_family("qwen2")


def finish(env: TextEnv, words: str, end: str = "<|im_end|>") -> dict[str, Any]:
    """Write ``words`` and the token that ends a turn; return the last info."""
    tokenizer = env.reference.tokenizer
    for token in tokenizer(words, add_special_tokens=False)["input_ids"]:
        assert not env.step(token)[2]
    *_, terminated, _, info = env.step(tokenizer.convert_tokens_to_ids(end))
    assert terminated
    return info


# -- the template -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ENDS)
def test_a_conversation_is_encoded_as_transformers_encodes_it(family: str) -> None:
    env = TextEnv(model=make_family(family), prompts=CONVERSATIONS, reward=zeros)
    tokenizer = env.reference.tokenizer
    for prompt, messages in zip(env.prompts, CONVERSATIONS, strict=True):
        how = {"add_generation_prompt": True}
        assert list(prompt.ids) == tokenizer.apply_chat_template(messages, **how)["input_ids"]
        assert prompt.text == tokenizer.apply_chat_template(messages, tokenize=False, **how)
        starts = prompt.ids.count(tokenizer.bos_token_id)
        assert starts == prompt.text.count(tokenizer.bos_token) <= 1  # once, where the template writes it
        closed = tokenizer.apply_chat_template(messages, tokenize=False)
        assert prompt.text.startswith(closed)
        assert prompt.text != closed  # the assistant's turn is open


@pytest.mark.parametrize("family", ENDS)
def test_what_the_assistant_began_is_left_open(family: str) -> None:
    env = TextEnv(model=make_family(family), prompts=[[USER, BEGUN]], reward=zeros)
    assert env.prompts[0].text.endswith("It was")
    assert ENDS[family] in env.prompts[0].text  # the user's turn is closed
    assert env.reference.tokenizer.decode(env.prompts[0].ids).endswith("It was")


def test_chat_takes_texts_as_messages_of_a_user(lm: CausalLM) -> None:
    texts = TextEnv(model=lm, prompts=[USER["content"]], chat=True, reward=zeros)
    messages = TextEnv(model=lm, prompts=[[USER]], reward=zeros)
    assert texts.prompts[0].ids == messages.prompts[0].ids
    assert TextEnv(model=lm, prompts=[[USER]], chat=True, reward=zeros).prompts == messages.prompts
    given = texts.reset(options={"prompt": "Why?"})[1]["prompt"]
    assert given == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


def test_without_chat_a_text_stays_as_it_is(lm: CausalLM) -> None:
    env = TextEnv(model=lm, prompts=["the film"], reward=zeros)
    assert env.prompts[0].text == "the film"
    assert env.prompts[0].ids == lm.encode("the film")


@pytest.mark.parametrize(
    ("family", "prompt", "message"),
    [
        ("gpt2", [USER], "has no chat template"),
        ("gemma", [SYSTEM, USER], "refuses the prompt .*TemplateError: System role not supported"),
        ("qwen2", [], "expected a text, or a list of messages"),
        ("qwen2", [[USER]], r"message 0 is \[.*expected a mapping"),
        ("qwen2", [{"from": "human", "value": "Hi"}], "message 0 has the role None, expected one of"),
        ("qwen2", [USER, {"role": "human", "content": "Hi"}], "message 1 has the role 'human', expected one of"),
        ("qwen2", [{"role": "user"}], "the content of message 0 of prompt is None; expected a text"),
        (
            "qwen2",
            [{"role": "user", "content": [{"type": "text"}]}],
            "message 0 of prompt is .*; expected a text",
        ),
    ],
)
def test_what_is_no_conversation_is_refused(family: str, prompt: Any, message: str) -> None:
    model = make_family(family)
    with pytest.raises(TextEnvError, match=message):
        TextEnv(model=model, prompts=[{"prompt": prompt}], reward=zeros)
    if prompt and prompt != [[USER]]:  # a list of conversations is one for each row
        env = TextEnv(model=model, prompts=["the film"], reward=zeros, max_prompt_tokens=40)
        with pytest.raises(TextEnvError, match=message):
            env.reset(options={"prompt": prompt})


def test_texts_and_conversations_do_not_mix(lm: CausalLM) -> None:
    with pytest.raises(TextEnvError, match=r"row 1: .*the first row holds 'the film'. Expected texts, or"):
        TextEnv(model=lm, prompts=["the film", [USER]], reward=zeros)


# -- where it ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("special", [True, False], ids=["special", "plain"])
@pytest.mark.parametrize("family", ENDS)
def test_the_end_of_a_turn_ends_the_episode(family: str, special: bool) -> None:
    tokenizer = family_tokenizer(family, special=special)
    model = CausalLM(family_model(family), tokenizer)
    end = tokenizer.convert_tokens_to_ids(ENDS[family])
    assert end not in (tokenizer.eos_token_id, model.model.generation_config.eos_token_id)  # neither names it
    assert model.eos_ids == (0, end)
    env = TextEnv(model=model, prompts=[[USER]], reward=zeros)
    env.reset()
    info = finish(env, " thin", ENDS[family])
    assert info["stop_reason"] == "eos"
    assert info["completion"] == " thin"
    assert info["completion_ids"][-1] == end


@pytest.mark.parametrize(
    ("behind", "expected"),
    [
        ("'<|im_end|>\\n'", "<|im_end|>"),
        ("' ' + eos_token", END),
        ("'\\n\\n<|im_end|>'", "<|im_end|>"),
        (f"'<|im_end|>{END}'", "<|im_end|>"),
        ("'<|im_end|>plus'", "<|im_end|>plus"),  # the longest
        ("'\\nUser: '", None),
        ("' [END]<|im_end|>'", None),  # text comes first
        ("''", None),
    ],
)
def test_the_end_of_a_turn_is_what_stands_behind_the_answer(behind: str, expected: str | None) -> None:
    tokenizer = family_tokenizer("qwen2")
    tokenizer.add_tokens(["<|im_end|>plus", "\n\n"])
    turn = "m['role'] + ': ' + m['content'] + " + behind
    tokenizer.chat_template = "{% for m in messages %}{{ " + turn + " }}{% endfor %}"
    found = end_of_turn(tokenizer)
    assert found == (None if expected is None else tokenizer.convert_tokens_to_ids(expected))


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no') }}", "{{ messages[0]['content'] }}"])
def test_a_template_may_name_no_end(template: str | None) -> None:
    tokenizer = family_tokenizer("qwen2")
    tokenizer.chat_template = template
    assert end_of_turn(tokenizer) is None
    assert CausalLM(family_model("qwen2"), tokenizer).eos_ids == (0,)


def test_an_end_of_turn_beyond_the_model_is_left_out() -> None:
    tokenizer = family_tokenizer("qwen2")
    assert CausalLM(family_model("qwen2", vocab_size=len(tokenizer) - 1), tokenizer).eos_ids == (0,)


def test_all_stop_tokens_of_the_generation_config_count() -> None:
    model = family_model("llama")
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [5, 7]
    lm = CausalLM(model, family_tokenizer("llama"))
    assert lm.eos_ids == (0, 5, 7, lm.tokenizer.convert_tokens_to_ids("<|eot_id|>"))
    assert lm.decode([*lm.encode("thin"), 7]) == "thin"


def test_a_tokenizer_without_pad_and_bos_pads_with_an_end() -> None:
    tokenizer = family_tokenizer("qwen2")
    tokenizer.pad_token = tokenizer.bos_token = None
    env = TextEnv(model=CausalLM(family_model("qwen2"), tokenizer), prompts=[[USER], [USER, BEGUN]], reward=zeros)
    assert env.reference.pad_id == 0
    obs, _ = env.reset(options={"prompt_index": 0})
    assert int(obs["attention_mask"].sum()) == len(env.prompts[0].ids)
    assert finish(env, "thin")["completion"] == "thin"


# -- what a reward gets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "chat", "prompts", "completions"),
    [
        ([USER], False, [[USER]], [[{"role": "assistant", "content": " thin"}]]),
        ([SYSTEM, USER, BEGUN], False, [[SYSTEM, USER]], [[{"role": "assistant", "content": "It was thin"}]]),
        (USER["content"], True, [USER["content"]], [" thin"]),
        ("the film", False, ["the film"], [" thin"]),
    ],
    ids=["conversation", "begun", "chat", "text"],
)
def test_a_reward_gets_prompts_as_they_were_given(
    lm: CausalLM, prompt: Any, chat: bool, prompts: Any, completions: Any
) -> None:
    reward = Recorded()
    rows = [{"prompt": prompt, "label": 3}]
    env = TextEnv(model=lm, prompts=rows, reward=reward, chat=chat)
    env.reset()
    info = finish(env, " thin")
    (call,) = reward.calls
    expected = {
        "prompts": prompts,
        "completions": completions,
        "completion_ids": [list(info["completion_ids"])],
        "label": [3],
    }
    assert {name: call[name] for name in expected} == expected
    assert call.keys() - expected.keys() == {"log_extra", "log_metric", "trainer_state"}
    assert info["completion"] == " thin"  # texts, whatever the form
    assert info["prompt"] == env.prompts[0].text
    json.dumps(info, default=dict)  # what is logged is a mapping


def test_a_reward_may_change_what_it_gets(lm: CausalLM) -> None:
    seen = []

    def greedy(prompts: Any, completions: Any, **_: Any) -> list[float]:
        seen.append(prompts[0].pop()["content"])  # as trainers of TRL themselves do
        completions[0][0]["content"] = ""
        return [0.0]

    env = TextEnv(model=lm, prompts=[[USER]], reward=greedy)
    for _ in range(2):
        env.reset()
        finish(env, " thin")
    assert seen == [USER["content"]] * 2


@pytest.mark.parametrize(
    "reward",
    [
        "vader",
        {"name": "length", "target": 3},
        {"name": "pattern", "pattern": "great"},
        {"name": "pattern", "pattern": "great", "mode": "count"},
        {"name": "rouge"},
        {"name": "bleu"},
        {"name": "chrf"},
        {"name": "weighted_sum", "rewards": ["vader", {"name": "length", "target": 2}], "weights": [1.0, 2.0]},
    ],
    ids=lambda reward: reward if isinstance(reward, str) else reward["name"],
)
def test_rewards_of_texts_read_what_the_assistant_said(reward: Any) -> None:
    texts = ["a great, great film", "thin", ""]
    rest: dict[str, Any] = {"completion_ids": [[1], [2], [3]], "reference": ["a great film", "great", "thin"]}
    expected = make(reward)(prompts=["p"] * 3, completions=texts, **rest)
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    assert make(reward)(prompts=[[USER]] * 3, completions=completions, **rest) == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("completion", [[{"role": "assistant"}], 5, [5], [{"content": None}]])
def test_rewards_of_texts_refuse_what_holds_none(completion: Any) -> None:
    with pytest.raises(TextEnvError, match="neither a text nor a list of messages"):
        make("vader")(prompts=["p"], completions=[completion], completion_ids=[[1]])


# -- the environment ----------------------------------------------------------------------------------------------


def test_reset_takes_conversations_for_all_rows_or_each(lm: CausalLM) -> None:
    envs = TextVectorEnv(2, model=lm, prompts=CONVERSATIONS, reward=zeros)
    one, two = (prompt.text for prompt in envs.prompts)
    assert list(envs.reset(options={"prompt": CONVERSATIONS[1]})[1]["prompt"]) == [two, two]
    assert list(envs.reset(options={"prompt": CONVERSATIONS[::-1]})[1]["prompt"]) == [two, one]
    assert list(envs.reset(options={"prompt": envs.prompts[::-1]})[1]["prompt"]) == [two, one]
    assert list(envs.reset(options={"prompt": [envs.prompts[1], "the film"]})[1]["prompt"]) == [two, "the film"]


def test_a_prompt_of_the_environment_keeps_its_columns(lm: CausalLM) -> None:
    reward = Recorded()
    env = TextEnv(model=lm, prompts=[{"prompt": "it", "label": 1}, {"prompt": "a", "label": 2}], reward=reward)
    env.reset(options={"prompt": env.prompts[1]})
    finish(env, " thin")
    assert reward.calls[0]["label"] == [2]


def test_a_prompt_of_another_model_is_refused(lm: CausalLM) -> None:
    env = TextEnv(model=lm, prompts=["it"], reward=zeros)
    for ids in ((), (-1,), (lm.vocab_size,)):
        with pytest.raises(TextEnvError, match="made for another model"):
            env.reset(options={"prompt": Prompt("it", ids)})


def test_environments_of_conversations_pass_the_checker_and_are_json(tmp_path: Path) -> None:
    env = gym.make(
        "textenv/Text-v0",
        model=save_family(tmp_path, "qwen2"),
        prompts=CONVERSATIONS,
        reward="vader",
        device="cpu",
        torch_dtype="float32",
    )
    assert env.spec is not None
    again = gym.spec(json.loads(env.spec.to_json())["id"])
    assert again.id == "textenv/Text-v0"
    check_env(env.unwrapped)


def test_conversations_are_shown_by_their_roles(lm: CausalLM) -> None:
    env = TextEnv(model=lm, prompts=[[USER]], reward=zeros, render_mode="ansi")
    env.reset()
    finish(env, " thin")
    frame = env.render()
    assert frame is not None
    assert "user: How is the film?" in frame
    assert "im_start" not in frame  # which the template wrote
    assert env.last_episode is not None
    assert env.last_episode.prompt == env.prompts[0].text


# -- sources ------------------------------------------------------------------------------------------------------

ROWS: list[dict[str, Any]] = [
    {"prompt": [USER], "label": 1},
    {"prompt": [USER, {"role": "assistant", "content": "Good.", "name": "critic"}], "label": 0},
]


def jsonl(folder: Path) -> Any:
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS), "utf-8")
    return folder / "rows.jsonl"


def parquet(folder: Path) -> Any:
    import pyarrow
    from pyarrow import parquet as files

    files.write_table(pyarrow.Table.from_pylist(ROWS), folder / "rows.parquet")
    return folder / "rows.parquet"


def dataset(folder: Path) -> Any:
    import datasets

    return datasets.Dataset.from_list(ROWS)


def arrays(folder: Path) -> Any:  # what pandas.read_parquet makes of lists
    return [{**row, "prompt": np.array(row["prompt"], dtype=object)} for row in ROWS]


@pytest.mark.parametrize("make_source", [lambda folder: ROWS, jsonl, parquet, dataset, arrays])
def test_conversations_come_from_every_source(lm: CausalLM, make_source: Callable[[Path], Any], tmp_path: Path) -> None:
    env = TextEnv(model=lm, prompts=make_source(tmp_path), reward=zeros)
    assert [list(prompt.given or ()) for prompt in env.prompts] == [row["prompt"] for row in ROWS]
    assert [prompt.columns for prompt in env.prompts] == [{"label": 1}, {"label": 0}]


# -- where it runs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "device='gpu': expected 'cpu', 'cuda', 'cuda:1' or 'auto'"),
        ("meta", "device='meta': expected 'cpu'"),
        ("cuda", r"device='cuda': torch .* can use 0 device\(s\) of the kind 'cuda'"),
        ("cuda:2", "device='cuda:2': torch"),
        ("cpu:1", "device='cpu:1': torch"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    device: str, message: str, monkeypatch: pytest.MonkeyPatch, lm: CausalLM
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for model in ("bundled", lm):
        with pytest.raises(TextEnvError, match=message):
            TextEnv(model=model, device=device)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_weights_have_the_type_that_was_asked_for(name: str, tmp_path: Path) -> None:
    folder = save_family(tmp_path, "smollm2")
    env = TextEnv(model=folder, torch_dtype=name, device="cpu", prompts=["it"], reward=zeros)
    assert {str(p.dtype) for p in env.reference.model.parameters()} == {f"torch.{name}"}
    env.reference.model.save_pretrained(folder)
    saved = TextEnv(model=folder, torch_dtype="auto", prompts=["it"], reward=zeros)
    assert saved.reference.model.dtype == env.reference.model.dtype
    assert str(TextEnv(model=folder, prompts=["it"], reward=zeros).reference.model.dtype) == "torch.float32"


def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    env = TextEnv(model=save_family(tmp_path, "gpt2"), device="auto", prompts=["it"], reward=zeros)
    assert env.reference.device.type == "cpu"


def test_a_model_that_lives_elsewhere_is_not_moved(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"model": lm, "prompts": ["it"], "reward": zeros}
    assert TextEnv(**given, device="cpu", torch_dtype="float32").reference is lm
    assert TextEnv(**given, device="cpu:0", torch_dtype="auto").reference is lm
    with pytest.raises(TextEnvError, match=r"torch_dtype='bfloat16', but the model that was given is of torch.float32"):
        TextEnv(**given, torch_dtype="bfloat16")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(TextEnvError, match="device='cuda', but the model that was given is on 'cpu'"):
        TextEnv(**given, device="cuda")
