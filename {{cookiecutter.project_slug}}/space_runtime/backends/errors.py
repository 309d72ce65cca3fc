"""Which reason an error of a driver stands for, and what a client is told.

The text of a driver is matched here and goes no further: it names hosts and users.
"""

import re

from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from space_runtime.reasons import BY_SQLITE_CODE, BY_SQLSTATE, REASONS

# Without a connection there is no SQLSTATE, only libpq's text. It may tell of several hosts that
# failed in different ways, so what a server answered comes before what hints at no answer.
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
    ("timeout", ("timeout", "timed out")),
    ("refused", ("connection refused", "no such file or directory")),
    ("dns", ("resolve host", "translate host name", "name or service not known")),
)
# Names of hosts, users and databases may hold any of these words.
_NAMES = re.compile(r"(\"|')[^\"']*\1")


class DatabaseUnavailable(Exception):
    """The work cannot be done now, and nothing of it was stored; `detail` is fit for a client."""

    def __init__(self, detail: str, *, reason: str | None = None, retry_after: int = 2) -> None:
        super().__init__(detail)
        self.detail = detail
        self.reason = reason
        self.retry_after = retry_after


class OutcomeUnknown(DatabaseUnavailable):
    """The connection was lost while COMMIT was on its way: the work may or may not be stored."""


def connection_reason(error: BaseException) -> str:
    """Return the code for an error met while a connection was being made."""
    if isinstance(error, DatabaseUnavailable) and error.reason:
        return error.reason
    if isinstance(error, TimeoutError):
        return "timeout"
    if reason := running_reason(error):
        return reason
    origin = getattr(error, "orig", error)
    if getattr(origin, "sqlstate", None):
        # The server answered, but this role may not see or change what it has to.
        return "migration_failed"
    return _reason_in_text(str(origin))


def running_reason(error: BaseException) -> str | None:
    """Return the code for an error that says "not now", or None for one that is about the work."""
    if isinstance(error, PoolTimeoutError):
        return "timeout"
    if not isinstance(error, DBAPIError):
        return None
    sqlstate = getattr(error.orig, "sqlstate", None) or ""
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
    """Return what a client is told when the error means "not now", or None for any other error."""
    reason = running_reason(error)
    if reason is None:
        return None
    if reason == "timeout":
        return DatabaseUnavailable("The database took too long; nothing was stored.", reason=reason)
    return DatabaseUnavailable(f"Nothing was stored: {REASONS[reason].cause}.", reason=reason)
