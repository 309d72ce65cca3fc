"""Replicas of an application, each with a disk of its own, fall back and return on their own."""

import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from space_runtime.backends import POSTGRESQL
from space_runtime.backends.errors import connection_reason
from src.database.session import build_engine

from tests.support.bakery import BakedProject
from tests.support.killing import app_that_dies
from tests.support.postgres import Login
from tests.support.server import IMPATIENT, Server
from tests.test_outage_models import MIGRATION, SHOP, create, ok, rows

pytestmark = pytest.mark.slow

MIGRATIONS_LOCK = 7_860_201_811

# Two that fail back meet where the files of both have been handed over and none of the rows has been moved. Then the
# one whose rows come first keeps its transaction open until the other has been turned away, or has rows there, too.
MEETING = """
import os
import time
from types import SimpleNamespace
from space_runtime.backends import postgresql
from space_runtime.failback import handover
from space_runtime.failback.target import Target
from shop import app

begin, insert = handover.begin, Target.insert


def note(what):
    with open(f"{os.environ['MEETING']}-{what}", "a") as notes:
        notes.write(f"{os.getpid()}\\n")


def others(what):
    try:
        with open(f"{os.environ['MEETING']}-{what}") as notes:
            return set(notes.read().split()) - {str(os.getpid())}
    except FileNotFoundError:
        return set()


def note_and_sleep(seconds):
    note("turned away")
    time.sleep(seconds)


def begin_together(*arguments):
    handed_over = begin(*arguments)
    note("begun")
    while not others("begun"):
        time.sleep(0.01)
    postgresql.time = SimpleNamespace(monotonic=time.monotonic, sleep=note_and_sleep)
    return handed_over


def insert_together(*arguments):
    note("inside")
    numbers = insert(*arguments)
    while not others("inside") | others("turned away"):
        time.sleep(0.01)
    return numbers


handover.begin, Target.insert = begin_together, insert_together
"""


@dataclass
class Told:
    """What the clients of all replicas know."""

    customers: list[str] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    """Of the customers to whom the application itself gave a number: it stays valid."""
    of_outages: set[int] = field(default_factory=set)
    """The numbers that SQLite gave, which no other file gives."""
    recommended_by: dict[str, str] = field(default_factory=dict)
    ordered_by: dict[str, str] = field(default_factory=dict)

    def use(self, server: Server, name: str, *, is_outage: bool) -> None:
        """Write as the clients of one replica do: customers who recommend each other, orders, a ticket."""
        for number in range(3):
            first = create(server, "customers", name=f"{name} {number}")
            friend = create(server, "customers", name=f"friend of {name} {number}", recommended_by=first["id"])
            for row in (first, friend):
                self.customers.append(row["name"])
                self.numbers[row["name"]] = row["id"]
                if is_outage:
                    assert row["id"] not in self.of_outages
                    self.of_outages.add(row["id"])
            self._order(server, friend)
            self.recommended_by[friend["name"]] = first["name"]
        if is_outage:
            # a script's own numbers, the same on each replica; PostgreSQL has the first and not, at first, the second
            for number in (1, 500):
                row = create(server, "customers", id=number, name=f"{name}, by a script {number}")
                self.customers.append(row["name"])
                self._order(server, row)
        category = rows(server, "categories")[0]
        create(server, "tickets", category_id=category["id"], what=f"{name} about {category['name']}")

    def _order(self, server: Server, customer: dict[str, Any]) -> None:
        what = f"a lamp for {customer['name']}"
        create(server, "orders", customer_id=customer["id"], what=what)
        self.ordered_by[what] = customer["name"]

    def check(self, server: Server, tickets: int) -> None:
        """Compare with what PostgreSQL has: each row once, and references to the row that they were made for."""
        customers = rows(server, "customers")
        assert sorted(row["name"] for row in customers) == sorted(self.customers)
        by_name = {row["name"]: row for row in customers}
        by_number = {row["id"]: row["name"] for row in customers}
        assert {name: by_name[name]["id"] for name in self.numbers} == self.numbers
        recommended = {row["name"]: by_number[row["recommended_by"]] for row in customers if row["recommended_by"]}
        assert recommended == self.recommended_by
        orders = rows(server, "orders")
        assert len(orders) == len(self.ordered_by)
        assert {row["what"]: by_number[row["customer_id"]] for row in orders} == self.ordered_by
        categories = {row["id"]: row["name"] for row in rows(server, "categories")}
        assert sorted(categories.values()) == ["Billing", "General"]
        found = rows(server, "tickets")
        assert len({row["what"] for row in found}) == len(found) == tickets
        assert all(row["what"].endswith(f"about {categories[row['category_id']]}") for row in found)


@pytest.fixture
def replicas(project: BakedProject, tmp_path: Path) -> list[BakedProject]:
    """Two copies of one project, as two machines have them."""
    (project.path / "shop.py").write_text(SHOP)
    (project.path / "meeting.py").write_text(MEETING)
    (project.path / "migrations" / "versions" / "0002_shop.py").write_text(MIGRATION)
    return [project.copy_to(tmp_path / name) for name in ("first", "second")]


