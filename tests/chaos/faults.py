"""The faults as data: how each is injected and healed, and what is expected at which moment."""

import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from tests.chaos.scene import Scene
from tests.support import disks
from tests.support.postgres import PASSWORD

HOST = "database.invalid"
SMALL_DISK_KILOBYTES = 8192
EARLIER = "2026-01-01 00:00:00.000000"
# a page of an SQLite file
GARBAGE = b"\xdb" * 4096
BROKEN_MIGRATION = '''
"""Begin well, and fail."""
from alembic import op
import sqlalchemy as sa
revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table("half_done", sa.Column("id", sa.Integer(), primary_key=True))
    op.execute("INSERT INTO half_done VALUES ('this is no number')")
'''


@dataclass(frozen=True)
class Told:
    """What the health report must say: one of these statuses, backends and reasons."""

    statuses: tuple[str, ...]
    backends: tuple[str | None, ...]
    reasons: tuple[str | None, ...]

    def fits(self, report: dict[str, Any]) -> bool:
        """Whether a report says so."""
        database = report["database"]
        return (
            report["status"] in self.statuses
            and database["backend"] in self.backends
            and database["reason"] in self.reasons
        )


def instead(reason: str) -> Told:
    """SQLite serves, because PostgreSQL could not."""
    return Told(("degraded",), ("sqlite",), (reason,))


def nothing(*reasons: str) -> Told:
    """PostgreSQL, and nothing else, will serve again; until then nothing does."""
    return Told(("unavailable",), (None, "postgresql"), reasons)


def no_file(*reasons: str) -> Told:
    """The SQLite file, and nothing else, will serve again; until then nothing does."""
    return Told(("unavailable",), (None, "sqlite"), reasons)


STARTING = Told(("starting",), (None,), (None,))
POSTGRESQL = Told(("ok",), ("postgresql",), (None,))
NEWER = Told(("ok",), ("postgresql",), ("schema_newer",))
# the schema is looked at when the database is opened
POSTGRESQL_OR_NEWER = Told(("ok",), ("postgresql",), (None, "schema_newer"))
SQLITE = Told(("ok",), ("sqlite",), ("unset",))
SET_ASIDE = instead("corrupt")
IN_MEMORY = instead("no_writable_path")
# the first migration is cut off before it has stored anything, and tried again: SQLite never serves
CUT_AT_START = Told(("starting", "unavailable", "ok"), (None, "postgresql"), (None, "connection_lost"))
# it passes too quickly for anybody to be sure of having seen it
PASSING = Told(("ok", "unavailable"), (None, "postgresql"), (None, "connection_lost", "refused", "starting_up"))

Inject = Callable[[Scene, ExitStack], None]


@dataclass(frozen=True)
class Fault:
    """One row of the matrix. `while_serving` is None where the fault cannot begin then.

    `prepare` says what the app is started with. `inject` does the damage and leaves in the stack how it is undone.
    `stays` is told for good when the app started with the fault, where that cannot be undone. `telling` are the moments
    that `make test` plays; `make test-all` plays them all.
    """

    name: str
    prepare: Callable[[Scene], None]
    inject: Inject
    at_start: Told
    while_serving: Told | None
    healed: Told = POSTGRESQL
    stays: Told | None = None
    lasts: float = 0.0
    telling: tuple[str, ...] = ("serving",)

    @property
    def falls_back(self) -> bool:
        """Whether SQLite serves when the app starts with the fault."""
        return "degraded" in self.at_start.statuses


def on_postgres(scene: Scene) -> None:
    scene.ask_for_postgres()


def through_network(scene: Scene) -> None:
    scene.ask_for_postgres(port=scene.network.port)


def by_name(scene: Scene) -> None:
    scene.ask_for_postgres(host=HOST)
    scene.prefix = scene.names.prefix()
    scene.names.resolve(HOST)


def on_used_postgres(scene: Scene) -> None:
    scene.ask_for_postgres()
    scene.use_once()


def on_postgres_with_own_clock(scene: Scene) -> None:
    scene.ask_for_postgres()
    scene.environ |= scene.clock.environ()


def on_sqlite(scene: Scene) -> None:
    """DATABASE_URL is unset."""


def on_big_file(scene: Scene) -> None:
    """Big enough that its pages are read again and again."""
    if scene.moment != "start":
        scene.use_once()
        scene.earlier = [f"earlier {number}" for number in range(1000)]
        rows = [(uuid4().hex, title, "x" * 2000, EARLIER, EARLIER) for title in scene.earlier]
        with closing(sqlite3.connect(scene.sqlite_folder / "app.db")) as connection, connection:
            connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?)", rows)


