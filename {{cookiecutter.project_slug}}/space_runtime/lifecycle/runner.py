"""Performs the steps that state.py decides on, in one thread, and publishes the results.

Engines and locks are held here. Those that the new state does not need are closed after each step.
"""

import logging
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import get_args

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from space_runtime.backends import POSTGRESQL, SQLITE, backend_of
from space_runtime.backends.errors import DatabaseUnavailable, connection_reason, running_reason
from space_runtime.backends.opening import (
    MIGRATION_SECONDS,
    CannotServe,
    open_postgresql,
    ping,
)
from space_runtime.backends.protocol import Backend, Name
from space_runtime.backends.sqlite import is_sound
from space_runtime.failback.handover import ROWS_FOLLOW, Failback, is_moved
from space_runtime.file_locks import Busy
from space_runtime.files.locations import outlives_container
from space_runtime.files.sqlite_files import SQLiteFiles
from space_runtime.lifecycle import state as machine
from space_runtime.lifecycle.report import (
    DatabaseReport,
    Status,
    admission,
    describe,
    status,
)
from space_runtime.lifecycle.state import (
    CHECK_SECONDS,
    STOP_SECONDS,
    Moment,
    Observation,
    State,
    Step,
)
from space_runtime.migrations import Migrations
from space_runtime.observability.metrics import (
    BACKEND,
    CHECK_DURATION,
    FALLBACKS,
    PENDING_ROWS,
    PERSISTENT,
    STATUS,
)
from space_runtime.project import Project
from space_runtime.reasons import REASONS
from space_runtime.records import failbacks
from space_runtime.serving.database import Database
from space_runtime.snapshots.schedule import Snapshots
from space_runtime.time_limit import within

logger = logging.getLogger(__name__)


