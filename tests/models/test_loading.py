"""Folders of every sort where a model is expected: read, or refused in one line that says what it is."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.families import family_tokenizer, save_family
from textenv.models.causal_lm import CausalLM
from textenv.models.loading import load_tokenizer, quiet, resolve_model, resolve_models_in
from textenv.models.lora import Lora
from textenv.models.policy import TextPolicy
from textenv.models.reward_model import RewardModel
from textenv.types import TextEnvError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of the test's own, without the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_family(tmp_path_factory.mktemp("models") / "llama", "llama"))


def one_line(error: pytest.ExceptionInfo[TextEnvError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# -- names --------------------------------------------------------------------------------------------------------


def test_a_folder_is_found_again_from_anywhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "models" / "m").mkdir(parents=True)
    (here / "link").symlink_to("models/m")
    names = ("models/m", "models/m/", "./models/m", "models/../models/m", "link", Path("models/m"), here / "models/m")
    assert {resolve_model(name) for name in names} == {str((here / "models" / "m").resolve())}
    monkeypatch.chdir("models")
    assert resolve_model("m") == str((here / "models" / "m").resolve())


@pytest.mark.parametrize("name", ["bundled", "gpt2", "Qwen/Qwen3-0.6B", "a_b/c.d", "_", "a/" + "b" * 96])
def test_what_can_be_an_id_stays(name: str) -> None:
    assert resolve_model(name) == name


@pytest.mark.parametrize(
    "name",
    ["none/", "./none", "../none", "/none", "a/b/c", "~/x", "", " ", ".", "a b", "..\\x", "x\0y", "x" * 300, "a--b",
     "\ud83d", "基线", "x.git", "-a", "a-", ".a", "a/", "/a", "a/b/", "a\n", "a/" + "b" * 97],
    ids=ascii,
)  # fmt: skip
def test_what_can_be_no_id_is_no_folder(name: str, here: Path) -> None:
    if name == ".":
        (here / "gone").mkdir()
        name = "gone/./missing/x"
    with pytest.raises(TextEnvError, match=r"no such folder. Expected 'bundled'") as error:
        resolve_model(name)
    one_line(error)


def test_a_file_is_no_model(here: Path) -> None:
    (here / "m.txt").write_text("x")
    with pytest.raises(TextEnvError, match=r"model='m.txt' is a file"):
        resolve_model("m.txt")


def test_a_reward_model_is_never_asked_of_the_hub() -> None:
    with pytest.raises(TextEnvError, match=r"'gpt2': no such folder\. Expected 'bundled', the folder of a model\."):
        RewardModel.load("gpt2")


def test_rewards_are_stored_with_absolute_models(here: Path) -> None:
    (here / "rm").mkdir()
    inner = {"name": "learned", "model": ["rm", "bundled"]}
    spec = {"name": "weighted_sum", "rewards": ["vader", inner], "weights": [1, 2]}
    clipped = {"name": "clip", "reward": spec, "low": 0}
    found = resolve_models_in(clipped)
    assert found["reward"]["rewards"] == ["vader", {**inner, "model": [str((here / "rm").resolve()), "bundled"]}]
    assert inner["model"] == ["rm", "bundled"]  # what was given is left as it was
    assert (found["low"], found["reward"]["weights"]) == (0, [1, 2])
    assert resolve_models_in({"name": "classifier", "model": "a/b"})["model"] == "a/b"
    assert resolve_models_in("vader") == "vader"


# -- folders ------------------------------------------------------------------------------------------------------

BERT = {"vocab_size": 320, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
GPT2 = {"vocab_size": 320, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "pad_token_id": 1}
T5 = {"vocab_size": 320, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}


def save(made: str, config: str, **settings: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        model = getattr(transformers, made)(getattr(transformers, config)(**settings))
        with quiet():
            model.save_pretrained(folder)
        family_tokenizer("gpt2").save_pretrained(folder)

    return write


def without(*names: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return write


def holding(name: str, data: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return write


def config(**changes: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return write


def only(**about: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(about))

    return write


def emptied(*inside: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        shutil.rmtree(folder)
        folder.mkdir()
        for name in inside:
            (folder / name).mkdir() if name.endswith("/") else (folder / name).write_text("{}")

    return write


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "encoder-decoder": (save("T5ForConditionalGeneration", "T5Config", **T5), "is an encoder-decoder model"),
    "masked": (save("BertForMaskedLM", "BertConfig", **BERT), r"is no causal language model \(BertForMaskedLM\)"),
    "a head of its own": (save("BertLMHeadModel", "BertConfig", **BERT), "its logits in a way of its own"),
    "classifier": (save("BertForSequenceClassification", "BertConfig", **BERT), "is no causal language model"),
    "tied classifier": (save("GPT2ForSequenceClassification", "GPT2Config", **GPT2), "is no causal language model"),
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), "could not be loaded"),
    "no weights": (without("model.safetensors"), "could not be loaded"),
    "cut weights": (holding("model.safetensors", b"\x10\0\0\0\0\0\0\0{"), "could not be loaded"),
    "empty weights": (holding("model.safetensors", b""), "could not be loaded"),
    "tokenizer of something else": (holding("tokenizer.json", b'{"x": 1}'), "could not be loaded"),
    "cut tokenizer": (holding("tokenizer.json", b"["), "could not be loaded"),
    "cut config": (holding("config.json", b"{"), "could not be loaded"),
    "NULs": (holding("config.json", b"\0" * 50), "could not be loaded"),
    "latin-1": (holding("config.json", b'{"a": "\xe9"}'), "could not be loaded"),
    "a list": (holding("config.json", b"[1]"), "could not be loaded"),
    "a text as a size": (config(hidden_size="abc"), "could not be loaded"),
    "no heads": (config(num_attention_heads=0), "could not be loaded"),
    "other sizes": (config(vocab_size=64), r"holds \S+ of the shape \(320, 32\), and its config.json says \(64, 32\)"),
    "more layers": (config(num_hidden_layers=3), "lacks 9 of the weights"),
    "unknown kind": (config(model_type="nonsense"), "could not be loaded"),
    "run of train": (only(agent="ppo", settings={}, total_steps=1), "is a run of 'textenv train'. .*/model/policy"),
    "run of rlhf": (only(rounds=2, labels=3, ppo={}), "is a run of 'textenv rlhf'. .*/round-2/policy/policy"),
    "something else": (only(task="Hopper-v5"), "config.json without 'model_type'"),
    "empty": (emptied(), "has no config.json"),
    "unfinished": (emptied("checkpoints/", "training.json"), "holds a training that is not finished"),
    "agent alone": (emptied("agent.json"), "holds an agent that has no model of its own"),
    "reward model": (holding("reward.json", b"{}"), "is a reward model, which scores texts"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_language_model_is_told_in_a_line(kind: str, here: Path, llama: Path) -> None:
    shutil.copytree(llama, here / "model")
    change, wanted = REFUSED[kind]
    if kind in ("encoder-decoder", "masked", "a head of its own", "classifier", "tied classifier"):
        shutil.rmtree(here / "model")
    change(here / "model")
    with pytest.raises(TextEnvError, match=wanted) as error:
        CausalLM.from_pretrained("model")
    assert len(one_line(error)) < 800


def test_a_model_that_reads_ahead_is_refused(here: Path) -> None:
    save_family(here / "model", "gemma3", use_bidirectional_attention=True)
    with pytest.raises(TextEnvError, match="reads a token together with those that follow it") as error:
        CausalLM.from_pretrained("model")
    one_line(error)


def test_an_id_that_is_not_known_may_have_been_meant_as_a_folder() -> None:
    with pytest.raises(TextEnvError, match="model='runs/x' is no folder here, and as a Hugging Face id") as error:
        CausalLM.from_pretrained("runs/x")
    one_line(error)


@pytest.mark.parametrize("name", ["none/", "model"])
def test_a_tokenizer_is_refused_like_a_model(name: str, here: Path) -> None:
    (here / "model").mkdir()
    with pytest.raises(TextEnvError, match=r"no such folder|could not be loaded") as error:
        load_tokenizer(name)
    one_line(error)


# -- adapters -----------------------------------------------------------------------------------------------------


def adapter(base: str, folder: Path) -> CausalLM:
    """Save an adapter that changes what its base says, with the tokenizer; return the model with it."""
    policy = TextPolicy(CausalLM.from_pretrained(base), lora=Lora(rank=2, alpha=4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    policy.save(folder)
    return policy.lm


def about_adapter(folder: Path, **changes: Any) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    about: dict[str, Any] = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(about))
    return about


def says(lm: CausalLM) -> torch.Tensor:
    return torch.from_numpy(lm.token_log_probs(torch.arange(8)[None].numpy(), torch.tensor([8]).numpy()))


def test_an_adapter_names_its_base_so_that_it_is_found(
    here: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(llama, here / "base")
    lm = adapter("base", here / "adapter")
    assert about_adapter(here / "adapter")["base_model_name_or_path"] == str((here / "base").resolve())
    (here / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    torch.testing.assert_close(says(CausalLM.from_pretrained("../adapter")), says(lm), atol=1e-4, rtol=1e-4)


def test_an_adapter_on_an_adapter_keeps_both(here: Path, llama: Path) -> None:
    adapter(str(llama), here / "first")
    lm = adapter("first", here / "second")
    assert about_adapter(here / "second")["base_model_name_or_path"] == str((here / "first").resolve())
    torch.testing.assert_close(says(CausalLM.from_pretrained("second")), says(lm), atol=1e-4, rtol=1e-4)


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(here: Path, llama: Path) -> None:
    adapter(str(llama), here / "adapter")
    for path in (here / "adapter").glob("token*"):
        path.unlink()
    assert CausalLM.from_pretrained("adapter").encode("the film") == CausalLM.from_pretrained(llama).encode("the film")


@pytest.mark.parametrize(
    ("base", "wanted"),
    [
        ("/nowhere/base", "is a LoRA adapter of '/nowhere/base', and there is no such folder here. Set base_model"),
        ("not/here/base", "is a LoRA adapter of 'not/here/base', and there is no such folder"),
        (None, "is a LoRA adapter of None, and there is no such folder"),
        (5, "is a LoRA adapter of 5, and there is no such folder"),
        ("adapter", "is a LoRA adapter that names itself"),
        ("t5", "is an encoder-decoder model"),
    ],
    ids=str,
)
def test_an_adapter_of_nothing_is_told_in_a_line(base: Any, wanted: str, here: Path, llama: Path) -> None:
    adapter(str(llama), here / "adapter")
    save("T5ForConditionalGeneration", "T5Config", **T5)(here / "t5")
    about_adapter(here / "adapter", base_model_name_or_path=base)
    with pytest.raises(TextEnvError, match=wanted) as error:
        CausalLM.from_pretrained("adapter")
    one_line(error)


# -- reward models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"scale": 0.0}, "expected finite numbers, and a scale above 0"),
        ({"shift": "nan"}, "expected finite numbers"),
        ({"shift": None}, "cannot be read as a reward model"),
        ({"log_nu": [1]}, "cannot be read as a reward model"),
        ({"max_tokens": "abc"}, "max_tokens is 'abc': expected a whole number"),
    ],
    ids=str,
)
def test_a_damaged_reward_model_is_told_in_a_line(
    changes: dict[str, Any], wanted: str, here: Path, tiny_lm: CausalLM
) -> None:
    RewardModel(tiny_lm).save(here / "rm")
    assert RewardModel.load("rm").scores(["the"], [" film"]).shape == (1,)
    path = here / "rm" / "reward.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(TextEnvError, match=wanted) as error:
        RewardModel.load("rm")
    one_line(error)


def test_a_language_model_is_no_reward_model(llama: Path) -> None:
    with pytest.raises(TextEnvError, match=r"is no reward model: it has no reward\.json"):
        RewardModel.load(os.fspath(llama))
