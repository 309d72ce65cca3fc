"""PostgreSQL is restarted under load: all that clients notice is 503 for as long as it is away."""

import time
from collections.abc import Callable

import pytest

from tests.support.bakery import Bakery
from tests.support.load import Told, clients, read_and_write
from tests.support.postgres import Postgres
from tests.support.server import Server

pytestmark = pytest.mark.slow

ENDS: dict[str, Callable[[Postgres], None]] = {
    "fast": Postgres.stop,
    "immediate": lambda postgres: postgres.stop("immediate"),
    "killed": Postgres.kill,
}


def wait_for_successes(told: Told, count: int, server: Server) -> None:
    """Return when so many more requests have succeeded; fail with the server's log if they do not."""
    deadline = time.monotonic() + 30
    begun = len(told.answers)
    while sum(200 <= status < 300 for _, status in told.answers[begun:]) < count:
        assert time.monotonic() < deadline, server.log()
        time.sleep(0.02)


def wait_until_missed_twice(server: Server) -> None:
    """Return when the app has looked for a database in vain and, at its own pace, once more."""
    missed = server.health_when(lambda report: report["status"] == "unavailable")["database"]["checked_at"]
    server.health_when(lambda report: report["database"]["checked_at"] != missed)


def restart_under_load(server: Server, postgres: Postgres, end: str, count: int) -> list[float]:
    """End PostgreSQL and start it again under so many clients; check what they were told.

    Return how many seconds after PostgreSQL's return the first success came: where it was away for a moment, and where
    it was away until the app had said so.
    """
    seconds = []
    server.settled()
    with clients(count, read_and_write, server.port) as told:
        for is_missed in (False, True):
            wait_for_successes(told, 100, server)
            ENDS[end](postgres)
            if is_missed:
                wait_until_missed_twice(server)
            postgres.start()
            back = time.monotonic()
            wait_for_successes(told, 100, server)
            seconds.append(told.first_success_after(back))
    assert set(told.statuses()) == {200, 201, 503}, server.log()
    return seconds


def test_no_request_fails_with_anything_but_503(bake: Bakery, postgres: Postgres) -> None:
    with bake().boot({"DATABASE_URL": postgres.create_database()}) as server:
        restart_under_load(server, postgres, "killed", count=4)


@pytest.mark.alone
@pytest.mark.parametrize("end", ENDS)
def test_under_16_clients_none_fails_soon_after_the_restart(bake: Bakery, postgres: Postgres, end: str) -> None:
    # with the pace that people get
    environ = {"DATABASE_URL": postgres.create_database(), "DATABASE_CHECK_SECONDS": "2"}
    with bake().boot(environ) as server:
        assert max(restart_under_load(server, postgres, end, count=16)) < 2
