"""``textenv sample`` on runs, policies and models, wherever they are and whatever they hold."""

import html
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.families import save_family
from textenv.commands.cli import main
from textenv.env.dialogue import Dialogue
from textenv.env.registry import EnvRecord, register
from textenv.env.render import visible
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
        save_family(Path("chat"), "qwen2", max_position_embeddings=512)
        train = ["train", "--env", "textenv/Text-v0", "--model", "model", "--prompts", "prompts.txt", *TINY]
        assert main([*train, "--out", "plain"]) == 0
        assert main([*train, "--out", "lora", "--lora-rank", "2"]) == 0
        assert main([*train, "--out", "best", "--agent", "best_of_n"]) == 0
        chat = ["train", "--env", "textenv/Text-v0", "--model", "chat", *TINY, "--chat"]
        assert main([*chat, "--prompts", "prompts.txt", "--out", "chat_run"]) == 0
        world = ["--max-turns", "2", "--max-tokens", "120"]
        plain = ["train", "--env", "textenv/Text-v0", "--model", "model", *TINY[2:], *world]
        assert main([*plain, "--world", "guess_number", "--out", "guess"]) == 0
        tools = json.dumps({"name": "tools", "environment": "tests.worlds.test_tools:Counter", "describe": False})
        assert main([*chat, *world, "--world", tools, "--prompts", "prompts.txt", "--out", "counts"]) == 0
        entry = {"entry_point": "textenv.env.letters:exact", "vector_entry_point": "textenv.env.letters:exact_vector"}
        register("tests/Letters-v0", **entry, record=EnvRecord(takes_model=False), kwargs={"turns": 2})
        assert main(["train", "--env", "tests/Letters-v0", *TINY[2:], "--out", "letters"]) == 0
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
    short = str(place / "short")
    assert sampled([short, "--prompt", "the film"], capsys).count("nats") == 1
    typing(monkeypatch, "the film", "it")
    assert sampled([short], capsys).count("nats") == 2
    typing(monkeypatch, "the film was a great film, and the plot of it was thin, the plot of it")
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
        (lambda run: (run / "config.json").write_text("[1]"), "it is no JSON object"),
        (lambda run: (run / "config.json").unlink(), "holds a training that is not finished"),
        (changed(env=None), "it lacks env"),
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


def typing(monkeypatch: pytest.MonkeyPatch, *lines: str, terminal: bool = False) -> None:
    """Have lines typed in a terminal, or piped."""
    typed = iter(lines)

    def read(_: str) -> str:
        for line in typed:
            return line
        raise EOFError

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: terminal)


def dialogue_of(monkeypatch: pytest.MonkeyPatch) -> list[Dialogue]:
    """Return the conversations that are held from here on."""
    found: list[Dialogue] = []
    say = Dialogue.say

    def told(self: Dialogue, text: str) -> Any:
        found.append(self)
        return say(self, text)

    monkeypatch.setattr(Dialogue, "say", told)
    return found


CHAT = ["--max-new-tokens", "8", "--seed", "3"]


