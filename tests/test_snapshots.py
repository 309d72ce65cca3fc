"""Snapshots of a live SQLite file are whole, survive kills and come back: from a directory, from S3, from the Hub."""

import io
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import fsspec  # type: ignore[import-untyped]
import httpx2
import pytest
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]
from space_runtime.snapshots.folder import Folder, SnapshotError
from space_runtime.snapshots.store import KEPT, BelongsToAnother, DamagedSnapshot, Snapshot, SnapshotStore

from tests.support.bakery import ROOT, TEMPLATE_FOLDER, Bakery
from tests.support.edge import edge
from tests.support.hub import READ_ONLY_TOKEN, TOKEN, Hub, Repository, running_hub
from tests.support.ledger import (
    APP,
    FALLBACK,
    Ledger,
    amounts_in,
    be_refused,
    play_through,
    restored,
    take,
    take_without_end,
    write_without_end,
)
from tests.support.processes import bare_environment, end, free_port, is_listening

LATER_APP = "app-0000000a"
OTHER_FALLBACK = f"fallback-{'2' * 32}"
SECRET = "Zq81secretKp"  # noqa: S105 - looked for in every output
S3 = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "example", "AWS_SECRET_ACCESS_KEY": SECRET}
IMPATIENT_S3 = S3 | {"AWS_MAX_ATTEMPTS": "1"}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A live database with one row."""
    (tmp_path / "live").mkdir()
    with Ledger(tmp_path / "live" / "app.db") as ledger:
        ledger.write(1)
        yield ledger


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The directory where the snapshots go; it is not there yet."""
    return tmp_path / "deep" / "snapshots"


@pytest.fixture
def store(place: Path) -> SnapshotStore:
    """Snapshots in a directory."""
    return SnapshotStore(str(place))


