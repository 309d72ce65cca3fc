"""What the owner wants done at the start is done while the server answers, and the server says how far it is."""

import asyncio
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
from fastapi import FastAPI
from space_runtime.backends.errors import DatabaseUnavailable
from space_runtime.lifecycle.hooks import Hooks, Progress, status
from space_runtime.lifecycle.report import Status
from space_runtime.project import Hook, Project
from space_runtime.serving.database import Admission, Database
from space_runtime.serving.sessions import SessionFactory
from sqlalchemy import MetaData

from tests.support.bakery import BakedProject
from tests.support.server import Server

HOOKS = """
import asyncio
import os
import threading
from dataclasses import replace

from fastapi import FastAPI
from sqlalchemy import func, select

from space_runtime.serving.database import Database
from src import main
from src.database.session import SessionLocal
from src.items.models import Item

go, soon = threading.Event(), asyncio.Event()


def load_model(app: FastAPI) -> None:
    assert go.wait(60)
    if "BROKEN" in os.environ:
        raise OSError("there is no model")
    app.state.model = "a model"


async def warm_up(app: FastAPI) -> None:
    await soon.wait()
    app.state.model += " that is warm"


def add_first_rows(app: FastAPI, database: Database) -> None:
    with SessionLocal.begin() as session:
        session.add(Item(title=app.state.model))


async def add_more_rows(app: FastAPI, database: Database) -> None:
    number = await database.read(lambda session: session.scalar(select(func.count()).select_from(Item)))
    await database.write(lambda session: session.add(Item(title=f"{number} before")))


main.PROJECT = replace(main.PROJECT, on_start=[load_model, warm_up], on_ready=[add_first_rows, add_more_rows])
app = main.create_app()


@app.get("/go")
async def let_go() -> None:
    go.set()


@app.get("/soon")
async def let_go_soon() -> None:
    soon.set()
"""


@contextmanager
def loading(project: BakedProject, **environ: str) -> Iterator[Server]:
    """Serve an app whose first hook runs, and whose database serves."""
    (project.path / "extra.py").write_text(HOOKS)
    with project.boot(environ, in_place=True, app="extra:app") as server:
        server.health_when(lambda report: report["database"]["backend"] == "sqlite")
        yield server


def detail_with(text: str, server: Server) -> str:
    """The detail of the first report in which this regular expression is found."""
    report = server.health_when(lambda report: re.search(text, report["database"]["detail"]))
    return str(report["database"]["detail"])


@pytest.mark.slow
def test_the_server_answers_while_hooks_run_and_is_ready_when_they_have_ended(project: BakedProject) -> None:
    with loading(project) as server:
        assert detail_with(r"^Loading load_model for [1-9]\d* s\. SQLite serves\.", server)
        answer = server.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (200, "starting")
        assert server.get("/health/ready").status_code == 503
        assert "Loading load_model for" in server.get("/").text
        assert server.post("/api/items", json={"title": "while it loads"}).status_code == 201

        server.get("/go")
        assert detail_with("Loading warm_up", server)
        assert server.get("/health/ready").json() == {"status": "starting"}
        server.get("/soon")
        report = server.health_when(lambda report: report["status"] == "ok")
        assert "Loading" not in report["database"]["detail"]
        assert server.get("/health/ready").status_code == 200
        assert server.titles() == ["2 before", "a model that is warm", "while it loads"]
        server.log_when_it_tells("load_model took")


@pytest.mark.slow
def test_a_hook_that_fails_says_so_and_nothing_else_stops(project: BakedProject) -> None:
    with loading(project, BROKEN="1") as server:
        server.get("/go")
        assert detail_with(r"load_model failed \(OSError\): the log says why\. SQLite serves\.", server)
        answer = server.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
        assert server.get("/health/ready").status_code == 503
        assert "could not start" in server.get("/").text
        server.log_when_it_tells('load_model\n    raise OSError("there is no model")')
        assert server.post("/api/items", json={"title": "stored"}).status_code == 201
        assert server.titles() == ["stored"]


@pytest.mark.slow
def test_a_server_that_is_stopped_does_not_wait_for_a_hook(project: BakedProject) -> None:
    with loading(project) as server:
        begun = time.monotonic()
        assert server.stop() in (0, -signal.SIGTERM)
        assert "stopped: the database is closed" in server.log()
        assert time.monotonic() - begun < 10


@pytest.mark.parametrize("database", get_args(Status))
def test_the_status_is_that_of_the_database_once_the_hooks_have_ended(database: Status) -> None:
    assert status(database, Progress(have_ended=True)) == database
    assert status(database, Progress("load_model", 1.0)) == ("unavailable" if database == "unavailable" else "starting")
    assert status(database, Progress("load_model", 1.0, "OSError")) == "unavailable"


class WarmUp:
    """A hook that is an object."""

    async def __call__(self, app: FastAPI) -> None:
        """Run."""
        await asyncio.sleep(0)
        app.state.is_warm = True


async def load(app: FastAPI, name: str) -> None:
    """What a lambda or a partial calls."""
    await asyncio.sleep(0)
    app.state.model = name


@pytest.mark.parametrize("hook", [lambda app: load(app, "a model"), partial(load, name="a model")])
def test_an_async_hook_is_awaited_whatever_it_is_wrapped_in(hook: Hook) -> None:
    app, nobody = FastAPI(), Database(SessionFactory())
    project = Project(Path(), "1", MetaData(), Path(), on_start=[hook, WarmUp()])
    hooks = Hooks(project, nobody)
    asyncio.run(hooks.run(app))
    assert (app.state.model, app.state.is_warm, hooks.progress.have_ended) == ("a model", True, True)


def test_a_task_can_wait_until_a_database_serves_but_not_forever() -> None:
    async def task() -> None:
        database = Database(SessionFactory())
        database.admission = Admission(reads=False, writes=False, refusal="The database is being chosen.")
        with pytest.raises(DatabaseUnavailable, match="being chosen"):
            await database.ready(0)
        waiting = asyncio.create_task(database.ready())
        await asyncio.sleep(0)
        database.admission = Admission(reads=True, writes=True)
        await asyncio.wait_for(waiting, 10)

    asyncio.run(task())
