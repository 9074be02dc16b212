"""``textenv compare``: plans, runs that go on, statistics held against rliable, and the report in a real browser."""

import csv
import dataclasses
import fcntl
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from playwright.sync_api import sync_playwright
from rich.console import Console
from scipy import stats

from tests.browser import find_chromium
from tests.conftest import build_lm
from tests.waiting import wait_for
from textenv.agents.agent import Agent
from textenv.commands.cli import main
from textenv.compare import comparison, statistics
from textenv.compare.comparison import compare
from textenv.compare.plan import Budget, Compare, ComparedAgent, ComparedTask, Plan, Run, make_plan
from textenv.compare.report import write_report
from textenv.compare.results import Results, read_results, write_tables
from textenv.compare.runs import Evaluator, finished, measure_task, run_folder, train_run
from textenv.data.files import to_json
from textenv.env import registry
from textenv.env.registry import EnvRecord
from textenv.models.policy import TextPolicy
from textenv.rollouts.collect import sample_episodes, text_env
from textenv.types import TextEnvError

SMALL = {"id": "textenv/Exact-v0", "settings": {"vocab_size": 3, "max_new_tokens": 3}}


def command(out: Path, **changed: Any) -> Compare:
    given: dict[str, Any] = {
        "agents": ("reinforce", "rloo"), "envs": (json.dumps(SMALL),), "rewards": ("dense",), "seeds": 2,
        "total_steps": 200, "evaluations": 2, "num_envs": 8, "workers": 2,
    }  # fmt: skip
    return Compare(out=out, **{**given, **changed})


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text("utf-8").splitlines()))


def only_run(plan: Plan) -> Run:
    (run,) = plan.runs
    return run


# -- statistics ----------------------------------------------------------------------------------------------------


def rliable_metrics() -> Any:
    """The module of rliable without its others, which import what the newest pandas breaks."""
    found = importlib.util.find_spec("rliable")
    assert found is not None
    assert found.submodule_search_locations
    path = Path(found.submodule_search_locations[0]) / "metrics.py"
    spec = importlib.util.spec_from_file_location("rliable_metrics", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCORES, OTHERS = np.random.default_rng(0).normal(0.6, 0.4, (2, 7, 3))


def test_aggregates_are_those_of_rliable() -> None:
    metrics = rliable_metrics()
    for name, theirs in (
        ("IQM", metrics.aggregate_iqm),
        ("mean", metrics.aggregate_mean),
        ("median", metrics.aggregate_median),
        ("optimality gap", metrics.aggregate_optimality_gap),
    ):
        assert statistics.AGGREGATES[name](SCORES) == pytest.approx(theirs(SCORES), abs=1e-12)
    rounded, others = SCORES.round(1), OTHERS.round(1)  # with ties
    expected = metrics.probability_of_improvement(rounded, others)
    assert statistics.improvement(rounded, others) == pytest.approx(expected, abs=1e-12)


def test_profiles_count_runs() -> None:
    scores = [[0.1, 0.9], [0.5, 0.5]]
    np.testing.assert_allclose(statistics.performance_profile(scores, [0.0, 0.1, 0.5, 0.9]), [1, 0.75, 0.25, 0])


def test_the_bootstrap_draws_each_task_for_itself() -> None:
    # Of a mean, its standard error is known: that of the tasks' own, which differ by far more than the runs.
    scores = SCORES + np.array([0.0, 50.0, 100.0])
    low, high = statistics.stratified_bootstrap(np.mean, scores, resamples=4000)
    error = np.sqrt((scores.var(axis=0) / len(scores)).sum()) / scores.shape[1]
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.06)
    assert (low + high) / 2 == pytest.approx(scores.mean(), abs=0.1 * error)
    both = statistics.stratified_bootstrap(statistics.improvement, scores, scores + 10.0, resamples=50)
    np.testing.assert_allclose(both, 0.0)


def test_interval_of_a_mean_is_students() -> None:
    values = SCORES[:, 0]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    np.testing.assert_allclose(statistics.mean_interval(values), [expected.low, expected.high])
    assert np.isnan(statistics.mean_interval([1.0])).all()


@pytest.mark.parametrize("scores", [[1.0], [[np.nan]], np.zeros((0, 2))], ids=str)
def test_what_is_no_table_of_scores_is_refused(scores: Any) -> None:
    with pytest.raises(TextEnvError, match="finite numbers"):
        statistics.interquartile_mean(scores)


# -- plans ---------------------------------------------------------------------------------------------------------

