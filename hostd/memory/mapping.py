"""One row's memory in this process: reserved, mapped, and given back when its last user is gone."""

from __future__ import annotations

import errno
from dataclasses import asdict, dataclass
from typing import Any

from hostd.memory._map import ffi, lib
from hostd.memory.backings import Backing
from hostd.memory.errors import BackingError, reason
from hostd.memory.layout import HUGE_PAGE, PAGE


@dataclass(frozen=True, slots=True)
class Options:
    """How the host treats a row's pages."""

    lock: bool = False
    """keep them in memory once they were touched (mlock2, MLOCK_ONFAULT)"""
    prefault: bool = False
    """touch them all now"""
    mergeable: bool = False
    """let KSM merge equal pages (MADV_MERGEABLE)"""
    thp: bool | None = None
    """transparent huge pages: yes, no, or as the host does by default"""

    def describe(self) -> dict[str, Any]:
        return asdict(self)


class Mapping:
    """`size` bytes of this process at `address`, between two pages that nobody can touch.

    `memory` is a cdata pointer; the mapping lives as long as it, or any buffer made of it, does.
    """

    __slots__ = ("address", "memory", "size")

    def __init__(self, backing: Backing, size: int, gpa: int, *, writable: bool) -> None:
        # Huge pages in the guest need the host's address to be the guest's, modulo the huge page.
        align = HUGE_PAGE if size >= HUGE_PAGE else PAGE
        align = max(align, backing.page_size)
        at = ffi.new("uintptr_t *")
        failed = -lib.map_reserve(size, align, gpa % align, at)
        if failed:
            raise BackingError(failed, f"the host refuses {size} bytes of addresses: {reason(failed)}")
        self.address, self.size = int(at[0]), size

        def drop(_: object, address: int = self.address, drop: Any = lib.map_drop) -> None:
            drop(address, size)

        self.memory = ffi.gc(ffi.cast("uint8_t *", self.address), drop)
        backing.map_at(self.address, size, writable)

    def name(self, name: str) -> None:
        """Name the memory in /proc/PID/smaps, if it is anonymous and the kernel can."""
        lib.map_name(self.address, self.size, name.encode(errors="replace")[:79])

    def protect(self) -> None:
        """Let nobody in this process write to it any more. Raises BackingError."""
        failed = -lib.map_protect(self.address, self.size, False)
        if failed:
            raise BackingError(failed, f"{self.size} bytes cannot be made read-only: {reason(failed)}")

    def apply(self, options: Options, *, writable: bool, private_file: bool) -> None:
        """Do what `options` say. Raises BackingError."""
        if options.thp is not None:
            advice = lib.MADV_HUGEPAGE if options.thp else lib.MADV_NOHUGEPAGE
            self._advise(advice, "transparent huge pages are not in this kernel")
        if options.mergeable:
            self._advise(lib.MADV_MERGEABLE, "KSM is not in this kernel; leave `mergeable` out")
        if options.lock:
            self._lock()
        if options.prefault:
            # Writing to a private file's pages would copy every one of them.
            touch_only = private_file or not writable
            self._advise(
                lib.MADV_POPULATE_READ if touch_only else lib.MADV_POPULATE_WRITE,
                f"{self.size} bytes cannot be touched in advance; the host lacks the memory",
            )

    def _advise(self, advice: int, sentence: str) -> None:
        failed = -lib.map_advise(self.address, self.size, advice)
        if failed:
            raise BackingError(failed, f"{sentence} ({reason(failed)})")

    def _lock(self) -> None:
        failed = -lib.map_lock(self.address, self.size)
        if not failed:
            return
        if failed not in (errno.ENOMEM, errno.EPERM, errno.EAGAIN):
            raise BackingError(failed, f"{self.size} bytes cannot be locked: {reason(failed)}")
        from resource import RLIMIT_MEMLOCK, getrlimit, setrlimit

        limit, most = getrlimit(RLIMIT_MEMLOCK)
        if limit != most:  # Anybody may go up to the hard limit.
            setrlimit(RLIMIT_MEMLOCK, (most, most))
            self._lock()
            return
        raise BackingError(
            failed,
            f"{self.size} bytes cannot be locked: RLIMIT_MEMLOCK is {limit} bytes for all of this process; "
            "raise it (`ulimit -l`, LimitMEMLOCK= in a systemd unit, memlock in /etc/security/limits.conf) "
            "or leave `lock` out",
        )
