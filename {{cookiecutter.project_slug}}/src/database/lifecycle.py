"""Which database serves: starting -> serving (PostgreSQL, SQLite or nothing) -> stopped.

One thread owns every engine: it chooses the database once the server listens, opens the gate,
and then looks after it. The health report is whatever it last found.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sqlalchemy import URL, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from src.config.settings import PROJECT_ROOT, Settings, load_settings, read_space
from src.database import postgresql, sqlite
from src.database.engine import build_engine, is_memory
from src.database.errors import CAUSES, DatabaseUnavailable, connection_reason
from src.database.opening import CannotServe, Opened, bounded, open_postgresql, open_sqlite
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
STOP_SECONDS = 20.0

# rows that were asked to be on SQLite, and rows that PostgreSQL should have had
ASKED_FOR_FILE = "app.db"
FALLBACK_FILE = "fallback.db"


class DatabaseLifecycle:
    """Opens and closes the gate of one Database, and reports on it."""

    def __init__(
        self, database: Database, settings: Settings, environ: Mapping[str, str] = os.environ
    ) -> None:
        self._database = database
        self._settings = settings
        self._on_space = read_space(environ).is_running_here
        self._resolution = DatabaseURLResolver(environ).resolve()
        self._asked_for_sqlite = self._resolution.reason in ("unset", "empty") or (
            self._resolution.backend == "sqlite" and self._resolution.source == "environment"
        )
        # decided once, at the first choice: a database that was seen is never replaced by another
        self._may_fall_back = settings.database_fallback == "auto"
        self._engine: Engine | None = None
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
        """Close the gate, let admitted work finish within STOP_SECONDS, close the engine."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            # a connection attempt cannot be interrupted; its daemon thread ends with the process
            self._thread.join(timeout=CHECK_SECONDS)
        try:
            bounded(lambda: self._database.close("The server is stopping."), STOP_SECONDS)
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
        reason: str | None = self._resolution.reason
        advice, cause = self._resolution.message, None
        if self._resolution.url is not None:
            try:
                self._serve_postgresql(self._resolution.url)
                return
            except CannotServe as error:
                reason, advice, cause = error.reason, "", error.__cause__
                self._may_fall_back = self._may_fall_back and not error.reached
        if self._may_fall_back:
            self._serve_sqlite(reason)
        else:
            self._serve_nothing(reason or "unparseable", advice, cause)

    def _run(self) -> None:
        self._step(self.choose)
        while not self._stopping.is_set():
            pause = INTERVAL_SECONDS if self._database.is_open else INTERVAL_WHILE_DOWN_SECONDS
            self._wake.wait(pause)
            self._wake.clear()
            if self._stopping.is_set():
                return
            self._step(self.choose if self._engine is None else self._check)

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

    def _serve_postgresql(self, url: URL) -> None:
        pool_size = self._settings.pool_size or DEFAULT_POOL_SIZE["postgresql"]
        first = self.report.status == "starting"
        opened = open_postgresql(
            url,
            connections=pool_size + 1,
            transaction_pooler=self._resolution.transaction_pooler,
            seconds=CONNECT_SECONDS if first else CHECK_SECONDS,
            stopping=self._stopping,
        )
        pending_rows = self._rows_in_fallback_file()
        self._open(
            opened,
            pool_size,
            Report(
                status="ok",
                backend="postgresql",
                source="environment",
                reason="schema_newer" if opened.schema_newer else None,
                detail=describe_postgresql(
                    schema_newer=opened.schema_newer, pending_rows=pending_rows
                ),
                persistent=True,
                repairs=self._resolution.repairs,
                pending_rows=pending_rows,
            ),
        )

    def _serve_sqlite(self, reason: str | None) -> None:
        path, place_reason = self._sqlite_path()
        if reason in HARMLESS:
            reason = place_reason or reason
        pool_size = self._settings.pool_size or DEFAULT_POOL_SIZE["sqlite"]
        try:
            opened = open_sqlite(path, connections=pool_size + 1)
        except CannotServe as error:
            self._serve_nothing(error.reason, cause=error.__cause__)
            return
        if reason in HARMLESS and opened.set_aside:
            reason = "corrupt"
        if reason is None and opened.schema_newer:
            reason = "schema_newer"
        persistent = (
            path is not None
            and not self._on_space
            and sqlite.file_system(str(path)) not in ("tmpfs", "ramfs")
        )
        self._open(
            opened,
            pool_size,
            Report(
                status="ok" if reason in HARMLESS else "degraded",
                backend="sqlite",
                source=self._resolution.source,
                reason=reason,
                detail=describe_sqlite(
                    reason,
                    advice=self._resolution.message,
                    in_memory=path is None,
                    persistent=persistent,
                    asked_for=self._asked_for_sqlite,
                ),
                persistent=persistent,
                repairs=self._resolution.repairs,
            ),
        )

    def _sqlite_path(self) -> tuple[Path | None, str | None]:
        """Return the file (None: memory), and "no_writable_path" if it is not the right one."""
        directory = self._settings.sqlite_dir
        if not self._asked_for_sqlite:
            return sqlite.find_place(FALLBACK_FILE, directory).path, None
        url = self._resolution.url
        if url is None:
            path, passed_over = sqlite.find_place(ASKED_FOR_FILE, directory)
            return path, "no_writable_path" if passed_over or path is None else None
        if is_memory(url):
            return None, None
        asked = PROJECT_ROOT / str(url.database)
        if sqlite.is_usable(asked):
            return asked, None
        return sqlite.find_place(asked.name, directory).path, "no_writable_path"

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

    def _open(self, opened: Opened, pool_size: int, report: Report) -> None:
        if self._stopping.is_set():
            opened.engine.dispose()
            return
        self._engine = opened.engine
        self._may_fall_back = False
        self._database.open(
            opened.engine,
            pool_size,
            instead_of_postgresql=report.backend == "sqlite" and not self._asked_for_sqlite,
        )
        self._serving_report = report
        self._announce(report)
        self._check()

    def _check(self) -> None:
        """Ask the database whether it works, and say so; close the gate while it does not."""
        engine = self._engine
        if engine is None or is_memory(engine.url):
            # memory is there as long as the process is, and its one connection may be in use
            self._announce(replace(self._serving_report, latency_ms=0.0, checked_at=now()))
            return
        doubted, self._doubted = self._doubted, False
        try:
            latency = bounded(lambda: _ping(engine, write=doubted), CHECK_SECONDS)
            pending_rows = self._serving_report.pending_rows
            if self._database.serves_instead_of_postgresql:
                pending_rows = bounded(lambda: _count_rows(engine), CHECK_SECONDS)
        except (SQLAlchemyError, DatabaseUnavailable, TimeoutError) as error:
            reason = connection_reason(error)
            self._unanswered_checks += isinstance(error, TimeoutError)
            self._doubted = doubted
            if engine.dialect.name == "postgresql":
                self._database.suspend(f"The database is away: {CAUSES[reason]}.")
            if self._unanswered_checks > 1:
                postgresql.sever(engine)
            self._announce(self._unavailable(reason))
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

    def _rows_in_fallback_file(self) -> int:
        path = sqlite.find_place(FALLBACK_FILE, self._settings.sqlite_dir).path
        if path is None or not path.exists():
            return 0
        engine = build_engine(URL.create("sqlite", database=str(path)))
        try:
            return _count_rows(engine)
        except SQLAlchemyError as error:
            logger.warning("the fallback file cannot be read: %s", connection_reason(error))
            return 0
        finally:
            engine.dispose()


