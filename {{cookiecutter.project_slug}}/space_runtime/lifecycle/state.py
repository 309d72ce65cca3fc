"""Which database serves: the states, and what leads from one to the next.

Pure: no thread, clock, file or database. decide() says which steps are due in a state. The runner
performs them, and advance() returns the state that follows from what each of them observed. The
table in space_runtime/README.md lists the transitions.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, NamedTuple

from space_runtime.backends.protocol import Name
from space_runtime.reasons import REASONS
from space_runtime.url.resolution import Resolution

CHECK_SECONDS = 3.0
"""Time limit for a check, a drain, and every connection attempt after the start."""
SECONDS_BETWEEN_CHECKS_WHILE_DOWN = 0.5
FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 2.0
LONGEST_PAUSE_BETWEEN_FAILBACKS_SECONDS = 300.0
STOP_SECONDS = 20.0

Phase = Literal[
    "connecting",
    "opening",
    "connected",
    "draining",
    "moving",
    "moved",
    "serving",
    "down",
    "stopped",
]


class Moment(NamedTuple):
    """The time on two clocks: `seconds` never goes back; `utc` is for people to read."""

    seconds: float
    utc: datetime


@dataclass(frozen=True)
class Configuration:
    """What was asked for; it does not change while the process runs."""

    resolution: Resolution
    strict: bool = False
    connect_seconds: float = 10.0
    check_seconds: float = 2.0

    @property
    def backend(self) -> Name:
        """Return the database that DATABASE_URL asks for, even if that cannot be used."""
        if self.resolution.source == "environment" or self.resolution.reason in ("unset", "empty"):
            return self.resolution.backend
        return "postgresql"

    @property
    def can_connect(self) -> bool:
        """Return whether DATABASE_URL is a usable PostgreSQL URL."""
        return self.backend == "postgresql" and self.resolution.url is not None

    @property
    def unusable_reason(self) -> str:
        """Return why DATABASE_URL cannot be used."""
        return self.resolution.reason or "unparseable"


@dataclass(frozen=True)
class State:
    """Everything the lifecycle knows; the health report is computed from it alone."""

    configuration: Configuration
    checked_at: datetime
    phase: Phase
    backend: Name | None = None
    """The database that serves, or whose rows are being moved."""
    has_settled: bool = False
    """Whether the choice was made: a database serves, or it is known that none can."""
    reason: str | None = None
    """Why this database serves instead of another, or why none does."""
    connect_failure: str | None = None
    """Why PostgreSQL could not serve when it was last tried."""
    failure_detail: str = ""
    """Where that failed, as a clause; "" if `reason` says it all."""
    failback_problem: str = ""
    """Why rows of an outage could not be moved to this PostgreSQL, as a sentence."""
    trouble: str | None = None
    """Why the database that was chosen does not work at the moment."""

    may_fall_back: bool = False
    """False if strict, or once PostgreSQL has served or has data that SQLite would hide."""
    is_for_postgresql_only: bool = False
    """The migrations do not run on SQLite, so it cannot stand in."""
    schema_newer: bool = False
    deadline: float = 0.0
    """Until then, a start retries failures that may pass before it falls back to SQLite."""
    pause: float = FIRST_PAUSE_SECONDS
    next_connect: float = 0.0
    failed_failbacks: int = 0

    next_check: float = 0.0
    is_suspect: bool = False
    """A request met trouble, so the next check must also try to write."""
    may_be_damaged: bool = False
    is_silent: bool = False
    """The last check got no answer, so work under way would wait for one in vain."""

    persistent: bool = False
    latency_ms: float | None = None
    pending_rows: int = 0
    rows_from_before: int = 0
    snapshots: str = ""

    stopping: bool = False
    stop_deadline: float = 0.0
    made_last_failback: bool = False

    @property
    def serves(self) -> bool:
        """Return whether a database was chosen and takes requests, unless it is in trouble."""
        return self.phase in ("serving", "connected") and self.backend is not None

    @property
    def is_fallback(self) -> bool:
        """Return whether SQLite serves because PostgreSQL could not."""
        return self.backend == "sqlite" and self.configuration.backend == "postgresql"

    @property
    def has_candidate(self) -> bool:
        """Return whether PostgreSQL is connected but does not serve yet."""
        return self.phase in ("connected", "draining", "moving", "moved")


# Steps. Each docstring ends with what the step can observe.


class Connect(NamedTuple):
    """Connect to PostgreSQL and migrate it: Connected or Failed."""

    seconds: float


class OpenSQLite(NamedTuple):
    """Open the configured file, or the fallback file: Opened or Failed."""

    fallback: bool


class LockFiles(NamedTuple):
    """Lock the files with rows that wait for PostgreSQL: Locked or Failed."""


class Drain(NamedTuple):
    """Wait for work under way, take a last snapshot, close the file: Drained or Failed."""

    seconds: float


class MoveRows(NamedTuple):
    """Move the rows of the locked files to PostgreSQL: Moved or Failed."""


class ServePostgreSQL(NamedTuple):
    """Let PostgreSQL serve: Counted."""


class Check(NamedTuple):
    """Ask the database whether it works: Answered, Failed or FileRemoved."""

    due: float
    write: bool = False
    look_for_damage: bool = False


class TerminateConnections(NamedTuple):
    """Wake the threads that wait for a silent server: Done."""


class Close(NamedTuple):
    """Wait for work under way, take a last snapshot, close the database: Done."""

    seconds: float


Step = (
    Connect
    | OpenSQLite
    | LockFiles
    | Drain
    | MoveRows
    | ServePostgreSQL
    | Check
    | TerminateConnections
    | Close
)


# Observations.


class Connected(NamedTuple):
    """PostgreSQL is connected; its schema is at the newest revision, or newer than this code."""

    schema_newer: bool = False
    failback_problem: str = ""


class Opened(NamedTuple):
    """SQLite is open."""

    persistent: bool = True
    schema_newer: bool = False
    problem: str | None = None
    """Why a substitute for the configured file was opened, or why a damaged file was replaced."""
    pending_rows: int = 0


class Locked(NamedTuple):
    """No other process uses the files."""


class Drained(NamedTuple):
    """No work is under way, and the file is closed."""


class Moved(NamedTuple):
    """The rows are in PostgreSQL."""


class Counted(NamedTuple):
    """PostgreSQL serves, and this many rows are still on SQLite."""

    pending_rows: int = 0
    rows_from_before: int = 0


class Answered(NamedTuple):
    """The database works."""

    latency_ms: float = 0.0
    pending_rows: int = 0
    snapshots: str = ""


class FileRemoved(NamedTuple):
    """The file was removed or replaced while it served."""


class Failed(NamedTuple):
    """The step failed."""

    reason: str
    is_there: bool = False
    """PostgreSQL has data that SQLite would hide, so SQLite must not stand in for it."""
    is_silent: bool = False
    pending_rows: int = 0
    detail: str = ""


class Done(NamedTuple):
    """The step was done."""


Observation = (
    Connected | Opened | Locked | Drained | Moved | Counted | Answered | FileRemoved | Failed | Done
)


def begin(configuration: Configuration, now: Moment) -> State:
    """Return the state in which a process starts."""
    return _choose_anew(
        State(configuration, now.utc, "connecting", may_fall_back=not configuration.strict), now
    )


def suspect(state: State, reason: str | None) -> State:
    """Return the state after a request failed; `reason` is None if the work was at fault."""
    if reason is None or not state.serves:
        return state
    is_corrupt = reason == "corrupt" and state.backend == "sqlite"
    return replace(
        state,
        is_suspect=True,
        may_be_damaged=state.may_be_damaged or is_corrupt,
        next_check=0.0,
    )


def note_bug(state: State) -> State:
    """Return the state after a bug in the runner; the next successful check clears it."""
    return replace(state, trouble="internal", has_settled=True)


def stop(state: State, now: Moment) -> State:
    """Return the state after the server was told to stop."""
    return replace(state, stopping=True, stop_deadline=now.seconds + STOP_SECONDS)


def decide(state: State, now: float) -> tuple[Step, ...]:
    """Return the steps that are due at `now`, on the monotonic clock, in order."""
    if state.is_silent:
        return (TerminateConnections(),)
    if state.phase == "connected":
        return (LockFiles(),)
    if state.phase == "draining":
        return (Drain(CHECK_SECONDS),)
    if state.phase == "moving":
        return (MoveRows(),)
    if state.phase == "stopped":
        return ()
    if state.stopping:
        return _decide_at_stop(state, now)
    if state.phase == "moved":
        return (ServePostgreSQL(),)
    if state.phase == "serving":
        return _decide_while_serving(state, now)
    if state.phase == "opening":
        return (OpenSQLite(fallback=state.configuration.backend == "postgresql"),)
    return _decide_without_database(state, now)


def seconds_until_due(state: State, now: float) -> float:
    """Return how long decide() will have no steps, unless an event comes first."""
    due = state.next_connect
    if state.phase == "serving":
        due = min(state.next_check, due) if _waits_for_postgresql(state) else state.next_check
    return min(max(due - now, 0.0), LONGEST_PAUSE_BETWEEN_FAILBACKS_SECONDS)


def advance(state: State, step: Step, observation: Observation, now: Moment) -> State:
    """Return the state that follows from what was observed when the step was performed."""
    match step, observation:
        case Connect(), Connected(schema_newer, failback_problem):
            return replace(
                state,
                phase="connected",
                schema_newer=schema_newer,
                failback_problem=failback_problem,
            )
        case LockFiles(), Locked():
            return replace(state, phase="draining" if state.backend else "moving")
        case Drain(), Drained():
            return replace(state, phase="moving")
        case MoveRows(), Moved():
            return replace(state, phase="moved", failed_failbacks=0)
        case ServePostgreSQL(), Counted(pending_rows, rows_from_before):
            return _serving(
                state,
                now,
                backend="postgresql",
                reason="schema_newer" if state.schema_newer else None,
                may_fall_back=False,
                failure_detail="",
                persistent=True,
                pending_rows=pending_rows,
                rows_from_before=rows_from_before,
                snapshots="",
            )
        case OpenSQLite(), Opened():
            return _opened(state, observation, now)
        case Check(due, _, _), Answered(latency_ms, pending_rows, snapshots):
            return replace(
                state,
                trouble=None,
                # A request may have reported trouble during a check that did not test for it.
                is_suspect=state.is_suspect and not step.write,
                may_be_damaged=state.may_be_damaged and not step.look_for_damage,
                latency_ms=latency_ms,
                pending_rows=pending_rows,
                snapshots=snapshots,
                checked_at=now.utc,
                next_check=due + state.configuration.check_seconds,
            )
        case Check(due, _, _), Failed(reason, _, is_silent):
            seconds = min(state.configuration.check_seconds, SECONDS_BETWEEN_CHECKS_WHILE_DOWN)
            return replace(
                state,
                trouble=reason,
                is_silent=is_silent,
                checked_at=now.utc,
                next_check=max(due + seconds, now.seconds + 0.1),
            )
        case Check(), FileRemoved():
            return _choose_anew(state, now)
        case TerminateConnections(), _:
            return replace(state, is_silent=False)
        case Close(), _:
            return replace(state, phase="stopped")
        case OpenSQLite(fallback=True), Failed("migration_failed", pending_rows=pending_rows):
            # PostgreSQL's absence is to be mended, and SQLite is not tried again.
            state = replace(state, may_fall_back=False, is_for_postgresql_only=True)
            return _down(state, state.connect_failure or "migration_failed", pending_rows, now)
        case OpenSQLite() | ServePostgreSQL(), Failed(reason, pending_rows=pending_rows):
            return _down(state, reason, pending_rows, now)
        case Connect() | LockFiles() | Drain() | MoveRows(), Failed() as failed:
            if state.backend is not None:
                return _stay_on_sqlite(state, step, failed, now)
            return _fail_to_start(state, step, failed, now)
    raise AssertionError(f"{step} cannot observe {observation}")


def _choose_anew(state: State, now: Moment) -> State:
    """Return the state in which a database is to be chosen: at the start, or once more."""
    configuration = state.configuration
    state = replace(
        state,
        backend=None,
        has_settled=False,
        trouble=None,
        connect_failure=None,
        checked_at=now.utc,
        next_connect=0.0,
    )
    if configuration.backend == "sqlite":
        return replace(state, phase="opening")
    if configuration.can_connect or configuration.strict:
        deadline = now.seconds + configuration.connect_seconds
        return replace(state, phase="connecting", deadline=deadline, pause=FIRST_PAUSE_SECONDS)
    return replace(state, phase="opening", connect_failure=configuration.unusable_reason)


def _decide_at_stop(state: State, now: float) -> tuple[Step, ...]:
    if _waits_for_postgresql(state) and not state.made_last_failback:
        return (Connect(CHECK_SECONDS),)
    return (Close(max(state.stop_deadline - now, 0.0)),)


def _decide_without_database(state: State, now: float) -> tuple[Step, ...]:
    if now < state.next_connect:
        return ()
    configuration, is_fallback = state.configuration, state.configuration.backend == "postgresql"
    if configuration.can_connect or (is_fallback and configuration.strict):
        # Only a start that may still fall back has a deadline.
        is_first = state.phase == "connecting" and state.may_fall_back
        return (Connect(state.deadline - now if is_first else CHECK_SECONDS),)
    return (OpenSQLite(fallback=is_fallback),)


def _decide_while_serving(state: State, now: float) -> tuple[Step, ...]:
    steps: list[Step] = []
    if now >= state.next_check:
        steps.append(Check(now, write=state.is_suspect, look_for_damage=state.may_be_damaged))
    if _waits_for_postgresql(state) and now >= state.next_connect:
        steps.append(Connect(CHECK_SECONDS))
    return tuple(steps)


def _waits_for_postgresql(state: State) -> bool:
    can_connect = state.configuration.can_connect
    return state.phase == "serving" and state.is_fallback and can_connect


def _opened(state: State, opened: Opened, now: Moment) -> State:
    is_configured = state.configuration.backend == "sqlite"
    why = state.configuration.resolution.reason if is_configured else state.connect_failure
    return _serving(
        state,
        now,
        backend="sqlite",
        reason=opened.problem or why or ("schema_newer" if opened.schema_newer else None),
        persistent=opened.persistent,
        pending_rows=opened.pending_rows,
        next_connect=max(state.next_connect, now.seconds + state.configuration.check_seconds),
    )


def _serving(state: State, now: Moment, **changes: object) -> State:
    return replace(
        state,
        phase="serving",
        has_settled=True,
        trouble=None,
        next_check=now.seconds,
        checked_at=now.utc,
        **changes,  # type: ignore[arg-type]
    )


def _down(state: State, reason: str, pending_rows: int, now: Moment) -> State:
    return replace(
        state,
        phase="down",
        backend=None,
        has_settled=True,
        reason=reason,
        trouble=None,
        persistent=False,
        pending_rows=pending_rows,
        checked_at=now.utc,
        next_connect=now.seconds + SECONDS_BETWEEN_CHECKS_WHILE_DOWN,
    )


def _fail_to_start(state: State, step: Step, failed: Failed, now: Moment) -> State:
    """Return the state after a step failed while no database serves."""
    reason = failed.reason
    if reason == "timeout" and state.phase == "connecting" and state.connect_failure is not None:
        # The deadline cuts the last attempt short: an earlier failure says more than its timeout.
        reason = state.connect_failure
    may_fall_back = state.may_fall_back and not failed.is_there
    state = replace(
        state, connect_failure=reason, failure_detail=failed.detail, may_fall_back=may_fall_back
    )
    if isinstance(step, Connect):
        next_connect = now.seconds + state.pause
        if may_fall_back and REASONS[reason].transient and next_connect < state.deadline:
            pause = min(2 * state.pause, LONGEST_PAUSE_SECONDS)
            return replace(state, phase="connecting", next_connect=next_connect, pause=pause)
    elif not may_fall_back and not failed.is_there:
        # SQLite must not serve, so PostgreSQL does, without the rows that wait on SQLite.
        return replace(state, phase="moved")
    if may_fall_back:
        return replace(state, phase="opening")
    return _down(state, reason, failed.pending_rows, now)


def _stay_on_sqlite(state: State, step: Step, failed: Failed, now: Moment) -> State:
    """Return the state after PostgreSQL failed to take over from SQLite."""
    is_interrupted = isinstance(step, (Drain, MoveRows))
    failures = state.failed_failbacks + is_interrupted
    pause = state.configuration.check_seconds
    if is_interrupted:
        pause = min(2.0**failures, LONGEST_PAUSE_BETWEEN_FAILBACKS_SECONDS)
    state = replace(
        state,
        connect_failure=failed.reason,
        reason=failed.reason,
        failure_detail=failed.detail,
        made_last_failback=state.stopping,
        failed_failbacks=failures,
        next_connect=now.seconds + pause,
    )
    if not isinstance(step, MoveRows):
        return replace(state, phase="serving")
    if failed.is_there:
        return _down(replace(state, may_fall_back=False), failed.reason, failed.pending_rows, now)
    # The file was closed for the move, so it has to be opened again.
    return replace(state, phase="opening")
