"""This project with a transaction around each read, as most have it."""

from typing import Any

from space_runtime.backends import POSTGRESQL
from sqlalchemy import Connection
from src.main import app as app

_begin = POSTGRESQL.begin


def begin(connection: Connection, *, reading: bool, bounded: bool) -> None:
    """Begin one, whatever it is for."""
    _begin(connection, reading=False, bounded=bounded)


backend: Any = POSTGRESQL
backend.begin = begin
