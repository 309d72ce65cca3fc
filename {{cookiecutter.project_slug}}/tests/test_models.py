"""Whether your tables come through an outage: what SQLite takes meanwhile goes to PostgreSQL."""

from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine

from space_runtime.portability import find_differences, find_obstacles
from src.config.settings import PROJECT_ROOT
from src.database.session import build_engine
from src.main import PROJECT


def test_each_column_means_the_same_on_both_databases() -> None:
    obstacles = find_obstacles(PROJECT.metadata)
    assert not obstacles, "\n".join(obstacles)


def test_both_databases_have_the_same_rules(
    tmp_path: Path, postgresql: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def migrated(url: str) -> Engine:
        monkeypatch.setenv("DATABASE_URL", url)
        command.upgrade(Config(PROJECT_ROOT / "alembic.ini"), "head")
        return build_engine(url)

    sqlite, server = migrated(f"sqlite:///{tmp_path}/test.db"), migrated(postgresql())
    differences = find_differences(PROJECT.metadata, sqlite, server)
    sqlite.dispose()
    server.dispose()
    assert not differences, "\n".join(differences)
