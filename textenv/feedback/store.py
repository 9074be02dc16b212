"""The store of human feedback: one SQLite file that several processes may use at once and that loses nothing.

- A *policy* is a version of a language model, with the reward model that it was trained against.
- An *item* is what is judged: a *completion* of a *prompt*, or a *clip* of behaviour in a control task.
- A *task* asks to rank two to nine items. Some know the right answer (gold), some repeat an earlier task.
- An *assignment* is a task that an *annotator* has been given, its items in an order of their own, on a lease.
- A *judgement* is what the annotator said. Judgements are only ever added: undoing one adds a row that supersedes it.
- A *reward model* remembers the judgements that it was trained on.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import sqlite3
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

from textenv.data.files import to_json
from textenv.types import Conversation, Ranking, TextEnvError

__all__ = [
    "Annotator",
    "Assignment",
    "FeedbackStore",
    "Item",
    "Judgement",
    "Policy",
    "Progress",
    "RewardModelVersion",
    "Task",
    "Verdict",
    "annotator_name",
]

Verdict: TypeAlias = Literal["ranked", "both_bad", "cant_tell"]
Ranks: TypeAlias = tuple[int | None, ...]

_APPLICATION = 0x74786676  # "txfv", in the header of the file
_VERSION = 1
_IDLE = 8  # connections that are kept open for the next who needs one
_TIMEOUT = 60.0  # seconds that a statement waits for another's transaction
_SCHEMA = """
CREATE TABLE reward_models (
  id INTEGER PRIMARY KEY, folder TEXT NOT NULL UNIQUE, parent INTEGER REFERENCES reward_models, details TEXT NOT NULL,
  created REAL NOT NULL);
CREATE TABLE policies (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, folder TEXT NOT NULL, parent INTEGER REFERENCES policies,
  reward_model INTEGER REFERENCES reward_models, details TEXT NOT NULL, created REAL NOT NULL);
CREATE TABLE prompts (
  id INTEGER PRIMARY KEY, prompt TEXT NOT NULL, columns TEXT NOT NULL, created REAL NOT NULL, UNIQUE (prompt, columns));
CREATE TABLE items (
  id INTEGER PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('completion', 'clip')), prompt INTEGER REFERENCES prompts,
  text TEXT NOT NULL, path TEXT NOT NULL, scene TEXT NOT NULL, policy INTEGER REFERENCES policies,
  details TEXT NOT NULL, created REAL NOT NULL);
CREATE TABLE tasks (
  id INTEGER PRIMARY KEY, kind TEXT NOT NULL, prompt INTEGER REFERENCES prompts, gold TEXT,
  repeat_of INTEGER REFERENCES tasks, judgements INTEGER NOT NULL CHECK (judgements > 0), priority REAL NOT NULL,
  created REAL NOT NULL);
CREATE TABLE task_items (
  task INTEGER NOT NULL REFERENCES tasks, position INTEGER NOT NULL, item INTEGER NOT NULL REFERENCES items,
  PRIMARY KEY (task, position)) WITHOUT ROWID;
CREATE TABLE annotators (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, kind TEXT NOT NULL CHECK (kind IN ('person', 'program')),
  details TEXT NOT NULL, created REAL NOT NULL);
CREATE TABLE assignments (
  id INTEGER PRIMARY KEY, task INTEGER NOT NULL REFERENCES tasks, annotator INTEGER NOT NULL REFERENCES annotators,
  display TEXT NOT NULL, expires REAL NOT NULL, created REAL NOT NULL, UNIQUE (task, annotator));
CREATE TABLE judgements (
  id INTEGER PRIMARY KEY, assignment INTEGER NOT NULL REFERENCES assignments, task INTEGER NOT NULL REFERENCES tasks,
  annotator INTEGER NOT NULL REFERENCES annotators, ranks TEXT NOT NULL,
  verdict TEXT NOT NULL CHECK (verdict IN ('ranked', 'both_bad', 'cant_tell', 'undone')), confidence INTEGER,
  note TEXT NOT NULL, seconds REAL, supersedes INTEGER UNIQUE REFERENCES judgements, created REAL NOT NULL);
CREATE TABLE trained_on (
  reward_model INTEGER NOT NULL REFERENCES reward_models, judgement INTEGER NOT NULL REFERENCES judgements,
  PRIMARY KEY (reward_model, judgement)) WITHOUT ROWID;