TOML = """
seeds = 2
total_steps = 500
rewards = ["sparse", {name = "length", target = 3, unit = "tokens"}]
envs = [
  "textenv/Exact-v0",
  {id = "textenv/Exact-v0", label = "mix", rewards = [["dense", "sparse"]], settings = {reward_weights = [1, 2]}},
  {id = "textenv/Exact-v0", label = "long", rewards = ["needle"], settings = {max_new_tokens = 7}},
]

[[agents]]
name = "ppo"
label = "PPO, 2 passes"
settings = {epochs = 2}

[[agents]]
name = "best_of_n"
"""


def test_a_file_says_what_to_compare(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(TOML)
    plan = make_plan(Compare(out=tmp_path, config=tmp_path / "plan.toml"))
    assert [agent.label for agent in plan.agents] == ["PPO, 2 passes", "best_of_n"]
    assert [task.label for task in plan.tasks][::2] == ["Exact sparse", 'mix ["dense", "sparse"]']
    assert plan.tasks[1].settings["reward"] == {"name": "length", "target": 3, "unit": "tokens"}
    mix = gymnasium.make(plan.tasks[2].env, **plan.tasks[2].keywords()).unwrapped.batch  # type: ignore[attr-defined]
    assert (mix.scorer.part_names, mix.reward.weights) == (("dense", "sparse"), (1, 2))
    assert plan.tasks[3].keywords() == {"kl_mode": "lump", "max_new_tokens": 7, "reward": "needle"}
    assert plan.budget == Budget(total_steps=500, seconds=None, evaluations=10, eval_episodes=512, num_envs=64)
    assert len(plan.runs) == 2 * 4 * 2
    first = plan.runs[0].agent_config()
    assert (first.epochs, first.learning_rate, first.seed) == (2, plan.tasks[0].agent_settings["learning_rate"], 0)
    assert plan.runs[-1].agent_config().seed == 1


def test_a_flag_that_says_the_default_is_a_flag(tmp_path: Path) -> None:
    assert make_plan(Compare(out=tmp_path, quick=True, seeds=5)).seeds == 5
    assert make_plan(Compare(out=tmp_path, quick=True)).seeds == 3
    (tmp_path / "plan.toml").write_text(TOML)
    with pytest.raises(TextEnvError, match="--config and --seeds"):
        make_plan(Compare(out=tmp_path, config=tmp_path / "plan.toml", seeds=5))


def test_flags_change_the_quick_one(tmp_path: Path) -> None:
    plan = make_plan(Compare(out=tmp_path, quick=True, seeds=1))
    assert (plan.seeds, len(plan.tasks), len(plan.agents)) == (1, 2, 5)


def test_held_out_prompts_are_measured_on() -> None:
    task = ComparedTask("movies", "textenv/MovieReview-v0")
    assert task.keywords(held_out=True)["split"] == "heldout"
    shaped = dataclasses.replace(task, settings={"potential": "vader", "potential_every": 2, "kl_coef": 0.1})
    assert shaped.keywords()["potential"] == "vader"
    measured = shaped.keywords(held_out=True)
    assert measured["kl_coef"] == 0.1
    assert not {"potential", "potential_every"} & set(measured)
    assert dataclasses.replace(task, eval_prompts="mine.txt").keywords(held_out=True)["prompts"] == "mine.txt"


def test_an_id_of_another_package_says_by_its_record_how_it_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_RECORDS", {**registry._RECORDS})
    record = EnvRecord({"max_new_tokens": 2}, {"learning_rate": 0.25, "clip": 0.5}, enumerable=True, takes_model=False)
    made = {"entry_point": "textenv.env.letters:exact", "vector_entry_point": "textenv.env.letters:exact_vector"}
    monkeypatch.setitem(gymnasium.registry, "elsewhere/Letters-v0", None)  # removed again after the test
    del gymnasium.registry["elsewhere/Letters-v0"]
    registry.register("elsewhere/Letters-v0", record=record, **made)
    plan = make_plan(command(tmp_path, agents=("rloo",), envs=("elsewhere/Letters-v0",), rewards=(), seeds=1))
    config = only_run(plan).agent_config()
    assert config.learning_rate == 0.25
    assert not hasattr(config, "clip")  # an agent takes those of the settings that it has
    assert plan.tasks[0].keywords(held_out=True)["max_new_tokens"] == 2
    assert "max_new_tokens" not in plan.tasks[0].keywords()
    assert Evaluator(plan.tasks[0], plan.budget).tree is not None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"agents": ("pop",)}, "Did you mean 'ppo'"),
        ({"agents": ('{"name": "ppo", "settings": {"epoch": 2}}',)}, "Did you mean 'epochs'"),
        ({"agents": ('{"name": "ppo", "settings": {"seed": 2}}',)}, "'seeds' seeds all"),
        ({"agents": ('{"nam": "ppo"}',)}, "an object with 'name'"),
        ({"agents": ("{ppo",)}, "begins like a JSON object"),
        ({"agents": ("ppo", "ppo")}, "come more than once"),
        ({"agents": ()}, "agents: expected at least one"),
        ({"envs": ("CartPole-v7",)}, "is not registered"),
        ({"envs": ('{"id": "textenv/Exact-v0", "reward": "dense"}',)}, "the key 'reward'"),
        ({"seeds": 0}, "seeds=0"),
        ({"seconds": -1.0}, "above 0"),
        ({"workers": -1}, "workers=-1"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(TextEnvError, match=message):
        make_plan(command(tmp_path, **changed))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds = ", "expected a TOML file"),
        ("x = " + "[" * 100_000, "expected a TOML file"),
        ("seeds = " + "1" * 5000, "expected a TOML file"),
        ("seed = 3", "the key 'seed'. Did you mean 'seeds'"),
        ("settings = 5", "the key 'settings'"),
        ("agents = 'ppo'", "agents = 'ppo': expected a list, even of one: \\['ppo'\\]"),
        ("rewards = 'dense'", "rewards = 'dense': expected a list, even of one"),
        ("agents = [5]", "agents: 5: expected a name"),
        ("envs = [[1]]", "envs: \\[1\\]: expected a name"),
        ("rewards = [5]", "rewards: 5: expected a name, an object with 'name', or a list of these"),
        ("rewards = ['[']", "rewards: '\\[' begins like a JSON list, and is no JSON"),
        ("rewards = ['{']", "rewards: '{' begins like a JSON object, and is no JSON"),
        ("seeds = '5'", "seeds='5': expected a whole number of at least 1"),
        ("seeds = 2.5", "seeds=2.5: expected a whole number"),
        ("num_envs = true", "num_envs=True: expected a whole number"),
        ("total_steps = -5", "total_steps=-5: expected"),
        ("seconds = '10'", "seconds='10': expected a finite number above 0, or None"),
        ("seconds = nan", "seconds=nan: expected a finite number"),
        ("[[agents]]\nlabel = 'x'", "an object with 'name'"),
        ("[[agents]]\nname = 'ppo'\nlabel = 3", "label=3: expected a text"),
        ("[[agents]]\nname = 'ppo'\nlabel = ''", "label='': expected a text that is not empty"),
        ("[[agents]]\nname = 'ppo'\nsettings = 5", "settings=5: expected an object"),
        ("[[agents]]\nname = 'ppo'\nsettings = {lora_targets = 5}", "lora_targets=5: expected a list"),
        ("[[envs]]\nid = 5", "an object with 'id'"),
        ("[[envs]]\nid = 'textenv/Exact-v0'\nsettings = 5", "settings=5: expected an object"),
        ("[[envs]]\nid = 'textenv/Exact-v0'\nrewards = 'dense'", "rewards = 'dense': expected a list"),
        ("[[envs]]\nid = 'textenv/Exact-v0'\nagent_settings = ['x']", "agent_settings=\\['x'\\]: expected an object"),
        ("[[envs]]\nid = 'textenv/Exact-v0'\neval_prompts = 5", "eval_prompts=5: expected a text"),
        ("[[envs]]\nid = 'textenv/Exact-v0'\nlabel = 3", "label=3: expected a text"),
    ],
    ids=str,
)
def test_a_file_that_says_something_else_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(TextEnvError, match=message):
        make_plan(Compare(out=tmp_path, config=tmp_path / "plan.toml"))
    (tmp_path / "plan.toml").write_text("seeds = 2")
    with pytest.raises(TextEnvError, match="--config and --total-steps"):
        make_plan(Compare(out=tmp_path, config=tmp_path / "plan.toml", total_steps=7))


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text("seeds = 2", "utf-8-sig")
    assert make_plan(Compare(out=tmp_path, config=tmp_path / "plan.toml")).seeds == 2


