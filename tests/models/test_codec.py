"""Parts of texts are decoded and encoded after what precedes them, for every kind of tokenizer."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from textenv.analysis.doctor import examine
from textenv.env.render import to_ansi
from textenv.env.vector import TextVectorEnv
from textenv.models.causal_lm import CausalLM
from textenv.models.codec import TextCodec
from textenv.models.reward_model import RewardModel
from textenv.training.examples import encode_examples
from textenv.training.tokenizer import train_tokenizer
from textenv.types import Prompt, TextEnvError

WORDS = ["the film is good, and the plot of it was thin.", "The film was great", "a cast", "ab c0 b.a"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
KINDS = ("bytes", "llama", "metaspace", "wordpiece")
LOSSLESS = ("bytes", "llama", "metaspace")
TEXTS = st.text(alphabet="The film is good, é漢😀\n", min_size=1, max_size=12)


def wrapped(tokenizer: Tokenizer, **special: str) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


def trained(tokenizer: Tokenizer, trainer: Any, split: Any) -> Tokenizer:
    tokenizer.pre_tokenizer = split
    tokenizer.train_from_iterator(WORDS * 5, trainer=trainer)
    return tokenizer


@functools.cache
def make_tokenizer(kind: str) -> Any:
    special = ["<unk>", "<s>", "</s>"]
    names = dict(zip(("unk_token", "bos_token", "eos_token"), special, strict=True))
    if kind == "bytes":  # as GPT-2
        return train_tokenizer(iter(WORDS * 5), 300)
    if kind == "wordpiece":  # as BERT
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        pieces = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
        trained(tokenizer, pieces, pre_tokenizers.BertPreTokenizer())
        tokenizer.decoder = decoders.WordPiece(cleanup=False)
        return wrapped(tokenizer, **names)
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=[*special, *BYTES], show_progress=False)
    if kind == "llama":  # as Llama 1 and 2, Mistral, TinyLlama
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        trained(tokenizer, trainer, pre_tokenizers.Split("▁", "merged_with_next"))
        start = decoders.Replace("▁", " ")
        tokenizer.decoder = decoders.Sequence(
            [start, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:  # as Llama 2 and Gemma in newer files
        trained(tokenizer, trainer, pre_tokenizers.Metaspace(prepend_scheme="first"))
        tokenizer.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first"), decoders.Fuse()]
        )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = json.loads(tokenizer.to_str())
    made["added_tokens"] = made["added_tokens"][: len(special)]  # bytes are no special tokens
    if kind == "llama":
        made["pre_tokenizer"] = None  # published ones split nothing, since none of their tokens spans words
    return wrapped(Tokenizer.from_str(json.dumps(made)), **names)


@functools.cache
def make_lm(kind: str) -> CausalLM:
    tokenizer = make_tokenizer(kind)
    eos = tokenizer.eos_token_id
    shape: dict[str, Any] = dict.fromkeys(("hidden_size", "intermediate_size"), 16)
    shape |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        **shape, vocab_size=len(tokenizer) + 3, max_position_embeddings=128, bos_token_id=eos, eos_token_id=eos
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CausalLM(LlamaForCausalLM(config).requires_grad_(False), tokenizer)


def save(kind: str, folder: Path) -> str:
    make_lm(kind).model.save_pretrained(folder)
    make_tokenizer(kind).save_pretrained(folder)
    return str(folder)


def spoken(lm: CausalLM, prompt: Prompt, ids: list[int]) -> str:
    """Return the texts of the tokens that are part of the text, as one."""
    shown = zip(ids, lm.token_texts(ids, prompt), strict=True)
    special = {*lm.tokenizer.all_special_ids, *lm.eos_ids}
    return "".join(text for token, text in shown if token not in special and token < len(lm.tokenizer))


def test_a_llama_tokenizer_keeps_the_space_between_prompt_and_completion() -> None:
    lm = make_lm("llama")
    ids, prompt = lm.encode("The film is good"), Prompt("The film", lm.encode("The film"))
    assert ids[: len(prompt.ids)] == prompt.ids
    written = ids[len(prompt.ids) :]
    assert lm.decode(written) == "is good", "by themselves the tokens say something else"
    assert lm.completion_text(prompt, written) == " is good"
    assert "".join(lm.token_texts(written, prompt)) == " is good"
    assert lm.encode_completions(["The film"], [" is good"]) == [(prompt.ids, written)]


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS, more=st.lists(st.integers(0, 10**6), max_size=10))
@settings(max_examples=30)
def test_prompt_and_completion_are_the_decoding_of_all_ids(kind: str, text: str, more: list[int]) -> None:
    lm = make_lm(kind)
    prompt, ids = Prompt(text, lm.encode(text)), [token % lm.vocab_size for token in more]
    begun, whole = lm.decode(prompt.ids), lm.decode([*prompt.ids, *ids])
    completion = lm.completion_text(prompt, ids)
    if whole.startswith(begun):  # bytes that are no character may spoil those before them
        assert begun + completion in {whole, begun + whole.removeprefix(text)}
    if kind in LOSSLESS and not (kind == "metaspace" and text.startswith(" ")):  # it drops the space at the start
        assert begun == text
    if whole.startswith(text):
        assert text + completion == whole
    assert spoken(lm, prompt, ids) == completion


@pytest.mark.parametrize("kind", LOSSLESS)
@given(prompt=TEXTS, completion=TEXTS)
@settings(max_examples=30)
def test_a_completion_is_encoded_as_what_continues_its_prompt(kind: str, prompt: str, completion: str) -> None:
    lm = make_lm(kind)
    ((start, ids),) = lm.encode_completions([prompt], [completion])
    assert start == lm.encode(prompt)
    assert lm.decode([*start, *ids]) == lm.decode(lm.encode(prompt + completion))
    if not (kind == "metaspace" and prompt.startswith(" ")):
        assert lm.decode([*start, *ids]) == prompt + completion
        assert lm.completion_text(Prompt(prompt, start), ids) == completion


def test_a_completion_that_no_token_continues() -> None:
    lm = make_lm("wordpiece")
    assert lm.decode([token for part in lm.encode_completions(["the film"], [" is good"])[0] for token in part]) == (
        "the film is good"
    )
    with pytest.raises(TextEnvError, match="reads both as one word"):
        lm.encode_completions(["th"], ["zzé film"])


def test_a_character_of_several_tokens_belongs_to_the_last() -> None:
    for kind in LOSSLESS:
        lm = make_lm(kind)
        prompt, (start, ids) = Prompt("The", lm.encode("The")), lm.encode_completions(["The"], ["漢!"])[0]
        texts = lm.token_texts(ids, prompt)
        assert start == prompt.ids
        assert [text for text in texts if text] == ["漢", "!"]
        within = lm.prompt((*start, *ids[:2]))
        assert (within.text, lm.completion_text(within, ids[2:])) == ("The", "漢!")


def test_white_space_at_the_end_of_a_prompt_is_not_doubled() -> None:
    lm = make_lm("wordpiece")
    prompt = Prompt("the ", lm.encode("the "))
    film = lm.encode("the film")[len(prompt.ids) :]
    assert prompt.text + lm.completion_text(prompt, film) == lm.decode((*prompt.ids, *film)) == "the film"


def count_decoded(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that will hold of how many tokens each decoding was."""
    counts: list[int] = []
    decode = lm.tokenizer.decode

    def counted(ids: list[int], **options: Any) -> str:
        counts.append(len(ids))
        return str(decode(ids, **options))

    monkeypatch.setattr(lm.tokenizer, "decode", counted)
    return counts


