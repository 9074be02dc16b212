"""The tables of a feedback store (SQLite). Judgements are only ever added: triggers refuse anything else."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

__all__ = ["APPLICATION_ID", "SCHEMA", "VERSION", "statements"]

APPLICATION_ID = 0x74786676  # "txfv", in the header of the file
VERSION = 1
SCHEMA = """
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


def statements(script: str) -> Iterator[str]:
    """Yield the statements of a script one by one: ``executescript`` would commit the transaction that it is run in."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
