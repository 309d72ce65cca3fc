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
from sqlalchemy.exc import SQLAlchemyError

from space_runtime.backends import POSTGRESQL, SQLITE, backend_of
from space_runtime.backends.errors import DatabaseUnavailable, connection_reason
from space_runtime.backends.protocol import Backend, Name
from space_runtime.backends.sqlite import is_sound
from space_runtime.failback.handover import ROWS_FOLLOW, Failback, is_moved
from space_runtime.file_locks import Busy
from space_runtime.files.locations import outlives_container
from space_runtime.files.sqlite_files import SQLiteFiles
from space_runtime.lifecycle import state as machine
from space_runtime.lifecycle.report import DatabaseReport, Status, admission, describe, status
from space_runtime.lifecycle.state import CHECK_SECONDS, STOP_SECONDS, Observation, State, Step
from space_runtime.migrations import Migrations
from space_runtime.migrations.opening import (
    MIGRATION_SECONDS,
    CannotServe,
    Opened,
    open_postgresql,
    ping,
)
from space_runtime.observability.metrics import (
    BACKEND,
    CHECK_DURATION,
    FALLBACKS,
    PENDING_ROWS,
    PERSISTENT,
    STATUS,
)
from space_runtime.project import Project
from space_runtime.records import failbacks
from space_runtime.serving.database import Database
from space_runtime.snapshots.schedule import Snapshots
from space_runtime.time_limit import within

logger = logging.getLogger(__name__)

SECONDS_TO_GIVE_UP = 1.5
"""How long a stop waits while no database serves: whoever stops it counts on three seconds."""