def test_a_long_prompt_is_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in LOSSLESS:
        lm = make_lm(kind)
        text = "the film was good, and " * 20
        prompt = Prompt(text, lm.encode(text))
        assert lm.completion_text(prompt, lm.encode_completions([text], ["thin"])[0][1]) == "thin"
        with monkeypatch.context() as patch:
            patch.setattr(lm._codec, "_backend", None)
            read = count_decoded(lm, patch)
            lm.completion_text(prompt, [5, 6])
        assert 0 < max(read) <= 40 < len(prompt.ids)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_reward_and_people_read(kind: str) -> None:
    lm = make_lm(kind)
    read: list[str] = []

    def reward(*, prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        read.extend(prompt + completion for prompt, completion in zip(prompts, completions, strict=True))
        return [0.0] * len(prompts)

    ((_, ids),) = lm.encode_completions(["the film"], [" is good"])
    env = TextVectorEnv(
        1, model=lm, reward=reward, prompts=["the film"], max_new_tokens=len(ids) + 1, stop=[" good"],
        autoreset_mode="Disabled",
    )  # fmt: skip
    _, infos = env.reset(seed=0)
    for token in ids:
        *_, infos = env.step(np.array([token]))
    (episode,) = env.last_episodes
    assert episode is not None
    assert (episode.stop_reason, infos["completion"][0], read) == ("stop", " is", ["the film is"])
    assert to_ansi(episode, color=False).startswith("the film is good")


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_are_trained_as_a_policy_writes_them(kind: str, tmp_path: Path) -> None:
    lm, file = make_lm(kind), tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "the film", "completion": " is good"}))
    ((ids, learned),) = encode_examples(lm, (file,), 100)
    start = learned.index(True)
    assert (lm.decode(ids), tuple(ids[:start])) == ("the film is good", lm.encode("the film"))
    model = RewardModel(lm)
    assert lm.decode(model.encode(["the film"], [" is good"])[0]) == "the film is good"


