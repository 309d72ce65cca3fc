"""The states of the database's lifecycle as a table: no thread, no clock, no database."""

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
from space_runtime.reasons import HARMLESS, REASONS

from tests.chaos.faults import FAULTS, Fault
from tests.support.examples import examples
from tools.states import (
    NOW,
    POSTGRESQL,
    README,
    SCENARIOS,
    STRICT,
    STRICT_UNUSABLE,
    UNSET,
    UNUSABLE,
    Event,
    Scenario,
    Transition,
    lines,
    play,
    written,
)

FALLS_BACK: tuple[Observation, ...] = (Failed("auth_failed"), Opened(), Answered())
SERVES: tuple[Observation, ...] = (Done(), Done(), Done(), Opened(), Answered())


def ends(configuration: Configuration, *observed: Observation | Event) -> State:
    """The state that these observations lead to."""
    return list(play(Scenario("", configuration, observed)))[-1].after


def told(state: State) -> tuple[str, str | None, str | None]:
    report = describe(state, NOW)
    return status(state), report.backend, report.reason


def test_the_readme_of_the_runtime_shows_the_table_as_it_is() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == written(text, "".join(f"{line}\n" for line in lines())), "run `make states`"


def test_the_table_reaches_every_phase_and_every_step_with_every_outcome() -> None:
    played = [transition for scenario in SCENARIOS for transition in play(scenario)]
    phases = {transition.after.phase for transition in played} | {transition.before.phase for transition in played}
    assert phases == set(get_args(machine.Phase))
    assert set(POSSIBLE) == set(get_args(machine.Action))
    outcomes = {(one.step.action, type(one.observation)) for one in played if one.step is not None}
    assert outcomes == {(action, outcome) for action, possible in POSSIBLE.items() for outcome in possible}


@pytest.mark.parametrize(
    ("configuration", "observed", "expected"),
    [
        (POSTGRESQL, (), ("starting", None, None)),
        (POSTGRESQL, SERVES, ("ok", "postgresql", None)),
        (POSTGRESQL, FALLS_BACK, ("degraded", "sqlite", "auth_failed")),
        (STRICT, (Failed("auth_failed"),), ("unavailable", None, "auth_failed")),
        (UNUSABLE, (Opened(), Answered()), ("degraded", "sqlite", "unparseable")),
        (STRICT_UNUSABLE, (Failed("unparseable"),), ("unavailable", None, "unparseable")),
        (UNSET, (Opened(), Answered()), ("ok", "sqlite", "unset")),
        (replace(UNSET, strict=True), (Opened(), Answered()), ("ok", "sqlite", "unset")),
        (UNSET, (Opened(problem="no_writable_path"),), ("degraded", "sqlite", "no_writable_path")),
        (UNSET, (Opened(schema_newer=True),), ("ok", "sqlite", "unset")),
        (POSTGRESQL, (*SERVES, Failed("connection_lost")), ("unavailable", "postgresql", "connection_lost")),
    ],
)
def test_what_is_told(
    configuration: Configuration, observed: tuple[Observation, ...], expected: tuple[str, str | None, str | None]
) -> None:
    if observed:
        assert told(ends(configuration, *observed)) == expected
    else:
        assert told(machine.begin(configuration, 0.0)) == expected


def test_rows_that_wait_are_counted_while_nothing_serves() -> None:
    state = ends(STRICT, Failed("refused", pending_rows=7))
    assert describe(state, NOW).pending_rows == 7


def test_a_start_waits_for_what_may_pass_and_for_nothing_else() -> None:
    waiting, seconds = ends(POSTGRESQL, Failed("starting_up")), POSTGRESQL.connect_seconds
    for now in (0.0, machine.FIRST_PAUSE_SECONDS):
        again = machine.decide(waiting, now)
        assert again == (Step("connect", seconds=seconds - now), machine.FIRST_PAUSE_SECONDS)
    assert machine.decide(ends(POSTGRESQL, Failed("auth_failed")), 0.0) == (Step("open SQLite"), 0.0)