CREATE INDEX judgements_by_assignment ON judgements (assignment);
CREATE INDEX judgements_by_task ON judgements (task);
CREATE INDEX assignments_by_annotator ON assignments (annotator);
CREATE TRIGGER judgements_stay BEFORE UPDATE ON judgements
  BEGIN SELECT RAISE(ABORT, 'judgements are never changed'); END;
CREATE TRIGGER judgements_are_kept BEFORE DELETE ON judgements
  BEGIN SELECT RAISE(ABORT, 'judgements are never deleted'); END;
CREATE VIEW effective AS SELECT * FROM judgements AS j WHERE verdict <> 'undone'
  AND NOT EXISTS (SELECT 1 FROM judgements AS later WHERE later.supersedes = j.id);
"""


@dataclass(frozen=True, slots=True)
class Policy:
    """A version of a policy: where it is, where it came from, and the reward model it was trained against."""

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
        policy: Number of the policy that made it, if known.
        details: Whatever else is known of it.
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
class Task:
    """Items to be ranked against each other.

    Attributes:
        id: Its number.
        kind: Of its items.
        prompt: Number of the prompt that they complete.
        items: Their numbers, two to nine.
        gold: The right ranks, if they are known, in the order of ``items``.
        repeat_of: The task that it repeats, for the annotators who have judged that one.
        judgements: From how many annotators a judgement is wanted.
        priority: Tasks of higher priority come first.
    """

    id: int
    kind: Literal["completion", "clip"]
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
        annotator: Whose it is.
        task: What is asked.
        kind: Of the items.
        prompt: What the completions complete; None for clips.
        columns: The prompt's other columns.
        items: In the order in which they are shown.
        expires: When it may be given to others, in seconds since 1970.
    """

    id: int
    annotator: int
    task: int
    kind: Literal["completion", "clip"]
    prompt: str | Conversation | None
    columns: Mapping[str, Any]
    items: tuple[Item, ...]
    expires: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """What an annotator said of a task.

    Attributes:
        id: Its number.
        assignment: What was answered.
        task: The task of that.
        annotator: Who judged.
        ranks: As in ``textenv.types.Ranking``, in the order of the task's items; all None unless ``"ranked"``.
        verdict: ``"ranked"``, ``"both_bad"``, ``"cant_tell"``, or ``"undone"`` for a row that takes another back.
        confidence: From 1, a guess, to 5, if it was said.
        note: In the annotator's words.
        seconds: How long it took, if known.
        supersedes: Number of the judgement whose place it takes.
        created: When, in seconds since 1970.
    """

    id: int
    assignment: int
    task: int
    annotator: int
    ranks: Ranks
    verdict: Verdict | Literal["undone"]
    confidence: int | None
    note: str
    seconds: float | None
    supersedes: int | None
    created: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the judging is.

    Attributes:
        wanted: Judgements wanted in all; of one annotator, those that they have made and those they could still make.
        done: Judgements made.
        open: Assignments that are out now.
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
    """Return an annotator's name as a store keeps it: composed (NFC), and with single spaces between its words.

    Names that look the same because a keyboard composes "é" and another does not are one name.
    """
    return " ".join(unicodedata.normalize("NFC", name).split())


