"""``textenv reward eval``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textenv.commands.base import Command
from textenv.commands.console import console
from textenv.commands.flags import read_ranking_files
from textenv.data.outputs import OutputFolder
from textenv.types import TextEnvError

if TYPE_CHECKING:
    from textenv.training.reward_evaluation import RewardEvaluation

__all__ = ["Eval"]


@dataclass(frozen=True)
class Eval(Command):
    """Measure reward models on rankings beside the human ceiling, or on pairs as RewardBench does.

    Attributes:
        model: Folders of reward models, or "bundled"; several that learned from ever more give a learning curve.
        files: Rankings, .jsonl, as for "textenv reward train".
        trained_on: Rankings that the models learned from: prompts and annotators are reported by whether they are new.
        reward_bench: Pairs, records with prompt, chosen, rejected and subset.
        out: Folder for report.json and reward.png.
        device: Where the models run.
    """

    model: tuple[str, ...] = ("bundled",)
    files: tuple[Path, ...] = ()
    trained_on: tuple[Path, ...] = ()
    reward_bench: Path | None = None
    out: OutputFolder | None = None
    device: str = "cpu"

    def run(self) -> int:
        """Print the figures, and write them."""
        from textenv.data.files import write_json  # noqa: PLC0415 (what takes long to load, here and below)
        from textenv.models.reward_model import RewardModel  # noqa: PLC0415
        from textenv.rollouts.tables import make_table  # noqa: PLC0415
        from textenv.training.reward_bench import reward_bench  # noqa: PLC0415
        from textenv.training.reward_evaluation import evaluate, plot_evaluations  # noqa: PLC0415

        if not self.model:
            raise TextEnvError("No model to measure; give --model with folders of reward models, or leave it out.")
        if not self.files and self.reward_bench is None:
            raise TextEnvError("Nothing to measure on; give --files with rankings, or --reward-bench with pairs.")
        rankings, trained_on = read_ranking_files(self.files), read_ranking_files(self.trained_on)
        results: dict[str, Any] = {}
        evaluations: dict[str, tuple[int, RewardEvaluation]] = {}
        for name in self.model:
            model = RewardModel.load(name, device=self.device)
            results[name] = {"learned_from": model.about.get("report", {}).get("comparisons", 0)}
            if rankings:
                found = evaluate(model.scores, rankings, scale=model.scale, trained_on=trained_on)
                evaluations[name] = (results[name]["learned_from"], found)
                results[name] |= dataclasses.asdict(found)
            if self.reward_bench is not None:
                results[name]["reward_bench"] = reward_bench(model.scores, self.reward_bench)
        for title, rows in _figures(evaluations, results):
            table = make_table("", *_labels(self.model), title=title)
            for name, cells in rows.items():
                table.add_row(name, *cells)
            console.print(table)
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            write_json(self.out / "report.json", results)
            if evaluations:
                plot_evaluations(evaluations, self.out / "reward.png")
        return 0


def _labels(models: Sequence[str]) -> list[str]:
    """Return the last part of each model's path, or the whole where two would be the same."""
    labels = [Path(name).name for name in models]
    return [name if labels.count(label) > 1 else label for name, label in zip(models, labels, strict=True)]


def _figures(
    evaluations: Mapping[str, tuple[int, RewardEvaluation]], results: Mapping[str, Any]
) -> list[tuple[str, dict[str, list[str]]]]:
    """Return title and rows of each table of ``textenv reward eval``; a cell a model."""

    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    tables = []
    if evaluations:
        each = [one for _, one in evaluations.values()]
        rows = {
            "comparisons learned from": [f"{count:,}" for count, _ in evaluations.values()],
            "accuracy against a person": [share(one.accuracy) for one in each],
            "  another person": [share(one.person) for one in each],
            "accuracy against the majority": [share(one.majority) for one in each],
            "  a person, against that of the others": [share(one.person_majority) for one in each],
            **{
                f"accuracy, {name} ({count:,})": [share(one.groups[name][0]) for one in each]
                for name, (_, count) in each[0].groups.items()
            },
            "expected calibration error": [f"{one.calibration.ece:.3f}" for one in each],
            "Brier score": [f"{one.calibration.brier:.3f}" for one in each],
            "prefers the longer text": [share(one.longer) for one in each],
            "  people do": [share(one.longer_people) for one in each],
        }
        tables.append((f"{each[0].comparisons:,} comparisons", rows))
    benches = [result["reward_bench"] for result in results.values() if "reward_bench" in result]
    if benches:
        tables.append(("RewardBench", {name: [share(bench[name]) for bench in benches] for name in benches[0]}))
    return tables
