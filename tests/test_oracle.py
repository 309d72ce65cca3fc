"""Any model comes through an outage: rows keep their meaning, whatever the tables look like and whatever happens."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.oracle.choosing import by_seed
from tests.support.oracle.stories import draw_story
from tests.support.oracle.world import World, tell
from tests.support.postgres import Postgres

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")]


@pytest.fixture(scope="module")
def world(running_postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    running_postgres.start()
    world = World(running_postgres, tmp_path_factory.mktemp("oracle"))
    yield world
    world.close()
