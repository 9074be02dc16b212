"""Pre-training and fine-tuning: what is learned, from which tokens, and that a killed run ends as one left alone."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import processors
from transformers import GPT2Config, GPT2LMHeadModel

from tests.conftest import build_lm
from textenv import CausalLM, TextEnvError
from textenv.data.files import locked
from textenv.models.loading import quiet
from textenv.training import loop, next_token
from textenv.training import pretrain as pretrain_module
from textenv.training import sft as sft_module
from textenv.training.configs import PretrainConfig, SftConfig
from textenv.training.examples import collate, encode_examples
from textenv.training.pretrain import pretrain
from textenv.training.sft import sft
from textenv.training.texts import read_texts
from textenv.training.tokenizer import train_tokenizer

IGNORE = -100
OPINIONS = {"plot": "thin", "cast": "great", "music": "loud", "ending": "a surprise"}
SENTENCES = [f"The {noun} was {word}, and so was film {i}." for i in range(12) for noun, word in OPINIONS.items()]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(SENTENCES), "utf-8")
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": line[: i % 4 * 4], "completion": line[i % 4 * 4 :]} for i, line in enumerate(SENTENCES)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model with dropout, as GPT-2 has: its noise must not depend on where a run was stopped."""
    folder = tmp_path / "base"
    lm = build_lm()
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        shape: dict[str, Any] = {"vocab_size": 300, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
        GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def small(text: Path, out: Path, **given: Any) -> PretrainConfig:
    values: dict[str, Any] = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "layers": 1, "heads": 2}
    values |= {"context": 12, "max_position": 32, "batch_size": 4, "epochs": 3.0, "learning_rate": 0.01}
    return PretrainConfig((text,), out, **{**values, "checkpoint_every": 10, "precision": "float32", **given})


