"""Demonstrations as records: what fine-tuning reads of a feedback store, and files that they come from and go to.

A record has ``prompt`` and ``completion``; or, after a conversation, ``messages``, the last ``written`` of which are
the annotator's: answers, and what the user says between them. ``annotator`` tells who wrote it, and ``edited_from`` the
completion that it was edited from, if it was.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from textenv.data.files import locked
from textenv.data.records import RECORD_KINDS, json_cells, read_records, write_records
from textenv.data.values import as_annotator, as_conversation, as_text, as_whole_number
from textenv.feedback.store import FeedbackStore, annotator_name
from textenv.feedback.store_records import as_answers
from textenv.training.configs import SftConfig
from textenv.types import Conversation, TextEnvError, short

__all__ = [
    "WrittenAnswer",
    "add_demonstrations",
    "demonstration_records",
    "read_demonstrations",
    "with_stores_read",
    "write_demonstrations",
]

_CELLS = ("messages", "written")  # hold JSON in CSV
_MAGIC = b"SQLite format 3\0"
_SUFFIXES = (".db", ".sqlite", ".sqlite3")
AnySftConfig = TypeVar("AnySftConfig", bound=SftConfig)


class WrittenAnswer(NamedTuple):
    """A demonstration outside of a store.

    Attributes:
        prompt: What it answers, a text or a conversation.
        texts: The answer; after a conversation perhaps also the user's next message, the answer to it, and so on.
        annotator: Who wrote it, "" where nobody is named.
        edited_from: The completion that it was edited from; None if it was not.
    """

    prompt: str | Conversation
    texts: tuple[str, ...]
    annotator: str
    edited_from: str | None


def demonstration_records(store: FeedbackStore) -> list[dict[str, Any]]:
    """Return the demonstrations of a store that count, as records, in the order in which they were written.

    Raises:
        TextEnvError: There is none.
    """
    prompts, items = store.prompts(), {item.id: item.text for item in store.completions()}
    names = {annotator.id: annotator.name for annotator in store.annotators()}
    records = [
        {
            **_said(prompts[each.prompt], each.texts),
            "annotator": names[each.annotator],
            "edited_from": None if each.item is None else items[each.item],
        }
        for each in store.demonstrations()
    ]
    if not records:
        raise TextEnvError(
            f"{store.path}: no demonstrations in it; expected at least one. People write them on the page of 'textenv "
            "label'."
        )
    return records


def _said(prompt: str | Conversation, texts: Sequence[str]) -> dict[str, Any]:
    """Return what is learned: a prompt with its completion, or all messages and how many of them were written."""
    if isinstance(prompt, str):
        return {"prompt": prompt, "completion": texts[0]}
    messages = [{"role": message["role"], **message} for message in prompt]
    begun = messages.pop()["content"] if messages[-1]["role"] == "assistant" else ""
    roles = ("assistant", "user")
    written = [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]
    written[0]["content"] = begun + written[0]["content"]
    return {"messages": messages + written, "written": len(written)}


def write_demonstrations(path: Path, store: FeedbackStore) -> int:
    """Write the demonstrations of a store to a file that ``textenv sft`` reads; return how many there are.

    Raises:
        TextEnvError: There is none, or the kind of the file cannot hold them.
    """
    records = demonstration_records(store)
    if all(record["edited_from"] is None for record in records):
        records = [{name: value for name, value in record.items() if name != "edited_from"} for record in records]
    elif path.suffix.lower() == ".csv":
        records = [{**record, "edited_from": record["edited_from"] or ""} for record in records]
    write_records(path, records, json_columns=_CELLS)
    return len(records)


def read_demonstrations(path: Path) -> list[WrittenAnswer]:
    """Read demonstrations: records that ``write_demonstrations`` wrote, or others that ``textenv sft`` reads.

    Of a conversation that does not say how much of it was written, all from the assistant's first message on was.

    Raises:
        TextEnvError: The file cannot be read, or a record is no demonstration; the message says which.
    """
    found = []
    in_csv = path.suffix.lower() == ".csv"
    for where, row in read_records(path, what="demonstrations"):
        try:
            found.append(_read(json_cells(row, _CELLS) if in_csv else row))
        except TextEnvError as error:
            raise TextEnvError(f"{where}: {error}") from error
    return found


def _read(row: Mapping[str, Any]) -> WrittenAnswer:
    prompt: str | Conversation
    if row.get("messages") is not None:
        prompt, texts = _divided(as_conversation(row["messages"], "messages"), row.get("written"))
    elif row.get("prompt") is not None and row.get("completion") is not None:
        prompt, texts = as_text(row["prompt"], "prompt"), [as_text(row["completion"], "completion")]
    else:
        raise TextEnvError(f"{short(row)}; expected the texts 'prompt' and 'completion', or the list 'messages'.")
    edited_from = row.get("edited_from") or None
    return WrittenAnswer(
        prompt,
        as_answers(texts, prompt),
        annotator_name(as_annotator(row.get("annotator"))),
        None if edited_from is None else as_text(edited_from, "edited_from"),
    )


def _divided(messages: Conversation, written: Any) -> tuple[Conversation, list[str]]:
    """Return the messages that a demonstration answers, and the texts that it consists of."""
    roles = [str(message["role"]) for message in messages]
    if written is None:
        first = roles.index("assistant") if "assistant" in roles else len(roles)
    else:
        first = len(roles) - as_whole_number(written, "written", len(roles))
    expected = [("assistant", "user")[place % 2] for place in range(len(roles) - first)]
    if not 0 < first < len(roles) or roles[first:] != expected:
        raise TextEnvError(
            f"the messages are of {roles}, and what was written of {roles[first:]}; expected a prompt, an answer of "
            "the assistant, and perhaps the user's next message, the answer to it, and so on."
        )
    return messages[:first], [str(message["content"]) for message in messages[first:]]


def add_demonstrations(store: FeedbackStore, answers: Iterable[WrittenAnswer], *, annotator: str = "") -> int:
    """Add demonstrations to a store; return how many were added.

    One that the store has already, by the same annotator, is not added again, so that the same file can be imported
    twice.

    Args:
        store: The store.
        answers: The demonstrations.
        annotator: Who wrote those that name nobody.

    Raises:
        TextEnvError: One names nobody, and neither does ``annotator``; nothing was added then.
    """
    given = [each._replace(annotator=each.annotator or annotator_name(annotator)) for each in answers]
    for each in given:
        if not each.annotator:
            raise TextEnvError(
                f"The demonstration {short(each.texts[0])} does not say who wrote it. Name an annotator (--annotator)."
            )
    added = 0
    with store.transaction():
        texts = {(item.prompt, item.text): item.id for item in reversed(store.completions())}
        there = Counter((each.prompt, each.texts, each.annotator) for each in store.demonstrations())
        for each in given:
            prompt, author = store.add_prompt(each.prompt), store.annotator(each.annotator)
            if there[prompt, each.texts, author]:
                there[prompt, each.texts, author] -= 1
                continue
            item = None
            if each.edited_from is not None:
                item = texts.get((prompt, each.edited_from))
                if item is None:
                    item = texts[prompt, each.edited_from] = store.add_completion(prompt, each.edited_from)
            store.add_demonstration(prompt, each.texts, annotator=author, item=item)
            added += 1
    return added


def with_stores_read(config: AnySftConfig) -> AnySftConfig:
    """Return settings of a fine-tuning with a file of the demonstrations in the place of each feedback store.

    The file is in the folder of the run, as it was when the training began: people may go on writing, and a run that
    goes on after a kill learns from what it began with.

    Raises:
        TextEnvError: A store cannot be read or holds no demonstrations, or the folder holds a run with other settings.
    """
    stores: dict[Path, Path] = {}
    for path in (*config.files, *((config.validation,) if config.validation else ())):
        if _is_store(path):
            number = "" if not stores else f"-{len(stores) + 1}"
            stores.setdefault(path, config.out / f"demonstrations{number}.jsonl")
    if not stores:
        return config
    validation = config.validation and stores.get(config.validation, config.validation)
    read = dataclasses.replace(
        config, files=tuple(stores.get(path, path) for path in config.files), validation=validation
    )
    from textenv.models.loading import resolve_model  # noqa: PLC0415 (slow to load, and others need this module)
    from textenv.training.loop import has_begun  # noqa: PLC0415

    with locked(config.out):
        if not has_begun(config.out, dataclasses.replace(read, model=resolve_model(config.model)), "sft"):
            for path, file in stores.items():
                with FeedbackStore(path, read_only=True) as store:
                    write_demonstrations(file, store)
    return read


def _is_store(path: Path) -> bool:
    if path.suffix.lower() in (*RECORD_KINDS, *_SUFFIXES):
        return path.suffix.lower() in _SUFFIXES
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except (OSError, ValueError):  # whoever reads it says why
        return False
