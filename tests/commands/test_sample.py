"""``textenv sample`` on runs, policies and models, wherever they are and whatever they hold."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.families import save_family
from textenv.commands.cli import main
from textenv.models.reward_model import RewardModel

TINY = ["--reward", "vader", "--total-steps", "12", "--num-envs", "2", "--eval-episodes", "2", "--max-new-tokens", "4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, and runs that were trained in it with relative names."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        save_family(Path("model"), "llama")
        save_family(Path("short"), "llama", max_position_embeddings=20)
        Path("prompts.txt").write_text("the film\nthe plot\n")
        train = ["train", "--env", "textenv/Text-v0", "--model", "model", "--prompts", "prompts.txt", *TINY]
        assert main([*train, "--out", "plain"]) == 0
        assert main([*train, "--out", "lora", "--lora-rank", "2"]) == 0
        assert main([*train, "--out", "best", "--agent", "best_of_n"]) == 0
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in another folder, without the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def sampled(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["sample", *arguments]) == 0
    return capsys.readouterr().out


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["sample", *arguments]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    "name", ["model", "plain", "plain/", "plain/policy", "plain/policy/", "lora", "lora/policy", "model/../model"]
)
def test_runs_policies_and_models_are_sampled_from_anywhere(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = sampled([f"{place}/{name}", "--prompt", "the film", "a plot", "--samples", "2"], capsys)
    assert shown.count(" tokens, ") == 4
    assert shown.startswith("the film")


def test_the_bundled_model_is_sampled(capsys: pytest.CaptureFixture[str]) -> None:
    assert "KL 0.00 nats" in sampled(["bundled", "--prompt", "The film"], capsys)


def test_a_policy_that_was_copied_is_a_model(place: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in ("plain", "lora"):
        shutil.copytree(place / run / "policy", elsewhere / run)
        assert "KL 0.00 nats" in sampled([run, "--prompt", "the film"], capsys)


def test_a_policy_in_its_run_has_the_settings_of_the_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = ["--prompt", "the film", "--samples", "3"]
    assert sampled([str(place / "plain"), *prompt], capsys) == sampled(
        [str(place / "plain" / "policy"), *prompt], capsys
    )
    assert "score" in sampled([str(place / "best" / "policy"), *prompt, "--reward", "run"], capsys)


def test_what_a_run_has_stored_is_absolute(place: Path) -> None:
    for run in ("plain", "lora"):
        config = json.loads((place / run / "config.json").read_text())
        assert (config["model"], config["prompts"]) == (str(place / "model"), str(place / "prompts.txt"))
    adapter = json.loads((place / "lora" / "policy" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(place / "model")


def test_a_reward_model_is_stored_so_that_it_is_found(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_lm: Any
) -> None:
    monkeypatch.chdir(place)
    RewardModel(tiny_lm).save(Path("scores"))
    reward = {"name": "weighted_sum", "rewards": ["vader", {"name": "learned", "model": "scores"}], "weights": [1, 1]}
    train = ["train", "--env", "textenv/Text-v0", "--model", "model", "--prompts", "prompts.txt", *TINY]
    assert main([*train, "--reward", json.dumps(reward), "--out", "scored"]) == 0
    monkeypatch.chdir("/")
    assert "score" in sampled([str(place / "scored"), "--prompt", "the film", "--reward", "run"], capsys)
    assert "is a reward model" in refused([str(place / "scores"), "--prompt", "the film"], capsys)


@pytest.mark.parametrize(
    ("given", "count"), [(["--max-new-tokens", "2"], 2), ([], 4), (["--max-new-tokens", "30"], 30)], ids=str
)
def test_flags_win_over_the_settings_of_a_run(
    given: list[str], count: int, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(place / "plain"), "--prompt", "the film", "--samples", "8", *given]
    lengths = [int(line.rsplit(", ", 2)[1].split()[0]) for line in sampled(arguments, capsys).splitlines()]
    assert max(lengths) == count
    cold = {line.partition("  [")[0] for line in sampled([*arguments, "--temperature", "1e-4"], capsys).splitlines()}
    assert len(cold) == 1  # all but the likeliest token has no chance


def test_a_model_with_a_short_context_takes_what_fits(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def typing(*lines: str) -> None:
        typed = iter(lines)

        def read(_: str) -> str:
            for line in typed:
                return line
            raise EOFError

        monkeypatch.setattr("builtins.input", read)

    short = str(place / "short")
    assert sampled([short, "--prompt", "the film"], capsys).count("nats") == 1
    typing("the film", "it")
    assert sampled([short], capsys).count("nats") == 2
    typing("the film was a great film, and the plot of it was thin, the plot of it")
    assert "max_prompt_tokens is 8; raise it" in refused([short], capsys)
    assert "the model takes 20" in refused([short, "--max-new-tokens", "20", "--prompt", "the film"], capsys)
    assert "the model takes 20" in refused([short, "--max-new-tokens", "20"], capsys)


def changed(**about: Any) -> Callable[[Path], None]:
    """Change the config.json of a run; None takes an entry out."""

    def change(run: Path) -> None:
        path = run / "config.json"
        config = {**json.loads(path.read_text()), **about}
        path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))

    return change


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda run: shutil.rmtree(run / "policy"), "has no policy yet: its training is not finished"),
        (lambda run: (run / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda run: (run / "config.json").write_bytes(b"\0" * 9), "config.json cannot be read"),
        (lambda run: (run / "config.json").write_text("[" * 100_000), "config.json cannot be read"),
        (lambda run: (run / "config.json").write_text("[1]"), "holds no object"),
        (lambda run: (run / "config.json").unlink(), "holds a training that is not finished"),
        (changed(env=None), "config.json has no 'env'"),
        (changed(settings=5), "settings 5: expected an object"),
        (changed(agent=5), "agent 5: expected a name"),
        (changed(env=5), "env 5: expected the id"),
        (changed(reward=5), "reward 5: expected a name"),
        (changed(model="/nowhere/x"), "model='/nowhere/x': no such folder"),
        (changed(model=5), "model=5: expected"),
    ],
    ids=[
        "no policy",
        "cut",
        "NULs",
        "deep",
        "list",
        "none",
        "no env",
        "settings",
        "agent",
        "env",
        "reward",
        "gone",
        "5",
    ],
)
def test_a_damaged_run_is_told_in_a_line(
    change: Callable[[Path], Any], wanted: str, place: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place / "plain", elsewhere / "run")
    change(elsewhere / "run")
    assert wanted in refused(["run", "--prompt", "the film", "--reward", "run"], capsys)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["none/"], "model='none': no such folder"),
        (["none"], "model='none': no such folder"),
        (["~/none"], "no such folder"),
        (["x" * 300], "no such folder"),
        (["prompts.txt"], "is a file"),
        (["model", "--reward", "run"], "--reward run: model is no run"),
        (["model", "--temperature", "0"], "temperature=0.0: expected"),
        (["model", "--max-new-tokens", "0"], "max_new_tokens=0: expected"),
        (["best/policy/.."], "give it one (--reward"),
    ],
    ids=lambda value: value[0][:20] if isinstance(value, list) else "",
)
def test_what_cannot_be_sampled_is_told_in_a_line(
    arguments: list[str], wanted: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert wanted in refused([*arguments, "--prompt", "the film"], capsys)


def test_prompts_that_were_trained_on_are_not_called_held_out(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "<h1>Completions of training prompts, before and after" in (place / "plain" / "samples.html").read_text()
    monkeypatch.chdir(place)
    train = ["train", "--env", "textenv/Text-v0", "--model", "model", "--prompts", "prompts.txt", *TINY]
    assert main([*train, "--out", "measured", "--eval-prompts", "prompts.txt"]) == 0
    assert "fresh completions of held-out prompts" in capsys.readouterr().out
    assert "<h1>Completions of held-out prompts, before and after" in (place / "measured" / "samples.html").read_text()
