"""The tables of a feedback store (SQLite). Judgements and demonstrations are only ever added: triggers see to that.

A store of an earlier version is brought to this one when it is opened for writing; it can be read as it is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

__all__ = ["APPLICATION_ID", "SCHEMA", "UPGRADE", "VERSION", "schema_of", "statements"]

APPLICATION_ID = 0x74786676  # "txfv", in the header of the file
VERSION = 2
_BEFORE_JUDGEMENTS = """
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
CREATE TABLE trained_on (
  reward_model INTEGER NOT NULL REFERENCES reward_models, judgement INTEGER NOT NULL REFERENCES judgements,
  PRIMARY KEY (reward_model, judgement)) WITHOUT ROWID;
CREATE INDEX assignments_by_annotator ON assignments (annotator);
"""
_JUDGEMENTS = """
CREATE TABLE {name} (
  id INTEGER PRIMARY KEY, assignment INTEGER NOT NULL REFERENCES assignments, task INTEGER NOT NULL REFERENCES tasks,
  annotator INTEGER NOT NULL REFERENCES annotators, ranks TEXT NOT NULL,
  verdict TEXT NOT NULL CHECK (verdict IN ({verdicts})), confidence INTEGER,
  note TEXT NOT NULL, seconds REAL, supersedes INTEGER UNIQUE REFERENCES judgements, created REAL NOT NULL);
"""
_AROUND_JUDGEMENTS = """
CREATE INDEX judgements_by_assignment ON judgements (assignment);
CREATE INDEX judgements_by_task ON judgements (task);
CREATE TRIGGER judgements_stay BEFORE UPDATE ON judgements
  BEGIN SELECT RAISE(ABORT, 'judgements are never changed'); END;
CREATE TRIGGER judgements_are_kept BEFORE DELETE ON judgements
  BEGIN SELECT RAISE(ABORT, 'judgements are never deleted'); END;
CREATE VIEW effective AS SELECT * FROM judgements AS j WHERE verdict <> 'undone'
  AND NOT EXISTS (SELECT 1 FROM judgements AS later WHERE later.supersedes = j.id);
"""
_DEMONSTRATIONS = """
CREATE TABLE demonstrations (
  id INTEGER PRIMARY KEY, prompt INTEGER NOT NULL REFERENCES prompts, annotator INTEGER NOT NULL REFERENCES annotators,
  texts TEXT NOT NULL, item INTEGER REFERENCES items, assignment INTEGER REFERENCES assignments, seconds REAL,
  supersedes INTEGER UNIQUE REFERENCES demonstrations, created REAL NOT NULL);
CREATE INDEX demonstrations_by_assignment ON demonstrations (assignment);
CREATE TRIGGER demonstrations_stay BEFORE UPDATE ON demonstrations
  BEGIN SELECT RAISE(ABORT, 'demonstrations are never changed'); END;
CREATE TRIGGER demonstrations_are_kept BEFORE DELETE ON demonstrations
  BEGIN SELECT RAISE(ABORT, 'demonstrations are never deleted'); END;
CREATE VIEW effective_demonstrations AS SELECT * FROM demonstrations AS d WHERE texts <> '[]'
  AND NOT EXISTS (SELECT 1 FROM demonstrations AS later WHERE later.supersedes = d.id);
"""
_VERDICTS = {
    1: "'ranked', 'both_bad', 'cant_tell', 'undone'",
    2: "'ranked', 'both_bad', 'cant_tell', 'written', 'undone'",
}


def schema_of(version: int) -> str:
    """Return the script that makes the tables of a version."""
    judgements = _JUDGEMENTS.format(name="judgements", verdicts=_VERDICTS[version])
    return _BEFORE_JUDGEMENTS + judgements + _AROUND_JUDGEMENTS + (_DEMONSTRATIONS if version > 1 else "")


SCHEMA = schema_of(VERSION)
UPGRADE = (
    _JUDGEMENTS.format(name="judgements_of_2", verdicts=_VERDICTS[2])
    + """
INSERT INTO judgements_of_2 SELECT * FROM judgements;
DROP VIEW effective;
DROP TABLE judgements;
ALTER TABLE judgements_of_2 RENAME TO judgements;
"""
    + _AROUND_JUDGEMENTS
    + _DEMONSTRATIONS
)
"""Brings a store of version 1 to version 2; SQLite must not check foreign keys meanwhile."""


def statements(script: str) -> Iterator[str]:
    """Yield the statements of a script one by one: ``executescript`` would commit the transaction that it is run in."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
