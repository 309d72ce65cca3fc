"""The command that moves rows from SQLite to PostgreSQL, and shows those that were refused.

python -m space_runtime.failback src.main:create_runtime [OPTION] [FILE ...]
"""

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from space_runtime.backends.errors import (
    DatabaseUnavailable,
    OutcomeUnknown,
    connection_reason,
    running_reason,
)
from space_runtime.backends.opening import CannotServe
from space_runtime.failback.handover import Failback, SchemasDiffer, is_moved
from space_runtime.failback.outcome import MoveFailed
from space_runtime.file_locks import Busy, exclusive
from space_runtime.files import names
from space_runtime.files.contents import count_rows, read_only
from space_runtime.files.sqlite_files import CONFIGURED_FILE
from space_runtime.migrations import Migrations
from space_runtime.reasons import REASONS
from space_runtime.records import failbacks
from space_runtime.records.failbacks import REFUSALS
from space_runtime.records.stored import to_json
from space_runtime.runtime import Runtime

_DESCRIPTION = """Move rows from SQLite to PostgreSQL: those written while PostgreSQL was away,
those that it refused before, and those in app.db (or in FILE), which only this command moves.
"""


def main() -> int:
    """Do what the arguments say; return the exit code, 1 if some rows stay behind."""
    parser = argparse.ArgumentParser(prog="make failback", description=_DESCRIPTION)
    parser.add_argument("runtime", metavar="MODULE:FUNCTION", help="returns the runtime")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--dry-run", action="store_true", help="only say what would be moved")
    actions.add_argument(
        "--list", action="store_true", help="list the refused rows: table, key, why"
    )
    actions.add_argument(
        "--export", type=Path, metavar="NEW_FILE", help="write the refused rows to a file, as JSON"
    )
    actions.add_argument("--discard", action="store_true", help="delete the refused rows for good")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="an SQLite file")
    arguments = parser.parse_args()
    if missing := [str(file) for file in arguments.files if not file.is_file()]:
        parser.error(f"no such file: {', '.join(missing)}")
    module, _, function = arguments.runtime.partition(":")
    runtime: Runtime = getattr(importlib.import_module(module), function)()

    resolution = runtime.resolution
    if resolution.url is None or resolution.backend != "postgresql":
        sys.exit(resolution.message or "DATABASE_URL is not a PostgreSQL URL: set it first.")
    with runtime.configured_engine() as target:
        try:
            if arguments.list:
                return _list(target)
            if arguments.export:
                return _export(target, arguments.export)
            if arguments.discard:
                return _discard(target)
            return _move(runtime, target, arguments.files, only_plan=arguments.dry_run)
        except Busy:
            sys.exit("The application is using these files: stop it, then try again.")
        except SchemasDiffer:
            sys.exit("SQLite and PostgreSQL have different schemas: deploy the newest version.")
        except OutcomeUnknown:
            sys.exit("Interrupted during COMMIT: run this again, which moves nothing twice.")
        except MoveFailed as failed:
            reason = running_reason(failed.error) or "rows_not_moved"
            sys.exit(f"Nothing more was moved: {REASONS[reason].explanation} ({failed.detail}).")
        except CannotServe as error:
            sys.exit(f"Nothing more was moved: {REASONS[error.reason].explanation}.")
        except (SQLAlchemyError, DatabaseUnavailable) as error:
            sys.exit(f"Nothing more was moved: {REASONS[connection_reason(error)].explanation}.")


def _move(runtime: Runtime, target: Engine, chosen: list[Path], *, only_plan: bool) -> int:
    directories = runtime.locations.directories()
    files = names.find("handover", directories) + names.find("fallback", directories)
    # Path.exists() raises PermissionError in a directory that may not be entered.
    configured = [directory / CONFIGURED_FILE for directory in directories]
    files += chosen or [file for file in configured if os.path.exists(file)]
    if only_plan:
        return _print_plan(files, target)

    migrations = Migrations(runtime.project.folder)
    migrations.migrate(target)
    failback = Failback(target, runtime.project.metadata, migrations, runtime.snapshots)
    print(f"To the database {target.url.database}:")
    with target.connect() as connection:
        refused_before = failbacks.files_with_refused(connection)
    left = 0
    for file_id in refused_before:
        outcome = failback.retry_refused(file_id)
        left += outcome.refused
        print(f"refused before: {outcome.moved} moved, {outcome.refused} refused again")
    for file in files:
        with exclusive([names.location_of(file)]):
            outcome = failback.move(file)
        left += outcome.refused
        print(f"{file.name}: {outcome.moved} moved, {outcome.refused} refused")
    if not (refused_before or files):
        print("There is nothing to move.")
        return 0
    print("PostgreSQL keeps the refused rows: make failback LIST=1 says why." if left else "Done.")
    return 1 if left else 0


def _print_plan(files: list[Path], target: Engine) -> int:
    for file in files:
        if not is_moved(target, names.id_of(file)):
            for name, count in count_rows(read_only(file)).items():
                print(f"{file.name}: {name}: {count} rows would be moved")
    with target.connect() as connection:
        count = failbacks.count_refused(connection)
    print(f"{count} rows that were refused before would be tried again")
    return 0


def _list(target: Engine) -> int:
    with target.connect() as connection:
        for row in failbacks.list_refused(connection):
            why = REFUSALS.get(row.reason, row.reason)
            code = f" ({row.sqlstate})" if row.sqlstate else ""
            print(f"{row.refused_at:%Y-%m-%d %H:%M}  {row.table_name}  {row.key}  {why}{code}")
        print(f"{failbacks.count_refused(connection)} refused rows")
    return 0


def _export(target: Engine, file: Path) -> int:
    count = 0
    try:
        with target.connect() as connection, file.open("x", encoding="utf-8") as lines:
            for file_id in failbacks.files_with_refused(connection):
                for row in failbacks.read_refused(connection, file_id):
                    count += 1
                    values = to_json(row.content | row.settled)
                    line = {
                        "table": row.table_name,
                        "reason": row.reason,
                        "sqlstate": row.sqlstate,
                        "row": values,
                    }
                    lines.write(json.dumps(line) + "\n")
    except OSError as error:
        sys.exit(f"{file}: {error.strerror}")
    print(f"{count} refused rows were written to {file}")
    return 0


def _discard(target: Engine) -> int:
    with target.begin() as connection:
        count = failbacks.discard_refused(connection) if failbacks.count_refused(connection) else 0
    print(f"{count} refused rows were deleted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
