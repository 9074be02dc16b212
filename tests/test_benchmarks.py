"""The benchmarks of speed: their statistics on made-up numbers, the models they share, and that each one runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import (
    _echoes,
    _jobs,
    books,
    contention,
    environments,
    gpu,
    labels,
    overhead,
    ppo_iteration,
    precision,
    price,
    ptx,
    rollout,
    scaling,
    turns,
)
from benchmarks._measure import Case, Effort, Load, environment, interleave, rate, remark
from benchmarks._ours import make_env
from benchmarks._train import Trainer
from textenv.compare.plan import Compare, make_plan
from textenv.feedback.agreement import Share
from textenv.models.policy import TextPolicy

QUICK = Effort(rounds=1, attempts=1, patience=0.0)
QUIET = Load(wall=1.0, own=1.5, waited=0.0, busy=1.5, stolen=0.0, cores=2)


def test_a_ratio_compares_rounds_one_by_one_so_that_drift_cancels() -> None:
    mine, theirs = Case((1.0, 2.0, 8.0), 0), Case((2.0, 4.0, 16.0), 0)
    assert mine.median == 2.0
    assert mine.ratio(theirs) == 0.5


def test_rounds_that_were_disturbed_on_either_side_do_not_count() -> None:
    mine, theirs = Case((1.0, 9.0, None, 3.0, 4.0), 2), Case((2.0, None, 7.0, 6.0, 8.0), 2)
    assert mine.median == 3.5
    assert mine.ratio(theirs) == 0.5


def test_with_too_few_common_rounds_the_medians_are_compared() -> None:
    assert Case((1.0, None, 3.0, None), 2).ratio(Case((None, 4.0, None, 6.0), 2)) == 2.0 / 5.0


@pytest.mark.parametrize(
    ("load", "disturbed"),
    [
        (QUIET, False),
        (Load(1.0, 1.5, 0.02, 1.5, 0.0, 2), False),  # waited 2 % of the time
        (Load(1.0, 1.5, 0.05, 1.5, 0.0, 2), True),  # 5 %
        (Load(1.0, 1.5, 0.0, 1.5, 0.05, 2), True),  # as much taken by the hypervisor
        (Load(1.0, 1.0, 0.0, 1.2, 0.0, 2), False),  # a tenth of the machine used by others
        (Load(1.0, 1.0, 0.0, 2.0, 0.0, 2), True),  # another process on the second core
        (Load(0.1, 0.2, 0.0, 0.25, 0.0, 2), False),  # no more than ticks can tell
    ],
)
def test_what_counts_as_disturbed(load: Load, disturbed: bool) -> None:
    assert load.disturbed is disturbed


def test_loads_subtract() -> None:
    before, after = Load(1.0, 2.0, 0.5, 3.0, 0.1, 2), Load(3.0, 5.0, 0.75, 8.0, 0.1, 2)
    assert after - before == Load(2.0, 3.0, 0.25, 5.0, 0.0, 2)


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs Linux")
def test_the_counters_tell_own_from_foreign_work() -> None:
    before = Load.now()
    while (passed := Load.now() - before).own < 0.05:
        pass
    assert 0.05 <= passed.own <= passed.wall * 1.1  # one thread
    assert passed.waited >= 0
    assert passed.busy >= passed.own - 0.02 * passed.cores - 0.02  # ticks


class Readings:
    """Counters on which every measurement takes a second, and those of some numbers are disturbed."""

    def __init__(self, *disturbed: int) -> None:
        self._disturbed, self._reads, self._waited = disturbed, 0, 0.0

    def __call__(self) -> Load:
        number, after = divmod(self._reads, 2)
        self._waited += 0.5 * (after and number in self._disturbed)
        self._reads += 1
        return Load(float(self._reads), 0.0, self._waited, 0.0, 0.0, 2)


def test_disturbed_attempts_are_dropped_counted_and_made_again() -> None:
    calls: list[str] = []

    def case(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    effort = Effort(rounds=3, attempts=2, patience=0.0)
    results = interleave({"a": lambda: case("a"), "b": lambda: case("b")}, effort, Readings(1))
    assert calls == ["a", "b", "b", "b", "a", "a", "b"]  # the first begins, then the second, then the first
    assert results == {"a": Case((1.0, 5.0, 6.0), 0), "b": Case((3.0, 4.0, 7.0), 1)}
    assert "3 interleaved rounds; 1 attempts were disturbed" in remark(results.values())


def test_without_enough_undisturbed_rounds_all_count_and_it_says_so() -> None:
    figures = iter([1.0, 2.0, 3.0, 4.0])
    effort = Effort(rounds=4, attempts=1, patience=0.0)
    results = interleave({"a": lambda: next(figures)}, effort, Readings(0, 2))
    assert results == {"a": Case((1.0, 2.0, 3.0, 4.0), 2, clean=False)}
    assert "TOO FEW WERE UNDISTURBED" in remark(results.values())


def test_a_rate_is_of_several_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Iterator[float] = iter([0.0, 0.1, 5.0, 7.0])  # a run takes 0.1 s, then four of them take 2 s
    monkeypatch.setattr("benchmarks._measure.time.perf_counter", lambda: next(clock))
    runs: list[int] = []

    def run() -> int:
        runs.append(1)
        return 10

    assert rate(run)() == 4 * 10 / 2.0
    assert len(runs) == 2 + 4


def test_the_versions_are_printed() -> None:
    assert f"torch {torch.__version__.partition('+')[0]}" in environment("torch")


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("hazard", [0.0, 0.2])
def test_texts_end_with_the_probability_that_was_asked_for(architecture: _jobs.Architecture, hazard: float) -> None:
    model = _jobs.model("toy", architecture, hazard=hazard)
    ids = torch.randint(2, 300, (4, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        probabilities = model(input_ids=ids).logits.softmax(dim=-1)
    assert probabilities[..., _jobs.END].numpy() == pytest.approx(hazard, rel=0.1, abs=1e-9)
    assert probabilities[..., _jobs.PAD].max() < 1e-9


@pytest.mark.parametrize("hazard", [0.0, 0.2])
def test_texts_of_a_tied_llama_end_with_that_probability_too(hazard: float, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = _jobs.Shape(2, 36, 3, 300, "llama", mlp=48, key_value_heads=1, tied=True)
    monkeypatch.setitem(_jobs.SHAPES, "toy", shape)
    model = _jobs.model("toy", hazard=hazard)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.num_key_value_heads == 1
    ids = torch.randint(2, 300, (4, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        probabilities = model(input_ids=ids).logits.softmax(dim=-1)
    assert probabilities[..., _jobs.END].numpy() == pytest.approx(hazard, rel=0.1, abs=1e-9)
    assert probabilities[..., _jobs.PAD].max() < 1e-9


def test_the_shape_of_smollm2_has_as_many_weights_as_the_model() -> None:
    with torch.device("meta"):
        model = _jobs._llama(_jobs.SHAPES["smollm2"], 64, {})
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008


def test_prompts_have_as_many_tokens_as_were_asked_for() -> None:
    tokenizer = _jobs.tokenizer(300)
    ids = tokenizer(_jobs.prompts(5, 7, 300))["input_ids"]
    assert np.shape(ids) == (5, 7)
    assert np.min(ids) > _jobs.PAD
    assert tokenizer.encode("w17 w299") == [17, 299]
    assert tokenizer.decode([17, _jobs.END], skip_special_tokens=True) == "w17"


def test_tokens_of_generate_count_up_to_the_end() -> None:
    generate = rollout.Generate(_jobs.model("toy"), rollout.Config(batch=2, prompt=2))
    end, pad = _jobs.END, _jobs.PAD
    assert generate.tokens(torch.tensor([[7, 7, 5, 6, 5], [7, 7, 5, end, pad]])) == 3 + 2


def test_memory_counts_buffers_once_and_no_weights() -> None:
    env = make_env(_jobs.model("toy"), batch=2, prompt=4, response=4)
    policy = TextPolicy(env.reference)
    before = scaling.held(env, policy)
    assert 0 < before < 100_000  # the weights are more
    shared = np.zeros(1000)
    vars(env)["spare"] = [shared, shared[:10], torch.from_numpy(shared), torch.zeros(8)]
    assert scaling.held(env, policy) == before + 8000 + 32


@pytest.mark.parametrize("trainer", ["trl-ppo", "trl-grpo", "torchrl-grpo", "agilerl-grpo"])
def test_a_trainer_whose_environment_is_missing_is_named(trainer: Trainer, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=rf"setup_peers\.sh .* leave {trainer} out"):
        ppo_iteration.interpreter(trainer, tmp_path)


@pytest.mark.parametrize("side", ["textenv-world", "textenv-rows", "textenv-tokens"])
def test_our_sides_are_the_echo(side: _echoes.Side) -> None:
    job = _echoes.Job(side, rows=2, turns=3, seconds=0.0)
    steps = _echoes.SIDES[side](job)
    _echoes.check(steps, job)
    steps.close()


class Deaf(_echoes.TextenvWorld):
    """Answers nothing."""

    def step(self) -> _echoes.Answers:
        return super().step()._replace(texts=["", ""])


def test_a_side_that_is_no_echo_is_refused() -> None:
    job = _echoes.Job("textenv-world", rows=2, turns=3, seconds=0.0)
    with pytest.raises(RuntimeError, match="in turn 1 of 3, which is no echo"):
        _echoes.check(Deaf(job), job)


@pytest.mark.parametrize("side", sorted(set(get_args(_echoes.Side)) - {"textenv-world"}))
def test_a_side_of_another_package_runs_in_its_environment(side: _echoes.Side, tmp_path: Path) -> None:
    if side.startswith("textenv"):
        assert environments.interpreter(side, tmp_path) == Path(sys.executable)
    else:
        with pytest.raises(SystemExit, match=rf"setup_peers\.sh .* leave {side} out"):
            environments.interpreter(side, tmp_path)


def test_trainers_that_cannot_do_the_job_are_left_out_or_named() -> None:
    config = ppo_iteration.Config()
    assert "textenv-rloo" not in ppo_iteration.trainers_of(config)
    with pytest.raises(SystemExit, match=r"textenv-rloo learns once .* --epochs 1"):
        ppo_iteration.trainers_of(replace(config, trainers=("textenv-rloo",)))
    with pytest.raises(SystemExit, match=r"agilerl-grpo always learns an adapter: give --lora-rank, or leave it out"):
        ppo_iteration.trainers_of(replace(config, trainers=("trl-grpo", "agilerl-grpo")))
    adapters = ppo_iteration.trainers_of(replace(config, epochs=1, lora_rank=8))
    assert {"textenv-rloo", "agilerl-grpo"} <= set(adapters)
    assert not {"textenv-model", "trl-ppo", "torchrl-grpo"} & set(adapters)


def test_forwards_of_another_size_than_the_batch_are_refused() -> None:
    with pytest.raises(SystemExit, match="--micro-batch 5 does not divide --batch 64"):
        ppo_iteration.main(ppo_iteration.Config(micro_batch=5))


@pytest.mark.parametrize("file", sorted(Path("benchmarks").glob("*.toml")), ids=lambda file: file.stem)
def test_the_settings_of_a_comparison_are_those_of_its_agents(file: Path, tmp_path: Path) -> None:
    plan = make_plan(Compare(out=tmp_path, config=file))
    assert len(plan.agents) >= 5
    for run in plan.runs:
        assert run.agent_config().seed == run.seed


@pytest.mark.slow
def test_price_runs(capsys: pytest.CaptureFixture[str]) -> None:
    settings = '{"candidates": 64}'
    price.main(price.Config(settings=settings, kl_coefs=(0.2, 0.01), rows=16, steps=300, episodes=24, samples=32))
    printed = capsys.readouterr().out
    assert "± " in printed
    assert "Best-of-32: 0.7" in printed


@pytest.mark.slow
def test_books_runs(capsys: pytest.CaptureFixture[str]) -> None:
    books.main(books.Config(books="few", demonstrations=2, curricula=("first leaves",), total_steps=32, num_envs=2))
    printed = capsys.readouterr().out
    sides = ("lead", "as it is", "after cloning", "PPO, first leaves", "extractive oracle", "2 texts")
    assert all(side in printed for side in sides)


@pytest.mark.slow
def test_rollout_runs(capsys: pytest.CaptureFixture[str]) -> None:
    rollout.main(
        rollout.Config(("toy",), ("gpt2", "llama"), batch=2, prompt=4, response=6, effort=QUICK, seconds=0.0)
    )  # fmt: skip
    assert capsys.readouterr().out.count("generate + forwards") >= 4


@pytest.mark.slow
def test_gpu_runs_on_a_processor_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(gpu.Config(("toy",), "cpu", "float32", batch=2, prompt=4, response=6, side=64, effort=QUICK))
    printed = capsys.readouterr().out
    assert "NOT ON A GPU" in printed
    assert all(name in printed for name in ("generate", "textenv", "update"))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_flops_of_an_update_are_those_that_torch_counts(architecture: _jobs.Architecture) -> None:
    config = gpu.Config(batch=3, prompt=4, response=6)
    env = make_env(_jobs.model("toy", architecture, positions=64), batch=3, prompt=4, response=6)
    update = gpu.Update(env, config)
    with FlopCounterMode(display=False) as counter:
        update()
    counts = counter.get_flop_counts()["Global"]
    products = sum(count for operation, count in counts.items() if str(operation) in ("aten.mm", "aten.addmm"))
    assert update.flops == products


@pytest.mark.slow
def test_turns_run(capsys: pytest.CaptureFixture[str]) -> None:
    turns.main(turns.Config(("toy",), batch=2, prompt=4, turns=2, tokens=3, answer=3, effort=QUICK))
    printed = " ".join(capsys.readouterr().out.split())  # a narrow table breaks its title
    assert "2 turns of 3 tokens" in printed
    assert "one turn of 9" in printed


@pytest.mark.slow
def test_precision_runs(capsys: pytest.CaptureFixture[str]) -> None:
    shapes = ((2, 8, 16),)
    precision.main(
        precision.Config(("toy",), shapes, batch=2, prompt=4, response=3, texts=2, effort=QUICK, seconds=0.0)
    )
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 x 8 x 16" in printed
    assert "int8, reference too" in printed
    assert "KL from float32" in printed


@pytest.mark.slow
def test_overhead_runs(capsys: pytest.CaptureFixture[str]) -> None:
    overhead.main(overhead.Config("toy", batch=2, prompt=4, response=6, effort=QUICK))
    assert "dense" in capsys.readouterr().out


@pytest.mark.slow
def test_scaling_runs(capsys: pytest.CaptureFixture[str]) -> None:
    scaling.main(scaling.Config("toy", batch=2, prompt=4, responses=(4, 8), effort=QUICK, seconds=0.0))
    assert "further token" in capsys.readouterr().out


@pytest.mark.slow
def test_contention_runs(capsys: pytest.CaptureFixture[str]) -> None:
    config = contention.Config(
        ("toy",), ("OMP_NUM_THREADS=1",), (1,), batch=2, prompt=4, response=6, effort=QUICK, seconds=0.05
    )
    contention.main(config)
    assert "× slower beside 1" in capsys.readouterr().out


@pytest.mark.slow
def test_ppo_iteration_runs(capsys: pytest.CaptureFixture[str]) -> None:
    config = ppo_iteration.Config(
        ("textenv-head", "textenv-model"), episodes=5, size="toy", batch=4, prompt=4, response=3, epochs=2, effort=QUICK
    )
    ppo_iteration.main(config)
    printed = capsys.readouterr().out
    assert "24" in printed  # two batches of four episodes of three tokens


@pytest.mark.slow
def test_a_job_with_adapters_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft")
    config = ppo_iteration.Config(
        ("textenv-grpo", "textenv-rloo"), episodes=4, size="toy", batch=4, prompt=4, response=3, epochs=1, samples=2,
        micro_batch=2, lora_rank=2, effort=QUICK,
    )  # fmt: skip
    ppo_iteration.main(config)
    assert "LoRA of rank 2" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_environments_run(capsys: pytest.CaptureFixture[str]) -> None:
    sides: tuple[_echoes.Side, ...] = ("textenv-world", "textenv-tokens")
    environments.main(environments.Config(sides, rows=(2,), turns=2, effort=QUICK, seconds=0.0))
    printed = capsys.readouterr().out
    assert "2 rows, episodes of 2 turns" in printed
    assert printed.count("textenv-tokens") == 1


def test_labels_merges_seeds_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: labels.Config, count: int, rounds: int, seed: int) -> list[dict[str, Any]]:
        def policy(number: int) -> dict[str, Any]:
            gold = {"mean": count * number / rounds + seed, "stderr": 0.1}
            agrees = {"mean": 0.6 + 0.1 * seed, "stderr": 0.01} if number else None
            return {"gold": gold, "kl": {"mean": 2.0 * number}, "wins": 0.5 + 0.25 * bool(number), "agrees": agrees}

        return [policy(number) for number in range(rounds + 1)]

    monkeypatch.setattr(labels, "run", run)
    config = labels.Config(tmp_path, labels=(10, 20), online_labels=(20,), rounds=2, seeds=2, eval_episodes=8)
    labels.main(config)
    found = json.loads((tmp_path / "labels.json").read_text())
    online = [f"20 labels online, after {after}" for after in (10, 20)]
    assert list(found) == ["start", "10 labels", "20 labels", *online]
    assert found["20 labels"]["gold"] == 20.5
    assert found["20 labels"]["error"] == pytest.approx(0.5)  # of the mean of 20 and 21
    assert found[online[0]]["gold"] == 10.5
    assert found["20 labels"]["agrees"] == pytest.approx(0.65)
    assert found["20 labels"]["interval"] == list(Share(12.0, 16).interval or ())  # all prompts and seeds
    assert (tmp_path / "labels.png").stat().st_size > 1000


@pytest.mark.slow
def test_ptx_runs_and_takes_the_runs_own_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ptx.Config(tmp_path, ptx_coefs=(0.0, 0.2), kl_coefs=(0.05,), quick=True)
    ptx.main(config)
    assert "bits per character" in capsys.readouterr().out
    found = json.loads((tmp_path / "ptx.json").read_text())
    assert [row["point"] and (row["point"]["ptx_coef"], row["point"]["kl_coef"]) for row in found] == [
        None, (0.0, 0.8), (0.2, 0.8), (0.0, 0.05)
    ]  # fmt: skip
    own = json.loads((tmp_path / "seed-0" / "round-1" / "figures.json").read_text())
    assert found[2]["kl"][0] == own["kl"]["mean"]
    trained = [path.parent.name for path in (tmp_path / "seed-0").glob("ptx-*/results.json")]
    assert sorted(trained) == ["ptx-0-kl-0.05", "ptx-0-kl-0.8"]
    assert (tmp_path / "ptx.png").stat().st_size > 10_000