@contextmanager
def open_database() -> Iterator[Database]:
    """Choose the database for a script, yield it with SessionLocal bound, and close it."""
    database = Database()
    lifecycle = DatabaseLifecycle(database, load_settings())
    lifecycle.choose()
    try:
        if not database.is_open:
            raise SystemExit(lifecycle.report.detail)
        yield database
    finally:
        lifecycle.stop()


@contextmanager
def engine_for_commands() -> Iterator[Engine]:
    """Yield an engine on the database that was asked for, for Alembic's command line.

    Stop with one sentence when DATABASE_URL is of no use: a command falls back to nothing.
    """
    engine = build_engine(_url_for_commands())
    try:
        yield engine
    finally:
        engine.dispose()


def _url_for_commands() -> URL:
    resolution = DatabaseURLResolver(os.environ).resolve()
    url = resolution.url
    if url is None and resolution.reason not in ("unset", "empty"):
        raise SystemExit(resolution.message)
    if url is not None and (resolution.backend == "postgresql" or is_memory(url)):
        return url
    path = (
        sqlite.find_place(ASKED_FOR_FILE, load_settings().sqlite_dir).path
        if url is None
        else PROJECT_ROOT / str(url.database)
    )
    return URL.create("sqlite", database=str(path) if path else None)


def _ping(engine: Engine, *, write: bool) -> float:
    """Return how long a query takes, in milliseconds; also try whether a write would work."""
    for attempt in (1, 2):
        try:
            with engine.connect() as connection:
                connection = connection.execution_options(reading=not write)
                connection.execute(text("SELECT 1"))
                started = time.perf_counter()
                connection.execute(text("SELECT 1"))
                latency = round((time.perf_counter() - started) * 1000, 2)
                if write and engine.dialect.name == "sqlite":
                    version = connection.execute(text("PRAGMA user_version")).scalar_one()
                    connection.execute(text(f"PRAGMA user_version = {int(version)}"))
                connection.commit()
                return latency
        except SQLAlchemyError as error:
            # the first use of a connection that died while it was idle tells nothing
            if attempt == 2 or not getattr(error, "connection_invalidated", False):
                raise
    raise AssertionError("unreachable")


def _count_rows(engine: Engine) -> int:
    with engine.connect().execution_options(reading=True) as connection:
        names = connection.scalars(
            text(
                "SELECT name FROM sqlite_schema WHERE type = 'table'"
                " AND name NOT LIKE 'sqlite_%' AND name <> 'alembic_version'"
            )
        ).all()
        quote = engine.dialect.identifier_preparer.quote_identifier
        return sum(
            connection.scalar(text(f"SELECT count(*) FROM {quote(name)}")) or 0  # noqa: S608
            for name in names
        )
