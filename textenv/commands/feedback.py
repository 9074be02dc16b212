"""``textenv label``, ``textenv feedback status`` and ``textenv feedback annotate``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.table import Table

from textenv.data.reviews import load_reviews
from textenv.env.scoring import resolve_reward
from textenv.env.settings import check_counts
from textenv.feedback.agreement import Share, measure_agreement
from textenv.feedback.annotators import PROGRAM, Adversarial, FromRatings, FromReward, Judge, Lazy, LeftBiased, annotate
from textenv.feedback.bradley_terry import policy_strengths
from textenv.feedback.store import FeedbackStore
from textenv.types import TextEnvError

__all__ = ["AnnotateFeedback", "FeedbackStatus", "Label", "annotate_feedback", "feedback_status", "label"]


@dataclass(frozen=True)
class Label:
    """Open the page on which people compare what a file of feedback asks for; several can at once.

    Attributes:
        store: File of the feedback; "textenv feedback add" and "textenv feedback import" make one.
        guidelines: Text file that tells annotators what to go by: paragraphs, "# headings" and "- lists".
        host: Address to listen at. Where other machines can reach it, the page asks for a password.
        port: Port to listen at; 0 for one that is free.
        allow_host: Other names that the page answers by, such as a proxy's.
        lease_seconds: How long a comparison, and a name, is one annotator's after the last sign of life.
        password_file: File with the password to ask for; None for one that is made up and shown, where other machines
            can reach the page, and for none where they cannot.
        clip_folders: Folders that clips may lie in, besides that of the store.
    """

    store: Annotated[Path, tyro.conf.Positional]
    guidelines: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8901
    allow_host: tuple[str, ...] = ()
    lease_seconds: float = 600.0
    password_file: Path | None = None
    clip_folders: tuple[Path, ...] = ()


@dataclass(frozen=True)
class FeedbackStatus:
    """Tell how far the judging is, how far annotators agree, and which policy writes best.

    Attributes:
        store: File of the feedback.
    """

    store: Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True)
class AnnotateFeedback:
    """Have a program judge what is to be judged, through the same interface as people.

    Attributes:
        store: File of the feedback.
        reward: Judges by this reward: its name, a JSON object, or package.module:attribute.
        ratings: Judges by what people said of movie reviews, one of their ratings of each text drawn at random.
        kind: "plain" judges by these; "lazy" does not read, and can't tell or says anything; "left-biased"
            takes 30 percent as they stand; "adversarial" says the opposite.
        temperature: Of choices by a reward, in units of its scores (Boltzmann); 0 never errs.
        error_rate: Share of judgements by a reward that are made at random.
        tie: Scores that differ by no more than this tie.
        name: Name of the annotator.
        limit: Judgements at most.
        seed: Seeds the program.
    """

    store: Annotated[Path, tyro.conf.Positional]
    reward: str | None = None
    ratings: bool = False
    kind: Literal["plain", "lazy", "left-biased", "adversarial"] = "plain"
    temperature: float = 0.0
    error_rate: float = 0.0
    tie: float = 0.0
    name: str = PROGRAM
    limit: int | None = None
    seed: int = 0


def label(command: Label, announce: Callable[[str], None]) -> None:
    """Do what the command says, until a signal ends it; ``announce`` is told what to print, a line at a time."""
    from textenv.feedback.label_server import serve_label_page  # noqa: PLC0415 (an optional dependency)
    from textenv.feedback.sign_in import made_password, only_here, owner_key, page_key  # noqa: PLC0415

    guidelines = "" if command.guidelines is None else _text_of(command.guidelines, "--guidelines")
    password = "" if command.password_file is None else _text_of(command.password_file, "--password-file").strip()
    if command.password_file is not None and not password:
        raise TextEnvError(f"--password-file {command.password_file}: expected a password, found an empty file.")

    def told(url: str) -> None:
        announce(f"Compare at {url}")
        announce(f"Figures for you alone, since they would tell annotators who wrote what: {url}state?owner={owner}")
        if not only_here(command.host):
            announce(
                "Warning: other machines can reach this page, and what is sent to it is not encrypted. Keep it to a "
                "network that you trust, or put a proxy with HTTPS in front. Names that it is reached by need "
                "--allow-host."
            )
        if password and command.password_file is None:
            announce(f"Password for annotators: {password}")

    with FeedbackStore(command.store, create=False) as store:
        key = page_key(command.store)
        owner = owner_key(key)
        if not password and not only_here(command.host):
            password = made_password(key)
        serve_label_page(
            store,
            key=key,
            host=command.host,
            port=command.port,
            guidelines=guidelines,
            hosts=command.allow_host,
            lease_seconds=command.lease_seconds,
            password=password,
            clip_folders=command.clip_folders,
            announce=told,
        )


def _text_of(path: Path, flag: str) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TextEnvError(f"{flag} {path}: expected a file of text ({error}).") from error


def annotate_feedback(command: AnnotateFeedback) -> str:
    """Do what the command says; return what to tell."""
    if (command.reward is not None) == command.ratings and command.kind != "lazy":
        raise TextEnvError("Name what to judge by, a --reward or --ratings, and not both.")
    check_counts(command, "limit")
    judge: Judge = Lazy()
    if command.ratings:
        judge = FromRatings({review.text: review.ratings for review in load_reviews()})
    elif command.reward is not None:
        spec: Any = json.loads(command.reward) if command.reward.startswith("{") else command.reward
        judge = FromReward(resolve_reward(spec), command.temperature, command.error_rate, command.tie)
    if command.kind == "lazy":
        judge = Lazy()
    elif command.kind == "left-biased":
        judge = LeftBiased(judge)
    elif command.kind == "adversarial":
        judge = Adversarial(judge)
    with FeedbackStore(command.store, create=False) as store:
        made = annotate(store, judge, command.name, limit=command.limit, seed=command.seed)
        left = store.progress()
    return f"{command.name} made {made:,} judgements; {left.done:,} of {left.wanted:,} are there."


def feedback_status(command: FeedbackStatus) -> list[Table]:
    """Return the tables to show."""
    with FeedbackStore(command.store, read_only=True) as store:
        progress, agreement, strengths = store.progress(), measure_agreement(store), policy_strengths(store)
        judgements = store.judgements()
        people = {annotator.id: annotator for annotator in store.annotators()}
    state = Table(title=str(command.store), show_header=False)
    state.add_row("judgements", f"{progress.done:,} of {progress.wanted:,}, {progress.open} being made")
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
        state.add_row(name, _told(share))
    who = Table("annotator", "kind", "judgements", "can't tell", "both bad", "median seconds", title="Annotators")
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
        )
    best = Table("policy", "strength in logits", "95 % interval", "comparisons", title="Policies (Bradley-Terry)")
    for name, strength in strengths:
        low, high = strength.interval
        best.add_row(name, f"{strength.strength:+.2f}", f"{low:+.2f} to {high:+.2f}", f"{strength.comparisons:,}")
    return [state, who, *([best] if strengths else [])]


def _told(share: Share) -> str:
    if share.value is None or share.interval is None:
        return "not known"
    low, high = share.interval
    return f"{share.value:.1%} of {share.count:,} ({low:.1%} to {high:.1%})"
