"""Memory of this guest alone in 2 MiB pages that the host has reserved."""

from __future__ import annotations

import errno
import mmap

from hostd.memory._map import lib
from hostd.memory.backings.base import Backing, huge_page_shortage
from hostd.memory.errors import BackingError, reason
from hostd.memory.layout import HUGE_PAGE


class Hugetlb(Backing):
    """Anonymous hugetlb memory.

    The pages are reserved with the row, so a shortage shows there and not in the guest.
    """

    kind = "hugetlb"
    give_back = mmap.MADV_REMOVE

    @property
    def page_size(self) -> int:
        return HUGE_PAGE

    def map_at(self, address: int, size: int, writable: bool) -> None:
        # Shared, though nobody shares it: a private mapping's reservation would be lost to a child process.
        flags = lib.MAP_SHARED | lib.MAP_ANONYMOUS | lib.MAP_HUGETLB | lib.MAP_HUGE_2MB
        failed = -lib.map_over(address, size, writable, flags, -1, 0)
        if failed == errno.ENOMEM:
            raise BackingError(failed, huge_page_shortage(size, HUGE_PAGE))
        if failed:
            raise BackingError(failed, f"{size} bytes of huge pages cannot be mapped: {reason(failed)}")
