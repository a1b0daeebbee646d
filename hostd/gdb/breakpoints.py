"""Breakpoints and watchpoints: those written into the guest's code, and those in the processor's debug registers.

Debug registers: AMD64 Architecture Programmer's Manual, volume 2, section 13.1.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from hostd.memory.patching import Patches

INT3 = 0xCC
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
    """An int3 in the guest's code, and what was there."""

    gpa: int
    original: int
    kinds: set[Kind] = field(default_factory=set)


class Code:
    """The int3s in a guest's code, by virtual address. No vCPU may run while they change."""

    def __init__(self, patches: Patches) -> None:
        self._patches = patches
        self._planted: dict[int, Planted] = {}

    def __contains__(self, address: int) -> bool:
        return address in self._planted

    def __len__(self) -> int:
        return len(self._planted)

    def kind(self, address: int) -> Kind:
        """Return what the int3 at `address` stands for, where it is one."""
        kinds = self._planted[address].kinds
        return Kind.SOFTWARE if Kind.SOFTWARE in kinds else Kind.HARDWARE

    def plant(self, kind: Kind, address: int, gpa: int, original: int) -> None:
        """Write an int3 at `gpa`, where `original` is. Raises SlotError, BackingError."""
        if address not in self._planted:
            self._patches.write(gpa, bytes([INT3]))
            self._planted[address] = Planted(gpa, original)
        self._planted[address].kinds.add(kind)

    def pull(self, kind: Kind, address: int, now: int) -> None:
        """Take an int3 away, unless it still has another kind; `now` is what is there: code may have been replaced."""
        planted = self._planted.get(address)
        if planted is None:
            return
        planted.kinds.discard(kind)
        if planted.kinds:
            return
        del self._planted[address]
        if now == INT3:
            self._patches.write(planted.gpa, bytes([planted.original]))
        self._patches.give_back()

    def points(self) -> list[tuple[Kind, int, int]]:
        """Return all of them: kind, virtual and physical address."""
        return [(kind, at, planted.gpa) for at, planted in self._planted.items() for kind in planted.kinds]

    def hide(self, gpa: int, data: bytes) -> bytes:
        """Return memory from `gpa` on as it would be without them."""
        shown = bytearray(data)
        for planted in self._planted.values():
            if gpa <= planted.gpa < gpa + len(data) and shown[planted.gpa - gpa] == INT3:
                shown[planted.gpa - gpa] = planted.original
        return bytes(shown)

    def keep(self, gpa: int, data: bytes) -> bytes:
        """Return what to write for `data` at `gpa`, with them in it; what it changes under them comes later."""
        kept = bytearray(data)
        for planted in self._planted.values():
            if gpa <= planted.gpa < gpa + len(data):
                planted.original = kept[planted.gpa - gpa]
                kept[planted.gpa - gpa] = INT3
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
