"""Fixtures for the tests of the template. What they are made of is in `tests/support`."""

import gc
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings

from tests.support.bakery import BakedProject, Bakery
from tests.support.machine import REQUIRE_EVERYTHING
from tests.support.postgres import PASSWORD, Login, Postgres, new_postgres
from tests.support.progress import Progress

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

# How long an example takes says nothing on a machine that is busy with other tests.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.fixture(scope="session")
def bake(tmp_path_factory: pytest.TempPathFactory) -> Bakery:
    """`bake(**answers)` returns the project that these answers give; the same answers are baked once."""
    return Bakery(tmp_path_factory.mktemp("bakery"))


@pytest.fixture
def project(bake: Bakery, tmp_path: Path) -> BakedProject:
    """A copy of the default project that a test may change, start twice and look into."""
    return bake().copy_to(tmp_path)


@pytest.fixture(scope="session")
def running_postgres() -> Iterator[Postgres]:
    """One PostgreSQL server for all tests of this process."""
    with new_postgres() as server:
        yield server


@pytest.fixture
def postgres(running_postgres: Postgres) -> Iterator[Postgres]:
    """PostgreSQL, running, which a test may stop, kill, pause and start."""
    running_postgres.start()
    yield running_postgres
    if running_postgres.running:
        running_postgres.resume()


@pytest.fixture
def login(postgres: Postgres) -> Login:
    """An empty database whose owner may not log in yet."""
    name = f"owner_{uuid4().hex[:12]}"
    with postgres.connect() as connection:
        connection.execute(f"CREATE ROLE {name} NOLOGIN PASSWORD '{PASSWORD}'")
        connection.execute(f"CREATE DATABASE {name} OWNER {name}")
    return Login(postgres, name, postgres.url(name, user=name))


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/test.db"
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.create_database()


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Show what runs, and let the programs that tests start be interrupted."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    # A process of xdist has no terminal, and whoever asks for each test's name wants pytest's own lines.
    if terminal is not None and not hasattr(config, "workerinput") and config.get_verbosity() <= 0:
        config.pluginmanager.register(Progress(terminal))
    # A shell lets what it starts in the background ignore Ctrl-C, and so would everything that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starting a PostgreSQL takes longer than the quick loop should."""
    for item in items:
        if {"postgres", "login"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What the imports left behind is not looked at again after each test."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Collect what a test left open while its name is known: later, the warning would fail whatever test runs then.

    What outlives a test is looked at again only when its file ends: each time would take a tenth of a second.
    """
    result = yield
    if nextitem is None or nextitem.path != item.path:
        gc.unfreeze()
    left: list[str] = []

    def note(unraisable: "UnraisableHookArgs") -> None:
        left.append(str(unraisable.exc_value))

    hook, sys.unraisablehook = sys.unraisablehook, note
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook
    gc.freeze()
    assert not left, f"{item.nodeid} left something open: {left}"
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make a skipped test a failed one where everything is required."""
    return fail_if_required((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a file that skips itself."""
    return fail_if_required((yield))


def fail_if_required(report: Report) -> Report:
    """Turn a skip into a failure with the same words."""
    if REQUIRE_EVERYTHING and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"REQUIRE_EVERYTHING is set, and this was skipped: {report.longrepr}"
    return report
