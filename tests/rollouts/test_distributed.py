"""Training on several processes: the run of one process with the same batch, whole checkpoints, and a clear end."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import safetensors.torch
import torch
from gymnasium.vector import AutoresetMode

from tests.conftest import build_lm
from textenv.agents.ppo import PPO, PPOConfig
from textenv.commands.cli import main
from textenv.commands.settings import TrainSettings
from textenv.commands.training_run import train
from textenv.data.files import locked
from textenv.rollouts.collect import sample_episodes
from textenv.rollouts.distributed import ALONE, Processes, connect
from textenv.types import TextEnvError

ROOT = Path(__file__).parents[2]
ROWS, TOKENS, STEPS = 8, 6, 120
PROMPTS = ["the film", "a plot", "it"]


def count_e(completions: Sequence[str], **_: Any) -> list[float]:
    return [float(text.count("e")) / 4 for text in completions]


@dataclasses.dataclass(frozen=True)
class Case:
    """A training run, small enough to be made twice."""

    architecture: str = "llama"
    sharded: bool = False
    env: dict[str, Any] = dataclasses.field(default_factory=dict)
    ppo: dict[str, Any] = dataclasses.field(default_factory=dict)


CASES = {
    "ddp": Case(env={"kl_target": 3.0, "kl_horizon": 20}),
    "masked": Case(env={"top_k": 9, "temperature": 0.8, "kl_mode": "dense"}, ppo={"micro_batch_size": 1}),
    "fsdp": Case("gpt2", sharded=True, env={"kl_target": 3.0, "kl_horizon": 20}),  # its embeddings are its head
    "fsdp-value": Case(sharded=True, ppo={"value": "model", "micro_batch_size": 1, "target_kl": 0.05}),
}


def make_agent(case: Case, processes: Processes) -> PPO:
    keywords = {"prompts": PROMPTS, "reward": count_e, "max_new_tokens": TOKENS, "kl_mode": "lump", **case.env}
    envs = gym.make_vec(
        "textenv/Text-v0",
        num_envs=processes.share("rows", ROWS),
        autoreset_mode=AutoresetMode.DISABLED,
        model=build_lm(case.architecture),
        **keywords,
    )
    rates = {"learning_rate": 1e-3, "embedding_learning_rate": 8e-4, "value_learning_rate": 3e-3}
    settings: dict[str, Any] = {**rates, "seed": 5, "minibatch_size": 4, "epochs": 2, **case.ppo}
    return PPO(envs, PPOConfig(**settings), processes=processes)


class StopError(Exception):
    pass


def run(
    case: Case, processes: Processes, folder: Path, *, checkpoints: Path | None = None, until: int | None = None
) -> PPO:
    """Train, for ``until`` iterations where it is given, and leave weights, metrics and samples in ``folder``."""
    agent, history = make_agent(case, processes), []

    def log(steps: int, metrics: Any) -> None:
        history.append({"steps": steps, **{k: v for k, v in metrics.items() if not k.startswith("time/")}})
        if agent.iterations == until:
            raise StopError

    try:
        agent.learn(STEPS, progress=log, checkpoints=checkpoints, checkpoint_every=1)
    except StopError:
        return agent
    assert len({json.dumps(theirs) for theirs in processes.gather(history)}) == 1, (
        "the processes tell different metrics"
    )
    agent.save(folder)
    with agent.whole_weights():
        generator = torch.Generator().manual_seed(1)
        episodes = sample_episodes(
            agent.envs, agent.policy, generator, [*PROMPTS, *PROMPTS, "x"][:5], processes=processes
        )
    values = [value for state in agent.optimizer.state.values() for value in state.values() if value.ndim]
    held = sum((value.to_local() if hasattr(value, "to_local") else value).numel() for value in values)
    about = {
        "history": history,
        "completions": [episode.completion for episode in episodes],
        "optimizer": [processes.gather(held), sum(value.numel() for value in values)],
    }
    if processes.first:
        (folder / "about.json").write_text(json.dumps(about))
    return agent


def work(folder: Path) -> None:
    """Make the runs of a process of several."""
    torch.set_num_threads(1)
    processes = connect()
    assert processes.size == 2
    for name, case in CASES.items():
        here = dataclasses.replace(processes, sharded=case.sharded)
        checkpoints = folder / f"{name}-of-one" if case.sharded else None
        run(case, here, folder / name, checkpoints=checkpoints)
        run(case, here, folder, checkpoints=folder / f"{name}-of-two", until=3)
    assert main(arguments(folder, "whole")) == 0


def arguments(folder: Path, out: str) -> list[str]:
    """Return a command, of a run of some twenty iterations."""
    return [
        "train", "--out", str(folder / out), "--env", "textenv/Text-v0", "--model", str(folder / "model"), "--reward",
        '{"name":"length","target":5}', "--total-steps", "1000", "--num-envs", "8", "--minibatch-size", "4",
        "--checkpoint-every", "2", "--max-new-tokens", "6", "--eval-episodes", "5", "--threads", "1",
    ]  # fmt: skip


def start(folder: Path, command: list[str], expected: Sequence[int] = (0, 0)) -> None:
    """Run Python on two processes that know of each other; what they say goes to files, their status is checked."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **environment()}
    logs = [folder / f"rank-{rank}.log" for rank in range(2)]
    processes = []
    for rank, log in enumerate(logs):
        with log.open("w") as file:
            own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(subprocess.Popen([sys.executable, *command], env=own, stdout=file, stderr=file))
    codes = [process.wait() for process in processes]
    assert codes == [*expected], "\n".join(log.read_text() for log in logs)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of ``CASES`` on two processes; those with FSDP go on from a checkpoint of one process."""
    folder = tmp_path_factory.mktemp("two")
    model = build_lm()
    model.model.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    for name, case in CASES.items():
        if case.sharded:
            run(case, ALONE, folder, checkpoints=folder / f"{name}-of-one", until=2)
    code = "import pathlib, sys; from tests.rollouts.test_distributed import work; work(pathlib.Path(sys.argv[1]))"
    start(folder, ["-W", "error", "-c", code, str(folder)])
    return folder


@functools.cache
def alone(name: str, folder: Path) -> Path:
    """Make the same run on one process."""
    run(CASES[name], ALONE, folder / f"{name}-alone")
    return folder / f"{name}-alone"


def close(one: Path, other: Path) -> None:
    """Weights agree to 1e-5."""
    for file in ("model.safetensors", "value.safetensors"):
        ours, theirs = (safetensors.torch.load_file(folder / file) for folder in (one, other))
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[key], atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one_with_twice_the_batch(name: str, runs: Path) -> None:
    one, two = alone(name, runs), runs / name
    close(one, two)
    about, expected = (json.loads((folder / "about.json").read_text()) for folder in (two, one))
    assert about["completions"] == expected["completions"]
    history = expected["history"][-len(about["history"]) :]
    assert len(history) == len(expected["history"]) - (1 if CASES[name].sharded else 0)
    for ours, theirs in zip(about["history"], history, strict=True):
        assert ours == pytest.approx(theirs, abs=2e-5, rel=2e-4)
    assert {row["train/updates"] for row in history} != {0.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.sharded])
def test_fsdp_shares_out_the_optimizer(name: str, runs: Path) -> None:
    (held, total), (whole, _) = (
        json.loads((folder / "about.json").read_text())["optimizer"] for folder in (runs / name, alone(name, runs))
    )
    assert whole == [total]
    assert sum(held) == total
    assert max(held) < 0.55 * total


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_one_process_goes_on_where_two_stopped(name: str, runs: Path) -> None:
    agent = run(CASES[name], ALONE, runs / f"{name}-resumed", checkpoints=runs / f"{name}-of-two")
    assert agent.iterations == len(json.loads((alone(name, runs) / "about.json").read_text())["history"])
    close(alone(name, runs), runs / f"{name}-resumed")


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_the_same_command_goes_on(runs: Path) -> None:
    import psutil

    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", "0", "-m", "textenv", *arguments(runs, "killed")]
    metrics = runs / "killed" / "metrics.jsonl"
    with (runs / "log").open("w+") as log:
        with subprocess.Popen(launch, env=environment(), stdout=log, stderr=log) as launcher:
            while launcher.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < 5):
                time.sleep(0.01)
            children = psutil.Process(launcher.pid).children()
            (victim,) = (child for child in children if child.environ().get("RANK") == "1")
            victim.kill()
            assert launcher.wait(60) == 1
        log.seek(0)
        said = " ".join(log.read().split())
    assert "Process 0 of 2 stops, since rank 1 is gone" in said
    assert "Start the same command again to go on from the last checkpoint" in said
    assert not (runs / "killed" / "results.json").exists()
    assert not any(child.is_running() for child in children)

    done = subprocess.run(launch, env=environment(), check=True, capture_output=True, text=True)
    assert done.stdout.count("Going on from the checkpoint") == 1, "one process speaks"

    def rows(out: str) -> list[dict[str, Any]]:
        lines = (runs / out / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]

    assert rows("killed") == rows("whole")
    weights = [(runs / out / "policy" / "model.safetensors").read_bytes() for out in ("whole", "killed")]
    assert weights[0] == weights[1]
    results = [json.loads((runs / out / "results.json").read_text()) for out in ("whole", "killed")]
    assert results[0]["after"] == results[1]["after"]
    assert results[0]["after"]["episodes"] == 5


@pytest.mark.slow
def test_without_a_launcher_the_broken_connection_tells(tmp_path: Path) -> None:
    code = """if True:
        import os, signal, sys
        from textenv.rollouts.distributed import connect
        from textenv.types import TextEnvError
        processes = connect()
        try:
            with processes.watch():
                assert processes.counts(processes.rank + 5) == [5, 6]
                if processes.rank == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                processes.sums({"loss": 1.0})
        except TextEnvError as error:
            sys.exit(str(error))
    """
    start(tmp_path, ["-c", code], expected=[1, -9])
    said = (tmp_path / "rank-0.log").read_text()
    assert "Process 0 of 2 stops, since" in said
    assert "Connection" in said
    assert "Traceback" not in said


def test_a_plain_run_connects_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    for size in (None, "1"):
        if size is not None:
            monkeypatch.setenv("WORLD_SIZE", size)
        assert connect() is ALONE
    assert not torch.distributed.is_initialized()


def test_accelerate_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TextEnvError, match=r"textenv\[distributed\]"):
        connect()


@pytest.mark.parametrize("name", ["ACCELERATE_USE_DEEPSPEED", "FSDP_OFFLOAD_PARAMS"])
def test_what_it_does_not_do_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, "true")
    with pytest.raises(TextEnvError, match=name):
        connect()


def test_a_launch_that_starts_one_process_where_several_were_asked_for_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # as accelerate launch --cpu --num_processes 2 sets them
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(TextEnvError, match=r"--multi_gpu --num_processes 2"):
        connect()


def test_what_does_not_divide_is_refused() -> None:
    processes = Processes(rank=1, size=4, device=torch.device("cpu"))
    assert processes.share("num_envs", 128) == 32
    assert processes.own(range(8)) == range(2, 4)
    with pytest.raises(TextEnvError, match=r"num_envs=10 on 4 processes: expected a multiple of 4"):
        processes.share("num_envs", 10)
    envs: Any = gym.make("textenv/Text-v0", model=build_lm(), prompts=PROMPTS)
    with pytest.raises(TextEnvError, match=r"minibatch_size=2 on 4 processes"):
        PPO(envs, PPOConfig(minibatch_size=2), processes=processes)


def test_a_reward_with_statistics_of_its_own_is_refused() -> None:
    processes = Processes(rank=1, size=2, device=torch.device("cpu"))
    reward = {"name": "clip", "low": -1.0, "high": 1.0, "reward": {"name": "normalize", "reward": "vader"}}
    several: list[dict[str, Any]] = [{"reward": reward}, {"reward": "vader", "potential": reward}]
    for settings in several:
        envs: Any = gym.make("textenv/Text-v0", model=build_lm(), prompts=PROMPTS, **settings)
        with pytest.raises(TextEnvError, match="keeps statistics"):
            PPO(envs, PPOConfig(), processes=processes)


@pytest.mark.parametrize("rank", [0, 1])
def test_all_processes_end_where_the_first_is_refused(rank: int, tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Told(Processes):
        """A process that is told what the first one found."""

        def gather(self, item: Any) -> list[Any]:
            assert item is (self.rank == 0)  # only the first one has tried
            return [True, False]

    processes = Told(rank=rank, size=2, device=torch.device("cpu"))
    with (
        locked(tmp_path / "run"),
        pytest.raises(TextEnvError, match=["is being written", "as the first one does"][rank]),
    ):
        train(TrainSettings(out=tmp_path / "run"), processes)


def test_errors_of_the_network_alone_are_explained() -> None:
    processes = Processes(size=2, device=torch.device("cpu"))
    with pytest.raises(TextEnvError, match="another process is gone"), processes.watch():
        raise RuntimeError("[pair.cc:547] Connection closed by peer [127.0.0.1]:4242")
    with pytest.raises(RuntimeError, match="shapes"), processes.watch():
        raise RuntimeError("The shapes differ")
    with pytest.raises(RuntimeError, match="Connection"), ALONE.watch():
        raise RuntimeError("Connection closed by peer")
