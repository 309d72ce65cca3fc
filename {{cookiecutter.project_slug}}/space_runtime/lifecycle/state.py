"""Which database serves: the states, and what leads from one to the next.

Pure: no thread, clock, file or database. decide() says which step comes next in a state. The runner
performs it, and advance() returns the state that follows from what the step observed. All times
are seconds of a clock that never goes back. The table in space_runtime/README.md lists the
transitions.
"""

from dataclasses import dataclass, replace
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
    "down",
    "opening",
    "connected",
    "draining",
    "moving",
    "moved",
    "serving",
    "closing",
    "stopped",
]


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


@dataclass(frozen=True)
class State:
    """Everything the lifecycle knows; the health report is computed from it alone."""

    configuration: Configuration
    phase: Phase = "down"
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
    deadline: float = 0.0
    """Until then, a start retries failures that may pass before it falls back to SQLite."""
    pause: float = FIRST_PAUSE_SECONDS
    next_connect: float = 0.0
    failed_failbacks: int = 0

    next_check: float = 0.0
    suspicion: str | None = None
    """The trouble that a request met, which the next check has to look into."""

    persistent: bool = False
    latency_ms: float | None = None
    pending_rows: int = 0
    rows_from_before: int = 0
    snapshots: str = ""

    stopping: bool = False
    stop_deadline: float = 0.0

    @property
    def serves(self) -> bool:
        """Return whether a database was chosen and takes requests, unless it is in trouble."""
        return self.phase in ("serving", "connected") and self.backend is not None

    @property
    def is_fallback(self) -> bool:
        """Return whether SQLite serves because PostgreSQL could not."""
        return self.backend == "sqlite" and self.configuration.backend == "postgresql"

    @property
    def waits_for_postgresql(self) -> bool:
        """Return whether SQLite serves until PostgreSQL can be connected to."""
        return self.phase == "serving" and self.is_fallback and self.configuration.can_connect

    @property
    def has_candidate(self) -> bool:
        """Return whether PostgreSQL is connected but does not serve yet."""
        return self.phase in ("connected", "draining", "moving", "moved")

    @property
    def is_silent(self) -> bool:
        """Return whether work under way may wait for an answer that never comes.

        With several servers, another one may say no while that of the work is silent.
        """
        return self.trouble in ("timeout", "read_only")

    @property
    def why_sqlite(self) -> str | None:
        """Return why PostgreSQL does not serve: its last failure, or what is wrong with the URL."""
        return self.connect_failure or self.configuration.resolution.reason


Action = Literal[
    "connect",  # to PostgreSQL, and migrate it
    "open SQLite",  # the configured file, or the one that stands in for PostgreSQL
    "lock files",  # with rows that wait for PostgreSQL, so that no other process uses them
    "drain",  # wait for work under way, take a last snapshot, close the file
    "move rows",  # of the locked files to PostgreSQL
    "serve PostgreSQL",
    "check",  # ask the database whether it works
    "close",  # wait for work under way, take a last snapshot, close the database
]


class Step(NamedTuple):
    """What the runner is to do next."""

    action: Action
    seconds: float = CHECK_SECONDS
    """The time that it may take, within which it may fail."""
    suspicion: str | None = None
    """What a check has to look into; if there is anything, it also tries to write."""


# Observations.


class Done(NamedTuple):
    """The step was done, and there is nothing else to say."""


class Opened(NamedTuple):
    """SQLite was opened, or PostgreSQL was let serve."""

    persistent: bool = True
    schema_newer: bool = False
    problem: str | None = None
    """Why a substitute for the configured file was opened, or why a damaged file was replaced."""
    failback_problem: str = ""
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
    pending_rows: int = 0
    detail: str = ""


Observation = Done | Opened | Answered | FileRemoved | Failed


def begin(configuration: Configuration, now: float) -> State:
    """Return the state in which a process starts."""
    return _choose_anew(State(configuration, may_fall_back=not configuration.strict), now)