def wait_until(holds: Callable[[], bool]) -> None:
    """Return as soon as something holds."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kept(place: Path) -> list[str]:
    """What is there, but for the mark that says whose it is."""
    return sorted(name for name in os.listdir(place) if not name.startswith("owner-"))


def names_of(place: Path, series: str) -> list[str]:
    return [name for name in kept(place) if name.startswith(f"{series}-")]


@contextmanager
def other_process(
    function: Callable[..., None], *arguments: str, environ: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a function of tests.support.ledger in a process of its own, with a bare environment and no home."""
    code = f"from tests.support.ledger import {function.__name__} as function; function(*{arguments!r})"
    paths = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / TEMPLATE_FOLDER}", "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=bare_environment("/proc/nowhere") | paths | dict(environ or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            end(process, patience=0)


def run(function: Callable[..., None], *arguments: str, environ: Mapping[str, str] | None = None) -> str:
    """The same to its end; return what it printed."""
    with other_process(function, *arguments, environ=environ) as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output.decode()
    return output.decode()


# a directory


def test_a_directory_keeps_snapshots_and_gives_them_back(tmp_path: Path) -> None:
    play_through(str(tmp_path / "deep" / "snapshots"), str(tmp_path))


@pytest.mark.slow
def test_snapshots_under_200_writes_a_second_are_consistent_and_fresh(
    store: SnapshotStore, ledger: Ledger, tmp_path: Path
) -> None:
    with other_process(write_without_end, str(ledger.path)) as writer:
        lengths = [50]
        for _ in range(20):
            while (before := len(amounts_in(ledger.path))) <= lengths[-1]:
                assert writer.poll() is None
                time.sleep(0.05)
            take(store, ledger)
            amounts = restored(store, APP, tmp_path / "back")
            assert amounts is not None
            assert amounts == list(range(1, len(amounts) + 1))
            assert len(amounts) >= before
            lengths.append(len(amounts))
        assert writer.poll() is None


def test_what_is_restored_is_what_was_there_byte_by_byte(
    store: SnapshotStore, ledger: Ledger, place: Path, tmp_path: Path
) -> None:
    ledger.write(2, "späte Grüße 雪")
    ledger.connection.execute("PRAGMA user_version = 77")
    take(store, ledger)
    target = tmp_path / "restored.db"
    store.restore("app", target)
    (name,) = kept(place)
    assert target.read_bytes() == (place / name).read_bytes()
    with closing(sqlite3.connect(target)) as connection:
        assert list(connection.iterdump()) == list(ledger.connection.iterdump())
        assert connection.execute("PRAGMA user_version").fetchone() == (77,)
        # one file that needs no other
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_an_unchanged_database_is_not_stored_again(store: SnapshotStore, ledger: Ledger, place: Path) -> None:
    take(store, ledger)
    assert store.take(ledger.path, APP) is None
    assert len(kept(place)) == 1
    ledger.write(2)
    take(store, ledger)
    assert len(kept(place)) == 2


def test_taking_a_snapshot_leaves_nothing_beside_the_database(store: SnapshotStore, ledger: Ledger) -> None:
    before = sorted(os.listdir(ledger.path.parent))
    take(store, ledger)
    assert sorted(os.listdir(ledger.path.parent)) == before


def test_what_a_killed_process_left_behind_is_used_again(store: SnapshotStore, ledger: Ledger, tmp_path: Path) -> None:
    before = sorted(os.listdir(ledger.path.parent))
    for ending in ("", "-journal"):
        Path(f"{ledger.path}.snapshot{ending}").write_bytes(b"torn" * 100_000)
    take(store, ledger)
    assert sorted(os.listdir(ledger.path.parent)) == before
    (tmp_path / "restored.db.snapshot").write_bytes(b"torn" * 100_000)
    store.restore("app", tmp_path / "restored.db")
    assert amounts_in(tmp_path / "restored.db") == [1]


def test_only_the_newest_of_the_same_database_are_kept(store: SnapshotStore, ledger: Ledger, place: Path) -> None:
    others = [take(store, ledger, series).name for series in (LATER_APP, FALLBACK)]
    for amount in range(2, 2 * KEPT):
        ledger.write(amount)
        newest = take(store, ledger)
    assert len(names_of(place, APP)) == KEPT
    assert names_of(place, APP)[-1] == newest.name
    assert kept(place) == sorted(names_of(place, APP) + others)


def test_numbers_decide_and_no_clock(store: SnapshotStore, ledger: Ledger, place: Path, tmp_path: Path) -> None:
    for amount in range(2, 5):
        ledger.write(amount)
        take(store, ledger)
    for age, name in enumerate(names_of(place, APP)):
        # the newest is the oldest to the clock
        os.utime(place / name, (4e9 - age * 1e8, 4e9 - age * 1e8))
    ledger.write(5)
    assert take(store, ledger).number == 4
    os.utime(place / names_of(place, APP)[-1], (0, 0))
    assert restored(store, "app", tmp_path / "back") == [1, 2, 3, 4, 5]


def test_what_is_not_ours_is_left_alone(store: SnapshotStore, ledger: Ledger, place: Path, tmp_path: Path) -> None:
    place.mkdir(parents=True)
    ending = f"00000099-{'0' * 16}.db"
    strangers = ["notes.txt", f"{APP}-00000099.db", f"{APP}-99-{'0' * 16}.db", f"{APP}-{ending}.part"]
    strangers += [f"{other}-{ending}" for other in (f"x{APP}", "app-backup", f"{FALLBACK}0", "fallback-old")]
    for name in strangers:
        (place / name).write_text("not ours")
    (place / "a folder").mkdir()
    for amount in range(2, KEPT + 4):
        ledger.write(amount)
        take(store, ledger)
    assert set(strangers) < set(os.listdir(place))
    assert restored(store, "app", tmp_path / "back") == list(range(1, KEPT + 4))
    assert store.series("fallback") == {}


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def empty(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [cut, flip_a_bit, empty])
def test_a_damaged_newest_snapshot_is_passed_over_for_the_one_before(
    store: SnapshotStore, ledger: Ledger, place: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    take(store, ledger)
    for amount in (2, 3):
        ledger.write(amount)
        newest = place / take(store, ledger).name
        newest.write_bytes(damage(newest.read_bytes()))
    assert restored(store, "app", tmp_path / "back") == [1]


def test_a_whole_object_that_is_no_sound_database_is_passed_over(
    store: SnapshotStore, ledger: Ledger, place: Path, tmp_path: Path
) -> None:
    take(store, ledger)
    forged = tmp_path / "forged"
    ledger.write(2, "x" * 100_000)
    forged.write_bytes((place / take(store, ledger).name).read_bytes())
    with forged.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)
    digest = subprocess.run(["sha256sum", forged], capture_output=True, check=True).stdout.decode()[:16]  # noqa: S603, S607
    forged.rename(place / Snapshot(3, APP, digest).name)
    assert restored(store, "app", tmp_path / "back") == [1, 2]


def test_when_every_snapshot_is_damaged_that_is_an_error_and_nothing_is_restored(
    store: SnapshotStore, ledger: Ledger, place: Path, tmp_path: Path
) -> None:
    (place / take(store, ledger).name).write_bytes(b"")
    target = tmp_path / "empty" / "app.db"
    target.parent.mkdir()
    with pytest.raises(DamagedSnapshot):
        store.restore("app", target)
    assert os.listdir(target.parent) == []


def test_a_damaged_database_pushes_out_no_sound_snapshot(store: SnapshotStore, ledger: Ledger, place: Path) -> None:
    ledger.write(2, "x" * 100_000)
    sound = take(store, ledger).name
    ledger.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    ledger.close()
    with ledger.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)
    with pytest.raises(SnapshotError):
        store.take(ledger.path, APP)
    assert kept(place) == [sound]


