"""The newest migration is known however migrations are written, and a schema that is newer still is served."""

import sqlite3
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from space_runtime.migrations import Migrations

from tests.support.bakery import BakedProject

WRITTEN = {
    "a.py": 'revision: str = "a"\ndown_revision: str | None = None\n',
    "b.py": "revision = 'b'\ndown_revision = 'a'\n",
    "c.py": 'revision = "c"\ndown_revision = "a"\n',
    "merged.py": 'revision = "d"\ndown_revision = (\n    "b",  # "x"\n    "c",\n)\n',
}
FROM_THE_FUTURE = "UPDATE alembic_version SET version_num = 'from-the-future'"


def test_the_newest_revision_is_found_however_migrations_are_written(tmp_path: Path) -> None:
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    for name, text in WRITTEN.items():
        (versions / name).write_text(text)
    assert Migrations(tmp_path).revisions() == ({"a", "b", "c", "d"}, {"d"})


@pytest.mark.slow
def test_a_newer_schema_is_served_with_a_word_about_it(project: BakedProject, database_url: str) -> None:
    environ = {"DATABASE_URL": database_url}
    project.run("alembic", "upgrade", "head", environ=environ)
    if database_url.startswith("sqlite"):
        with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as file, file:
            file.execute(FROM_THE_FUTURE)
    else:
        with psycopg.connect(database_url) as server:
            server.execute(FROM_THE_FUTURE)
    with project.boot(environ, in_place=True) as app:
        report = app.settled()
        assert (report["status"], report["database"]["reason"]) == ("ok", "schema_newer")
        assert app.titles() == []
