"""The store of human feedback: one SQLite file that several processes can use at once without losing a judgement.

- A *policy* is a version of a language model, with the reward model that it was trained against.
- An *item* is what is judged: a *completion* of a *prompt*, or a *clip* of behavior in a control task.
- A *task* asks to rank two to nine items. A gold task comes with the right ranks; a repeated task has the items of an
  earlier one.
- An *assignment* is a task that an *annotator* has been given for a limited time (a lease), with its items in an order
  that is drawn for this assignment.
- A *judgement* is the annotator's answer. Judgements are only ever added: undoing one adds a row that supersedes it.
- A *demonstration* is an answer to a prompt that an annotator has written, at a task that asks for nothing else, or
  beside a ranking. Demonstrations are only ever added too.
- A *reward model* is stored with the judgements that it was trained on.

The records are in ``store_records``, the tables in ``store_schema``, the file and its connections in
``store_database``, reading in ``store_reading``, adding what is to be judged in ``store_adding``; this file gives out
tasks and takes judgements.
"""

from __future__ import annotations

import json
import random
import sqlite3
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from textenv.data.values import as_number, as_ranks, as_text, as_whole_number, short
from textenv.feedback.store_adding import StoreWriter, as_json
from textenv.feedback.store_reading import COUNTS, TAKEN, judgement_of
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
    TaskKind,
    Verdict,
    annotator_name,
    as_answers,
)
from textenv.types import TextEnvError

__all__ = [
    "Annotator",
    "Assignment",
    "Demonstration",
    "FeedbackStore",
    "Item",
    "Judgement",
    "Policy",
    "Progress",
    "RankingTask",
    "RewardModelVersion",
    "TaskKind",
    "Verdict",
    "annotator_name",
]