@pytest.mark.parametrize("labels", [("基线", "新方法"), ("π", "ρ"), ("a π", "a ρ"), ("!", "?")])
def test_labels_of_any_letters_have_folders_of_their_own(labels: tuple[str, str], tmp_path: Path) -> None:
    agents = tuple(json.dumps({"name": "ppo", "label": label}) for label in labels)
    plan = make_plan(command(tmp_path, agents=agents))
    names = {run.name.partition("/")[0] for run in plan.runs}
    assert len(names) == 2
    assert all(name.isascii() and name.strip("-.") for name in names)


def test_the_folders_of_plain_labels_stay_as_they_were(tmp_path: Path) -> None:
    agents = (json.dumps({"name": "ppo", "label": "PPO, 2 passes"}),)
    assert make_plan(command(tmp_path, agents=agents)).runs[0].name == "PPO-2-passes/Exact-dense/0"


@pytest.mark.parametrize(("given", "wanted"), [("3", 3), ("2,1", 2), ("", None), ("0", None), ("x", None)])
def test_the_threads_that_a_variable_asks_for(given: str, wanted: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert comparison._threads_wanted() == wanted


# -- runs ----------------------------------------------------------------------------------------------------------


def curve(out: Path, run: Run) -> list[dict[str, float]]:
    rows = json.loads((run_folder(out, run) / "results.json").read_text())["curve"]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_a_run_that_was_cut_off_has_the_curve_of_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(command(tmp_path, agents=("reinforce",), seeds=1, total_steps=700, evaluations=7))
    run, whole, cut = only_run(plan), tmp_path / "whole", tmp_path / "cut"
    train_run(run, plan.budget, whole, 1)
    measure, calls = Evaluator.measure, []

    def killed(self: Evaluator, agent: Any) -> Any:
        calls.append(agent.steps)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return measure(self, agent)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            train_run(run, plan.budget, cut, 1)
    assert not finished(cut, run)
    with (run_folder(cut, run) / "curve.jsonl").open("a") as file:
        file.write('{"steps": 9')  # as a kill leaves it
    resumed: list[int] = []
    learn = Agent.learn

    def watched(self: Any, *given: Any, **named: Any) -> Any:
        resumed.append(self.steps)
        return learn(self, *given, **named)

    monkeypatch.setattr(Agent, "learn", watched)
    train_run(run, plan.budget, cut, 1)
    assert resumed[0] > 0
    assert curve(cut, run) == curve(whole, run)
    assert len(curve(whole, run)) == 7
    with pytest.raises(TextEnvError, match="total_steps was 700, is 800"):
        train_run(run, dataclasses.replace(plan.budget, total_steps=800), cut, 1)


def test_time_runs_out(tmp_path: Path) -> None:
    plan = make_plan(command(tmp_path, agents=("reinforce",), seeds=1, total_steps=10**6, seconds=0.2))
    run = only_run(plan)
    train_run(run, plan.budget, tmp_path, 1)
    last = json.loads((run_folder(tmp_path, run) / "results.json").read_text())
    assert last["seconds"] >= 0.2
    assert 0 < last["steps"] < 10**6


def test_figures_are_those_of_the_environment(tmp_path: Path) -> None:
    plan = make_plan(command(tmp_path, agents=("best_of_n", "nlpo", "reinforce"), seeds=1, total_steps=300))
    evaluator = Evaluator(plan.tasks[0], plan.budget)
    tree = evaluator.tree
    assert tree is not None
    for run in plan.runs:
        train_run(run, plan.budget, tmp_path, 1)
        last = json.loads((run_folder(tmp_path, run) / "results.json").read_text())
        assert last["value"] == pytest.approx(last["score"] - tree.kl_coef * last["kl"], abs=1e-12)
        assert tree.reference.value - 0.1 < last["value"] <= tree.optimum.value + 1e-9
        if run.agent.name == "best_of_n":
            assert last["value"] == tree.best_of_n(16).value
        else:
            assert last["kl"] > 0


def test_a_masked_policy_is_measured_as_it_acts() -> None:
    task = ComparedTask("small", "textenv/Exact-v0", {"vocab_size": 3, "max_new_tokens": 2, "reward": "dense"})
    evaluator = Evaluator(task, Budget(100, None, 1, 8, 4))
    assert evaluator.tree is not None

    class Masked:
        """A reference that may write only the first letter."""

        policy = TextPolicy.of_reference(text_env(evaluator.envs))

        @staticmethod
        def mask(obs: Mapping[str, Any], rows: Any, allowed: Any) -> Any:
            chosen = np.zeros((len(rows), text_env(evaluator.envs).reference.vocab_size), dtype=bool)
            chosen[:, 1] = True
            return chosen

        @staticmethod
        def sample(env: Any, prompts: Any, *, generator: Any = None) -> Any:
            raise AssertionError("what is measured exactly writes no samples")

    found = evaluator.measure(Masked())
    table = [
        [np.where(np.arange(3) == 1, 0.0, -np.inf) + 0 * at.ref_log_probs for at in t] for t in evaluator.tree.states
    ]
    expected = evaluator.tree.evaluate(table)
    assert (found.score, found.kl) == pytest.approx((expected.score, expected.kl))


def test_any_agent_that_keeps_the_best_of_samples_is_measured_as_such() -> None:
    task = ComparedTask("small", "textenv/Exact-v0", {"vocab_size": 3, "max_new_tokens": 2, "reward": "dense"})
    evaluator = Evaluator(task, Budget(100, None, 1, 8, 4))
    assert evaluator.tree is not None

    class Keeps:
        """An agent of another package."""

        best_of = 3

        @staticmethod
        def sample(env: Any, prompts: Any, *, generator: Any = None) -> Any:
            policy = TextPolicy(text_env(env).reference, value="none", trainable=False)
            return sample_episodes(env, policy, generator, prompts)

    found, expected = evaluator.measure(Keeps()), evaluator.tree.best_of_n(3)
    assert (found.score, found.kl, found.exact) == (expected.score, expected.kl, True)
    evaluator.tree = None
    found = evaluator.measure(Keeps())
    assert found.kl == pytest.approx(np.log(3) - 2 / 3)
    assert not found.exact


def test_figures_are_called_exact_where_they_are(tmp_path: Path) -> None:
    asked = command(tmp_path, agents=("best_of_n", "guided", "reinforce"), seeds=1, total_steps=300)
    plan = make_plan(asked)
    evaluator = Evaluator(plan.tasks[0], plan.budget)

    class Derived(TextPolicy):
        """A policy derived from ours."""

    class Own:
        """An agent that samples from a policy derived from ours, and so from something else."""

        policy = Derived.of_reference(text_env(evaluator.envs))

        @staticmethod
        def sample(env: Any, prompts: Any, *, generator: Any = None) -> Any:
            return sample_episodes(env, Own.policy, generator, prompts)

    found = evaluator.measure(Own())
    assert not found.exact
    assert found.stderr is not None
    assert found.stderr > 0
    measure_task(plan.tasks[0], plan.budget, tmp_path, 1)
    for run in plan.runs:
        train_run(run, plan.budget, tmp_path, 1)
    results = read_results(plan, tmp_path)
    assert results.sampled(plan.tasks[0].label) == ["guided"]
    write_tables(results, tmp_path)
    for name in ("results", "curves"):
        rows = table(tmp_path / f"{name}.csv")
        assert {row["exact"] for row in rows if row["agent"] == "guided"} == {"False"}
        assert {row["exact"] for row in rows if row["agent"] != "guided"} == {"True"}
    write_report(results, (), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    many = plan.budget.eval_episodes
    assert f"The figures of guided are of {many:,} fresh completions, those of all others exact." in page
    assert "All figures here are exact" not in page


def test_the_report_tells_the_parts_of_the_score(tmp_path: Path) -> None:
    parts = [{"name": "length", "target": 2}, {"name": "pattern", "pattern": "a", "mode": "count"}]
    mix = to_json(parts)
    plan = make_plan(command(tmp_path, agents=("rloo",), rewards=(mix,), seeds=1, total_steps=48))
    run = only_run(plan)
    measure_task(run.task, plan.budget, tmp_path, 1)
    train_run(run, plan.budget, tmp_path, 1)
    results = read_results(plan, tmp_path)
    (label,) = results.tasks
    (found,) = results.runs["rloo", label].values()
    for told in (results.tasks[label]["parts"], found["parts"]):
        assert set(told) == {"length", "pattern"}
    episodes = Evaluator(run.task, plan.budget).reference()
    mean = np.mean([episode.completion.count("a") for episode in episodes])
    assert results.tasks[label]["parts"]["pattern"] == pytest.approx(mean)
    write_report(results, [], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "Parts of the score, before their weights" in page
    assert f"<td>{found['parts']['pattern']:.4f}</td>" in page


# -- the whole -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Compare]:
    """A comparison that is finished."""
    out = tmp_path_factory.mktemp("compare")
    asked = command(out, agents=("reinforce", "rloo", "best_of_n"), rewards=("dense", "sparse"), seeds=2)
    compare(asked, Console(quiet=True))
    return out, asked


def test_tables_agree_with_the_runs(done: tuple[Path, Compare]) -> None:
    out, asked = done
    rows = table(out / "results.csv")
    assert len(rows) == 3 * 2 * 2
    about = json.loads((out / "tasks" / "Exact-dense.json").read_text())
    for row in rows:
        if row["task"] == "Exact dense":
            gain = about["optimum"]["value"] - about["reference"]["value"]
            regret = (about["optimum"]["value"] - float(row["value"])) / gain
            assert float(row["regret"]) == pytest.approx(regret, abs=1e-9)
            assert float(row["normalized"]) == pytest.approx(1 - regret, abs=1e-9)
    curves = table(out / "curves.csv")
    assert len(curves) == 3 * 2 * 2 * 2
    parquet = pytest.importorskip("pyarrow.parquet")
    assert parquet.read_table(out / "results.parquet").column("seed").to_pylist() == [int(row["seed"]) for row in rows]
    results = read_results(make_plan(asked), out)
    aggregate = results.aggregate("rloo")
    assert aggregate is not None
    expected = [
        [float(row["normalized"]) for row in rows if (row["agent"], row["seed"]) == ("rloo", seed)] for seed in "01"
    ]
    np.testing.assert_allclose(aggregate.tokens, expected)
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_what_is_finished_is_not_run_again(done: tuple[Path, Compare], capsys: pytest.CaptureFixture[str]) -> None:
    out, asked = done
    before = {path: path.stat().st_mtime_ns for path in out.rglob("results.json")}
    compare(dataclasses.replace(asked, seeds=1), Console())
    assert "6 of 6 runs are finished." in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("results.json")}


@pytest.mark.slow
def test_tables_fit_into_80_columns(done: tuple[Path, Compare]) -> None:
    shown = io.StringIO()
    compare(done[1], Console(width=80, file=shown))
    text = shown.getvalue()
    assert "…" not in text
    assert all(re.search(rf"[ ┃|]{heading} ", text) for heading in comparison._SHOWN.values() if heading != "norm.")
    assert max(map(len, text.partition("Written:")[0].splitlines())) <= 80


def test_curves_begin_at_the_reference_and_end_together(done: tuple[Path, Compare]) -> None:
    out, asked = done
    results = read_results(make_plan(asked), out)
    start = results.tasks["Exact dense"]["reference"]
    for axis in ("steps", "seconds"):
        curves = results.curves("rloo", "Exact dense", axis)
        np.testing.assert_allclose(curves.value[:, 0], start["value"])
        assert (np.diff(curves.at) > 0).all()
    assert results.curves("rloo", "Exact dense").at[-1] == 200
    shared = results.shared_seconds("Exact dense")
    seconds = [run["seconds"] for name in ("rloo", "reinforce") for run in results.runs[name, "Exact dense"].values()]
    assert shared == min(seconds)
    flat = results.aggregate("best_of_n")
    assert flat is not None
    np.testing.assert_allclose(flat.tokens, flat.seconds)  # it trains nothing


@pytest.mark.slow
def test_the_report_in_a_browser(done: tuple[Path, Compare], tmp_path: Path) -> None:
    out, asked = done
    results = read_results(make_plan(asked), out)
    hostile = "<script>document.title = 'run'</script><img src=x onerror=alert(1)>\u202eabc\x1b[31m"
    results.runs["rloo", "Exact dense"][0]["samples"][0]["completion"] = hostile
    write_report(results, ["rloo/x/1: <b>it broke</b>"], tmp_path / "report.html")
    chromium = find_chromium()
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1000, "height": 800})
        page.on("console", lambda message: wrong.append(message.text))
        page.on("request", lambda request: wrong.extend([] if request.url.startswith("data:") else [request.url]))
        page.goto((tmp_path / "report.html").as_uri())
        assert page.title() == "Comparison · textenv"
        sizes = page.evaluate("[...document.images].map(image => [image.naturalWidth, image.alt.length])")
        assert len(sizes) == 1 + 2 * 3 + 1
        assert all(width > 100 and words > 10 for width, words in sizes)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert "<b>it broke</b>" in page.get_by_role("alert").inner_text()
        page.get_by_text("Completions of the first seed").first.click()
        assert "<script>document.title" in page.locator("table.text").first.inner_text()
        text = page.locator("body").inner_text()
        browser.close()
    assert wrong == [(tmp_path / "report.html").as_uri()]
    for words in (
        "Probability that a run",
        "At equal wall-clock",
        "optimum, by enumeration",
        "price in nats",
        "torch 2",
    ):
        assert words in text