class Lifecycle:
    """Opens and closes databases for one Database, and reports on them."""

    def __init__(
        self,
        database: Database,
        configuration: machine.Configuration,
        project: Project,
        migrations: Migrations,
        files: SQLiteFiles,
        snapshots: Snapshots,
        *,
        pool_size: int | None,
        on_space: bool,
    ) -> None:
        self._database = database
        self._project = project
        self._migrations = migrations
        self._files = files
        self._snapshots = snapshots
        self._pool_size = pool_size
        self._on_space = on_space

        self._engine: Engine | None = None
        self._candidate: Opened | None = None
        self._locks = ExitStack()
        self._waiting_files: list[Path] = []
        self._refused: int | None = None
        """How many rows a PostgreSQL that cannot serve refused before; None if it was not asked."""

        self._created = time.monotonic()
        self._state = machine.begin(configuration, self._created)
        # While the runner is at work, other threads report trouble and ask it to stop.
        self._state_lock = threading.Lock()
        self._wake = threading.Event()
        self._settled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="database-lifecycle", daemon=True)
        self.status: Status = status(self._state)
        self.report: DatabaseReport = describe(self._state, _utc_now())
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
        self._update(lambda state: machine.stop(state, begun))
        self._wake.set()
        # A connection attempt cannot be interrupted, but its daemon thread ends with the process.
        self._thread.join(timeout=STOP_SECONDS + 1 if serves else SECONDS_TO_GIVE_UP)
        if not self._thread.is_alive():
            log, outcome = logger.info, "the database is closed"
        elif serves:
            log, outcome = logger.warning, "the database could not be closed in time"
        else:
            log, outcome = logger.info, "no database served"
        taken_at = self._snapshots.taken_at
        log(
            "stopped: %s",
            outcome,
            extra={
                "pending_rows": self.report.pending_rows,
                "snapshot_taken": taken_at is not None and taken_at >= begun,
                "seconds": round(time.monotonic() - begun, 1),
            },
        )

    def _run(self) -> None:
        while self._state.phase != "stopped":
            try:
                self._perform_or_wait()
            except Exception as error:
                # A bug must not end this thread: /health would repeat its last report forever.
                self._log_bug(error)
                self._update(machine.note_bug)
                self._publish()
                self._wake.wait(machine.SECONDS_BETWEEN_CHECKS_WHILE_DOWN)

    def _perform_or_wait(self) -> None:
        now = time.monotonic()
        step, due = machine.decide(self._state, now)
        if due > now:
            self._wake.wait(due - now)
            self._wake.clear()
            return
        observation = self._observe(step)
        now = time.monotonic()
        self._update(partial(machine.advance, step=step, observation=observation, now=now))
        self._close_unused()
        self._publish()

    def _suspect(self, reason: str | None) -> None:
        self._update(lambda state: machine.suspect(state, reason))
        if self._state.suspicion:
            self._wake.set()

    def _update(self, change: Callable[[State], State]) -> None:
        with self._state_lock:
            self._state = change(self._state)
            self._database.admission = admission(self._state)

    def _observe(self, step: Step) -> Observation:
        """Perform the step; return what was observed, also if it failed."""
        is_there, detail = False, ""
        try:
            observation = self._perform(step)
            return machine.Done() if observation is None else observation
        except CannotServe as error:
            reason, is_there, detail = error.reason, error.is_there, error.detail
            if reason == "migration_failed" != self._state.reason:
                logger.error("a migration failed", exc_info=error.__cause__)
        except Busy:
            reason = "locked"
        except (SQLAlchemyError, DatabaseUnavailable, TimeoutError) as error:
            reason = connection_reason(error)
        except Exception as error:
            self._log_bug(error)
            reason = "internal"
        pending_rows = 0
        if self._engine is None:
            pending_rows = self._files.count_waiting() + (self._refused or 0)
        return machine.Failed(reason, is_there, pending_rows, detail)

    def _perform(self, step: Step) -> Observation | None:
        match step.action:
            case "connect":
                self._connect(step.seconds)
            case "open SQLite":
                return self._open_sqlite()
            case "lock files":
                self._lock_files()
            case "drain":
                self._drain(step.seconds)
            case "move rows":
                self._move_rows()
            case "serve PostgreSQL":
                return self._serve_postgresql()
            case "check":
                return self._check(step)
            case "close":
                self._close(step.seconds)
        return None

    # steps

    def _connect(self, seconds: float) -> None:
        resolution = self._state.configuration.resolution
        if resolution.url is None:
            # This cannot succeed, and is repeated only to count the waiting rows again.
            raise CannotServe(str(resolution.reason), is_there=False)
        connections = self._size_for(POSTGRESQL) + 1
        try:
            self._candidate = open_postgresql(
                resolution, self._migrations, connections=connections, seconds=seconds
            )
        except CannotServe as error:
            if error.reason in ("read_only", "migration_failed") and self._refused is None:
                # A connection that was not prepared to serve is not closed for being read-only.
                engine = POSTGRESQL.create_engine(resolution.url, resolution.secrets, 1)
                with suppress(SQLAlchemyError, TimeoutError):
                    self._refused = within(CHECK_SECONDS, partial(_count_refused, engine))
                engine.dispose()
            raise

    def _open_sqlite(self) -> Observation:
        self._files.leave()
        configuration, connections = self._state.configuration, self._size_for(SQLITE) + 1
        if configuration.backend == "sqlite":
            file = self._files.open_configured(configuration.resolution.url, connections)
        else:
            file = self._files.open_fallback(connections)
        self._use(file.opened.engine)
        return machine.Opened(
            persistent=not self._on_space and outlives_container(file.path),
            schema_newer=file.opened.schema_newer,
            problem=file.problem,
            pending_rows=self._count_pending(file.opened.engine),
        )

    def _lock_files(self) -> None:
        candidate = self._postgresql().engine
        self._files.restore_waiting(partial(is_moved, candidate))
        can_wait = self._engine is not None and not self._state.stopping
        if can_wait and POSTGRESQL.is_being_migrated(candidate):
            # Later, the data routes would have to wait as well.
            raise CannotServe("locked", is_there=False, detail=ROWS_FOLLOW)
        self._waiting_files = self._locks.enter_context(self._files.waiting_exclusively())

    def _drain(self, seconds: float) -> None:
        engine = self._serving()
        self._database.leave()
        if not self._database.drain(seconds):
            self._use(engine)
            raise Busy
        # If the process and its disk are lost during the move, a snapshot still has the rows.
        self._snapshots.end(last_within=seconds)
        self._close_engine()

    def _move_rows(self) -> None:
        failback = Failback(
            self._postgresql().engine, self._project.metadata, self._migrations, self._snapshots
        )
        failback.move_all(self._waiting_files)

    def _serve_postgresql(self) -> Observation:
        candidate = self._postgresql()
        self._candidate = None
        self._locks.close()
        self._files.leave()
        self._use(candidate.engine)
        pending_rows, problem = self._files.count_waiting(), ""
        # If the connection was lost, the next check will say so.
        with (
            suppress(SQLAlchemyError, DatabaseUnavailable),
            candidate.engine.connect() as connection,
        ):
            problem = failbacks.problem(connection)
            pending_rows += failbacks.count_refused(connection)
        if problem:
            logger.warning(problem)
        if pending_rows:
            logger.warning(
                "PostgreSQL serves without %d rows of an outage: see make failback LIST=1",
                pending_rows,
            )
        return machine.Opened(
            schema_newer=candidate.schema_newer,
            failback_problem=problem,
            pending_rows=pending_rows,
            rows_from_before=self._files.count_configured(),
        )

    def _check(self, check: Step) -> Observation:
        engine = self._serving()
        if not self._files.is_present:
            logger.error("the SQLite file was removed while it served: choosing a database again")
            return machine.FileRemoved()

        def ask() -> Observation:
            may_be_damaged = check.suspicion == "corrupt" and backend_of(engine) is SQLITE
            if may_be_damaged and not is_sound(Path(str(engine.url.database))):
                raise CannotServe("corrupt", is_there=False)
            latency = ping(engine, write=check.suspicion is not None)
            return machine.Answered(
                latency, self._count_pending(engine), self._snapshots.describe()
            )

        return within(check.seconds, ask)

    def _close(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self._database.leave()
        if not self._database.drain(seconds):
            logger.warning("database work did not finish in time and is cut off")
        self._snapshots.end(last_within=deadline - time.monotonic())
        if self._engine is not None:
            backend_of(self._engine).terminate_connections(self._engine)
        self._close_engine()
        self._files.leave()

    # engines in use

    def _serving(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("no database serves in this phase")
        return self._engine

    def _postgresql(self) -> Opened:
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
            self._candidate.engine.dispose()
            self._candidate = None
        if self._state.phase not in ("draining", "moving"):
            self._locks.close()
        if self._state.backend is None:
            # There is no drain here: work on a file that was removed is lost in any case.
            self._database.leave()
            self._snapshots.end()
            self._close_engine()
            self._files.leave()
        elif self._state.is_silent and self._engine is not None:
            # Wakes the threads that wait. No more work is admitted, so none takes their place.
            backend_of(self._engine).terminate_connections(self._engine)

    def _count_pending(self, engine: Engine) -> int:
        """Return how many rows are not in PostgreSQL, but should be."""
        if self._state.configuration.backend == "sqlite":
            return 0
        waiting = self._files.count_waiting()
        if backend_of(engine) is SQLITE:
            return waiting
        return waiting + _count_refused(engine)

    # reporting

    def _publish(self) -> None:
        before = (self.status, self.report.reason, self.report.backend)
        self.status, self.report = status(self._state), describe(self._state, _utc_now())
        self._show()
        if self._state.is_fallback and before[2] != "sqlite":
            FALLBACKS.inc()
        if before != (self.status, self.report.reason, self.report.backend):
            log = logger.info if self.status == "ok" else logger.warning
            seconds = round(time.monotonic() - self._created, 1)
            is_first = before[0] == "starting"
            extra = {"version": self._project.version, "seconds": seconds} if is_first else None
            log("database %s: %s", self.status, self.report.detail, extra=extra)
        if self._state.has_settled:
            self._settled.set()

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


def _count_refused(engine: Engine) -> int:
    with engine.connect().execution_options(reading=True) as connection:
        return failbacks.count_refused(connection)


def _utc_now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