def texts_finding(model: str) -> Any:
    settings = {
        "model": model,
        "reward": {"name": "length", "target": 3},
        "prompts": ["The film", "the plot"],
        "max_new_tokens": 4,
    }
    found = examine("textenv/Text-v0", settings, num_envs=2)
    return next(finding for finding in found if "text of all tokens" in finding.name)


def test_the_doctor_reads_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save("llama", tmp_path / "model")
    assert texts_finding(model).ok
    monkeypatch.setattr(CausalLM, "completion_text", lambda self, prompt, ids: self.decode(ids))
    finding = texts_finding(model)
    assert not finding.ok
    assert finding.detail == "'The film' of the model is 'Thefilm' to the reward"


def test_the_doctor_finds_a_tokenizer_that_changes_prompts(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(make_tokenizer("bytes").backend_tokenizer.to_str())
    tokenizer.normalizer = normalizers.Lowercase()
    make_lm("bytes").model.save_pretrained(tmp_path)
    wrapped(tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>").save_pretrained(tmp_path)
    finding = texts_finding(str(tmp_path))
    assert (finding.ok, "'the film' of the model is 'The film' to the reward" in finding.detail) == (False, True)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30)
@given(ids=st.lists(st.integers(0, 10**6), max_size=12))
def test_what_transformers_does_around_a_decoding_changes_nothing(kind: str, ids: list[int]) -> None:
    tokenizer = make_tokenizer(kind)
    codec, plain = TextCodec(tokenizer), TextCodec(tokenizer)
    assert codec._backend is not None
    plain._backend = None
    tokens = [token % len(tokenizer) for token in ids]
    assert codec.decode(tokens) == plain.decode(tokens)


def test_a_tokenizer_that_decodes_in_its_own_way_is_asked() -> None:
    class Shouting(PreTrainedTokenizerFast):
        def decode(self, *given: Any, **settings: Any) -> Any:
            return str(super().decode(*given, **settings)).upper()

    make: Any = Shouting
    tokenizer = make(tokenizer_object=make_tokenizer("bytes").backend_tokenizer)
    codec = TextCodec(tokenizer)
    assert codec.decode(tokenizer("the film")["input_ids"]) == "THE FILM"
