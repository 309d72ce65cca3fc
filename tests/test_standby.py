"""PostgreSQL with a standby: after the primary was lost and the standby promoted, the app goes on by itself."""

import math
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.support.bakery import Bakery
from tests.support.load import clients, write
from tests.support.postgres import Postgres, new_postgres
from tests.support.standby import new_standby, promote
from tests.test_acknowledged_writes import titles_in_postgresql, wait_for_more, wait_until

pytestmark = pytest.mark.slow

# What is promised, where the machine has time; clients and three servers keep it busy.
SECONDS_AFTER_PROMOTION = pytest.mark.parametrize("most", [20, pytest.param(5, marks=pytest.mark.alone)])
# what people get
PACE = {"DATABASE_CHECK_SECONDS": "2"}


@pytest.fixture
def primary() -> Iterator[Postgres]:
    """A server of its own, since it is lost for good."""
    with new_postgres() as server:
        yield server


@pytest.fixture
def standby(primary: Postgres) -> Iterator[Postgres]:
    """A server that has all that the primary acknowledges."""
    with new_standby(primary) as server:
        yield server


def url_of_both(url: str, primary: Postgres, standby: Postgres) -> str:
    """One URL with both servers, of which the one that takes writes is used."""
    address = urlsplit(url)._replace(query="target_session_attrs=read-write").geturl()
    return address.replace(f":{primary.port}/", f":{primary.port},127.0.0.1:{standby.port}/")


def drop_connections(server: Postgres, database: str) -> None:
    """End every connection to a database, as a restart of the network would."""
    with server.connect() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
            [database],
        )


@SECONDS_AFTER_PROMOTION
def test_a_promoted_standby_serves_within_seconds_and_has_all_that_was_acknowledged(
    bake: Bakery, primary: Postgres, standby: Postgres, most: float
) -> None:
    url = primary.create_database()
    database = url.rpartition("/")[2]
    environ = {"DATABASE_URL": url_of_both(url, primary, standby)} | PACE
    with bake().boot(environ) as server:
        assert server.settled()["status"] == "ok"
        with clients(8, write, server.port) as told:
            wait_for_more(told, server)
            primary.kill()
            server.health_when(lambda report: report["status"] == "unavailable")
            with bake().boot(environ) as newcomer:
                # a server is there, so no other database hides its rows
                report = newcomer.settled()
                assert (report["status"], report["database"]["reason"]) == ("unavailable", "read_only")
                promote(standby)
                promoted = time.monotonic()
                wait_until(lambda: told.first_success_after(promoted) < math.inf, server)
                newcomer.health_when(lambda report: report["status"] == "ok")
            wait_for_more(told, server)
            # the old primary comes back, and as nobody prevents it, it takes writes, too
            primary.start()
            drop_connections(standby, database)
            wait_for_more(told, server)
        assert told.first_success_after(promoted) < most
        assert set(told.statuses()) == {201, 503}, server.log()
    told.check(titles_in_postgresql(standby, standby.url(database)))


@pytest.mark.thorough
@SECONDS_AFTER_PROMOTION
def test_a_primary_that_only_falls_silent_is_replaced_as_well(
    bake: Bakery, primary: Postgres, standby: Postgres, most: float
) -> None:
    url = primary.create_database()
    environ = {"DATABASE_URL": url_of_both(url, primary, standby)} | PACE
    with bake().boot(environ) as server:
        assert server.settled()["status"] == "ok"
        with clients(8, write, server.port) as told:
            wait_for_more(told, server)
            primary.pause()
            try:
                server.health_when(lambda report: report["status"] == "unavailable")
                promote(standby)
                promoted = time.monotonic()
                wait_until(lambda: told.first_success_after(promoted) < math.inf, server)
                wait_for_more(told, server)
            finally:
                primary.resume()
            wait_for_more(told, server)
        assert told.first_success_after(promoted) < most
    told.check(titles_in_postgresql(standby, standby.url(url.rpartition("/")[2])))