def test_a_chat_model_in_a_terminal_holds_a_conversation(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held, chat = dialogue_of(monkeypatch), str(place / "chat")
    typing(monkeypatch, "Hello", "And then?", terminal=True)
    shown = sampled([chat, *CHAT, "--system", "Be brief."], capsys)
    assert "/reset begins anew" in shown
    assert "KL" not in shown
    dialogue = held[0]
    assert [message["role"] for message in dialogue.messages] == ["system", *("user", "assistant") * 2]
    assert [dialogue.messages[place]["content"] for place in (0, 1, 3)] == ["Be brief.", "Hello", "And then?"]
    assert visible(str(dialogue.messages[2]["content"]), keep="\n") in shown
    typing(monkeypatch, "Hello", "/reset", "And then?", "/quit", "Not read", terminal=True)
    sampled([chat, *CHAT], capsys)
    assert [message["content"] for message in held[-1].messages[::2]] == ["And then?"]
    typing(monkeypatch, "Hello", "And then?", terminal=True)
    sampled([str(place / "chat_run"), *CHAT], capsys)
    assert len(held[-1].messages) == 4


def test_a_conversation_is_saved_for_fine_tuning(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held = dialogue_of(monkeypatch)
    lines = ["/save", "/save a.jsonl", "Hello", "/save a.txt", "/save none/a.jsonl", "/save a.jsonl", "/reset", "Why?"]
    typing(monkeypatch, *lines, "/save a.jsonl", "/quit", terminal=True)
    assert main(["chat", str(place / "chat"), *CHAT, "--system", "Be brief."]) == 0
    shown = capsys.readouterr().out
    for told in ("/save names no file", "nothing has been said yet", "a.txt", "cannot be written"):
        assert told in shown
    assert shown.count("3 messages added to a.jsonl") == 2
    first, second = (json.loads(line)["messages"] for line in Path("a.jsonl").read_text("utf-8").splitlines())
    assert [message["content"] for message in (*first, *second)][::3] == ["Be brief."] * 2
    assert [first[1]["content"], second[1]["content"]] == ["Hello", "Why?"]
    assert second == [dict(message) for message in held[-1].messages]


def test_chat_is_the_conversation_of_sample(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typing(monkeypatch, "Hello", "And then?", terminal=True)
    expected = sampled([str(place / "chat"), *CHAT, "--chat", "yes"], capsys)
    typing(monkeypatch, "Hello", "And then?", terminal=True)
    assert main(["chat", str(place / "chat"), *CHAT]) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("arguments", "terminal"),
    [
        ([], False),
        (["--chat", "no"], True),
        (["--samples", "2"], True),
        (["--reward", "vader"], True),
        (["--prompt", "Hello", "And then?"], True),
        (["--prompt", "Hello", "And then?", "--chat", "yes"], True),
    ],
    ids=str,
)
def test_lines_that_are_piped_or_sampled_stand_by_themselves(
    arguments: list[str],
    terminal: bool,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    typing(monkeypatch, "Hello", "And then?", terminal=terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    shown = sampled([str(place / "chat"), *CHAT, *arguments], capsys)
    assert shown.count(" nats, ") == (4 if "--samples" in arguments else 2)
    assert ("user: Hello" in shown) is ("--chat" in arguments and "yes" in arguments)


def test_a_conversation_is_piped_where_it_is_asked_for(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held, chat = dialogue_of(monkeypatch), str(place / "chat")
    typing(monkeypatch, "Hello", "And then?")
    sampled([chat, *CHAT, "--chat", "yes"], capsys)
    assert len(held[0].messages) == 4
    typing(monkeypatch, "Hello", "the film " * 40)
    limits = [*CHAT, "--max-prompt-tokens", "60", "--chat", "yes"]
    capsys.readouterr()
    assert main(["sample", chat, *limits]) == 1
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith("error: The message 'the film the film")
    assert told.endswith("Shorten the message, or begin anew.")
    typing(monkeypatch, "Hello", "the film " * 40, "And then?", terminal=True)
    assert "Shorten the message, or begin anew" in sampled([chat, *limits[:-2]], capsys)
    assert [message["content"] for message in held[-1].messages[::2]] == ["Hello", "And then?"]


@pytest.mark.parametrize("run", ["best", "lora"])
def test_agents_of_every_kind_converse(
    run: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held = dialogue_of(monkeypatch)
    typing(monkeypatch, "Hello", "And then?")
    sampled([str(place / run), *CHAT, "--chat", "yes", "--reward", "vader"], capsys)
    assert len(held[0].messages) == 4


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["bundled", "--chat", "yes"], "holds no conversation: the model has no chat template"),
        (["bundled", "--prompt", "a", "--system", "Be brief."], "has no chat template"),
        (["chat", "--chat", "yes", "--samples", "2"], "a conversation has one answer a message"),
        (["guess", "--chat", "yes"], "holds no conversation: the run's world answers"),
    ],
    ids=lambda value: "",
)
def test_what_is_no_conversation_is_told(
    arguments: list[str], wanted: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    typing(monkeypatch, "Hello")
    assert wanted in refused(arguments, capsys)


def test_a_run_with_a_world_plays_with_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    shown = sampled([str(place / "guess"), "--samples", "2", "--html", "episodes.html"], capsys)
    assert shown.count("world: Guess") == 2
    assert shown.count("agent: ") == 4
    assert shown.count(" nats, ") == 2
    assert sampled([str(place / "guess"), "--samples", "2"], capsys) == shown
    assert sampled([str(place / "guess"), "--samples", "2", "--seed", "5"], capsys) != shown
    assert "<h2>world</h2>" in Path("episodes.html").read_text()
    shown = sampled([str(place / "letters"), "--samples", "3"], capsys)
    assert shown.count("agent: ") == 6


def test_a_world_is_given_the_prompts_of_the_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    shown = sampled([str(place / "counts"), "--samples", "2", "--trust"], capsys)
    assert "the film Count from 0 to" in shown
    assert "the plot Count from 0 to" in shown
    assert sampled([str(place / "counts"), "--samples", "2", "--trust"], capsys) == shown
    shown = sampled([str(place / "counts"), "--prompt", "Go on.", "--trust"], capsys)
    assert "Go on. Count from 0 to" in shown


def test_a_run_with_a_world_of_its_own_is_measured_on_its_prompts(place: Path) -> None:
    for run in ("letters", "guess"):
        assert "<h1>Completions of the world's prompts" in html.unescape((place / run / "samples.html").read_text())