def tuned(base: Path, pairs: Path, out: Path, **given: Any) -> SftConfig:
    values: dict[str, Any] = {"epochs": 2, "batch_size": 5, "learning_rate": 0.01, "checkpoint_every": 3}
    return SftConfig(str(base), (pairs,), out, **{**values, "precision": "float32", **given})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def record_losses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    losses: list[float] = []
    plain = next_token.next_token_loss

    def loss(*args: Any) -> torch.Tensor:
        value = plain(*args)
        losses.append(float(value.detach()))
        return value

    monkeypatch.setattr(next_token, "next_token_loss", loss)
    return losses


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make training raise in the middle of a step."""
    plain, calls = next_token.next_token_loss, 0

    def loss(*args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == step:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(next_token, "next_token_loss", loss)


# -- what is learned -----------------------------------------------------------------------------------------------


def test_pretrain_learns_and_saves_a_model(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = record_losses(monkeypatch)
    before = torch.random.get_rng_state()
    assert pretrain(small(text, tmp_path / "out", epochs=12)) == tmp_path / "out"
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's random numbers are the caller's"
    assert losses[0] == pytest.approx(math.log(300), abs=0.3)
    assert np.mean(losses[-5:]) < 0.4 * losses[0]
    lm = CausalLM.from_pretrained(tmp_path / "out")
    assert (lm.vocab_size, lm.eos_ids, lm.pad_id, lm.max_positions) == (300, (0,), 1, 32)
    assert lm.encode("film")[0] == 0, "a text begins with the end of the one before"
    assert lm.model.config.tie_word_embeddings


def test_sft_learns(base: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sft(tuned(base, pairs, tmp_path / "out", epochs=6, validation=pairs))
    lines = [line for line in capsys.readouterr().out.splitlines() if "validation" in line]
    losses = [float(line.rsplit("validation", 1)[1]) for line in lines]
    assert len(losses) == 6
    assert losses[-1] < 0.7 * losses[0]


def test_every_token_is_seen_once_an_epoch(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def look(model: Any, batch: Any, steps: int, *_: Any, **__: Any) -> None:
        for step in range(steps):
            inputs, mask, labels = batch(step)
            assert bool(mask.all())
            seen.extend((*row.tolist(), int(ends[-1])) for row, ends in zip(inputs, labels, strict=True))

    monkeypatch.setattr(pretrain_module, "step_losses", lambda model, batch: batch)
    monkeypatch.setattr(pretrain_module, "minimize", look)
    config = small(text, tmp_path / "out", batch_size=1, epochs=2.0)
    pretrain(config)
    tokenizer = CausalLM.from_pretrained(tmp_path / "out").tokenizer
    stream = [token for sentence in SENTENCES for token in tokenizer(sentence)["input_ids"]]
    per_epoch = len(stream) // 13
    assert len(seen) == 2 * per_epoch
    for epoch in (seen[:per_epoch], seen[per_epoch:]):
        tilings = [
            sorted(tuple(stream[start + 13 * i :][:13]) for i in range(per_epoch))
            for start in range(len(stream) - 13 * per_epoch + 1)
        ]
        assert sorted(epoch) in tilings, "windows side by side, whatever their order and start"
    assert seen[:per_epoch] != seen[per_epoch:]


@pytest.mark.parametrize("grouped", [False, True])
def test_every_pair_is_learned_once_an_epoch_with_those_of_its_length_if_asked(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grouped: bool
) -> None:
    path, seen = tmp_path / "pairs.jsonl", list[list[int]]()
    path.write_text("".join(f'{{"prompt": "a", "completion": "{"z" * (count % 7)}"}}\n' for count in range(52)))

    def look(model: Any, batch: Any, steps: int, *_: Any, **__: Any) -> None:
        seen.extend(batch(step).mask.sum(dim=1).tolist() for step in range(steps))

    monkeypatch.setattr(sft_module, "step_losses", lambda model, batch: batch)
    monkeypatch.setattr(sft_module, "minimize", look)
    sft(tuned(base, path, tmp_path / "out", group_by_length=grouped))
    one, other = seen[:11], seen[11:]
    for epoch in (one, other):
        assert sorted(map(len, epoch)) == [2, *[5] * 10]
        assert sorted(itertools.chain(*epoch)) == sorted(itertools.chain(*one))
    assert one != other
    spread = [max(lengths) - min(lengths) for lengths in seen]
    assert max(spread) <= 1 if grouped else sum(spread) > 2 * len(spread)


def test_labels_are_the_completion_and_its_end(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "two.jsonl"
    path.write_text('{"prompt": "The film", "completion": " was great"}\n\n{"text": "thin"}\n')
    lm = CausalLM.from_pretrained(base)
    first, second = encode_examples(lm, (path,), 64)
    prompt, completion = lm.encode("The film"), lm.tokenizer(" was great", add_special_tokens=False)["input_ids"]
    thin = lm.tokenizer("thin", add_special_tokens=False)["input_ids"]
    assert tuple(first) == ([*prompt, *completion, 0], [False] * len(prompt) + [True] * (len(completion) + 1))
    assert tuple(second) == ([0, *thin, 0], [False] + [True] * (len(thin) + 1)), "a text has the empty prompt"
    inputs, mask, labels = collate([first, second], pad=1)
    longest = len(first[0]) - 1
    rest = longest - len(thin) - 1
    assert inputs.tolist() == [[*prompt, *completion], [0, *thin, *[1] * rest]]
    assert mask.tolist() == [[1] * longest, [1] * (len(thin) + 1) + [0] * rest]
    assert labels.tolist() == [
        [*[IGNORE] * (len(prompt) - 1), *completion, 0],
        [*thin, 0, *[IGNORE] * rest],
    ]


def test_no_token_spans_prompt_and_completion(tmp_path: Path) -> None:
    """A tokenizer that merges over the boundary is not allowed to: the environment cannot, either."""
    lm = build_lm()
    path = tmp_path / "pair.jsonl"
    path.write_text('{"prompt": "the fi", "completion": "lm was"}\n')
    (ids, learned), *_ = encode_examples(lm, (path,), 64)
    start = learned.index(True)
    assert lm.decode(ids[:start]) == "the fi"
    assert lm.decode(ids[start:]) == "lm was"
    assert ids != [*lm.encode("the film was"), 0]
    assert tuple(ids[:start]) == lm.encode("the fi")


@pytest.mark.parametrize("template", ["$A", "$A <|endoftext|>", "<|endoftext|> $A <|endoftext|>"])
def test_prompts_are_encoded_as_the_environment_does(tmp_path: Path, template: str) -> None:
    lm = build_lm()
    special = [("<|endoftext|>", 0)]
    lm.tokenizer._tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    lm = CausalLM(lm.model, lm.tokenizer)
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "the film", "completion": " was"}\n{"prompt": "", "completion": "it"}\n')
    for (ids, learned), prompt in zip(encode_examples(lm, (path,), 64), ("the film", ""), strict=True):
        start = learned.index(True)
        assert tuple(ids[:start]) == lm.encode(prompt)
        assert ids[start:].index(0) == len(ids[start:]) - 1, "one end, at the end"


def test_the_loss_is_the_mean_over_completion_tokens(base: Path, pairs: Path) -> None:
    lm = CausalLM.from_pretrained(base)
    encoded = encode_examples(lm, (pairs,), 64)[:9]
    batches = [collate(encoded[:4], 1), collate(encoded[4:], 1)]
    total, count = 0.0, 0
    for ids, learned in encoded:
        start = learned.index(True)
        log_probs = lm.token_log_probs(np.array([ids]), np.array([len(ids)]))[0]
        total -= float(log_probs[start - 1 :].sum())
        count += len(ids) - start
    model = lm.model.train()  # dropout must not matter
    assert next_token.mean_next_token_loss(model, batches) == pytest.approx(total / count, abs=1e-5)
    assert model.training
    model.eval()
    single = collate(encoded[:1], 1)
    expected = -lm.token_log_probs(np.array([encoded[0][0]]), np.array([len(encoded[0][0])]))[
        0, encoded[0].learned.index(True) - 1 :
    ]
    assert float(next_token.next_token_loss(model, single, torch.device("cpu")).detach()) == pytest.approx(
        expected.mean(), abs=1e-5
    )


def test_pairs_are_cut_where_the_model_ends(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "The", "completion": " film was" * 200}))
    sft(tuned(base, path, tmp_path / "out", epochs=1, max_tokens=10_000))  # the model has 64 positions
    (ids, _), *_ = encode_examples(CausalLM.from_pretrained(base), (path,), 20)
    assert len(ids) == 20
    assert 0 not in ids[1:], "a text that was cut does not end there"


def test_weight_decay_is_for_matrices_and_rates_rise_and_fall(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    groups: list[Any] = []

    class Watched(torch.optim.AdamW):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            rates.append(self.param_groups[0]["lr"])
            groups[:] = self.param_groups
            return super().step(*args, **kwargs)

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    pretrain(small(text, tmp_path / "out", warmup=0.2))
    peak = int(np.argmax(rates))
    assert max(rates) == pytest.approx(0.01, rel=0.05)
    assert peak == pytest.approx(0.2 * len(rates), abs=2)
    assert np.all(np.diff(rates[: peak + 1]) > 0)
    assert np.all(np.diff(rates[peak + 1 :]) < 0)
    assert 0 < rates[-1] < 0.1 * max(rates)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(p.ndim == 2 for p in groups[0]["params"])
    assert all(p.ndim == 1 for p in groups[1]["params"])


@pytest.mark.parametrize("precision", ["bfloat16", "auto"])
def test_other_precisions(text: Path, pairs: Path, tmp_path: Path, precision: str) -> None:
    pretrain(small(text, tmp_path / "base", precision=precision, save_dtype="bfloat16"))
    sft(tuned(tmp_path / "base", pairs, tmp_path / "out", precision=precision, save_dtype="float16"))
    assert {tensor.dtype for tensor in weights(tmp_path / "base").values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in weights(tmp_path / "out").values()} == {torch.float16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "out").values())


def test_bfloat16_runs_the_forward_in_it(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[bool] = []
    plain = next_token.next_token_loss

    def loss(*args: Any) -> torch.Tensor:
        kinds.append(torch.is_autocast_enabled("cpu"))
        return plain(*args)

    monkeypatch.setattr(next_token, "next_token_loss", loss)
    pretrain(small(text, tmp_path / "a", precision="bfloat16", epochs=1.0))
    assert all(kinds)
    kinds.clear()
    pretrain(small(text, tmp_path / "b", precision="float32", epochs=1.0))
    assert not any(kinds)


# -- a run that is killed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [5, 17, 30])
def test_pretrain_goes_on_where_it_was_stopped(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    pretrain(small(text, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            pretrain(small(text, tmp_path / "parts"))
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    torch.rand(7)  # other random numbers in between
    losses = record_losses(monkeypatch)
    pretrain(small(text, tmp_path / "parts"))
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    total = 3 * (sum(len(ids) for ids in _ids(tmp_path / "whole")) // 13) // 4
    assert len(losses) == total - (step - 1) // 10 * 10, "it goes on from the last checkpoint"


def _ids(folder: Path) -> list[list[int]]:
    return [list(ids) for ids in CausalLM.from_pretrained(folder).tokenizer(SENTENCES)["input_ids"]]


@pytest.mark.parametrize("step", [2, 8, 15])
def test_sft_with_dropout_goes_on_where_it_was_stopped(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    sft(tuned(base, pairs, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            sft(tuned(base, pairs, tmp_path / "parts"))
    sft(tuned(base, pairs, tmp_path / "parts"))
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_measuring_does_not_change_what_is_learned(base: Path, pairs: Path, tmp_path: Path) -> None:
    sft(tuned(base, pairs, tmp_path / "a"))
    sft(tuned(base, pairs, tmp_path / "b", validation=pairs))
    assert_same_weights(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_a_killed_process_goes_on(text: Path, tmp_path: Path) -> None:
    config = small(text, tmp_path / "parts", epochs=20.0)
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    script = (
        "from pathlib import Path, PosixPath, WindowsPath\nimport torch\ntorch.set_num_threads(1)\n"
        "from textenv.training.configs import PretrainConfig\n"
        "from textenv.training.pretrain import pretrain\n"
        f"pretrain(PretrainConfig(**{fields!r}))\n"
    )
    checkpoints = config.out / "checkpoints"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, env={**os.environ})
    deadline = time.monotonic() + 120
    while len(list(checkpoints.glob("step-*"))) == 0 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was still running"
    assert not (config.out / "model.safetensors").exists()
    pretrain(config)
    pretrain(dataclasses.replace(config, out=tmp_path / "whole"))
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_the_mean_loss_is_that_of_a_run_that_was_not_stopped(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean of the last hundred steps, some of which were before the checkpoint."""
    found: list[float] = []
    plain = loop.minimize
    monkeypatch.setattr(pretrain_module, "minimize", lambda *args, **given: found.append(plain(*args, **given)))
    losses = record_losses(monkeypatch)
    pretrain(small(text, tmp_path / "whole", epochs=12.0))
    steps = len(losses)
    assert steps > 110
    assert found == [pytest.approx(math.fsum(losses[-100:]) / 100)]
    for step in (steps - 3, 15):
        out = tmp_path / str(step)
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(KeyboardInterrupt):
                pretrain(small(text, out, epochs=12.0))
        pretrain(small(text, out, epochs=12.0))
    assert found == [found[0]] * 3


