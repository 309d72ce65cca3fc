"""The files of rows that PostgreSQL should have had; a file's name says how far it is.

    fallback-<id>.db   it serves while PostgreSQL is away
    handover-<id>.db   its rows are being moved, and it is never written again
    promoted-<id>.db   its rows are in PostgreSQL, but for those that were refused

Each step is one rename or one COMMIT, so that after a crash the names and PostgreSQL's table
`promotions` tell what is left to do.
"""

import fcntl
import logging
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Literal
from uuid import UUID, uuid4

from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from src.database import migrations, postgresql, promotion
from src.database.errors import DatabaseUnavailable, OutcomeUnknown, running_reason
from src.database.opening import CannotServe, bounded, build_engine, set_aside
from src.database.promotion import Outcome
from src.observability.metrics import PROMOTED_ROWS, PROMOTIONS

logger = logging.getLogger(__name__)

State = Literal["fallback", "handover", "promoted"]

_NAME = re.compile(r"(?:fallback|handover|promoted)-([0-9a-f]{32})\.db")
_SECONDS_FOR_OTHERS = 10.0
_SECONDS_OF_SILENCE = 20.0


class Busy(Exception):
    """Another process works with these files."""


class Claim:
    """What this process may do with an SQLite file; the system ends it with the process.

    Processes that serve a file share it. Who hands it over must be the only one.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._descriptor: int | None = None

    def share(self) -> None:
        """Claim the file together with others; raise Busy while another process owns it."""
        try:
            self._lock(fcntl.LOCK_SH)
        except OSError:
            # on a full disk, say: better to serve without than not at all
            logger.warning("the SQLite file cannot be locked: let only one process use it")

    def own(self) -> None:
        """Claim the file alone; raise Busy, keeping what there was, while others share it."""
        shared = self._descriptor is not None
        try:
            self._lock(fcntl.LOCK_EX)
        except (Busy, OSError):
            self.release()
            if shared:
                self.share()
            raise Busy from None

    def release(self) -> None:
        """Give the claim up."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _lock(self, kind: int) -> None:
        if self._descriptor is None:
            path = self.place.with_name(self.place.name + ".lock")
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy from None


@contextmanager
def changing(place: Path, seconds: float = _SECONDS_FOR_OTHERS) -> Iterator[None]:
    """Be the only process that begins, restores or hands over files at this place.

    Wait at most `seconds` for another one, then raise Busy.
    """
    deadline = time.monotonic() + seconds
    try:
        lock = place.with_name(place.name + ".changing").open("w")
    except OSError:
        # nothing can be begun where nothing can be written, so there is nothing to agree on
        yield
        return
    with lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Busy from None
                time.sleep(0.05)
        yield


@contextmanager
def owning(files: Iterable[Path], mine: Claim | None = None) -> Iterator[None]:
    """Own the places of these files until the block ends; raise Busy while others serve them.

    `mine` is the claim under which this process serves; it is shared again at the end.
    """
    places = {_place_of(file) for file in files} | ({mine.place} if mine else set())
    with ExitStack() as stack:
        for place in sorted(places):
            stack.enter_context(changing(place))
            claim = mine if mine and mine.place == place else Claim(place)
            stack.callback(claim.share if claim is mine else claim.release)
            claim.own()
        yield


def find(state: State, directories: Iterable[Path]) -> list[Path]:
    """Return the files in this state."""
    found: list[Path] = []
    for directory in directories:
        try:
            files = sorted(directory.glob(f"{state}-*.db"))
        except OSError:  # who may not look into it has written nothing there
            continue
        found += [file for file in files if _NAME.fullmatch(file.name)]
    return found


def new_file(directory: Path, file_id: UUID | None = None) -> Path:
    """Return the path of a fallback file that is to be begun."""
    return directory / f"fallback-{(file_id or uuid4()).hex}.db"


def id_of(file: Path) -> UUID:
    """Return the id in a file's name; a new one for a file of another name."""
    match = _NAME.fullmatch(file.name)
    return UUID(hex=match[1]) if match else uuid4()


def read_only(file: Path) -> Engine:
    """Return an engine that reads the file and leaves no trace beside it."""
    uri = f"{file.absolute().as_uri()}?mode=ro"
    return create_engine(
        "sqlite://", creator=lambda: sqlite3.connect(uri, uri=True, timeout=5), poolclass=NullPool
    )


