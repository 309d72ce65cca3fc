"""The health report and what requests may do, computed from the state alone."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from space_runtime.backends.protocol import Name
from space_runtime.files.contents import COUNTED_AT_MOST
from space_runtime.files.locations import is_memory
from space_runtime.lifecycle.state import State
from space_runtime.reasons import HARMLESS, REASONS
from space_runtime.serving.database import Admission

Status = Literal["ok", "degraded", "unavailable", "starting"]


@dataclass(frozen=True)
class DatabaseReport:
    """The state of the database at `checked_at`; it never names a host, a user or a URL."""

    backend: Name | None
    source: Literal["environment", "fallback"]
    reason: str | None
    detail: str
    persistent: bool
    repairs: tuple[str, ...]
    pending_rows: int
    latency_ms: float | None
    checked_at: datetime


def status(state: State) -> Status:
    """Return the state in one word."""
    if not state.has_settled:
        return "starting"
    if state.backend is None or state.trouble is not None:
        return "unavailable"
    if state.backend != state.configuration.backend or state.reason not in HARMLESS:
        return "degraded"
    return "ok"


def describe(state: State, checked_at: datetime) -> DatabaseReport:
    """Return what is said about the database; `checked_at` is when its state was observed."""
    return DatabaseReport(
        backend=state.backend,
        source=state.configuration.resolution.source,
        reason=state.trouble or (state.reason if state.has_settled else None),
        detail=_detail(state),
        persistent=state.persistent,
        repairs=state.configuration.resolution.repairs,
        pending_rows=state.pending_rows,
        latency_ms=state.latency_ms if state.backend and not state.trouble else None,
        checked_at=checked_at,
    )


def admission(state: State) -> Admission:
    """Return what requests may do, and what a refused one is told."""
    serves = state.serves and not state.stopping
    if state.phase == "opening":
        # After a failback that failed, the report calls SQLite what serves: it is back in a moment.
        state = replace(state, backend=None)
    refusal = "The server is stopping." if state.stopping else _detail(state)
    return Admission(
        # A file that cannot be written to can often still be read.
        reads=serves and (state.trouble is None or state.backend == "sqlite"),
        writes=serves and state.trouble is None,
        refusal=f"Nothing was stored. {refusal}" if state.trouble else refusal,
        is_fallback=serves and state.is_fallback,
    )


def _detail(state: State) -> str:
    if not state.has_settled:
        sentences = ["The database is being chosen."]
    elif state.trouble is not None:
        cause = REASONS[state.trouble].explanation
        sentences = [f"No database serves: {cause}.", "It is tried again."]
    elif state.backend is None:
        sentences = _about_nothing(state)
    elif state.phase in ("draining", "moving", "moved"):
        sentences = ["Rows on SQLite are being moved to PostgreSQL: data routes wait until then."]
    elif state.backend == "postgresql":
        sentences = _about_postgresql(state)
    else:
        sentences = _about_sqlite(state)
    return " ".join(filter(None, sentences))


def _about_nothing(state: State) -> list[str]:
    cause, unfit = _cause(state), ""
    if state.is_for_postgresql_only:
        unfit = "SQLite cannot stand in: the migrations do not run on it; the log says which."
    if not cause:  # DATABASE_URL has to be changed, so do not promise another attempt.
        return ["No database serves.", _advice(state), unfit]
    return [f"No database serves: {cause}.", _advice(state), unfit, "It is tried again."]


def _about_postgresql(state: State) -> list[str]:
    sentences = ["PostgreSQL serves."]
    if state.reason == "schema_newer":
        sentences.append("Its schema is newer than this code: a newer version was deployed.")
    if state.pending_rows:
        sentences.append(
            "Rows written to SQLite while PostgreSQL was away could not be moved:"
            f" {state.pending_rows}. `make failback LIST=1` says which and why, and"
            " `make failback` tries them again."
        )
    if state.failback_problem:
        sentences.append(state.failback_problem)
    if state.rows_from_before:
        sentences.append(
            "Rows still on SQLite from before DATABASE_URL was set:"
            f" {state.rows_from_before}. `make failback` moves them."
        )
    return sentences


def _about_sqlite(state: State) -> list[str]:
    sentences = ["SQLite serves instead of PostgreSQL." if state.is_fallback else "SQLite serves."]
    if state.is_fallback and state.reason == "locked" and not state.failure_detail:
        sentences.append("Another process uses its file too: a restart moves the rows.")
    elif state.is_fallback and state.reason == "schema_newer":
        sentences.append("Its rows do not have PostgreSQL's schema: a newer version moves them.")
    else:
        if cause := _cause(state):
            sentences.append(f"Cause: {cause}.")
        sentences.append(_advice(state))
    if state.pending_rows >= COUNTED_AT_MOST:
        sentences.append(f"At least {COUNTED_AT_MOST} rows wait; there may be more.")
    if not state.is_fallback and is_memory(state.configuration.resolution.url):
        sentences.append("It lives in memory: every row is lost when the server ends.")
    elif not state.persistent:
        sentences.append("Its file is lost when the container restarts.")
    return [*sentences, state.snapshots]


def _cause(state: State) -> str:
    """Return what is wrong with the database; "" if nothing is, or only DATABASE_URL is."""
    reason = state.reason
    if reason in HARMLESS or reason == state.configuration.resolution.reason:
        return ""
    explanation = REASONS[reason].explanation
    return f"{explanation}: {state.failure_detail}" if state.failure_detail else explanation


def _advice(state: State) -> str:
    """Return what to do about DATABASE_URL, or "" if it is not to blame."""
    resolution = state.configuration.resolution
    if not _cause(state):
        return resolution.message
    return "" if REASONS[state.reason or ""].reached else resolution.advice
