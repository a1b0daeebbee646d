"""Memory of this guest that another process can be given."""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Any

from hostd.memory.backings.base import FileBacking
from hostd.memory.errors import BackingError, reason
from hostd.memory.layout import HUGE_PAGE

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
"""who is given the file can't cut pages off from under the guest"""


class Shared(FileBacking):
    """A part of a `RamFile`, mapped MAP_SHARED: who is given the file's descriptor sees what the guest writes."""

    kind = "shared"
    give_back = mmap.MADV_REMOVE
    shared = True

    def __init__(self, descriptor: int, offset: int = 0) -> None:
        super().__init__(descriptor, offset)
        self.descriptor = descriptor

    @property
    def source(self) -> str:
        return "memfd"


class RamFile:
    """A file of `size` bytes that has no name and takes memory where it is touched; `huge`: in reserved 2 MiB pages.

    The owner keeps it open as long as the file is handed out; mappings do without. Raises BackingError.
    """

    def __init__(self, size: int, *, huge: bool = False) -> None:
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | (os.MFD_HUGETLB | os.MFD_HUGE_2MB if huge else 0)
        if huge:
            size = -(-size // HUGE_PAGE) * HUGE_PAGE
        self.descriptor = -1
        try:
            self.descriptor = os.memfd_create("hostd-ram", flags)
            os.ftruncate(self.descriptor, size)
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, SEALS)
        except OSError as error:
            self.close()
            code = error.errno or 0
            raise BackingError(code, f"the host refuses {size} bytes of shared memory: {reason(code)}") from None

    def at(self, offset: int) -> Shared:
        """Return the backing of a row whose first byte is the file's at `offset`."""
        return Shared(self.descriptor, offset)

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> RamFile:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
