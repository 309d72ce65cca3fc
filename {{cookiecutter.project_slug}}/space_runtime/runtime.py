"""Puts the parts of the runtime together for one application."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from fastapi import FastAPI
from sqlalchemy import URL, Engine

from space_runtime.backends import backend_of
from space_runtime.files.locations import Locations, is_memory
from space_runtime.files.sqlite_files import CONFIGURED_FILE, SQLiteFiles
from space_runtime.lifecycle import hooks
from space_runtime.lifecycle.report import DatabaseReport, Status
from space_runtime.lifecycle.runner import Lifecycle
from space_runtime.lifecycle.state import Configuration
from space_runtime.migrations import Migrations
from space_runtime.project import Project
from space_runtime.serving.database import Database
from space_runtime.serving.sessions import SessionFactory
from space_runtime.settings import RuntimeSettings, read_space
from space_runtime.snapshots.schedule import Snapshots
from space_runtime.snapshots.store import SnapshotStore
from space_runtime.url.resolution import Resolution

# A few dozen concurrent requests keep exceeding Python's default threshold of 700 or 2,000.
GC_THRESHOLD = 10_000
SECONDS_FOR_HOOKS_TO_END = 1.0


class Runtime:
    """Keeps one application running. Creating it opens nothing; the methods below do."""

    def __init__(
        self,
        project: Project,
        settings: RuntimeSettings,
        resolution: Resolution,
        sessions: SessionFactory,
    ) -> None:
        self.project = project
        self.resolution = resolution
        self.settings = settings
        self.space = read_space()
        self.started = time.monotonic()
        self.database = Database(sessions)
        self.locations = Locations(project, settings.sqlite_dir)
        self.snapshots = Snapshots(self._snapshot_store(), settings.snapshot_interval)
        migrations = Migrations(project.folder)
        self.lifecycle = Lifecycle(
            self.database,
            Configuration(
                resolution,
                strict=settings.database_fallback == "strict",
                connect_seconds=settings.database_connect_seconds,
                check_seconds=settings.database_check_seconds,
            ),
            project,
            migrations,
            SQLiteFiles(self.locations, migrations, self.snapshots, project.metadata),
            self.snapshots,
            pool_size=settings.pool_size,
            on_space=self.space.is_running_here,
        )
        self.hooks = hooks.Hooks(project, self.database)

    @property
    def status(self) -> Status:
        """Return the state of the application in one word."""
        return hooks.status(self.lifecycle.status, self.hooks.progress)

    @property
    def report(self) -> DatabaseReport:
        """Return what is said about the database, and about a hook that runs or has failed."""
        return hooks.describe(self.lifecycle.report, self.hooks.progress, time.monotonic())

    @property
    def is_ready(self) -> bool:
        """Whether data routes work and the hooks have ended."""
        return self.lifecycle.is_ready and self.hooks.progress.have_ended

    def _snapshot_store(self) -> SnapshotStore | None:
        if (url := self.settings.snapshot_url) is None:
            return None

        def deployment() -> str:
            return self.space.id or self.project.read_about().title

        return SnapshotStore(url.get_secret_value(), self.project.folder, deployment)

    @contextmanager
    def open_database(self) -> Iterator[Database]:
        """Choose the database for a script, yield it with SessionLocal bound, and close it.

        Exit with a one-sentence message if no database serves.
        """
        self.lifecycle.start()
        try:
            self.lifecycle.wait_until_settled()
            if not self.lifecycle.is_ready:
                raise SystemExit(self.lifecycle.report.detail)
            yield self.database
        finally:
            self.lifecycle.stop()

    @contextmanager
    def configured_engine(self) -> Iterator[Engine]:
        """Yield an engine on the configured database, for commands such as Alembic's.

        Exit with a one-sentence message if DATABASE_URL cannot be used: a command that fell back
        to SQLite would change the wrong database.
        """
        resolution = self.resolution
        url = resolution.url
        if url is None:
            if resolution.reason not in ("unset", "empty"):
                raise SystemExit(resolution.message)
            path = self.locations.find(CONFIGURED_FILE).path
            url = URL.create("sqlite", database=str(path) if path else None)
        elif resolution.backend == "sqlite" and not is_memory(url):
            url = url.set(database=str(self.locations.configured(str(url.database))))
        engine = backend_of(url).create_engine(url, resolution.secrets, 1)
        try:
            yield engine
        finally:
            engine.dispose()

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Choose the database and run the hooks in the background, while the server answers."""
        # What is loaded by now stays until the end, so the garbage collector can skip it.
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        about = self.project.read_about()
        app.title, app.description = about.title, about.description
        self.database.loop = asyncio.get_running_loop()
        self.lifecycle.start()
        running = asyncio.create_task(self.hooks.run(app))
        try:
            yield
        finally:
            running.cancel()
            await asyncio.wait([running], timeout=SECONDS_FOR_HOOKS_TO_END)
            await asyncio.to_thread(self.lifecycle.stop)
