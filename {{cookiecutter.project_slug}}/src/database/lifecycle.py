"""Which database serves: starting -> serving (PostgreSQL, SQLite or nothing) -> stopped.

One thread owns every engine: it chooses the database once the server listens, opens the gate, and
then looks after it. The health report is whatever it last found.
"""

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

from sqlalchemy import URL, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from src.config.settings import Settings, read_space
from src.database import handover, places, postgresql, promotion
from src.database.engine import is_memory
from src.database.errors import (
    CAUSES,
    DatabaseUnavailable,
    OutcomeUnknown,
    connection_reason,
    running_reason,
)
from src.database.handover import Busy, Claim
from src.database.opening import (
    CannotServe,
    Opened,
    bounded,
    open_postgresql,
    open_sqlite,
    ping,
    set_aside,
)
from src.database.report import (
    HARMLESS,
    Report,
    describe_nothing,
    describe_postgresql,
    describe_sqlite,
    now,
)
from src.database.resolver import DatabaseURLResolver
from src.database.session import DEFAULT_POOL_SIZE, Database

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
CHECK_SECONDS = 3.0
INTERVAL_SECONDS = 2.0
INTERVAL_WHILE_DOWN_SECONDS = 0.5
SILENCE_SECONDS = 20.0
STOP_SECONDS = 20.0
LONGEST_PAUSE_BETWEEN_HANDOVERS_SECONDS = 300.0

ASKED_FOR_FILE = "app.db"


