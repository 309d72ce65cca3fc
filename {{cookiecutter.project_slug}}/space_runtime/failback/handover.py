"""The steps of a failback: rename the file to handover-*, move its rows, rename it to moved-*.

Each step is one rename or one COMMIT. So after a crash, the file names (files/names.py) and the
table of failbacks in PostgreSQL show what is left to do.
"""

import logging
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import URL, Connection, Engine, MetaData
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from space_runtime.backends import SQLITE, backend_of
from space_runtime.backends.errors import (
    DatabaseUnavailable,
    OutcomeUnknown,
    connection_reason,
    running_reason,
)
from space_runtime.failback.outcome import MoveFailed, Outcome, SchemasDiffer
from space_runtime.file_locks import Busy
from space_runtime.files import names
from space_runtime.files.contents import count_rows, read_only
from space_runtime.migrations import Migrations, current_revisions
from space_runtime.migrations.opening import CannotServe
from space_runtime.observability.metrics import FAILBACK_ROWS, FAILBACKS
from space_runtime.reasons import REASONS
from space_runtime.records import failbacks
from space_runtime.records.failbacks import RefusedRow
from space_runtime.snapshots.schedule import Snapshots
from space_runtime.time_limit import while_at_work, within

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_CHECKS = 20.0
_LOOKS = 5
_SECONDS_BETWEEN_LOOKS = 2.0
ROWS_FOLLOW = "it moves its rows to PostgreSQL or migrates it, and these rows follow"
"""What another process does that keeps PostgreSQL locked."""


class AlreadyMoved(Exception):
    """PostgreSQL has a record of this file's id."""


class Failback:
    """Moves the rows of SQLite files into one PostgreSQL."""

    def __init__(
        self, target: Engine, models: MetaData, migrations: Migrations, snapshots: Snapshots
    ) -> None:
        self._target = target
        self._models = models
        self._migrations = migrations
        self._snapshots = snapshots

    def move_all(self, files: Iterable[Path]) -> None:
        """Move these files; raise CannotServe or Busy if one cannot be moved."""
        backend = backend_of(self._target)

        def work() -> None:
            for file in files:
                try:
                    self.move(file)
                except DBAPIError as error:
                    is_of_file = isinstance(error.orig, sqlite3.Error)
                    if not is_of_file or running_reason(error) != "corrupt":
                        raise
                    names.set_aside(file)

        def is_at_work() -> bool:
            # PostgreSQL answers, and our session there, or that which it waits for, lives. A single
            # statement may take long: each of its rows may have a slow trigger.
            ask = partial(backend.is_being_migrated, self._target)
            try:
                for _ in range(_LOOKS):
                    if within(_SECONDS_BETWEEN_CHECKS, ask):
                        return True
                    # Between two files, nobody has the lock for a while.
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
            except (SQLAlchemyError, DatabaseUnavailable, TimeoutError) as error:
                return REASONS[connection_reason(error)].reached
            return False

        def terminate() -> None:
            backend.terminate_connections(self._target)

        try:
            while_at_work(_SECONDS_BETWEEN_CHECKS, work, is_at_work, terminate)
        except (OutcomeUnknown, TimeoutError):
            # The rows may have been moved. Only PostgreSQL knows, so SQLite must not serve them.
            raise CannotServe("connection_lost", is_there=True) from None
        except MoveFailed as failed:
            logger.error("rows could not be moved: %s", failed.detail or failed.reason)
            raise
        except DatabaseUnavailable as error:
            reason = error.reason or "rows_not_moved"
            detail = ROWS_FOLLOW if reason == "locked" else ""
            raise CannotServe(reason, is_there=False, detail=detail) from None
        except (SQLAlchemyError, sqlite3.Error, OSError) as error:
            code = getattr(getattr(error, "orig", error), "sqlstate", None)
            logger.error("rows could not be moved: %s %s", type(error).__name__, code or "")
            reason = running_reason(error) or "rows_not_moved"
            raise CannotServe(reason, is_there=False) from None

    def move(self, file: Path) -> Outcome:
        """Move one file, resuming where an earlier attempt ended; return what became of its rows.

        Raise OutcomeUnknown if the rows may or may not have been moved. After any other error from
        the move they were not, and the file has its old name.
        """
        is_new = names.state_of(file) != "handover"
        handed_over = begin(file, self._target) if is_new else file
        file_id = names.id_of(handed_over)
        series, is_empty = names.series_of(file_id), False
        # From now on, no start may restore these rows to a file that serves and change them.
        self._snapshots.add_tombstone(series)
        try:
            is_empty = not count_rows(read_only(handed_over), at_most=1)
            outcome = self._move_rows(handed_over, file_id, is_empty=is_empty)
        except AlreadyMoved:
            if is_new:
                # Since begin() looked, another container has moved a file that came from the same
                # snapshot. This one may have rows of its own, which move as those of a copy.
                copy = names.path(handed_over.parent, "handover", names.copy_of(file_id))
                return self.move(names.rename(handed_over, copy))
            outcome = Outcome()
        except BaseException as error:
            if is_new and not isinstance(error, OutcomeUnknown):
                names.rename(handed_over, file)
                self._snapshots.remove_tombstone(series)
            raise
        try:
            if is_empty:
                names.remove(handed_over)
            else:
                finish(handed_over)
        except OSError as error:
            # The rows are in PostgreSQL all the same, and the next failback finds that out.
            logger.warning("the file with the moved rows keeps its name: %s", error.strerror)
        if any(outcome):
            FAILBACKS.inc()
        FAILBACK_ROWS.labels("moved").inc(outcome.moved)
        FAILBACK_ROWS.labels("refused").inc(outcome.refused)
        return outcome

    def retry_refused(self, file_id: UUID, numbers: Collection[int] = ()) -> Outcome:
        """Try again to move the refused rows of a file, or those of them that have these numbers.

        Return what became of all of them. Raise MoveFailed, or OutcomeUnknown if the connection is
        lost during COMMIT.
        """
        with _transaction(self._target) as connection:
            rows = failbacks.take_refused(connection, file_id)
            left_out = {
                (row.table_name, (row.number,)): (row.reason, row.error)
                for row in rows
                if numbers and row.number not in numbers
            }
            return self._run(rows, connection, file_id, left_out=left_out)

    def find_refused(self, number: int) -> list[RefusedRow]:
        """Return the refused row with this number and all that refer to it; raise LookupError.

        Without it, those must not be tried again: they might find a stranger's row in its place.
        """
        from space_runtime.failback.move import Move

        with self._target.connect() as connection:
            for file_id in failbacks.files_with_refused(connection):
                rows = {row.number: row for row in failbacks.read_refused(connection, file_id)}
                if number in rows:
                    move = Move(rows.values(), connection, self._models, file_id)
                    return move.with_those_that_refer(rows[number], rows.values())
        raise LookupError(number)

    def is_there(self, row: RefusedRow) -> bool:
        """Return whether PostgreSQL has a row with the key of this refused one."""
        from space_runtime.failback.move import Move

        with self._target.connect() as connection:
            return Move([row], connection, self._models, row.file_id).is_there(row)

    def _move_rows(self, file: Path, file_id: UUID, *, is_empty: bool) -> Outcome:
        """Move every row of a file and record its id, in one transaction.

        An empty file is recorded, too, so that no snapshot of it is restored. Raise AlreadyMoved,
        SchemasDiffer, MoveFailed, or OutcomeUnknown; after any error but the last, nothing was
        moved by this call.
        """
        with _transaction(self._target) as connection:
            failbacks.create_tables(connection)
            if file_id in failbacks.moved_ids(connection):
                raise AlreadyMoved
            outcome = Outcome()
            if not is_empty:
                self._bring_up_to_date(file)
                with read_only(file).connect() as rows:
                    if current_revisions(rows) != current_revisions(connection):
                        raise SchemasDiffer
                    outcome = self._run(rows, connection, file_id)
            failbacks.record_move(connection, file_id, outcome.moved)
        return outcome

    def _run(
        self,
        rows: Connection | list[RefusedRow],
        connection: Connection,
        file_id: UUID,
        **options: Any,
    ) -> Outcome:
        # Imported here and above, because it is needed after an outage only.
        from space_runtime.failback.culprits import move_all_but_culprits
        from space_runtime.failback.move import Move

        new_move = partial(Move, rows, connection, self._models, file_id)
        return move_all_but_culprits(new_move, **options)

    def _bring_up_to_date(self, file: Path) -> None:
        """Migrate a file that an older version left behind; raise CannotServe if that fails.

        This is the only write to a handover file, and it comes before its rows are moved.
        """
        known, newest = self._migrations.revisions()
        with read_only(file).connect() as connection:
            revisions = current_revisions(connection)
        if not revisions or revisions == newest or not revisions <= known:
            return
        engine = SQLITE.create_engine(URL.create("sqlite", database=str(file)), {}, 1)
        try:
            self._migrations.migrate(engine)
        except Exception as error:  # A migration is the owner's code, which may raise anything.
            logger.error("rows of an older version could not be migrated", exc_info=error)
            raise CannotServe("migration_failed", is_there=False) from None
        finally:
            engine.dispose()
        checkpoint(file)


