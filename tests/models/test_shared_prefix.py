"""Beginnings that texts share are read once, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.conftest import Forwards, build_lm
from tests.families import FAMILIES, WINDOW, make_family
from textenv.models import causal_lm
from textenv.models.causal_lm import CausalLM
from textenv.models.shared_prefix import find_beginnings

PROMPT, WRITTEN = 24, 6


def texts(kind: str, vocabulary: int, rows: int = 8) -> tuple[Any, Any, Any]:
    """Ids, lengths and tokens asked for, of texts that share what ``kind`` says."""
    rng = np.random.default_rng(0)
    ids = rng.integers(2, vocabulary, (rows, PROMPT + WRITTEN))
    ends = np.full(rows, PROMPT)
    if kind == "prompts":  # two prompts of different lengths
        ids[:, :PROMPT] = np.repeat(ids[:2, :PROMPT], rows // 2, axis=0)
        ends = np.repeat([PROMPT - 5, PROMPT], rows // 2)
    elif kind == "beginning":
        ids[:, :16] = ids[0, :16]
    lengths = ends + rng.integers(1, WRITTEN + 1, rows)
    places = np.arange(ids.shape[1])
    ids[places >= lengths[:, None]] = 1
    return ids, lengths, (places >= ends[:, None]) & (places < lengths[:, None])


def by_itself(lm: CausalLM, ids: Any, lengths: Any, asked: Any) -> Any:
    """The log-probabilities asked for, by the model's own forward of one text after the other."""
    found = np.zeros(ids.shape, dtype=np.float32)
    for row, length in enumerate(lengths):
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor(ids[row : row + 1, :length])).logits[0].float()
        log_probs = torch.log_softmax(logits, dim=-1)
        for place in np.flatnonzero(asked[row]):
            found[row, place] = log_probs[place - 1, ids[row, place]]
    return found[:, 1:]


@pytest.mark.parametrize("kind", ["prompts", "beginning", "nothing"])
@pytest.mark.parametrize("name", sorted({name for name, _ in FAMILIES}))
def test_log_probabilities_are_those_of_each_text_by_itself(name: str, kind: str) -> None:
    lm = make_family(name)
    ids, lengths, asked = texts(kind, 300)
    found = lm.token_log_probs(ids, lengths, asked=asked)
    np.testing.assert_allclose(found, by_itself(lm, ids, lengths, asked), atol=2e-4)


@pytest.mark.parametrize("at_once", [1, 60, 10_000])
def test_they_do_not_depend_on_how_many_tokens_a_forward_has(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = build_lm("gpt2")
    ids, lengths, asked = texts("prompts", 300)
    monkeypatch.setattr(causal_lm, "_MAX_CPU_TOKENS", at_once)
    found = lm.token_log_probs(ids, lengths, asked=asked)
    np.testing.assert_allclose(found, by_itself(lm, ids, lengths, asked), atol=1e-4)


def test_a_shared_beginning_is_read_once() -> None:
    lm = build_lm()
    for kind, shapes in {
        "prompts": [(2, PROMPT - 1), (8, WRITTEN + 1)],  # the last token of a prompt is asked what follows it
        "beginning": [(1, 16), (8, PROMPT + WRITTEN - 16)],
        "nothing": [(8, PROMPT + WRITTEN)],
    }.items():
        ids, lengths, asked = texts(kind, 300)
        with Forwards(lm) as forwards:
            lm.token_log_probs(ids, lengths, asked=asked)
        assert forwards.shapes == shapes, kind


def test_texts_longer_than_a_window_are_read_whole() -> None:
    lm = make_family("gemma3")
    ids, lengths, asked = texts("prompts", 300)
    assert ids.shape[1] > WINDOW
    with Forwards(lm) as forwards:
        lm.token_log_probs(ids, lengths, asked=asked)
    assert forwards.shapes == [ids.shape]


def test_rounded_weights_are_read_so(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = build_lm()
    ids, lengths, asked = texts("prompts", 300)
    with lm.rounded("bfloat16"):
        shared = lm.token_log_probs(ids, lengths, asked=asked)
        monkeypatch.setattr(causal_lm, "find_beginnings", lambda *given: None)
        np.testing.assert_allclose(shared, lm.token_log_probs(ids, lengths, asked=asked), atol=0.05)
    assert np.abs(shared - lm.token_log_probs(ids, lengths, asked=asked)).max() > 1e-4


@given(
    ids=arrays.arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(9, 20)), elements=st.integers(0, 1)),
    data=st.data(),
)
def test_beginnings_are_what_texts_begin_with(ids: Any, data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        ids[:, :9] = ids[0, :9]
    width = ids.shape[1]
    asked = np.array([data.draw(st.integers(0, width - 1)) for _ in ids])
    found = find_beginnings(ids, np.full(len(ids), width), asked)
    if found is None:
        return
    assert (found.lengths >= 8).all()
    begun = found.lengths[found.of_rows]
    assert (begun <= asked).all()
    assert begun.sum() - found.lengths.sum() >= 0.2 * ids.size
    for row, number in enumerate(found.of_rows):
        size = found.lengths[number]
        assert (ids[row, :size] == found.ids[number, :size]).all()
