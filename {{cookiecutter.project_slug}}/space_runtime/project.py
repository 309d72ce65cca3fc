"""What the runtime is told about the project that it runs."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import MetaData

Hook = Callable[..., Any]
"""A plain function, which runs in a thread and may take minutes, or an `async def` one."""


@dataclass(frozen=True)
class About:
    """What the Space is called and what it does, in its owner's words."""

    title: str
    emoji: str
    description: str
    color_from: str = "blue"
    color_to: str = "green"


@dataclass(frozen=True)
class Project:
    """A project: its folder (with `migrations/` and `alembic.ini`), its version and its tables."""

    folder: Path
    version: str
    metadata: MetaData
    about_file: Path
    on_start: Sequence[Hook] = ()
    """Called with the application once it listens, for example to load a model into app.state."""
    on_ready: Sequence[Hook] = ()
    """Called with the application and its Database once that serves and `on_start` has ended."""

    def path(self, written: str) -> Path:
        """Resolve a path from a setting: `~` is the home, relative paths start at `folder`."""
        return self.folder / os.path.expanduser(written)

    def read_about(self) -> About:
        """Return what the Space is called, what it does, and the colors of its card."""
        return About(**json.loads(self.about_file.read_text(encoding="utf-8")))
