"""Databases for scripts and for the command line."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL, Engine

from src.config.settings import load_settings
from src.database import places
from src.database.engine import build_engine, is_memory
from src.database.lifecycle import DatabaseLifecycle
from src.database.resolver import DatabaseURLResolver
from src.database.session import Database
from src.database.sqlite_files import ASKED_FOR_FILE


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
    engine = build_engine(_asked_for_url())
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def postgresql_for_commands() -> Iterator[Engine]:
    """Yield an engine on the PostgreSQL that DATABASE_URL names; stop with a sentence otherwise."""
    resolution = DatabaseURLResolver(os.environ).resolve()
    if resolution.url is None or resolution.backend != "postgresql":
        raise SystemExit(resolution.message or "DATABASE_URL names no PostgreSQL: set it first.")
    engine = build_engine(resolution.url)
    try:
        yield engine
    finally:
        engine.dispose()


def _asked_for_url() -> URL:
    resolution = DatabaseURLResolver(os.environ).resolve()
    url = resolution.url
    if url is None and resolution.reason not in ("unset", "empty"):
        raise SystemExit(resolution.message)
    if url is not None and (resolution.backend == "postgresql" or is_memory(url)):
        return url
    path = (
        places.find_place(ASKED_FOR_FILE, load_settings().sqlite_dir).path
        if url is None
        else places.path_of(str(url.database))
    )
    return URL.create("sqlite", database=str(path) if path else None)
