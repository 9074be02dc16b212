"""Bits per character against figures worked out by hand and token by token."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from textenv.training.bits_per_character import bits_per_character
from textenv.types import TextEnvError

END, PAD = "<end>", "<pad>"
TEXTS = ["the cat sat", "a cat", "", "the", "sat sat a the cat a", "ab"]
WORDS = {END: 0, PAD: 1, "<unk>": 2, "the": 3, "cat": 4, "sat": 5, "a": 6, " ": 7}


def make_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """A word tokenizer that, like many, puts a token before each text by itself."""
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(" "), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    wrap: Any = PreTrainedTokenizerFast  # transformers doesn't type its constructor
    return cast(PreTrainedTokenizerFast, wrap(tokenizer_object=tokenizer, **special))


def make_model(dropout: float = 0.0) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        initializer_range=0.5,
        attention_dropout=dropout,
    )
    model = LlamaForCausalLM(config)
    model.train(False)
    return model


def token_by_token(model: LlamaForCausalLM, texts: list[str], *, bos: int, eos: int) -> float:
    """The definition, without batches and without padding."""
    bits = 0.0
    for text in texts:
        pieces = [piece for part in text.split(" ") for piece in (part, " ")][:-1] if text else []
        ids = [bos, *(WORDS.get(piece, WORDS["<unk>"]) for piece in pieces), eos]
        for place in range(1, len(ids)):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids[:place]])).logits[0, -1]
            bits -= float(torch.log_softmax(logits.double(), dim=-1)[ids[place]]) / math.log(2)
    return bits / (sum(len(text) for text in texts) + len(texts))


def test_uniform_model_by_hand() -> None:
    model = make_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    tokenizer = make_tokenizer(bos_token=END, eos_token=END)
    # "the cat" is 3 tokens and an end, "a" 1 and an end; 3 bits each of 8 tokens; 7 + 1 characters and 1 + 1
    assert bits_per_character(model, tokenizer, ["the cat", "a"]) == pytest.approx(3 * (4 + 2) / (8 + 2))


@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
@pytest.mark.parametrize("pad", [PAD, END])
def test_equals_the_definition_whatever_the_batches_and_the_padding_token(batch_size: int, pad: str) -> None:
    model, tokenizer = make_model(), make_tokenizer(bos_token=END, eos_token=END, pad_token=pad)
    expected = token_by_token(model, TEXTS, bos=WORDS[END], eos=WORDS[END])
    assert bits_per_character(model, tokenizer, TEXTS, batch_size=batch_size) == pytest.approx(expected, rel=1e-6)


def test_begins_with_eos_where_the_tokenizer_has_no_bos() -> None:
    model = make_model()
    expected = token_by_token(model, TEXTS, bos=WORDS[PAD], eos=WORDS[PAD])
    assert bits_per_character(model, make_tokenizer(eos_token=PAD), TEXTS) == pytest.approx(expected, rel=1e-6)


def test_given_tokens_take_precedence_the_one_with_id_0_too() -> None:
    model, tokenizer = make_model(), make_tokenizer(bos_token=PAD, eos_token=PAD)
    expected = token_by_token(model, TEXTS, bos=WORDS[END], eos=WORDS["<unk>"])
    bits = bits_per_character(model, tokenizer, TEXTS, bos_token_id=WORDS[END], eos_token_id=WORDS["<unk>"])
    assert bits == pytest.approx(expected, rel=1e-6)


def test_dropout_is_off_and_training_mode_comes_back() -> None:
    model, tokenizer = make_model(dropout=0.5), make_tokenizer(eos_token=END)
    expected = bits_per_character(model, tokenizer, TEXTS)
    model.train()
    assert bits_per_character(model, tokenizer, TEXTS) == expected
    assert model.training


def test_a_text_may_fill_the_context_and_no_more() -> None:
    model, tokenizer = make_model(), make_tokenizer(eos_token=END)
    assert bits_per_character(model, tokenizer, ["the " * 7 + "cat"]) > 0  # 15 tokens after the first: 16 predictions
    with pytest.raises(TextEnvError, match="takes 17 tokens, its beginning included; the model's context is 16"):
        bits_per_character(model, tokenizer, ["a", "the " * 8])


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        ([], {}, "0 texts, batch_size=64"),
        (["a"], {"batch_size": 0}, "1 texts, batch_size=0"),
    ],
)
def test_nothing_to_measure(texts: list[str], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TextEnvError, match=message):
        bits_per_character(make_model(), make_tokenizer(eos_token=END), texts, **settings)


def test_no_token_that_ends_a_text() -> None:
    with pytest.raises(TextEnvError, match="eos_token_id is None; expected"):
        bits_per_character(make_model(), make_tokenizer(), TEXTS)


def test_broken_weights_are_no_figure() -> None:
    model = make_model()
    torch.nn.init.constant_(cast(torch.Tensor, model.lm_head.weight), math.nan)
    with pytest.raises(TextEnvError, match="gives the texts nan nats"):
        bits_per_character(model, make_tokenizer(eos_token=END), TEXTS)
