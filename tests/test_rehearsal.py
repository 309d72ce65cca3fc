"""`make rehearse` in a render: what a person sees of an outage on their own machine, and whether it finds a loss."""

import os
import re

import pytest

from tests.support.bakery import BakedProject
from tests.support.machine import need_base_image
from tests.test_container import engine_output

pytestmark = pytest.mark.slow

# Long enough for a start, and nine seconds less to wait for a PostgreSQL that is not there.
IMPATIENT = {"DATABASE_CONNECT_SECONDS": "1"}

# A build that answers first, and stores when it gets to it.
HASTY = """
@router.post("", status_code=201)
async def create_hastily(data: ItemCreate, database: DatabaseDep) -> dict[str, str]:
    asyncio.get_running_loop().call_later(0.5, lambda: asyncio.ensure_future(store(data, database)))
    return {"title": data.title}


async def store(data: ItemCreate, database: DatabaseDep) -> None:
    with contextlib.suppress(Exception):
        await database.write(service.create_item, data)


"""


def ledger(text: str) -> dict[str, int]:
    """The ledger at the end of what was printed."""
    return {name: int(number) for name, number in re.findall(r"^ +([a-z ]+)  (\d+)\b", text, re.MULTILINE)}


def test_an_outage_is_told_step_by_step_and_every_row_is_counted(project: BakedProject) -> None:
    done = project.run("python", "-m", "tools.rehearse", "--image", "off", environ=IMPATIENT)
    steps = re.findall(r"^ +[\d.]+ s  (.*?)(?: \(after [\d.]+ s\))?$", done.stdout, re.MULTILINE)
    assert [step for step in steps if "rows" not in step or "has" in step] == [
        "PostgreSQL runs, for this rehearsal alone",
        "PostgreSQL serves",
        "PostgreSQL is killed",
        "/health says so",
        "the application is stopped, and started again without PostgreSQL",
        "SQLite serves in its place",
        "PostgreSQL is back",
        "PostgreSQL serves, and has the rows of SQLite",
    ]
    counts = ledger(done.stdout)
    assert counts["acknowledged"] == counts["found"] >= 600
    assert (counts["lost"], counts["doubled"]) == (0, 0)
    assert counts["sent"] == counts["acknowledged"] + counts["refused"] + counts["no answer"]


@pytest.mark.thorough
def test_it_is_played_in_the_image_where_one_can_be_built(project: BakedProject) -> None:
    engine = need_base_image("3.14")
    # What the owner's own settings are reaches a container, too.
    (project.path / ".env").write_text("".join(f"{name}={value}\n" for name, value in IMPATIENT.items()))
    # An ordinary user's engine keeps its images in the home.
    environ = {name: os.environ[name] for name in ("HOME", "XDG_RUNTIME_DIR") if name in os.environ}
    done = project.run("python", "-m", "tools.rehearse", environ=environ)
    assert f"building the image with {engine} ..." in done.stdout
    counts = ledger(done.stdout)
    assert counts["acknowledged"] == counts["found"] >= 600
    assert (counts["lost"], counts["doubled"]) == (0, 0)
    left = engine_output(engine, "ps", "--all", "--filter", "name=rehearsal-", "--format", "{{.Names}}")
    assert left.split() == []


@pytest.mark.thorough
def test_a_build_that_answers_before_it_commits_is_found_out(project: BakedProject) -> None:
    router = project.path / "src" / "items" / "router.py"
    text = router.read_text().replace('@router.post(\n    "",', '@router.post(\n    "/slowly",', 1)
    head, mark, tail = text.partition("@router.post(")
    router.write_text("import asyncio\nimport contextlib\n" + head + HASTY.lstrip() + mark + tail)
    done = project.run("python", "-m", "tools.rehearse", "--image", "off", environ=IMPATIENT, check=False)
    assert done.returncode == 1, done.stdout
    assert ledger(done.stdout)["lost"] > 0
    assert "Rows were lost or doubled." in done.stdout


@pytest.mark.thorough
def test_a_route_that_takes_no_such_text_is_told(project: BakedProject) -> None:
    command = ("python", "-m", "tools.rehearse", "--image", "off", "--route", "/api/nothing")
    done = project.run(*command, environ=IMPATIENT, check=False)
    assert done.returncode == 1
    assert "answered a write with 404" in done.stdout
    assert "make rehearse ROUTE=/api/notes FIELD=title" in done.stdout
