"""Reading a feedback store: its records, and how many judgements are done and wanted."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from textenv.feedback.store_database import StoreDatabase
from textenv.feedback.store_records import (
    Annotator,
    Assignment,
    Demonstration,
    Item,
    Judgement,
    Policy,
    Progress,
    RankingTask,
    RewardModelVersion,
)
from textenv.types import Conversation, Ranking, TextEnvError

__all__ = ["COUNTS", "TAKEN", "StoreReader", "judgement_of"]

COUNTS = "(t.kind <> 'demonstration' OR e.verdict <> 'cant_tell')"
"""SQL: whether the judgement ``e`` answers the task ``t``: that somebody cannot write what it asks for is no answer."""
TAKEN = f"""((SELECT count(*) FROM effective AS e WHERE e.task = t.id AND e.annotator <> ? AND {COUNTS})
  + (SELECT count(*) FROM assignments AS o WHERE o.task = t.id AND o.expires > ? AND o.annotator <> ?
     AND NOT EXISTS (SELECT 1 FROM effective AS e WHERE e.assignment = o.id)))"""
"""SQL: how many other annotators have judged the task ``t`` or hold a lease on it. Parameters: annotator, now,
annotator."""


class StoreReader(StoreDatabase):
    """The part of ``FeedbackStore`` that reads."""

    def judgements(
        self,
        *,
        annotators: Sequence[int] | None = None,
        tasks: Sequence[int] | None = None,
        effective: bool = True,
    ) -> list[Judgement]:
        """Return judgements in the order in which they were made.

        Args:
            annotators: Numbers of the annotators whose judgements are returned; None for all.
            tasks: Numbers of the tasks whose judgements are returned; None for all.
            effective: Leave out those that were undone or superseded; False for every row.
        """
        rows = self._rows(f"SELECT * FROM {'effective' if effective else 'judgements'} ORDER BY id")
        return [
            judgement
            for judgement in map(judgement_of, rows)
            if (annotators is None or judgement.annotator in annotators) and (tasks is None or judgement.task in tasks)
        ]

    def rankings(self, judgements: Sequence[Judgement] | None = None) -> list[tuple[Judgement, Ranking]]:
        """Return what a reward model can learn from: the effective judgements that rank completions.

        Args:
            judgements: Which to turn into rankings; None for all but those on gold and repeated tasks, which measure
                annotators.

        Returns:
            Each such judgement with its ranking.
        """
        tasks = {task.id: task for task in self.tasks()}
        if judgements is None:
            judgements = [j for j in self.judgements() if (t := tasks[j.task]).gold is None and t.repeat_of is None]
        texts = {item.id: item.text for item in self.completions()}
        prompts = self.prompts()
        names = {annotator.id: annotator.name for annotator in self.annotators()}
        found = []
        for judgement in judgements:
            task = tasks[judgement.task]
            if judgement.verdict != "ranked" or task.kind != "completion" or task.prompt is None:
                continue
            completions = tuple(texts[item] for item in task.items)
            try:
                ranking = Ranking(prompts[task.prompt], completions, judgement.ranks, names[judgement.annotator])
            except TextEnvError as error:
                raise TextEnvError(f"{self.path}, judgement {judgement.id}: {error}") from error
            found.append((judgement, ranking))
        return found

    def demonstrations(
        self,
        *,
        annotators: Sequence[int] | None = None,
        assignment: int | None = None,
        effective: bool = True,
    ) -> list[Demonstration]:
        """Return demonstrations in the order in which they were written.

        Args:
            annotators: Numbers of the annotators whose demonstrations are returned; None for all.
            assignment: Number of the assignment that they were written at; None for all.
            effective: Leave out those that were taken back or replaced; False for every row.
        """
        if self._version < 2:
            return []
        rows = self._rows(
            f"""SELECT * FROM {"effective_demonstrations" if effective else "demonstrations"}
            WHERE ? IS NULL OR assignment = ? ORDER BY id""",
            assignment, assignment,
        )  # fmt: skip
        found = map(_demonstration, rows)
        return [each for each in found if annotators is None or each.annotator in annotators]

    def demonstration(self, number: int) -> Demonstration:
        """Return a demonstration.

        Raises:
            TextEnvError: There is none with that number.
        """
        self._known("demonstrations", number)
        (row,) = self._rows("SELECT * FROM demonstrations WHERE id = ?", number)
        return _demonstration(row)

    def progress(self, annotator: int | None = None) -> Progress:
        """Return how many judgements are done and wanted, in all or from one annotator."""
        now = self._clock()
        if annotator is None:
            (row,) = self._rows(
                f"""SELECT (SELECT coalesce(sum(judgements), 0) FROM tasks) AS wanted,
                (SELECT count(*) FROM effective AS e JOIN tasks AS t ON t.id = e.task WHERE {COUNTS}) AS done,
                (SELECT count(*) FROM assignments AS a WHERE a.expires > ?
                  AND NOT EXISTS (SELECT 1 FROM effective AS e WHERE e.assignment = a.id)) AS open""",
                now,
            )
            return Progress(int(row["wanted"]), int(row["done"]), int(row["open"]))
        (row,) = self._rows(
            f"""SELECT (SELECT count(*) FROM effective AS e WHERE e.annotator = ?) AS done,
            (SELECT count(*) FROM assignments AS a WHERE a.annotator = ? AND a.expires > ?
              AND NOT EXISTS (SELECT 1 FROM effective AS e WHERE e.assignment = a.id)) AS open,
            (SELECT count(*) FROM tasks AS t WHERE {TAKEN} < t.judgements
              AND NOT EXISTS (SELECT 1 FROM effective AS e WHERE e.task = t.id AND e.annotator = ?)) AS left""",
            annotator, annotator, now, annotator, now, annotator, annotator,
        )  # fmt: skip
        return Progress(int(row["done"]) + int(row["left"]), int(row["done"]), int(row["open"]))

    def revision(self) -> int:
        """Return a number that changes with every judgement: that of the last row, 0 if there is none."""
        (row,) = self._rows("SELECT coalesce(max(id), 0) AS last FROM judgements")
        return int(row["last"])

    def policies(self) -> list[Policy]:
        """Return the versions of policies, in the order in which they were added."""
        return [
            Policy(r["id"], r["name"], r["folder"], r["parent"], r["reward_model"], json.loads(r["details"]))
            for r in self._rows("SELECT * FROM policies ORDER BY id")
        ]

    def prompts(self) -> dict[int, str | Conversation]:
        """Return the prompts by their numbers."""
        rows = self._rows("SELECT id, prompt FROM prompts ORDER BY id")
        return {row["id"]: _prompt(row["prompt"]) for row in rows}

    def prompt(self, number: int) -> str | Conversation:
        """Return a prompt.

        Raises:
            TextEnvError: There is none with that number.
        """
        self._known("prompts", number)
        (row,) = self._rows("SELECT prompt FROM prompts WHERE id = ?", number)
        return _prompt(row["prompt"])

    def completions(self, prompt: int | None = None) -> list[Item]:
        """Return the completions, of one prompt or of all."""
        rows = self._rows("SELECT * FROM items WHERE kind = 'completion' ORDER BY id")
        return [_item(row) for row in rows if prompt is None or row["prompt"] == prompt]

    def clips(self) -> list[Item]:
        """Return the clips."""
        return [_item(row) for row in self._rows("SELECT * FROM items WHERE kind = 'clip' ORDER BY id")]

    def tasks(self) -> list[RankingTask]:
        """Return the tasks, in the order in which they were added."""
        items: dict[int, list[int]] = {}
        for row in self._rows("SELECT task, item FROM task_items ORDER BY task, position"):
            items.setdefault(row["task"], []).append(row["item"])
        return [
            RankingTask(
                id=row["id"],
                kind=row["kind"],
                prompt=row["prompt"],
                items=tuple(items.get(row["id"], ())),
                gold=None if row["gold"] is None else tuple(json.loads(row["gold"])),
                repeat_of=row["repeat_of"],
                judgements=row["judgements"],
                priority=row["priority"],
            )
            for row in self._rows("SELECT * FROM tasks ORDER BY id")
        ]

    def annotators(self) -> list[Annotator]:
        """Return the annotators, in the order in which they were added."""
        rows = self._rows("SELECT * FROM annotators ORDER BY id")
        return [Annotator(row["id"], row["name"], row["kind"], json.loads(row["details"])) for row in rows]

    def reward_models(self) -> list[RewardModelVersion]:
        """Return the reward models with the judgements that they were trained on."""
        judged: dict[int, list[int]] = {}
        for row in self._rows("SELECT reward_model, judgement FROM trained_on ORDER BY judgement"):
            judged.setdefault(row["reward_model"], []).append(row["judgement"])
        return [
            RewardModelVersion(
                row["id"], row["folder"], row["parent"], json.loads(row["details"]), tuple(judged.get(row["id"], ()))
            )
            for row in self._rows("SELECT * FROM reward_models ORDER BY id")
        ]

    def signed_out(self, annotator: int) -> int:
        """Return how often an annotator has signed out on the page."""
        row = self._one("SELECT details FROM annotators WHERE id = ?", annotator)
        return 0 if row is None else int(json.loads(row["details"]).get("signed_out", 0))

    def assignment(self, number: int) -> Assignment:
        """Return an assignment, open or not.

        Raises:
            TextEnvError: There is none with that number.
        """
        row = self._one(
            """SELECT a.*, t.kind, p.prompt, p.columns FROM assignments AS a JOIN tasks AS t ON t.id = a.task
            LEFT JOIN prompts AS p ON p.id = t.prompt WHERE a.id = ?""",
            number,
        )
        if row is None:
            raise TextEnvError(f"assignment={number}: there is no assignment with that number.")
        listed = self._rows(
            "SELECT i.* FROM task_items AS l JOIN items AS i ON i.id = l.item WHERE l.task = ? ORDER BY l.position",
            row["task"],
        )
        items = [_item(one) for one in listed]
        return Assignment(
            id=row["id"],
            annotator=row["annotator"],
            task=row["task"],
            kind=row["kind"],
            prompt=None if row["prompt"] is None else _prompt(row["prompt"]),
            columns={} if row["columns"] is None else json.loads(row["columns"]),
            items=tuple(items[place] for place in json.loads(row["display"])),
            expires=row["expires"],
        )

    def last_judgement(self, annotator: int) -> int | None:
        """Return the number of an annotator's last judgement that was not undone; None if there is none."""
        row = self._one("SELECT id FROM effective WHERE annotator = ? ORDER BY id DESC LIMIT 1", annotator)
        return None if row is None else int(row["id"])

    def _item(self, number: int) -> Item:
        self._known("items", number)
        (row,) = self._rows("SELECT * FROM items WHERE id = ?", number)
        return _item(row)

    def _last(self, assignment: int) -> Judgement | None:
        row = self._one("SELECT * FROM judgements WHERE assignment = ? ORDER BY id DESC LIMIT 1", assignment)
        return None if row is None else judgement_of(row)


