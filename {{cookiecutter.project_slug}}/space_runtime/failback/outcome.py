"""What became of a move."""

from typing import NamedTuple

from sqlalchemy.exc import DBAPIError

from space_runtime.backends.errors import running_reason
from space_runtime.migrations.opening import CannotServe
from space_runtime.records import failbacks


class Outcome(NamedTuple):
    """How many rows were moved, and how many stay behind."""

    moved: int = 0
    refused: int = 0


class MoveFailed(CannotServe):
    """PostgreSQL ended the whole move, which may have been at work on `table`; nothing was moved.

    It is raised without the error as its cause, which may contain values of rows.
    """

    def __init__(self, error: DBAPIError, table: str = "") -> None:
        # The tables for failbacks are at work beside those of the rows.
        own = [name for name in failbacks.OWN_TABLES if name in (error.statement or "")]
        named = {"table": own[0] if own else table, "error": getattr(error.orig, "sqlstate", None)}
        detail = ", ".join(f"{what} {name}" for what, name in named.items() if name)
        reason = running_reason(error) or "rows_not_moved"
        super().__init__(reason, is_there=False, detail=detail)


class SchemasDiffer(CannotServe):
    """The SQLite file and PostgreSQL have different revisions, so rows cannot be moved."""

    def __init__(self) -> None:
        super().__init__("schema_newer", is_there=False)