def test_pauses_between_failbacks_grow_to_five_minutes() -> None:
    state, pauses = ends(POSTGRESQL, *FALLS_BACK), []
    now = 0.0
    for _ in range(12):
        now = state.next_connect
        for step in (Step("connect"), Step("lock files")):
            state = machine.advance(state, step, Done(), now)
        state = machine.advance(state, Step("drain"), Failed("locked"), now)
        pauses.append(state.next_connect - now)
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0, 300.0, 300.0, 300.0]


def test_strict_with_a_url_that_cannot_be_used_counts_again_what_waits() -> None:
    state = ends(STRICT_UNUSABLE, Failed("unparseable", pending_rows=2), Failed("unparseable", pending_rows=3))
    assert (told(state), describe(state, NOW).pending_rows) == (("unavailable", None, "unparseable"), 3)
    assert machine.decide(state, state.next_connect) == (Step("connect"), state.next_connect)


def test_trouble_that_a_request_meets_during_a_check_is_looked_into_by_the_next_one() -> None:
    state = ends(UNSET, Opened(), Answered())
    suspected = machine.suspect(state, "disk_full")
    after = machine.advance(suspected, Step("check"), Answered(), 0.0)
    again, _ = machine.decide(after, after.next_check)
    assert again == Step("check", suspicion="disk_full")
    assert machine.advance(after, again, Answered(), after.next_check).suspicion is None


def test_other_trouble_does_not_keep_a_check_from_looking_for_damage() -> None:
    state = ends(UNSET, Opened(), Answered())
    for reason in ("corrupt", "disk_full"):
        state = machine.suspect(state, reason)
    assert machine.decide(state, 0.0) == (Step("check", suspicion="corrupt"), 0.0)


def at_start(fault: Fault) -> list[State]:
    """The states that a fault of the matrix leads to at the start; what its report says is what was observed."""
    is_there = "sqlite" not in fault.at_start.backends
    configuration = POSTGRESQL if "postgresql" in fault.healed.backends else UNSET
    states = []
    for reason in fault.at_start.reasons:
        if reason in (None, *HARMLESS):
            continue
        if configuration is POSTGRESQL:
            failed = Failed(str(reason), is_there=is_there)
            observed: tuple[Observation, ...] = (failed,) if is_there else (*[failed] * 12, Opened(), Answered())
            states.append(ends(configuration, *until_it_is_given_up(configuration, observed)))
        elif fault.at_start.backends == (None, "sqlite"):
            states.append(ends(configuration, Failed(str(reason))))
        else:
            states.append(ends(configuration, Opened(problem=reason), Answered()))
    return states


def until_it_is_given_up(configuration: Configuration, observed: tuple[Observation, ...]) -> tuple[Observation, ...]:
    """As many failures as there are attempts before SQLite is opened."""
    for count in range(1, len(observed) + 1):
        if ends(configuration, *observed[:count]).phase == "opening":
            return (*observed[:count], *(one for one in observed if not isinstance(one, Failed)))
    return observed


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_of_the_matrix_is_a_way_through_the_table(fault: Fault) -> None:
    def fits(state: State, expected: object) -> bool:
        report = describe(state, NOW)
        database = {"backend": report.backend, "reason": report.reason}
        return bool(expected.fits({"status": status(state), "database": database}))  # type: ignore[attr-defined]

    assert all(fits(state, fault.at_start) for state in at_start(fault))
    if fault.while_serving is not None:
        serving = (POSTGRESQL, *SERVES) if "postgresql" in fault.healed.backends else (UNSET, Opened(), Answered())
        for reason in fault.while_serving.reasons:
            if reason in REASONS and reason not in HARMLESS:
                lost = ends(serving[0], *serving[1:], Failed(str(reason)))  # type: ignore[arg-type]
                assert fits(lost, fault.while_serving)
                assert not admission(lost).writes
                healed = ends(serving[0], *serving[1:], Failed(str(reason)), Answered())  # type: ignore[arg-type]
                assert status(healed) == "ok"


