"""Puts the parts together: your routes, your tables, and the runtime."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from fastapi import FastAPI

from space_runtime.http.application import FASTAPI_OPTIONS, attach
from space_runtime.port import usable_port
from space_runtime.project import Project
from space_runtime.runtime import Runtime
from space_runtime.serving.database import Database
from src import __version__
from src.config.settings import PROJECT_ROOT, Settings, load_settings
from src.database.base import Base
from src.database.resolver import DatabaseURLResolver
from src.database.session import SessionLocal
from src.items.router import router as items

PROJECT = Project(
    folder=PROJECT_ROOT,
    version=__version__,
    metadata=Base.metadata,
    about_file=PROJECT_ROOT / "src" / "config" / "about.json",
)
"""What the runtime is told. `on_start=[load_model]` calls a function of yours once the server
listens, and `on_ready=[...]` one that needs the database: see Project."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the application; no file, socket or database is opened before it starts."""
    app = FastAPI(version=__version__, lifespan=lifespan, **FASTAPI_OPTIONS)
    app.include_router(items)
    attach(app, create_runtime(settings))
    return app


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Choose the database in the background, while the application already answers.

    A task that is started here waits with `await app.state.runtime.database.ready()`.
    """
    async with app.state.runtime.lifespan(app):
        yield


def create_runtime(settings: Settings | None = None) -> Runtime:
    """Return the runtime for these settings and for DATABASE_URL in the environment."""
    return Runtime(
        PROJECT,
        settings or load_settings(),
        DatabaseURLResolver(os.environ).resolve(),
        SessionLocal,
    )


@contextmanager
def open_database() -> Iterator[Database]:
    """Choose the database for a script, yield it with SessionLocal bound, and close it."""
    with create_runtime().open_database() as database:
        yield database


app = create_app()

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(
        app,
        host="0.0.0.0",  # noqa: S104
        port=usable_port(load_settings().port, "0.0.0.0"),  # noqa: S104
        log_config=None,
        access_log=False,
    )