def test_a_missing_database_is_an_error_and_stays_missing(store: SnapshotStore, place: Path, tmp_path: Path) -> None:
    with pytest.raises(SnapshotError):
        store.take(tmp_path / "gone.db", APP)
    assert os.listdir(tmp_path) == []


def test_a_journal_that_is_left_of_an_earlier_file_is_not_applied(
    store: SnapshotStore, ledger: Ledger, tmp_path: Path
) -> None:
    take(store, ledger)
    target = tmp_path / "elsewhere" / "app.db"
    target.parent.mkdir()
    with Ledger(target) as before:
        before.write(666)
        for ending in ("-wal", "-shm"):
            shutil.copy(f"{target}{ending}", f"{target}{ending}.kept")
    target.unlink()
    for ending in ("-wal", "-shm"):
        os.rename(f"{target}{ending}.kept", f"{target}{ending}")
    store.restore("app", target)
    assert amounts_in(target) == [1]


@pytest.mark.slow
@pytest.mark.parametrize("kills", [4, pytest.param(12, marks=pytest.mark.thorough)])
def test_a_kill_at_any_moment_leaves_a_readable_snapshot(tmp_path: Path, place: Path, kills: int) -> None:
    live = tmp_path / "live"
    live.mkdir()
    safe = 0
    for turn in range(kills):
        with other_process(take_without_end, str(place), str(live / "app.db")) as process:
            assert process.stdout is not None
            safe = int(process.stdout.readline())
            # moments that are spread over some snapshots
            time.sleep(turn * 0.24 / kills)
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split()
            safe = int(rest[-1]) if rest else safe
        amounts = restored(SnapshotStore(str(place)), "app", tmp_path / "back")
        assert amounts is not None
        assert amounts[-1] in (safe, safe + 1)
    # the live file and the copy that was being made, always under the same names, and their journals
    files = {f"{name}{end}" for name in ("app.db", "app.db.snapshot") for end in ("", "-wal", "-shm", "-journal")}
    assert set(os.listdir(live)) <= files
    # those that were torn count as well until newer ones push them out
    assert len(kept(place)) <= KEPT + 1


# what was moved to PostgreSQL


def test_a_moved_database_is_not_restored_until_the_tombstone_is_removed(
    store: SnapshotStore, ledger: Ledger, tmp_path: Path
) -> None:
    take(store, ledger)
    store.add_tombstone(APP)
    assert restored(store, "app", tmp_path / "back") is None
    assert store.series("app") == {APP: True}
    store.remove_tombstone(APP)
    assert restored(store, "app", tmp_path / "back") == [1]
    assert store.series("app") == {APP: False}


def test_a_snapshot_that_was_under_way_when_its_rows_were_moved_does_not_bring_them_back(
    store: SnapshotStore, ledger: Ledger, tmp_path: Path
) -> None:
    take(store, ledger)
    store.add_tombstone(APP)
    ledger.write(2)
    take(store, ledger)
    assert restored(store, "app", tmp_path / "back") is None


def test_after_a_moved_database_comes_the_one_that_was_begun_later(
    store: SnapshotStore, ledger: Ledger, place: Path, tmp_path: Path
) -> None:
    take(store, ledger)
    store.add_tombstone(APP)
    ledger.write(2)
    newest = take(store, ledger, LATER_APP)
    store.add_tombstone(APP)
    assert restored(store, "app", tmp_path / "back") == [1, 2]
    # and never the one whose rows were moved, damaged or not
    (place / newest.name).write_bytes(b"")
    with pytest.raises(DamagedSnapshot):
        store.restore("app", tmp_path / "app.db")


def test_an_older_database_does_not_come_back_when_the_newest_was_moved(
    store: SnapshotStore, ledger: Ledger, tmp_path: Path
) -> None:
    take(store, ledger)
    take(store, ledger, LATER_APP)
    store.add_tombstone(LATER_APP)
    assert restored(store, "app", tmp_path / "back") is None
    assert store.series("app") == {APP: False, LATER_APP: True}