def suspect(state: State, reason: str | None) -> State:
    """Return the state after a request failed; `reason` is None if the work was at fault."""
    if reason is None or not state.serves:
        return state
    # Nothing else makes a check look for damage, so other trouble must not displace it.
    suspicion = "corrupt" if state.suspicion == "corrupt" else reason
    return replace(state, suspicion=suspicion, next_check=0.0)


def note_bug(state: State) -> State:
    """Return the state after a bug in the runner; the next successful check clears it."""
    return replace(state, trouble="internal", has_settled=True)


def stop(state: State, now: float) -> State:
    """Return the state after the server was told to stop."""
    return replace(state, stopping=True, stop_deadline=now + STOP_SECONDS)


def decide(state: State, now: float) -> tuple[Step, float]:
    """Return the next step, and when it is due."""
    match state.phase:
        case "connected":
            return Step("lock files"), now
        case "draining":
            return Step("drain"), now
        case "moving":
            return Step("move rows"), now
        case _ if state.stopping and state.waits_for_postgresql:
            # Before the end, rows get a last chance to move.
            return Step("connect"), now
        case _ if state.stopping:
            return Step("close", seconds=state.stop_deadline - now), now
        case "opening":
            return Step("open SQLite"), now
        case "moved":
            return Step("serve PostgreSQL"), now
        case "serving" if state.waits_for_postgresql and state.next_connect < state.next_check:
            return Step("connect"), state.next_connect
        case "serving":
            return Step("check", suspicion=state.suspicion), state.next_check
    configuration = state.configuration
    if configuration.backend == "sqlite" or (state.may_fall_back and not configuration.can_connect):
        return Step("open SQLite"), state.next_connect
    # Only a start that may still fall back has a deadline.
    has_deadline = state.may_fall_back and not state.has_settled
    seconds = state.deadline - now if has_deadline else CHECK_SECONDS
    return Step("connect", seconds=seconds), state.next_connect


def advance(state: State, step: Step, observation: Observation, now: float) -> State:
    """Return the state that follows from what was observed when the step was performed."""
    match step.action, observation:
        case "connect", Done():
            return replace(state, phase="connected")
        case "lock files", Done():
            return replace(state, phase="draining" if state.backend else "moving")
        case "drain", Done():
            return replace(state, phase="moving")
        case "move rows", Done():
            return replace(state, phase="moved", failed_failbacks=0)
        case "open SQLite", Opened():
            reason = observation.problem or state.why_sqlite
            return _serving(state, observation, now, backend="sqlite", reason=reason)
        case "serve PostgreSQL", Opened():
            state = replace(state, may_fall_back=False)
            return _serving(state, observation, now, backend="postgresql", reason=None)
        case "check", Answered() | Failed():
            return _checked(state, step, observation, now)
        case "check", FileRemoved():
            return _choose_anew(state, now)
        case "close", _:
            return replace(state, phase="stopped")
        case "open SQLite", Failed("migration_failed") if state.configuration.backend != "sqlite":
            # What has to be mended is why PostgreSQL is away; trying SQLite again is no use.
            failed = observation._replace(reason=state.why_sqlite or observation.reason)
            state = replace(state, may_fall_back=False, is_for_postgresql_only=True)
            return _down(state, failed, now)
        case "open SQLite" | "serve PostgreSQL", Failed():
            return _down(state, observation, now)
        case "connect" | "lock files" | "drain" | "move rows", Failed():
            follow = _fail_to_start if state.backend is None else _stay_on_sqlite
            return follow(state, step, observation, now)
    raise AssertionError(f"{step.action} cannot observe {observation}")


def _choose_anew(state: State, now: float) -> State:
    """Return the state in which a database is to be chosen: at the start, or once more."""
    return replace(
        state,
        phase="down",
        backend=None,
        has_settled=False,
        trouble=None,
        connect_failure=None,
        deadline=now + state.configuration.connect_seconds,
        pause=FIRST_PAUSE_SECONDS,
        next_connect=now,
    )


