"""Map a driver's errors to reasons, and to what a client is told.

A driver's text is matched here and never sent to a client, because it names hosts and users.
"""

import re

from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    OperationalError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from space_runtime.columns import RefusedValue
from space_runtime.reasons import BY_SQLITE_CODE, BY_SQLSTATE, REASONS

# A failed connect has no SQLSTATE, only libpq's text. With several hosts the text reports each
# host's failure, so what a server answered is looked for before signs that none answered.
_CONNECTION_MESSAGES = (
    ("too_many_connections", ("too many connections", "too many clients")),
    ("auth_failed", ("authentication failed", "no password supplied", ", ssl encryption")),
    ("tls", (", no encryption",)),
    ("auth_failed", ("pg_hba.conf",)),
    ("auth_failed", ("not permitted to log in", "scram", "no such user", "user not found")),
    ("auth_failed", ("role ",)),
    ("too_many_connections", ("too many", "remaining connection slots", "max clients")),
    ("starting_up", ("starting up", "shutting down", "in recovery mode", "not yet accepting")),
    ("not_postgres", ("invalid response to ssl", "expected authentication request")),
    ("tls", ("ssl", "certificate", "tls")),
    ("database_missing", ("database ",)),
    ("read_only", ("session is read-only", "server is in hot standby mode")),
    ("timeout", ("timeout", "timed out")),
    ("refused", ("connection refused", "no such file or directory")),
    ("dns", ("resolve host", "translate host name", "name or service not known")),
)
# SQLSTATEs: too long, out of range, invalid time, text or JSON; None is an error of the driver.
_VALUES_REFUSED = ("22001", "22003", "22008", "22021", "22P02", "22P05", None)
# Rules that only the application's own code can break; a client can cause the other conflicts.
_RULES_OF_CODE = {
    "23502": "NOT NULL",
    "23514": "CHECK",
    "SQLITE_CONSTRAINT_NOTNULL": "NOT NULL",
    "SQLITE_CONSTRAINT_CHECK": "CHECK",
}
# Removed before matching, because names of hosts, users and databases may contain these words.
_NAMES = re.compile(r"(\"|')[^\"']*\1")


class DatabaseUnavailable(Exception):
    """The work could not be done, and nothing was stored; `detail` may be shown to a client."""

    def __init__(self, detail: str, *, reason: str | None = None, retry_after: int = 2) -> None:
        super().__init__(detail)
        self.detail = detail
        self.reason = reason
        self.retry_after = retry_after


class OutcomeUnknown(DatabaseUnavailable):
    """The connection was lost during COMMIT, so the work may or may not have been stored."""


def connection_reason(error: BaseException) -> str:
    """Return the reason for an error that was raised while connecting."""
    if isinstance(error, DatabaseUnavailable) and error.reason:
        return error.reason
    if isinstance(error, TimeoutError):
        return "timeout"
    if reason := running_reason(error):
        return reason
    origin = getattr(error, "orig", error)
    if getattr(origin, "sqlstate", None):
        # The server answered; most likely the role lacks a privilege that the migrations need.
        return "migration_failed"
    return _reason_in_text(str(origin))


def running_reason(error: BaseException) -> str | None:
    """Return the reason if the database cannot serve now, or None if the work is at fault."""
    if isinstance(error, PoolTimeoutError):
        return "timeout"
    if not isinstance(error, DBAPIError):
        return None
    sqlstate = getattr(error.orig, "sqlstate", None) or ""
    if sqlstate == "0A000" and "during recovery" in str(error.orig):
        # A pooler's server has become a standby, which nobody notices before BEGIN READ WRITE.
        return "read_only"
    for length in (5, 3, 2):
        if sqlstate[:length] in BY_SQLSTATE:
            return BY_SQLSTATE[sqlstate[:length]]
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return BY_SQLITE_CODE.get(code & 0xFF)
    if error.connection_invalidated:
        return "connection_lost"
    if isinstance(error, OperationalError) and error.statement is None:
        return _reason_in_text(str(error.orig))
    return None


def _reason_in_text(text: str) -> str:
    text = _NAMES.sub("", text).lower()
    for reason, fragments in _CONNECTION_MESSAGES:
        if any(fragment in text for fragment in fragments):
            return reason
    return "unreachable"


def unavailable(error: SQLAlchemyError) -> DatabaseUnavailable | None:
    """Return what to raise if the database cannot serve now, or None if the work is at fault."""
    reason = running_reason(error)
    if reason is None:
        return None
    if reason == "timeout":
        return DatabaseUnavailable("The database took too long; nothing was stored.", reason=reason)
    return DatabaseUnavailable(f"Nothing was stored: {REASONS[reason].explanation}.", reason=reason)


def refused_value(error: StatementError) -> str | None:
    """Return what a client is told of a value that its column cannot hold, or None if it can."""
    if isinstance(error.orig, RefusedValue):
        return str(error.orig)
    if isinstance(error, DataError) and getattr(error.orig, "sqlstate", None) in _VALUES_REFUSED:
        return "A value is too long or too large, or is none that the database can store."
    return None


def broken_rule(error: IntegrityError) -> str | None:
    """Return the NOT NULL or CHECK that a row broke, without a value of the row; else None."""
    origin = error.orig
    code = getattr(origin, "sqlstate", None) or getattr(origin, "sqlite_errorname", None)
    rule = _RULES_OF_CODE.get(str(code))
    if rule is None:
        return None
    described = getattr(origin, "diag", None)
    if described is None:
        # SQLite's text is "NOT NULL constraint failed: items.title".
        return f"{rule} {str(origin).rpartition(': ')[2]}"
    return f"{rule} {described.table_name}.{described.column_name or described.constraint_name}"