def on_small_disk(scene: Scene) -> None:
    """At the start the disk is full, but for a database that was used before."""
    full_beside = None
    if scene.moment == "start":
        scene.use_once()
        full_beside = str(scene.sqlite_folder)
    scene.sqlite_folder = scene.folder / "small"
    scene.sqlite_folder.mkdir()
    scene.environ["SQLITE_DIR"] = str(scene.sqlite_folder)
    scene.prefix = disks.small(str(scene.sqlite_folder), kilobytes=SMALL_DISK_KILOBYTES, full_beside=full_beside)


def on_disk_to_lose(scene: Scene) -> None:
    """At the start only memory can be written to."""
    if scene.moment == "start":
        scene.prefix = disks.read_only(writable="/dev/shm")
        scene.is_in_memory = True


def refused(scene: Scene, healing: ExitStack) -> None:
    healing.enter_context(scene.network.refusing())


def silent(scene: Scene, healing: ExitStack) -> None:
    healing.enter_context(scene.network.silent())


def unknown_name(scene: Scene, healing: ExitStack) -> None:
    scene.names.resolve()
    healing.callback(scene.names.resolve, HOST)
    scene.disconnect()


def wrong_password(scene: Scene, healing: ExitStack) -> None:
    scene.administer(f"ALTER ROLE {scene.name} PASSWORD 'another'")
    healing.callback(scene.administer, f"ALTER ROLE {scene.name} PASSWORD '{PASSWORD}'")
    scene.disconnect()


def missing_database(scene: Scene, healing: ExitStack) -> None:
    # nobody may come back before it is renamed
    scene.administer(f"ALTER DATABASE {scene.name} ALLOW_CONNECTIONS false")
    scene.disconnect()
    scene.administer(f"ALTER DATABASE {scene.name} RENAME TO {scene.name}_away")
    healing.callback(scene.administer, f"ALTER DATABASE {scene.name} ALLOW_CONNECTIONS true")
    healing.callback(scene.administer, f"ALTER DATABASE {scene.name}_away RENAME TO {scene.name}")


def tls_demanded(scene: Scene, healing: ExitStack) -> None:
    healing.enter_context(scene.postgres.demanding_tls())
    scene.disconnect()


def too_many_connections(scene: Scene, healing: ExitStack) -> None:
    scene.administer(f"ALTER ROLE {scene.name} CONNECTION LIMIT 0")
    healing.callback(scene.administer, f"ALTER ROLE {scene.name} CONNECTION LIMIT -1")
    scene.disconnect()


def starting_up(scene: Scene, healing: ExitStack) -> None:
    healing.enter_context(scene.postgres.starting_up())


def read_only_server(scene: Scene, healing: ExitStack) -> None:
    healing.enter_context(scene.postgres.read_only())


def killed(scene: Scene, healing: ExitStack) -> None:
    scene.postgres.kill()
    healing.callback(scene.postgres.start)


def restarted(scene: Scene, healing: ExitStack) -> None:
    scene.postgres.stop()
    healing.callback(scene.postgres.start)


def paused(scene: Scene, healing: ExitStack) -> None:
    scene.postgres.pause()
    healing.callback(scene.postgres.resume)


def cut_in_mid_query(scene: Scene, healing: ExitStack) -> None:
    """Twice in the first migration, then while items are stored, before and after it is known that they are."""
    migration = [b"CREATE INDEX", b"COMMIT"] if scene.moment == "start" else []
    scene.network.cut_after([*migration, *[b"INSERT INTO items", b"COMMIT"] * 4])
    if scene.moment != "stop":
        healing.callback(scene.network.expect_cuts)


def broken_migration(scene: Scene, healing: ExitStack) -> None:
    file = scene.project.path / "migrations" / "versions" / "0002_broken.py"
    file.write_text(BROKEN_MIGRATION)
    healing.callback(file.unlink)


def newer_schema(scene: Scene, healing: ExitStack) -> None:
    """As a newer version of the app leaves it, which may be rolled back."""
    with scene.postgres.connect(scene.postgres.url(scene.name)) as connection:
        connection.execute("ALTER TABLE items ADD COLUMN colour text")
        connection.execute("UPDATE alembic_version SET version_num = '9999'")


def locked(scene: Scene, healing: ExitStack) -> None:
    other = sqlite3.connect(scene.sqlite_folder / "app.db", isolation_level=None)
    healing.callback(other.close)
    other.execute("BEGIN EXCLUSIVE")


