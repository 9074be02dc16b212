"""The command line, run as people run it, on the bundled model with tiny budgets."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families import save_family
from textenv.commands.cli import main
from textenv.data.files import locked
from textenv.rollouts.tracking import read_metrics

TINY = ["--total-steps", "250", "--num-envs", "4", "--eval-episodes", "4", "--max-new-tokens", "8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "x"
    assert main(["train", "--out", str(out), "--seed", "7", *TINY]) == 0
    return out


def test_a_run_leaves_everything_it_promises(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {
        "config.json", "metrics.csv", "metrics.jsonl", "tensorboard", "policy", "results.json", "samples.html",
        "samples.md", "training.png", "checkpoints",
    } <= names  # fmt: skip
    usual = {
        "rollout/ep_rew_mean", "rollout/ep_len_mean", "objective/score", "objective/kl", "objective/kl_coef",
        "train/clip_fraction", "train/approx_kl", "train/policy_loss", "train/value_loss", "train/learning_rate",
        "time/tokens_per_second",
    }  # fmt: skip
    rows = read_metrics(run)
    assert all(usual <= row.keys() for row in rows)
    assert rows[-1]["step"] >= 250


def test_results_compare_before_and_after(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["before"]["episodes"] == results["after"]["episodes"] == 4
    assert results["before"]["kl"]["mean"] == pytest.approx(0.0, abs=1e-4)  # the reference itself
    assert results["steps"] >= 250


@pytest.mark.parametrize(
    "flag", ["--eval-episodes", "--total-steps", "--num-envs", "--checkpoint-every", "--threads"], ids=str
)
@pytest.mark.parametrize("count", ["0", "-3"])
def test_counts_are_at_least_one(flag: str, count: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--out", str(tmp_path / "x"), flag, count]) == 1
    name = flag[2:].replace("-", "_")
    assert re.search(rf"{name}={count}: expected a whole number (of at least|from) 1", capsys.readouterr().out)
    assert not (tmp_path / "x").exists()


EXACT = ["train", "--env", "textenv/Exact-v0", "--num-envs", "4", "--total-steps", "24"]


def test_one_episode_has_no_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*EXACT, "--out", str(tmp_path / "x"), "--eval-episodes", "1"]) == 0
    out = capsys.readouterr().out
    assert "± -" in out
    assert "nan" not in out
    text = (tmp_path / "x" / "results.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["after"]["kl"]["stderr"] is None


def test_what_was_not_typed_is_the_environments_own(tmp_path: Path) -> None:
    out = tmp_path / "own"
    assert main([*EXACT, "--out", str(out), "--eval-episodes", "4"]) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["max_new_tokens"] == 6  # not the 12 of textenv/Text-v0
    assert config["settings"]["kl_mode"] == "lump"
    assert (config["reward"]["name"], config["reward"]["family"], config["model"]) == ("letters", "dense", None)
    assert main(["sample", str(out), "--prompt", "a", "--reward", "run"]) == 0


def test_an_environment_with_a_model_of_its_own_is_given_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``textenv/Exact-v0`` takes no model, and so may an environment of others."""
    from textenv.env import letters

    made = letters.exact_settings

    def no_model(**settings: Any) -> dict[str, Any]:
        assert "model" not in settings
        return made(**settings)

    monkeypatch.setattr(letters, "exact_settings", no_model)
    assert main([*EXACT, "--out", str(tmp_path / "x"), "--eval-episodes", "2"]) == 0
    assert main(["doctor", "--env", "textenv/Exact-v0", "--num-envs", "2"]) == 0
    assert "FAILS" not in capsys.readouterr().out


@pytest.mark.parametrize("tokens", [3, 12])
def test_what_was_typed_wins(tokens: int, tmp_path: Path) -> None:
    typed = ["--max-new-tokens", str(tokens), "--reward", "sparse", "--kl-mode", "dense", "--kl-coef", "0.035"]
    assert main([*EXACT, "--out", str(tmp_path / "x"), "--eval-episodes", "4", *typed]) == 0
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert (config["settings"]["max_new_tokens"], config["settings"]["kl_mode"]) == (tokens, "dense")
    assert config["reward"] == "sparse"
    lengths = [row["rollout/ep_len_mean"] for row in read_metrics(tmp_path / "x")]
    assert max(lengths) <= tokens


