"""Bad input at the command line ends in one clear line, before any work: tables of what is typed, and of files."""

import json
from pathlib import Path

import pytest

from textenv.commands.cli import main

TRAIN = ["train", "--env", "textenv/Exact-v0", "--num-envs", "4", "--total-steps", "24", "--eval-episodes", "4"]
TRAIN += ["--out", "o"]
COMPARE = ["compare", "--out", "o", "--agents", "reinforce", "--seeds", "1", "--workers", "1"]
RLHF = ["rlhf", "--out", "o"]
REWARD = ["reward", "train", "--out", "o", "--files", "r.jsonl"]
CLIPS = ["clips", "train", "--out", "o"]
SFT = ["sft", "--model", "bundled", "--files", "pairs.jsonl", "--out", "o"]
PRETRAIN = ["pretrain", "--files", "text.txt", "--out", "o"]
ANNOTATE = ["feedback", "annotate", "q.db", "--reward", "vader"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with small files of every kind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("The film is good.\n\nThe plot is thin.\n")
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "The film", "completion": " is good."}) + "\n")
    ranking = {"prompt": "The film", "completions": [" is good.", " is bad."], "ranks": [0, 1]}
    (tmp_path / "r.jsonl").write_text(json.dumps(ranking) + "\n")
    return tmp_path


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that is to be refused; return its one line."""
    assert main(arguments) in (1, 2)
    said = capsys.readouterr()
    assert said.err == ""
    (line,) = said.out.splitlines()
    assert line.startswith("error: ")
    return line


TYPED: list[tuple[list[str], str]] = [
    # what the parser refuses
    (["train"], "textenv train needs --out PATH. See textenv train --help."),
    (["trian"], "Did you mean 'train'?"),
    (["reward", "trian"], "Did you mean 'train'?"),
    (["--verison"], "Did you mean '--version'?"),
    (["sample"], "textenv sample needs FOLDER."),
    (["sample", ""], "expected a path that is not empty"),
    ([*TRAIN, "--total-step", "1"], "Did you mean --total-steps?"),
    ([*TRAIN, "extra"], "Unrecognized options: extra."),
    ([*TRAIN, "--out"], "Missing value for argument '--out'."),
    ([*TRAIN, "--out", ""], "Error parsing --out: '': expected a path that is not empty"),
    ([*TRAIN, "--seed", "abc"], "Error parsing --seed: 'abc': expected a whole number."),
    ([*TRAIN, "--seed", "1.5"], "expected a whole number"),
    ([*TRAIN, "--kl-coef", "x"], "Error parsing --kl-coef: 'x': expected a number."),
    ([*TRAIN, "--kl-mode", "x"], "invalid choice 'x'"),
    ([*TRAIN, "--whiten-advantages", "no"], "Unrecognized options: no."),
    ([*TRAIN, "--agent", "rloo", "--value-clip", "0.3"], "Unrecognized options: --value-clip, 0.3."),
    (["--tyro-print-completion", "ksh"], "SHELL is one of bash"),
    (["--tyro-print-completion"], "SHELL is one of bash"),
    (["--tyro-write-completion", "bash"], "SHELL FILE"),
    # numbers and texts
    ([*TRAIN, "--seed", "-1"], "seed=-1: expected a whole number from 0 to 4294967295."),
    ([*TRAIN, "--seed", str(10**30)], "expected a whole number from 0 to 4294967295"),
    ([*TRAIN, "--threads", "0"], "threads=0: expected a whole number from 1 to 1024, or None."),
    ([*TRAIN, "--threads", "-1"], "threads=-1: expected a whole number from 1 to 1024, or None."),
    ([*TRAIN, "--timeout", "-1"], "timeout=-1.0: expected a finite number above 0"),
    ([*TRAIN, "--timeout", "nan"], "timeout=nan: expected a finite number above 0"),
    ([*TRAIN, "--num-envs", str(10**30)], "(of 64 bits)"),
    ([*TRAIN, "--temperature", "1e-30"], "temperature=1e-30: expected a finite number from 0.0001 to 10000.0."),
    ([*TRAIN, "--kl-coef", "-1"], "kl_coef=-1.0: expected a finite number of at least 0."),
    ([*TRAIN, "--learning-rate", "1e30"], "learning_rate=1e+30: expected a finite number above 0 and at most 100."),
    ([*TRAIN, "--device", "gpu"], "device='gpu': expected 'cpu'"),
    (["doctor", "--threads", "0"], "threads=0: expected"),
    (["doctor", "--seed", "-1"], "seed=-1: expected"),
    (["sample", "run", "--samples", "0"], "samples=0: expected"),
    (["sample", "run", "--threads", "0"], "threads=0: expected"),
    (["sample", "run", "--seed", str(10**30)], "expected a whole number from 0 to 4294967295"),
    ([*RLHF, "--threads", "0"], "threads=0: expected"),
    ([*RLHF, "--gold-temperature", "-1", "--gold", "vader"], "gold_temperature=-1.0: expected a finite number of at"),
    ([*RLHF, "--gold-temperature", "nan", "--gold", "vader"], "gold_temperature=nan: expected"),
    ([*RLHF, "--rounds", "0"], "rounds=0: expected a whole number of at least 1."),
    ([*RLHF, "--labels", "2"], "rounds=3, labels=2: expected a label for each round"),
    ([*RLHF, "--samples", "10"], "samples=10: expected a whole number from 2 to 9."),
    ([*RLHF, "--eval-episodes", "1"], "eval_episodes=1: expected a whole number of at least 2."),
    ([*RLHF, "--reward-learning-rate", "nan"], "reward_learning_rate=nan: expected"),
    ([*RLHF, "--gold", "{"], "begins like a JSON object"),
    ([*COMPARE, "--threads", "0"], "threads=0: expected"),
    ([*COMPARE, "--workers", "-1"], "workers=-1: expected"),
    ([*COMPARE, "--seconds", "nan"], "seconds=nan: expected a finite number above 0"),
    ([*COMPARE, "--seeds", "0"], "seeds=0: expected"),
    ([*REWARD, "--epochs", "0", "--warmup", "2"], "warmup=2.0: expected a finite number from 0 to 1."),
    ([*REWARD, "--epochs", "0"], "epochs=0: expected a whole number of at least 1."),
    ([*REWARD, "--limit", "-1"], "limit=-1: expected a whole number of at least 1"),
    ([*REWARD, "--limit", "9"], "limit=9: the files hold 1 rankings"),
    ([*REWARD, "--threads", "0"], "threads=0: expected"),
    ([*REWARD, "--learning-rate", "1e30"], "at most 100"),
    ([*SFT, "--warmup", "2"], "warmup=2.0: expected a finite number from 0 to 1."),
    ([*SFT, "--learning-rate", "1e30"], "at most 100"),
    ([*PRETRAIN, "--heads", "3"], "heads=3: expected heads of one even width"),
    ([*PRETRAIN, "--context", "999"], "context=999 exceeds max_position"),
    ([*CLIPS, "--labels", "0"], "labels=0: expected a whole number of at least 1."),
    ([*CLIPS, "--error-rate", "1"], "error_rate=1: expected less"),
    ([*CLIPS, "--episode-steps", "3"], "episode_steps=3: expected at least"),
    ([*CLIPS, "--task-settings", "["], "Error parsing --task-settings"),
    ([*CLIPS, "--task-settings", "[]"], "[] is no JSON object"),
    ([*CLIPS, "--seed", str(10**30)], "expected a whole number from 0 to 4294967295"),
    ([*ANNOTATE, "--limit", "-1"], "limit=-1: expected a whole number of at least 1"),
    ([*ANNOTATE, "--temperature", "-1"], "temperature=-1.0: expected"),
    ([*ANNOTATE, "--error-rate", "2"], "error_rate=2.0: expected a finite number from 0 to 1."),
    ([*ANNOTATE, "--name", ""], "name='': expected a text that is not empty."),
    (["label", "q.db", "--port", "70000"], "port=70000: expected a whole number from 0 to 65535."),
    (["label", "q.db", "--lease-seconds", "nan"], "lease_seconds=nan: expected"),
    (["label", "q.db", "--host", ""], "host='': expected a text that is not empty."),
    (["reward", "serve", "--reward", "vader", "--port", "-1"], "port=-1: expected"),
    (["reward", "data", "--out", "o", "--seed", "-1"], "seed=-1: expected"),
    (["reward", "eval", "--files", "r.jsonl", "--model"], "No model to measure"),
    (["reward", "eval"], "Nothing to measure on"),
    # names
    (["train", "--out", "o", "--env", "nope"], "env='nope' is not registered. Expected one of textenv/Book-v0"),
    (["train", "--out", "o", "--env", "Exact-v0"], "Did you mean 'textenv/Exact-v0'?"),
    (["train", "--out", "o", "--env", "textenv/Movie-v0"], "Did you mean 'textenv/MovieReview-v0'?"),
    (["train", "--out", "o", "--env", "CartPole-v1"], "takes none of the settings of a text environment"),
    (["train", "--out", "o", "--env", "nomod:My-v0"], "the module 'nomod' cannot be imported"),
    (["train", "--out", "o", "--env", "json:My-v0"], "env='json:My-v0' is not registered"),
    (["train", "--out", "o", "--env", ""], "env='' is not registered"),
    (["doctor", "--env", "CartPole-v1"], "takes none of the settings of a text environment"),
    (["doctor", "--env", "nomod:My-v0"], "the module 'nomod' cannot be imported"),
    ([*COMPARE, "--envs", "nope"], "env='nope' is not registered"),
    ([*RLHF, "--env", "nope"], "env='nope' is not registered"),
    ([*RLHF, "--env", "textenv/Book-v0"], "people rank the completions of a prompt, and in it a world answers"),
    ([*TRAIN, "--agent", "ppoo"], "Did you mean 'ppo'?"),
    ([*TRAIN, "--agent", ""], "There is no agent named ''"),
    ([*TRAIN, "--agent", "nomod:X"], "cannot be imported"),
    # JSON
    ([*TRAIN, "--agent-settings", "["], "expected a JSON object"),
    ([*TRAIN, "--agent-settings", "5"], "expected a JSON object"),
    ([*TRAIN, "--agent-settings", "[" * 100_000], "is nested too deeply"),
    ([*TRAIN, "--agent-settings", '{"epochs": ' + "1" * 5000 + "}"], "is no JSON"),
    ([*TRAIN, "--agent-settings", '{"whiten_advantages": "no"}'], "whiten_advantages='no': expected True or False."),
    ([*TRAIN, "--agent-settings", '{"gradient_checkpointing": 3}'], "gradient_checkpointing=3: expected True"),
    ([*TRAIN, "--agent-settings", '{"lora_targets": 5}'], "lora_targets=5: expected a list, each item a text"),
    ([*TRAIN, "--agent-settings", '{"lora_targets": "q"}'], "lora_targets='q': expected a list"),
    ([*TRAIN, "--agent-settings", '{"clip": NaN}'], "clip=nan: expected a finite number above 0."),
    ([*TRAIN, "--reward", "{"], "begins like a JSON object, and is no JSON"),
    ([*TRAIN, "--reward", "['vader']"], "begins like a JSON list, and is no JSON"),
    ([*TRAIN, "--reward", "[]"], "expected a non-empty list of rewards"),
    ([*TRAIN, "--reward", '["vader", 5]'], "5 is no reward; expected a name"),
    ([*TRAIN, "--reward", '["vader", "lenght"]'], "Did you mean 'length'?"),
    ([*TRAIN, "--reward", '["vader"]', "--reward-weights", "1", "2"], "expected 1 finite numbers, one for each reward"),
    ([*TRAIN, "--reward", '["vader"]', "--reward-weights", "nan"], "reward_weights=(nan,): expected"),
    ([*TRAIN, "--reward-weights", "1"], "--reward-weights without --reward: give the rewards too, as a JSON list."),
    ([*TRAIN, "--potential", "["], "The potential '[' begins like a JSON list, and is no JSON"),
    ([*COMPARE, "--rewards", "["], "rewards: '[' begins like a JSON list, and is no JSON"),
    ([*COMPARE, "--rewards", "[]"], "expected a non-empty list of rewards"),
    ([*COMPARE, "--rewards", "{"], "rewards: '{' begins like a JSON object, and is no JSON"),
    ([*COMPARE, "--agents", "{"], "agents: '{' begins like a JSON object, and is no JSON"),
    (["reward", "serve", "--reward", "{"], "begins like a JSON object, and is no JSON"),
    (["feedback", "annotate", "q.db", "--reward", "{"], "begins like a JSON object, and is no JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), TYPED, ids=[f"{place}" for place in range(len(TYPED))])
@pytest.mark.usefixtures("here")
def test_what_is_typed(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(arguments, capsys)
    assert not Path("o").exists()


@pytest.mark.parametrize("path", ["file", "file/x", "/proc/x", "x" * 300])
@pytest.mark.parametrize(
    "command",
    [TRAIN, COMPARE, RLHF, REWARD, CLIPS, SFT, PRETRAIN, ["corpus"], ["reward", "data"], ["reward", "eval"]],
    ids=" ".join,
)
@pytest.mark.usefixtures("here")
def test_every_command_checks_its_output(command: list[str], path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"out={path!r}: expected a folder that can be written" in refused([*command, "--out", path], capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "run", "--html", "no/x.html"],
        ["feedback", "export", "q.db", "no/x.jsonl"],
        ["feedback", "import", "no/x.db", "r.jsonl"],
        ["feedback", "add", "no/x.db", "--prompts", "text.txt", "--policies", "a=bundled"],
        [*CLIPS, "--store", "no/x.db"],
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("here")
def test_every_command_checks_its_files(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected a file that can be written; there is no folder" in refused(arguments, capsys)


DAMAGED = {
    "cut short": b'{"seed": 1, "en',
    "NUL": b"\0" * 20,
    "a list": b"[]",
    "no UTF-8": b'{"a": "\xff"}',
    "empty": b"",
    "deep": b"[" * 100_000,
}
FILES: dict[str, list[str]] = {
    "config.json": TRAIN,
    "training.json": SFT,
    "reward.json": REWARD,
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_a_run(name: str, damage: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "o").mkdir()
    (here / "o" / name).write_bytes(DAMAGED[damage])
    assert f"{Path('o') / name} cannot be read: " in refused(FILES[name], capsys)


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("command", [CLIPS, RLHF], ids=["clips train", "rlhf"])
def test_a_damaged_config(command: list[str], damage: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "o").mkdir()
    (here / "o" / "config.json").write_bytes(DAMAGED[damage])
    assert "config.json cannot be read: " in refused(command, capsys)