def made_up(plan: Plan, text: str) -> Results:
    """Return results as files may hold them, in which every text is the same."""
    outcome = {"score": 0.5, "kl": 0.1, "value": 0.4}
    samples = [{"prompt": text, "completion": text, "score": 0.0}]
    task = {
        "label": text, "kl_coef": 1.0, "reference": {"score": 0.1, "kl": 0.0, "value": 0.1}, "optimum": outcome,
        "samples": samples, "frontier": {"n": [1, 32], "kl": [0.0, 0.3], "score": [0.1, 0.6]},
    }  # fmt: skip
    row = {**outcome, "steps": 60, "seconds": 1.0, "stderr": 0.0}
    run = {**row, "curve": [row], "samples": samples, "threads": 1, "versions": {text: text}, "parts": {text: 0.5}}
    runs = {(agent.label, each.label): {0: run} for agent in plan.agents for each in plan.tasks}
    return Results(plan, {each.label: task for each in plan.tasks}, runs)


def test_nothing_of_a_file_is_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for drawn in ("draw_aggregates", "draw_curves", "draw_frontier", "draw_profiles"):
        monkeypatch.setattr(f"textenv.compare.report.{drawn}", lambda *_: None)  # those take long
    monkeypatch.setattr("textenv.compare.report.figure_bytes", lambda *_: b"")
    monkeypatch.setattr("textenv.compare.report.stratified_bootstrap", lambda *_, **__: (0.0, 1.0))
    plan = make_plan(command(tmp_path / "out"))
    tags, pages = [], []
    hostile = "</td></table><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&lt;{0}\x1b[31m\u202e"
    for text in ("plain", hostile):
        plan = dataclasses.replace(
            plan,
            agents=tuple(ComparedAgent(label, "rloo", {text: text}) for label in (text, f"{text} too")),
            tasks=(ComparedTask(text, "textenv/Exact-v0", {"reward": text}),),
        )
        write_report(made_up(plan, text), [text], tmp_path / "report.html")
        pages.append((tmp_path / "report.html").read_text())
        tags.append([re.sub('alt="[^"]*"', "", tag) for tag in re.findall(r"<[^>]*>", pages[-1])])
    assert tags[0] == tags[1]
    assert not {"\x1b", "\u202e"} & set(pages[1])
    assert pages[1].count("&lt;script&gt;alert(1)") > 10


