"""Which database serves: starting -> serving (PostgreSQL, SQLite or nothing) -> stopped.

One thread owns every engine: it chooses the database once the server listens, opens the gate, and
then looks after it. The health report is whatever it last found.
"""

import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args
from uuid import UUID, uuid4

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from src import __version__
from src.config.settings import Settings, read_space
from src.database import handover, postgresql, promotion, sqlite
from src.database.errors import DatabaseUnavailable, connection_reason
from src.database.handover import Busy
from src.database.opening import CannotServe, Opened, bounded, is_memory, open_postgresql, ping
from src.database.reasons import HARMLESS, REASONS
from src.database.report import (
    Backend,
    Report,
    Status,
    describe_nothing,
    describe_postgresql,
    describe_sqlite,
    now,
)
from src.database.resolver import DatabaseURLResolver
from src.database.session import DEFAULT_POOL_SIZE, Database
from src.database.snapshot_timer import FALLBACK, Snapshots
from src.database.sqlite_files import SQLiteFiles
from src.observability.metrics import (
    BACKEND,
    CHECK_DURATION,
    FALLBACKS,
    PENDING_ROWS,
    PERSISTENT,
    STATUS,
)

logger = logging.getLogger(__name__)

CHECK_SECONDS = 3.0
INTERVAL_WHILE_DOWN_SECONDS = 0.5
STOP_SECONDS = 20.0
LONGEST_PAUSE_BETWEEN_HANDOVERS_SECONDS = 300.0
SECONDS_BETWEEN_LONG_COUNTS = 60.0


