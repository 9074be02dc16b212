"""Steps that are recorded once and repeated: here what repeats them is Python, in place of a CUDA graph.

It repeats operations on the tensors, and of the shapes, that it was recorded with, so that everything else has to come
in through these.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.families import make_family
from textenv.models import graphs as graphs_module
from textenv.models import prefix_cache
from textenv.models.causal_lm import CausalLM
from textenv.models.lora import Lora
from textenv.models.policy import TextPolicy

Recorded = list[tuple[int, int]]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """Have every device record; return the sizes, ``(batch, keys)``, of what was."""
    sizes: Recorded = []

    def record(function: Callable[[], torch.Tensor], device: torch.device) -> tuple[Callable[[], None], torch.Tensor]:
        step: Any = function.__self__  # type: ignore[attr-defined]
        sizes.append((len(step._rows), step._keys))
        result = function().clone()

        def replay() -> None:
            result.copy_(function())

        return replay, result

    monkeypatch.setattr(prefix_cache, "graphs_run_on", lambda device: True)
    monkeypatch.setattr(graphs_module, "record", record)
    monkeypatch.setattr(graphs_module, "_MIN_KEYS", 4)
    return sizes


def plain(lm: CausalLM, ids: Any, lengths: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = lm.model(input_ids=torch.from_numpy(ids)).logits
    return logits[torch.arange(len(ids)), torch.from_numpy(lengths) - 1]


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "gemma"])
def test_recorded_steps_change_no_number(name: str, recorded: Recorded) -> None:
    lm, rng = make_family(name), np.random.default_rng(0)
    ids, lengths = rng.integers(2, 300, (5, 14)), rng.integers(1, 5, 5)
    lm.next_token_logits(ids, lengths)  # the first call also tries the cache, in one of its own
    recorded.clear()
    for step in range(40):
        rows = np.sort(rng.permutation(5)[: rng.integers(1, 6)])
        found = lm.next_token_logits(ids[rows], lengths[rows], rows=rows)
        torch.testing.assert_close(found, plain(lm, ids[rows], lengths[rows]), atol=1e-4, rtol=1e-4)
        lengths[rows] += 1
        for row in np.flatnonzero(lengths > 14):  # another text begins there
            ids[row], lengths[row] = rng.integers(2, 300, 14), rng.integers(1, 5)
        if step == 20:
            with torch.no_grad():  # in place, as an optimizer does: what was recorded reads it
                next(lm.model.parameters()).mul_(0.5)
    assert len(set(recorded)) == len(recorded)
    assert {batch for batch, _ in recorded} == {1, 2, 4, 5}
    assert {keys for _, keys in recorded} <= {4, 8, 14}


def test_rows_that_fill_up_a_batch_write_where_nobody_reads(recorded: Recorded) -> None:
    lm = make_family("llama")
    ids = np.random.default_rng(1).integers(2, 300, (4, 8))
    full = np.full(4, 8)
    lm.next_token_logits(ids, full - 1)
    lm.next_token_logits(ids[:3], full[:3])  # filled up by the fourth, which is held to its 7th token
    found = lm.next_token_logits(ids, full)
    torch.testing.assert_close(found, plain(lm, ids, full), atol=1e-4, rtol=1e-4)


def test_weights_at_another_address_are_recorded_anew(recorded: Recorded) -> None:
    lm = make_family("gpt2")
    ids, lengths = np.random.default_rng(2).integers(2, 300, (2, 8)), np.array([3, 5])
    lm.next_token_logits(ids, lengths)
    lm.next_token_logits(ids, lengths + 1)
    before = len(recorded)
    weight = dict(lm.model.named_parameters())["transformer.h.0.mlp.c_fc.weight"]
    weight.data = weight.data * 2
    lm.next_token_logits(ids, lengths)
    found = lm.next_token_logits(ids, lengths + 1)
    assert len(recorded) == before + 1
    torch.testing.assert_close(found, plain(lm, ids, lengths + 1), atol=1e-4, rtol=1e-4)


def test_longer_texts_and_more_rows_are_recorded_anew(recorded: Recorded) -> None:
    lm = make_family("llama")
    for rows, width in ((2, 6), (3, 20), (2, 6)):
        ids = np.random.default_rng(rows).integers(2, 300, (rows, width))
        for length in (width - 1, width):
            found = lm.next_token_logits(ids, np.full(rows, length))
        torch.testing.assert_close(found, plain(lm, ids, np.full(rows, width)), atol=1e-4, rtol=1e-4)


def test_an_adapter_and_its_reference_are_recorded_each(recorded: Recorded) -> None:
    lm = make_family("llama")
    policy = TextPolicy(lm, lora=Lora(rank=2, alpha=4))
    with torch.no_grad():
        for parameter in policy.learned.parameters():
            parameter.add_(0.1)
    ids, lengths = np.random.default_rng(3).integers(2, 300, (2, 8)), np.array([4, 6])
    for each in (policy.lm, lm):
        each.next_token_logits(ids, lengths)
        found = each.next_token_logits(ids, lengths + 1)
        fresh = CausalLM(lm.model, lm.tokenizer, adapter=each.adapter)
        torch.testing.assert_close(found, fresh.next_token_logits(ids, lengths + 1), atol=1e-4, rtol=1e-4)
    assert float((policy.lm.next_token_logits(ids, lengths) - lm.next_token_logits(ids, lengths)).abs().max()) > 1e-3


def test_what_cannot_be_recorded_is_said_and_done_without(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs_module, "record", refuse)
    lm = make_family("gpt2")
    ids, lengths = np.random.default_rng(4).integers(2, 300, (2, 8)), np.array([3, 5])
    with pytest.warns(UserWarning, match="writes without CUDA graphs .*stream is capturing"):
        lm.next_token_logits(ids, lengths)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = lm.next_token_logits(ids, lengths + 1)
    torch.testing.assert_close(found, plain(lm, ids, lengths + 1), atol=1e-4, rtol=1e-4)


def test_a_recorded_step_may_be_the_first_to_write(recorded: Recorded) -> None:
    lm = make_family("gpt2")
    ids = np.random.default_rng(5).integers(2, 300, (3, 9))
    for rows, length in ((2, 1), (3, 2), (3, 9)):  # prompts of one token, then more rows
        found = lm.next_token_logits(ids[:rows], np.full(rows, length))
        torch.testing.assert_close(found, plain(lm, ids[:rows], np.full(rows, length)), atol=1e-4, rtol=1e-4)


def test_they_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEXTENV_CUDA_GRAPHS", raising=False)
    assert not graphs_module.graphs_run_on(torch.device("cpu"))
    assert graphs_module.graphs_run_on(torch.device("cuda"))
    monkeypatch.setenv("TEXTENV_CUDA_GRAPHS", "0")
    assert not graphs_module.graphs_run_on(torch.device("cuda"))