@pytest.mark.parametrize(
    ("where", "what", "value"),
    [
        ("tasks/Exact-dense.json", ("frontier", "n"), ["<script>alert(1)</script>"]),
        ("tasks/Exact-dense.json", ("frontier", "n"), [1]),
        ("tasks/Exact-dense.json", ("frontier",), None),
        ("tasks/Exact-dense.json", ("parts",), ["vader"]),
        ("tasks/Exact-dense.json", ("parts",), {"vader": "0.5"}),
        ("tasks/Exact-dense.json", ("kl_coef",), "0.1"),
        ("tasks/Exact-dense.json", ("kl_coef",), True),
        ("tasks/Exact-dense.json", ("kl_coef",), float("inf")),
        ("tasks/Exact-dense.json", ("optimum",), {"score": 1.0}),
        ("tasks/Exact-dense.json", ("samples",), [{"prompt": "p", "completion": ["x"], "score": 0.0}]),
        ("runs/rloo/Exact-dense/0/results.json", ("curve",), []),
        ("runs/rloo/Exact-dense/0/results.json", ("curve",), [[1, 2]]),
        ("runs/rloo/Exact-dense/0/results.json", ("threads",), 1.5),
        ("runs/rloo/Exact-dense/0/results.json", ("versions",), {"torch": {}}),
        ("runs/rloo/Exact-dense/0/results.json", ("value",), float("nan")),
    ],
    ids=str,
)
def test_results_that_are_none_are_refused(
    done: tuple[Path, Compare], tmp_path: Path, where: str, what: tuple[str, ...], value: Any
) -> None:
    out, asked = done
    shutil.copytree(out, tmp_path / "copy")
    changed = json.loads((tmp_path / "copy" / where).read_text())
    part = changed
    for name in what[:-1]:
        part = part[name]
    part[what[-1]] = value
    (tmp_path / "copy" / where).write_text(json.dumps(changed))
    with pytest.raises(TextEnvError, match=re.escape(Path(where).name) + ".*expected"):
        read_results(make_plan(asked), tmp_path / "copy")
    (tmp_path / "copy" / where).write_text("{" * 3000)
    with pytest.raises(TextEnvError, match="expected what 'textenv compare' writes"):
        read_results(make_plan(asked), tmp_path / "copy")


