"""How often each client may call what is public.

Imported only with the first such call, because the library takes 70 ms to load.
"""

import ipaddress
import math
import time
from functools import lru_cache

from limits import parse
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter

MAX_CLIENTS = 20_000


class PublicLimit:
    """A number of calls in a window of time, for each client of this process."""

    def __init__(self, rule: str) -> None:
        """`rule` is a value of PUBLIC_LIMIT such as 60/minute."""
        self._item = parse(rule)
        self._limiter = FixedWindowRateLimiter(_Counts())

    def seconds_to_wait(self, address: str) -> int:
        """Count a call; return 0, or the seconds to wait if it is one too many."""
        client = client_of(address)
        if self._limiter.hit(self._item, client):
            return 0
        end = self._limiter.get_window_stats(self._item, client).reset_time
        return max(math.ceil(end - time.monotonic()), 1)


@lru_cache(maxsize=1024)
def client_of(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 that one IPv6 customer gets."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:  # a Unix socket, or the name that a test client gives
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ip.ipv4_mapped or ipaddress.IPv6Network((ip, 64), strict=False))
    return str(ip)


class _Counts(Storage):
    """_Counts in memory, for so many clients at most; the one whose window began first goes first.

    The library's own MemoryStorage starts a thread for a hit, which looks at all keys: a flood from
    many addresses would keep it busy.
    """

    STORAGE_SCHEME = None

    def __init__(self) -> None:
        super().__init__()
        # In the order in which they end, because all windows are equally long.
        self._windows: dict[str, tuple[int, float]] = {}

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        count = self.get(key)
        end = self.get_expiry(key)
        if count == 0:
            end = time.monotonic() + expiry
            self.clear(key)
            while len(self._windows) >= MAX_CLIENTS:
                del self._windows[next(iter(self._windows))]
        self._windows[key] = (count + amount, end)
        return count + amount

    def get(self, key: str) -> int:
        count, end = self._windows.get(key, (0, 0.0))
        return count if end > time.monotonic() else 0

    def get_expiry(self, key: str) -> float:
        return self._windows.get(key, (0, 0.0))[1]

    def clear(self, key: str) -> None:
        self._windows.pop(key, None)

    def reset(self) -> int:
        count = len(self._windows)
        self._windows.clear()
        return count

    def check(self) -> bool:
        return True

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError
