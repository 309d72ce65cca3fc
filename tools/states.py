"""The table of states that the runtime's README shows, played with the functions that decide.

python tools/states.py            prints it
python tools/states.py --write    writes it into the README
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

from space_runtime.lifecycle import state as machine
from space_runtime.lifecycle.report import admission, describe, status
from space_runtime.lifecycle.state import (
    Answered,
    Configuration,
    Done,
    Failed,
    FileRemoved,
    Observation,
    Opened,
    State,
    Step,
)
from space_runtime.url.resolution import Resolution
from sqlalchemy import URL

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HEADINGS = ("what happens", "state", "step", "observed", "next state", "/health", "requests")

_PHASES = {
    "opening": "opening SQLite",
    "connected": "PostgreSQL answers",
    "draining": "draining",
    "moving": "moving rows",
    "moved": "done with moving",
    "closing": "about to close",
    "stopped": "stopped",
}


class Event(Enum):
    """What comes from elsewhere than a step."""

    STOP = "the server is to stop"
    TROUBLE = "a request meets a full disk"


@dataclass(frozen=True)
class Scenario:
    """A configuration, and what is observed one after the other."""

    title: str
    configuration: Configuration
    observed: tuple[Observation | Event, ...]


@dataclass(frozen=True)
class Transition:
    """One step from a state to the next."""

    before: State
    step: Step | None
    observation: Observation | Event
    after: State


def _configuration(reason: str | None, *, strict: bool = False) -> Configuration:
    resolution = Resolution(
        url=None if reason else URL.create("postgresql+psycopg", host="example.com"),
        backend="sqlite" if reason else "postgresql",
        source="fallback" if reason else "environment",
        reason=reason,  # type: ignore[arg-type]  # a code of the resolver
        repairs=(),
        message="DATABASE_URL ...",
    )
    return Configuration(resolution, strict=strict)


POSTGRESQL = _configuration(None)
STRICT = _configuration(None, strict=True)
UNSET = _configuration("unset")
UNUSABLE = _configuration("unparseable")
STRICT_UNUSABLE = _configuration("unparseable", strict=True)

_STARTS = (Done(), Done(), Done(), Opened(), Answered())
_FALLS_BACK = (Failed("auth_failed"), Opened(), Answered())
# The next check is due, then an attempt to connect; after it, three steps until rows are moved.
_BACK = (Answered(), Done(), Done(), Done())
_OPENS = (Opened(), Answered())

SCENARIOS = (
    Scenario("PostgreSQL is there", POSTGRESQL, _STARTS),
    Scenario(
        "its schema is newer than the code",
        POSTGRESQL,
        (Done(), Done(), Done(), Opened(schema_newer=True)),
    ),
    Scenario("it is still starting up", POSTGRESQL, (Failed("starting_up"), *_STARTS)),
    Scenario("it does not answer for 10 s", POSTGRESQL, (Failed("timeout"), *_OPENS)),
    Scenario("it refuses the login", POSTGRESQL, _FALLS_BACK),
    Scenario("... and keeps refusing it", POSTGRESQL, (*_FALLS_BACK, Answered(), Failed("auth_failed"), Answered())),
    Scenario(
        "... and the migrations do not run on SQLite",
        POSTGRESQL,
        (Failed("auth_failed"), Failed("migration_failed")),
    ),
    Scenario("its migrations fail", POSTGRESQL, (Failed("migration_failed", is_there=True),)),
    Scenario(
        "it is read-only, later writable again",
        POSTGRESQL,
        (Failed("read_only", is_there=True), *_STARTS),
    ),
    Scenario("DATABASE_URL cannot be used", UNUSABLE, _OPENS),
    Scenario(
        "rows wait in a file that other processes serve",
        POSTGRESQL,
        (Done(), Failed("locked"), Opened()),
    ),
    Scenario(
        "rows wait that cannot be moved",
        POSTGRESQL,
        (Done(), Done(), Failed("rows_not_moved"), Opened()),
    ),
    Scenario(
        "PostgreSQL is back while SQLite serves: a failback",
        POSTGRESQL,
        (*_FALLS_BACK, *_BACK, Done(), Opened(), Answered()),
    ),
    Scenario(
        "... but another process serves the file, too",
        POSTGRESQL,
        (*_FALLS_BACK, Answered(), Done(), Failed("locked")),
    ),
    Scenario(
        "... but work on SQLite does not end in time",
        POSTGRESQL,
        (*_FALLS_BACK, Answered(), Done(), Done(), Failed("locked")),
    ),
    Scenario(
        "... but the rows have a newer schema",
        POSTGRESQL,
        (*_FALLS_BACK, *_BACK, Failed("schema_newer"), Opened()),
    ),
    Scenario(
        "... but the connection is lost during COMMIT",
        POSTGRESQL,
        (*_FALLS_BACK, *_BACK, Failed("connection_lost", is_there=True), *_STARTS),
    ),
    Scenario(
        "PostgreSQL is lost while it serves",
        POSTGRESQL,
        (*_STARTS, Failed("connection_lost"), Answered()),
    ),
    Scenario(
        "it stops responding while it serves",
        POSTGRESQL,
        (*_STARTS, Failed("timeout"), Failed("timeout"), Answered()),
    ),
    Scenario("strict: PostgreSQL cannot be reached", STRICT, (Failed("refused"), *_STARTS)),
    Scenario(
        "strict: rows wait in a file that is locked",
        STRICT,
        (Done(), Failed("locked", pending_rows=3), Opened(pending_rows=3)),
    ),
    Scenario("strict: DATABASE_URL cannot be used", STRICT_UNUSABLE, (Failed("unparseable"),)),
    Scenario("DATABASE_URL is unset", UNSET, _OPENS),
    Scenario("the file was damaged", UNSET, (Opened(problem="corrupt"),)),
    Scenario(
        "the file cannot be written to",
        UNSET,
        (Opened(problem="no_writable_path", persistent=False),),
    ),
    Scenario("nothing can be written to", UNSET, (Failed("no_writable_path"), Opened())),
    Scenario("the file is locked while it serves", UNSET, (*_OPENS, Failed("locked"), Answered())),
    Scenario(
        "a request meets a full disk",
        UNSET,
        (*_OPENS, Event.TROUBLE, Failed("disk_full"), Answered()),
    ),
    Scenario("the file is removed while it serves", UNSET, (*_OPENS, FileRemoved(), *_OPENS)),
    Scenario("a step of the runtime has a bug", UNSET, (Failed("internal"), *_OPENS)),
    Scenario(
        "... as PostgreSQL is about to serve",
        POSTGRESQL,
        (Done(), Done(), Done(), Failed("internal")),
    ),
    Scenario("the server stops", UNSET, (*_OPENS, Event.STOP, Done())),
    Scenario(
        "it stops while PostgreSQL is away",
        POSTGRESQL,
        (*_FALLS_BACK, Event.STOP, Failed("auth_failed"), Done()),
    ),
    Scenario(
        "it stops, and PostgreSQL is back",
        POSTGRESQL,
        (*_FALLS_BACK, Event.STOP, Done(), Done(), Done(), Done(), Done()),
    ),
)


def play(scenario: Scenario) -> Iterator[Transition]:
    """Yield the transitions of a scenario; each observation is that of the step which is due."""
    seconds = 0.0
    state = machine.begin(scenario.configuration, seconds)
    for observed in scenario.observed:
        if isinstance(observed, Event):
            is_stop = observed is Event.STOP
            after = machine.stop(state, seconds) if is_stop else machine.suspect(state, "disk_full")
            yield Transition(state, None, observed, after)
        else:
            _, due = machine.decide(state, seconds)
            seconds = max(seconds, due)
            if isinstance(observed, Failed) and observed.reason == "timeout":
                # What does not answer takes all the time that it has.
                seconds += scenario.configuration.connect_seconds
            step, _ = machine.decide(state, seconds)
            after = machine.advance(state, step, observed, seconds)
            yield Transition(state, step, observed, after)
        state = after


def lines() -> Iterator[str]:
    """Yield the lines of the table, in Markdown; a transition that was shown is not shown again."""
    yield f"| {' | '.join(HEADINGS)} |"
    yield f"| {' | '.join('---' for _ in HEADINGS)} |"
    shown: set[tuple[str, ...]] = set()
    for scenario in SCENARIOS:
        title = scenario.title
        for transition in play(scenario):
            cells = _cells(transition)
            if cells not in shown:
                yield f"| {' | '.join((title, *cells))} |"
                title = ""
            shown.add(cells)


def _cells(transition: Transition) -> tuple[str, ...]:
    after = transition.after
    report, admitted = describe(after, NOW), admission(after)
    said = ", ".join(filter(None, (status(after), report.reason)))
    requests = {(True, True): "served", (True, False): "read only", (False, False): "503"}
    return (
        _name(transition.before),
        transition.step.action if transition.step else "",
        _observed(transition.observation),
        _name(after),
        said,
        requests[admitted.reads, admitted.writes],
    )


def _name(state: State) -> str:
    if state.phase == "down":
        return "nothing serves" if state.has_settled else "choosing"
    if state.phase != "serving":
        return _PHASES[state.phase] + (", SQLite open" if _keeps_sqlite(state) else "")
    name = "PostgreSQL serves" if state.backend == "postgresql" else "SQLite serves"
    if state.is_fallback:
        name = "SQLite serves for PostgreSQL"
    return f"{name}; last check failed" if state.trouble else name


def _keeps_sqlite(state: State) -> bool:
    return state.phase == "connected" and state.backend == "sqlite"


def _observed(observation: Observation | Event) -> str:
    if isinstance(observation, Event):
        return observation.value
    defaults = type(observation)._field_defaults
    told: list[str] = []
    for name, value in observation._asdict().items():
        if value != defaults.get(name):
            told.append(_told(name, value))
    name = type(observation).__name__
    return f"{name}({', '.join(told)})" if told else name


def _told(name: str, value: object) -> str:
    if isinstance(value, bool):
        return name if value else f"not {name}"
    return f"{name}={value}" if isinstance(value, int) else str(value)


README = Path(machine.__file__).parents[1] / "README.md"
BEGIN, END = "<!-- states -->\n", "<!-- end of states -->"


def written(readme: str, table: str) -> str:
    """The README with this table in it."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table + END + after


if __name__ == "__main__":
    table = "".join(f"{line}\n" for line in lines())
    if "--write" in sys.argv:
        README.write_text(written(README.read_text(encoding="utf-8"), table), encoding="utf-8")
    else:
        print(table, end="")
