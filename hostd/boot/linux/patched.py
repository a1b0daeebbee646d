"""Sharing a kernel's code again after it has patched itself.

While Linux starts it rewrites some 70 % of its code pages (return thunks, ftrace's calls, lock prefixes, static calls,
...: docs/linux-boot.md), and each becomes the guest's own. Guests of one kernel write the same bytes, as hostd loads a
kernel where it was linked. So the code as it is after the start is kept in a file; a guest whose page equals the file's
gives its own page back and maps the file's, privately as before.

No trust is in this: a page is taken from the file only where the guest's own holds the same bytes at that moment, so
what another guest wrote there can't matter. Only code goes into the file, never data.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from hostd.boot.linux.kernel import Kernel
from hostd.memory import BackingError, SlotTable
from hostd.memory._map import lib
from hostd.memory.layout import PAGE

MAX_VARIANTS = 8
"""files of one kernel: with one vCPU or more, on other CPUs, with other command lines it patches itself otherwise"""
GOOD = 0.9
"""a variant is good when it has this part of a guest's changed pages; with none that is, one more is made"""
PRESENT, FILE_PAGE = 1 << 63, 1 << 61
"""bits of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst)"""


@dataclass(frozen=True, slots=True)
class Sharing:
    """What became of a guest's code pages: all of them, those that it had changed, those of these now shared again."""

    pages: int
    changed: int
    shared: int

    def describe(self) -> dict[str, int]:
        return asdict(self)


def own_code(table: SlotTable, kernel: Kernel) -> None:
    """Copy all of the guest's code pages for it now, in one go, as most of them it will write anyway.

    Meant for a thread beside the guest's start: a page that the kernel reads, then writes costs three faults of KVM's
    (5,100 of some 14,700 until init), a copied one costs one. `share_code` gives back what it need not have had. A
    shortage of memory is no error here: the guest's own writes would meet it.
    """
    span = _span(table, kernel)
    if span is not None:
        lib.map_advise(table.hva(*span), span[1], lib.MADV_POPULATE_WRITE)


def share_code(
    table: SlotTable, kernel: Kernel, folder: Path, paused: Callable[[], AbstractContextManager[object]]
) -> Sharing:
    """Share the patched code pages of the guest of `table` with all guests that patched theirs alike.

    Call it once the guest has started; `folder` is the kernel cache. `paused()` is a context in which no vCPU runs: a
    write between comparing a page and mapping the file's would be lost. It takes some milliseconds. Raises OSError
    (BackingError among them).
    """
    span = _span(table, kernel)
    if span is None:
        return Sharing(0, 0, 0)
    code = _Code(table.hva(*span), table.view(*span, writable=False))
    with _locked(folder):
        fd = _variant(code, folder, _key(kernel))
    if fd < 0:
        return Sharing(code.pages, len(code.changed()), 0)
    try:
        with _mapped(fd, code.size) as variant, paused():
            changed = set(code.changed())
            shared = [number for number in range(code.pages) if code.equals(number, variant)]
            for first, last in _runs(shared):
                code.map(first, last, fd)
    finally:
        os.close(fd)
    code.touch()
    return Sharing(code.pages, len(changed), len(changed.intersection(shared)))


def _span(table: SlotTable, kernel: Kernel) -> tuple[int, int] | None:
    """Return address and size of the guest's code in whole pages, as far as one row has it; None: there is none."""
    start, row = kernel.code[0] // PAGE * PAGE, table.find(kernel.code[0])
    end = min(-(-kernel.code[1] // PAGE) * PAGE, row.end) if row else 0
    return (start, end - start) if start < end else None


class _Code:
    """A guest's code pages: `view` of them, which lies at `hva` of this process."""

    def __init__(self, hva: int, view: memoryview) -> None:
        self.hva, self.view, self.size = hva, view, len(view)
        self.pages = self.size // PAGE

    def page(self, number: int) -> bytes:
        return bytes(self.view[number * PAGE : (number + 1) * PAGE])

    def equals(self, number: int, other: mmap.mmap) -> bool:
        return self.page(number) == other[number * PAGE : (number + 1) * PAGE]

    def changed(self) -> list[int]:
        """Return the numbers of the pages that are this process's own and no file's."""
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            entries = os.pread(file.fileno(), self.pages * 8, self.hva // PAGE * 8)
        words = struct.unpack(f"<{self.pages}Q", entries)
        return [number for number, word in enumerate(words) if word & PRESENT and not word & FILE_PAGE]

    def map(self, first: int, last: int, fd: int) -> None:
        """Map pages [first, last) of the file `fd`, privately, in place of the guest's."""
        size, flags = (last - first) * PAGE, lib.MAP_PRIVATE | lib.MAP_NORESERVE
        failed = -lib.map_over(self.hva + first * PAGE, size, True, flags, fd, first * PAGE)
        if failed:
            raise BackingError(failed, f"{size} bytes of patched kernel code cannot be mapped: {os.strerror(failed)}")

    def touch(self) -> None:
        """Map all pages now, so that they count as this guest's too; that it may fail is no harm."""
        lib.map_advise(self.hva, self.size, lib.MADV_POPULATE_READ)


def _variant(code: _Code, folder: Path, key: str) -> int:
    """Return a descriptor of the best variant for `code`, or -1; makes one where none is good and there is room."""
    changed = code.changed()
    best, best_count = -1, -1
    for number in range(MAX_VARIANTS):
        path = folder / f"{key}.{number}.code"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            _make(code, path)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        count = _matches(code, changed, fd)
        if count > best_count:
            best, best_count, fd = fd, count, best
        if fd >= 0:
            os.close(fd)
        if best_count >= GOOD * len(changed):
            break
    return best


def _matches(code: _Code, changed: Iterable[int], fd: int) -> int:
    """Return how many of the `changed` pages the file `fd` has; -1 if it is no file of this code."""
    if os.fstat(fd).st_size != code.size:
        return -1
    with _mapped(fd, code.size) as variant:
        return sum(code.equals(number, variant) for number in changed)


def _make(code: _Code, path: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".part", delete=False) as out:
        try:
            out.write(code.view)
            out.flush()
            os.chmod(out.name, 0o444)
            os.replace(out.name, path)
        except BaseException:
            os.unlink(out.name)
            raise


@contextlib.contextmanager
def _mapped(fd: int, size: int) -> Iterator[mmap.mmap]:
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapped:
        yield mapped


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one guest at a time look for a variant: two that make the same one would share nothing."""
    fd = os.open(folder / "code.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _key(kernel: Kernel) -> str:
    found = os.stat(kernel.path)
    what = (kernel.path, kernel.code, found.st_size, found.st_mtime_ns)
    return hashlib.sha256(repr(what).encode()).hexdigest()[:32]


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the runs of consecutive numbers as [first, last)."""
    first = 0
    for at, number in enumerate(numbers):
        if at + 1 == len(numbers) or numbers[at + 1] != number + 1:
            yield numbers[first], number + 1
            first = at + 1
