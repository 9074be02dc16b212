"""``textenv feedback status``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from textenv.commands.base import Command
from textenv.commands.console import console

if TYPE_CHECKING:
    from textenv.feedback.agreement import Share

__all__ = ["Status"]


@dataclass(frozen=True)
class Status(Command):
    """Tell how far the judging is, how far annotators agree, and which policy writes best.

    Attributes:
        store: File of the feedback.
    """

    store: Annotated[Path, tyro.conf.Positional]

    def run(self) -> int:
        """Print the tables."""
        from textenv.feedback.agreement import measure_agreement  # noqa: PLC0415 (SciPy takes long to load)
        from textenv.feedback.bradley_terry import policy_strengths  # noqa: PLC0415
        from textenv.feedback.store import FeedbackStore  # noqa: PLC0415
        from textenv.rollouts.tables import make_table  # noqa: PLC0415

        with FeedbackStore(self.store, read_only=True) as store:
            progress, agreement, strengths = store.progress(), measure_agreement(store), policy_strengths(store)
            judgements, demonstrations = store.judgements(), store.demonstrations()
            people = {annotator.id: annotator for annotator in store.annotators()}
        state = make_table("", "", title=str(self.store), texts=(0, 1))
        state.add_row("judgements", f"{progress.done:,} of {progress.wanted:,}, {progress.open} being made")
        state.add_row("demonstrations", f"{len(demonstrations):,}")
        alpha = "not known: no pair has two opinions"
        if agreement.alpha is not None and agreement.interval is not None:
            low, high = agreement.interval
            alpha = f"{agreement.alpha:.3f} ({low:.3f} to {high:.3f}) on {agreement.pairs:,} pairs"
        state.add_row("Krippendorff's alpha", alpha)
        for name, share in (
            ("equal opinions", agreement.raw),
            ("the same when asked again", agreement.own),
            ("right on gold items", agreement.gold),
        ):
            state.add_row(name, _share_text(share))
        headings = ("annotator", "kind", "judgements", "can't tell", "both bad", "median seconds", "written")
        who = make_table(*headings, title="Annotators", texts=(0, 1))
        for number, annotator in people.items():
            mine = [judgement for judgement in judgements if judgement.annotator == number]
            seconds = sorted(judgement.seconds for judgement in mine if judgement.seconds is not None)
            verdicts = [judgement.verdict for judgement in mine]
            who.add_row(
                annotator.name,
                annotator.kind,
                f"{len(mine):,}",
                f"{verdicts.count('cant_tell'):,}",
                f"{verdicts.count('both_bad'):,}",
                f"{seconds[len(seconds) // 2]:.1f}" if seconds else "",
                f"{sum(each.annotator == number for each in demonstrations):,}",
            )
        figures = ("strength in logits", "95 % interval", "comparisons")
        best = make_table("policy", *figures, title="Policies (Bradley-Terry)")
        for name, strength in strengths:
            low, high = strength.interval
            best.add_row(name, f"{strength.strength:+.2f}", f"{low:+.2f} to {high:+.2f}", f"{strength.comparisons:,}")
        console.print(*[state, who, *([best] if strengths else [])], sep="\n")
        return 0


def _share_text(share: Share) -> str:
    if share.value is None or share.interval is None:
        return "not known"
    low, high = share.interval
    return f"{share.value:.1%} of {share.count:,} ({low:.1%} to {high:.1%})"
