"""Every command ends when it is asked to, says how to go on, and leaves nothing half done.

Run as a program, it measures how long each takes: ``python -m tests.commands.test_signals [folder of the source]``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.label_site import add_tasks
from tests.waiting import wait_for
from textenv.commands.cli import main
from textenv.feedback.store import FeedbackStore
from textenv.rollouts.runtime import Stopped, stopped_by_signals

ROOT = Path(__file__).parents[2]
CHECKPOINT = "goes on from the last checkpoint"
MANY = "1000000"


@dataclass(frozen=True)
class Case:
    """A command that would take hours.

    Attributes:
        command: Its arguments; ``{0}`` stands for an empty folder.
        alive: A file in the folder, as a pattern, that it has written to once it works; or words that it has printed.
        says: What it says as it ends.
        prepare: Makes what it reads, in the folder.
    """

    command: str
    alive: str
    says: str
    prepare: Callable[[Path], object] = lambda folder: None


def write_texts(folder: Path) -> None:
    rows = [{"prompt": f"The film {n}", "completion": f" was number {n} of all."} for n in range(2000)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rankings = [
        {"prompt": f"The film {n}", "completions": [" was good.", " was bad."], "ranks": [0, 1], "annotator": "a"}
        for n in range(2000)
    ]
    (folder / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rankings))


def write_store(folder: Path) -> None:
    with FeedbackStore(folder / "store.db") as store, store.transaction():
        add_tasks(store, 3000)


def train_policy(folder: Path) -> None:
    train = f"train --reward length --total-steps 64 --num-envs 8 --eval-episodes 2 --out {folder}/run"
    arguments = train.replace("--reward length", '--reward {"name":"length","target":3}').split()
    assert main(arguments) == 0  # in this process, which has loaded torch


TRAIN = "--eval-episodes 2 --num-envs 4 --total-steps " + MANY
CASES = {
    "train": Case(f"train --reward vader {TRAIN} --out {{0}}/run", "run/metrics.jsonl", CHECKPOINT),
    "compare": Case(
        f"compare --out {{0}} --seeds 2 --agents reinforce --workers 2 --evaluations 10000 {TRAIN}",
        "runs/**/curve.jsonl",
        "same command goes on with the rest",
    ),
    "rlhf": Case(f"rlhf --gold vader --labels 12 {TRAIN} --out {{0}}/run", "run/**/metrics.jsonl", CHECKPOINT),
    "pretrain": Case(
        "pretrain --files {0}/pairs.jsonl --out {0}/lm --vocab-size 300 --hidden-size 16 --intermediate-size 16 "
        "--layers 1 --heads 2 --context 16 --epochs 10000 --checkpoint-every 20",
        "lm/checkpoints/step-*/state.json",
        CHECKPOINT,
        write_texts,
    ),
    "sft": Case(
        "sft --model bundled --files {0}/pairs.jsonl --out {0}/lm --batch-size 2 --epochs 1000 --checkpoint-every 2",
        "lm/checkpoints/step-*/state.json",
        CHECKPOINT,
        write_texts,
    ),
    "reward train": Case(
        "reward train --files {0}/rankings.jsonl --out {0}/rm --epochs 1000 --batch-size 2 --checkpoint-every 2",
        "rm/checkpoints/step-*/state.json",
        CHECKPOINT,
        write_texts,
    ),
    "reward serve": Case("reward serve --reward vader --port 0", "answers at", "same command serves again"),
    "label": Case("label {0}/store.db --port 0", "Compare at", "is stored", write_store),
    "annotate": Case(
        "feedback annotate {0}/store.db --reward vader",
        "store.db-wal",
        "same command goes on with the rest",
        write_store,
    ),
    "clips": Case(
        f"clips train --out {{0}}/clips --total-steps {MANY} --rounds 10000", "clips/checkpoints/step-*", CHECKPOINT
    ),
    "clips with people": Case(
        f"clips train --out {{0}}/clips --store {{0}}/clips.db --labels 8 --total-steps {MANY}",
        "clips/checkpoints/step-*",
        CHECKPOINT,
    ),
    "sample": Case("sample {0}/run", "prompt>", "starts anew", train_policy),
    "doctor": Case("doctor --reward vader --prompts {0}/prompts.txt --num-envs 64", "", "starts anew"),
}


def end(case: Case, number: int, folder: Path, root: Path = ROOT) -> tuple[int, str, float]:
    """Start a command, send it a signal once it works; return its exit code, what it printed, and how long it took."""
    case.prepare(folder)
    pipe = folder / "prompts.txt"
    os.mkfifo(pipe)  # so that what reads it is known to have come so far
    with (folder / "printed.txt").open("w") as printed:
        process = subprocess.Popen(
            [sys.executable, "-m", "textenv", *case.command.format(folder).split()],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(root)},
        )
    try:
        if not case.alive:
            pipe.write_text("The film was\n")  # waits for the reader

        def works() -> bool:
            assert process.poll() is None, (folder / "printed.txt").read_text()
            if " " in case.alive or case.alive.endswith(">"):
                return case.alive in (folder / "printed.txt").read_text()
            return any(file.is_dir() or file.stat().st_size for file in folder.glob(case.alive))

        if case.alive:
            wait_for(works, 240)
        began = time.monotonic()
        process.send_signal(number)
        return process.wait(120), (folder / "printed.txt").read_text(), time.monotonic() - began
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), [("train", signal.SIGINT), *((name, signal.SIGTERM) for name in CASES)])
def test_a_signal_ends_a_command(name: str, number: int, tmp_path: Path) -> None:
    code, printed, _ = end(CASES[name], number, tmp_path)
    assert code == 128 + number, printed
    assert "Traceback" not in printed
    assert "Stopped. " in printed
    assert CASES[name].says in printed.splitlines()[-1]
    left = [path for path in tmp_path.rglob(".*") if path.name != ".lock"]
    assert left == [], "temporary files"
    for store in tmp_path.glob("*.db"):
        with FeedbackStore(store, create=False) as opened:
            assert all(len(one.ranks) == 2 for one in opened.judgements())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_raised_where_it_is_to_be(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as caught, stopped_by_signals():
        signal.raise_signal(number)
    assert caught.value.number == number
    assert signal.getsignal(number) == before


def test_a_signal_to_another_thread_interrupts_a_read() -> None:
    """Python runs handlers in the main thread, which does not wake up from a read by itself."""
    reader, writer = os.pipe()
    begins = threading.Event()

    def receive() -> None:
        begins.wait()
        time.sleep(0.2)  # until the read has begun; were it to begin later, the test would pass all the same
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    def read() -> None:
        begins.set()
        os.read(reader, 1)

    thread = threading.Thread(target=receive)
    thread.start()
    rescue = threading.Timer(30, os.write, (writer, b"."))  # a test that fails, not one that hangs
    rescue.start()
    try:
        with pytest.raises(Stopped), stopped_by_signals():
            read()
        assert rescue.is_alive(), "the read was not interrupted"
    finally:
        rescue.cancel()
        thread.join()
        os.close(reader)
        os.close(writer)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_have_no_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM)
    inside: list[object] = []

    def work() -> None:
        with stopped_by_signals():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


def measure(root: Path) -> None:
    """Print, for each command and signal, its exit code and the seconds that it took to end."""
    for name, case in CASES.items():
        for number in (signal.SIGTERM, signal.SIGINT):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    code, printed, seconds = end(case, number, Path(folder), root)
                    last = printed.strip().splitlines()[-1:]
                    sys.stdout.write(f"{name:20} {number.name:8} {code:5} {seconds:6.1f} s  {last}\n")
                except (AssertionError, subprocess.TimeoutExpired) as error:
                    sys.stdout.write(f"{name:20} {number.name:8} {type(error).__name__} {str(error)[-300:]}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    measure(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