class FeedbackStore(StoreWriter):
    """The store in a file; safe to use from several threads and several processes at once.

    When a method returns, what it wrote is on disk: it survives if the process or the machine dies afterwards.
    """

    def annotator(
        self,
        name: str,
        kind: Literal["person", "program"] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> int:
        """Return the number of the annotator with a name, who is added if there is none yet.

        Args:
            name: Stored in the form that ``annotator_name`` returns.
            kind: What the annotator must be. None accepts either kind, and adds a person.
            details: Further JSON values, stored if the annotator is added.

        Raises:
            TextEnvError: The name is empty, or the annotator of that name is of the other kind.
        """
        name = annotator_name(name)
        if not name:
            raise TextEnvError("An annotator needs a name.")
        if (known := self._annotator(name)) is None:
            with self.transaction():
                known = self._annotator(name)  # another process may have added it meanwhile
                if known is None:
                    return self._insert("annotators", name=name, kind=kind or "person", details=as_json(details))
        if kind is not None and known["kind"] != kind:
            raise TextEnvError(
                f"{name!r} is the name of a {known['kind']} in {self.path}; give the {kind} another name."
            )
        return int(known["id"])

    def _annotator(self, name: str) -> sqlite3.Row | None:
        decomposed = unicodedata.normalize("NFD", name)  # stores of earlier versions may hold this form
        return self._one("SELECT * FROM annotators WHERE name IN (?, ?) ORDER BY id LIMIT 1", name, decomposed)

    def sign_out(self, annotator: int) -> None:
        """Count that an annotator has signed out on the page, which ends every earlier session of theirs."""
        with self.transaction() as connection:
            self._known("annotators", annotator)
            connection.execute(
                "UPDATE annotators SET details = json_set(details, '$.signed_out', ?) WHERE id = ?",
                (self.signed_out(annotator) + 1, annotator),
            )

    def lease(
        self,
        annotator: int,
        *,
        seconds: float = 600.0,
        rng: random.Random | None = None,
        kinds: Collection[TaskKind] = ("completion", "clip", "demonstration"),
    ) -> Assignment | None:
        """Give an annotator a task to judge, for a limited time.

        A task that they were given before and have not judged comes first, with its items in the same order, as long
        as it still needs a judgement. A repeated task waits until the annotator has judged the task that it repeats.

        Args:
            annotator: Number of the annotator.
            seconds: How long no other annotator is given the task in their place.
            rng: Draws the order in which the items are shown; None for an order that nobody can predict.
            kinds: Of what kinds the task may be.

        Returns:
            The assignment; None if there is nothing left for this annotator.
        """
        self._known("annotators", annotator)
        as_number(seconds, "seconds")
        now, among = self._clock(), as_json(list(kinds))
        with self.transaction() as connection:
            number = self._open_assignment(annotator, now, among)
            if number is None:
                number = self._next_assignment(annotator, now, rng, among)
            if number is None:
                return None
            connection.execute("UPDATE assignments SET expires = ? WHERE id = ?", (now + seconds, number))
            return self.assignment(number)

    def _open_assignment(self, annotator: int, now: float, kinds: str) -> int | None:
        """Return the annotator's latest assignment that is not judged and whose task still needs a judgement."""
        row = self._one(
            f"""SELECT a.id FROM assignments AS a JOIN tasks AS t ON t.id = a.task
            WHERE a.annotator = ? AND a.expires > 0 AND t.kind IN (SELECT value FROM json_each(?))
            AND NOT EXISTS (SELECT 1 FROM effective AS e WHERE e.assignment = a.id) AND {TAKEN} < t.judgements
            ORDER BY a.expires DESC LIMIT 1""",
            annotator, kinds, annotator, now, annotator,
        )  # fmt: skip
        return None if row is None else int(row["id"])

    def _next_assignment(self, annotator: int, now: float, rng: random.Random | None, kinds: str) -> int | None:
        """Return the annotator's assignment to the next task for them, which is added if need be."""
        task = self._one(
            f"""SELECT t.id FROM tasks AS t WHERE {TAKEN} < t.judgements
            AND NOT EXISTS (SELECT 1 FROM effective AS e WHERE e.task = t.id AND e.annotator = ?)
            AND t.kind IN (SELECT value FROM json_each(?))
            AND (t.repeat_of IS NULL
              OR EXISTS (SELECT 1 FROM effective AS e WHERE e.task = t.repeat_of AND e.annotator = ?))
            ORDER BY t.priority DESC, t.id LIMIT 1""",
            annotator, now, annotator, annotator, kinds, annotator,
        )  # fmt: skip
        if task is None:
            return None
        row = self._one("SELECT id FROM assignments WHERE task = ? AND annotator = ?", task["id"], annotator)
        return self._assign(int(task["id"]), annotator, rng) if row is None else int(row["id"])

    def _assign(self, task: int, annotator: int, rng: random.Random | None) -> int:
        order = list(range(len(self._rows("SELECT item FROM task_items WHERE task = ?", task))))
        (rng or random.SystemRandom()).shuffle(order)
        return self._insert("assignments", task=task, annotator=annotator, display=as_json(order), expires=0.0)

    def renew(self, assignment: int, *, seconds: float = 600.0) -> None:
        """Extend the lease of an assignment.

        Raises:
            TextEnvError: It was judged, or its lease ran out and others have judged its task.
        """
        now = self._clock()
        with self.transaction() as connection:
            self._check_open(assignment, now)
            connection.execute("UPDATE assignments SET expires = ? WHERE id = ?", (now + seconds, assignment))

    def release(self, assignment: int) -> None:
        """End the lease of an assignment, so that others can be given its task at once."""
        with self.transaction() as connection:
            self.assignment(assignment)
            connection.execute("UPDATE assignments SET expires = 0 WHERE id = ?", (assignment,))

    def judge(
        self,
        assignment: int,
        ranks: Sequence[int | None],
        *,
        verdict: Verdict = "ranked",
        confidence: int | None = None,
        note: str = "",
        seconds: float | None = None,
    ) -> int:
        """Store a judgement and return its number. When this returns, it is on disk.

        A judgement that is stored already is not stored again. A judgement is also accepted after the lease has run
        out, as long as the task still needs one.

        Args:
            assignment: Number of the assignment that is answered.
            ranks: Ranks of the items, in the order in which they were shown; see ``textenv.types.Ranking``. Ignored
                unless the verdict is ``"ranked"``.
            verdict: ``"ranked"``, ``"both_bad"`` (none is of any use), or ``"cant_tell"``.
            confidence: From 1 to 5, or None.
            note: A remark of the annotator's.
            seconds: How long the judgement took.

        Raises:
            TextEnvError: A value is not such, the assignment was judged already in another way, or its lease ran out
                and others have judged its task.
        """
        _check_answer(verdict, confidence, note, seconds)
        with self.transaction():
            given = self.assignment(assignment)
            if given.kind == "demonstration" and verdict != "cant_tell":
                raise TextEnvError(f"Assignment {assignment} asks for a demonstration; write one, or say 'cant_tell'.")
            stored: tuple[int | None, ...] = (None,) * len(given.items)
            if verdict == "ranked":
                stored = self._in_task_order(assignment, as_ranks(ranks, len(given.items)))
            last = self._last(assignment)
            if last is not None and last.verdict != "undone":
                if (last.ranks, last.verdict, last.confidence, last.note) == (stored, verdict, confidence, note):
                    return last.id
                raise TextEnvError(
                    f"Assignment {assignment} was judged already, in another way; undo that first to change it."
                )
            self._check_open(assignment, self._clock())
            return self._add_judgement(
                given, last, ranks=as_json(stored), verdict=verdict, confidence=confidence, note=note, seconds=seconds
            )

    def _add_judgement(
        self,
        given: Assignment,
        last: Judgement | None,
        *,
        ranks: str,
        verdict: str,
        confidence: int | None = None,
        note: str = "",
        seconds: float | None = None,
    ) -> int:
        return self._insert(
            "judgements",
            assignment=given.id,
            task=given.task,
            annotator=given.annotator,
            ranks=ranks,
            verdict=verdict,
            confidence=confidence,
            note=note,
            seconds=seconds,
            supersedes=None if last is None else last.id,
        )

    def demonstrate(
        self,
        assignment: int,
        texts: str | Sequence[str],
        *,
        item: int | None = None,
        supersedes: int | None = None,
        seconds: float | None = None,
    ) -> int:
        """Store a demonstration that was written at an assignment, and return its number.

        It answers a task that asks for one. At a ranking there may be several beside it, and they leave it as it is.
        What is stored already is not stored again.

        Args:
            assignment: Number of the assignment.
            texts: The answer; after a conversation perhaps also the user's next message, the answer to it, and so on.
            item: Number of the item of the task that it was edited from.
            supersedes: Number of the annotator's demonstration at this assignment that it replaces.
            seconds: How long the writing took.

        Raises:
            TextEnvError: As ``add_demonstration``; or the task is about clips; or it asks for a demonstration, and was
                answered already in another way, or its lease ran out and others have answered it.
        """
        _check_seconds(seconds)
        with self.transaction():
            given = self.assignment(assignment)
            (row,) = self._rows("SELECT prompt FROM tasks WHERE id = ?", given.task)
            prompt = row["prompt"]
            if given.kind == "clip":
                raise TextEnvError(f"Assignment {assignment} is about clips, which nobody can write.")
            written = as_answers(texts, self.prompt(prompt))
            last = self._last(assignment)
            for known in self.demonstrations(assignment=assignment):
                if (known.texts, known.item) == (written, item) and supersedes in (None, known.id, known.supersedes):
                    return known.id
            if given.kind == "demonstration":
                if last is not None and last.verdict != "undone":
                    raise TextEnvError(
                        f"Assignment {assignment} was answered already, in another way; undo that first to change it."
                    )
                self._check_open(assignment, self._clock())
                self._add_judgement(given, last, ranks="[]", verdict="written", seconds=seconds)
            return self._add_demonstration(
                prompt,
                written,
                given.annotator,
                item=item,
                supersedes=supersedes,
                assignment=assignment,
                seconds=seconds,
            )

    def take_back(self, demonstration: int, annotator: int) -> None:
        """Take back a demonstration: a row that supersedes it is added. One that was taken back already stays so.

        Args:
            demonstration: Its number.
            annotator: Number of the annotator who wrote it.

        Raises:
            TextEnvError: It is another annotator's, or was replaced, or it answers a task: undo that.
        """
        with self.transaction():
            later = self._one("SELECT texts FROM demonstrations WHERE supersedes = ?", demonstration)
            if (
                later is not None
                and later["texts"] == "[]"
                and self.demonstration(demonstration).annotator == annotator
            ):
                return
            given = self._own_demonstration(demonstration, annotator)
            if given.assignment is not None and self.assignment(given.assignment).kind == "demonstration":
                raise TextEnvError(f"Demonstration {demonstration} answers a task; undo that answer to take it back.")
            self._take_back(given)

    def _in_task_order(self, assignment: int, ranks: Sequence[int | None]) -> tuple[int | None, ...]:
        """Return ranks, given in the order in which the items were shown, in the order of the task's items."""
        (row,) = self._rows("SELECT display FROM assignments WHERE id = ?", assignment)
        by_place = dict(zip(json.loads(row["display"]), ranks, strict=True))
        return tuple(by_place[place] for place in range(len(ranks)))

    def record(self, task: int, annotator: int, ranks: Sequence[int | None]) -> int:
        """Store a ranking that was made elsewhere, in the order of the task's items, and return its number.

        Raises:
            TextEnvError: ``ranks`` are not ranks of these items, or the annotator has an assignment of the task here.
        """
        with self.transaction():
            self._known("tasks", task)
            self._known("annotators", annotator)
            items = self._rows("SELECT item FROM task_items WHERE task = ?", task)
            if not items:
                raise TextEnvError(f"Task {task} asks for a demonstration, not for a ranking.")
            ranks = as_ranks(ranks, len(items))
            if self._one("SELECT id FROM assignments WHERE task = ? AND annotator = ?", task, annotator):
                raise TextEnvError(f"Annotator {annotator} has been given task {task} already.")
            display, expires = as_json(list(range(len(ranks)))), self._clock() + 60.0
            number = self._insert("assignments", task=task, annotator=annotator, display=display, expires=expires)
            return self.judge(number, ranks)

    def undo(self, annotator: int, *, judgement: int | None = None, seconds: float = 600.0) -> Assignment | None:
        """Undo an annotator's last judgement, and give them the same assignment again.

        Nothing is deleted: a row that supersedes the judgement is added. Another assignment that they have is released.

        Args:
            annotator: Number of the annotator.
            judgement: Number of the judgement to undo, so that a request that is sent twice does not undo the judgement
                before it as well; None for the last one.
            seconds: How long no other annotator is given the task.

        Returns:
            The assignment, with its items in the same order; None if there is nothing to undo.

        Raises:
            TextEnvError: ``judgement`` is not the annotator's last.
        """
        with self.transaction() as connection:
            row = self._one("SELECT * FROM effective WHERE annotator = ? ORDER BY id DESC LIMIT 1", annotator)
            if judgement is not None and (row is None or row["id"] != judgement):
                if self._one("SELECT id FROM effective WHERE id = ?", judgement):
                    raise TextEnvError(
                        f"Judgement {judgement} is not the last of annotator {annotator}: there are newer ones. "
                        "Undo those first."
                    )
                self._known("judgements", judgement)
                return None
            if row is None:
                return None
            last = judgement_of(row)
            given = self.assignment(last.assignment)
            self._add_judgement(given, last, ranks=as_json([None] * len(last.ranks)), verdict="undone")
            if last.verdict == "written":
                for written in self.demonstrations(assignment=last.assignment):
                    self._take_back(written)
            connection.execute("UPDATE assignments SET expires = 0 WHERE annotator = ?", (annotator,))
            expires = self._clock() + seconds
            connection.execute("UPDATE assignments SET expires = ? WHERE id = ?", (expires, last.assignment))
            return self.assignment(last.assignment)

    def _check_open(self, assignment: int, now: float) -> None:
        given = self.assignment(assignment)
        last = self._last(assignment)
        if last is not None and last.verdict != "undone":
            raise TextEnvError(f"Assignment {assignment} was judged already.")
        if given.expires > now:
            return
        (row,) = self._rows(
            f"""SELECT t.judgements, (SELECT count(*) FROM effective AS e WHERE e.task = t.id AND {COUNTS}) AS done
            FROM tasks AS t WHERE t.id = ?""",
            given.task,
        )
        if row["done"] >= row["judgements"]:
            raise TextEnvError(f"Assignment {assignment} ran out, and others have judged its task since.")


def _check_answer(verdict: str, confidence: int | None, note: str, seconds: float | None) -> None:
    if verdict not in ("ranked", "both_bad", "cant_tell"):
        raise TextEnvError(f"verdict={short(verdict)}: expected 'ranked', 'both_bad' or 'cant_tell'.")
    if confidence is not None and as_whole_number(confidence, "confidence", 6) < 1:
        raise TextEnvError(f"confidence={confidence!r}: expected 1 to 5, or None.")
    _check_seconds(seconds)
    as_text(note, "note")


def _check_seconds(seconds: float | None) -> None:
    if seconds is not None and as_number(seconds, "seconds") < 0:
        raise TextEnvError(f"seconds={seconds!r}: expected a number of seconds, or None.")
