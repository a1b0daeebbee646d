"""The slot table: everything a guest can reach, row by row."""

from __future__ import annotations

import bisect
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from hostd.memory._map import ffi, lib
from hostd.memory.backings import Backing
from hostd.memory.errors import BackingError, SlotError, reason
from hostd.memory.layout import ADDRESS_LIMIT, HOLES, PAGE, ROM_AREA, SIZE_LIMIT
from hostd.memory.mapping import Mapping, Options

if TYPE_CHECKING:
    from hostd.kvm import Vm

Access = Literal["rw", "ro"]
KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY = 1, 2
MEMINFO = "/proc/meminfo"
LARGE = 16 << 30
"""rows from this size on are weighed against the host's memory"""


@dataclass(frozen=True, slots=True)
class Row:
    """One slot: `size` bytes at guest physical `gpa`, which are this process's memory at `hva`."""

    name: str
    gpa: int
    size: int
    access: Access
    backing: Backing = field(repr=False)
    options: Options = field(repr=False)
    index: int
    """number of the KVM slot"""
    mapping: Mapping = field(repr=False)

    @property
    def hva(self) -> int:
        return self.mapping.address

    @property
    def end(self) -> int:
        """The first guest physical address behind the row."""
        return self.gpa + self.size

    @property
    def writable(self) -> bool:
        return self.access == "rw"

    @property
    def give_back(self) -> int:
        """By which advice of madvise(2) the guest may give pages of it back to the host; 0: by none."""
        # Locked pages must stay: the host was asked to keep them.
        return self.backing.give_back if self.writable and not self.options.lock else 0

    def describe(self) -> dict[str, Any]:
        """Return the row as plain values, for a message or JSON."""
        return {
            "name": self.name,
            "gpa": self.gpa,
            "size": self.size,
            "access": self.access,
            "hva": self.hva,
            "slot": self.index,
            "options": self.options.describe(),
            **self.backing.describe(),
        }


