"""The records of a feedback store: what it holds, as frozen data."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from textenv.data.values import as_text, short
from textenv.types import Conversation, TextEnvError

__all__ = [
    "Annotator",
    "Assignment",
    "Demonstration",
    "Item",
    "Judgement",
    "Policy",
    "Progress",
    "RankingTask",
    "Ranks",
    "RewardModelVersion",
    "TaskKind",
    "Verdict",
    "annotator_name",
    "as_answers",
    "check_answerable",
]

Verdict: TypeAlias = Literal["ranked", "both_bad", "cant_tell"]
TaskKind: TypeAlias = Literal["completion", "clip", "demonstration"]
Ranks: TypeAlias = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """A version of a policy: where it is, what it was trained from, and the reward model it was trained against."""

    id: int
    name: str
    folder: str
    parent: int | None
    reward_model: int | None
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """What is judged.

    Attributes:
        id: Its number.
        kind: ``"completion"`` or ``"clip"``.
        prompt: Number of the prompt that a completion belongs to.
        text: The completion.
        path: File or folder of the clip.
        scene: Name of the control task that the clip shows.
        policy: Number of the policy that produced it, if known.
        details: Further JSON values.
    """

    id: int
    kind: Literal["completion", "clip"]
    prompt: int | None
    text: str
    path: str
    scene: str
    policy: int | None
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RankingTask:
    """Items to be ranked against each other, or a prompt that a demonstration is wanted of.

    Attributes:
        id: Its number.
        kind: The kind of its items; ``"demonstration"`` for one without items.
        prompt: Number of the prompt that the items complete, or that is to be answered.
        items: Numbers of the items, two to nine.
        gold: The right ranks, if they are known, in the order of ``items``.
        repeat_of: Number of the task that it repeats, for the annotators who have judged that one.
        judgements: From how many annotators a judgement is wanted.
        priority: Tasks of higher priority are given out first.
    """

    id: int
    kind: TaskKind
    prompt: int | None
    items: tuple[int, ...]
    gold: Ranks | None
    repeat_of: int | None
    judgements: int
    priority: float


@dataclass(frozen=True, slots=True)
class Annotator:
    """A person or a program that judges."""

    id: int
    name: str
    kind: Literal["person", "program"]
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Assignment:
    """A task that an annotator has been given.

    Attributes:
        id: Its number.
        annotator: Number of the annotator who has it.
        task: Number of the task.
        kind: The kind of its items; ``"demonstration"`` for a task without items.
        prompt: The prompt of the completions, or that is to be answered; None for clips.
        columns: The prompt's other columns.
        items: The items, in the order in which they are shown.
        expires: When the task may be given to others, in seconds since 1970.
    """

    id: int
    annotator: int
    task: int
    kind: TaskKind
    prompt: str | Conversation | None
    columns: Mapping[str, Any]
    items: tuple[Item, ...]
    expires: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """An annotator's answer to a task.

    Attributes:
        id: Its number.
        assignment: Number of the assignment that was answered.
        task: Number of its task.
        annotator: Number of the annotator who judged.
        ranks: As in ``textenv.types.Ranking``, in the order of the task's items; all None unless ``"ranked"``.
        verdict: ``"ranked"``, ``"both_bad"``, ``"cant_tell"``, ``"written"`` where a demonstration was asked for and
            given, or ``"undone"`` for a row that undoes another.
        confidence: From 1 (a guess) to 5 (sure); None if the annotator gave none.
        note: A remark of the annotator's.
        seconds: How long the judgement took, if known.
        supersedes: Number of the judgement that this one replaces.
        created: When it was stored, in seconds since 1970.
    """

    id: int
    assignment: int
    task: int
    annotator: int
    ranks: Ranks
    verdict: Verdict | Literal["written", "undone"]
    confidence: int | None
    note: str
    seconds: float | None
    supersedes: int | None
    created: float


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What an annotator has written as an answer to a prompt.

    Attributes:
        id: Its number.
        prompt: Number of the prompt.
        annotator: Number of the annotator who wrote it.
        texts: The answer; after a conversation perhaps also the user's next message, the answer to it, and so on, so
            that there is an odd number of them. None for a row that takes back another.
        item: Number of the completion that it was edited from, if it was.
        assignment: Number of the assignment that it was written at, if it was.
        seconds: How long the writing took, if known.
        supersedes: Number of the demonstration that this one replaces.
        created: When it was stored, in seconds since 1970.
    """

    id: int
    prompt: int
    annotator: int
    texts: tuple[str, ...]
    item: int | None
    assignment: int | None
    seconds: float | None
    supersedes: int | None
    created: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How many judgements are done and wanted.

    Attributes:
        wanted: Judgements wanted in all; for one annotator, those that they have made and those they could still make.
        done: Judgements made.
        open: Assignments whose lease is running and that are not judged.
    """

    wanted: int
    done: int
    open: int


@dataclass(frozen=True, slots=True)
class RewardModelVersion:
    """A reward model and the judgements that it was trained on."""

    id: int
    folder: str
    parent: int | None
    details: Mapping[str, Any]
    judgements: tuple[int, ...]


def annotator_name(name: str) -> str:
    """Return an annotator's name in the form in which a store keeps it: NFC, with single spaces between its words.

    Keyboards differ in whether they send "é" as one character or as two; both are the same name.

    Raises:
        TextEnvError: It is no text, or no Unicode.
    """
    return " ".join(unicodedata.normalize("NFC", as_text(name, "annotator")).split())


def check_answerable(prompt: str | Conversation) -> None:
    """Check that the assistant can speak next: it answers somebody, or goes on with what it has begun to say.

    Raises:
        TextEnvError: It would speak first.
    """
    if not isinstance(prompt, str) and all(message["role"] == "system" for message in prompt):
        raise TextEnvError(f"The assistant would speak first, after {short(prompt)}; expected a message of the user.")


def as_answers(texts: str | Sequence[str], prompt: str | Conversation) -> tuple[str, ...]:
    """Return what an annotator has written after a prompt: an answer, or messages of both sides that end with one.

    Raises:
        TextEnvError: One of them is no text or blank, there is an even number of them, a prompt that is a text has
            several, or the assistant would speak first.
    """
    given = (texts,) if isinstance(texts, str) else texts
    if not isinstance(given, (list, tuple)):
        raise TextEnvError(f"texts is {short(given)}; expected a text, or a list of texts.")
    written = tuple(as_text(text, f"texts[{place}]") for place, text in enumerate(given))
    check_answerable(prompt)
    for place, text in enumerate(written):
        if not text.strip():
            who = "assistant" if place % 2 == 0 else "user"
            raise TextEnvError(f"texts[{place}], the {who}'s, is {short(text)}; expected something that is written.")
    if len(written) % 2 == 0:
        raise TextEnvError(
            f"{len(written)} texts; expected an answer, or the answer, the user's next message, the answer to it, and "
            "so on: the assistant has the last word."
        )
    if isinstance(prompt, str) and len(written) > 1:
        raise TextEnvError(f"{len(written)} texts after a prompt that is a text; expected one: it has no turns.")
    return written