def is_moved(target: Engine, file_id: UUID) -> bool:
    """Return whether the rows of the file with this id are in PostgreSQL; or raise MoveFailed."""
    try:
        with target.connect() as connection:
            return file_id in failbacks.moved_ids(connection)
    except DBAPIError as error:
        raise MoveFailed(error) from None


def begin(file: Path, target: Engine) -> Path:
    """Rename a file that no longer serves to handover-*; return its new path.

    Raise Busy if any program has it open.
    """
    file_id = names.id_of(file)
    while is_moved(target, file_id):
        # This is a copy of a file that was moved before. Rows added since move under a new id.
        file_id = names.copy_of(file_id)
    checkpoint(file)
    return names.rename(file, names.path(file.parent, "handover", file_id))


def checkpoint(file: Path) -> None:
    """Merge the write-ahead log into the file; raise Busy if any program has the file open."""
    with closing(sqlite3.connect(file, isolation_level=None, timeout=1)) as connection:
        try:
            connection.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise Busy from None
            raise


def finish(file: Path) -> Path:
    """Rename a file whose rows have been moved to moved-*; return its new path."""
    return names.rename(file, names.path(file.parent, "moved", names.id_of(file)))


@contextmanager
def _transaction(target: Engine) -> Iterator[Connection]:
    """Yield a connection that holds the migrations' lock; commit at the end.

    Raise MoveFailed, or OutcomeUnknown if the connection is lost during COMMIT.
    """
    is_committing = False
    try:
        lock = backend_of(target).lock_migrations(target)
        with lock as connection, connection.begin():
            yield connection
            is_committing = True
    except BaseException as error:
        # The server may carry out a COMMIT that was sent, even after Ctrl-C.
        was_refused = isinstance(error, DBAPIError) and not error.connection_invalidated
        if is_committing and not was_refused:
            raise OutcomeUnknown("It is unknown whether the rows were moved.") from error
        if isinstance(error, DBAPIError) and not isinstance(error.orig, sqlite3.Error):
            raise MoveFailed(error) from None
        raise