class SlotTable:
    """The rows of one guest, in the order of their addresses. A context manager.

    `vm` None: the table has memory but no guest. Rows may be added and removed while the guest runs, from
    any thread.
    """

    def __init__(self, vm: Vm | None) -> None:
        self._vm = vm
        self._rows: list[Row] = []
        self._lock = threading.Lock()
        self._c_rows = ffi.gc(ffi.new("struct slot_rows *"), lib.rows_close)
        failed = -lib.rows_open(self._c_rows)
        if failed:
            raise BackingError(failed, f"the slot table cannot be made: {reason(failed)}")

    def close(self) -> None:
        """Remove every row."""
        for row in reversed(list(self._rows)):
            self.remove(row)

    def __enter__(self) -> SlotTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Row]:
        return iter(list(self._rows))

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def c_rows(self) -> int:
        """Address of the table's `struct slot_rows` (rows.h), good as long as the table."""
        return int(ffi.cast("uintptr_t", self._c_rows))

    # --- rows -----------------------------------------------------------------------------------------------

    def add(
        self,
        gpa: int,
        size: int,
        backing: Backing,
        *,
        name: str,
        access: Access = "rw",
        lock: bool = False,
        prefault: bool = False,
        mergeable: bool = False,
        thp: bool | None = None,
    ) -> Row:
        """Give the guest `size` bytes of `backing` at guest physical `gpa`.

        `access` "ro": neither the guest nor this process can write to it. For the other options see
        `Options`. Raises SlotError (address, size, overlap), BackingError (the host can't), KvmError.
        """
        options = Options(lock, prefault, mergeable, thp)
        with self._lock, _told(name, gpa):
            self._check(gpa, size, access, backing.page_size)
            if self._vm is not None and size >= LARGE:
                _check_kernel_memory(size)
            writable = access == "rw"
            mapping = Mapping(backing, size, gpa, writable=writable)
            mapping.name(name)
            mapping.apply(options, writable=writable, private_file=backing.kind == "image")
            return self._enter(Row(name, gpa, size, access, backing, options, self._free_index(), mapping))

    def add_mapped(self, gpa: int, backing: Backing, mapping: Mapping, *, name: str, access: Access) -> Row:
        """Add a row whose memory the caller has mapped and filled.

        Raises SlotError, BackingError, KvmError.
        """
        with self._lock, _told(name, gpa):
            self._check(gpa, mapping.size, access, backing.page_size)
            return self._enter(Row(name, gpa, mapping.size, access, backing, Options(), self._free_index(), mapping))

    def remove(self, row: Row) -> None:
        """Take a row away from the guest, which may be running: its next access is an Mmio exit.

        The memory itself goes when the last memoryview of it does. Raises SlotError when the row is not in
        the table.
        """
        with self._lock:
            if row not in self._rows:
                raise SlotError(f"slot {row.name} at {row.gpa:#x} is not in the table")
            if self._vm is not None and self._vm.fd >= 0:  # A closed VM has no slots to delete.
                self._vm.delete_slot(row.index)
            lib.rows_remove(self._c_rows, row.gpa)
            self._rows.remove(row)

    def log_dirty(self, on: bool) -> None:
        """Have KVM note which pages of rows the guest writes, or stop that; it may be running. Raises KvmError."""
        assert self._vm is not None, "there is no guest that writes"
        with self._lock:
            for row in self._rows:
                if row.writable:
                    flags = KVM_MEM_LOG_DIRTY_PAGES if on else 0
                    self._vm.set_slot(row.index, row.gpa, row.size, row.hva, flags)

    def dirty_pages(self) -> dict[str, int]:
        """Return how many pages of each writable row the guest has written since `log_dirty`. Raises KvmError."""
        assert self._vm is not None, "there is no guest that writes"
        with self._lock:
            logs = [(row.name, self._vm.dirty_log(row.index, row.size // PAGE)) for row in self._rows if row.writable]
        pages = dict.fromkeys((name for name, _ in logs), 0)
        for name, log in logs:
            pages[name] += int.from_bytes(log, "little").bit_count()
        return pages

    def _enter(self, row: Row) -> Row:
        if self._vm is not None:
            flags = 0 if row.writable else KVM_MEM_READONLY
            self._vm.set_slot(row.index, row.gpa, row.size, row.hva, flags)
        page, memory = row.backing.page_size, row.mapping.memory
        c_row = ffi.new("struct slot_row *", (row.gpa, row.size, memory, row.writable, row.give_back, page))
        failed = -lib.rows_insert(self._c_rows, c_row)
        if failed:
            if self._vm is not None:
                self._vm.delete_slot(row.index)
            raise BackingError(failed, f"the slot table cannot grow: {reason(failed)}")
        bisect.insort(self._rows, row, key=lambda r: r.gpa)
        return row

    def _free_index(self) -> int:
        used = {row.index for row in self._rows}
        return next(index for index in range(len(used) + 1) if index not in used)

    def _check(self, gpa: int, size: int, access: str, page: int) -> None:
        if access not in ("rw", "ro"):
            raise SlotError(f'its access is {access!r}; it can be "rw" or "ro"')
        if size <= 0:
            raise SlotError(f"its size is {size}; a row has at least one page of {page} bytes")
        if gpa < 0 or gpa % page or size % page:
            raise SlotError(f"its address and its size ({size}) must be multiples of {page} bytes")
        if size > SIZE_LIMIT:
            raise SlotError(f"its size {size} is more than KVM gives one slot ({SIZE_LIMIT} bytes)")
        if gpa + size > ADDRESS_LIMIT:
            raise SlotError(f"it ends at {gpa + size:#x}, above the last guest physical address {ADDRESS_LIMIT - 1:#x}")
        in_rom = access == "ro" and ROM_AREA.start <= gpa and gpa + size <= ROM_AREA.stop
        for hole_name, hole in () if in_rom else HOLES.items():
            if gpa < hole.stop and hole.start < gpa + size:
                raise SlotError(
                    f"its {size} bytes reach into the {hole_name} ({hole.start:#x} to {hole.stop:#x}), "
                    "which is never memory; end the row before it or begin behind it"
                )
        for row in self._rows:
            if gpa < row.end and row.gpa < gpa + size:
                raise SlotError(
                    f"its {size} bytes overlap slot {row.name} ({row.gpa:#x} to {row.end:#x}); move one of them"
                )

    # --- memory ---------------------------------------------------------------------------------------------

    def find(self, gpa: int) -> Row | None:
        """Return the row that holds guest address `gpa`, if any."""
        at = bisect.bisect_right(self._rows, gpa, key=lambda r: r.gpa) - 1
        return self._rows[at] if at >= 0 and gpa < self._rows[at].end else None

    def hva(self, gpa: int, size: int = 1) -> int:
        """Return where the guest's `size` bytes at `gpa` are in this process.

        Raises SlotError unless one row has them.
        """
        row = self._holding(gpa, size)
        return row.hva + gpa - row.gpa

    def view(self, gpa: int, size: int, writable: bool = True) -> memoryview:
        """Return the guest's `size` bytes at `gpa`, themselves and no copy; numpy.frombuffer takes it.

        It stays good after the row was removed, though no longer the guest's. Raises SlotError unless one
        row holds them all, or when `writable` and the row is not.
        """
        row = self._holding(gpa, size)
        if writable and not row.writable:
            raise SlotError(f"slot {row.name} at {row.gpa:#x} is read-only; ask for a view that is not writable")
        offset = gpa - row.gpa
        view = memoryview(ffi.buffer(row.mapping.memory, row.size))[offset : offset + size]
        return view if writable else view.toreadonly()

    def read(self, gpa: int, size: int) -> bytes:
        """Return a copy of the guest's `size` bytes at `gpa`, which may lie in several rows.

        Raises SlotError.
        """
        return b"".join(bytes(self.view(at, count, writable=False)) for at, count in self._pieces(gpa, size))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` at guest address `gpa`, all or nothing; it may lie in several rows.

        Raises SlotError.
        """
        source = memoryview(data).cast("B")
        pieces = [(at - gpa, self.view(at, count)) for at, count in self._pieces(gpa, len(source))]
        for offset, view in pieces:
            view[:] = source[offset : offset + len(view)]

    def _holding(self, gpa: int, size: int) -> Row:
        row = self.find(gpa)
        if size < 0 or row is None or gpa + size > row.end:
            where = "in no slot" if row is None else f"not all in slot {row.name} ({row.gpa:#x} to {row.end:#x})"
            raise SlotError(f"guest address {gpa:#x}: {size} bytes there are {where}")
        return row

    def _pieces(self, gpa: int, size: int) -> Iterator[tuple[int, int]]:
        while size > 0:
            row = self.find(gpa)
            if row is None:
                raise SlotError(f"guest address {gpa:#x} is in no slot ({size} more bytes were asked for)")
            count = min(size, row.end - gpa)
            yield gpa, count
            gpa, size = gpa + count, size - count


def _check_kernel_memory(size: int) -> None:
    """Reject a row whose bookkeeping in the kernel alone would starve the host."""
    from hostd.memory.kernel_side import table_bytes

    needed = table_bytes(size)
    with open(MEMINFO) as file:
        available = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable")) * 1024
    if needed > available // 2:
        raise SlotError(
            f"its size {size} is more than this host allows: KVM may keep {needed} bytes of tables for it, and "
            f"{available} bytes are free; make the row smaller"
        )


@contextlib.contextmanager
def _told(name: str, gpa: int) -> Iterator[None]:
    """Put the row's name and address before what is wrong with it."""
    try:
        yield
    except SlotError as error:
        raise SlotError(f"slot {name} at {gpa:#x}: {error}") from None
    except BackingError as error:
        raise BackingError(error.errno or 0, f"slot {name} at {gpa:#x}: {error}") from None
