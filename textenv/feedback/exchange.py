"""Importing files of rankings and demonstrations into a feedback store, and exporting them.

These are ``textenv feedback import`` and ``textenv feedback export``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import tyro

from textenv.data.files import to_json
from textenv.data.outputs import OutputFile
from textenv.data.records import json_cells, read_records
from textenv.data.values import MOST_COMPLETIONS, as_completions, as_prompt
from textenv.feedback.demonstrations import add_demonstrations, read_demonstrations, write_demonstrations
from textenv.feedback.formats import FORMATS, Droppable, read_rankings, write_rankings
from textenv.feedback.store import FeedbackStore, annotator_name
from textenv.models.codec import TextCodec
from textenv.types import Conversation, Ranking, TextEnvError
from textenv.validation import Count, validate

__all__ = [
    "ExportFeedback",
    "ImportFeedback",
    "Question",
    "add_questions",
    "add_rankings",
    "export_feedback",
    "import_feedback",
    "read_questions",
]

Question: TypeAlias = tuple[str | Conversation, tuple[str, ...]]
"""A prompt, and completions of it that are to be ranked."""
if TYPE_CHECKING:
    Name: TypeAlias = str
else:
    Name = Literal[tuple(FORMATS)]


@dataclass(frozen=True)
class ImportFeedback:
    """Put rankings or demonstrations of elsewhere, or completions to be ranked, into a store of feedback.

    Attributes:
        store: The store; made if it is missing.
        files: Files of kind .jsonl, .json, .csv or .parquet.
        format: Format of the files; "auto" for the format that the first record of a file has.
        unjudged: The files hold completions that are to be ranked: objects with "prompt" and "completions".
        demonstrations: The files hold demonstrations: objects with "prompt" and "completion", or with "messages".
        judgements: From how many annotators a ranking of unjudged completions is wanted.
        annotator: Name of the annotator of rankings and demonstrations that name nobody.
        tokenizer: Folder or Hugging Face id of the tokenizer of files with token ids, "gpt2" for Ziegler's labels.
        drop_margins: Leave margins out, which a store does not keep.
        skip_unreadable: Skip records and annotations that cannot be read, and say how many there were.
    """

    store: Annotated[OutputFile, tyro.conf.Positional]
    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    format: Literal["auto"] | Name = "auto"
    unjudged: bool = False
    demonstrations: bool = False
    judgements: Count = 1
    annotator: str = ""
    tokenizer: str | None = None
    drop_margins: bool = False
    skip_unreadable: bool = False


@dataclass(frozen=True)
class ExportFeedback:
    """Write the rankings or the demonstrations in a store of feedback to a file.

    Attributes:
        store: The store.
        file: The file to write, of kind .jsonl, .json, .csv or .parquet.
        demonstrations: Write the demonstrations, as records that "textenv sft" reads, instead of the rankings.
        format: Format of rankings.
        drop: What to leave out, because the format cannot hold it.
        all: Export judgements on gold and repeated tasks as well, which measure annotators.
    """

    store: Annotated[Path, tyro.conf.Positional]
    file: Annotated[OutputFile, tyro.conf.Positional]
    demonstrations: bool = False
    format: Name = "native"
    drop: tuple[Droppable, ...] = ()
    all: bool = False


def import_feedback(command: ImportFeedback) -> list[str]:
    """Run ``textenv feedback import``, all files or none; return the lines to print.

    Raises:
        TextEnvError: A file cannot be read, or the store cannot keep what is in it.
    """
    validate(command)
    if not command.files:
        raise TextEnvError("Name at least one file to import.")
    if command.demonstrations:
        _check_given(command, "store", "files", "annotator")
        answers = [answer for file in command.files for answer in read_demonstrations(file)]
        with FeedbackStore(command.store) as store:
            added = add_demonstrations(store, answers, annotator=command.annotator)
        return [f"{command.store}: {added} demonstrations added, {len(answers) - added} were there already."]
    if command.unjudged:
        questions = [question for file in command.files for question in read_questions(file)]
        with FeedbackStore(command.store) as store:
            added = len(add_questions(store, questions, judgements=command.judgements))
        return [f"{command.store}: {added} tasks added, each to be judged by {command.judgements}."]
    refused: list[TextEnvError] = []
    rankings: list[Ranking] = []
    decode = None if command.tokenizer is None else _decoder(command.tokenizer)
    for file in command.files:
        refuse = refused.append if command.skip_unreadable else _refuse
        rankings += read_rankings(file, command.format, decode=decode, refused=refuse)
    if command.drop_margins:
        rankings = [replace(ranking, margin=None) for ranking in rankings]
    with FeedbackStore(command.store) as store:
        added = add_rankings(store, rankings, annotator=command.annotator)
    lines = [f"{command.store}: {added} judgements added, {len(rankings) - added} were there already."]
    return lines + [f"{len(refused)} could not be read and were left out, the first: {refused[0]}" for _ in refused[:1]]


def export_feedback(command: ExportFeedback) -> list[str]:
    """Run ``textenv feedback export``; return the lines to print.

    Raises:
        TextEnvError: There is no such store, nothing in it was ranked, or the format cannot hold a ranking.
    """
    validate(command)
    if _same_file(command.file, command.store):
        raise TextEnvError(f"{command.file} is the store itself; name another file to write to.")
    with FeedbackStore(command.store, read_only=True) as store:
        if command.demonstrations:
            _check_given(command, "store", "file")
            return [f"{command.file}: {write_demonstrations(command.file, store)} demonstrations."]
        everything = [judgement for judgement in store.judgements() if judgement.verdict != "written"]
        rankings = [ranking for _, ranking in store.rankings(everything if command.all else None)]
    if not rankings:
        raise TextEnvError(f"{command.store}: none of its {len(everything)} judgements ranks completions to export.")
    records = write_rankings(command.file, rankings, command.format, drop=command.drop)
    left = len(everything) - len(rankings)
    lines = [f"{command.file}: {records} records of {len(rankings)} judgements."]
    if left:
        lines.append(
            f"{left} judgements cannot be learned from and were left out: both bad, can't tell, clips"
            + ("." if command.all else ", or on gold or repeated tasks (--all).")
        )
    return lines


def add_rankings(
    store: FeedbackStore, rankings: Iterable[Ranking], *, annotator: str = "", gold: bool = False, judgements: int = 1
) -> int:
    """Add rankings to a store, as judgements by their annotators, or as gold tasks that annotators are measured by.

    A ranking that the store has already, by the same annotator, is not added again, so that the same file can be
    imported twice; a ranking that is twice among ``rankings`` is added twice. Rankings of the same completions in the
    same order by several annotators become judgements of one task.

    Args:
        store: The store.
        rankings: Rankings without margins.
        annotator: Name of the annotator of rankings that name nobody.
        gold: Add them as gold tasks, whose right answers they are.
        judgements: From how many annotators a judgement of each gold task is wanted.

    Returns:
        How many were added.

    Raises:
        TextEnvError: A ranking has a margin, nobody's name, or more than nine completions; nothing was added then.
    """
    rankings = [replace(ranking, annotator=annotator_name(ranking.annotator or annotator)) for ranking in rankings]
    for ranking in rankings:
        about = f"The ranking of {_key(ranking.prompt)[:80]} by {ranking.annotator!r}"
        if ranking.margin is not None and not gold:
            raise TextEnvError(f"{about} has a margin, which a store does not keep. Drop margins (--drop-margins).")
        if len(ranking.completions) > MOST_COMPLETIONS:
            raise TextEnvError(
                f"{about} has {len(ranking.completions)} completions; people are shown {MOST_COMPLETIONS} at most. "
                "Split it."
            )
        if not ranking.annotator and not gold:
            raise TextEnvError(f"{about} does not say who judged. Name an annotator (--annotator).")
    added = 0
    with store.transaction():
        items = _Items(store)
        if gold:
            for ranking in rankings:
                places = items.of(ranking.prompt, ranking.completions)
                store.add_task(places, gold=ranking.ranks, judgements=judgements)
            return len(rankings)
        there = Counter(_identity(ranking) for _, ranking in store.rankings(store.judgements()))
        fresh: dict[str, list[list[Ranking]]] = {}  # of the same completions, rounds in which each judges once
        for ranking in rankings:
            if there[_identity(ranking)]:
                there[_identity(ranking)] -= 1
                continue
            rounds = fresh.setdefault(_key([ranking.prompt, ranking.completions]), [])
            free = (one for one in rounds if all(each.annotator != ranking.annotator for each in one))
            one = next(free, None)
            if one is None:
                rounds.append(one := [])
            one.append(ranking)
            added += 1
        for rounds in fresh.values():
            for one in rounds:
                task = store.add_task(items.of(one[0].prompt, one[0].completions), judgements=len(one))
                for ranking in one:
                    store.record(task, store.annotator(ranking.annotator), ranking.ranks)
    return added


def add_questions(store: FeedbackStore, questions: Iterable[Question], *, judgements: int = 1) -> list[int]:
    """Add completions to be ranked to a store; return the numbers of the tasks.

    Raises:
        TextEnvError: There are not two to nine completions of a prompt; nothing was added then.
    """
    questions = list(questions)  # before the transaction, since it may take long
    with store.transaction():
        items = _Items(store)
        return [store.add_task(items.of(prompt, texts), judgements=judgements) for prompt, texts in questions]


def read_questions(path: str | Path) -> list[Question]:
    """Read prompts and completions that are to be ranked: objects with ``prompt`` and ``completions``.

    Raises:
        TextEnvError: The file cannot be read, or a record has another form; the message says which.
    """
    questions: list[Question] = []
    in_csv = Path(path).suffix.lower() == ".csv"
    for where, row in read_records(path):
        try:
            given = json_cells(row, ("completions",)) if in_csv else row
            completions = as_completions(given.get("completions"))
            if len(completions) > MOST_COMPLETIONS:
                raise TextEnvError(f"{len(completions)} completions; people are shown {MOST_COMPLETIONS} at most.")
            questions.append((as_prompt(given.get("prompt")), completions))
        except TextEnvError as error:
            raise TextEnvError(f"{where}: {error}") from error
    return questions


class _Items:
    """Completions of a store by their text, so that those without a policy are added once."""

    def __init__(self, store: FeedbackStore) -> None:
        self._store = store
        self._numbers: dict[tuple[int, str], list[int]] = {}
        for item in store.completions():
            if item.policy is None and item.prompt is not None:
                self._numbers.setdefault((item.prompt, item.text), []).append(item.id)

    def of(self, prompt: str | Conversation, texts: Sequence[str]) -> list[int]:
        """Return the numbers of completions, which are added if need be; equal texts get different numbers."""
        number, seen, found = self._store.add_prompt(prompt), Counter[str](), []
        for text in texts:
            known = self._numbers.setdefault((number, text), [])
            if seen[text] == len(known):
                known.append(self._store.add_completion(number, text))
            found.append(known[seen[text]])
            seen[text] += 1
        return found


def _check_given(command: Any, *allowed: str) -> None:
    """Refuse settings that say nothing about demonstrations.

    Raises:
        TextEnvError: One of them was given.
    """
    for field in fields(command):
        if field.name not in (*allowed, "demonstrations") and getattr(command, field.name) != field.default:
            flag = field.name.replace("_", "-")
            raise TextEnvError(f"--{flag} is about rankings, not demonstrations; leave out one of the two.")


def _same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # one of them is missing, or its path is none
        return False


def _refuse(error: TextEnvError) -> None:
    raise TextEnvError(f"{error} Correct it, or leave out what cannot be read (--skip-unreadable).")


def _identity(ranking: Ranking) -> str:
    return _key([ranking.prompt, ranking.completions, ranking.ranks, ranking.annotator])


def _key(value: Any) -> str:
    return to_json(value, ensure_ascii=False, sort_keys=True, default=_mapping)


def _mapping(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)


def _decoder(name: str) -> Callable[[list[int]], str]:
    from textenv.models.loading import load_tokenizer  # noqa: PLC0415 (slow to load, and the help needs this module)

    try:
        return TextCodec(load_tokenizer(name)).decode
    except TextEnvError as error:
        raise TextEnvError(f"--tokenizer {name}: {error}") from error
