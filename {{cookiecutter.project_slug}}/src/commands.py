"""Databases for scripts and for the command line.

python -m src.commands promote [--dry-run] [FILE ...]
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Engine
from sqlalchemy.exc import SQLAlchemyError

from src.config.settings import load_settings
from src.database import handover, migrations, promotion
from src.database.errors import OutcomeUnknown, connection_reason
from src.database.lifecycle import DatabaseLifecycle
from src.database.opening import CannotServe, build_engine, is_memory
from src.database.reasons import REASONS
from src.database.resolver import DatabaseURLResolver, Resolution
from src.database.session import Database
from src.database.sqlite_files import ASKED_FOR_FILE, directories, find_place, path_of

_DESCRIPTION = """Move rows on SQLite to PostgreSQL: those that were written while it was away,
those that it refused before, and those of app.db (or of the FILEs), which never move by themselves.
"""


@contextmanager
def open_database() -> Iterator[Database]:
    """Choose the database for a script, yield it with SessionLocal bound, and close it."""
    database = Database()
    lifecycle = DatabaseLifecycle(database, load_settings())
    lifecycle.choose()
    try:
        if not database.is_open:
            raise SystemExit(lifecycle.report.detail)
        yield database
    finally:
        lifecycle.stop()


@contextmanager
def engine_for_commands() -> Iterator[Engine]:
    """Yield an engine on the database that was asked for, for Alembic's command line.

    Stop with one sentence when DATABASE_URL is of no use: a command falls back to nothing.
    """
    engine = build_engine(_asked_for())
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def postgresql_for_commands() -> Iterator[Engine]:
    """Yield an engine on the PostgreSQL that DATABASE_URL names; stop with a sentence otherwise."""
    resolution = DatabaseURLResolver(os.environ).resolve()
    if resolution.url is None or resolution.backend != "postgresql":
        raise SystemExit(resolution.message or "DATABASE_URL names no PostgreSQL: set it first.")
    engine = build_engine(resolution)
    try:
        yield engine
    finally:
        engine.dispose()


def _asked_for() -> Resolution | URL:
    resolution = DatabaseURLResolver(os.environ).resolve()
    url = resolution.url
    if url is None and resolution.reason not in ("unset", "empty"):
        raise SystemExit(resolution.message)
    if url is not None and (resolution.backend == "postgresql" or is_memory(url)):
        return resolution
    path = (
        find_place(ASKED_FOR_FILE, load_settings().sqlite_dir).path
        if url is None
        else path_of(str(url.database))
    )
    return URL.create("sqlite", database=str(path) if path else None)


def main() -> int:
    """Move the rows and say what became of them; return 1 if some stay behind."""
    parser = argparse.ArgumentParser(prog="python -m src.commands", description=_DESCRIPTION)
    parser.add_argument("command", choices=["promote"])
    parser.add_argument("--dry-run", action="store_true", help="only say what would be moved")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="an SQLite file")
    arguments = parser.parse_args()
    # here, because Alembic uses this module, too: with it, every model is known
    import src.main  # noqa: F401

    places = directories(load_settings().sqlite_dir)
    files = handover.find("handover", places) + handover.find("fallback", places)
    files += arguments.files or [
        path for path in (place / ASKED_FOR_FILE for place in places) if path.exists()
    ]
    refused = handover.find("promoted", places)
    with postgresql_for_commands() as target:
        try:
            if arguments.dry_run:
                return _tell(files, refused, target)
            migrations.migrate(target)
            return _move(files, refused, target)
        except handover.Busy:
            sys.exit("The application is using these files: stop it, then try again.")
        except promotion.SchemasDiffer:
            sys.exit("The SQLite file is of a newer version of this application: use that one.")
        except OutcomeUnknown:
            sys.exit("Cut off as the rows were being stored: run this again, which finds out.")
        except CannotServe as error:
            sys.exit(f"Nothing more was moved: {REASONS[error.reason].explanation}.")
        except SQLAlchemyError as error:
            sys.exit(f"Nothing more was moved: {REASONS[connection_reason(error)].explanation}.")


def _tell(files: list[Path], refused: list[Path], target: Engine) -> int:
    for file in files:
        if promotion.is_promoted(target, handover.id_of(file)):
            continue
        for name, count in promotion.count_rows(handover.read_only(file)).items():
            print(f"{file.name}: {name}: {count} rows would be moved")
    count = promotion.count_refused(target, [handover.id_of(file) for file in refused])
    print(f"{count} rows that were refused before would be tried again")
    return 0


def _move(files: list[Path], refused: list[Path], target: Engine) -> int:
    left = 0
    for file in refused:
        file_id = handover.id_of(file)
        if not (count := promotion.count_refused(target, [file_id])):
            continue
        try:
            outcome = promotion.retry_refused(handover.read_only(file), target, file_id)
        except promotion.SchemasDiffer:
            left += count
            print(f"{file.name}: {count} refused before stay: the schema has changed since then")
            continue
        left += outcome.refused
        if outcome.moved or outcome.refused:
            print(f"{file.name}: {outcome.moved} moved, {outcome.refused} refused again")
    for file in files:
        with handover.owning([file]):
            outcome = handover.move(file, target)
        left += outcome.refused
        print(f"{file.name}: {outcome.moved} moved, {outcome.refused} refused")
    print("Refused rows stay in promoted-*.db; the log above names them." if left else "Done.")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