class _ForwardClock:
    """A clock that never goes back: where the machine's clock is set back, elapsed time is counted instead."""

    def __init__(self, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._clock, self._monotonic = clock, monotonic
        self._lock = threading.Lock()
        self._last, self._at = clock(), monotonic()

    def __call__(self) -> float:
        with self._lock:
            now, at = self._clock(), self._monotonic()
            self._last = now if now >= self._last else self._last + (at - self._at)
            self._at = at
            return self._last

    def start_from(self, moment: float) -> None:
        """Begin no earlier than a moment that has been."""
        with self._lock:
            self._last = max(self._last, moment)


class FeedbackStore:
    """The store in a file; safe to use from several threads and several processes at once.

    What a method returns from is on disk: a process or machine that dies later loses nothing of it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        create: bool = True,
        read_only: bool = False,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open a store.

        Args:
            path: The file.
            create: Make it if it is missing.
            read_only: Only read it: nothing in its folder is made or changed, which need not be writable.
            clock: Tells the time in seconds since 1970. Where it goes back, also while no store was open, the store's
                time goes on from the latest time that it knows, so that leases end when they should.
            monotonic: Tells elapsed seconds, for that case.

        Raises:
            TextEnvError: The file is missing or cannot be read, or is something else.
        """
        self.path = Path(path)
        self._clock = _ForwardClock(clock, monotonic)
        self._read_only = read_only
        self._local = threading.local()
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = False
        if (read_only or not create) and not self.path.exists():
            raise TextEnvError(
                f"{self.path}: there is no such store. Make one with 'textenv feedback import' or 'textenv feedback "
                "add', or check the name."
            )
        try:
            if read_only:
                if not self._is_made():
                    raise TextEnvError(f"{self.path} is empty; expected a store of feedback that textenv made.")
            else:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._prepare()
        except (sqlite3.Error, OSError) as error:
            self.close()
            expected = "." if read_only else ", or a new name in a folder that can be written."
            raise TextEnvError(
                f"{self.path} cannot be used as a store of feedback ({error}); expected a file that textenv made"
                + expected
            ) from error
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        if not self._is_made():
            with self.transaction() as connection:
                if not self._is_made():  # another process may have been faster
                    for statement in _statements(_SCHEMA):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                    connection.execute(f"PRAGMA user_version = {_VERSION}")
        for table in ("tasks", "annotators", "assignments", "judgements"):
            if newest := self._one(f"SELECT created FROM {table} ORDER BY id DESC LIMIT 1"):
                self._clock.start_from(newest["created"])

    def _is_made(self) -> bool:
        """Return whether the file is a store; False if it is empty. It takes no lock for writing.

        Raises:
            TextEnvError: It is something else.
        """
        with self._connection() as connection:
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not tables:
                return False
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application != _APPLICATION or version != _VERSION:
            what = f"version {version}" if application == _APPLICATION else "some other database"
            raise TextEnvError(f"{self.path} is {what}, not a store of feedback of version {_VERSION}.")
        return True

    def close(self) -> None:
        """Close the store; it is of no further use. A thread that is inside a call finishes it."""
        with self._lock:
            self._closed = True
            for connection in self._idle:
                connection.close()
            self._idle.clear()

    def __enter__(self) -> FeedbackStore:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Have all that is written inside take place as one, or not at all; others wait so long.

        Nothing that takes long belongs inside: whoever else writes waits a minute at most.

        Yields:
            The connection that this thread writes through.

        Raises:
            TextEnvError: Another process has been writing for too long.
        """
        with self._connection() as connection:
            if connection.in_transaction:  # inside another
                yield connection
                return
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                    raise
                raise TextEnvError(
                    f"{self.path}: another program has been writing for {_TIMEOUT:g} seconds. Try again later."
                ) from error
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    # -- what is shown -------------------------------------------------------------------------------------------

    def add_policy(
        self,
        name: str,
        *,
        folder: str = "",
        parent: int | None = None,
        reward_model: int | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> int:
        """Add a version of a policy and return its number; one of the same name must be the same.

        Raises:
            TextEnvError: Another policy has the name.
        """
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
                details=_written(details),
            )

    def add_prompt(self, prompt: str | Conversation, *, columns: Mapping[str, Any] | None = None) -> int:
        """Add a prompt and return its number, which is the same for the same prompt and columns."""
        given = _written(prompt if isinstance(prompt, str) else [dict(message) for message in prompt])
        others = _written(columns)
        with self.transaction():
            found = self._one("SELECT id FROM prompts WHERE prompt = ? AND columns = ?", given, others)
            return int(found["id"]) if found else self._insert("prompts", prompt=given, columns=others)

    def add_completion(
        self, prompt: int, text: str, *, policy: int | None = None, details: Mapping[str, Any] | None = None
    ) -> int:
        """Add a completion of a prompt and return its number."""
        self._known("prompts", prompt)
        return self._add_item("completion", policy, details, prompt=prompt, text=text)

    def add_clip(
        self, path: str | Path, *, task: str, policy: int | None = None, details: Mapping[str, Any] | None = None
    ) -> int:
        """Add a clip and return its number.

        Args:
            path: Its video or animated picture, or the folder that holds that.
            task: Name of the control task that it shows.
            policy: Number of the policy that behaved so.
            details: Whatever else is known of it, JSON values.
        """
        return self._add_item("clip", policy, details, path=str(path), scene=task)

    def _add_item(self, kind: str, policy: int | None, details: Mapping[str, Any] | None, **cells: Any) -> int:
        if policy is not None:
            self._known("policies", policy)
        empty: dict[str, Any] = {"prompt": None, "text": "", "path": "", "scene": ""}
        return self._insert("items", kind=kind, policy=policy, details=_written(details), **{**empty, **cells})

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
            items: Two to nine of them: completions of one prompt, or clips of one control task.
            kind: What they are.
            gold: The right ranks, if they are known.
            repeat_of: A task that this one repeats; it is given to those who have judged that one.
            judgements: From how many annotators a judgement is wanted.
            priority: Tasks of higher priority are given first.

        Raises:
            TextEnvError: The items are not such, or gold ranks are no ranks.
        """
        with self.transaction() as connection:
            found = [self._item(item) for item in items]
            if not 2 <= len(set(items)) == len(items) <= 9:
                raise TextEnvError(f"items={list(items)}: expected two to nine different ones.")
            if {item.kind for item in found} != {kind} or len({(item.prompt, item.scene) for item in found}) > 1:
                raise TextEnvError(f"items={list(items)}: expected items of kind {kind!r}, of the same prompt or task.")
            if gold is not None:
                _check_ranks(gold, len(items))
            if repeat_of is not None:
                self._known("tasks", repeat_of)
            if judgements < 1 or not math.isfinite(priority):
                raise TextEnvError(f"judgements={judgements}, priority={priority}: expected at least 1, and a number.")
            task = self._insert(
                "tasks",
                kind=kind,
                prompt=found[0].prompt,
                gold=None if gold is None else _written(list(gold)),
                repeat_of=repeat_of,
                judgements=judgements,
                priority=priority,
            )
            rows = [(task, position, item) for position, item in enumerate(items)]
            connection.executemany("INSERT INTO task_items VALUES (?, ?, ?)", rows)
            return task

    # -- who judges ----------------------------------------------------------------------------------------------

    def annotator(
        self,
        name: str,
        kind: Literal["person", "program"] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> int:
        """Return the number of the annotator of a name, who is added if there is none yet.

        Args:
            name: Kept as ``annotator_name`` writes it.
            kind: What the annotator must be; None for either, and for a person who is added.
            details: Of one who is added.

        Raises:
            TextEnvError: The name is empty, or the annotator of that name is of the other kind.
        """
        name = annotator_name(name)
        if not name:
            raise TextEnvError("An annotator needs a name.")
        if (known := self._annotator(name)) is None:
            with self.transaction():
                known = self._annotator(name)  # another process may have been faster
                if known is None:
                    return self._insert("annotators", name=name, kind=kind or "person", details=_written(details))
        if kind is not None and known["kind"] != kind:
            raise TextEnvError(
                f"{name!r} is the name of a {known['kind']} in {self.path}; give the {kind} another name."
            )
        return int(known["id"])

    def _annotator(self, name: str) -> sqlite3.Row | None:
        decomposed = unicodedata.normalize("NFD", name)  # as older stores may have it
        return self._one("SELECT * FROM annotators WHERE name IN (?, ?) ORDER BY id LIMIT 1", name, decomposed)

    def sign_out(self, annotator: int) -> None:
        """Count that an annotator has signed out at the page: what let them in before does so no longer."""
        with self.transaction() as connection:
            self._known("annotators", annotator)
            connection.execute(
                "UPDATE annotators SET details = json_set(details, '$.signed_out', ?) WHERE id = ?",
                (self.signed_out(annotator) + 1, annotator),
            )

    def signed_out(self, annotator: int) -> int:
        """Return how often an annotator has signed out at the page."""
        row = self._one("SELECT details FROM annotators WHERE id = ?", annotator)
        return 0 if row is None else int(json.loads(row["details"]).get("signed_out", 0))

    def lease(self, annotator: int, *, seconds: float = 600.0, rng: random.Random | None = None) -> Assignment | None:
        """Give an annotator something to judge, for a while.

        What they were given before and have not judged comes first, in the order in which it was shown, as long as
        nobody else has judged it since. A repeated task waits until the annotator has judged the one that it repeats.

        Args:
            annotator: Who.
            seconds: How long nobody else is given it.
            rng: Draws the order of display; None for one that nobody can guess.

        Returns:
            None if nothing is left for them.
        """
        self._known("annotators", annotator)
        now = self._clock()
        with self.transaction() as connection:
            mine = self._one(
                f"""SELECT a.id FROM assignments AS a JOIN tasks AS t ON t.id = a.task
                WHERE a.annotator = ? AND a.expires > 0
                AND NOT EXISTS (SELECT 1 FROM effective AS e WHERE e.assignment = a.id) AND {_TAKEN} < t.judgements
                ORDER BY a.expires DESC LIMIT 1""",
                annotator, annotator, now, annotator,
            )  # fmt: skip
            if mine is None:
                task = self._one(
                    f"""SELECT t.id FROM tasks AS t WHERE {_TAKEN} < t.judgements
                    AND NOT EXISTS (SELECT 1 FROM effective AS e WHERE e.task = t.id AND e.annotator = ?)
                    AND (t.repeat_of IS NULL
                      OR EXISTS (SELECT 1 FROM effective AS e WHERE e.task = t.repeat_of AND e.annotator = ?))
                    ORDER BY t.priority DESC, t.id LIMIT 1""",
                    annotator, now, annotator, annotator, annotator,
                )  # fmt: skip
                if task is None:
                    return None
                mine = self._one("SELECT id FROM assignments WHERE task = ? AND annotator = ?", task["id"], annotator)
                number = int(mine["id"]) if mine else self._assign(int(task["id"]), annotator, rng)
            else:
                number = int(mine["id"])
            connection.execute("UPDATE assignments SET expires = ? WHERE id = ?", (now + seconds, number))
            return self.assignment(number)

    def _assign(self, task: int, annotator: int, rng: random.Random | None) -> int:
        order = list(range(len(self._rows("SELECT item FROM task_items WHERE task = ?", task))))
        (rng or random.SystemRandom()).shuffle(order)
        return self._insert("assignments", task=task, annotator=annotator, display=_written(order), expires=0.0)

    def assignment(self, number: int) -> Assignment:
        """Return an assignment, open or not.

        Raises:
            TextEnvError: There is none of that number.
        """
        row = self._one(
            """SELECT a.*, t.kind, p.prompt, p.columns FROM assignments AS a JOIN tasks AS t ON t.id = a.task
            LEFT JOIN prompts AS p ON p.id = t.prompt WHERE a.id = ?""",
            number,
        )
        if row is None:
            raise TextEnvError(f"assignment={number}: there is none of that number.")
        listed = self._rows(
            "SELECT i.* FROM task_items AS l JOIN items AS i ON i.id = l.item WHERE l.task = ? ORDER BY l.position",
            row["task"],
        )
        items = [_item(one) for one in listed]
        prompt = None if row["prompt"] is None else json.loads(row["prompt"])
        return Assignment(
            id=row["id"],
            annotator=row["annotator"],
            task=row["task"],
            kind=row["kind"],
            prompt=tuple(prompt) if isinstance(prompt, list) else prompt,
            columns={} if row["columns"] is None else json.loads(row["columns"]),
            items=tuple(items[place] for place in json.loads(row["display"])),
            expires=row["expires"],
        )

    def renew(self, assignment: int, *, seconds: float = 600.0) -> None:
        """Keep an assignment for a while longer.

        Raises:
            TextEnvError: It was judged, or others have taken it over.
        """
        now = self._clock()
        with self.transaction() as connection:
            self._check_open(assignment, now)
            connection.execute("UPDATE assignments SET expires = ? WHERE id = ?", (now + seconds, assignment))

    def release(self, assignment: int) -> None:
        """Give an assignment back, so that it can be given to others at once."""
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

        One that was stored already is not stored again. A lease that has run out is no matter as long as nobody else
        has judged in the meantime.

        Args:
            assignment: What is answered.
            ranks: Of the items, in the order in which they were shown; see ``textenv.types.Ranking``. Ignored unless
                the verdict is ``"ranked"``.
            verdict: ``"ranked"``, ``"both_bad"`` (none is of any use), or ``"cant_tell"``.
            confidence: From 1 to 5, or None.
            note: Anything the annotator wants to say.
            seconds: How long it took.

        Raises:
            TextEnvError: The ranks are no ranks, or the assignment was answered in another way or taken over.
        """
        if verdict not in ("ranked", "both_bad", "cant_tell"):
            raise TextEnvError(f"verdict={verdict!r}: expected 'ranked', 'both_bad' or 'cant_tell'.")
        if confidence is not None and confidence not in range(1, 6):
            raise TextEnvError(f"confidence={confidence!r}: expected 1 to 5, or None.")
        if seconds is not None and not 0 <= seconds < math.inf:
            raise TextEnvError(f"seconds={seconds!r}: expected a number of seconds, or None.")
        with self.transaction():
            given = self.assignment(assignment)
            (display,) = self._rows("SELECT display FROM assignments WHERE id = ?", assignment)
            shown: list[int | None] = [None] * len(given.items)
            if verdict == "ranked":
                _check_ranks(ranks, len(given.items))
                for place, rank in zip(json.loads(display["display"]), ranks, strict=True):
                    shown[place] = rank
            last = self._last(assignment)
            if last is not None and last.verdict != "undone":
                if (last.ranks, last.verdict, last.confidence, last.note) == (tuple(shown), verdict, confidence, note):
                    return last.id
                raise TextEnvError(
                    f"Assignment {assignment} was judged already, in another way; undo that first to change it."
                )
            self._check_open(assignment, self._clock())
            return self._insert(
                "judgements",
                assignment=assignment,
                task=given.task,
                annotator=given.annotator,
                ranks=_written(shown),
                verdict=verdict,
                confidence=confidence,
                note=note,
                seconds=seconds,
                supersedes=None if last is None else last.id,
            )

    def record(self, task: int, annotator: int, ranks: Sequence[int | None]) -> int:
        """Store a ranking that was made elsewhere, of the task's items as they stand, and return its number.

        Raises:
            TextEnvError: The ranks are no ranks, or the annotator has been given the task here.
        """
        with self.transaction():
            self._known("tasks", task)
            self._known("annotators", annotator)
            if self._one("SELECT id FROM assignments WHERE task = ? AND annotator = ?", task, annotator):
                raise TextEnvError(f"Annotator {annotator} has been given task {task} already.")
            display, expires = _written(list(range(len(ranks)))), self._clock() + 60.0
            number = self._insert("assignments", task=task, annotator=annotator, display=display, expires=expires)
            return self.judge(number, ranks)

    def undo(self, annotator: int, *, judgement: int | None = None, seconds: float = 600.0) -> Assignment | None:
        """Take an annotator's last judgement back, and give the same assignment to them again.

        Nothing is deleted: a row that supersedes the judgement is added. Another assignment that they have is released.

        Args:
            annotator: Whose.
            judgement: Number of the judgement that is meant, so that one which was taken back already is not taken for
                the one before it; None for whichever is the last.
            seconds: How long nobody else is given the assignment.

        Returns:
            The assignment, its items shown as they were; None if there is nothing to take back.

        Raises:
            TextEnvError: The judgement that is meant is not the annotator's last.
        """
        with self.transaction() as connection:
            row = self._one("SELECT * FROM effective WHERE annotator = ? ORDER BY id DESC LIMIT 1", annotator)
            if judgement is not None and (row is None or row["id"] != judgement):
                if self._one("SELECT id FROM effective WHERE id = ?", judgement):
                    raise TextEnvError(
                        f"Judgement {judgement} is not the last of annotator {annotator}: there are newer ones. "
                        "Take those back first."
                    )
                self._known("judgements", judgement)
                return None
            if row is None:
                return None
            last = _judgement(row)
            self._insert(
                "judgements",
                assignment=last.assignment,
                task=last.task,
                annotator=annotator,
                ranks=_written([None] * len(last.ranks)),
                verdict="undone",
                confidence=None,
                note="",
                seconds=None,
                supersedes=last.id,
            )
            connection.execute("UPDATE assignments SET expires = 0 WHERE annotator = ?", (annotator,))
            expires = self._clock() + seconds
            connection.execute("UPDATE assignments SET expires = ? WHERE id = ?", (expires, last.assignment))
            return self.assignment(last.assignment)

    def last_judgement(self, annotator: int) -> int | None:
        """Return the number of an annotator's last judgement that was not taken back; None if there is none."""
        row = self._one("SELECT id FROM effective WHERE annotator = ? ORDER BY id DESC LIMIT 1", annotator)
        return None if row is None else int(row["id"])

    def _check_open(self, assignment: int, now: float) -> None:
        given = self.assignment(assignment)
        last = self._last(assignment)
        if last is not None and last.verdict != "undone":
            raise TextEnvError(f"Assignment {assignment} was judged already.")
        if given.expires > now:
            return
        (row,) = self._rows(
            """SELECT t.judgements, (SELECT count(*) FROM effective AS e WHERE e.task = t.id) AS done FROM tasks AS t
            WHERE t.id = ?""",
            given.task,
        )
        if row["done"] >= row["judgements"]:
            raise TextEnvError(f"Assignment {assignment} ran out, and others have judged its task since.")

    # -- reading -------------------------------------------------------------------------------------------------

    def judgements(
        self,
        *,
        annotators: Sequence[int] | None = None,
        tasks: Sequence[int] | None = None,
        effective: bool = True,
    ) -> list[Judgement]:
        """Return judgements in the order in which they were made.

        Args:
            annotators: Only theirs.
            tasks: Only on these.
            effective: Only those that were not taken back or superseded; else every row.
        """
        rows = self._rows(f"SELECT * FROM {'effective' if effective else 'judgements'} ORDER BY id")
        return [
            judgement
            for judgement in map(_judgement, rows)
            if (annotators is None or judgement.annotator in annotators) and (tasks is None or judgement.task in tasks)
        ]

    def rankings(self, judgements: Sequence[Judgement] | None = None) -> list[tuple[Judgement, Ranking]]:
        """Return what a reward model can learn from: effective judgements that rank completions.

        Args:
            judgements: Which to turn into rankings; by default all, but for those on gold and repeated tasks, which
                measure annotators.
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
            ranking = Ranking(prompts[task.prompt], completions, judgement.ranks, names[judgement.annotator])
            found.append((judgement, ranking))
        return found

    def progress(self, annotator: int | None = None) -> Progress:
        """Return how far the judging is, in all or of one annotator."""
        now = self._clock()
        if annotator is None:
            (row,) = self._rows(
                """SELECT (SELECT coalesce(sum(judgements), 0) FROM tasks) AS wanted,
                (SELECT count(*) FROM effective) AS done,
                (SELECT count(*) FROM assignments AS a WHERE a.expires > ?
                  AND NOT EXISTS (SELECT 1 FROM effective AS e WHERE e.assignment = a.id)) AS open""",
                now,
            )
            return Progress(int(row["wanted"]), int(row["done"]), int(row["open"]))
        (row,) = self._rows(
            f"""SELECT (SELECT count(*) FROM effective AS e WHERE e.annotator = ?) AS done,
            (SELECT count(*) FROM assignments AS a WHERE a.annotator = ? AND a.expires > ?
              AND NOT EXISTS (SELECT 1 FROM effective AS e WHERE e.assignment = a.id)) AS open,
            (SELECT count(*) FROM tasks AS t WHERE {_TAKEN} < t.judgements
              AND NOT EXISTS (SELECT 1 FROM effective AS e WHERE e.task = t.id AND e.annotator = ?)) AS left""",
            annotator, annotator, now, annotator, now, annotator, annotator,
        )  # fmt: skip
        return Progress(int(row["done"]) + int(row["left"]), int(row["done"]), int(row["open"]))

    def revision(self) -> int:
        """Return a number that changes with every judgement: that of the last, 0 if there is none."""
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
        found = {
            row["id"]: json.loads(row["prompt"]) for row in self._rows("SELECT id, prompt FROM prompts ORDER BY id")
        }
        return {number: tuple(prompt) if isinstance(prompt, list) else prompt for number, prompt in found.items()}

    def completions(self, prompt: int | None = None) -> list[Item]:
        """Return the completions, of one prompt or of all."""
        rows = self._rows("SELECT * FROM items WHERE kind = 'completion' ORDER BY id")
        return [_item(row) for row in rows if prompt is None or row["prompt"] == prompt]

    def clips(self) -> list[Item]:
        """Return the clips."""
        return [_item(row) for row in self._rows("SELECT * FROM items WHERE kind = 'clip' ORDER BY id")]

    def tasks(self) -> list[Task]:
        """Return the tasks, in the order in which they were added."""
        items: dict[int, list[int]] = {}
        for row in self._rows("SELECT task, item FROM task_items ORDER BY task, position"):
            items.setdefault(row["task"], []).append(row["item"])
        return [
            Task(
                id=row["id"],
                kind=row["kind"],
                prompt=row["prompt"],
                items=tuple(items[row["id"]]),
                gold=None if row["gold"] is None else tuple(json.loads(row["gold"])),
                repeat_of=row["repeat_of"],
                judgements=row["judgements"],
                priority=row["priority"],
            )
            for row in self._rows("SELECT * FROM tasks ORDER BY id")
        ]

    def annotators(self) -> list[Annotator]:
        """Return the annotators, in the order in which they came."""
        rows = self._rows("SELECT * FROM annotators ORDER BY id")
        return [Annotator(row["id"], row["name"], row["kind"], json.loads(row["details"])) for row in rows]

    # -- reward models -------------------------------------------------------------------------------------------

    def add_reward_model(
        self,
        folder: str | Path,
        *,
        judgements: Sequence[int],
        parent: int | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> int:
        """Add a reward model and what it was trained on, and return its number; a folder is added once.

        Raises:
            TextEnvError: The folder was added with other judgements.
        """
        with self.transaction() as connection:
            for known in self.reward_models():
                if known.folder == str(folder):
                    if known.judgements != tuple(sorted(judgements)):
                        raise TextEnvError(f"{folder} was added already, trained on other judgements.")
                    return known.id
            number = self._insert("reward_models", folder=str(folder), parent=parent, details=_written(details))
            connection.executemany("INSERT INTO trained_on VALUES (?, ?)", [(number, j) for j in judgements])
            return number

    def reward_models(self) -> list[RewardModelVersion]:
        """Return the reward models and what they were trained on."""
        judged: dict[int, list[int]] = {}
        for row in self._rows("SELECT reward_model, judgement FROM trained_on ORDER BY judgement"):
            judged.setdefault(row["reward_model"], []).append(row["judgement"])
        return [
            RewardModelVersion(
                row["id"], row["folder"], row["parent"], json.loads(row["details"]), tuple(judged.get(row["id"], ()))
            )
            for row in self._rows("SELECT * FROM reward_models ORDER BY id")
        ]

    # -- the database --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Lend this thread a connection: the one that it has in a transaction, else an idle one, or a new one.

        It comes back when it is no longer needed, so that threads which end leave none open.
        """
        held: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if held is not None:
            yield held
            return
        with self._lock:
            if self._closed:
                raise TextEnvError(f"The store {self.path} is closed.")
            connection = self._idle.pop() if self._idle else None
        connection = connection or self._opened()
        self._local.connection = connection
        try:
            yield connection
        finally:
            self._local.connection = None
            with self._lock:
                kept = not self._closed and len(self._idle) < _IDLE
                if kept:
                    self._idle.append(connection)
            if not kept:
                connection.close()

    def _opened(self) -> sqlite3.Connection:
        where = self._address() if self._read_only else self.path
        connection = sqlite3.connect(
            where, timeout=_TIMEOUT, isolation_level=None, check_same_thread=False, uri=self._read_only
        )
        try:
            connection.row_factory = sqlite3.Row
            if not self._read_only:
                for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                    connection.execute(f"PRAGMA {setting}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _address(self) -> str:
        """Return the file as what is only read.

        SQLite reads a write-ahead log with the help of a file beside it, which it makes where it is missing, in a
        folder that has to be writable. Where no log is left, because no process has the store open, it needs neither.
        """
        log = self.path.with_name(self.path.name + "-wal")
        log_is_left = log.exists() and log.stat().st_size > 0
        return f"{self.path.absolute().as_uri()}?{'mode=ro' if log_is_left else 'immutable=1'}"

    def _rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._connection() as connection:
            return connection.execute(query, values).fetchall()

    def _one(self, query: str, *values: Any) -> sqlite3.Row | None:
        return next(iter(self._rows(query, *values)), None)

    def _insert(self, table: str, **cells: Any) -> int:
        cells["created"] = self._clock()
        places = ", ".join("?" * len(cells))
        with self.transaction() as connection:
            cursor = connection.execute(
                f"INSERT INTO {table} ({', '.join(cells)}) VALUES ({places})", tuple(cells.values())
            )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def _known(self, table: str, number: int) -> None:
        if self._one(f"SELECT id FROM {table} WHERE id = ?", number) is None:
            raise TextEnvError(f"{table} has no number {number!r} in {self.path}.")

    def _item(self, number: int) -> Item:
        row = self._one("SELECT * FROM items WHERE id = ?", number)
        if row is None:
            raise TextEnvError(f"items has no number {number!r} in {self.path}.")
        return _item(row)

    def _last(self, assignment: int) -> Judgement | None:
        row = self._one("SELECT * FROM judgements WHERE assignment = ? ORDER BY id DESC LIMIT 1", assignment)
        return None if row is None else _judgement(row)


_TAKEN = """((SELECT count(*) FROM effective AS e WHERE e.task = t.id AND e.annotator <> ?)
  + (SELECT count(*) FROM assignments AS o WHERE o.task = t.id AND o.expires > ? AND o.annotator <> ?
     AND NOT EXISTS (SELECT 1 FROM effective AS e WHERE e.assignment = o.id)))"""
"""How many others have judged a task or are about to; its parameters: annotator, now, annotator."""


def _statements(script: str) -> Iterator[str]:
    """Split a script: ``executescript`` would commit what has begun."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _check_ranks(ranks: Sequence[int | None], count: int) -> None:
    whole = all(rank is None or (isinstance(rank, int) and not isinstance(rank, bool)) for rank in ranks)
    if not whole or len(ranks) != count:
        raise TextEnvError(f"ranks={list(ranks)}: expected {count}, each a whole number from 0, or None.")
    Ranking("", ("",) * count, tuple(ranks))  # says what else is wrong


def _written(value: Any) -> str:
    return to_json({} if value is None else value, ensure_ascii=False, sort_keys=True)


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


def _judgement(row: sqlite3.Row) -> Judgement:
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
