"""The command that moves rows from SQLite to PostgreSQL, and shows those that were refused.

python -m space_runtime.failback src.main:create_runtime [OPTION] [FILE ...]
"""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from space_runtime.backends import backend_of
from space_runtime.backends.errors import DatabaseUnavailable, OutcomeUnknown, connection_reason
from space_runtime.failback.handover import Failback, is_moved
from space_runtime.failback.outcome import Outcome, SchemasDiffer
from space_runtime.file_locks import Busy, exclusive
from space_runtime.files import names
from space_runtime.files.contents import count_rows, read_only
from space_runtime.files.sqlite_files import CONFIGURED_FILE
from space_runtime.migrations import Migrations
from space_runtime.migrations.opening import CannotServe
from space_runtime.reasons import REASONS
from space_runtime.records import failbacks
from space_runtime.records.failbacks import RefusedRow
from space_runtime.records.stored import to_json
from space_runtime.runtime import Runtime

_DESCRIPTION = """Move rows from SQLite to PostgreSQL: those written while PostgreSQL was away and
those that it refused before, and, after asking, those in app.db (or in FILE).
"""
_AND_THOSE = "this refused row, and those that refer to it; or all"
_OPTIONS: dict[str, dict[str, Any]] = {
    "--dry-run": {"action": "store_true", "help": "only say what would be moved"},
    "--list": {"action": "store_true", "help": "list the refused rows: number, table, key, why"},
    "--retry": {"metavar": "NUMBER", "help": f"only try again to move {_AND_THOSE}"},
    "--found": {
        "metavar": "NUMBER",
        "help": "PostgreSQL has this refused row, with its key: move those that refer to it",
    },
    "--export": {"type": Path, "metavar": "NEW_FILE", "help": "write the refused rows as JSON"},
    "--discard": {"metavar": "NUMBER", "help": f"delete {_AND_THOSE}"},
}


def main() -> int:
    """Do what the arguments say; return the exit code, 1 if some rows stay behind."""
    parser = argparse.ArgumentParser(prog="make failback", description=_DESCRIPTION)
    parser.add_argument("runtime", metavar="MODULE:FUNCTION", help="returns the runtime")
    actions = parser.add_mutually_exclusive_group()
    for name, described in _OPTIONS.items():
        actions.add_argument(name, **described)
    parser.add_argument("--yes", action="store_true", help="do not ask")
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
            return _Command(runtime, target, arguments).run()
        except Busy:
            sys.exit("The application is using these files: stop it, then try again.")
        except SchemasDiffer:
            sys.exit("SQLite and PostgreSQL have different schemas: deploy the newest version.")
        except OutcomeUnknown:
            sys.exit("Interrupted during COMMIT: run this again, which moves nothing twice.")
        except CannotServe as error:
            where = f" ({error.detail})" if error.detail else ""
            sys.exit(f"Nothing more was moved: {REASONS[error.reason].explanation}{where}.")
        except (SQLAlchemyError, DatabaseUnavailable) as error:
            sys.exit(f"Nothing more was moved: {REASONS[connection_reason(error)].explanation}.")


