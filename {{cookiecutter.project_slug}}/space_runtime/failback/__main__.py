"""The command that moves rows from SQLite to PostgreSQL.

python -m space_runtime.failback src.main:create_runtime [--dry-run] [FILE ...]
"""

import argparse
import importlib
import os
import sys
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from space_runtime.backends.errors import DatabaseUnavailable, OutcomeUnknown, connection_reason
from space_runtime.backends.opening import CannotServe
from space_runtime.failback import rows
from space_runtime.failback.handover import Failback
from space_runtime.file_locks import Busy, exclusive
from space_runtime.files import names
from space_runtime.files.contents import count_rows, read_only
from space_runtime.files.sqlite_files import CONFIGURED_FILE
from space_runtime.migrations import Migrations
from space_runtime.reasons import REASONS
from space_runtime.runtime import Runtime

_DESCRIPTION = """Move rows from SQLite to PostgreSQL: those written while PostgreSQL was away,
those that it refused before, and those in app.db (or in FILE), which only this command moves.
"""


def main() -> int:
    """Move the rows and print what became of them; return the exit code, 1 if some stay behind."""
    parser = argparse.ArgumentParser(prog="make failback", description=_DESCRIPTION)
    parser.add_argument("runtime", metavar="MODULE:FUNCTION", help="returns the runtime")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be moved")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="an SQLite file")
    arguments = parser.parse_args()
    if missing := [str(file) for file in arguments.files if not file.is_file()]:
        parser.error(f"no such file: {', '.join(missing)}")
    module, _, function = arguments.runtime.partition(":")
    runtime: Runtime = getattr(importlib.import_module(module), function)()

    resolution = runtime.resolution
    if resolution.url is None or resolution.backend != "postgresql":
        sys.exit(resolution.message or "DATABASE_URL is not a PostgreSQL URL: set it first.")
    directories = runtime.locations.directories()
    files = names.find("handover", directories) + names.find("fallback", directories)
    # Path.exists() raises PermissionError in a directory that may not be entered.
    configured = [directory / CONFIGURED_FILE for directory in directories]
    files += arguments.files or [file for file in configured if os.path.exists(file)]
    moved = names.find("moved", directories)
    migrations = Migrations(runtime.project.folder)
    with runtime.configured_engine() as target:
        failback = Failback(target, runtime.project.metadata, migrations, runtime.snapshots)
        try:
            if arguments.dry_run:
                return _print_plan(files, moved, target)
            migrations.migrate(target)
            return _move(files, moved, target, failback)
        except Busy:
            sys.exit("The application is using these files: stop it, then try again.")
        except rows.SchemasDiffer:
            sys.exit("SQLite and PostgreSQL have different schemas: deploy the newest version.")
        except OutcomeUnknown:
            sys.exit("Interrupted during COMMIT: run this again, which moves nothing twice.")
        except CannotServe as error:
            sys.exit(f"Nothing more was moved: {REASONS[error.reason].explanation}.")
        except (SQLAlchemyError, DatabaseUnavailable) as error:
            sys.exit(f"Nothing more was moved: {REASONS[connection_reason(error)].explanation}.")


def _print_plan(files: list[Path], moved: list[Path], target: Engine) -> int:
    for file in files:
        if not rows.is_moved(target, names.id_of(file)):
            for name, count in count_rows(read_only(file)).items():
                print(f"{file.name}: {name}: {count} rows would be moved")
    count = rows.count_refused(target, [names.id_of(file) for file in moved])
    print(f"{count} rows that were refused before would be tried again")
    return 0


def _move(files: list[Path], moved: list[Path], target: Engine, failback: Failback) -> int:
    left = 0
    for file in moved:
        if count := rows.count_refused(target, [names.id_of(file)]):
            try:
                outcome = failback.retry_refused(file)
            except rows.SchemasDiffer:
                left += count
                print(f"{file.name}: {count} refused before stay: the schema has changed since")
            else:
                left += outcome.refused
                print(f"{file.name}: {outcome.moved} moved, {outcome.refused} refused again")
    for file in files:
        with exclusive([names.location_of(file)]):
            outcome = failback.move(file)
        left += outcome.refused
        print(f"{file.name}: {outcome.moved} moved, {outcome.refused} refused")
    print("Refused rows stay in moved-*.db; the log above names them." if left else "Done.")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
