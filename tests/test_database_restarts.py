"""PostgreSQL is restarted under load: all that clients notice is 503 for as long as it is away."""

import time
from collections.abc import Callable

import pytest

from tests.support.bakery import Bakery
from tests.support.load import clients, read_and_write
from tests.support.postgres import Postgres

pytestmark = pytest.mark.slow

ENDS: dict[str, Callable[[Postgres], None]] = {
    "fast": Postgres.stop,
    "immediate": lambda postgres: postgres.stop("immediate"),
    "killed": Postgres.kill,
}


@pytest.mark.alone
@pytest.mark.parametrize("end", ENDS)
def test_no_request_fails_with_anything_but_503_and_soon_none_does(bake: Bakery, postgres: Postgres, end: str) -> None:
    with bake().boot({"DATABASE_URL": postgres.create_database()}) as server:
        server.settled()
        with clients(16, read_and_write, server.port) as told:
            for seconds_away in (0, 3):
                time.sleep(1)
                ENDS[end](postgres)
                time.sleep(seconds_away)
                postgres.start()
                back = time.monotonic()
                time.sleep(2)
                seconds = told.first_success_after(back)
                assert seconds < 2
        assert set(told.statuses()) == {200, 201, 503}, server.log()
