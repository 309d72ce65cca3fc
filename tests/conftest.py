"""Fixtures for the tests of the template. What they are made of is in `tests/support`."""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import pytest

from tests.support.bakery import BakedProject, Bakery
from tests.support.machine import REQUIRE_EVERYTHING
from tests.support.postgres import PASSWORD, Login, Postgres, new_postgres

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starting a PostgreSQL takes longer than the quick loop should."""
    for item in items:
        if {"postgres", "login"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


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
