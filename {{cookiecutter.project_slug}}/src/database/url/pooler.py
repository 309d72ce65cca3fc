"""Recognise a transaction pooler, behind which prepared statements fail."""

from src.database.url.parts import Parts

_TRANSACTION_PORT = 6543
_YES = {"", "1", "true", "yes", "on"}


def is_transaction_pooler(parts: Parts, hosts: list[str], ports: list[int | None]) -> bool:
    """Tell whether connections are shared between transactions, as far as the URL shows it."""
    if dict(parts.parameters).get("pgbouncer", "no").lower() in _YES:
        return True
    return _TRANSACTION_PORT in ports or any("-pooler" in host.split(".")[0] for host in hosts)
