"""What the steps hand to each other: a PostgreSQL URL taken apart."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(repr=False)
class Parts:
    """The pieces of a URL. Without a repr, since every piece may be a secret."""

    username: str = ""
    password: str = ""
    hosts: str = ""
    database: str = ""
    parameters: list[tuple[str, str]] = field(default_factory=list)
    hosts_in_query: str = ""
    ports_in_query: str = ""

    def decode(self, decode: Callable[[str], str]) -> None:
        """Decode what has no inner structure; hosts are decoded one by one."""
        self.username = decode(self.username)
        self.password = decode(self.password)
        self.database = decode(self.database)
        self.parameters = [(name, decode(value)) for name, value in self.parameters]
