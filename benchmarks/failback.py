"""How fast rows move to PostgreSQL after an outage, and in how much memory, and how fast snapshots are: `make bench`.

Rows of three tables with integer keys and references are moved from an SQLite file, beside a plain copy of the same
rows that checks and changes nothing. Each move has a process and a database of its own, and they take turns, so that
what else the machine does meets all alike. Snapshots go to a folder, and come back from there.
"""

import json
import shutil
import sqlite3
import statistics
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from benchmarks.serving import judge
from tests.support.bakery import BakedProject, Bakery
from tests.support.postgres import Postgres, new_postgres

ROUNDS = {10_000: 5, 100_000: 5, 1_000_000: 1}
"""How often each number of rows is moved."""
JUDGED = 100_000
PARTS = {"customers": 0.2, "orders": 0.4, "lines": 0.4}
FIRST = 1_500_000_000

# What is measured, and the least speed as a share of the peer's.
AT_LEAST = {
    "numbers kept": ("plain copy", 0.5),
    "numbers replaced": ("plain copy", 0.5),
    "one row refused": ("numbers kept", 0.5),
}
MOST_MEGABYTES = 60.0

MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision = "benchmark"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "customers",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("email", sa.String(), unique=True),
    )
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("customer_id", sa.Integer(), sa.ForeignKey("customers.id"), nullable=False),
        sa.Column("what", sa.String(), nullable=False),
    )
    op.create_table(
        "lines",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("order_id", sa.Integer(), sa.ForeignKey("orders.id"), nullable=False),
        sa.Column("what", sa.String(), nullable=False),
    )


def downgrade() -> None:
    raise NotImplementedError
"""

# Runs in the project; prints the seconds, and by how many megabytes the process grew at most.
MOVE = """
import json, resource, sys, time
from pathlib import Path
from sqlalchemy import create_engine, insert, make_url, text
from sqlalchemy.schema import MetaData
from space_runtime.backends import POSTGRESQL
from space_runtime.failback import handover, move, sources
from space_runtime.files.contents import read_only
from space_runtime.migrations import Migrations
from space_runtime.snapshots.schedule import Snapshots
from space_runtime.snapshots.store import SnapshotStore

how, file, url = sys.argv[1:]
target = POSTGRESQL.create_engine(make_url(url), {}, 2)
with target.begin() as connection, read_only(Path(file)).connect() as rows:
    tables = MetaData()
    tables.reflect(connection, only=["customers", "orders", "lines"])
    rows.execute(text("SELECT 1"))

store = SnapshotStore(file + ".snapshots")
if how == "snapshot restored":
    store.take(Path(file), "app-00000001")

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
refused = 0
if how == "snapshot taken":
    store.take(Path(file), "app-00000001")
elif how == "snapshot restored":
    store.restore("app", Path(file + ".restored"))
elif how == "plain copy":
    with target.begin() as connection, read_only(Path(file)).connect() as rows:
        for table in tables.sorted_tables:
            found = rows.execute(table.select()).mappings()
            while batch := [dict(row) for row in found.fetchmany(500)]:
                connection.execute(insert(table).returning(text("1")), batch)
else:
    snapshots = Snapshots(None, 3600)
    outcome = handover.Failback(target, MetaData(), Migrations(Path.cwd()), snapshots).move(Path(file))
    refused = outcome.refused
