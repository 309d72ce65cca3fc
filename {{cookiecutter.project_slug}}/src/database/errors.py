"""What can go wrong with a database: one code each, one sentence each, and what a client is told.

The codes are the `reason` of the health report. The text of a driver is matched here and goes no
further: it names hosts and users.
"""

import re

from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

CAUSES = {
    "refused": "the server refuses connections; it may not be running, or the port is wrong",
    "timeout": "the server did not answer in time",
    "dns": "the host name cannot be resolved",
    "unreachable": "the server cannot be reached",
    "auth_failed": "the server refused the user name or the password",
    "database_missing": "the server has no database of that name",
    "tls": "the encrypted connection could not be made; check sslmode and certificates",
    "too_many_connections": "the server has no connection left",
    "starting_up": "the server is starting up or shutting down",
    "not_postgres": "what answers at that address is not PostgreSQL",
    "connection_lost": "the connection to the server was lost",
    "read_only": "the database accepts no writes",
    "migration_failed": "the migrations could not be applied; the log says which",
    "no_writable_path": "the place where its file belongs cannot be written to",
    "corrupt": "the database file is damaged",
    "disk_full": "the disk is full or failing",
    "locked": "another process keeps the database locked",
}
NOT_REACHED = frozenset(["dns", "refused", "timeout", "unreachable"])

# Without a connection there is no SQLSTATE, only libpq's text. The order matters: of several
# hosts that failed in different ways, the one that answered says most.
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
# names of hosts, users and databases may hold any of these words
_NAMES = re.compile(r"(\"|')[^\"']*\1")

_SQLSTATES = {
    "28": "auth_failed",
    "3D": "database_missing",
    "53300": "too_many_connections",
    "53": "disk_full",
    "57P": "starting_up",
    "08": "connection_lost",
    "25006": "read_only",
    "57014": "timeout",
    "55P03": "locked",
    "40": "locked",
    "XX001": "corrupt",
    "XX002": "corrupt",
}

_SQLITE_CODES = {
    5: "locked",
    6: "locked",
    8: "read_only",
    9: "timeout",
    10: "disk_full",
    11: "corrupt",
    13: "disk_full",
    14: "no_writable_path",
    26: "corrupt",
}


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
        # the server answered: it is there, but this role may not see or change what it has to
        return "migration_failed"
    return _reason_in_text(str(origin))


def running_reason(error: BaseException) -> str | None:
    """Return the code for an error that says "not now", or None for one that is about the work.

    PostgreSQL's codes: https://www.postgresql.org/docs/18/errcodes-appendix.html;
    SQLite's: https://www.sqlite.org/rescode.html, of which the lowest byte counts.
    """
    if isinstance(error, PoolTimeoutError):
        return "timeout"
    if not isinstance(error, DBAPIError):
        return None
    sqlstate = getattr(error.orig, "sqlstate", None) or ""
    for length in (5, 3, 2):
        if sqlstate[:length] in _SQLSTATES:
            return _SQLSTATES[sqlstate[:length]]
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return _SQLITE_CODES.get(code & 0xFF)
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
    cause = CAUSES[reason].partition(";")[0]
    return DatabaseUnavailable(f"Nothing was stored: {cause}.", reason=reason)