@contextmanager
def serving(
    replicas: list[BakedProject], login: Login, apps: Sequence[str] = ("shop:app", "shop:app"), **environ: str
) -> Iterator[list[Server]]:
    """All replicas at once."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(replica.boot({"DATABASE_URL": login.url} | IMPATIENT | environ, in_place=True, app=app))
            for replica, app in zip(replicas, apps, strict=True)
        ]


def fall_back(servers: list[Server], told: Told, name: str) -> None:
    """Let all serve SQLite, and write to each."""
    for number, server in enumerate(servers):
        assert server.settled()["status"] == "degraded", server.log()
        told.use(server, f"{name} at {number}", is_outage=True)


def test_each_row_of_three_outages_is_there_once_and_refers_to_what_it_was_made_for(
    replicas: list[BakedProject], login: Login, tmp_path: Path
) -> None:
    told = Told()
    login.allow()
    with serving(replicas, login) as servers:
        for number, server in enumerate(servers):
            ok(server)
            told.use(server, f"before at {number}", is_outage=False)

    login.refuse()
    with serving(replicas, login, ("meeting:app",) * 2, MEETING=str(tmp_path / "meeting")) as servers:
        fall_back(servers, told, "both return at once")
        login.allow()
        for number, server in enumerate(servers):
            assert ok(server)["pending_rows"] == 0
            told.use(server, f"after the first at {number}", is_outage=False)
        told.check(servers[1], tickets=6)

    login.refuse()
    with serving(replicas, login) as servers:
        fall_back(servers, told, "one returns later")
        servers[1].kill()
        login.allow()
        assert ok(servers[0])["pending_rows"] == 0
        told.use(servers[0], "while one is away", is_outage=False)
        with serving(replicas[1:], login, ("shop:app",)) as (late,):
            assert ok(late)["pending_rows"] == 0
            told.use(late, "after the second", is_outage=False)
            told.check(servers[0], tickets=10)

    login.refuse()
    deadly = app_that_dies(replicas[0], "after", "target", "Target.insert", "meeting")
    with serving(replicas, login, (deadly, "meeting:app"), MEETING=str(tmp_path / "again")) as servers:
        fall_back(servers, told, "one is killed while both return")
        login.allow()
        assert servers[0].process.wait(30) == -signal.SIGKILL
        assert ok(servers[1])["pending_rows"] == 0
        told.use(servers[1], "after the third", is_outage=False)
        with serving(replicas[:1], login, ("shop:app",)) as (back,):
            assert ok(back)["pending_rows"] == 0
            told.check(back, tickets=13)


def test_while_another_moves_its_rows_a_replica_serves_on_and_follows(
    replicas: list[BakedProject], login: Login
) -> None:
    login.allow()
    with serving(replicas[:1], login, ("shop:app",)) as (server,):
        ok(server)
    login.refuse()
    with serving(replicas[:1], login, ("shop:app",)) as (server,):
        told = Told()
        fall_back([server], told, "while PostgreSQL is away")
        with login.postgres.connect(login.postgres.url(login.url.rpartition("/")[2])) as another:
            another.execute("SELECT pg_advisory_lock(%s)", [MIGRATIONS_LOCK])
            login.allow()
            report = server.health_when(lambda report: report["database"]["reason"] == "locked")
            assert report["status"] == "degraded"
            assert "it moves its rows to PostgreSQL or migrates it" in report["database"]["detail"]
            late = create(server, "promotions", what="two for one")
        assert ok(server)["pending_rows"] == 0
        assert rows(server, "promotions") == [late]
        told.check(server, tickets=1)


def test_a_server_that_is_lost_while_one_waits_for_another_is_no_mistake_of_the_application(login: Login) -> None:
    login.allow()
    engine = build_engine(login.url)

    def wait_for_the_other() -> None:
        with POSTGRESQL.lock_migrations(engine):
            raise AssertionError("the other still has the lock")

    with login.postgres.connect() as administrator, login.postgres.connect(login.url) as another:
        another.execute("SELECT pg_advisory_lock(%s)", [MIGRATIONS_LOCK])
        (own,) = another.execute("SELECT pg_backend_pid()").fetchone() or (0,)
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(wait_for_the_other)
            sessions = "SELECT pid FROM pg_stat_activity WHERE usename = %s AND pid <> %s AND query ~ 'pg_try_advisory'"
            while not waiting.done():
                found = administrator.execute(sessions, [login.name, own]).fetchall()
                if found:
                    administrator.execute("SELECT pg_terminate_backend(%s)", found[0])
    engine.dispose()
    problem = waiting.exception()
    assert problem is not None
    assert connection_reason(problem) in ("connection_lost", "starting_up"), repr(problem)
