"""A virtio driver for tests: it knows the specification (virtio 1.2), the rings, and a machine without a VM."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hostd.boot.address_map import Span
from hostd.boot.linux import layout
from hostd.devices._devices import ffi, lib
from hostd.devices.machine import Machine
from hostd.memory import Anonymous, SlotTable

GIB = 1 << 30
LOW = 640 << 10
"""bytes of memory at 0, in two adjacent rows"""
ROW = 512 << 10
RINGS, DATA = 0x1000, 0x40000
RING_INDIRECT_DESC, RING_EVENT_IDX, VERSION_1 = 28, 29, 32
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 64
NEXT, WRITE, INDIRECT = 1, 2, 4
COMMON, NOTIFY, ISR, DEVICE, WINDOW = 1, 2, 3, 4, 5


@contextmanager
def bench() -> Iterator[tuple[Machine, SlotTable]]:
    """A machine without a VM, and its memory."""
    with SlotTable(None) as table:
        table.add(0, ROW, Anonymous(), name="ram.0")
        table.add(ROW, LOW - ROW, Anonymous(), name="ram.1")
        with Machine(None, table, Span(64 * GIB, 128 * GIB)) as machine:
            yield machine, table


def access(machine: Machine, address: int, size: int, value: int | None = None) -> int:
    """Read (or write) `size` bytes at a physical address that is no memory."""
    data = ffi.new("uint64_t *", value or 0)
    lib.machine_access(machine.c, lib.MACHINE_MMIO, address, data, size, value is not None)
    return int(data[0]) & ((1 << size * 8) - 1)


@dataclass(slots=True)
class Queue:
    """A queue as its driver keeps it."""

    size: int
    desc: int
    avail: int
    used: int
    notify: int
    next_desc: int = 0
    next_avail: int = 0
    seen: int = 0


class Driver:
    """A driver of the device in `slot`, which it finds by its capabilities alone."""

    def __init__(self, machine: Machine, table: SlotTable, slot: int) -> None:
        self.machine, self.table, self.slot = machine, table, slot
        self.queues: list[Queue] = []
        self.features = 0
        self.heap = RINGS
        self.config(4, 2, 6)
        self.at: dict[int, tuple[int, int]] = {}
        at = self.config(0x34, 1)
        while at:
            if self.config(at, 1) == 9:
                kind, bar = self.config(at + 3, 1), self.config(at + 4, 1)
                if kind == NOTIFY:
                    self.multiplier = self.config(at + 16, 4)
                if kind == WINDOW:
                    self.window = at
                else:
                    base = self.config(0x10 + 4 * bar, 4) & ~0xF
                    self.at[kind] = base + self.config(at + 8, 4), self.config(at + 12, 4)
            elif self.config(at, 1) == 0x11:
                self.msix = at
            at = self.config(at + 1, 1)

    def config(self, offset: int, size: int, value: int | None = None) -> int:
        """Read (or write) configuration space."""
        return access(self.machine, layout.ECAM.start + (self.slot << 15) + offset, size, value)

    def common(self, offset: int, size: int, value: int | None = None) -> int:
        return access(self.machine, self.at[COMMON][0] + offset, size, value)

    def device(self, offset: int, size: int, value: int | None = None) -> int:
        return access(self.machine, self.at[DEVICE][0] + offset, size, value)

    @property
    def status(self) -> int:
        return self.common(20, 1)

    @status.setter
    def status(self, value: int) -> None:
        self.common(20, 1, value)

    @property
    def offered(self) -> int:
        both = 0
        for half in range(2):
            self.common(0, 4, half)
            both |= self.common(4, 4) << 32 * half
        return both

    def open(self, features: int = ~0, size: int = 16, start: bool = True) -> int:
        """Bring the device up (3.1.1) with `features` of those it offers; return the status."""
        self.status = 0
        assert self.status == 0
        self.queues = []
        self.heap = RINGS
        self.status = ACKNOWLEDGE
        self.status = ACKNOWLEDGE | DRIVER
        self.features = self.offered & features
        for half in range(2):
            self.common(8, 4, half)
            self.common(12, 4, self.features >> 32 * half & 0xFFFFFFFF)
        self.status = ACKNOWLEDGE | DRIVER | FEATURES_OK
        if not self.status & FEATURES_OK:
            return self.status
        for index in range(self.common(18, 2)):
            self.queues.append(self._queue(index, size))
        if start:
            self.status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK
        return self.status

    def _take(self, size: int, align: int) -> int:
        at = -(-self.heap // align) * align
        self.heap = at + size
        return at

    def _queue(self, index: int, size: int) -> Queue:
        self.common(22, 2, index)
        size = min(size, self.common(24, 2))
        notify = self.at[NOTIFY][0] + self.common(30, 2) * self.multiplier
        desc, avail, used = self._take(16 * size, 16), self._take(6 + 2 * size, 2), self._take(6 + 8 * size, 4)
        self.table.write(desc, bytes(self.heap - desc))
        self.common(24, 2, size)
        self.common(26, 2, index + 1)
        for offset, address in ((32, desc), (40, avail), (48, used)):
            self.common(offset, 4, address & 0xFFFFFFFF)
            self.common(offset + 4, 4, address >> 32)
        self.common(28, 2, 1)
        return Queue(size, desc, avail, used, notify)

    def has(self, feature: int) -> bool:
        return bool(self.features >> feature & 1)

    # --- buffers --------------------------------------------------------------------------------------------

    def post(self, index: int, *buffers: tuple[int, int, bool], indirect: int | None = None) -> int:
        """Make a chain of (address, size, device writes it) available; return its head. `indirect`: a table there."""
        queue = self.queues[index]
        head = queue.next_desc % queue.size
        if indirect is not None:
            table = b"".join(
                struct.pack("<QIHH", at, size, write * WRITE | (i + 1 < len(buffers)) * NEXT, i + 1)
                for i, (at, size, write) in enumerate(buffers)
            )
            self.table.write(indirect, table)
            self.desc(index, head, indirect, len(table), INDIRECT)
            queue.next_desc += 1
        for i, (at, size, write) in enumerate(buffers if indirect is None else ()):
            more = i + 1 < len(buffers)
            self.desc(
                index, (head + i) % queue.size, at, size, write * WRITE | more * NEXT, (head + i + 1) % queue.size
            )
            queue.next_desc += 1
        self.publish(index, head)
        return head

    def desc(self, index: int, number: int, at: int, size: int, flags: int = 0, following: int = 0) -> None:
        """Write one descriptor."""
        self.table.write(self.queues[index].desc + 16 * number, struct.pack("<QIHH", at, size, flags, following))

    def publish(self, index: int, head: int) -> None:
        queue = self.queues[index]
        self.table.write(queue.avail + 4 + 2 * (queue.next_avail % queue.size), struct.pack("<H", head))
        queue.next_avail += 1
        self.table.write(queue.avail + 2, struct.pack("<H", queue.next_avail & 0xFFFF))

    def kick(self, index: int) -> None:
        access(self.machine, self.queues[index].notify, 2, index)

    def used(self, index: int) -> list[tuple[int, int]]:
        """Return what the device has used since the last call, as (head, bytes written)."""
        queue = self.queues[index]
        now = struct.unpack("<H", self.table.read(queue.used + 2, 2))[0]
        found = []
        while queue.seen & 0xFFFF != now:
            slot = queue.seen % queue.size
            found.append(struct.unpack("<II", self.table.read(queue.used + 4 + 8 * slot, 8)))
            queue.seen += 1
        return found

    def serve(self) -> None:
        """Let the device serve what is ready, in this thread."""
        for _ in range(1000):
            if lib.virtio_pci_once(self.machine.c, self.slot, 0) <= 0:
                return

    def ask(self, index: int, *buffers: tuple[int, int, bool], indirect: int | None = None) -> int:
        """Post one chain, let it be served, and return the bytes written to it."""
        head = self.post(index, *buffers, indirect=indirect)
        self.kick(index)
        self.serve()
        [(used, written)] = self.used(index)
        assert used == head
        return written


def until(driver: Driver, holds: Callable[[], object]) -> None:
    """Serve until something holds; ten seconds at most."""
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold"
        driver.serve()
        time.sleep(0.001)


def messages(machine: Machine) -> list[tuple[str, int, int]]:
    """Return the interrupts asked for so far: ("msi", address, data) or ("line", gsi, level)."""
    recorder = machine.c.recorder
    return [
        ("msi", record.address, record.number) if record.kind == 1 else ("line", record.number, record.on)
        for record in (recorder.records[i] for i in range(recorder.count))
        if record.kind in (1, 2)
    ]