def test_a_run_is_shaped_by_a_potential(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x"
    shaped = [*EXACT, "--out", str(out), "--eval-episodes", "4", "--potential", "sparse", "--potential-every", "2"]
    assert main(shaped) == 0
    settings = json.loads((out / "config.json").read_text())["settings"]
    assert (settings["potential"]["family"], settings["potential_every"]) == ("sparse", 2)
    assert all("objective/shaping" in row for row in read_metrics(out))
    assert main(["sample", str(out), "--prompt", "a", "--reward", "run"]) == 0
    (out / "results.json").unlink()  # as of a run that was cut off
    assert main([*shaped, "--potential", '{"name": "vader"}']) == 1
    assert "name was 'letters', is 'vader'" in " ".join(capsys.readouterr().out.split())
    assert main([*shaped[:-4], "--potential", "{vader}"]) == 1
    assert "The potential '{vader}' begins like a JSON object" in " ".join(capsys.readouterr().out.split())
    assert main([*shaped, "--potential-every", "turn"]) == 1
    assert "potential_every='turn', and an episode is one turn" in " ".join(capsys.readouterr().out.split())


def test_a_list_of_rewards_is_a_mix_with_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x"
    rewards = ["dense", {"name": "length", "target": 3, "unit": "tokens"}]
    run = [*EXACT, "--out", str(out), "--eval-episodes", "4", "--reward", json.dumps(rewards)]
    assert main([*run, "--reward-weights", "2", "-0.5"]) == 0
    reward = json.loads((out / "config.json").read_text())["reward"]
    assert (reward["name"], reward["weights"]) == ("weighted_sum", [2.0, -0.5])
    for row in read_metrics(out):
        parts = {part: row[f"objective/score/{part}"] for part in ("dense", "length")}
        assert row["objective/score"] == pytest.approx(2 * parts["dense"] - 0.5 * parts["length"], abs=1e-5)
    results = json.loads((out / "results.json").read_text())["after"]
    assert "length" in json.dumps(results)
    assert main(["sample", str(out), "--prompt", "a", "--reward", "run"]) == 0
    (out / "results.json").unlink()  # as of a run that was cut off
    capsys.readouterr()
    assert main(run) == 1  # without weights it is another reward
    assert "weights" in capsys.readouterr().out


def test_a_run_of_movie_reviews_is_what_it_was(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    assert config["reward"] == "learned"
    assert config["model"] == "bundled"
    assert config["settings"] == {
        "device": None, "torch_dtype": None, "reference_precision": None, "chat": False, "reward_weights": None,
        "max_new_tokens": 8, "max_prompt_tokens": None,
        "kl_coef": 0.035, "kl_estimator": "k1", "kl_mode": "lump", "kl_target": None, "kl_horizon": 10_000,
        "temperature": 1.0, "stop": [], "missing_eos_penalty": 0.0, "top_k": None, "top_p": None,
    }  # fmt: skip
    assert config["agent_settings"]["clip"] == 0.2
    assert "seed" not in config["agent_settings"]


def test_a_finished_run_is_not_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--out", str(run), "--seed", "7", *TINY]) == 1
    assert "finished run" in capsys.readouterr().out


def test_an_unfinished_run_with_other_settings_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"seed": 1}))
    assert main(["train", "--out", str(tmp_path), *TINY]) == 1
    assert "seed was 1, is 0" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize("command", ["train", "compare", "rlhf", "clips train", "reward train"])