def _prompt(stored: str) -> str | Conversation:
    prompt = json.loads(stored)
    return tuple(prompt) if isinstance(prompt, list) else str(prompt)


def _item(row: sqlite3.Row) -> Item:
    return Item(
        id=row["id"],
        kind=row["kind"],
        prompt=row["prompt"],
        text=row["text"],
        path=row["path"],
        scene=row["scene"],
        policy=row["policy"],
        details=json.loads(row["details"]),
    )


def _demonstration(row: sqlite3.Row) -> Demonstration:
    return Demonstration(
        id=row["id"],
        prompt=row["prompt"],
        annotator=row["annotator"],
        texts=tuple(json.loads(row["texts"])),
        item=row["item"],
        assignment=row["assignment"],
        seconds=row["seconds"],
        supersedes=row["supersedes"],
        created=row["created"],
    )


def judgement_of(row: sqlite3.Row) -> Judgement:
    """Return the record of a row of the table of judgements."""
    return Judgement(
        id=row["id"],
        assignment=row["assignment"],
        task=row["task"],
        annotator=row["annotator"],
        ranks=tuple(json.loads(row["ranks"])),
        verdict=row["verdict"],
        confidence=row["confidence"],
        note=row["note"],
        seconds=row["seconds"],
        supersedes=row["supersedes"],
        created=row["created"],
    )
