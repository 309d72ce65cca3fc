"""PostgreSQL with a standby: after the primary was lost and the standby promoted, the app goes on by itself."""

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

SECONDS_AFTER_PROMOTION = 5


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


def test_a_promoted_standby_serves_within_seconds_and_has_all_that_was_acknowledged(
    bake: Bakery, primary: Postgres, standby: Postgres
) -> None:
    url = primary.create_database()
    with bake().boot({"DATABASE_URL": url_of_both(url, primary, standby)}) as server:
        assert server.settled()["status"] == "ok"
        with clients(8, write, server.port) as told:
            wait_for_more(told, server)
            primary.kill()
            server.health_when(lambda report: report["status"] == "unavailable")
            promote(standby)
            promoted = time.monotonic()
            wait_until(lambda: told.first_success_after(promoted) < SECONDS_AFTER_PROMOTION, server)
            wait_for_more(told, server)
        assert server.health()["database"]["backend"] == "postgresql"
        assert set(told.statuses()) == {201, 503}, server.log()
        print(told.statuses(), told.first_success_after(promoted))
    told.check(titles_in_postgresql(standby, standby.url(url.rpartition("/")[2])))