def test_no_command_writes_into_a_folder_that_another_run_writes(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--out", str(tmp_path / "run")]
    if command == "reward train":
        ranking = {"prompt": "a", "completions": ["b", "c"], "ranks": [0, 1]}
        (tmp_path / "rankings.jsonl").write_text(json.dumps(ranking) + "\n")
        given += ["--files", str(tmp_path / "rankings.jsonl")]
    with locked(tmp_path / "run"):
        before = [path.name for path in (tmp_path / "run").iterdir()]
        assert main([*command.split(), *given]) == 1
        assert f"is being written by process {os.getpid()} on" in capsys.readouterr().out.replace("\n", " ")
        assert [path.name for path in (tmp_path / "run").iterdir()] == before


def test_sample_continues_prompts(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "x.html"
    arguments = [str(run), "--prompt", "The actors", "A plot", "--samples", "2", "--html", str(page)]
    assert main(["sample", *arguments]) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if "KL" in line]
    assert [line.startswith("The actors") for line in lines] == [True, True, False, False]
    assert page.read_text().count("<article>") == 4
    assert "score" not in out + page.read_text()  # nobody asked for one
    assert "&#10;reward" not in page.read_text()


def test_sample_takes_prompts_in_utf_8_alone(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    assert main(["sample", str(run)]) == 1
    assert "error: What was typed is not utf-8" in capsys.readouterr().out
    assert main(["sample", str(run), "--prompt", "The film", "\udcff"]) == 1
    assert "prompt is '\\udcff'; character 0 is half" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("reward", ["run", "vader", '{"name": "length", "target": 3}'])
def test_sample_scores_with_the_reward_that_is_asked_for(
    reward: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "x.html"
    assert main(["sample", str(run), "--prompt", "The actors", "--reward", reward, "--html", str(page)]) == 0
    assert re.search(r"\[score [+-]\d\.\d{3}, KL", capsys.readouterr().out)
    assert "</b> score" in page.read_text()


def test_conversations_are_trained_on_and_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts, messages = tmp_path / "texts.txt", tmp_path / "messages.jsonl"
    texts.write_text("the film?\na plot?\n")
    rows = [{"prompt": [{"role": "user", "content": text}], "reference": "a film"} for text in ("the film?", "a plot?")]
    messages.write_text("\n".join(map(json.dumps, rows)))
    common = ["--env", "textenv/Text-v0", "--model", save_family(tmp_path / "model", "smollm2"), "--device", "cpu"]
    common += [*TINY[2:], "--total-steps", "20"]
    for out, given in (
        ("messages", ["--prompts", str(messages), "--reward", "rouge"]),
        ("texts", ["--prompts", str(texts), "--chat"]),
    ):
        assert main(["train", "--out", str(tmp_path / out), *common, *given]) == 0
    capsys.readouterr()
    assert main(["sample", str(tmp_path / "texts"), "--prompt", "why?", "--max-prompt-tokens", "40"]) == 0
    assert capsys.readouterr().out.startswith("user: why?\nassistant: ")
    page, table = ((tmp_path / "messages" / name).read_text() for name in ("samples.html", "samples.md"))
    assert "<h2>user</h2>" in page
    assert "| **user:** the film? | " in table
    assert "im_start" not in page + table


def test_sample_reads_from_the_terminal(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter(["It", " "])

    def read(question: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    assert main(["sample", str(run)]) == 0
    assert capsys.readouterr().out.count("nats") == 1


def test_sample_needs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(tmp_path)]) == 1
    assert "has no config.json" in capsys.readouterr().out


def test_an_error_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "[/a] textenv[web]"]) == 1
    assert "model='[/a] textenv[web]': no such folder" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--top-k", "50", "--temperature", "0.8"]])
def test_doctor_finds_a_healthy_environment(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--num-envs", "4", *arguments]) == 0
    out = capsys.readouterr().out
    assert out.count("ok") >= 8
    assert "FAILS" not in out


def test_doctor_reads_no_more_rows_at_once_than_an_episode_has(monkeypatch: pytest.MonkeyPatch) -> None:
    from textenv.analysis.doctor import examine
    from textenv.models.causal_lm import CausalLM

    rows: list[int] = []
    written: list[int] = []
    head, read = CausalLM.head, CausalLM._logits_of

    def counted(self: CausalLM, hidden: torch.Tensor) -> torch.Tensor:
        written.append(hidden[..., 0].numel())
        return head(self, hidden)

    def counted_read(self: CausalLM, hidden: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden))
        return read(self, hidden)

    monkeypatch.setattr(CausalLM, "_check_head", lambda self: None)  # reads a few tokens when a model is loaded
    monkeypatch.setattr(CausalLM, "head", counted)
    monkeypatch.setattr(CausalLM, "_logits_of", counted_read)
    keywords = {"reward": {"name": "length", "target": 3}, "max_new_tokens": 6, "prompts": ["The film"]}
    assert all(finding.ok for finding in examine("textenv/Text-v0", keywords, num_envs=4))
    assert (max(rows), max(written)) == (4 * 6, 6), "tokens that the reference reads, tokens that are trained on"


def test_doctor_tells_what_is_wrong(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from textenv.models.policy import TextPolicy

    honest = TextPolicy.action_log_prob

    def lie(self: TextPolicy, actions: Any) -> Any:
        return honest(self, actions) + 0.1

    monkeypatch.setattr(TextPolicy, "action_log_prob", lie)
    assert main(["doctor", "--num-envs", "4"]) == 1
    assert "FAILS" in capsys.readouterr().out


def test_errors_are_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--out", str(tmp_path / "x"), "--reward", "vadr"]) == 1
    out = capsys.readouterr().out
    assert "vader" in out
    assert "Traceback" not in out
    assert not (tmp_path / "x").exists()


def test_pretrain_and_sft_make_a_model_to_train_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"The film number {i} is good, and the plot is number {i % 7}." for i in range(300)))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "\n".join(json.dumps({"prompt": "The film", "completion": f" is good {i % 3}."}) for i in range(32))
    )
    small = ["--vocab-size", "300", "--hidden-size", "16", "--intermediate-size", "32", "--layers", "1", "--heads", "2"]
    small += ["--context", "16", "--epochs", "0.5", "--batch-size", "4"]
    assert main(["pretrain", "--files", str(text), "--out", str(tmp_path / "base"), *small]) == 0
    tuned = [
        "--model",
        str(tmp_path / "base"),
        "--files",
        str(pairs),
        "--out",
        str(tmp_path / "tuned"),
        "--epochs",
        "1",
    ]
    assert main(["sft", *tuned]) == 0
    assert main(["doctor", "--model", str(tmp_path / "tuned"), "--num-envs", "2"]) == 0
    assert "FAILS" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_module_runs() -> None:
    done = subprocess.run([sys.executable, "-m", "textenv", "--help"], check=True, capture_output=True, text=True)
    assert "train" in done.stdout


