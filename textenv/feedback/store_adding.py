"""Adding to a feedback store: policies, prompts, items, tasks, and reward models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from textenv.data.files import to_json
from textenv.data.values import MOST_COMPLETIONS, as_number, as_prompt, as_ranks, as_text, as_whole_number, short
from textenv.feedback.store_reading import StoreReader
from textenv.feedback.store_records import Demonstration, as_answers, check_answerable
from textenv.types import Conversation, TextEnvError

__all__ = ["StoreWriter", "as_json"]


class StoreWriter(StoreReader):
    """The part of ``FeedbackStore`` that adds what is to be judged, and what was trained on judgements."""

    def add_policy(
        self,
        name: str,
        *,
        folder: str = "",
        parent: int | None = None,
        reward_model: int | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> int:
        """Add a version of a policy and return its number; adding the same one again changes nothing.

        Args:
            name: Name of the version, one of a kind in the store.
            folder: Folder or id that the policy is loaded from.
            parent: Number of the policy that it was trained from.
            reward_model: Number of the reward model that it was trained against.
            details: Further JSON values.

        Raises:
            TextEnvError: Another policy has the name.
        """
        as_text(name, "name")
        with self.transaction():
            for known in self.policies():
                if known.name == name:
                    if (known.folder, known.parent, known.reward_model) != (folder, parent, reward_model):
                        raise TextEnvError(f"There is a policy named {name!r} already, {known}; give this one another.")
                    return known.id
            return self._insert(
                "policies",
                name=name,
                folder=folder,
                parent=parent,
                reward_model=reward_model,
                details=as_json(details),
            )

    def add_prompt(self, prompt: str | Conversation, *, columns: Mapping[str, Any] | None = None) -> int:
        """Add a prompt and return its number; the same prompt with the same columns is added once."""
        prompt = as_prompt(prompt)
        given = as_json(prompt if isinstance(prompt, str) else [dict(message) for message in prompt])
        others = as_json(columns)
        with self.transaction():
            found = self._one("SELECT id FROM prompts WHERE prompt = ? AND columns = ?", given, others)
            return int(found["id"]) if found else self._insert("prompts", prompt=given, columns=others)

    def add_completion(
        self, prompt: int, text: str, *, policy: int | None = None, details: Mapping[str, Any] | None = None
    ) -> int:
        """Add a completion of a prompt and return its number."""
        self._known("prompts", prompt)
        return self._add_item("completion", policy, details, prompt=prompt, text=as_text(text, "text"))

    def add_clip(
        self, path: str | Path, *, task: str, policy: int | None = None, details: Mapping[str, Any] | None = None
    ) -> int:
        """Add a clip and return its number.

        Args:
            path: Its video or animated picture, or the folder that holds that.
            task: Name of the control task that it shows.
            policy: Number of the policy that acted in it.
            details: Further JSON values.
        """
        return self._add_item("clip", policy, details, path=str(path), scene=as_text(task, "task"))

    def _add_item(self, kind: str, policy: int | None, details: Mapping[str, Any] | None, **cells: Any) -> int:
        if policy is not None:
            self._known("policies", policy)
        empty: dict[str, Any] = {"prompt": None, "text": "", "path": "", "scene": ""}
        return self._insert("items", kind=kind, policy=policy, details=as_json(details), **{**empty, **cells})

    def add_task(
        self,
        items: Sequence[int],
        *,
        kind: Literal["completion", "clip"] = "completion",
        gold: Sequence[int | None] | None = None,
        repeat_of: int | None = None,
        judgements: int = 1,
        priority: float = 0.0,
    ) -> int:
        """Ask for a ranking and return the task's number.

        Args:
            items: Numbers of two to nine items: completions of one prompt, or clips of one control task.
            kind: Their kind.
            gold: The right ranks, if they are known, in the order of ``items``.
            repeat_of: Number of the task that this one repeats; it is given to annotators who have judged that one.
            judgements: From how many annotators a judgement is wanted.
            priority: Tasks of higher priority are given out first.

        Raises:
            TextEnvError: The items cannot be compared, or a value is not what is expected.
        """
        if not isinstance(items, Sequence) or isinstance(items, str):
            raise TextEnvError(f"items={short(items)}: expected a list of the numbers of items.")
        with self.transaction() as connection:
            found = [self._item(item) for item in items]
            if not 2 <= len(set(items)) == len(items) <= MOST_COMPLETIONS:
                raise TextEnvError(f"items={list(items)}: expected 2 to {MOST_COMPLETIONS} different ones.")
            if {item.kind for item in found} != {kind} or len({(item.prompt, item.scene) for item in found}) > 1:
                raise TextEnvError(f"items={list(items)}: expected items of kind {kind!r}, of the same prompt or task.")
            if gold is not None:
                gold = as_ranks(gold, len(items))
            if repeat_of is not None:
                self._known("tasks", repeat_of)
            if as_whole_number(judgements, "judgements", 2**31) < 1:
                raise TextEnvError(f"judgements={judgements}: expected at least 1.")
            task = self._insert(
                "tasks",
                kind=kind,
                prompt=found[0].prompt,
                gold=None if gold is None else as_json(list(gold)),
                repeat_of=repeat_of,
                judgements=judgements,
                priority=as_number(priority, "priority"),
            )
            rows = [(task, position, item) for position, item in enumerate(items)]
            connection.executemany("INSERT INTO task_items VALUES (?, ?, ?)", rows)
            return task

    def add_demonstration_task(self, prompt: int, *, demonstrations: int = 1, priority: float = 0.0) -> int:
        """Ask for a demonstration and return the task's number.

        Args:
            prompt: Number of the prompt that is to be answered.
            demonstrations: From how many annotators an answer is wanted.
            priority: Tasks of higher priority are given out first.

        Raises:
            TextEnvError: The assistant cannot speak next in the prompt, or a value is not what is expected.
        """
        with self.transaction():
            check_answerable(self.prompt(prompt))
            if as_whole_number(demonstrations, "demonstrations", 2**31) < 1:
                raise TextEnvError(f"demonstrations={demonstrations}: expected at least 1.")
            return self._insert(
                "tasks",
                kind="demonstration",
                prompt=prompt,
                gold=None,
                repeat_of=None,
                judgements=demonstrations,
                priority=as_number(priority, "priority"),
            )

    def add_demonstration(
        self,
        prompt: int,
        texts: str | Sequence[str],
        *,
        annotator: int,
        item: int | None = None,
        supersedes: int | None = None,
    ) -> int:
        """Add a demonstration and return its number.

        Args:
            prompt: Number of the prompt that it answers.
            texts: The answer; after a conversation perhaps also the user's next message, the answer to it, and so on.
            annotator: Number of the annotator who wrote it.
            item: Number of the completion of the prompt that it was edited from.
            supersedes: Number of an earlier one of the same annotator that it replaces.

        Raises:
            TextEnvError: A text is blank, the texts are no answer to the prompt, the item is of another prompt, or the
                earlier one is another annotator's, or was taken back or replaced already.
        """
        with self.transaction():
            self._known("annotators", annotator)
            return self._add_demonstration(prompt, texts, annotator, item=item, supersedes=supersedes)

    def _add_demonstration(
        self,
        prompt: int,
        texts: str | Sequence[str],
        annotator: int,
        *,
        item: int | None = None,
        supersedes: int | None = None,
        assignment: int | None = None,
        seconds: float | None = None,
    ) -> int:
        written = as_answers(texts, self.prompt(prompt))
        if item is not None and self._item(item).prompt != prompt:
            raise TextEnvError(f"item={item}: expected a completion of prompt {prompt}.")
        if supersedes is not None:
            before = self._own_demonstration(supersedes, annotator)
            if (before.prompt, before.assignment) != (prompt, assignment):
                raise TextEnvError(f"Demonstration {supersedes} answers another prompt, or another task.")
        return self._insert(
            "demonstrations",
            prompt=prompt,
            annotator=annotator,
            texts=as_json(written),
            item=item,
            assignment=assignment,
            seconds=seconds,
            supersedes=supersedes,
        )

    def _take_back(self, given: Demonstration) -> None:
        """Add a row that takes back a demonstration."""
        cells = {"prompt": given.prompt, "annotator": given.annotator, "assignment": given.assignment}
        self._insert("demonstrations", **cells, texts="[]", item=None, seconds=None, supersedes=given.id)

    def _own_demonstration(self, number: int, annotator: int) -> Demonstration:
        """Return an annotator's demonstration that was neither taken back nor replaced.

        Raises:
            TextEnvError: There is none, or it is another's.
        """
        found = self.demonstration(number)
        counts = self._one("SELECT id FROM effective_demonstrations WHERE id = ?", number) is not None
        if found.annotator != annotator or not counts:
            raise TextEnvError(
                f"Demonstration {number} is not annotator {annotator}'s, or was taken back or replaced already."
            )
        return found

    def add_reward_model(
        self,
        folder: str | Path,
        *,
        judgements: Sequence[int],
        parent: int | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> int:
        """Add a reward model with the judgements that it was trained on, and return its number; a folder is added once.

        Raises:
            TextEnvError: The folder was added with other judgements.
        """
        with self.transaction() as connection:
            for known in self.reward_models():
                if known.folder == str(folder):
                    if known.judgements != tuple(sorted(judgements)):
                        raise TextEnvError(f"{folder} was added already, trained on other judgements.")
                    return known.id
            number = self._insert("reward_models", folder=str(folder), parent=parent, details=as_json(details))
            connection.executemany("INSERT INTO trained_on VALUES (?, ?)", [(number, j) for j in judgements])
            return number


def as_json(value: Any) -> str:
    """Return a value as the store writes it, None being an empty object; the same for equal values.

    Raises:
        TextEnvError: It is no value of JSON.
    """
    try:
        return to_json({} if value is None else value, ensure_ascii=False, sort_keys=True)
    except (TypeError, RecursionError) as error:
        raise TextEnvError(f"{short(value)}; expected JSON values ({error}).") from error
