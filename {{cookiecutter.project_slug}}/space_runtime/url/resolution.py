"""What DATABASE_URL asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sqlalchemy import URL

from space_runtime.url.splitting import Backend


@dataclass(frozen=True)
class Resolution:
    """What DATABASE_URL asks for. Its repr and messages contain no secret, host or user name."""

    url: URL | None = field(repr=False)
    backend: Backend
    message: str = field(repr=False)
    source: Literal["environment", "fallback"] = "environment"
    reason: str | None = None
    repairs: tuple[str, ...] = ()
    advice: str = field(default="", repr=False)
    """Why a Space may be unable to reach the server, and what to do about it."""
    transaction_pooler: bool = False
    secrets: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict, repr=False)
    """Connection parameters that are kept out of the URL, because SQLAlchemy would print them.

    build_engine(resolution) passes them to the driver; build_engine(resolution.url) cannot.
    """