@pytest.mark.parametrize("command", ["train", "pretrain", "sft", "sample", "doctor", "corpus", "compare", "rlhf"])
def test_every_setting_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    options = re.split(r"^\W*(?=--\w)", capsys.readouterr().out, flags=re.M)[1:]
    assert options
    assert all(re.search(r"\w.*\((default|required|repeatable)", option[20:], re.S) for option in options), options


@pytest.mark.parametrize(
    ("agent", "settings"),
    [
        ("rloo", '{"samples": 2}'),
        ("nlpo", '{"top_p": 0.8}'),
        ("best_of_n", '{"samples": 2}'),
        ("guided", '{"candidates": 8}'),
        ("mac", '{"candidates": 8}'),
        ("textenv.agents.reinforce:REINFORCE", "{}"),
    ],
)
def test_every_agent_trains_by_its_name(
    agent: str, settings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = ["--out", str(out), "--agent", agent, "--agent-settings", settings, *TINY, "--total-steps", "60"]
    assert main(["train", *arguments]) == 0
    assert json.loads((out / "results.json").read_text())["steps"] >= 60
    capsys.readouterr()
    sample = ["sample", str(out), "--prompt", "It", "--samples", "2", *["--trust"] * (":" in agent)]
    assert main(sample) == (1 if agent in ("best_of_n", "guided") else 0)  # these two act by the reward
    assert ("give it one (--reward" in capsys.readouterr().out) is (agent in ("best_of_n", "guided"))
    assert main([*sample, "--reward", "run"]) == 0
    assert capsys.readouterr().out.count("score") == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--agent", "rlo"], "Did you mean 'rloo'"),
        (["--agent", "rloo", "--agent-settings", '{"sample": 2}'], "Did you mean 'samples'"),
        (["--agent", "rloo", "--agent-settings", "samples=2"], "expected a JSON object"),
        (["--clip", "0.2", "--agent-settings", '{"clip": 0.3}'], "both say clip"),
        (["--agent", "rloo", "--agent-settings", '{"seed": 2}'], "give it as --seed"),
        (["--agent-settings", '{"clip": -1}'], "clip=-1"),
    ],
)
def test_agents_and_settings_that_are_not_there_are_refused(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--out", str(tmp_path / "x"), *TINY, *arguments]) == 1
    assert complaint in capsys.readouterr().out.replace("\n", " ")
    assert not (tmp_path / "x").exists()