class Lifecycle:
    """Opens and closes databases for one Database, and reports on them."""

    def __init__(
        self,
        database: Database,
        configuration: machine.Configuration,
        project: Project,
        files: SQLiteFiles,
        snapshots: Snapshots,
        *,
        pool_size: int | None,
        on_space: bool,
    ) -> None:
        self._database = database
        self._project = project
        self._files = files
        self._snapshots = snapshots
        self._migrations = Migrations(project.folder)
        self._pool_size = pool_size
        self._on_space = on_space

        self._engine: Engine | None = None
        self._candidate: Engine | None = None
        self._locks = ExitStack()
        self._waiting_files: list[Path] = []
        self._migration_error: BaseException | None = None

        self._created = time.monotonic()
        self._state = machine.begin(configuration, _now())
        # While the runner is at work, other threads report trouble and ask it to stop.
        self._state_lock = threading.Lock()
        self._wake = threading.Event()
        self._settled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="database-lifecycle", daemon=True)
        self.status: Status = status(self._state)
        self.report: DatabaseReport = describe(self._state)
        database.admission = admission(self._state)
        database.on_trouble = self._suspect
        self._show()

    @property
    def is_ready(self) -> bool:
        """Whether requests may read and write."""
        return self._database.admission.writes

    def start(self) -> None:
        """Choose the database in the background, and watch over it until stop()."""
        self._thread.start()

    def wait_until_settled(self) -> None:
        """Wait until a database serves or is known not to; the limit allows for long migrations."""
        connect_seconds = self._state.configuration.connect_seconds
        self._settled.wait(timeout=connect_seconds + MIGRATION_SECONDS)

    def stop(self) -> None:
        """Attempt a last failback, let admitted work finish, and close, all in limited time."""
        begun = time.monotonic()
        serves = self._state.backend is not None
        self._update(lambda state: machine.stop(state, _now()))
        self._wake.set()
        # A connection attempt cannot be interrupted, but its daemon thread ends with the process.
        self._thread.join(timeout=STOP_SECONDS + 1 if serves else CHECK_SECONDS)
        if self._thread.is_alive():
            logger.warning("the database could not be closed in time")
        taken_at = self._snapshots.taken_at
        logger.info(
            "stopped: the database is closed",
            extra={
                "pending_rows": self.report.pending_rows,
                "snapshot_taken": taken_at is not None and taken_at >= begun,
                "seconds": round(time.monotonic() - begun, 1),
            },
        )

    def _run(self) -> None:
        while self._state.phase != "stopped":
            try:
                self._perform_what_is_due()
            except Exception as error:
                # A bug must not end this thread: /health would repeat its last report forever.
                self._log_bug(error)
                self._update(machine.note_bug)
                self._publish()
                self._wake.wait(machine.SECONDS_BETWEEN_CHECKS_WHILE_DOWN)

    def _perform_what_is_due(self) -> None:
        now = time.monotonic()
        steps = machine.decide(self._state, now)
        if not steps:
            self._wake.wait(machine.seconds_until_due(self._state, now))
            self._wake.clear()
        for step in steps:
            phase = self._state.phase
            observation = self._perform(step)
            self._update(partial(machine.advance, step=step, observation=observation, now=_now()))
            self._close_unused()
            self._publish()
            if self._state.phase != phase:
                break

    def _suspect(self, reason: str | None) -> None:
        self._update(lambda state: machine.suspect(state, reason))
        if self._state.is_suspect:
            self._wake.set()

    def _update(self, change: Callable[[State], State]) -> None:
        with self._state_lock:
            self._state = change(self._state)
            self._database.admission = admission(self._state)

    def _perform(self, step: Step) -> Observation:
        try:
            return self._perform_or_raise(step)
        except CannotServe as error:
            self._migration_error = error.__cause__
            return self._failed(error.reason, is_there=error.is_there, detail=error.detail)
        except Busy:
            return self._failed("locked")
        except Exception as error:
            self._log_bug(error)
            return self._failed("internal")

    def _perform_or_raise(self, step: Step) -> Observation:
        match step:
            case machine.Connect(seconds):
                return self._connect(seconds)
            case machine.OpenSQLite(fallback):
                return self._open_sqlite(fallback)
            case machine.LockFiles():
                return self._lock_files()
            case machine.Drain(seconds):
                return self._drain(seconds)
            case machine.MoveRows():
                return self._move_rows()
            case machine.ServePostgreSQL():
                return self._serve_postgresql()
            case machine.Check():
                return self._check(step)
            case machine.TerminateConnections():
                return self._terminate_connections()
            case machine.Close(seconds):
                return self._close(seconds)

    def _failed(self, reason: str, *, is_there: bool = False, detail: str = "") -> machine.Failed:
        pending_rows = 0 if self._engine is not None else self._files.count_waiting()
        return machine.Failed(reason, is_there=is_there, pending_rows=pending_rows, detail=detail)

    # steps

    def _connect(self, seconds: float) -> Observation:
        configuration = self._state.configuration
        if not configuration.can_connect:
            # This cannot succeed, and is repeated only to count the waiting rows again.
            return self._failed(configuration.unusable_reason)
        opened = open_postgresql(
            configuration.resolution,
            self._migrations,
            connections=self._size_for(POSTGRESQL) + 1,
            seconds=seconds,
        )
        self._candidate = opened.engine
        return machine.Connected(opened.schema_newer, self._problem_of_failback(opened.engine))

    def _open_sqlite(self, fallback: bool) -> Observation:
        self._files.leave()
        url, connections = self._state.configuration.resolution.url, self._size_for(SQLITE) + 1
        if fallback:
            file = self._files.open_fallback(connections)
        else:
            file = self._files.open_configured(url, connections)
        self._use(file.opened.engine)
        return machine.Opened(
            persistent=not self._on_space and outlives_container(file.path),
            schema_newer=file.opened.schema_newer,
            problem=file.problem,
            pending_rows=self._files.count_waiting() if fallback else 0,
        )

    def _lock_files(self) -> Observation:
        candidate = self._postgresql()
        can_wait = self._engine is not None and not self._state.stopping
        try:
            self._files.restore_waiting(partial(is_moved, candidate))
            has_to_wait = can_wait and POSTGRESQL.is_being_migrated(candidate)
        except (SQLAlchemyError, DatabaseUnavailable) as error:
            raise CannotServe(connection_reason(error), is_there=False) from None
        if has_to_wait:
            # Later, the data routes would have to wait as well.
            raise CannotServe("locked", is_there=False, detail=ROWS_FOLLOW)
        self._waiting_files = self._locks.enter_context(self._files.waiting_exclusively())
        return machine.Locked()

    def _drain(self, seconds: float) -> Observation:
        engine = self._serving()
        self._database.leave()
        if not self._database.drain(seconds):
            self._use(engine)
            return machine.Failed("locked")
        # If the process and its disk are lost during the move, a snapshot still has the rows.
        has_rows = self._files.count_waiting() > 0
        self._snapshots.end(last_within=CHECK_SECONDS if has_rows else 0.0)
        engine.dispose()
        self._engine = None
        return machine.Drained()

    def _move_rows(self) -> Observation:
        failback = Failback(
            self._postgresql(), self._project.metadata, self._migrations, self._snapshots
        )
        failback.move_all(self._waiting_files)
        return machine.Moved()

    def _serve_postgresql(self) -> Observation:
        engine = self._postgresql()
        self._locks.close()
        self._files.leave()
        self._candidate = None
        self._use(engine)
        pending_rows = self._files.count_waiting()
        with suppress(SQLAlchemyError):  # If the connection was lost, the next check will say so.
            pending_rows += self._count_refused(engine)
        if pending_rows:
            logger.warning(
                "PostgreSQL serves without %d rows of an outage: see make failback LIST=1",
                pending_rows,
            )
        return machine.Counted(pending_rows, self._files.count_configured())

    def _check(self, step: machine.Check) -> Observation:
        engine = self._serving()
        if not self._files.is_present:
            logger.error("the SQLite file was removed while it served: choosing a database again")
            return machine.FileRemoved()
        try:
            if step.look_for_damage:
                self._look_for_damage(Path(str(engine.url.database)))
            latency = within(CHECK_SECONDS, lambda: ping(engine, write=step.write))
            pending_rows = within(CHECK_SECONDS, lambda: self._count_pending(engine))
        except (SQLAlchemyError, DatabaseUnavailable, TimeoutError) as error:
            reason = connection_reason(error)
            # Another server may say no while the one that requests wait for is silent.
            return machine.Failed(reason, is_silent=reason in ("timeout", "read_only"))
        return machine.Answered(latency, pending_rows, self._snapshots.describe())

    def _terminate_connections(self) -> Observation:
        engine = self._serving()
        backend_of(engine).terminate_connections(engine)
        return machine.Done()

    def _close(self, seconds: float) -> Observation:
        deadline = time.monotonic() + seconds
        self._database.leave()
        if not self._database.drain(seconds):
            logger.warning("database work did not finish in time and is cut off")
        self._snapshots.end(last_within=deadline - time.monotonic())
        if self._engine is not None:
            backend_of(self._engine).terminate_connections(self._engine)
        self._close_engine()
        self._files.leave()
        return machine.Done()

    # engines in use

    def _serving(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("no database serves in this phase")
        return self._engine

    def _postgresql(self) -> Engine:
        if self._candidate is None:
            raise RuntimeError("PostgreSQL is not connected in this phase")
        return self._candidate

    def _use(self, engine: Engine) -> None:
        self._engine = engine
        self._database.use(engine, self._size_for(backend_of(engine)))

    def _size_for(self, backend: Backend) -> int:
        return self._pool_size or backend.default_pool_size

    def _close_engine(self) -> None:
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    def _close_unused(self) -> None:
        if self._candidate is not None and not self._state.has_candidate:
            self._candidate.dispose()
            self._candidate = None
        if self._state.phase not in ("draining", "moving"):
            self._locks.close()
        if self._state.backend is None:
            # There is no drain here: work on a file that was removed is lost in any case.
            self._database.leave()
            self._snapshots.end()
            self._close_engine()
            self._files.leave()

    def _look_for_damage(self, file: Path) -> None:
        """Raise DatabaseUnavailable if the file is damaged, as a request has reported."""
        if not within(CHECK_SECONDS, lambda: is_sound(file)):
            raise DatabaseUnavailable(REASONS["corrupt"].cause, reason="corrupt")

    def _count_pending(self, engine: Engine) -> int:
        """Return how many rows are not in PostgreSQL, but should be."""
        if self._state.configuration.backend == "sqlite":
            return 0
        waiting = self._files.count_waiting()
        return waiting if self._state.is_fallback else waiting + self._count_refused(engine)

    def _count_refused(self, engine: Engine) -> int:
        try:
            with engine.connect().execution_options(reading=True) as connection:
                return failbacks.count_refused(connection)
        except DBAPIError as error:
            if error.connection_invalidated or running_reason(error):
                raise
            # The table may belong to another role, which must not keep PostgreSQL from serving.
            return 0

    def _problem_of_failback(self, engine: Engine) -> str:
        """Return why rows of an outage could not be moved to this database, or ""."""
        problem = ""
        try:
            with engine.connect() as connection:
                problem = failbacks.problem(connection)
            if problem:
                lock = backend_of(engine).lock_migrations(engine)
                with lock as connection, connection.begin():
                    failbacks.create_tables(connection)
                    problem = failbacks.problem(connection)
        except (SQLAlchemyError, DatabaseUnavailable) as error:
            if isinstance(error, DBAPIError) and error.connection_invalidated:
                raise CannotServe("connection_lost", is_there=False) from None
        if problem:
            logger.warning(problem)
        return problem

    # reporting

    def _publish(self) -> None:
        before_status, before = self.status, self.report
        self.status, self.report = status(self._state), describe(self._state)
        self._show()
        if self._state.is_fallback and before.backend != "sqlite":
            FALLBACKS.inc()
        after = (self.status, self.report.reason, self.report.backend)
        if (before_status, before.reason, before.backend) != after:
            self._log_change(is_first=before_status == "starting")
        if self._state.has_settled:
            self._settled.set()

    def _log_change(self, *, is_first: bool) -> None:
        log = logger.info if self.status == "ok" else logger.warning
        seconds = round(time.monotonic() - self._created, 1)
        log(
            "database %s: %s",
            self.status,
            self.report.detail,
            exc_info=self._migration_error if self._is_about_migrations() else None,
            extra={"version": self._project.version, "seconds": seconds} if is_first else None,
        )

    def _is_about_migrations(self) -> bool:
        is_down = self._state.backend is None
        unfit = is_down and self._state.is_for_postgresql_only
        return unfit or self.report.reason == "migration_failed"

    def _log_bug(self, error: Exception) -> None:
        # Only the frames and the error's type: its text may contain hosts, users and values.
        frames = "".join(traceback.format_tb(error.__traceback__))
        logger.error("a step of the lifecycle failed: %s\n%s", type(error).__name__, frames)

    def _show(self) -> None:
        """Set the metrics to what the report says."""
        for each in get_args(Status):
            STATUS.labels(each).set(each == self.status)
        for each in get_args(Name):
            BACKEND.labels(each).set(each == self.report.backend)
        PERSISTENT.set(self.report.persistent)
        PENDING_ROWS.set(self.report.pending_rows)
        if self.report.latency_ms is not None:
            CHECK_DURATION.set(self.report.latency_ms / 1000)


def _now() -> Moment:
    return Moment(time.monotonic(), datetime.now(UTC).replace(microsecond=0))