class DatabaseLifecycle:
    """Opens and closes the gate of one Database, and reports on it."""

    def __init__(
        self, database: Database, settings: Settings, environ: Mapping[str, str] = os.environ
    ) -> None:
        self._database = database
        self._settings = settings
        self._on_space = read_space(environ).is_running_here
        self._directories = places.directories(settings.sqlite_dir)
        self._resolution = DatabaseURLResolver(environ).resolve()
        self._asked_for_sqlite = self._resolution.reason in ("unset", "empty") or (
            self._resolution.backend == "sqlite" and self._resolution.source == "environment"
        )
        # a PostgreSQL that was once seen is never replaced by SQLite
        self._may_fall_back = settings.database_fallback == "auto"
        self._engine: Engine | None = None
        self._claim: Claim | None = None
        self._handed_over_memory: dict[UUID, Engine] = {}
        self._pending_elsewhere = 0
        self._failed_handovers = 0
        self._next_handover = 0.0
        self._doubted = False
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
        deadline = time.monotonic() + STOP_SECONDS
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
                bounded(self._return_to_postgresql, deadline - time.monotonic())
        except TimeoutError:
            logger.warning("database work did not finish in time and is cut off")
        if self._engine is not None:
            postgresql.sever(self._engine)
            self._engine.dispose()
        logger.info("database closed")

    def choose(self) -> None:
        """Make a database serve, or report why none does."""
        if self._asked_for_sqlite:
            self._serve_sqlite(self._resolution.reason)
            return
        reason: str = self._resolution.reason or "unparseable"
        advice, cause = self._resolution.message, None
        if self._resolution.url is not None:
            try:
                self._choose_postgresql(self._resolution.url)
                return
            except CannotServe as error:
                reason, advice, cause = error.reason, "", error.__cause__
                self._may_fall_back = self._may_fall_back and not error.reached
        if self._may_fall_back:
            self._serve_sqlite(reason)
        else:
            self._serve_nothing(reason, advice, cause)

    def _run(self) -> None:
        while not self._stopping.is_set():
            begun = time.monotonic()
            self._step(self._tick)
            pause = INTERVAL_SECONDS if self._database.is_open else INTERVAL_WHILE_DOWN_SECONDS
            self._wake.wait(max(0.1, begun + pause - time.monotonic()))
            self._wake.clear()

    def _tick(self) -> None:
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
            # the name only: the text may tell of hosts and users
            logger.error("the database could not be looked after: %s", type(error).__name__)
            self._announce(self._unavailable("unreachable"))

    def _doubt(self, reason: str | None) -> None:
        """Check now, and with a write: a request met trouble."""
        if reason is not None:
            self._doubted = True
            self._wake.set()

    # PostgreSQL

    def _reach_postgresql(self, url: URL, seconds: float, *, retry: bool) -> Opened:
        return open_postgresql(
            url,
            connections=self._pool_size("postgresql") + 1,
            transaction_pooler=self._resolution.transaction_pooler,
            seconds=seconds,
            may_retry=lambda pause: retry and not self._stopping.wait(pause),
        )

    def _choose_postgresql(self, url: URL) -> None:
        """Serve PostgreSQL once the rows that wait for it are in it; raise CannotServe."""
        seconds = CONNECT_SECONDS if self._may_fall_back else CHECK_SECONDS
        opened = self._reach_postgresql(url, seconds, retry=True)
        try:
            with handover.owning(self._waiting_files()):
                self._move_rows(opened.engine)
        except (CannotServe, Busy) as error:
            failure = CannotServe("locked", reached=False) if isinstance(error, Busy) else error
            if self._may_fall_back or failure.reached:
                opened.engine.dispose()
                raise failure from None
            logger.warning("PostgreSQL serves without the rows that wait on SQLite")
        self._serve_postgresql(opened)

    def _serve_postgresql(self, opened: Opened) -> None:
        self._may_fall_back = False
        pending_rows = self._count_waiting() + promotion.count_refused(
            opened.engine,
            [handover.id_of(file) for file in handover.find("promoted", self._directories)],
        )
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
                    rows_from_before=self._rows_from_before(),
                ),
                persistent=True,
                repairs=self._resolution.repairs,
                pending_rows=pending_rows,
            ),
        )

    def _return_to_postgresql(self) -> None:
        """Hand over to the PostgreSQL that was away if it answers now."""
        engine, url = self._engine, self._resolution.url
        if engine is None or engine.dialect.name != "sqlite" or self._asked_for_sqlite or not url:
            return
        try:
            opened = self._reach_postgresql(url, CHECK_SECONDS, retry=False)
        except CannotServe as error:
            self._explain_fallback(engine, error.reason)
            return
        try:
            with handover.owning(self._waiting_files(), self._claim):
                self._leave_sqlite(engine)
                self._move_rows(opened.engine)
        except (CannotServe, Busy) as error:
            opened.engine.dispose()
            self._stay_on_sqlite(error)
            return
        self._failed_handovers = 0
        self._release_claim()
        self._serve_postgresql(opened)

    def _leave_sqlite(self, engine: Engine) -> None:
        """Close the gate and every connection; raise Busy if work does not end in time."""
        refusal = "The rows are being moved to PostgreSQL; try again in a moment."
        try:
            bounded(lambda: self._database.close(refusal), CHECK_SECONDS)
        except TimeoutError:
            self._open(engine, self._serving_report)
            raise Busy from None
        if is_memory(engine.url):
            self._handed_over_memory[uuid4()] = engine
        else:
            engine.dispose()
        self._engine = None

    def _move_rows(self, target: Engine) -> None:
        """Move all rows that wait for PostgreSQL; raise CannotServe if some had to stay behind."""
        progress = threading.Event()

        def move() -> None:
            for file in self._waiting_files():
                self._move_file(file, target, progress.set)
            for promotion_id, engine in list(self._handed_over_memory.items()):
                promotion.promote(engine, target, promotion_id, progress.set)
                del self._handed_over_memory[promotion_id]
                engine.dispose()

        try:
            bounded(move, SILENCE_SECONDS, progress, lambda: postgresql.sever(target))
        except (OutcomeUnknown, TimeoutError):
            # perhaps they were moved: only PostgreSQL can tell, so only PostgreSQL may serve
            raise CannotServe("connection_lost", reached=True) from None
        except promotion.SchemasDiffer:
            raise CannotServe("schema_newer", reached=False) from None
        except (SQLAlchemyError, DatabaseUnavailable, sqlite3.Error, OSError) as error:
            code = getattr(getattr(error, "orig", error), "sqlstate", None)
            logger.error("rows could not be moved: %s %s", type(error).__name__, code or "")
            reason = running_reason(error) or "migration_failed"
            raise CannotServe(reason, reached=False) from None

    def _move_file(self, file: Path, target: Engine, on_progress: Callable[[], None]) -> None:
        try:
            handover.move(file, target, on_progress=on_progress)
        except DBAPIError as error:
            of_the_file = isinstance(error.orig, sqlite3.Error)
            if not of_the_file or running_reason(error) != "corrupt":
                raise
            set_aside(file)

    def _stay_on_sqlite(self, error: CannotServe | Busy) -> None:
        """Serve SQLite on, after a hand-over that could not be made."""
        reason = error.reason if isinstance(error, CannotServe) else "locked"
        if self._engine is not None:
            self._explain_fallback(self._engine, reason)
            return
        self._failed_handovers += 1
        self._next_handover = time.monotonic() + min(
            2.0**self._failed_handovers, LONGEST_PAUSE_BETWEEN_HANDOVERS_SECONDS
        )
        self._release_claim()
        if isinstance(error, CannotServe) and error.reached:
            self._may_fall_back = False
            self._serve_nothing(reason)
        elif self._handed_over_memory:
            self._open(self._handed_over_memory.popitem()[1], self._serving_report)
        else:
            self._serve_sqlite(reason)

    def _waiting_files(self) -> list[Path]:
        """Return the files whose rows PostgreSQL should have, the oldest hand-over first."""
        return handover.find("handover", self._directories) + handover.find(
            "fallback", self._directories
        )

    # SQLite

    def _serve_sqlite(self, reason: str | None) -> None:
        path: Path | None
        if self._asked_for_sqlite:
            path, place_reason = self._asked_for_path()
            if reason in HARMLESS:
                reason = place_reason or reason
        else:
            path = self._fallback_place()
        try:
            opened, was_damaged = self._open_sqlite(path)
        except CannotServe as error:
            self._serve_nothing(error.reason, cause=error.__cause__)
            return
        if reason in HARMLESS and was_damaged:
            reason = "corrupt"
        if reason is None and opened.schema_newer:
            reason = "schema_newer"
        if not self._asked_for_sqlite:
            self._pending_elsewhere = self._count_waiting(but=opened.engine.url.database)
        persistent = (
            path is not None
            and not self._on_space
            and places.file_system(str(path)) not in ("tmpfs", "ramfs")
        )
        self._open(
            opened.engine,
            Report(
                status="ok" if reason in HARMLESS else "degraded",
                backend="sqlite",
                source=self._resolution.source,
                reason=reason,
                detail=self._describe_sqlite(reason, path is None, persistent),
                persistent=persistent,
                repairs=self._resolution.repairs,
            ),
        )

    def _open_sqlite(self, place: Path | None) -> tuple[Opened, bool]:
        """Return the engine and whether a damaged file was set aside; raise CannotServe."""
        connections = self._pool_size("sqlite") + 1
        if place is None:
            return open_sqlite(None, connections=connections), False
        claim = Claim(place)
        try:
            with handover.changing(place):
                claim.share()
                path = place
                if not self._asked_for_sqlite:
                    begun = handover.find("fallback", [place.parent])
                    path = begun[0] if begun else handover.new_file(place.parent)
                was_damaged = False
                try:
                    opened = open_sqlite(path, connections=connections)
                except CannotServe as error:
                    if error.reason != "corrupt":
                        raise
                    claim.own()
                    set_aside(path)
                    was_damaged = True
                    opened = open_sqlite(path, connections=connections)
                    claim.share()
        except Busy:
            claim.release()
            raise CannotServe("locked", reached=True) from None
        except CannotServe:
            claim.release()
            raise
        self._claim = claim
        return opened, was_damaged

    def _asked_for_path(self) -> tuple[Path | None, str | None]:
        """Return the file (None: memory), and "no_writable_path" if it is not the right one."""
        url = self._resolution.url
        if url is None:
            path, passed_over = places.find_place(ASKED_FOR_FILE, self._settings.sqlite_dir)
            return path, "no_writable_path" if passed_over or path is None else None
        if is_memory(url):
            return None, None
        asked = places.path_of(str(url.database))
        if places.is_usable(asked):
            return asked, None
        return places.find_place(asked.name, self._settings.sqlite_dir).path, "no_writable_path"

    def _fallback_place(self) -> Path | None:
        """Return where fallback files are: beside one that was begun, else at the best place."""
        for file in handover.find("fallback", self._directories):
            if places.is_usable(file):
                return file.with_name("fallback")
        return places.find_place("fallback", self._settings.sqlite_dir).path

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
            advice=self._resolution.message,
            in_memory=in_memory,
            persistent=persistent,
            asked_for=self._asked_for_sqlite,
        )

    def _count_waiting(self, but: str | None = None) -> int:
        """Return how many rows of other files than `but` wait for PostgreSQL."""
        return sum(self._count_rows(file) for file in self._waiting_files() if str(file) != but)

    def _rows_from_before(self) -> int:
        """Return how many rows were written while SQLite was what was asked for."""
        path = places.find_place(ASKED_FOR_FILE, self._settings.sqlite_dir).path
        return self._count_rows(path) if path and path.exists() else 0

    def _count_rows(self, file: Path) -> int:
        try:
            return sum(promotion.count_rows(handover.read_only(file)).values())
        except SQLAlchemyError as error:
            logger.warning("%s cannot be read: %s", file.name, connection_reason(error))
            return 0

    # the gate and the report

    def _serve_nothing(
        self, reason: str, advice: str = "", cause: BaseException | None = None
    ) -> None:
        self._database.close(f"No database serves: {CAUSES.get(reason, advice)}", wait=False)
        self._announce(
            Report(
                status="unavailable",
                source=self._resolution.source,
                reason=reason,
                detail=describe_nothing(reason, advice),
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
        self._check(engine)

    def _check(self, engine: Engine) -> None:
        """Ask the database whether it works, and say so; close the gate while it does not."""
        in_memory = is_memory(engine.url)
        doubted, self._doubted = self._doubted, False
        latency, pending_rows = 0.0, self._serving_report.pending_rows
        try:
            if not in_memory:
                latency = bounded(lambda: ping(engine, write=doubted), CHECK_SECONDS)
            if self._database.serves_instead_of_postgresql:
                counts = bounded(lambda: promotion.count_rows(engine), CHECK_SECONDS)
                pending_rows = sum(counts.values()) + self._pending_elsewhere
        except (SQLAlchemyError, DatabaseUnavailable, TimeoutError) as error:
            # memory is there as long as the process is; only its one connection is in use
            if not in_memory:
                self._report_trouble(engine, error, doubted)
                return
        self._unanswered_checks = 0
        self._database.resume()
        self._announce(
            replace(
                self._serving_report,
                latency_ms=latency,
                pending_rows=pending_rows,
                checked_at=now(),
            )
        )

    def _report_trouble(self, engine: Engine, error: Exception, doubted: bool) -> None:
        reason = connection_reason(error)
        self._unanswered_checks += isinstance(error, TimeoutError)
        self._doubted = doubted
        if engine.dialect.name == "postgresql":
            self._database.suspend(f"The database is away: {CAUSES[reason]}.")
        if self._unanswered_checks > 1:
            postgresql.sever(engine)
        self._announce(self._unavailable(reason))

    def _unavailable(self, reason: str) -> Report:
        return replace(
            self._serving_report,
            status="unavailable",
            reason=reason,
            detail=describe_nothing(reason, ""),
            checked_at=now(),
        )

    def _announce(self, report: Report, cause: BaseException | None = None) -> None:
        before, self.report = self.report, report
        if (before.status, before.reason, before.backend) != (
            report.status,
            report.reason,
            report.backend,
        ):
            log = logger.info if report.status == "ok" else logger.warning
            log("database %s: %s", report.status, report.detail, exc_info=cause)

    def _release_claim(self) -> None:
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    def _pool_size(self, backend: str) -> int:
        return self._settings.pool_size or DEFAULT_POOL_SIZE[backend]