def test_fallback_files_are_told_apart_by_their_ids(store: SnapshotStore, ledger: Ledger, tmp_path: Path) -> None:
    take(store, ledger, FALLBACK)
    ledger.write(2)
    take(store, ledger, OTHER_FALLBACK)
    store.add_tombstone(OTHER_FALLBACK)
    assert store.series("fallback") == {FALLBACK: False, OTHER_FALLBACK: True}
    assert restored(store, FALLBACK, tmp_path / "back") == [1]
    # who names it knows what became of its rows
    assert restored(store, OTHER_FALLBACK, tmp_path / "back") == [1, 2]
    store.remove_tombstone(FALLBACK)
    assert store.series("fallback") == {FALLBACK: False, OTHER_FALLBACK: True}
    assert restored(store, "app", tmp_path / "back") is None


# whose folder it is


def of(deployment: str, place: Path) -> SnapshotStore:
    """The snapshots of a deployment in a directory, as one of its processes sees them."""
    return SnapshotStore(str(place), deployment=lambda: deployment)


def owners(place: Path) -> list[str]:
    return sorted(name for name in os.listdir(place) if name.startswith("owner-"))


def test_another_deployment_takes_nothing_from_a_folder_and_leaves_it_as_it_is(
    ledger: Ledger, place: Path, tmp_path: Path
) -> None:
    mine = of("me/mine", place)
    mine.attend()
    take(mine, ledger)
    take(mine, ledger, FALLBACK)
    before = sorted(os.listdir(place))
    (owner,) = owners(place)
    assert "me/mine" in (place / owner).read_text()

    attempts: list[Callable[[SnapshotStore], object]] = [
        lambda store: store.restore("app", tmp_path / "restored.db"),
        lambda store: store.series("fallback"),
        lambda store: store.attend(),
        lambda store: store.take(ledger.path, LATER_APP),
        lambda store: store.add_tombstone(FALLBACK),
        lambda store: store.remove_tombstone(FALLBACK),
    ]
    for attempt in attempts:
        with pytest.raises(BelongsToAnother, match=f"a folder of its own.* delete {owner} there and restart"):
            attempt(of("me/copy", place))
    assert sorted(os.listdir(place)) == before
    assert not (tmp_path / "restored.db").exists()


def test_a_folder_without_an_owner_is_taken_over_by_the_first_that_comes(
    store: SnapshotStore, ledger: Ledger, place: Path, tmp_path: Path
) -> None:
    take(store, ledger)
    for mark in owners(place):
        (place / mark).unlink()
    assert restored(of("first", place), "app", tmp_path / "back") == [1]
    with pytest.raises(BelongsToAnother):
        of("second", place).restore("app", tmp_path / "restored.db")
    # an empty one is not claimed by a look
    assert of("second", tmp_path / "empty").series("app") == {}
    of("first", tmp_path / "empty").attend()


