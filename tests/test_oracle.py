"""Any model comes through an outage: rows keep their meaning, whatever the tables look like and whatever happens.

Each example is a story: some tables, what an application does with them before, during and after outages, and what
others do to PostgreSQL meanwhile. See `tests/support/oracle`. `make oracle` tells ten times as many.
"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.support.oracle.choosing import Choose
from tests.support.oracle.once_failed import ONCE_FAILED
from tests.support.oracle.stories import Story, draw_story
from tests.support.oracle.world import World, tell
from tests.support.postgres import Postgres

pytestmark = [
    pytest.mark.slow,
    # Numeric on SQLite, and tables that refer to each other
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning"),
]

IN_A_PART = 20
PARTS = int(os.environ.get("ORACLE_PARTS", "15"))


@pytest.fixture(scope="module")
def world(running_postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    running_postgres.start()
    world = World(running_postgres, tmp_path_factory.mktemp("oracle"))
    yield world
    world.close()


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """Stories that Hypothesis can make simpler when they fail."""
    return draw_story(Choose(lambda least, most: draw(st.integers(least, most))))


def tell_part(part: int, world: World) -> None:
    @seed(part)
    @settings(
        max_examples=IN_A_PART,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        report_multiple_bugs=False,
    )
    @given(stories())
    def tell_some(story: Story) -> None:
        tell(story, world)

    tell_some()


@pytest.mark.thorough
@pytest.mark.parametrize("part", range(PARTS))
def test_rows_keep_their_meaning_through_outages(part: int, world: World) -> None:
    tell_part(part, world)


@pytest.mark.parametrize("name", ONCE_FAILED)
def test_what_once_failed_keeps_its_meaning(name: str, world: World) -> None:
    tell(ONCE_FAILED[name], world)