def test_two_runs_in_one_folder_are_refused(text: Path, base: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with locked(out):
        with pytest.raises(TextEnvError, match="is being written by process"):
            pretrain(small(text, out))
        with pytest.raises(TextEnvError, match="is being written by process"):
            sft(tuned(base, pairs, out))
    assert not out.exists()


def test_a_finished_run_gives_the_same_again(text: Path, tmp_path: Path) -> None:
    pretrain(small(text, tmp_path / "out"))
    before = weights(tmp_path / "out")
    pretrain(small(text, tmp_path / "out"))
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(tmp_path / "out").items())
    assert {path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")} == set()


def test_other_settings_are_refused(text: Path, base: Path, pairs: Path, tmp_path: Path) -> None:
    pretrain(small(text, tmp_path / "out"))
    for change in ({"seed": 1}, {"vocab_size": 400}, {"hidden_size": 32}, {"epochs": 2.0}):
        with pytest.raises(TextEnvError, match=rf"other settings \({next(iter(change))} differ\)"):
            pretrain(small(text, tmp_path / "out", **change))
    with pytest.raises(TextEnvError, match=r"command, .* differ"):
        sft(tuned(base, pairs, tmp_path / "out"))
    (tmp_path / "out" / "training.json").unlink()  # as of runs that an older version began
    with pytest.raises(TextEnvError, match=r"seed differ"):
        pretrain(small(text, tmp_path / "out", seed=1))


def test_a_run_that_never_began_claims_nothing(text: Path, tmp_path: Path) -> None:
    with pytest.raises(TextEnvError, match="too few for one batch"):
        pretrain(small(text, tmp_path / "out", batch_size=1000, vocab_size=310))
    with pytest.raises(TextEnvError, match="no such file"):
        pretrain(small(tmp_path / "missing.txt", tmp_path / "out"))
    pretrain(small(text, tmp_path / "out"))
    assert CausalLM.from_pretrained(tmp_path / "out").vocab_size == 300


# -- what is refused ----------------------------------------------------------------------------------------------


def test_read_texts(tmp_path: Path) -> None:
    plain, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_bytes("Eins.\r\nZwei.\r\n\r\n \r\n\r\nÜber.\n".encode())
    rows = [{"text": "a\u2028b\x85c"}, {"prompt": "p", "completion": " c"}]
    lines.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", "utf-8")
    assert list(read_texts([plain, lines])) == ["Eins.\nZwei.", "Über.", "a\u2028b\x85c", "p c"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.rst", b"x", r"its kind is '\.rst'; expected a file of kind \.txt, \.jsonl"),
        ("a.txt", b"\xff\xfe", r"a\.txt: not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 3}\n', r"a\.jsonl, line 2: text is 3; expected a text"),
        ("a.jsonl", b'{"prompt": "a"}', "line 1"),
        ("a.jsonl", b"[1]", "line 1"),
        ("a.jsonl", b'\n{"text": "a', "line 2"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextEnvError, match=message):
        list(read_texts([tmp_path / name]))


def test_sft_names_what_is_wrong(base: Path, pairs: Path, tmp_path: Path) -> None:
    empty, long = tmp_path / "empty.jsonl", tmp_path / "long.jsonl"
    empty.write_text("\n")
    long.write_text(json.dumps({"prompt": "film " * 100, "completion": "x"}))
    out = tmp_path / "out"
    with pytest.raises(TextEnvError, match=r"has no config\.json"):
        sft(tuned(tmp_path, pairs, out))
    with pytest.raises(TextEnvError, match="no records in it"):
        sft(tuned(base, empty, out))
    with pytest.raises(TextEnvError, match="no such file"):
        sft(tuned(base, tmp_path / "pairs.csv", out))
    with pytest.raises(TextEnvError, match="no such file"):
        sft(tuned(base, tmp_path / "missing.jsonl", out))
    with pytest.raises(TextEnvError, match=r"takes \d+ tokens, which leaves none of 64"):
        sft(tuned(base, long, out))
    assert not out.exists()


def test_a_loss_that_is_not_finite_stops_the_run(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_schedule", lambda *_: 1e30)  # more than the settings allow
    with pytest.raises(TextEnvError, match=r"The loss is (nan|inf) at step \d+ with learning_rate=1\.0"):
        sft(tuned(base, pairs, tmp_path / "out", learning_rate=1.0))


@pytest.mark.parametrize(
    "given",
    [
        {"batch_size": 0},
        {"checkpoint_every": 0},
        {"epochs": 0.0},
        {"learning_rate": math.nan},
        {"warmup": 1.5},
        {"weight_decay": -1.0},
        {"seed": -1},
        {"precision": "half"},
        {"save_dtype": "auto"},
        {"hidden_size": 18},
        {"context": 33},
        {"layers": 0},
    ],
)
def test_settings_are_checked_at_once(given: dict[str, Any]) -> None:
    with pytest.raises(TextEnvError, match=next(iter(given))):
        small(Path("a.txt"), Path("out"), **given)


def test_settings_of_sft_are_checked_at_once() -> None:
    with pytest.raises(TextEnvError, match="max_tokens=0"):
        tuned(Path("base"), Path("a.jsonl"), Path("out"), max_tokens=0)


def test_too_little_text_or_vocabulary(text: Path, tmp_path: Path) -> None:
    with pytest.raises(TextEnvError, match="at least 258"):
        train_tokenizer(iter(["a"]), 257)
    with pytest.raises(TextEnvError, match=r"epochs=0\.001 of \d+ sequences are less than one batch"):
        pretrain(small(text, tmp_path / "out", epochs=0.001))


def test_the_tokenizer_takes_every_text(make_lm: Callable[..., CausalLM]) -> None:
    tokenizer = make_lm().tokenizer
    for line in ("naïve 日本 😀\n\t x", "  two  spaces", "", "\x00\x85"):
        ids = tokenizer(line)["input_ids"]
        assert ids[0] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[1:]) == line


def test_the_settings_import_no_torch() -> None:
    script = "import sys, textenv.training.configs; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