def test_a_folder_without_an_owner_is_restored_from_though_it_is_read_only(
    ledger: Ledger, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(of("me/mine", place), ledger)
    (place / owners(place)[0]).unlink()

    def put(folder: Folder, name: str, content: BinaryIO) -> dict[str, int]:
        raise SnapshotError("read-only")

    monkeypatch.setattr(Folder, "put", put)
    assert restored(of("me/mine", place), "app", tmp_path / "back") == [1]
    with pytest.raises(SnapshotError):
        of("me/mine", place).attend()


def test_a_process_that_was_refused_stays_so_until_a_restart(ledger: Ledger, place: Path, tmp_path: Path) -> None:
    take(of("old name", place), ledger)
    running = of("new name", place)
    with pytest.raises(BelongsToAnother):
        running.restore("app", tmp_path / "restored.db")
    (place / owners(place)[0]).unlink()
    # it began without the rows, and its snapshots would hide them
    with pytest.raises(BelongsToAnother):
        running.take(ledger.path, LATER_APP)
    assert restored(of("new name", place), "app", tmp_path / "back") == [1]


def test_the_mark_of_the_owner_is_never_pruned(ledger: Ledger, place: Path) -> None:
    mine = of("me/mine", place)
    mine.attend()
    before = owners(place)
    for amount in range(2, KEPT + 4):
        ledger.write(amount)
        take(mine, ledger)
        mine.attend()
    assert owners(place) == before


def test_of_two_deployments_that_claim_a_folder_at_once_one_has_it(
    ledger: Ledger, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    neither_has_put, put = threading.Barrier(2), Folder.put
    place.mkdir(parents=True)

    def put_together(folder: Folder, name: str, content: BinaryIO) -> dict[str, int]:
        if name.startswith("owner-"):
            neither_has_put.wait(30)
        return put(folder, name, content)

    monkeypatch.setattr(Folder, "put", put_together)
    stores = [of("one", place), of("other", place)]

    def has_it(store: SnapshotStore) -> bool:
        try:
            store.attend()
            return True
        except BelongsToAnother:
            return False

    with ThreadPoolExecutor(2) as both:
        list(both.map(has_it, stores))
    # one that looked before the other had put its mark learns it now
    assert sorted(map(has_it, stores)) == [False, True]
    assert len(owners(place)) == 1
    with pytest.raises(BelongsToAnother):
        stores[[has_it(store) for store in stores].index(False)].take(ledger.path, APP)


def test_two_copies_of_a_deployment_notice_each_other_while_both_run(place: Path) -> None:
    of("it", place).attend()
    first, second = of("it", place), of("it", place)
    # what is left over of a process that has ended is none
    assert not any(first.attend() for _ in range(3))
    second.attend()
    assert [first.attend(), second.attend(), first.attend(), second.attend()] == [True] * 4
    # the second one ends, and its last mark is removed
    assert [first.attend(), first.attend()] == [True, False]
    assert len(kept(place)) == 1


@pytest.mark.parametrize("word", ["backup", "true", "s3:/bucket/folder", "bucket/folder"])
def test_a_word_that_is_no_folder_is_no_place_for_snapshots(word: str, ledger: Ledger, tmp_path: Path) -> None:
    before = os.listdir(tmp_path)
    with pytest.raises(SnapshotError, match=r"neither a URL .* write \./NAME"):
        SnapshotStore(word, tmp_path).take(ledger.path, APP)
    assert os.listdir(tmp_path) == before
    (tmp_path / word).mkdir(parents=True)
    take(SnapshotStore(word, tmp_path), ledger)


# file systems of others


class Awkward(MemoryFileSystem):  # type: ignore[misc]
    """A file system as anybody might write it."""

    protocol = "awkward"
    store: dict[str, Any] = {}  # noqa: RUF012 - fsspec's own way to share it
    pseudo_dirs = [""]  # noqa: RUF012
    may_go_on = threading.Event()
    trouble = ""

    def __init__(self, **options: Any) -> None:
        """Each instance remembers what it listed."""
        super().__init__(**options)
        self.remembered: dict[str, Any] = {}

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        """List a folder as it was when it was listed first."""
        if path not in self.remembered:
            self.remembered[path] = super().ls(path, detail=detail, **options)
        return self.remembered[path]

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget all listings."""
        self.remembered.clear()

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "wb" and self.trouble == "raises":
            raise RuntimeError(f"no way to awkward://user:{SECRET}@example.com{path}")
        if self.trouble == {"wb": "waits", "rb": "waits to read"}.get(mode):
            self.may_go_on.wait(60)
        if mode == "wb" and self.trouble == "cuts":
            super()._open(path, mode, **options).close()
            return io.BytesIO()
        return super()._open(path, mode, **options)

    def rm_file(self, path: str) -> None:
        """Remove a file, or refuse to."""
        if self.trouble == "keeps":
            raise PermissionError(f"{path} is kept for user:{SECRET}")
        super().rm_file(path)


@pytest.fixture
def awkward() -> Iterator[type[Awkward]]:
    """The class, whose `trouble` says how it is awkward."""
    fsspec.register_implementation("awkward", Awkward, clobber=True)
    Awkward.store.clear()
    Awkward.may_go_on.clear()
    yield Awkward
    Awkward.may_go_on.set()
    Awkward.trouble = ""


def test_whatever_a_file_system_raises_becomes_one_error_without_its_text(
    awkward: type[Awkward], ledger: Ledger
) -> None:
    awkward.trouble = "raises"
    with pytest.raises(SnapshotError, match="could not be written to: RuntimeError") as caught:
        SnapshotStore(f"awkward://user:{SECRET}@example.com/x").take(ledger.path, APP)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_place_that_keeps_less_than_it_was_given_is_found_out(awkward: type[Awkward], ledger: Ledger) -> None:
    store = SnapshotStore("awkward://x")
    take(store, ledger)
    ledger.write(2)
    awkward.trouble = "cuts"
    with pytest.raises(SnapshotError, match="whole"):
        store.take(ledger.path, APP)
    awkward.trouble = ""
    assert take(store, ledger).number == 3


def test_a_place_where_nothing_can_be_removed_keeps_taking_snapshots(
    awkward: type[Awkward], ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    store = SnapshotStore("awkward://x")
    awkward.trouble = "keeps"
    for amount in range(KEPT + 1):
        ledger.write(amount)
        assert take(store, ledger).number == amount + 1
    assert "older ones stay" in caplog.text
    assert SECRET not in caplog.text


def test_what_another_process_put_there_is_seen(awkward: type[Awkward], ledger: Ledger, tmp_path: Path) -> None:
    stores = [SnapshotStore("awkward://x"), SnapshotStore("awkward://x")]
    for amount in range(2, 6):
        ledger.write(amount)
        assert take(stores[amount % 2], ledger).number == amount - 1
    assert restored(stores[0], "app", tmp_path / "back") == [1, 2, 3, 4, 5]
    # fsspec would keep one for each thread that ever used it
    assert not awkward._cache


def test_a_restore_that_nobody_waits_for_any_more_replaces_no_database(
    awkward: type[Awkward], ledger: Ledger, tmp_path: Path
) -> None:
    store, errors = SnapshotStore("awkward://x"), list[str]()
    take(store, ledger)
    awkward.trouble = "waits to read"
    target = tmp_path / "begun" / "app.db"
    target.parent.mkdir()

    def restore() -> None:
        try:
            store.restore("app", target)
        except SnapshotError as error:
            errors.append(str(error))

    abandoned = threading.Thread(target=restore)
    abandoned.start()
    wait_until(target.with_name("app.db.snapshot").exists)
    with Ledger(target) as begun:
        begun.write(7)
        awkward.may_go_on.set()
        abandoned.join()
        begun.write(8)
        assert amounts_in(target) == [7, 8]
        assert errors == ["A database was begun meanwhile, which no snapshot replaces."]
    assert os.listdir(target.parent) == ["app.db"]


def test_a_snapshot_that_is_still_under_way_is_not_disturbed(awkward: type[Awkward], ledger: Ledger) -> None:
    store, taken = SnapshotStore("awkward://x"), list[Snapshot | None]()
    awkward.trouble = "waits"
    slow = threading.Thread(target=lambda: taken.append(store.take(ledger.path, APP)))
    slow.start()
    copy = ledger.path.with_name("app.db.snapshot")
    wait_until(lambda: copy.exists() and copy.stat().st_size > 0)
    with pytest.raises(SnapshotError, match="under way"):
        SnapshotStore("awkward://x").take(ledger.path, APP)
    awkward.may_go_on.set()
    slow.join()
    assert taken[0]


@pytest.mark.parametrize(
    "url",
    [
        f"unheard-of://user:{SECRET}@example.com/x",
        f"webdav://user:{SECRET}@example.com/x",
        f"ftp://user:{SECRET}@127.0.0.1:1/x",
        f"ftp://user:{SECRET}@127.0.0.1:port/x",
        f"hf://{SECRET}",
        f"/proc/{SECRET}/x",
    ],
)
def test_no_error_tells_the_url(url: str, ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SnapshotError) as caught:
        SnapshotStore(url).take(ledger.path, APP)
    assert SECRET not in "".join(traceback.format_exception(caught.value)) + caplog.text
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("unheard-of://bucket", "a protocol that nothing here knows: use hf://, s3://"),
        ("hf://nothing", "write hf://buckets/USER/BUCKET/FOLDER or hf://datasets/USER/DATASET/FOLDER"),
        ("s3://", "write s3://BUCKET/FOLDER"),
        ("ftp://127.0.0.1:1/x", "its server cannot be reached; check the network"),
        ("/proc/nowhere/x", "it does not exist, or it cannot be made"),
    ],
)
def test_what_is_wrong_with_a_url_is_told_with_what_to_do(url: str, told: str, ledger: Ledger) -> None:
    with pytest.raises(SnapshotError) as caught:
        SnapshotStore(url).take(ledger.path, APP)
    assert told in str(caught.value)


def test_a_missing_package_is_named() -> None:
    with pytest.raises(SnapshotError, match=r"requirements\.txt.*webdav4"):
        SnapshotStore("webdav://example.com/x").series("app")


# the project


def test_a_path_begins_at_the_project_or_at_home(bake: Bakery, tmp_path: Path) -> None:
    project, home = bake().copy_to(tmp_path), tmp_path / "home"
    code = """if True:
        import os, sqlite3; from pathlib import Path; from space_runtime.snapshots.store import SnapshotStore
        project = os.getcwd()
        os.chdir("..")
        sqlite3.connect("live.db").execute("CREATE TABLE t (a)")
        for url in ("./backups/of it", "~/backups"):
            SnapshotStore(url, Path(project)).take(Path("live.db"), "app-00000001")"""
    project.run(sys.executable, "-c", code, environ={"HOME": str(home)})
    assert len(kept(project.path / "backups" / "of it")) == 1
    assert len(kept(home / "backups")) == 1


def test_an_application_without_snapshots_imports_nothing_for_them(bake: Bakery) -> None:
    code = "import src.main, sys; print({'fsspec', 'huggingface_hub'} & set(sys.modules))"
    assert bake().run(sys.executable, "-c", code).stdout == "set()\n"


# S3


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """What makes s3fs use an S3 on loopback, with the buckets `example` and `lenient`."""
    port = free_port()
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "tests.support.s3", str(port)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 30
        while not is_listening(port):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        url = f"http://127.0.0.1:{port}"
        for bucket in ("example", "lenient"):
            assert httpx2.put(f"{url}/{bucket}", timeout=60, trust_env=False).status_code == 200
        yield S3 | {"AWS_ENDPOINT_URL": url}
    finally:
        end(process)


@pytest.fixture
def s3_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """What s3fs needs before it looks at anything else."""
    for name, value in S3.items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
@pytest.mark.parametrize("url", [pytest.param("s3://example", marks=pytest.mark.thorough), "s3://example/in/a/folder"])
def test_an_s3_that_refuses_checksums_keeps_snapshots_and_gives_them_back(
    s3: dict[str, str], url: str, tmp_path: Path
) -> None:
    assert run(play_through, url, str(tmp_path), environ=s3) == ""


@pytest.mark.slow
@pytest.mark.thorough
def test_checksums_are_sent_where_they_are_asked_for(s3: dict[str, str], tmp_path: Path) -> None:
    asked = s3 | {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_supported"}
    assert run(play_through, "s3://lenient", str(tmp_path), environ=asked) == ""
    told = run(be_refused, "s3://example", str(tmp_path), environ=asked)
    assert "the store answers InvalidArgument; check AWS_ENDPOINT_URL and AWS_DEFAULT_REGION." in told


@pytest.mark.parametrize(
    "endpoint",
    [
        f"{SECRET}.example.com:9000",
        f"http://{SECRET}_minio:9000",
        f"https://user:{SECRET}@127.0.0.1:90000",
        "https://",
        f"http://[{SECRET}",
    ],
    ids=["no scheme", "underscore", "port", "no host", "no address"],
)
@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", pytest.param("AWS_ENDPOINT_URL_S3", marks=pytest.mark.thorough)])
def test_an_endpoint_that_is_no_address_is_named_and_not_shown(
    s3_credentials: None, name: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, endpoint)
    with pytest.raises(SnapshotError, match=f": {name} is no address; write http://HOST:PORT or https:") as caught:
        SnapshotStore("s3://example").series("app")
    assert SECRET not in str(caught.value)


@pytest.mark.slow
@pytest.mark.thorough
def test_an_endpoint_of_fsspec_s_own_is_named(s3: dict[str, str], tmp_path: Path) -> None:
    told = run(be_refused, "s3://example", str(tmp_path), environ=s3 | {"FSSPEC_S3_ENDPOINT_URL": "minio:9000"})
    assert "FSSPEC_S3_ENDPOINT_URL is no address" in told


def test_another_setting_that_is_wrong_is_not_blamed_on_the_endpoint(
    s3_credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "many")
    with pytest.raises(SnapshotError) as caught:
        SnapshotStore("s3://example").series("app")
    assert "AWS_ENDPOINT_URL" not in str(caught.value)


def test_a_region_that_is_none_is_named(s3_credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", f"eu_{SECRET}")
    with pytest.raises(SnapshotError, match=r": AWS_DEFAULT_REGION is not a region\."):
        SnapshotStore("s3://example").series("app")


@pytest.mark.slow
def test_a_missing_bucket_is_an_error_and_is_not_made(s3: dict[str, str], tmp_path: Path) -> None:
    told = run(be_refused, "s3://missing-bucket/x", str(tmp_path), environ=s3)
    assert "SNAPSHOT_URL could not be listed: it does not exist" in told
    assert "missing-bucket" not in told
    assert SECRET not in told
    assert httpx2.head(f"{s3['AWS_ENDPOINT_URL']}/missing-bucket", timeout=60, trust_env=False).status_code == 404


# the Hub


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub with a dataset and a bucket, both `example/backups`."""
    with running_hub() as hub:
        hub.repositories["datasets/example/backups"] = Repository()
        hub.buckets["example/backups"] = {}
        yield hub


@pytest.fixture
def hub_environ(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """What makes huggingface_hub use it; the temporary directory is private and the home cannot be written to."""
    (tmp_path / "tmp").mkdir()
    return hub.environ | {"TMPDIR": str(tmp_path / "tmp")}


@pytest.mark.slow
@pytest.mark.parametrize("url", ["hf://datasets/example/backups/in/a/folder", "hf://buckets/example/backups"])
def test_the_hub_keeps_snapshots_and_gives_them_back(
    hub: Hub, hub_environ: dict[str, str], url: str, tmp_path: Path
) -> None:
    assert run(play_through, url, str(tmp_path), environ=hub_environ) == ""
    assert hub.refused == []
    files = hub.buckets["example/backups"] | hub.repositories["datasets/example/backups"].files
    assert len([name for name in files if name.endswith(".db")]) == KEPT + 1
    assert not list((tmp_path / "tmp").glob("hffs-*"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("datasets", marks=pytest.mark.thorough), "buckets"])
def test_a_missing_place_on_the_hub_is_an_error(hub_environ: dict[str, str], kind: str, tmp_path: Path) -> None:
    told = run(be_refused, f"hf://{kind}/example/missing/x", str(tmp_path), environ=hub_environ)
    assert "SNAPSHOT_URL could not be listed: it does not exist" in told
    assert "example/missing" not in told
    assert TOKEN not in told


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["datasets", pytest.param("buckets", marks=pytest.mark.thorough)])
def test_a_token_that_may_only_read_is_refused_and_leaves_no_copy_on_the_disk(
    hub: Hub, hub_environ: dict[str, str], kind: str, tmp_path: Path
) -> None:
    environ = hub_environ | {"HF_TOKEN": READ_ONLY_TOKEN}
    told = run(be_refused, f"hf://{kind}/example/backups", str(tmp_path), environ=environ)
    assert "SNAPSHOT_URL could not be written to: access is refused" in told
    assert READ_ONLY_TOKEN not in told
    assert any(call.status == 403 for call in hub.calls)
    assert not list((tmp_path / "tmp").glob("hffs-*"))
    assert not list(tmp_path.glob("*.snapshot"))


# a company's network


@pytest.fixture
def behind_a_company(hub: Hub, hub_environ: dict[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """What leads to the Hub, or to an S3, at an address for which only `company.pem` vouches."""
    with edge(int(hub.url.rpartition(":")[2]), authority=tmp_path / "company.pem") as port:
        hub.url = f"https://127.0.0.1:{port}"
        yield hub_environ | IMPATIENT_S3 | {"HF_ENDPOINT": hub.url, "AWS_ENDPOINT_URL": hub.url}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "variable"),
    [
        ("hf://datasets/example/backups", "SSL_CERT_FILE"),
        pytest.param("hf://buckets/example/backups", "SSL_CERT_FILE", marks=pytest.mark.thorough),
        pytest.param("s3://example", "AWS_CA_BUNDLE", marks=pytest.mark.thorough),
    ],
)
def test_the_variable_for_a_companys_authority_is_named(
    behind_a_company: dict[str, str], tmp_path: Path, url: str, variable: str
) -> None:
    told = run(be_refused, url, str(tmp_path), environ=behind_a_company)
    assert f"its certificate is not trusted; let {variable} name a file with its authority." in told
    missing = run(be_refused, url, str(tmp_path), environ=behind_a_company | {variable: "/nowhere"})
    assert f"{variable} names a file that cannot be read." in missing


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["datasets", "buckets"])
def test_a_companys_authority_is_trusted(behind_a_company: dict[str, str], tmp_path: Path, kind: str) -> None:
    trusting = behind_a_company | {"SSL_CERT_FILE": str(tmp_path / "company.pem")}
    assert run(play_through, f"hf://{kind}/example/backups", str(tmp_path), environ=trusting) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "url", "proxy"),
    [
        ("ALL_PROXY", "hf://buckets/example/backups", "socks5://{secret}@127.0.0.1:1"),
        pytest.param("https_proxy", "hf://datasets/example/backups", "proxy://x{secret}", marks=pytest.mark.thorough),
        pytest.param("HTTPS_PROXY", "s3://example", "http://127.0.0.1:1", marks=pytest.mark.thorough),
    ],
)
def test_the_variable_of_a_proxy_that_cannot_be_used_is_named(
    tmp_path: Path, variable: str, url: str, proxy: str
) -> None:
    told = run(be_refused, url, str(tmp_path), environ=IMPATIENT_S3 | {variable: proxy.format(secret=SECRET)})
    assert f"the proxy in {variable} cannot be used, or refuses; it must be http://HOST:PORT." in told
    assert SECRET not in told


def test_a_row_that_follows_within_the_same_tick_of_the_clock_is_in_the_next_snapshot(
    store: SnapshotStore, ledger: Ledger
) -> None:
    log = ledger.path.with_name(f"{ledger.path.name}-wal")
    ledger.write(2)
    ledger.connection.execute("PRAGMA wal_checkpoint(RESTART)")
    tick, size = time.time_ns(), log.stat().st_size
    for file in (ledger.path, log):
        os.utime(file, ns=(tick, tick))
    take(store, ledger)
    # the log is written from its beginning again, so that it does not grow
    ledger.write(3)
    assert log.stat().st_size == size
    for file in (ledger.path, log):
        os.utime(file, ns=(tick, tick))
    take(store, ledger)
