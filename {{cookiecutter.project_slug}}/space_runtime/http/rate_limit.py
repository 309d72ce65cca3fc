"""How often each client may call what is public, and how often each user may write."""

import ipaddress
import math
import time

_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
# A flood from many addresses must not fill the memory.
MAX_CLIENTS = 20_000


class RateLimit:
    """Allows each client of this process a number of calls in a fixed window of time.

    If there are more than MAX_CLIENTS, the one whose window began first is forgotten.
    """

    def __init__(self, rule: str) -> None:
        """`rule` is a value of PUBLIC_LIMIT: "off", or for example "60/minute"."""
        self.rule = rule
        calls, _, window = rule.partition("/")
        self._calls, self._seconds = (int(calls), _SECONDS[window]) if window else (0, 0)
        # Ordered by the ends of the windows, because all are equally long.
        self._windows: dict[str, tuple[int, float]] = {}

    def seconds_to_wait(self, client: str) -> int:
        """Count a call; return 0, or the seconds to wait if it is one too many."""
        if self.rule == "off":
            return 0
        now = time.monotonic()
        calls, end = self._windows.get(client, (0, 0.0))
        if end <= now:
            self._windows.pop(client, None)
            if len(self._windows) >= MAX_CLIENTS:
                del self._windows[next(iter(self._windows))]
            calls, end = 0, now + self._seconds
        self._windows[client] = (calls + 1, end)
        return math.ceil(end - now) if calls >= self._calls else 0


def client_at(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 that one IPv6 customer gets."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:  # A Unix socket, or the name that a test client gives.
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ip.ipv4_mapped or ipaddress.IPv6Network((ip, 64), strict=False))
    return str(ip)
