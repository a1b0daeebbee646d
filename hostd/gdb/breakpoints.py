"""Breakpoints and watchpoints: those written into the guest's code, and those in the processor's debug registers.

Debug registers: AMD64 Architecture Programmer's Manual, volume 2, section 13.1.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from hostd.memory import SlotTable
from hostd.memory.patching import Patches

INT3 = b"\xcc"
PAGE = 4096
DEBUG_REGISTERS = 4
LENGTHS = {1: 0, 2: 1, 8: 2, 4: 3}
"""sizes in bytes, as DR7 has them"""
DR7_FIXED = 0x600


class Kind(Enum):
    """What a point waits for, with the number that gdb's Z packets give it."""

    SOFTWARE = 0
    HARDWARE = 1
    WRITE = 2
    ACCESS = 4


CONDITIONS = {Kind.HARDWARE: 0, Kind.WRITE: 1, Kind.ACCESS: 3}
"""as DR7 has them"""
REASONS = {Kind.SOFTWARE: "swbreak:", Kind.HARDWARE: "hwbreak:", Kind.WRITE: "watch:{:x}", Kind.ACCESS: "awatch:{:x}"}
"""as a stop reply has them"""


@dataclass(frozen=True, slots=True)
class Point:
    """A breakpoint or watchpoint, at a virtual address; `size` in bytes, of a watchpoint."""

    kind: Kind
    address: int
    size: int

    def reason(self) -> str:
        """Return what a stop reply says of it."""
        return REASONS[self.kind].format(self.address)


@dataclass
class Planted:
    """A trap in the guest's code, and what was there."""

    gpa: int
    original: bytes
    kinds: set[Kind] = field(default_factory=set)


class Code:
    """The traps in a guest's code, by virtual address. No vCPU may run while they change.

    A trap is an instruction that comes out of the guest: int3, unless the host's KVM needs another.
    """

    def __init__(self, table: SlotTable, patches: Patches) -> None:
        self._table = table
        self._patches = patches
        self._planted: dict[int, Planted] = {}
        self.trap = INT3

    def __contains__(self, address: int) -> bool:
        return address in self._planted

    def __len__(self) -> int:
        return len(self._planted)

    def kind(self, address: int) -> Kind:
        """Return what the trap at `address` stands for, where it is one."""
        kinds = self._planted[address].kinds
        return Kind.SOFTWARE if Kind.SOFTWARE in kinds else Kind.HARDWARE

    def plant(self, kind: Kind, address: int, gpa: int) -> None:
        """Write a trap at `gpa`, which is the virtual `address`. Raises ValueError, BackingError."""
        if address not in self._planted:
            if gpa % PAGE + len(self.trap) > PAGE:
                raise ValueError(f"a trap at {address:#x} would reach into the next page")
            original = self._table.read(gpa, len(self.trap))
            self._patches.write(gpa, self.trap)
            self._planted[address] = Planted(gpa, original)
        self._planted[address].kinds.add(kind)

    def pull(self, kind: Kind, address: int) -> None:
        """Take a trap away, unless it still has another kind. Raises ValueError, BackingError."""
        planted = self._planted.get(address)
        if planted is None:
            return
        planted.kinds.discard(kind)
        if planted.kinds:
            return
        del self._planted[address]
        # The guest may have put other code there meanwhile.
        if self._table.read(planted.gpa, len(self.trap)) == self.trap:
            self._patches.write(planted.gpa, planted.original)
        self._patches.give_back()

    def pull_all(self) -> None:
        """Take all traps away. Raises ValueError, BackingError."""
        for address, planted in list(self._planted.items()):
            for kind in list(planted.kinds):
                self.pull(kind, address)

    def hide(self, gpa: int, data: bytes) -> bytes:
        """Return memory from `gpa` on as it would be without them."""
        shown = bytearray(data)
        for planted in self._planted.values():
            for number, byte in enumerate(planted.original):
                at = planted.gpa + number - gpa
                if 0 <= at < len(data) and shown[at] == self.trap[number]:
                    shown[at] = byte
        return bytes(shown)

    def keep(self, gpa: int, data: bytes) -> bytes:
        """Return what to write for `data` at `gpa`, with them in it; what it changes under them comes later."""
        kept = bytearray(data)
        for planted in self._planted.values():
            original = bytearray(planted.original)
            for number in range(len(original)):
                at = planted.gpa + number - gpa
                if 0 <= at < len(data):
                    original[number], kept[at] = kept[at], self.trap[number]
            planted.original = bytes(original)
        return bytes(kept)


def aligned(point: Point) -> Iterator[Point]:
    """Yield what debug registers can hold of a point: parts of 1, 2, 4 or 8 bytes, each a multiple of its size."""
    if point.kind is Kind.HARDWARE:
        yield Point(point.kind, point.address, 1)
        return
    at, end = point.address, point.address + point.size
    while at < end:
        size = next(size for size in (8, 4, 2, 1) if at % size == 0 and at + size <= end)
        yield Point(point.kind, at, size)
        at += size


def debug_registers(points: list[Point]) -> list[int]:
    """Return what DR0 to DR7 hold for at most four parts of points (`aligned`)."""
    registers = [0] * 8
    registers[7] = DR7_FIXED
    for number, point in enumerate(points):
        registers[number] = point.address
        fields = CONDITIONS[point.kind] | LENGTHS[point.size] << 2
        registers[7] |= 2 << 2 * number | fields << 16 + 4 * number
    return registers