def move(
    file: Path,
    target: Engine,
    *,
    on_progress: Callable[[], None] = lambda: None,
    mark: Callable[[UUID], None] = lambda file_id: None,
    unmark: Callable[[UUID], None] = lambda file_id: None,
) -> Outcome:
    """Hand over one file, from whichever step it is at; return what became of its rows.

    `mark` and `unmark` say elsewhere that these rows must not be served from a copy any more.

    Raise OutcomeUnknown if nobody knows whether they were moved. After any other error they were
    not, and the file has its old name.
    """
    if not promotion.count_rows(source := read_only(file)):
        file.unlink()
        return Outcome()
    is_new = not file.name.startswith("handover-")
    handed_over = begin(file, target) if is_new else file
    try:
        mark(id_of(handed_over))
        if not promotion.is_promoted(target, id_of(handed_over)):
            _bring_up_to_date(handed_over)
        source = read_only(handed_over)
        outcome = promotion.promote(source, target, id_of(handed_over), on_progress)
    except OutcomeUnknown:
        raise
    except BaseException:
        if is_new:
            _rename(handed_over, file.name)
            unmark(id_of(handed_over))
        raise
    finish(handed_over)
    return outcome


def move_all(
    files: Iterable[Path],
    memory: dict[UUID, Engine],
    target: Engine,
    mark: Callable[[UUID], None],
    unmark: Callable[[UUID], None],
) -> None:
    """Hand over these files and databases in memory, of which those that were moved are removed.

    Raise CannotServe if some had to stay behind, or Busy.
    """
    progress = threading.Event()

    def work() -> None:
        for file in files:
            try:
                _count(move(file, target, on_progress=progress.set, mark=mark, unmark=unmark))
            except DBAPIError as error:
                of_the_file = isinstance(error.orig, sqlite3.Error)
                if not of_the_file or running_reason(error) != "corrupt":
                    raise
                set_aside(file)
        for promotion_id, engine in list(memory.items()):
            _count(promotion.promote(engine, target, promotion_id, progress.set))
            del memory[promotion_id]
            engine.dispose()

    try:
        bounded(work, _SECONDS_OF_SILENCE, progress, lambda: postgresql.sever(target))
    except (OutcomeUnknown, TimeoutError):
        # perhaps they were moved: only PostgreSQL can tell, so only PostgreSQL may serve
        raise CannotServe("connection_lost", reached=True) from None
    except promotion.SchemasDiffer:
        raise CannotServe("schema_newer", reached=False) from None
    except (SQLAlchemyError, DatabaseUnavailable, sqlite3.Error, OSError) as error:
        code = getattr(getattr(error, "orig", error), "sqlstate", None)
        logger.error("rows could not be moved: %s %s", type(error).__name__, code or "")
        reason = running_reason(error) or "migration_failed"
        raise CannotServe(reason, reached=False) from None


def _count(outcome: Outcome) -> None:
    if outcome.moved or outcome.refused:
        PROMOTIONS.inc()
    PROMOTED_ROWS.labels("moved").inc(outcome.moved)
    PROMOTED_ROWS.labels("refused").inc(outcome.refused)


def begin(file: Path, target: Engine) -> Path:
    """Close the file for good and return its new name."""
    file_id = id_of(file)
    if promotion.is_promoted(target, file_id):
        # a copy of a file that was moved already; what is new in it can still be moved
        file_id = uuid4()
    seal(file)
    return _rename(file, f"handover-{file_id.hex}.db")


def seal(file: Path) -> None:
    """Put the write-ahead log into the file; raise Busy if any program has the file open."""
    with closing(sqlite3.connect(file, isolation_level=None, timeout=1)) as connection:
        try:
            connection.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise Busy from None
            raise


def finish(handed_over: Path) -> Path:
    """Keep the file under the name that says that its rows have been moved."""
    return _rename(handed_over, f"promoted-{id_of(handed_over).hex}.db")


def _bring_up_to_date(file: Path) -> None:
    """Give the rows that an older version left behind the schema that PostgreSQL has by now.

    Raise CannotServe if a migration fails. Only for this, and only before its rows are moved, a
    handed-over file is written again.
    """
    known, newest = migrations.revisions()
    with read_only(file).connect() as connection:
        revision = migrations.current_revision(connection)
    if revision not in known - newest:
        return
    engine = build_engine(URL.create("sqlite", database=str(file)))
    try:
        migrations.migrate(engine)
    except Exception as error:  # a migration is its owner's code: it may raise anything
        logger.error("rows of an older version could not be migrated", exc_info=error)
        raise CannotServe("migration_failed", reached=False) from None
    finally:
        engine.dispose()
    seal(file)


def _place_of(file: Path) -> Path:
    return file.with_name("fallback") if _NAME.fullmatch(file.name) else file


def _rename(file: Path, name: str) -> Path:
    renamed = file.rename(file.with_name(name))
    # the new name must be on the disk before PostgreSQL is told
    descriptor = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return renamed