class DatabaseLifecycle:
    """Opens and closes the gate of one Database, and reports on it."""

    def __init__(
        self, database: Database, settings: Settings, environ: Mapping[str, str] = os.environ
    ) -> None:
        self._database = database
        self._settings = settings
        self._on_space = read_space(environ).is_running_here
        snapshot_url = settings.snapshot_url.get_secret_value() if settings.snapshot_url else None
        self._snapshots = Snapshots(snapshot_url, settings.snapshot_interval)
        self._files = SQLiteFiles(settings.sqlite_dir, self._snapshots)
        self._resolution = DatabaseURLResolver(environ).resolve()
        self._asked_for_sqlite = self._resolution.reason in ("unset", "empty") or (
            self._resolution.backend == "sqlite" and self._resolution.source == "environment"
        )
        # a PostgreSQL that was once seen is never replaced by SQLite
        self._may_fall_back = settings.database_fallback == "auto"
        self._engine: Engine | None = None
        self._handed_over_memory: dict[UUID, Engine] = {}
        self._pending_elsewhere = 0
        self._failed_handovers = 0
        self._next_handover = 0.0
        self._doubted = self._met_damage = False
        self._next_count, self._counted_rows = 0.0, 0
        self._unanswered_checks = 0
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="database-lifecycle", daemon=True)
        self.report = Report(
            status="starting",
            source=self._resolution.source,
            detail="The database is being chosen.",
            repairs=self._resolution.repairs,
        )
        self._serving_report = self.report
        self._show(self.report)
        self._created = time.monotonic()
        database.on_trouble = self._doubt

    @property
    def is_ready(self) -> bool:
        """Whether the data routes work."""
        return self._database.is_open and self.report.status in ("ok", "degraded")

    def start(self) -> None:
        """Choose the database in the background and watch it until stop()."""
        self._thread.start()

    def stop(self) -> None:
        """Let admitted work finish, hand over once more, close the engine; all in STOP_SECONDS."""
        begun = time.monotonic()
        deadline = begun + STOP_SECONDS
        engine = self._engine
        if engine is not None and self._unanswered_checks:
            # nobody will answer the work that is under way
            postgresql.sever(engine)
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            # a connection attempt cannot be interrupted; its daemon thread ends with the process
            self._thread.join(timeout=CHECK_SECONDS)
        try:
            bounded(
                lambda: self._database.close("The server is stopping."),
                deadline - time.monotonic(),
            )
            if not self._thread.is_alive():
                self._step(lambda: bounded(self._return_to_postgresql, deadline - time.monotonic()))
        except TimeoutError:
            logger.warning("database work did not finish in time and is cut off")
        self._snapshots.end(last_within=deadline - time.monotonic())
        if self._engine is not None:
            postgresql.sever(self._engine)
            self._engine.dispose()
        newest = self._snapshots.taken_at
        logger.info(
            "stopped: the database is closed",
            extra={
                "pending_rows": self.report.pending_rows,
                "snapshot_taken": newest is not None and newest >= begun,
                "seconds": round(time.monotonic() - begun, 1),
            },
        )

    def choose(self) -> None:
        """Make a database serve, or report why none does."""
        if self._asked_for_sqlite:
            self._serve_sqlite(self._resolution.reason)
            return
        reason: str = self._resolution.reason or "unparseable"
        cause: BaseException | None = None
        if self._resolution.url is not None:
            try:
                self._choose_postgresql()
                return
            except CannotServe as error:
                reason, cause = error.reason, error.__cause__
                self._may_fall_back = self._may_fall_back and not error.reached
        if self._may_fall_back:
            self._serve_sqlite(reason)
        else:
            self._serve_nothing(reason, cause)

    def _run(self) -> None:
        while not self._stopping.is_set():
            begun = time.monotonic()
            self._step(self._tick)
            pause = self._settings.database_check_seconds
            if not self._database.is_open:
                pause = min(pause, INTERVAL_WHILE_DOWN_SECONDS)
            self._wake.wait(max(0.1, begun + pause - time.monotonic()))
            self._wake.clear()

    def _tick(self) -> None:
        if self._engine is not None and not self._files.are_in_place:
            logger.error("the SQLite file was removed while it served: another one takes its place")
            # to wait for work would keep the gate to a file open in which everything is lost
            self._database.close("The database file is gone; nothing was stored.", wait=False)
            self._snapshots.end()
            self._engine.dispose()
            self._engine = None
            self._files.leave()
        if self._engine is None:
            self.choose()
        else:
            self._check(self._engine)
        if time.monotonic() >= self._next_handover:
            self._return_to_postgresql()

    def _step(self, step: Callable[[], None]) -> None:
        """Take a step; a mistake in one must not end the thread that all reports come from."""
        try:
            step()
        except Exception as error:
            # the frames and the name only: the text may tell of hosts, users and values
            frames = "".join(traceback.format_tb(error.__traceback__))
            logger.error(
                "the database could not be looked after: %s\n%s", type(error).__name__, frames
            )
            self._announce(self._unavailable("internal"))

    def _doubt(self, reason: str | None) -> None:
        """Check now, and with a write: a request met trouble."""
        if reason is not None:
            self._doubted = True
            self._met_damage = self._met_damage or reason == "corrupt"
            self._wake.set()

    # PostgreSQL

    def _reach_postgresql(self, seconds: float, *, retry: bool) -> Opened:
        return open_postgresql(
            self._resolution,
            connections=self._pool_size("postgresql") + 1,
            seconds=seconds,
            may_retry=lambda pause: retry and not self._stopping.wait(pause),
        )

    def _choose_postgresql(self) -> None:
        """Serve PostgreSQL once the rows that wait for it are in it; raise CannotServe."""
        connect_seconds = self._settings.database_connect_seconds
        seconds = connect_seconds if self._may_fall_back else CHECK_SECONDS
        opened = self._reach_postgresql(seconds, retry=True)
        try:
            self._files.fetch_waiting(opened.engine)
            with self._files.owned() as files:
                self._move(files, opened.engine)
        except (CannotServe, Busy) as error:
            failure = CannotServe("locked", reached=False) if isinstance(error, Busy) else error
            if self._may_fall_back or failure.reached:
                opened.engine.dispose()
                raise failure from None
            logger.warning("PostgreSQL serves without the rows that wait on SQLite")
        self._serve_postgresql(opened)

    def _serve_postgresql(self, opened: Opened) -> None:
        self._may_fall_back = False
        pending_rows = self._files.count_waiting() + self._count_refused(opened.engine)
        self._open(
            opened.engine,
            Report(
                status="ok",
                backend="postgresql",
                source="environment",
                reason="schema_newer" if opened.schema_newer else None,
                detail=describe_postgresql(
                    schema_newer=opened.schema_newer,
                    pending_rows=pending_rows,
                    rows_from_before=self._files.count_asked_for(),
                ),
                persistent=True,
                repairs=self._resolution.repairs,
                pending_rows=pending_rows,
            ),
        )

    def _count_refused(self, engine: Engine) -> int:
        try:
            return promotion.count_refused(engine, self._files.promoted())
        except SQLAlchemyError as error:
            # the table may be another role's; PostgreSQL serves all the same
            logger.warning("refused rows could not be counted: %s", connection_reason(error))
            return 0

    def _return_to_postgresql(self) -> None:
        """Hand over to the PostgreSQL that was away if it answers now."""
        engine = self._engine
        if engine is None or engine.dialect.name != "sqlite" or self._asked_for_sqlite:
            return
        if self._resolution.url is None:
            return
        try:
            opened = self._reach_postgresql(CHECK_SECONDS, retry=False)
        except CannotServe as error:
            self._explain_fallback(engine, error.reason)
            return
        try:
            self._files.fetch_waiting(opened.engine)
            with self._files.owned() as files:
                self._leave_sqlite(engine)
                self._move(files, opened.engine)
        except (CannotServe, Busy) as error:
            opened.engine.dispose()
            self._stay_on_sqlite(error)
            return
        self._failed_handovers = 0
        self._files.leave()
        self._serve_postgresql(opened)

    def _leave_sqlite(self, engine: Engine) -> None:
        """Close the gate and every connection; raise Busy if work does not end in time."""
        refusal = "The rows are being moved to PostgreSQL; try again in a moment."
        try:
            bounded(lambda: self._database.close(refusal), CHECK_SECONDS)
        except TimeoutError:
            self._open(engine, self._serving_report)
            self._put_off_handover()
            raise Busy from None
        # if this process and its disk end meanwhile, the next one finds the rows in a snapshot
        has_rows = any(promotion.count_rows(engine).values())
        self._snapshots.end(last_within=CHECK_SECONDS if has_rows else 0.0)
        if is_memory(engine.url):
            self._handed_over_memory[uuid4()] = engine
        else:
            engine.dispose()
        self._engine = None

    def _move(self, files: list[Path], target: Engine) -> None:
        """Move all rows that wait for PostgreSQL; raise CannotServe or Busy."""
        handover.move_all(
            files,
            self._handed_over_memory,
            target,
            mark=lambda file_id: self._snapshots.mark(f"{FALLBACK}-{file_id.hex}"),
            unmark=lambda file_id: self._snapshots.unmark(f"{FALLBACK}-{file_id.hex}"),
        )

    def _stay_on_sqlite(self, error: CannotServe | Busy) -> None:
        """Serve SQLite on, after a hand-over that could not be made."""
        reason = error.reason if isinstance(error, CannotServe) else "locked"
        if self._engine is not None:
            self._explain_fallback(self._engine, reason)
            return
        self._put_off_handover()
        self._files.leave()
        if isinstance(error, CannotServe) and error.reached:
            self._may_fall_back = False
            self._serve_nothing(reason)
        elif self._handed_over_memory:
            self._open(self._handed_over_memory.popitem()[1], self._serving_report)
        else:
            self._serve_sqlite(reason)

    def _put_off_handover(self) -> None:
        self._failed_handovers += 1
        self._next_handover = time.monotonic() + min(
            2.0**self._failed_handovers, LONGEST_PAUSE_BETWEEN_HANDOVERS_SECONDS
        )

    # SQLite

    def _serve_sqlite(self, reason: str | None) -> None:
        connections = self._pool_size("sqlite") + 1
        try:
            if self._asked_for_sqlite:
                opened, trouble = self._files.open_asked_for(self._resolution.url, connections)
                reason = trouble or reason
            else:
                opened = self._files.open_fallback(connections)
        except CannotServe as error:
            self._serve_nothing(error.reason, error.__cause__)
            return
        if reason is None and opened.schema_newer:
            reason = "schema_newer"
        path = opened.engine.url.database
        if not self._asked_for_sqlite:
            self._pending_elsewhere = self._files.count_waiting(but=path)
        persistent = (
            path is not None
            and not self._on_space
            and sqlite.file_system(path) not in ("tmpfs", "ramfs")
        )
        self._open(
            opened.engine,
            Report(
                status="ok" if self._asked_for_sqlite and reason in HARMLESS else "degraded",
                backend="sqlite",
                source=self._resolution.source,
                reason=reason,
                detail=self._describe_sqlite(reason, path is None, persistent),
                persistent=persistent,
                repairs=self._resolution.repairs,
            ),
        )

    def _explain_fallback(self, engine: Engine, reason: str) -> None:
        """Report why SQLite still serves."""
        report = self._serving_report
        if report.reason != reason:
            detail = self._describe_sqlite(reason, is_memory(engine.url), report.persistent)
            self._serving_report = replace(report, reason=reason, detail=detail)
            self._check(engine)

    def _describe_sqlite(self, reason: str | None, in_memory: bool, persistent: bool) -> str:
        return describe_sqlite(
            reason,
            cause=self._cause(reason),
            advice=self._advice(reason),
            in_memory=in_memory,
            persistent=persistent,
            asked_for=self._asked_for_sqlite,
        )

    # the gate and the report

    def _cause(self, reason: str | None) -> str:
        """Return what is wrong with a database; "" if DATABASE_URL was refused unread."""
        known = REASONS.get(reason or "")
        if known is None or reason in (self._resolution.reason, *HARMLESS):
            return ""
        return known.explanation

    def _advice(self, reason: str | None) -> str:
        """Return what to do about DATABASE_URL, or "" if the reason does not lie in it."""
        if not self._cause(reason):
            return self._resolution.message
        return "" if REASONS[reason or ""].reached else self._resolution.advice

    def _serve_nothing(self, reason: str, cause: BaseException | None = None) -> None:
        sentence, advice = self._cause(reason), self._advice(reason)
        self._database.close(f"No database serves: {sentence or advice}", wait=False)
        self._announce(
            Report(
                status="unavailable",
                source=self._resolution.source,
                reason=reason,
                detail=describe_nothing(sentence, advice),
                repairs=self._resolution.repairs,
            ),
            cause if reason == "migration_failed" else None,
        )

    def _open(self, engine: Engine, report: Report) -> None:
        if self._stopping.is_set():
            engine.dispose()
            return
        self._engine = engine
        self._database.open(
            engine,
            self._pool_size(engine.dialect.name),
            instead_of_postgresql=report.backend == "sqlite" and not self._asked_for_sqlite,
        )
        self._serving_report = report
        self._next_count, self._counted_rows = 0.0, 0
        self._check(engine)

    def _check(self, engine: Engine) -> None:
        """Ask the database whether it works, and say so; close the gate while it does not."""
        in_memory = is_memory(engine.url)
        doubted, self._doubted = self._doubted, False
        latency, pending_rows = 0.0, self._serving_report.pending_rows
        try:
            if self._met_damage and engine.dialect.name == "sqlite":
                self._look_for_damage(Path(str(engine.url.database)))
            if not in_memory:
                latency = bounded(lambda: ping(engine, write=doubted), CHECK_SECONDS)
            if self._database.serves_instead_of_postgresql:
                pending_rows = self._count_rows(engine) + self._pending_elsewhere
        except (SQLAlchemyError, DatabaseUnavailable, TimeoutError) as error:
            # memory is there as long as the process is; only its one connection is in use
            if not in_memory:
                self._report_trouble(engine, error, doubted)
                return
        self._unanswered_checks = 0
        self._database.resume()
        detail = self._serving_report.detail
        if engine.dialect.name == "sqlite" and not in_memory:
            detail = f"{detail} {self._snapshots.describe()}".rstrip()
        self._announce(
            replace(
                self._serving_report,
                detail=detail,
                latency_ms=latency,
                pending_rows=pending_rows,
                checked_at=now(),
            )
        )

    def _count_rows(self, engine: Engine) -> int:
        """Return how many rows there are, or were when they could last be counted in time."""
        if time.monotonic() >= self._next_count:
            try:
                counts = bounded(lambda: promotion.count_rows(engine), CHECK_SECONDS)
                self._counted_rows = sum(counts.values())
            except TimeoutError:
                # so many that to count them all the time would hold up everything else
                self._next_count = time.monotonic() + SECONDS_BETWEEN_LONG_COUNTS
                # not known is not none
                self._counted_rows = max(1, self._counted_rows)
        return self._counted_rows

    def _look_for_damage(self, file: Path) -> None:
        """Raise DatabaseUnavailable if the damage that a request met is there."""
        if not bounded(lambda: sqlite.is_sound(file), CHECK_SECONDS):
            raise DatabaseUnavailable(REASONS["corrupt"].cause, reason="corrupt")
        self._met_damage = False

    def _report_trouble(self, engine: Engine, error: Exception, doubted: bool) -> None:
        reason = connection_reason(error)
        self._unanswered_checks += isinstance(error, TimeoutError)
        self._doubted = doubted
        # a file that cannot be written to can often still be read
        is_away = engine.dialect.name == "postgresql"
        self._database.suspend(f"Nothing was stored: {REASONS[reason].explanation}.", reads=is_away)
        if is_away and isinstance(error, TimeoutError):
            self._database.abandon()
        if self._unanswered_checks > 1:
            postgresql.sever(engine)
        self._announce(self._unavailable(reason))

    def _unavailable(self, reason: str) -> Report:
        return replace(
            self._serving_report,
            status="unavailable",
            reason=reason,
            detail=describe_nothing(REASONS[reason].explanation, ""),
            checked_at=now(),
        )

    def _announce(self, report: Report, cause: BaseException | None = None) -> None:
        before, self.report = self.report, report
        self._show(report)
        if report.backend == "sqlite" != before.backend and not self._asked_for_sqlite:
            FALLBACKS.inc()
        if (before.status, before.reason, before.backend) != (
            report.status,
            report.reason,
            report.backend,
        ):
            log = logger.info if report.status == "ok" else logger.warning
            first = before.status == "starting"
            seconds = round(time.monotonic() - self._created, 1)
            log(
                "database %s: %s",
                report.status,
                report.detail,
                exc_info=cause,
                extra={"version": __version__, "seconds": seconds} if first else None,
            )

    def _show(self, report: Report) -> None:
        """Let the metrics say what the report says."""
        for status in get_args(Status):
            STATUS.labels(status).set(status == report.status)
        for backend in get_args(Backend):
            BACKEND.labels(backend).set(backend == report.backend)
        PERSISTENT.set(report.persistent)
        PENDING_ROWS.set(report.pending_rows)
        if report.latency_ms is not None:
            CHECK_DURATION.set(report.latency_ms / 1000)

    def _pool_size(self, backend: str) -> int:
        return self._settings.pool_size or DEFAULT_POOL_SIZE[backend]