@pytest.mark.slow
def test_runs_that_fail_leave_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One's own agent comes by its import path; the worker processes find it too."""
    package = tmp_path / "mine"
    package.mkdir()
    (package / "own.py").write_text(
        "from textenv.agents.agent import Agent\n"
        "from textenv.agents.config import AgentConfig\n"
        "class Broken(Agent[AgentConfig]):\n"
        "    Config = AgentConfig\n"
        "    def update(self, rollout):\n"
        "        if self.config.seed == 1:\n"
        "            raise RuntimeError('it broke')\n"
        "        return {}\n"
    )
    monkeypatch.syspath_prepend(package)
    out = tmp_path / "out"
    given = ["--envs", json.dumps(SMALL), "--rewards", "dense", "--total-steps", "100", "--num-envs", "8"]
    code = main(["compare", "--out", str(out), "--agents", "own:Broken", "--seeds", "2", "--workers", "1", *given])
    said = capsys.readouterr()
    assert code == 1
    assert "1 of 2 runs failed" in said.out + said.err
    assert "RuntimeError: it broke" in said.out + said.err
    assert [row["seed"] for row in table(out / "results.csv")] == ["0"]
    assert "it broke" in (out / "report.html").read_text()


@pytest.mark.slow
def test_other_environments_are_measured_on_fresh_completions(tmp_path: Path) -> None:
    lm = build_lm()
    folder = tmp_path / "model"
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    (tmp_path / "prompts.txt").write_text("the film\nthe plot\n")
    settings = {"model": str(folder), "prompts": str(tmp_path / "prompts.txt"), "max_new_tokens": 4, "kl_coef": 0.01}
    env = {
        "id": "textenv/Text-v0",
        "settings": settings,
        "rewards": ['{"name": "length", "target": 2, "unit": "tokens"}'],
    }
    asked = command(tmp_path / "out", agents=("best_of_n", "reinforce"), envs=(json.dumps(env),), seeds=1, workers=1)
    results = compare(dataclasses.replace(asked, eval_episodes=16), Console(quiet=True))
    (task,) = results.tasks.values()
    assert task["optimum"] is None
    assert task["frontier"]["n"][-1] == 256
    assert np.all(np.diff(task["frontier"]["score"]) >= -1e-12)
    run = results.runs["best_of_n", task["label"]][0]
    assert run["kl"] == pytest.approx(np.log(16) - 15 / 16)
    assert run["stderr"] >= 0
    assert table(tmp_path / "out" / "results.csv")[0]["regret"] == ""