seconds = time.perf_counter() - started
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(json.dumps({"seconds": seconds, "megabytes": grown, "refused": refused}))
"""


def main() -> int:
    """Measure, print, and return 1 if something is below its bound."""
    held = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, new_postgres() as postgres:
        (Path(folder) / "baked").mkdir()
        project = Bakery(Path(folder) / "baked")().copy_to(Path(folder))
        (project.path / "migrations" / "versions" / "0002_benchmark.py").write_text(MIGRATION)
        (project.path / "move.py").write_text(MOVE)
        for rows, rounds in ROUNDS.items():
            kept, replaced = Path(folder) / f"kept-{rows}.db", Path(folder) / f"replaced-{rows}.db"
            fill(project, kept, FIRST, rows)
            fill(project, replaced, 1, rows)
            measured: dict[str, list[dict[str, float]]] = {}
            for number in range(rounds):
                for name, file, taken in (
                    ("plain copy", kept, ""),
                    ("numbers kept", kept, ""),
                    ("numbers replaced", replaced, "numbers"),
                    ("one row refused", kept, "one row"),
                    ("snapshot taken", kept, ""),
                    ("snapshot restored", kept, ""),
                ):
                    url = database(project, postgres, taken, rows)
                    measured.setdefault(name, []).append(move(project, file, url, name))
                print(f"{rows:,} rows, round {number + 1} of {rounds}", file=sys.stderr)
            held.append(report(measured, rows, kept.stat().st_size / 2**20))
    return int(not all(held))


def fill(project: BakedProject, file: Path, first: int, rows: int) -> None:
    """Make an SQLite file with so many rows, whose numbers begin at `first`."""
    alembic(project, f"sqlite:///{file}")
    customers, orders, lines = (round(rows * part) for part in PARTS.values())
    with closing(sqlite3.connect(file)) as connection, connection:
        people = ((first + number, f"customer {number}", f"{number}@example.org") for number in range(customers))
        connection.executemany("INSERT INTO customers VALUES (?, ?, ?)", people)
        for table, count, parents in (("orders", orders, customers), ("lines", lines, orders)):
            made = ((first + number, first + number % parents, f"{table} {number}") for number in range(count))
            connection.executemany(f"INSERT INTO {table} VALUES (?, ?, ?)", made)  # noqa: S608
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")


def database(project: BakedProject, postgres: Postgres, taken: str, rows: int) -> str:
    """Return the URL of a database with the schema, in which all numbers, or none, are taken, or one row is refused."""
    url = postgres.create_database()
    alembic(project, url)
    customers, orders, lines = (round(rows * part) for part in PARTS.values())
    with postgres.connect(url) as connection:
        if taken == "numbers":
            connection.execute("INSERT INTO customers SELECT n, 'x' FROM generate_series(1, %s) n", [customers])
            connection.execute("INSERT INTO orders SELECT n, 1, 'x' FROM generate_series(1, %s) n", [orders])
            connection.execute("INSERT INTO lines SELECT n, 1, 'x' FROM generate_series(1, %s) n", [lines])
        if taken == "one row":
            connection.execute(f"ALTER TABLE lines ADD CHECK (what <> 'lines {lines // 2}')".encode())
        connection.execute("VACUUM ANALYZE")
    return url


def alembic(project: BakedProject, url: str) -> None:
    """Bring a database to the newest schema."""
    project.run("python", "-m", "alembic", "upgrade", "head", environ={"DATABASE_URL": url})


def move(project: BakedProject, file: Path, url: str, how: str) -> dict[str, float]:
    """Move the rows of a copy of the file in a new process, and return what it measured."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        moving = Path(folder) / "app.db"
        shutil.copyfile(file, moving)
        driver_url = url.replace("postgresql", "postgresql+psycopg", 1)
        done = project.run("python", "move.py", how, str(moving), driver_url, timeout=1_800)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(measured: dict[str, list[dict[str, float]]], rows: int, megabytes: float) -> bool:
    """Print the medians and their ratios; return whether all that has a bound is within it."""
    held = []
    print(f"\n{rows:,} rows, {megabytes:.1f} MB")
    for name, rounds in measured.items():
        seconds = statistics.median(one["seconds"] for one in rounds)
        memory = max(one["megabytes"] for one in rounds)
        print(f"{name:18} {rows / seconds:9,.0f} rows/s {megabytes / seconds:7.1f} MB/s, {memory:4.0f} MB more")
        if any(one["refused"] != (name == "one row refused") for one in rounds):
            raise AssertionError(f"{name}: {[one['refused'] for one in rounds]} rows were refused")
    for name, (peer, least) in AT_LEAST.items() if rows == JUDGED else ():
        pairs = zip(measured[peer], measured[name], strict=True)
        ratios = [theirs["seconds"] / ours["seconds"] for theirs, ours in pairs]
        held.append(judge(f"failback of {rows:,} rows, {name} / {peer}", ratios, least))
        memory = max(one["megabytes"] for one in measured[name])
        held.append(judge(f"MB more for {rows:,} rows, {name}", [memory], MOST_MEGABYTES, most=True))
    return all(held)


if __name__ == "__main__":
    sys.exit(main())
