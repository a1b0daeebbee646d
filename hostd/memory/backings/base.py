"""What every backing has: a kind, a page size, and how it is mapped."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Any, ClassVar

from hostd.memory._map import lib
from hostd.memory.errors import BackingError, SlotError, reason
from hostd.memory.layout import PAGE


class Backing:
    """Where a row's bytes come from. Subclasses say so; the slot table maps them."""

    kind: ClassVar[str]
    shared: ClassVar[bool] = False
    """another process that maps the same source sees what the guest writes"""

    give_back: ClassVar[int] = 0
    """madvise(2) by which pages go back to the host, their content lost; 0: they aren't one guest's alone"""

    @property
    def page_size(self) -> int:
        """Bytes that the row's address and size must be multiples of."""
        return PAGE

    def map_at(self, address: int, size: int, writable: bool) -> None:
        """Map `size` bytes at `address` of this process, inside a reservation.

        Raises SlotError, BackingError.
        """
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Return what a row's description says of its backing: plain values."""
        return {"backing": self.kind, "source": None, "offset": 0}


class FileBacking(Backing):
    """A file from an offset on, given by path or by descriptor (which stays the caller's)."""

    def __init__(self, file: int | str | os.PathLike[str], offset: int = 0) -> None:
        self.file = file if isinstance(file, int) else os.fspath(file)
        self.offset = offset
        self._page_size: int | None = None

    @property
    def page_size(self) -> int:
        if self._page_size is None:
            with self._opened(False) as fd:
                found = lib.map_huge_page(fd)
            if found < 0:
                raise BackingError(-found, f"{self.source} cannot be mapped: {reason(-found)}")
            self._page_size = max(found, PAGE)
        return self._page_size

    @property
    def source(self) -> str:
        """The file's path, as well as it can be told."""
        if isinstance(self.file, str):
            return self.file
        try:
            return os.readlink(f"/proc/self/fd/{self.file}")
        except OSError:
            return f"descriptor {self.file}"

    def map_at(self, address: int, size: int, writable: bool) -> None:
        with self._opened(writable and self.shared) as fd:
            self._check(fd, size)
            flags = lib.MAP_SHARED if self.shared else lib.MAP_PRIVATE | lib.MAP_NORESERVE
            failed = -lib.map_over(address, size, writable, flags, fd, self.offset)
        if failed == errno.EACCES and writable:
            raise BackingError(failed, f"{self.source} is open for reading only; map it read-only or open it for both")
        if failed == errno.ENODEV:
            raise BackingError(failed, f"{self.source} cannot be mapped; name a file or device that can")
        if failed == errno.ENOMEM and self.page_size > PAGE:
            raise BackingError(failed, huge_page_shortage(size, self.page_size))
        if failed:
            raise BackingError(failed, f"{size} bytes of {self.source} cannot be mapped: {reason(failed)}")

    def describe(self) -> dict[str, Any]:
        return {"backing": self.kind, "source": self.source, "offset": self.offset}

    @contextlib.contextmanager
    def _opened(self, writable: bool) -> Iterator[int]:
        if isinstance(self.file, int):
            yield self.file
            return
        try:
            fd = os.open(self.file, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        except OSError as error:
            code = error.errno or 0
            what = "reading and writing" if writable else "reading"
            raise BackingError(code, f"{self.file} cannot be opened for {what}: {reason(code)}") from None
        try:
            yield fd
        finally:
            os.close(fd)

    def _check(self, fd: int, size: int) -> None:
        """Reject what would end in a SIGBUS: a page that begins behind the file's end."""
        if self.offset < 0 or self.offset % self.page_size:
            raise SlotError(f"offset {self.offset:#x} in {self.source} is no multiple of {self.page_size} bytes")
        found = os.fstat(fd)
        pages = -(-found.st_size // self.page_size) * self.page_size
        if stat.S_ISREG(found.st_mode) and self.offset + size > pages:
            raise SlotError(
                f"{self.source} has {found.st_size} bytes, too few for {size} at offset {self.offset:#x}; "
                "make the row smaller or the file larger"
            )


def huge_page_shortage(size: int, page_size: int) -> str:
    """Return the sentence for `size` bytes that the host has not enough huge pages for."""
    pages, kib = -(-size // page_size), page_size >> 10
    try:
        with open(f"/sys/kernel/mm/hugepages/hugepages-{kib}kB/free_hugepages") as file:
            free = f"the host has {int(file.read())} free"
    except OSError:
        free = "the host has none of that size"
    return (
        f"{pages} huge pages of {kib} KiB are needed and {free}; reserve more with "
        f"`sysctl vm.nr_hugepages=N` as root, or use ordinary memory"
    )
