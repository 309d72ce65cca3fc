"""How fast rows move to PostgreSQL after an outage, and in how much memory: `make bench`.

100,000 rows of three tables with integer keys and references are moved from an SQLite file, beside a plain copy of the
same rows that checks and changes nothing. Each move has a process and a database of its own, and they take turns, so
that what else the machine does meets all alike.
"""

import json
import sqlite3
import statistics
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from tests.support.bakery import BakedProject, Bakery
from tests.support.postgres import Postgres, new_postgres

ROUNDS = 5
CUSTOMERS, ORDERS, LINES = 20_000, 40_000, 40_000
ROWS = CUSTOMERS + ORDERS + LINES
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

how, file, url = sys.argv[1:]
target = POSTGRESQL.create_engine(make_url(url), {}, 2)
with target.begin() as connection, read_only(Path(file)).connect() as rows:
    tables = MetaData()
    tables.reflect(connection, only=["customers", "orders", "lines"])
    rows.execute(text("SELECT 1"))

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
if how == "copy":
    with target.begin() as connection, read_only(Path(file)).connect() as rows:
        for table in tables.sorted_tables:
            found = rows.execute(table.select()).mappings()
            while batch := [dict(row) for row in found.fetchmany(500)]:
                connection.execute(insert(table).returning(text("1")), batch)
    refused = 0
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
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, new_postgres() as postgres:
        (Path(folder) / "baked").mkdir()
        project = Bakery(Path(folder) / "baked")().copy_to(Path(folder))
        (project.path / "migrations" / "versions" / "0002_benchmark.py").write_text(MIGRATION)
        (project.path / "move.py").write_text(MOVE)
        kept, replaced = Path(folder) / "kept.db", Path(folder) / "replaced.db"
        fill(project, kept, FIRST)
        fill(project, replaced, 1)
        measured: dict[str, list[dict[str, float]]] = {}
        for number in range(ROUNDS):
            for name, file, taken in (
                ("plain copy", kept, ""),
                ("numbers kept", kept, ""),
                ("numbers replaced", replaced, "numbers"),
                ("one row refused", kept, "one row"),
            ):
                url = database(project, postgres, taken)
                measured.setdefault(name, []).append(move(project, file, url, is_copy=name == "plain copy"))
            print(f"round {number + 1} of {ROUNDS}", file=sys.stderr)
    return report(measured)


def fill(project: BakedProject, file: Path, first: int) -> None:
    """Make an SQLite file whose numbers begin at `first`."""
    alembic(project, f"sqlite:///{file}")
    with closing(sqlite3.connect(file)) as connection, connection:
        customers = ((first + number, f"customer {number}", f"{number}@example.org") for number in range(CUSTOMERS))
        connection.executemany("INSERT INTO customers VALUES (?, ?, ?)", customers)
        for table, count, parents in (("orders", ORDERS, CUSTOMERS), ("lines", LINES, ORDERS)):
            rows = ((first + number, first + number % parents, f"{table} {number}") for number in range(count))
            connection.executemany(f"INSERT INTO {table} VALUES (?, ?, ?)", rows)  # noqa: S608
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")


def database(project: BakedProject, postgres: Postgres, taken: str) -> str:
    """Return the URL of a database with the schema, in which all numbers, or none, are taken, or one row is refused."""
    url = postgres.create_database()
    alembic(project, url)
    with postgres.connect(url) as connection:
        if taken == "numbers":
            connection.execute("INSERT INTO customers SELECT n, 'x' FROM generate_series(1, %s) n", [CUSTOMERS])
            connection.execute("INSERT INTO orders SELECT n, 1, 'x' FROM generate_series(1, %s) n", [ORDERS])
            connection.execute("INSERT INTO lines SELECT n, 1, 'x' FROM generate_series(1, %s) n", [LINES])
        if taken == "one row":
            connection.execute("ALTER TABLE lines ADD CHECK (what <> 'lines 20000')")
        connection.execute("VACUUM ANALYZE")
    return url


def alembic(project: BakedProject, url: str) -> None:
    """Bring a database to the newest schema."""
    project.run("python", "-m", "alembic", "upgrade", "head", environ={"DATABASE_URL": url})


def move(project: BakedProject, file: Path, url: str, *, is_copy: bool) -> dict[str, float]:
    """Move the rows of a copy of the file in a new process, and return what it measured."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        moving = Path(folder) / "app.db"
        moving.write_bytes(file.read_bytes())
        driver_url = url.replace("postgresql", "postgresql+psycopg", 1)
        done = project.run("python", "move.py", "copy" if is_copy else "move", str(moving), driver_url)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(measured: dict[str, list[dict[str, float]]]) -> int:
    """Print the medians and their ratios; return 1 if one is below its bound."""
    status = 0
    for name, rounds in measured.items():
        speed = statistics.median(ROWS / one["seconds"] for one in rounds)
        memory = max(one["megabytes"] for one in rounds)
        line = f"{name:18} {speed:8,.0f} rows/s, {memory:4.0f} MB more"
        if name in AT_LEAST:
            peer, least = AT_LEAST[name]
            ratio = statistics.median(
                theirs["seconds"] / ours["seconds"] for theirs, ours in zip(measured[peer], rounds, strict=True)
            )
            is_met = ratio >= least and memory <= MOST_MEGABYTES
            status |= not is_met
            line += f", {ratio:.2f} of {peer} (at least {least}){'' if is_met else ': MISSED'}"
        print(line)
        if any(one["refused"] != (name == "one row refused") for one in rounds):
            raise AssertionError(f"{name}: {[one['refused'] for one in rounds]} rows were refused")
    return status


if __name__ == "__main__":
    sys.exit(main())
