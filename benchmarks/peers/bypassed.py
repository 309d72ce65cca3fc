"""This project without what chooses and watches the database: its engine goes straight to the worker pools."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from space_runtime.backends import backend_of
from space_runtime.serving.database import Admission
from src.database.base import Base
from src.database.resolver import DatabaseURLResolver
from src.database.session import build_engine
from src.main import create_app


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Take the place of the one that starts the lifecycle."""
    database = app.state.runtime.database
    resolution = DatabaseURLResolver(os.environ).resolve()
    assert resolution.url is not None  # noqa: S101
    backend = backend_of(resolution.url)
    engine = build_engine(resolution, pool_size=backend.default_pool_size + 1)
    backend.prepare_to_serve(engine, transaction_pooler=False)
    with engine.connect() as connection:
        Base.metadata.create_all(connection)
        connection.commit()
    database.use(engine, backend.default_pool_size)
    database.admission = Admission(reads=True, writes=True)
    yield
    database.leave()
    engine.dispose()


app = create_app()
app.router.lifespan_context = lifespan
