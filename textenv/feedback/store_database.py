"""The database file of a feedback store: connections, transactions, and a clock that never goes back."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from textenv.data.values import short
from textenv.feedback.store_check import find_damage
from textenv.feedback.store_schema import APPLICATION_ID, SCHEMA, UPGRADE, VERSION, statements
from textenv.types import TextEnvError

__all__ = ["StoreDatabase"]

_MAGIC = b"SQLite format 3\0"
_IDLE_CONNECTIONS = 8  # kept open for the next thread that needs one
_LOCK_SECONDS = 60.0  # that a statement waits for another's transaction


class _ForwardClock:
    """A clock that never goes back: if the machine's clock is set back, elapsed time is added to the last reading."""

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
        """Continue from a moment, in seconds since 1970, if it is later than the last reading."""
        with self._lock:
            self._last = max(self._last, moment)


class StoreDatabase:
    """The file of a feedback store; safe to use from several threads and several processes at once.

    When a method returns, what it wrote is on disk: it survives if the process or the machine dies afterwards.
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
            create: Create the file if it is missing.
            read_only: Only read it. Nothing in its folder is created or changed, and the folder need not be writable.
            clock: Returns the time in seconds since 1970. If it goes back, even while no store was open, the store's
                time continues from the latest time in the store, so that leases end when they should.
            monotonic: Returns elapsed seconds, which are counted while ``clock`` lags behind.

        Raises:
            TextEnvError: The file is missing or cannot be read, or is not a feedback store.
        """
        self.path = Path(path)
        self._clock = _ForwardClock(clock, monotonic)
        self._read_only = read_only
        self._version = VERSION
        self._local = threading.local()
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = False
        try:
            self._open(create=create and not read_only)
        except BaseException:
            self.close()
            raise

    def _open(self, *, create: bool) -> None:
        """Check that the file is a store, or make it one.

        Raises:
            TextEnvError: It cannot be used as a store.
        """
        try:
            if not _may_be_store(self.path) and not create:
                raise TextEnvError(
                    f"{self.path}: there is no such store. Make one with 'textenv feedback import' or 'textenv "
                    "feedback add', or check the name."
                )
            if self._read_only and not self._is_made():
                raise TextEnvError(f"{self.path} is empty, not a store of feedback that textenv made.")
            if not self._read_only:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._make()
            with self._connection() as connection:
                self._version = _version(connection)
                self._refuse_damage(connection)
        except (sqlite3.Error, OSError) as error:
            expected = "." if self._read_only else ", or a new name in a folder that can be written."
            raise TextEnvError(
                f"{self.path} cannot be used as a store of feedback ({error}); expected a file that textenv made"
                + expected
            ) from error
        if not self._read_only:
            self._set_clock()

    def _refuse_damage(self, connection: sqlite3.Connection) -> None:
        if (damage := find_damage(connection, _version(connection))) is not None:
            raise TextEnvError(
                f"{self.path} is damaged, or was changed by hand ({damage}); expected a store as textenv made it. Go "
                "back to a copy."
            )

    def _make(self) -> None:
        if not self._is_made():
            with self.transaction() as connection:
                if not self._is_made():  # another process may have made it meanwhile
                    for statement in statements(SCHEMA):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    connection.execute(f"PRAGMA user_version = {VERSION}")
        with self._connection() as connection:
            if _version(connection) < VERSION:
                self._upgrade(connection)

    def _upgrade(self, connection: sqlite3.Connection) -> None:
        """Bring a store of an earlier version to this one, all of it or nothing."""
        connection.execute("PRAGMA foreign_keys = OFF")  # a table that others refer to is made anew
        try:
            with self.transaction():
                if _version(connection) < VERSION:  # another process may have done it meanwhile
                    self._refuse_damage(connection)
                    for statement in statements(UPGRADE):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {VERSION}")
        finally:
            connection.execute("PRAGMA foreign_keys = ON")

    def _set_clock(self) -> None:
        for table in ("tasks", "annotators", "assignments", "judgements", "demonstrations"):
            if newest := self._one(f"SELECT created FROM {table} ORDER BY id DESC LIMIT 1"):
                self._clock.start_from(newest["created"])

    def _is_made(self) -> bool:
        """Return whether the file is a store; False if it is empty. No lock for writing is taken.

        Raises:
            TextEnvError: It is something else.
        """
        with self._connection() as connection:
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            version = _version(connection)
        if not (tables or application or version):
            return False
        if application != APPLICATION_ID or not 1 <= version <= VERSION:
            what = f"version {version}" if application == APPLICATION_ID else "some other database"
            raise TextEnvError(f"{self.path} is {what}, not a store of feedback of version 1 to {VERSION}.")
        return True

    def close(self) -> None:
        """Close the store, which cannot be opened again. A thread that is inside a call finishes it."""
        with self._lock:
            self._closed = True
            for connection in self._idle:
                connection.close()
            self._idle.clear()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Make everything that is written inside the block one transaction: all of it is stored, or nothing.

        Keep the block short: other writers wait for its end, a minute at most.

        Yields:
            The connection that this thread writes through.

        Raises:
            TextEnvError: Another process has been writing for more than a minute, or the database refuses what is
                written.
        """
        with self._connection() as connection:
            if connection.in_transaction:  # inside a transaction of the caller
                yield connection
                return
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                    raise self._failed(error) from error
                raise TextEnvError(
                    f"{self.path}: another program has been writing for {_LOCK_SECONDS:g} seconds. Try again later."
                ) from error
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException as error:
                if connection.in_transaction:  # a full disk may have ended it
                    connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise self._failed(error) from error
                raise

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection for this thread: that of its transaction, else an idle one, or a new one.

        It is idle again at the end of the block, so that threads leave no connection open when they end.
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
                kept = not self._closed and len(self._idle) < _IDLE_CONNECTIONS
                if kept:
                    self._idle.append(connection)
            if not kept:
                connection.close()

    def _opened(self) -> sqlite3.Connection:
        where = self._address() if self._read_only else self.path
        connection = sqlite3.connect(
            where, timeout=_LOCK_SECONDS, isolation_level=None, check_same_thread=False, uri=self._read_only
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
        """Return the address by which SQLite opens the file for reading only.

        To read a write-ahead log, SQLite needs a file beside it, which it creates if it is missing; then the folder has
        to be writable. If there is no log, because no process has the store open, SQLite needs neither ("immutable").
        """
        log = _log_of(self.path)
        log_is_left = log.exists() and log.stat().st_size > 0
        return f"{self.path.absolute().as_uri()}?{'mode=ro' if log_is_left else 'immutable=1'}"

    def _failed(self, error: Exception) -> TextEnvError:
        return TextEnvError(
            f"{self.path} cannot be read or written ({error}); expected a store that textenv made, room on the disk, "
            "and values that a database can hold."
        )

    def _rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        try:
            with self._connection() as connection:
                return connection.execute(query, values).fetchall()
        except (sqlite3.Error, UnicodeError, OverflowError) as error:  # half a surrogate pair, 2**70
            raise self._failed(error) from error

    def _one(self, query: str, *values: Any) -> sqlite3.Row | None:
        return next(iter(self._rows(query, *values)), None)

    def _insert(self, table: str, **cells: Any) -> int:
        cells["created"] = self._clock()
        places = ", ".join("?" * len(cells))
        with self.transaction():
            self._rows(f"INSERT INTO {table} ({', '.join(cells)}) VALUES ({places})", *cells.values())
            (row,) = self._rows("SELECT last_insert_rowid() AS number")
        return int(row["number"])

    def _known(self, table: str, number: int) -> None:
        whole = isinstance(number, int) and not isinstance(number, bool) and abs(number) < 2**63
        if not whole or self._one(f"SELECT id FROM {table} WHERE id = ?", number) is None:
            raise TextEnvError(f"{table} has no number {short(number)} in {self.path}.")


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _log_of(path: Path) -> Path:
    """Return the write-ahead log of a database: of a symbolic link, it is beside the file that the link leads to."""
    return Path(f"{os.path.realpath(path)}-wal")


def _may_be_store(path: Path) -> bool:
    """Tell whether there is a file that may be a store, or become one: SQLite takes a file of one byte as empty.

    Its header is read by itself, because a connection that writes changes the header of other programs' databases.

    Raises:
        OSError: It is something else.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    except ValueError as error:  # a NUL in the path
        raise OSError(str(error)) from error
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is no file")
    with path.open("rb") as file:
        header = file.read(100)  # see https://www.sqlite.org/fileformat.html
    if header and not header.startswith(_MAGIC):
        raise OSError("it is no database")
    pages, application = int.from_bytes(header[28:32]), int.from_bytes(header[68:72])
    begun = pages <= 1 or _log_of(path).exists()  # another process is making it, or all of it is in the log yet
    if application != APPLICATION_ID and (application or not begun):
        raise OSError("it is some other database")
    return True
