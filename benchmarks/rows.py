"""What a list costs where there are a thousand times as many rows: `make bench`."""

import itertools
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg

from benchmarks.serving import AS_ON_A_SPACE, LIST, Extent, judge, measure, show
from tests.support.bakery import BakedProject, Bakery
from tests.support.postgres import new_postgres

ROWS = {"few": 1_000, "many": 1_000_000}
CROWDS = (16,)
EXTENT = Extent(starts=1, rounds=7, seconds=0.7)
MOST_TIMES_FEW = 1.3

STATEMENT = "SELECT * FROM items ORDER BY created_at DESC, id DESC LIMIT 21"
FILL = {
    "SQLite": """
        WITH RECURSIVE up (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < {rows})
        INSERT INTO items (id, title, created_at, updated_at)
        SELECT lower(hex(randomblob(16))), 'Item ' || n, moment, moment
        FROM (SELECT n, strftime('%Y-%m-%d %H:%M:%S.000000', '2026-01-01', n || ' seconds') AS moment FROM up)
    """,
    "PostgreSQL": """
        INSERT INTO items (id, title, created_at, updated_at)
        SELECT gen_random_uuid(), 'Item ' || n, moment, moment
        FROM generate_series(1, {rows}) n, LATERAL (SELECT timestamptz '2026-01-01' + n * interval '1 s' AS moment) _
    """,
}


def databases(project: BakedProject, database: str, urls: Iterator[str]) -> Iterator[str]:
    """Yield the URL of one with few rows and of one with many, again and again, and print how each finds a page."""
    filled = []
    for (name, rows), url in zip(ROWS.items(), urls, strict=False):
        project.run("python", "-m", "alembic", "upgrade", "head", environ={"DATABASE_URL": url})
        fill = FILL[database].format(rows=rows)
        if database == "SQLite":
            with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file, file:
                file.execute(fill)
                file.execute("ANALYZE")
                plan = [step[-1] for step in file.execute(f"EXPLAIN QUERY PLAN {STATEMENT}")]
        else:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(fill.encode())
                connection.execute("VACUUM ANALYZE items")
                plan = [step for (step,) in connection.execute(f"EXPLAIN (COSTS OFF) {STATEMENT}".encode())]
        print(f"{database}, {name} ({rows:,} rows): {'; '.join(map(str, plan))}")
        filled.append(url)
    yield from itertools.cycle(filled)


def main() -> None:
    """Print the ratios; the exit code is 1 if one is too high."""
    held = []
    with tempfile.TemporaryDirectory() as folder, new_postgres() as postgres:
        project = Bakery(Path(folder))()
        files = (f"sqlite:///{folder}/{number}.db" for number in itertools.count())
        created = iter(postgres.create_database, None)
        for database, urls in (("SQLite", files), ("PostgreSQL", created)):
            apps = dict.fromkeys(ROWS, ("src.main:app", AS_ON_A_SPACE))
            new_url = databases(project, database, urls).__next__
            table = measure(apps, project.path, new_url, lambda _: {"list of 20": lambda: LIST}, EXTENT, crowds=CROWDS)
            show(database, table)
            (row,) = table
            what = f"time of a list with {ROWS['many']:,} rows / with {ROWS['few']:,}, {database}"
            held.append(judge(what, row.ratios("few", "many"), MOST_TIMES_FEW, most=True))
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
