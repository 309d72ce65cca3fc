"""How an engine is made: the options of each backend, in one place."""

from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.pool import QueuePool

from src.database import postgresql, sqlite


def build_engine(url: URL | str, *, pool_size: int = 5) -> Engine:
    """Return an engine with this backend's options; nothing is opened and no directory is made.

    SQL parameters never appear in errors or logs (`hide_parameters`).
    """
    url = make_url(url)
    if url.get_backend_name() == "postgresql":
        engine = create_engine(
            url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=5,
            pool_recycle=300,
            hide_parameters=True,
        )
        postgresql.configure(engine)
        return engine
    driver_options = {
        "isolation_level": None,
        "check_same_thread": False,
        "timeout": sqlite.BUSY_TIMEOUT_SECONDS,
    }
    if is_memory(url):
        # the database is its one connection, which one user at a time may have
        pool_size = 1
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=5,
        connect_args=driver_options,
        hide_parameters=True,
    )
    sqlite.configure(engine)
    return engine


def is_memory(url: URL) -> bool:
    """Return whether the URL names an SQLite database that lives in this process's memory."""
    return url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")
