"""A live database whose two tables must agree, and what programs do with it and its snapshots.

Some of it runs in processes of its own (`python -c "from tests.support.ledger import ..."`), so that it can be killed,
or get other environment variables.
"""

import os
import shutil
import sqlite3
import time
import traceback
from contextlib import closing
from pathlib import Path
from typing import Self

from space_runtime.snapshots.folder import SnapshotError
from space_runtime.snapshots.store import KEPT, Snapshot, SnapshotStore

APP = "app-00000001"
FALLBACK = f"fallback-{'1' * 32}"


class Ledger:
    """A live database, every transaction of which writes to both tables."""

    def __init__(self, path: Path) -> None:
        """Open it, or begin it, as the application would."""
        self.path = path
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        for table in ("debits", "credits"):
            self.connection.execute(f"CREATE TABLE IF NOT EXISTS {table} (amount INTEGER, note TEXT)")

    def __enter__(self) -> Self:
        """Nothing more than what the constructor did."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close it, which is no mistake a second time."""
        self.connection.close()

    def write(self, amount: int, note: str = "") -> None:
        """Make one transaction."""
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.execute("INSERT INTO debits VALUES (?, ?)", (amount, note))
        self.connection.execute("INSERT INTO credits VALUES (?, ?)", (amount, note))
        self.connection.execute("COMMIT")


def amounts_in(path: Path) -> list[int]:
    """What was written to both tables, in order."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.execute("BEGIN")
        amounts = [row[0] for row in connection.execute("SELECT amount FROM debits ORDER BY rowid")]
        assert amounts == [row[0] for row in connection.execute("SELECT amount FROM credits ORDER BY rowid")]
    return amounts


def take(store: SnapshotStore, ledger: Ledger, series: str = APP) -> Snapshot:
    """Take a snapshot, which must be a new one."""
    snapshot = store.take(ledger.path, series)
    assert snapshot is not None
    return snapshot


def restored(store: SnapshotStore, which: str, folder: Path) -> list[int] | None:
    """What comes back of a database, in a new folder where nothing else may lie then; None if nothing does."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if store.restore(which, folder / "restored.db") is None:
        assert os.listdir(folder) == []
        return None
    assert os.listdir(folder) == ["restored.db"]
    return amounts_in(folder / "restored.db")


def play_through(url: str, folder: str) -> None:
    """Ask everything of a store that an application does."""
    store, back = SnapshotStore(url), Path(folder, "back")
    assert restored(store, "app", back) is None
    assert store.series("app") == {}
    assert [one.attend() for one in (store, SnapshotStore(url), store)] == [False, False, True]

    with Ledger(Path(folder, "app.db")) as ledger:
        first = take(store, ledger, FALLBACK)
        amounts = list(range(KEPT + 1))
        for amount in amounts:
            # random and long, so that it is more than one chunk of anything
            ledger.write(amount, os.urandom(50_000).hex())
            assert take(store, ledger).number == first.number + amount + 1
        assert store.take(ledger.path, APP) is None
    assert restored(SnapshotStore(url), "app", back) == amounts
    assert restored(store, FALLBACK, back) == []

    store.add_tombstone(APP)
    assert restored(store, "app", back) is None
    assert (store.series("app"), store.series("fallback")) == ({APP: True}, {FALLBACK: False})
    store.remove_tombstone(APP)
    assert restored(store, "app", back) == amounts


def take_without_end(url: str, file: str) -> None:
    """Write and take snapshots until somebody kills this process; print each amount that is safe."""
    store = SnapshotStore(url)
    with Ledger(Path(file)) as ledger:
        (amount,) = ledger.connection.execute("SELECT coalesce(max(amount), 0) FROM debits").fetchone()
        while True:
            amount += 1
            ledger.write(amount, "x" * 500_000)
            take(store, ledger)
            print(amount, flush=True)


def write_without_end(file: str) -> None:
    """Make 200 transactions a second until somebody ends this process."""
    amount, begun = 1, time.monotonic()
    with Ledger(Path(file)) as ledger:
        while True:
            amount += 1
            ledger.write(amount)
            time.sleep(max(0.0, begun + amount / 200 - time.monotonic()))


def be_refused(url: str, folder: str) -> None:
    """Take a snapshot, which must fail, and print all that a log would tell."""
    with Ledger(Path(folder, "app.db")) as ledger:
        try:
            SnapshotStore(url).take(ledger.path, APP)
        except SnapshotError:
            traceback.print_exc()