# every way through the table

FAILED = st.builds(
    Failed,
    st.sampled_from(sorted(REASONS)),
    is_there=st.booleans(),
    pending_rows=st.integers(0, 9),
)
POSSIBLE: dict[machine.Action, dict[type, st.SearchStrategy[Observation]]] = {
    "connect": {Done: st.just(Done()), Failed: FAILED},
    "open SQLite": {
        Opened: st.builds(Opened, st.booleans(), st.booleans(), st.sampled_from([None, "corrupt", "no_writable_path"])),
        Failed: FAILED,
    },
    "lock files": {Done: st.just(Done()), Failed: FAILED},
    "drain": {Done: st.just(Done()), Failed: FAILED},
    "move rows": {Done: st.just(Done()), Failed: FAILED},
    "serve PostgreSQL": {
        Opened: st.builds(
            Opened, schema_newer=st.booleans(), pending_rows=st.integers(0, 9), rows_from_before=st.integers(0, 9)
        ),
        Failed: FAILED,
    },
    "check": {
        Answered: st.builds(Answered, st.just(1.0), st.integers(0, 9)),
        FileRemoved: st.just(FileRemoved()),
        Failed: FAILED,
    },
    "close": {Done: st.just(Done())},
}
CONFIGURATIONS = [POSTGRESQL, STRICT, UNSET, UNUSABLE, STRICT_UNUSABLE]


def next_transition(state: State, now: float, data: st.DataObject) -> tuple[Transition, float]:
    """One of the transitions that are possible."""
    _, due = machine.decide(state, now)
    now = max(now, due)
    step, _ = machine.decide(state, now)
    observation = data.draw(data.draw(st.sampled_from(list(POSSIBLE[step.action].values()))))
    after = machine.advance(state, step, observation, now)
    return Transition(state, step, observation, after), now


@examples(few=60, many=300)
def test_whatever_happens_the_promises_hold(examples: int) -> None:
    settings(max_examples=examples)(given(st.sampled_from(CONFIGURATIONS), st.data())(check_promises))()


def check_promises(configuration: Configuration, data: st.DataObject) -> None:
    """Go any way through the states, and look at each."""
    state, now = machine.begin(configuration, 0.0), 0.0
    was_reached = False
    for _ in range(data.draw(st.integers(1, 30))):
        transition, now = next_transition(state, now, data)
        state = transition.after
        action = transition.step.action if transition.step else None
        report, admitted = describe(state, NOW), admission(state)
        is_there = isinstance(transition.observation, Failed) and transition.observation.is_there
        serves_postgresql = state.phase == "serving" and state.backend == "postgresql"
        # it comes up, or says that it does not, and says why
        assert report.detail
        assert status(state) in ("ok", "degraded") or not admitted.writes
        assert admitted.writes or admitted.refusal
        # only what was asked for is `ok`
        if status(state) == "ok":
            assert state.backend == configuration.backend
            assert report.reason in HARMLESS
        # strict never opens SQLite for PostgreSQL, and a PostgreSQL that was reached is never replaced
        if action == "open SQLite" and configuration.backend == "postgresql":
            assert not configuration.strict
            assert not was_reached
        of_postgresql = action in ("connect", "lock files", "move rows")
        was_reached = was_reached or serves_postgresql or (of_postgresql and is_there and state.backend is None)
        assert admitted.is_fallback == (state.is_fallback and state.serves)
    # the end comes within a bounded number of steps
    state = machine.stop(state, now)
    for _ in range(10):
        if state.phase == "stopped":
            break
        transition, now = next_transition(state, now, data)
        state = transition.after
        assert not admission(state).reads
    assert state.phase == "stopped"