def corrupt(scene: Scene, healing: ExitStack) -> None:
    """At the start the file is no database at all; later its pages are damaged, and mended but for rewritten ones."""
    file = scene.sqlite_folder / "app.db"
    if scene.moment == "start":
        file.write_bytes(GARBAGE * 5)
        return
    sound = file.read_bytes()
    pages = range(0, len(sound), len(GARBAGE))

    def mend() -> None:
        with file.open("r+b") as opened:
            for start in pages:
                opened.seek(start)
                if opened.read(len(GARBAGE)) == GARBAGE:
                    opened.seek(start)
                    opened.write(sound[start : start + len(GARBAGE)])
        # what was written to the log just then may not fit the rest
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            scene.is_damaged_for_good = connection.execute("PRAGMA quick_check(1)").fetchall() != [("ok",)]

    with file.open("r+b") as opened:
        opened.write(GARBAGE * len(pages))
    healing.callback(mend)


def full_disk(scene: Scene, healing: ExitStack) -> None:
    filler = scene.sqlite_folder / "filler"
    healing.callback(lambda: scene.seen_by_app(filler).unlink(missing_ok=True))
    if scene.moment != "start":
        with suppress(OSError), scene.seen_by_app(filler).open("wb", buffering=0) as file:
            while True:
                file.write(GARBAGE)


def unwritable(scene: Scene, healing: ExitStack) -> None:
    if scene.moment != "start":
        # not app.db-shm, which is memory: the kernel ends a process that writes to an immutable mapping
        files = [str(scene.sqlite_folder / name) for name in ("app.db", "app.db-wal")]
        healing.enter_context(disks.immutable(files))


def clock_set_back(scene: Scene, healing: ExitStack) -> None:
    scene.clock.set_back(seconds=3600)
    healing.callback(scene.clock.set_back, seconds=0)


FAULTS = [
    Fault("refused", through_network, refused, instead("refused"), nothing("refused"), telling=("start",)),
    Fault("silent", through_network, silent, instead("timeout"), nothing("timeout")),
    Fault("unknown name", by_name, unknown_name, instead("dns"), nothing("dns")),
    Fault(
        "wrong password",
        on_postgres,
        wrong_password,
        instead("auth_failed"),
        nothing("auth_failed"),
        telling=("start",),
    ),
    Fault("missing database", on_postgres, missing_database, instead("database_missing"), nothing("database_missing")),
    Fault("TLS demanded", on_postgres, tls_demanded, instead("tls"), nothing("tls")),
    Fault(
        "too many connections",
        on_postgres,
        too_many_connections,
        instead("too_many_connections"),
        nothing("too_many_connections"),
    ),
    Fault("starting up", on_postgres, starting_up, instead("starting_up"), nothing("starting_up")),
    Fault(
        "read-only server",
        on_postgres,
        read_only_server,
        nothing("read_only"),
        nothing("read_only"),
        telling=("start",),
    ),
    Fault("killed", on_postgres, killed, instead("refused"), nothing("refused")),
    # while it serves: tests/test_database_restarts.py
    Fault("restarted", on_postgres, restarted, STARTING, PASSING, lasts=1, telling=("start",)),
    # while it serves, a short pause is silence
    Fault("paused for 20 s", on_postgres, paused, instead("timeout"), nothing("timeout"), lasts=20, telling=("stop",)),
    Fault("cut in mid-query", through_network, cut_in_mid_query, CUT_AT_START, PASSING, telling=("start", "serving")),
    Fault("migration fails", on_postgres, broken_migration, nothing("migration_failed"), None, telling=("start",)),
    Fault(
        "schema newer",
        on_used_postgres,
        newer_schema,
        NEWER,
        POSTGRESQL_OR_NEWER,
        healed=POSTGRESQL_OR_NEWER,
        telling=("start",),
    ),
    # while it serves: tests/test_disks.py
    Fault(
        "SQLite file locked",
        on_sqlite,
        locked,
        no_file("locked"),
        no_file("locked"),
        healed=SQLITE,
        telling=("start",),
    ),
    Fault("SQLite file corrupt", on_big_file, corrupt, SET_ASIDE, no_file("corrupt"), healed=SQLITE, stays=SET_ASIDE),
    Fault("disk full", on_small_disk, full_disk, no_file("disk_full"), no_file("disk_full"), healed=SQLITE),
    # at the start and while it serves: tests/test_disks.py
    Fault(
        "no disk writable",
        on_disk_to_lose,
        unwritable,
        IN_MEMORY,
        no_file("read_only", "disk_full"),
        healed=SQLITE,
        stays=IN_MEMORY,
        telling=("stop",),
    ),
    Fault("clock set back", on_postgres_with_own_clock, clock_set_back, POSTGRESQL, POSTGRESQL),
]
