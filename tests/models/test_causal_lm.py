"""The language model: what it says with its prefix cache is what it says without, whatever was asked before."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from tokenizers import processors
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.bert import BertConfig, BertLMHeadModel
from transformers.utils import logging

from tests.conftest import Forwards, build_lm
from textenv import CausalLM, TextEnvError
from textenv.models import causal_lm
from textenv.models.loading import quiet
from textenv.models.positions import longest_input
from textenv.models.weight_watch import WeightWatch
from textenv.training.tokenizer import train_tokenizer

VOCABULARY = 300
WIDTH = 24
ROWS = 4
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # far from uniform, so that mistakes show
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
EAGER: dict[str, Any] = {"attn_implementation": "eager"}
ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama, grouped queries, untied head": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=2)),
    "llama, eager attention": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, **EAGER)),
    "gpt2, learned positions, tied head": lambda: GPT2LMHeadModel(GPT2Config(**SHAPE)),
    "qwen2, biases": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, num_key_value_heads=2, tie_word_embeddings=True)),
    "gemma, one key head, wide heads": lambda: GemmaForCausalLM(
        GemmaConfig(**SHAPE, num_key_value_heads=1, head_dim=16)
    ),
    "granite, scaled logits": lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=4.0)),
}


def make_tokenizer() -> Any:
    return train_tokenizer(iter(["the film was a great film, and the plot of it was thin. "] * 20), VOCABULARY)


def make(model: Callable[[], PreTrainedModel], seed: int = 0) -> CausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CausalLM(model().requires_grad_(False), make_tokenizer())


def head(lm: CausalLM) -> Any:
    return lm.model.get_output_embeddings()


def random_texts(rng: np.random.Generator, rows: int = ROWS, width: int = WIDTH) -> tuple[Any, Any]:
    return rng.integers(0, VOCABULARY, size=(rows, width)), rng.integers(1, width + 1, size=rows)


def plain_logits(lm: CausalLM, ids: Any, lengths: Any) -> torch.Tensor:
    """What the model says of each text alone: no padding, no cache."""
    with torch.no_grad():
        return torch.stack(
            [
                lm.model(input_ids=torch.tensor(row[:length])[None]).logits[0, -1].float()
                for row, length in zip(ids, lengths, strict=True)
            ]
        )


# -- cached against uncached --------------------------------------------------------------------------------------


class Machine(RuleBasedStateMachine):
    """Texts that change in every way they may, and weights too; after each change cached must equal uncached."""

    architecture: Callable[[], PreTrainedModel]

    @initialize(seed=st.integers(0, 2**20))
    def start(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.lm = make(self.architecture)
        self.ids, self.lengths = random_texts(self.rng)
        self.asked: Any = np.arange(ROWS)

    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        rows = np.flatnonzero(self.lengths < self.ids.shape[1])
        self.ids[rows, self.lengths[rows]] = self.rng.integers(0, VOCABULARY, size=len(rows))
        self.lengths[rows] += 1

    @rule(several=st.integers(2, 5))
    def append_several_to_some(self, several: int) -> None:
        rows = self.rng.permutation(len(self.lengths))[: 1 + len(self.lengths) // 2]
        self.lengths[rows] = np.minimum(self.lengths[rows] + several, self.ids.shape[1])  # what padding there was

    @rule(row=st.integers(0, 20))
    def reset(self, row: int) -> None:
        row %= len(self.lengths)
        self.ids[row], self.lengths[row] = self.rng.integers(0, VOCABULARY, size=self.ids.shape[1]), 1 + row % 4

    @rule(row=st.integers(0, 20), other=st.integers(0, 20), same=st.integers(1, WIDTH))
    def begin_as_another_row_did(self, row: int, other: int, same: int) -> None:
        row, other, width = row % len(self.lengths), other % len(self.lengths), self.ids.shape[1]
        self.ids[row, :same] = self.ids[other, :same]
        self.lengths[row] = min(same + row % 3, width)

    @rule(length=st.integers(1, WIDTH), rows=st.integers(2, 6))
    def begin_together(self, length: int, rows: int) -> None:
        self.ids[:rows] = self.rng.integers(0, VOCABULARY, size=self.ids.shape[1])
        self.lengths[:rows] = min(length, self.ids.shape[1])

    @rule()
    def swap(self) -> None:
        order = self.rng.permutation(len(self.lengths))
        self.ids, self.lengths = self.ids[order], self.lengths[order]

    @rule()
    def shorten(self) -> None:
        self.lengths = np.maximum(self.lengths // 2, 1)

    @rule()
    def change_one_token_inside(self) -> None:
        self.ids[:, self.rng.integers(0, self.ids.shape[1])] = self.rng.integers(0, VOCABULARY)

    @rule()
    def change_padding(self) -> None:
        padding = np.arange(self.ids.shape[1]) >= self.lengths[:, None]
        self.ids[padding] = self.rng.integers(0, VOCABULARY)

    @rule(size=st.integers(1, 6))
    def resize_batch(self, size: int) -> None:
        ids, lengths = random_texts(self.rng, size, self.ids.shape[1])
        keep = min(size, len(self.lengths))
        ids[:keep], lengths[:keep] = self.ids[:keep], self.lengths[:keep]
        self.ids, self.lengths = ids, lengths

    @rule(wider=st.booleans())
    def change_width(self, wider: bool) -> None:
        width = min(self.ids.shape[1] + 3, 40) if wider else int(self.lengths.max())
        ids = np.ones((len(self.ids), width), dtype=np.int64)
        common = min(width, self.ids.shape[1])
        ids[:, :common] = self.ids[:, :common]
        self.ids = ids

    @rule(data=st.data())
    def ask_about_some(self, data: st.DataObject) -> None:
        self.asked = np.array(data.draw(st.lists(st.integers(0, len(self.lengths) - 1), min_size=1, unique=True)))

    @rule()
    def forget(self) -> None:
        self.lm.forget(np.array([0, 99]))

    @rule()
    def optimizer_step(self) -> None:
        parameters = list(self.lm.model.parameters())
        for parameter in parameters:
            parameter.requires_grad_(True).grad = torch.full_like(parameter, 1.0)
        torch.optim.AdamW(parameters, lr=0.01).step()
        self.lm.model.requires_grad_(False)

    @rule()
    def load_state_dict(self) -> None:
        self.lm.model.load_state_dict(
            {name: tensor * 0.9 for name, tensor in self.lm.model.state_dict().items()}, strict=True
        )

    @rule()
    def polyak_update(self) -> None:
        for parameter in self.lm.model.parameters():  # as stable-baselines3 does
            parameter.data.mul_(0.9)

    @rule(which=st.integers(0, 10**6))
    def write_through_data(self, which: int) -> None:
        parameters = list(self.lm.model.parameters())
        parameters[which % len(parameters)].data.mul_(1.1)

    @rule(which=st.integers(0, 10**6))
    def swap_data(self, which: int) -> None:
        parameter = list(self.lm.model.parameters())[which % len(list(self.lm.model.parameters()))]
        parameter.data = parameter.data * 1.1

    @rule()
    def replace_a_parameter(self) -> None:
        embedding: Any = self.lm.model.get_input_embeddings()
        embedding.weight = torch.nn.Parameter(embedding.weight + 0.1, requires_grad=False)
        self.lm.model.tie_weights()

    @invariant()
    def cached_equals_uncached(self) -> None:
        if not hasattr(self, "lm"):
            return
        rows = self.asked[self.asked < len(self.lengths)]
        self.asked = rows = rows if len(rows) else np.arange(len(self.lengths))
        ids, lengths = self.ids[rows], self.lengths[rows]
        logits = self.lm.next_token_logits(ids, lengths, rows=rows)
        hidden = self.lm.last_hidden(ids, lengths)  # of another row, for once: a matter of speed alone
        expected = plain_logits(self.lm, ids, lengths)
        scale = float(expected.abs().max())
        assert logits.shape == (len(rows), VOCABULARY)
        assert float((logits - expected).abs().max()) <= 1e-4 * max(1.0, scale)
        assert float((self.lm.head(hidden) - expected).abs().max()) <= 1e-4 * max(1.0, scale)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_cache_changes_no_number(name: str) -> None:
    machine = type("Machine", (Machine,), {"architecture": staticmethod(ARCHITECTURES[name])})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=10,
            stateful_step_count=25,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_cached_too(dtype: torch.dtype) -> None:
    def build() -> PreTrainedModel:
        model: Any = LlamaForCausalLM(LlamaConfig(**SHAPE))
        return cast(PreTrainedModel, model.to(dtype))

    lm = make(build)
    ids, lengths = random_texts(np.random.default_rng(0))
    lm.next_token_logits(ids, np.maximum(lengths - 1, 1))
    logits, expected = lm.next_token_logits(ids, lengths), plain_logits(lm, ids, lengths)
    assert logits.dtype == torch.float32
    assert float((logits - expected).abs().max()) <= 0.1 * float(expected.abs().max())


def test_an_episode_costs_one_token_a_row_and_step(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm()
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCABULARY, size=(3, 12))
    lengths = np.array([2, 5, 3])
    lm.next_token_logits(ids, lengths)  # the first call also tries the cache
    lm.forget()
    with Forwards(lm) as forwards:
        for _ in range(6):
            lm.next_token_logits(ids, lengths)
            lengths += 1
        assert forwards.shapes == [(3, 5)] + [(3, 1)] * 5
        forwards.shapes.clear()
        ids[1], lengths[1] = rng.integers(0, VOCABULARY, size=12), 4  # one row starts again
        lm.next_token_logits(ids, lengths)
        assert forwards.shapes == [(1, 4), (2, 1)]
        forwards.shapes.clear()
        lm.next_token_logits(ids, lengths)  # the same again: the last token alone
        assert forwards.shapes == [(3, 1)]
        forwards.shapes.clear()
        lm.forget(np.array([0]))
        lm.next_token_logits(ids, lengths)
        assert forwards.shapes == [(1, 8), (2, 1)]
        forwards.shapes.clear()
        with torch.no_grad():
            head(lm).weight.mul_(2)
        lm.next_token_logits(ids, lengths)
        assert forwards.shapes == [(3, 9)], "changed weights empty the cache"


def test_a_prompt_of_several_rows_is_read_once(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm()
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCABULARY, size=(4, 12))
    lm.next_token_logits(ids, np.full(4, 3))
    lm.forget()
    ids[1:3] = ids[0]
    lengths = np.array([6, 6, 6, 5])

    def check(*shapes: tuple[int, int]) -> None:
        forwards.shapes.clear()
        logits = lm.next_token_logits(ids, lengths)
        assert forwards.shapes == list(shapes)
        torch.testing.assert_close(logits, plain_logits(lm, ids, lengths), atol=1e-4, rtol=1e-4)

    with Forwards(lm) as forwards:
        check((2, 6), (2, 1))  # rows 1 and 2 begin as row 0 does
        ids[:, 6:] = rng.integers(0, VOCABULARY, size=(4, 6))
        lengths += 2
        check((4, 2))
        ids[3, :6], lengths[3] = ids[0, :6], 6  # later, row 3 begins with what row 0 has read, while the others go on
        lengths[:3] += 1
        check((4, 1))
        ids[0, :6], lengths[0] = ids[3, :6][::-1], 6  # what no row has read
        lengths[1:] += 1
        check((1, 6), (3, 1))
        ids[1, 5:] = rng.integers(0, VOCABULARY, size=7)  # a row that goes back has its own beginning
        lengths[:] = [7, 7, 10, 8]
        check((1, 2), (3, 1))
        ids[2, :2], lengths[2] = ids[0, :2], 9  # too little of it to be worth a copy
        lengths[[0, 1, 3]] += 1
        check((1, 9), (3, 1))


def test_rows_copy_from_each_other_in_one_call(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm()
    ids, _ = random_texts(np.random.default_rng(0), rows=3)
    lengths = np.array([8, 7, 6])
    order = [1, 2, 0]
    with Forwards(lm) as forwards:
        lm.next_token_logits(ids, lengths)
        forwards.shapes.clear()
        logits = lm.next_token_logits(ids[order], lengths[order])
        assert forwards.shapes == [(3, 1)]
    torch.testing.assert_close(logits, plain_logits(lm, ids[order], lengths[order]), atol=1e-4, rtol=1e-4)


def test_buffers_hold_rows_times_length(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm()
    ids, _ = random_texts(np.random.default_rng(0), rows=5, width=20)
    for _ in range(3):
        for step in range(1, 21):
            lm.next_token_logits(ids, np.full(5, step))
            lm.next_token_logits(ids[:2], np.full(2, step), rows=np.array([4, 1]))
    config: Any = lm.model.config
    head_size = config.hidden_size // config.num_attention_heads
    held: Any = lm._cache._keys_values
    assert len(held.buffers) == config.num_hidden_layers
    assert sum(b.untyped_storage().nbytes() for b in held.buffers) == (
        config.num_hidden_layers
        * 5
        * (2 * 20 * config.num_key_value_heads + config.num_attention_heads)
        * head_size
        * 4
    ), "and the queries of a token"


def test_a_failed_forward_leaves_no_wrong_numbers(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm()
    ids, lengths = random_texts(np.random.default_rng(0))
    lm.next_token_logits(ids, lengths)
    ids = ids[::-1].copy()
    trunk: Any = lm.model.base_model
    layer = trunk.layers[1]
    handle = layer.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        lm.next_token_logits(ids, lengths)
    handle.remove()
    torch.testing.assert_close(lm.next_token_logits(ids, lengths), plain_logits(lm, ids, lengths), atol=1e-4, rtol=1e-4)


def test_modes_of_the_caller_do_not_matter(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm()
    ids, lengths = random_texts(np.random.default_rng(0))
    expected, shorter = plain_logits(lm, ids, lengths), np.maximum(lengths - 1, 1)
    scores = lm.token_log_probs(ids, lengths)
    with torch.inference_mode():
        lm.next_token_logits(ids, shorter)
    torch.testing.assert_close(lm.next_token_logits(ids, lengths), expected, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        lm.next_token_logits(ids, shorter)
        torch.testing.assert_close(lm.next_token_logits(ids, lengths), expected, atol=1e-4, rtol=1e-4)
        np.testing.assert_array_equal(lm.token_log_probs(ids, lengths), scores)
    lm.model.requires_grad_(True)
    assert not lm.next_token_logits(ids, lengths).requires_grad


def test_a_model_may_change_its_precision(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm()
    ids, lengths = random_texts(np.random.default_rng(0))
    first = lm.next_token_logits(ids, lengths)
    lm.model.double()
    assert lm.last_hidden(ids, lengths).dtype == torch.float64
    torch.testing.assert_close(lm.next_token_logits(ids, lengths), first, atol=1e-4, rtol=1e-4)


def test_read_only_arrays_and_padding_beyond_the_text(tiny_lm: CausalLM) -> None:
    ids, lengths = random_texts(np.random.default_rng(0))
    ids.flags.writeable = lengths.flags.writeable = False
    expected = plain_logits(tiny_lm, ids, lengths)
    torch.testing.assert_close(tiny_lm.next_token_logits(ids, lengths), expected, atol=1e-4, rtol=1e-4)
    padded = np.concatenate([ids, np.ones_like(ids)], axis=1)
    torch.testing.assert_close(tiny_lm.next_token_logits(padded, lengths), expected, atol=1e-4, rtol=1e-4)
    assert tiny_lm.token_log_probs(ids, lengths).shape == (ROWS, WIDTH - 1)


@pytest.mark.parametrize("lengths", [[], [0, 3], [2, 7]])
def test_lengths_that_do_not_fit_are_refused(tiny_lm: CausalLM, lengths: list[int]) -> None:
    with pytest.raises(TextEnvError, match="1 to 6 tokens"):
        tiny_lm.next_token_logits(np.zeros((2, 6), dtype=np.int64), np.array(lengths, dtype=np.int64))


@pytest.mark.parametrize("rows", [[0, 0], [-1, 0], [0]])
def test_rows_of_the_cache_are_different(tiny_lm: CausalLM, rows: list[int]) -> None:
    with pytest.raises(TextEnvError, match="2 different numbers"):
        tiny_lm.next_token_logits(np.zeros((2, 6), dtype=np.int64), np.array([2, 2]), rows=np.array(rows))


# -- weights that change ------------------------------------------------------------------------------------------


def noticed(watch: Any) -> bool:
    restructured = watch.structure_changed()
    return bool(watch.weights_changed() or restructured)


def test_a_write_through_data_to_any_parameter_is_noticed(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm("gpt2")
    watch = WeightWatch(lm.model)
    assert noticed(watch)
    assert not noticed(watch)
    for parameter in lm.model.parameters():
        parameter.data.add_(0.5)
        assert noticed(watch)
        assert not noticed(watch)


def test_weights_that_are_said_not_to_change_are_looked_at_once(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm()
    ids, lengths = random_texts(np.random.default_rng(0))
    before = lm.next_token_logits(ids, lengths)
    with torch.no_grad():
        head(lm).weight.mul_(2)
    with lm.unchanged():  # not inside: what was written before it is seen
        with lm.unchanged():
            torch.testing.assert_close(lm.next_token_logits(ids, lengths), before * 2, atol=1e-4, rtol=1e-4)
        with mock.patch.object(lm._watch, "weights_changed", wraps=lm._watch.weights_changed) as looks:
            lm.next_token_logits(ids, lengths)
            lm.token_log_probs(ids, lengths)
            assert not looks.called
    with mock.patch.object(lm._watch, "weights_changed", wraps=lm._watch.weights_changed) as looks:
        lm.next_token_logits(ids, lengths)
        assert looks.called


def test_an_address_that_comes_back_is_noticed(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm()
    watch = WeightWatch(lm.model)
    noticed(watch)
    norm: Any = lm.model.base_model.norm
    for value in range(20):
        norm.weight = torch.nn.Parameter(torch.full_like(norm.weight, float(value)))
        assert noticed(watch)


def test_one_number_through_data_goes_unnoticed_until_forget(make_lm: Callable[..., CausalLM]) -> None:
    """The limit of the check, as ``forget`` documents it."""
    lm = make_lm()
    ids, lengths = np.array([[5, 7, 9]]), np.array([3])
    lm.next_token_logits(ids, lengths)
    embedding: Any = lm.model.get_input_embeddings()
    embedding.weight.data[5, 9] += 3.0
    expected = plain_logits(lm, ids, lengths)
    lm.forget()
    torch.testing.assert_close(lm.next_token_logits(ids, lengths), expected, atol=1e-4, rtol=1e-4)


def test_scalars_and_odd_layouts_are_watched() -> None:
    module = torch.nn.Module()
    module.scalar = torch.nn.Parameter(torch.tensor(1.0))
    module.turned = torch.nn.Parameter(torch.randn(6, 40).t())
    module.short = torch.nn.Parameter(torch.randn(3, 5, 7, dtype=torch.bfloat16))
    module.empty = torch.nn.Parameter(torch.zeros(0, 4))
    watch = WeightWatch(module)
    noticed(watch)
    for parameter in (module.scalar, module.turned, module.short):
        parameter.data.mul_(2)
        assert noticed(watch)
    assert not noticed(watch)


# -- architectures that the cache does not fit --------------------------------------------------------------------


def test_a_recurrent_model_runs_without_the_cache() -> None:
    shape = {name: SHAPE[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "eos_token_id")}
    lm = make(lambda: MambaForCausalLM(MambaConfig(**shape, initializer_range=0.3, state_size=4, pad_token_id=1)))
    ids, lengths = random_texts(np.random.default_rng(0))
    with pytest.warns(UserWarning, match="MambaForCausalLM runs without the prefix cache"):
        logits = lm.next_token_logits(ids, lengths)
    torch.testing.assert_close(logits, plain_logits(lm, ids, lengths), atol=1e-4, rtol=1e-4)
    lm.next_token_logits(ids, lengths)  # says it once
    assert lm.max_positions is None


def test_a_cache_that_was_emptied_runs_the_forwards_of_a_new_one() -> None:
    """Those of other shapes have other last bits, and a resumed run knows nothing of the rollouts before."""

    def write(lm: CausalLM, rows: int, width: int, seed: int) -> tuple[int, int]:
        """Have rows write until they have ended, which they do at random; return the size of the buffers."""
        rng = np.random.default_rng(seed)
        ids, lengths, alive = rng.integers(2, 300, (rows, width)), rng.integers(1, 4, rows), np.arange(rows)
        while len(alive) and lengths.max() < width:
            lm.next_token_logits(ids[alive], lengths[alive], rows=alive)
            lengths[alive] += 1
            alive = alive[rng.random(len(alive)) > 0.15]
        size: tuple[int, int] = lm._cache._keys_values.size  # type: ignore[union-attr]
        return size

    differ = 0
    for seed in range(6):
        new, used = build_lm(), build_lm()
        with Forwards(new) as forwards:
            expected = write(new, 12, 20, seed), forwards.shapes
        write(used, 12, 20, seed + 10)
        slots = used._cache._slots.tolist()
        differ += slots != sorted(slots)
        write(used, 15, 30, seed + 20)
        used.forget()
        with Forwards(used) as forwards:
            assert (write(used, 12, 20, seed), forwards.shapes) == expected
    assert differ, "rows have changed their places"


@pytest.mark.parametrize("kind", ["mistral", "gpt neo"])
def test_a_sliding_window_is_cached_up_to_its_width(kind: str) -> None:
    if kind == "mistral":
        lm = make(lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8, num_key_value_heads=2)))
    else:
        neo = {name: value for name, value in SHAPE.items() if "num" not in name}
        neo |= {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8}
        lm = make(lambda: GPTNeoForCausalLM(GPTNeoConfig(**neo)))
    ids, _ = random_texts(np.random.default_rng(0))
    warned = False
    for step in range(1, 15):
        lengths = np.minimum(step + np.arange(ROWS), WIDTH)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            logits = lm.next_token_logits(ids, lengths)
        assert len(caught) == (lengths.max() > 8 and not warned), "it says so once"
        warned |= bool(caught)
        torch.testing.assert_close(logits, plain_logits(lm, ids, lengths), atol=1e-4, rtol=1e-4)
    if kind == "mistral":
        again = make(lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8, num_key_value_heads=2)))
        with Forwards(again) as forwards:
            for step in range(1, 9):
                again.next_token_logits(ids, np.full(ROWS, step))
            with pytest.warns(UserWarning, match="it attends to 8 tokens at a time"):
                again.next_token_logits(ids, np.full(ROWS, 10))
            forwards.shapes.clear()
            again.next_token_logits(ids, np.full(ROWS, 8))
            assert forwards.shapes == [(ROWS, 1)], "after one that was longer too, for a resumed run knows of none"


def test_a_model_whose_head_is_more_than_its_embeddings_is_refused() -> None:
    shape = {name: value for name, value in SHAPE.items() if name != "initializer_range"}
    config = BertConfig(**shape, is_decoder=True, initializer_range=0.3)
    with pytest.raises(TextEnvError, match="BertLMHeadModel computes its logits in a way of its own"):
        make(lambda: BertLMHeadModel(config))


def test_a_trunk_alone_is_refused() -> None:
    with pytest.raises(TextEnvError, match="LlamaModel has no language-model head"):
        make(lambda: LlamaModel(LlamaConfig(**SHAPE)))


# -- scores of whole texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("at_once", [2**26, 1000])
def test_token_log_probs_against_one_prefix_at_a_time(
    tiny_lm: CausalLM, monkeypatch: pytest.MonkeyPatch, temperature: float, at_once: int
) -> None:
    monkeypatch.setattr(causal_lm, "_MAX_CPU_LOGITS", at_once)
    monkeypatch.setattr(causal_lm, "_MIN_CPU_ROWS", 1)
    ids, _ = random_texts(np.random.default_rng(1), width=9)
    lengths = np.array([9, 1, 4, 6])
    expected = np.zeros((ROWS, 8), dtype=np.float32)
    for row in range(ROWS):
        for place in range(1, int(lengths[row])):
            logits = plain_logits(tiny_lm, ids[row : row + 1], [place])[0]
            expected[row, place - 1] = torch.log_softmax(logits / temperature, dim=-1)[ids[row, place]]
    found = tiny_lm.token_log_probs(ids, lengths, temperature)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert (found[1] == 0).all()
    assert (found[2, 3:] == 0).all()


def test_token_log_probs_of_texts_of_one_token(tiny_lm: CausalLM) -> None:
    assert tiny_lm.token_log_probs(np.array([[3], [4]]), np.array([1, 1])).shape == (2, 0)
    assert (tiny_lm.token_log_probs(np.array([[3, 1], [4, 1]]), np.array([1, 1])) == 0).all()


def test_hidden_states_have_gradients_and_skip_padding(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm()
    lm.model.requires_grad_(True)
    ids, lengths = random_texts(np.random.default_rng(0))
    hidden = lm.hidden_states(torch.from_numpy(ids), torch.from_numpy(lengths))
    assert hidden.shape == (ROWS, WIDTH, lm.hidden_size)
    last = hidden[torch.arange(ROWS), torch.from_numpy(lengths - 1)]
    torch.testing.assert_close(last.detach(), lm.last_hidden(ids, lengths), atol=1e-4, rtol=1e-4)
    lm.head(last).sum().backward()
    assert head(lm).weight.grad.abs().sum() > 0


# -- text and tokens ----------------------------------------------------------------------------------------------


def test_encode_starts_a_text_as_the_tokenizer_does(tiny_lm: CausalLM) -> None:
    ids = tiny_lm.encode("the film")
    assert ids[0] == tiny_lm.tokenizer.bos_token_id
    assert tiny_lm.decode(ids) == "the film"
    assert tiny_lm.encode("") == (tiny_lm.eos_ids[0],)
    assert tiny_lm.encode_many(["the film", ""]) == [ids, tiny_lm.encode("")]
    assert tiny_lm.encode_many([]) == []


@pytest.mark.parametrize("template", ["$A", "$A <|endoftext|>", "<|endoftext|> $A <|endoftext|>"])
def test_a_prompt_never_ends_with_an_appended_end(tiny_lm: CausalLM, template: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<|endoftext|>", 0)]
    )
    lm = CausalLM(tiny_lm.model, tokenizer)
    body = tokenizer("the film", add_special_tokens=False)["input_ids"]
    starts = [0] if template.startswith("<") else []
    assert lm.encode("the film") == (*starts, *body)
    assert lm.encode("") == (0,)
    assert lm.encode("the<|endoftext|>")[-1] == 0, "an end that the user wrote stays"


def test_a_tokenizer_without_a_beginning_starts_with_the_end(tiny_lm: CausalLM) -> None:
    tokenizer = make_tokenizer()
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    tokenizer.bos_token = None
    lm = CausalLM(tiny_lm.model, tokenizer)
    assert lm.encode("") == (lm.eos_ids[0],)
    assert lm.encode_many(["", "a"])[1] == tuple(tokenizer("a")["input_ids"])


def test_padding_may_be_the_end(tiny_lm: CausalLM) -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    assert CausalLM(tiny_lm.model, tokenizer).pad_id == 0
    tokenizer.pad_token = None
    lm = CausalLM(tiny_lm.model, tokenizer)
    assert (lm.pad_id, lm.eos_ids) == (0, (0,))
    ids = np.array([[0, 5, 0, 0], [0, 0, 0, 7]])
    lengths = np.array([2, 4])
    torch.testing.assert_close(lm.next_token_logits(ids, lengths), plain_logits(lm, ids, lengths), atol=1e-4, rtol=1e-4)


def test_ids_beyond_the_tokenizer(make_lm: Callable[..., CausalLM]) -> None:
    lm = make(lambda: LlamaForCausalLM(LlamaConfig(**{**SHAPE, "vocab_size": 320})))
    body = lm.encode("film")[1:]
    assert lm.vocab_size == 320
    assert lm.decode([*body, 310, 0, 1]) == "film"
    assert lm.decode(np.array([], dtype=np.int64)) == ""
    assert lm.token_texts([*body, 310, 0])[-2:] == ("<310>", "<|endoftext|>")
    assert "".join(lm.token_texts(np.array(body))) == "film"


def test_a_tokenizer_that_knows_more_than_the_model(tiny_lm: CausalLM) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<new {i}>" for i in range(VOCABULARY - len(tokenizer) + 1)])
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(VOCABULARY)
    lm = CausalLM(tiny_lm.model, tokenizer)
    assert lm.pad_id == lm.eos_ids[0]
    assert lm.encode("the film")
    with pytest.raises(TextEnvError, match=r"token 300, but the model's tokens end at 299"):
        lm.encode(f"the {tokenizer.pad_token} film")


def test_ends_come_from_the_tokenizer_and_the_generation_config(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm()
    lm.model.generation_config.eos_token_id = [5, 0, 999]
    assert CausalLM(lm.model, lm.tokenizer).eos_ids == (0, 5)
    lm.model.generation_config.eos_token_id = None
    lm.tokenizer.eos_token = None
    with pytest.raises(TextEnvError, match=r"no end-of-sequence token .* set tokenizer\.eos_token"):
        CausalLM(lm.model, lm.tokenizer)


# -- loading ------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(make_lm: Callable[..., CausalLM], tmp_path: Path) -> Path:
    lm = make_lm()
    with quiet():
        lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_comes_back_as_it_was(saved: Path, tiny_lm: CausalLM, capfd: pytest.CaptureFixture[str]) -> None:
    lm = CausalLM.from_pretrained(saved)
    ids, lengths = random_texts(np.random.default_rng(0))
    torch.testing.assert_close(lm.next_token_logits(ids, lengths), tiny_lm.next_token_logits(ids, lengths))
    assert (lm.vocab_size, lm.eos_ids, lm.pad_id, lm.hidden_size) == (VOCABULARY, (0,), 1, 32)
    assert not lm.model.training
    assert CausalLM.from_pretrained(saved, dtype=torch.bfloat16).model.dtype == torch.bfloat16
    assert capfd.readouterr() == ("", ""), "no progress bars"


def test_quiet_gives_the_settings_back(capfd: pytest.CaptureFixture[str]) -> None:
    def mine(factory: Any, args: Any, kwargs: Any) -> Any:
        return factory(*args, **kwargs)

    def load() -> None:
        with quiet():
            assert list(logging.tqdm([1, 2], desc="hidden")) == [1, 2]
            raise KeyError

    before, enabled = logging.set_tqdm_hook(mine), logging.is_progress_bar_enabled()
    try:
        with pytest.raises(KeyError):
            load()
    finally:
        assert logging.set_tqdm_hook(before) is mine
    assert logging.is_progress_bar_enabled() == enabled
    assert capfd.readouterr().err == ""


def test_what_cannot_be_loaded_is_named(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TextEnvError, match=r"model='.*nowhere': no such folder"):
        CausalLM.from_pretrained(tmp_path / "nowhere")
    weights = saved / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(TextEnvError, match="could not be loaded"):
        CausalLM.from_pretrained(saved)
    weights.unlink()
    with pytest.raises(TextEnvError, match="could not be loaded"):
        CausalLM.from_pretrained(saved)
    shutil.rmtree(saved)
    saved.mkdir()
    with pytest.raises(TextEnvError, match=r"has no config\.json"):
        CausalLM.from_pretrained(saved)


def test_a_checkpoint_without_a_head_is_refused(tiny_lm: CausalLM, tmp_path: Path) -> None:
    with quiet():
        trunk: Any = tiny_lm.model.base_model
        trunk.save_pretrained(tmp_path)
    tiny_lm.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(TextEnvError, match=r"lacks 1 of the weights .* lm_head\.weight"):
        CausalLM.from_pretrained(tmp_path)


def test_copies_share_nothing(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm()
    ids, lengths = random_texts(np.random.default_rng(0))
    first = lm.next_token_logits(ids, lengths).clone()
    twin = copy.deepcopy(lm)
    for parameter in twin.model.parameters():
        parameter.data.mul_(0.5)
    torch.testing.assert_close(twin.next_token_logits(ids, lengths), plain_logits(twin, ids, lengths))
    torch.testing.assert_close(lm.next_token_logits(ids, lengths), first)


def test_the_model_is_in_evaluation_mode() -> None:
    lm = build_lm("gpt2")  # whose configuration has dropout 0.1
    assert not any(module.training for module in lm.model.modules())


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt", "biogpt", "roberta", "bloom"])
def test_the_longest_text_is_found_by_reading(kind: str) -> None:
    from transformers import (
        BioGptConfig,
        BioGptForCausalLM,
        BloomConfig,
        BloomForCausalLM,
        OPTConfig,
        OPTForCausalLM,
        RobertaConfig,
        RobertaForCausalLM,
    )  # fmt: skip

    shape: dict[str, Any] = {
        "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2
    }  # fmt: skip
    wide = {**shape, "intermediate_size": 16, "max_position_embeddings": 34}
    made: dict[str, Callable[[], Any]] = {
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=34)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**wide)),
        "opt": lambda: OPTForCausalLM(
            OPTConfig(**shape, ffn_dim=16, word_embed_proj_dim=16, max_position_embeddings=34)
        ),
        "biogpt": lambda: BioGptForCausalLM(BioGptConfig(**wide)),
        "roberta": lambda: RobertaForCausalLM(RobertaConfig(**wide, is_decoder=True, pad_token_id=1)),
        "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2)),
    }
    model = made[kind]().eval()
    longest = longest_input(model)
    assert longest == {"roberta": 32, "bloom": None}.get(kind, 34)
    if longest is None:
        return
    with torch.no_grad():
        assert model(input_ids=torch.full((1, longest), 5)).logits.isfinite().all()
        if kind != "llama":  # whose positions go on
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, longest + 1), 5))
