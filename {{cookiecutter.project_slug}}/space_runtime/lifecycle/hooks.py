"""The owner's hooks, which run while the server already answers, and what is said of them.

Those of `on_start` run beside the choice of the database, one after the other, and after them
those of `on_ready`, once a database serves. The first that fails is the last that runs.
"""

import asyncio
import inspect
import logging
import math
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from space_runtime.lifecycle.report import DatabaseReport, Status
from space_runtime.project import Hook, Project
from space_runtime.serving.database import Database
from space_runtime.time_limit import start

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far the hooks have come; what is reported is computed from it."""

    running: str = ""
    """The hook that runs, or the one that failed."""
    since: float = 0.0
    """When it began, on the monotonic clock."""
    failure: str = ""
    """The class of what it raised."""
    have_ended: bool = False


def status(database: Status, progress: Progress) -> Status:
    """Return the state of the application in one word, given that of the database."""
    if database == "unavailable" or progress.failure:
        return "unavailable"
    return database if progress.have_ended else "starting"


def describe(database: DatabaseReport, progress: Progress, now: float) -> DatabaseReport:
    """Return the report with a sentence about the hook that runs or has failed, if there is one."""
    if progress.failure:
        sentence = f"{progress.running} failed ({progress.failure}): the log says why."
    elif progress.running:
        sentence = f"Loading {progress.running} for {now - progress.since:.0f} s."
    else:
        return database
    return replace(database, detail=f"{sentence} {database.detail}")


class Hooks:
    """Runs the hooks of a project, and knows how far they have come."""

    def __init__(self, project: Project, database: Database) -> None:
        self._project = project
        self._database = database
        self.progress = Progress(have_ended=not (project.on_start or project.on_ready))

    async def run(self, app: Any) -> None:
        """Run all hooks; an error of one is logged, and shown in the report."""
        try:
            for hook in self._project.on_start:
                await self._run(hook, app)
            if self._project.on_ready:
                await self._database.ready(math.inf)
            for hook in self._project.on_ready:
                await self._run(hook, app, self._database)
        except Exception as error:
            # Not logger.error: without the traceback, the owner would not find the cause.
            logger.exception("%s failed: %s", self.progress.running, type(error).__name__)
            self.progress = replace(self.progress, failure=type(error).__name__)
        else:
            self.progress = Progress(have_ended=True)

    async def _run(self, hook: Hook, *arguments: Any) -> None:
        name = getattr(hook, "__name__", type(hook).__name__)
        self.progress = Progress(name, time.monotonic())
        # In a daemon thread, so that the server can end before it does.
        result = await asyncio.wrap_future(start(partial(hook, *arguments)))
        # What an `async def` returns, also one behind a lambda or an object, has yet to run.
        if inspect.isawaitable(result):
            await result
        logger.info("%s took %.1f s", name, time.monotonic() - self.progress.since)
        self.progress = Progress()
