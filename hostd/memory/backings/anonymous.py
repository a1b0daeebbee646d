"""Memory of this guest alone, zero until it is touched."""

from __future__ import annotations

import errno
import mmap

from hostd.memory._map import lib
from hostd.memory.backings.base import Backing
from hostd.memory.errors import BackingError, reason


class Anonymous(Backing):
    """Anonymous private memory. Costs nothing before it is touched, whatever its size.

    With `reserve` the kernel counts it as committed from the start (vm.overcommit_memory), so a shortage shows here.
    """

    kind = "anonymous"
    give_back = mmap.MADV_DONTNEED

    def __init__(self, *, reserve: bool = False) -> None:
        self._reserve = reserve

    def map_at(self, address: int, size: int, writable: bool) -> None:
        flags = lib.MAP_PRIVATE | lib.MAP_ANONYMOUS | (0 if self._reserve else lib.MAP_NORESERVE)
        failed = -lib.map_over(address, size, writable, flags, -1, 0)
        if failed:
            raise BackingError(failed, _refusal(size, failed))


def _refusal(size: int, failed: int) -> str:
    """Say why the host refuses memory that nobody has touched yet."""
    sentence = f"the host refuses {size} bytes of memory: {reason(failed)}"
    if failed == errno.ENOMEM:
        from hostd.memory.commit import refusal

        sentence += refusal()
    return sentence
