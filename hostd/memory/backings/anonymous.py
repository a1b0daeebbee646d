"""Memory of this guest alone, zero until it is touched."""

from __future__ import annotations

from hostd.memory._map import lib
from hostd.memory.backings.base import Backing
from hostd.memory.errors import BackingError, reason


class Anonymous(Backing):
    """Anonymous private memory. Costs nothing before it is touched, whatever its size."""

    kind = "anonymous"

    def map_at(self, address: int, size: int, writable: bool) -> None:
        flags = lib.MAP_PRIVATE | lib.MAP_ANONYMOUS | lib.MAP_NORESERVE
        failed = -lib.map_over(address, size, writable, flags, -1, 0)
        if failed:
            raise BackingError(failed, f"the host refuses {size} bytes of memory: {reason(failed)}")
