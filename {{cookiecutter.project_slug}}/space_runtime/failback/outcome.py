"""What became of a move."""

from typing import NamedTuple

from sqlalchemy.exc import DBAPIError


class Outcome(NamedTuple):
    """How many rows were moved, and how many stay behind."""

    moved: int = 0
    refused: int = 0


class MoveFailed(Exception):
    """PostgreSQL ended the whole move, which was at work on `table`; nothing was moved."""

    def __init__(self, table: str, error: DBAPIError) -> None:
        super().__init__(table)
        self.table = table
        self.error = error

    @property
    def detail(self) -> str:
        """Return where it ended, as a clause that anyone may see."""
        code = getattr(self.error.orig, "sqlstate", None)
        return f"table {self.table}, error {code}" if code else f"table {self.table}"
