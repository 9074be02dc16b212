"""Checkpoints: whole or absent, all that the rest of a run depends on, and nothing that runs code when read."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from textenv import TextEnvError
from textenv.rollouts.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint


class Tied(nn.Module):
    """Weights that are shared, a buffer that is saved, and one that is not."""

    def __init__(self, width: int = 4, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(7, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scratch", torch.rand(3), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(self.embed(ids)))
        return logits


def make(seed: int = 0, width: int = 4) -> tuple[Tied, torch.optim.Optimizer, torch.Generator]:
    model = Tied(width, seed)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1), torch.Generator().manual_seed(seed)


def train(model: Tied, optimizer: torch.optim.Optimizer, generator: torch.Generator, steps: int) -> None:
    for _ in range(steps):
        model(torch.randint(0, 7, (5,), generator=generator)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def save(folder: Path, step: int, parts: tuple[Tied, torch.optim.Optimizer, torch.Generator], **state: Any) -> Path:
    model, optimizer, generator = parts
    return save_checkpoint(
        folder, step, modules={"model": model}, optimizer=optimizer, generators={"draws": generator}, state=state
    )


def load(path: Path, parts: tuple[Tied, torch.optim.Optimizer, torch.Generator]) -> dict[str, Any]:
    model, optimizer, generator = parts
    return load_checkpoint(path, modules={"model": model}, optimizer=optimizer, generators={"draws": generator})


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_a_run_goes_on_bit_by_bit(tmp_path: Path, optimizer: Any) -> None:
    one, other = make(), make(seed=9)
    if optimizer is torch.optim.SGD:
        one = (one[0], optimizer(one[0].parameters(), lr=1e-3, momentum=0.9), one[2])
        other = (other[0], optimizer(other[0].parameters(), lr=1e-3, momentum=0.9), other[2])
    train(*one, steps=3)
    path = save(tmp_path, 3, one, note="ü", nested={"list": [1, None]})
    assert load(path, other) == {"step": 3, "note": "ü", "nested": {"list": [1, None]}}
    assert other[0].head.weight is other[0].embed.weight, "still tied"
    train(*one, steps=4)
    train(*other, steps=4)
    assert one[0].state_dict().keys() == other[0].state_dict().keys()
    for name, tensor in one[0].state_dict().items():
        assert torch.equal(tensor, other[0].state_dict()[name]), name
    assert torch.equal(one[2].get_state(), other[2].get_state())


def test_a_checkpoint_before_the_first_step(tmp_path: Path) -> None:
    one, other = make(), make(seed=9)
    load(save(tmp_path, 0, one), other)
    assert torch.equal(one[0].embed.weight, other[0].embed.weight)
    assert not other[1].state


def test_it_is_safetensors_and_json_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a checkpoint must not be pickled")

    parts = make()
    train(*parts, steps=1)
    for name in ("load", "loads", "dump", "dumps", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch, "save", refuse)
    path = save(tmp_path, 1, parts)
    load(path, parts)
    assert {file.name for file in path.iterdir()} == {"tensors.safetensors", "state.json"}
    names = safetensors.torch.load_file(path / "tensors.safetensors").keys()
    assert "model/embed.weight" in names
    assert "model/head.weight" not in names, "tied weights once"
    assert "model/norm.running_mean" in names
    assert "model/scratch" not in names
    assert {"optimizer/0/exp_avg", "optimizer/0/exp_avg_sq", "optimizer/0/step", "generator/draws"} <= names


def test_the_last_one_stays(tmp_path: Path) -> None:
    parts = make()
    (tmp_path / "step-notes").write_text("mine")
    for step in (5, 100, 20):  # 100 is from another run: what is written last is what counts
        path = save(tmp_path, step, parts)
        assert latest_checkpoint(tmp_path) == path
        assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "step-notes"]
    again = save(tmp_path, 20, parts, again=True)
    assert load(again, parts)["again"]


def test_where_there_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "missing") is None


def test_steps_are_compared_as_numbers(tmp_path: Path) -> None:
    for name in ("step-99999999", "step-100000000"):
        (tmp_path / name).mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "step-100000000"


@pytest.mark.parametrize("died_at", ["tensors", "state", "rename"])
def test_a_half_written_one_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, died_at: str) -> None:
    parts = make()
    train(*parts, steps=1)
    whole = save(tmp_path, 1, parts)

    def die(*args: Any, **_: Any) -> None:
        (tmp_path / ".step-00000002.part" / "tensors.safetensors").open("ab").close()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if died_at == "tensors":
            patch.setattr(safetensors.torch, "save_file", die)
        else:
            patch.setattr(Path, "write_text" if died_at == "state" else "rename", die)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2, parts)
    assert not (tmp_path / ".step-00000002.part").exists(), "what an exception interrupts is cleared away"
    (tmp_path / ".step-00000002.part").mkdir()  # as a process leaves it that is killed
    (tmp_path / ".step-00000002.part" / "tensors.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) == whole
    assert load(whole, make(seed=3))["step"] == 1
    assert save(tmp_path, 2, parts) == latest_checkpoint(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"], "what was left is cleared away"


def test_other_shapes_are_refused_before_anything_changes(tmp_path: Path) -> None:
    path = save(tmp_path, 1, make())
    wide = make(width=6)
    before = [parameter.clone() for parameter in wide[0].parameters()]
    with pytest.raises(TextEnvError, match=r"model/embed\.weight should have shape \(7, 6\), but has \(7, 4\)"):
        load(path, wide)
    assert all(torch.equal(old, new) for old, new in zip(before, wide[0].parameters(), strict=True))


def test_what_is_missing_or_too_much_is_refused(tmp_path: Path) -> None:
    parts = make()
    train(*parts, steps=1)
    model, optimizer, generator = parts
    path = save(tmp_path, 1, parts)
    with pytest.raises(TextEnvError, match=r"generator/draws should have shape None"):
        load_checkpoint(path, modules={"model": model}, optimizer=optimizer)
    draws = {"draws": generator}
    with pytest.raises(TextEnvError, match=r"generator/others .* has None"):
        load_checkpoint(path, modules={"model": model}, optimizer=optimizer, generators={**draws, "others": generator})
    with pytest.raises(TextEnvError, match=r"other/embed\.weight .* has None"):
        load_checkpoint(path, modules={"model": model, "other": model}, optimizer=optimizer, generators=draws)
    fewer = torch.optim.AdamW([model.embed.weight])
    with pytest.raises(TextEnvError, match=r"optimizer/1/exp_avg should have shape None"):
        load_checkpoint(path, modules={"model": model}, optimizer=fewer, generators=draws)
    turned = torch.optim.AdamW(list(model.parameters())[::-1])
    with pytest.raises(TextEnvError, match=r"optimizer/0/exp_avg should have shape \(4,\), but has \(7, 4\)"):
        load_checkpoint(path, modules={"model": model}, optimizer=turned, generators=draws)


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_one_is_named(tmp_path: Path, file: str, damage: str) -> None:
    path = save(tmp_path, 1, make())
    if damage == "gone":
        (path / file).unlink()
    else:
        data = (path / file).read_bytes()
        (path / file).write_bytes(data[: len(data) // 2])
    with pytest.raises(TextEnvError, match=r"step-00000001 cannot be read: .* Delete it"):
        load(path, make())


def test_state_is_json(tmp_path: Path) -> None:
    parts = make()
    whole = save(tmp_path, 1, parts)
    with pytest.raises(TypeError):
        save(tmp_path, 2, parts, thing=object())
    assert latest_checkpoint(tmp_path) == whole
    assert json.loads((whole / "state.json").read_text("utf-8"))["step"] == 1


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
def test_one_that_was_changed_is_refused_wherever_it_was(tmp_path: Path, file: str) -> None:
    parts = make()
    train(*parts, steps=1)
    path = save(tmp_path, 1, parts, note=0.125, nested={"list": [1, None, "ü"]})
    whole = (path / file).read_bytes()
    places = range(0, len(whole), 97) if file == "tensors.safetensors" else range(len(whole))
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1  # also digits and letters, which leave JSON that can be read
        (path / file).write_bytes(bytes(changed))
        before = parts[0].embed.weight.clone()
        with pytest.raises(TextEnvError, match=r"step-00000001 cannot be read: \S+\.\S+ .*Delete it to start from the"):
            load(path, parts)
        assert torch.equal(before, parts[0].embed.weight)
    (path / file).write_bytes(whole)
    assert load(path, parts)["note"] == 0.125


def test_a_damaged_one_names_the_one_before(tmp_path: Path) -> None:
    older = save(tmp_path, 7, make())
    older.rename(tmp_path / "aside")
    newer = save(tmp_path, 9, make())
    (tmp_path / "aside").rename(older)
    (newer / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(TextEnvError, match=r"step-00000009 cannot be read: .* Delete it to go on from step-00000007"):
        load(newer, make())


def test_one_without_digests_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1, make())
    state = json.loads((path / "state.json").read_text("utf-8"))
    assert set(state.pop("sha256")) == {"tensors.safetensors", "state.json"}
    (path / "state.json").write_text(json.dumps(state), "utf-8")
    with pytest.raises(TextEnvError, match=r"no SHA-256 of the files; an earlier version of textenv wrote it\. Delete"):
        load(path, make())
