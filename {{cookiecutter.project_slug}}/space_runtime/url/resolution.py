"""What DATABASE_URL asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sqlalchemy import URL

from space_runtime.url.splitting import Backend
from space_runtime.url.vocabulary import Reason


@dataclass(frozen=True, repr=False)
class Resolution:
    """What DATABASE_URL asks for. Nothing that is printed of it holds a secret, host or user."""

    url: URL | None
    backend: Backend
    source: Literal["environment", "fallback"]
    reason: Reason | None
    repairs: tuple[str, ...]
    message: str
    advice: str = ""
    """What may keep the server from being reached, and what to do about it."""
    transaction_pooler: bool = False
    secrets: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    """What the driver must receive beside the URL, in which SQLAlchemy would show it.

    build_engine(resolution) passes it on, so build an engine from the whole resolution.
    """

    def __repr__(self) -> str:
        return (
            f"Resolution(backend={self.backend!r}, source={self.source!r}, reason={self.reason!r}, "
            f"repairs={self.repairs!r}, transaction_pooler={self.transaction_pooler!r})"
        )