def _serving(
    state: State, opened: Opened, now: float, *, backend: Name, reason: str | None
) -> State:
    return replace(
        state,
        phase="serving",
        backend=backend,
        has_settled=True,
        reason=reason or ("schema_newer" if opened.schema_newer else None),
        failback_problem=opened.failback_problem,
        trouble=None,
        next_check=now,
        next_connect=max(state.next_connect, now + state.configuration.check_seconds),
        persistent=opened.persistent,
        pending_rows=opened.pending_rows,
        rows_from_before=opened.rows_from_before,
        snapshots="",
    )


def _checked(state: State, check: Step, observation: Answered | Failed, now: float) -> State:
    seconds = state.configuration.check_seconds
    if isinstance(observation, Failed):
        seconds = min(seconds, SECONDS_BETWEEN_CHECKS_WHILE_DOWN)
        return replace(state, trouble=observation.reason, next_check=now + seconds)
    # A request may have met other trouble meanwhile, which this check did not look into.
    is_cleared = state.suspicion == check.suspicion
    return replace(
        state,
        trouble=None,
        suspicion=None if is_cleared else state.suspicion,
        next_check=now + seconds,
        latency_ms=observation.latency_ms,
        pending_rows=observation.pending_rows,
        snapshots=observation.snapshots,
    )


def _down(state: State, failed: Failed, now: float) -> State:
    return replace(
        state,
        phase="down",
        backend=None,
        has_settled=True,
        reason=failed.reason,
        trouble=None,
        persistent=False,
        pending_rows=failed.pending_rows,
        next_connect=now + SECONDS_BETWEEN_CHECKS_WHILE_DOWN,
    )


def _fail_to_start(state: State, step: Step, failed: Failed, now: float) -> State:
    """Return the state after a step towards PostgreSQL failed while no database serves."""
    is_attempt = step.action == "connect"
    if is_attempt and failed.reason == "timeout" and not state.has_settled:
        # The deadline cuts the last attempt short: an earlier failure says more than its timeout.
        failed = failed._replace(reason=state.connect_failure or "timeout")
    may_fall_back = state.may_fall_back and not failed.is_there
    state = replace(
        state,
        phase="down",
        connect_failure=failed.reason,
        failure_detail=failed.detail,
        may_fall_back=may_fall_back,
        next_connect=now + state.pause,
    )
    if not may_fall_back:
        # SQLite must not serve. PostgreSQL does without the rows that wait, unless it is at fault.
        is_at_fault = is_attempt or failed.is_there
        return _down(state, failed, now) if is_at_fault else replace(state, phase="moved")
    if is_attempt and REASONS[failed.reason].transient and state.next_connect < state.deadline:
        return replace(state, pause=min(2 * state.pause, LONGEST_PAUSE_SECONDS))
    return replace(state, phase="opening")


def _stay_on_sqlite(state: State, step: Step, failed: Failed, now: float) -> State:
    """Return the state after PostgreSQL failed to take over from SQLite."""
    is_interrupted = step.action in ("drain", "move rows")
    failures = state.failed_failbacks + is_interrupted
    pause = state.configuration.check_seconds
    if is_interrupted:
        pause = min(2.0**failures, LONGEST_PAUSE_BETWEEN_FAILBACKS_SECONDS)
    state = replace(
        state,
        phase="closing" if state.stopping else "serving",
        connect_failure=failed.reason,
        reason=failed.reason,
        failure_detail=failed.detail,
        failed_failbacks=failures,
        next_connect=now + pause,
    )
    if step.action != "move rows":
        return state
    if failed.is_there:
        return _down(replace(state, may_fall_back=False), failed, now)
    # The file was closed for the move, so it has to be opened again.
    return state if state.stopping else replace(state, phase="opening")
