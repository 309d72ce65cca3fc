"""What the health report says about the database."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

Status = Literal["ok", "degraded", "unavailable", "starting"]
Backend = Literal["postgresql", "sqlite"]


def now() -> datetime:
    """Return the current time in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True)
class Report:
    """The state of the database at `checked_at`; it never names a host, a user or a URL."""

    status: Status
    source: Literal["environment", "fallback"]
    detail: str
    backend: Backend | None = None
    reason: str | None = None
    persistent: bool = False
    repairs: tuple[str, ...] = ()
    pending_rows: int = 0
    latency_ms: float | None = None
    checked_at: datetime = field(default_factory=now)


def describe_postgresql(*, schema_newer: bool, pending_rows: int, rows_from_before: int) -> str:
    """Return the sentences for PostgreSQL serving."""
    sentences = ["PostgreSQL serves."]
    if schema_newer:
        sentences.append("Its schema is newer than this code: a newer version was deployed.")
    if pending_rows:
        sentences.append(
            f"Rows written to SQLite while it was away could not be moved: {pending_rows}."
            " The log names them; `make promote` tries again."
        )
    if rows_from_before:
        sentences.append(
            f"Rows still on SQLite from before DATABASE_URL was set: {rows_from_before}."
            " `make promote` moves them."
        )
    return " ".join(sentences)


def describe_sqlite(
    reason: str | None,
    *,
    cause: str,
    advice: str,
    in_memory: bool,
    persistent: bool,
    asked_for: bool,
) -> str:
    """Return the sentences for SQLite serving; `advice` says what to do about DATABASE_URL."""
    sentences = ["SQLite serves." if asked_for else "SQLite serves instead of PostgreSQL."]
    if reason == "locked" and not asked_for:
        sentences.append("Another process uses its file too: a restart moves the rows.")
    elif reason == "schema_newer" and not asked_for:
        sentences.append(
            "Its rows have another schema than PostgreSQL: a newer version moves them."
        )
    else:
        if cause:
            sentences.append(f"Cause: {cause}.")
        if advice:
            sentences.append(advice)
    if in_memory:
        sentences.append("It lives in memory: every row is lost when the process ends.")
    elif not persistent:
        sentences.append("Its file is lost when the container restarts.")
    return " ".join(sentences)


def describe_nothing(cause: str, advice: str) -> str:
    """Return the sentences for no database serving; without a cause, only its owner can help."""
    if cause:
        sentences = [f"No database serves: {cause}.", advice, "It is tried again."]
    else:
        sentences = ["No database serves.", advice]
    return " ".join(filter(None, sentences))
