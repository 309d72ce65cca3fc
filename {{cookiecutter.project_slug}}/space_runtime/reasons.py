"""Every reason why a database does not serve, or does not serve as configured.

The codes are the `reason` of the health report. Those for a DATABASE_URL that cannot be used are
in url/vocabulary.py, because their sentences are about its value.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """One way in which a database can fail, and what follows from it."""

    code: str
    explanation: str
    """What is wrong, and where to look, as a clause such as "the host name cannot be resolved";
    anyone may see it."""
    remedy: str = ""
    """What the owner can do; if empty, the advice is to check DATABASE_URL."""
    transient: bool = False
    """May pass by itself within seconds, so a start retries it; the others need a person."""
    reached: bool = True
    """Whether the server answered. If it did not, DATABASE_URL itself may be wrong."""
    is_there: bool = False
    """The data are there, so another database must not stand in for them."""
    sqlstates: tuple[str, ...] = ()
    """https://www.postgresql.org/docs/18/errcodes-appendix.html; the longest prefix wins."""
    sqlite_codes: tuple[int, ...] = ()
    """https://www.sqlite.org/rescode.html; the primary code, which is the lowest byte."""


_RUNS = "Check on your provider's page that the server runs and that DATABASE_URL points to it."

_TABLE = (
    Reason(
        "refused",
        "the server refuses connections; it may not be running, or the port is wrong",
        remedy=_RUNS,
        transient=True,
        reached=False,
    ),
    Reason(
        "timeout",
        "the server did not answer in time",
        remedy=_RUNS,
        transient=True,
        reached=False,
        sqlstates=("57014",),
        sqlite_codes=(9,),
    ),
    Reason("dns", "the host name cannot be resolved", transient=True, reached=False),
    Reason(
        "unreachable", "the server cannot be reached", remedy=_RUNS, transient=True, reached=False
    ),
    Reason("auth_failed", "the server refused the user name or the password", sqlstates=("28",)),
    Reason("database_missing", "the server has no database of that name", sqlstates=("3D",)),
    Reason("tls", "the encrypted connection could not be made; check sslmode and certificates"),
    Reason(
        "too_many_connections",
        "the server has no connection left",
        remedy="Close connections of other programs, or lower POOL_SIZE.",
        transient=True,
        sqlstates=("53300",),
    ),
    Reason(
        "starting_up",
        "the server is starting up or shutting down",
        remedy="Wait a moment.",
        transient=True,
        sqlstates=("57P",),
    ),
    Reason("not_postgres", "the server at that address is not PostgreSQL"),
    Reason(
        "connection_lost", "the connection to the server was lost", remedy=_RUNS, sqlstates=("08",)
    ),
    Reason(
        "read_only",
        "the database accepts no writes",
        remedy="Make the database writable: it may be full, or a read-only replica.",
        is_there=True,
        sqlstates=("25006",),
        sqlite_codes=(8,),
    ),
    Reason(
        "migration_failed",
        "the migrations could not be applied; the log says which",
        remedy="Read the log, fix the migration, and deploy again.",
        is_there=True,
    ),
    Reason(
        "foreign_schema",
        "the database belongs to the migrations of another application",
        remedy="Give this application a database or a schema of its own in DATABASE_URL.",
        is_there=True,
    ),
    Reason(
        "schema_newer",
        "its schema is newer than this code",
        remedy="Deploy the newer version of this application, which moves the rows.",
    ),
    Reason(
        "rows_not_moved",
        "the rows on SQLite could not be moved to PostgreSQL",
        remedy="The log says what PostgreSQL answered; it may be a right that this role lacks.",
    ),
    Reason(
        "no_writable_path",
        "the location of its file cannot be written to",
        remedy="Make that location writable, or set SQLITE_DIR to one that is.",
        sqlite_codes=(14,),
    ),
    Reason(
        "corrupt",
        "the database file is damaged",
        remedy="Restore a backup. A damaged SQLite file is kept, with .damaged in its name.",
        sqlstates=("XX001", "XX002"),
        sqlite_codes=(11, 26),
    ),
    Reason(
        "disk_full",
        "the disk is full or failing",
        remedy="Free some space on the disk.",
        sqlstates=("53",),
        sqlite_codes=(10, 13),
    ),
    Reason(
        "locked",
        "another process keeps the database locked",
        remedy="Stop other programs that use the database, or restart this one.",
        sqlstates=("55P03", "40"),
        sqlite_codes=(5, 6),
    ),
    Reason(
        "internal",
        "the application made a mistake of its own; the log says where",
        remedy="Read the log: it says where, and reports of it are welcome.",
    ),
)

REASONS = {reason.code: reason for reason in _TABLE}
BY_SQLSTATE = {state: reason.code for reason in _TABLE for state in reason.sqlstates}
BY_SQLITE_CODE = {code: reason.code for reason in _TABLE for code in reason.sqlite_codes}

# With these reasons the status is "ok", provided that the configured database is the one serving.
HARMLESS = (None, "unset", "empty", "schema_newer")