class _Command:
    """Does what the arguments say, with one PostgreSQL."""

    def __init__(self, runtime: Runtime, target: Engine, arguments: argparse.Namespace) -> None:
        self._runtime, self._target, self._arguments = runtime, target, arguments
        self._migrations = Migrations(runtime.project.folder)
        metadata, snapshots = runtime.project.metadata, runtime.snapshots
        self._failback = Failback(target, metadata, self._migrations, snapshots)

    def run(self) -> int:
        """Return the exit code."""
        if self._arguments.list:
            return self._list()
        if self._arguments.retry:
            return self._retry(self._arguments.retry)
        if self._arguments.found:
            return self._take_as_found(self._arguments.found)
        if self._arguments.export:
            return self._export(self._arguments.export)
        if self._arguments.discard:
            return self._discard(self._arguments.discard)
        return self._move()

    def _move(self) -> int:
        directories = self._runtime.locations.directories()
        files = names.find("handover", directories) + names.find("fallback", directories)
        # Path.exists() raises PermissionError in a directory that may not be entered.
        configured = [directory / CONFIGURED_FILE for directory in directories]
        chosen = self._arguments.files or [file for file in configured if os.path.exists(file)]
        is_behind = self._migrations.is_behind(self._target)
        print(f"To {backend_of(self._target).describe(self._target.url)}:")
        if is_behind:
            print(
                "its schema is older than this project's, or it has none yet: it would be migrated"
            )
        self._print_plan([*files, *chosen])
        if self._arguments.dry_run:
            return 0

        if is_behind and not self._confirm("Migrate this database?"):
            return 1
        # What an outage left behind belongs there. These rows may be no more than somebody's tests.
        question = "Move the rows of {} there, too? They were not written in an outage."
        left_alone = [one for one in chosen if not self._confirm(question.format(one.name))]
        files += [one for one in chosen if one not in left_alone]
        self._migrations.migrate(self._target)
        tried_again = self._retry_all()
        refused = sum(outcome.refused for outcome in tried_again)
        for file in files:
            with exclusive([names.location_of(file)]):
                outcome = self._failback.move(file)
            refused += outcome.refused
            print(f"{file.name}: {outcome.moved} moved, {outcome.refused} refused")
        if refused:
            print("PostgreSQL keeps the refused rows: make failback LIST=1 says why.")
        elif not left_alone:
            print("Done." if tried_again or files else "There is nothing to move.")
        return 1 if refused or left_alone else 0

    def _print_plan(self, files: list[Path]) -> None:
        for file in files:
            if not is_moved(self._target, names.id_of(file)):
                for name, count in count_rows(read_only(file)).items():
                    print(f"{file.name}: {name}: {count} rows would be moved")
        with self._target.connect() as connection:
            count = failbacks.count_refused(connection)
        print(f"{count} rows that were refused before would be tried again")

    def _confirm(self, question: str) -> bool:
        if self._arguments.yes:
            return True
        if not sys.stdin.isatty():
            print(f"{question} There is nobody to ask: YES=1 says yes.")
            return False
        try:
            return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
        except EOFError:
            return False

    def _list(self) -> int:
        with self._target.connect() as connection:
            _print_rows(failbacks.list_refused(connection))
            print(f"{failbacks.count_refused(connection)} refused rows")
            if renamed := sum(1 for _ in failbacks.read_new_keys(connection)):
                print(f"{renamed} rows were moved with another key: EXPORT=file says which")
        return 0

    def _retry(self, which: str) -> int:
        if which == "all":
            return 1 if any(outcome.refused for outcome in self._retry_all()) else 0
        rows = self._find(which, "RETRY is `all` or")
        _print_rows(rows)
        return self._retry_these(rows)

    def _retry_these(self, rows: list[RefusedRow]) -> int:
        self._failback.retry_refused(rows[0].file_id, [row.number for row in rows])
        with self._target.connect() as connection:
            left = {row.number for row in failbacks.list_refused(connection)}
        refused = sum(row.number in left for row in rows)
        print(f"{len(rows) - refused} moved, {refused} refused again")
        return 1 if refused else 0

    def _retry_all(self) -> list[Outcome]:
        with self._target.connect() as connection:
            file_ids = failbacks.files_with_refused(connection)
        outcomes = [self._failback.retry_refused(file_id) for file_id in file_ids]
        for outcome in outcomes:
            print(f"refused before: {outcome.moved} moved, {outcome.refused} refused again")
        return outcomes

    def _take_as_found(self, which: str) -> int:
        found, *referring = self._find(which, "FOUND is")
        _print_rows([found])
        if not self._failback.is_there(found):
            sys.exit("PostgreSQL has no row with this key: nothing was changed.")
        if not self._confirm("Is PostgreSQL's row with this key this row?"):
            return 1
        with self._target.begin() as connection:
            failbacks.discard_refused(connection, [found.number])
        return self._retry_these(referring) if referring else 0

    def _export(self, file: Path) -> int:
        count = 0
        try:
            with self._target.connect() as connection, file.open("x", encoding="utf-8") as lines:
                for file_id in failbacks.files_with_refused(connection):
                    for row in failbacks.read_refused(connection, file_id):
                        count += 1
                        lines.write(json.dumps(_exported(row)) + "\n")
                for new in failbacks.read_new_keys(connection):
                    line = {"table": new.table_name, "old_key": new.old_key, "new_key": new.new_key}
                    lines.write(json.dumps(line) + "\n")
        except OSError as error:
            sys.exit(f"{file}: {error.strerror}")
        print(f"{count} refused rows were written to {file}")
        return 0

    def _discard(self, which: str) -> int:
        if which == "all":
            with self._target.connect() as connection:
                numbers = [row.number for row in failbacks.list_refused(connection)]
        else:
            rows = self._find(which, "DISCARD is `all` or")
            numbers = [row.number for row in rows]
            _print_rows(rows)
        if not self._confirm(f"Delete these {len(numbers)} rows for good?"):
            return 1
        with self._target.begin() as connection:
            failbacks.discard_refused(connection, numbers)
        print(f"{len(numbers)} refused rows were deleted")
        return 0

    def _find(self, which: str, option_is: str) -> list[RefusedRow]:
        try:
            return self._failback.find_refused(int(which))
        except (ValueError, LookupError):
            sys.exit(f"{option_is} a number that LIST=1 shows.")


def _print_rows(rows: Iterable[Any]) -> None:
    for row in rows:
        why = failbacks.because(row.reason, row.error)
        when = f"{row.refused_at:%Y-%m-%d %H:%M}"
        print(f"{row.number}  {when}  {row.table_name}  {row.key}  {why}")


def _exported(row: RefusedRow) -> dict[str, Any]:
    sqlstate, _, constraint = (row.error or "").partition(" ")
    return {
        "number": row.number,
        "table": row.table_name,
        "reason": row.reason,
        "sqlstate": sqlstate or None,
        "constraint": constraint or None,
        "row": to_json(row.content | row.settled),
    }


if __name__ == "__main__":
    sys.exit(main())