@pytest.mark.parametrize("known", [True, False])
def test_worlds_are_compared(tmp_path: Path, known: bool) -> None:
    """Exactly where all that a world may answer is known, else on episodes of the same seeds."""
    folder = tmp_path / "model"
    lm = build_lm()
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    world = {"model": str(folder), "world": "word_memory", "max_new_tokens": 3, "max_turns": 2, "max_tokens": 60}
    env = {"id": "textenv/Text-v0", "settings": world}
    if known:
        env = {"id": "textenv/Exact-v0", "settings": {"turns": 2, "vocab_size": 3, "max_new_tokens": 2}}
    plan = make_plan(command(tmp_path, agents=("reinforce",), envs=(json.dumps(env),), rewards=(), seeds=1))
    budget, out = dataclasses.replace(plan.budget, eval_episodes=12), tmp_path / "out"
    measure_task(plan.tasks[0], budget, out, 1)
    train_run(only_run(plan), budget, out, 1)
    results = read_results(plan, out)
    (task,) = results.tasks.values()
    (run,) = results.runs["reinforce", task["label"]].values()
    assert task["frontier"] == {"n": [], "kl": [], "score": []}
    assert run["exact"] is known
    assert (task["optimum"] is not None) is known
    start = task["reference"]["value"]
    best = run["value"] if run["value"] > start else start + 1
    assert results.top(task["label"]) == (task["optimum"]["value"] if known else best)
    write_report(results, [], out / "report.html")
    page = (out / "report.html").read_text()
    assert ("seeds are the same" in page) is not known
    assert "Best of n" not in page


