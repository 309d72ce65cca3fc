"""Check that there is enough to connect with, once everything stands in its place."""

from src.database.url.parts import Parts
from src.database.url.problem import UnusableURLError
from src.database.url.text import refuse_control_characters


def refuse_incomplete(parts: Parts, hosts: list[str]) -> None:
    """Stop at a URL that leaves the driver to guess where to go."""
    refuse_control_characters(parts.username)
    refuse_control_characters(parts.database)
    # A password may hold an encoded line break on purpose, but libpq ends every text at NUL.
    if "\x00" in parts.password:
        raise UnusableURLError("control_characters")
    if not hosts and not dict(parts.parameters).get("hostaddr"):
        raise UnusableURLError("missing_host")
    # libpq takes the user's name for a database that is not named, which is right often enough.
    if not parts.database and not parts.username:
        raise UnusableURLError("missing_database")