def hold(lock: str, began: str) -> None:
    """Hold a lock, that the end of the process lets go."""
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        Path(began).touch()
        time.sleep(300)


@pytest.mark.slow
def test_workers_end_with_a_command_that_is_killed(tmp_path: Path) -> None:
    lock, began = tmp_path / "lock", tmp_path / "began"
    script = tmp_path / "killed.py"
    script.write_text(
        "from textenv.compare.pool import processes\n"
        "from tests.compare.test_compare import hold\n"
        'if __name__ == "__main__":\n'
        "    with processes(1, 1) as pool:\n"
        f"        list(pool([('hold', hold, ({str(lock)!r}, {str(began)!r}))]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, str(script)], env=environment) as command:
        wait_for(began.exists, 120)
        command.kill()

    def free() -> bool:
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    wait_for(free, 120)


@pytest.mark.slow
def test_on_ray(tmp_path: Path, done: tuple[Path, Compare], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same figures as in worker processes, with local Ray."""
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    out, _ = done
    compare(command(tmp_path, agents=("rloo",), seeds=1, ray=True), Console(quiet=True))
    mine = json.loads((tmp_path / "runs/rloo/Exact-dense/0/results.json").read_text())
    theirs = json.loads((out / "runs/rloo/Exact-dense/0/results.json").read_text())
    assert mine["value"] == pytest.approx(theirs["value"], abs=1e-6)


def test_ray_is_asked_for_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(TextEnvError, match=r"pip install 'textenv\[ray\]'"):
        compare(command(tmp_path, ray=True), Console(quiet=True))
