"""The guest's side of a machine without a VM: what a Linux driver does with ports, configuration space and BARs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from hostd.boot.address_map import Span
from hostd.boot.linux import layout
from hostd.devices._devices import ffi, lib
from hostd.devices.machine import Machine

PCI64 = Span(64 << 30, 128 << 30)
COMMAND, STATUS, BAR0, CAPABILITIES = 0x04, 0x06, 0x10, 0x34
MEMORY, MASTER, NO_INTX = 0x2, 0x4, 0x400
KINDS = {1: "msi", 2: "line", 3: "route", 4: "irqfd", 5: "doorbell"}


class Call(NamedTuple):
    """What the machine asked of KVM."""

    kind: str
    on: int
    number: int
    address: int
    fd: int


@dataclass(frozen=True)
class Bar:
    number: int
    address: int
    size: int
    wide: bool
    prefetch: bool


class Driver:
    """Accesses the devices of `machine` as its guest would."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._buffer = ffi.new("uint8_t[8]")
        self._seen = 0
        self.ups = 0

    def _access(self, space: int, address: int, size: int, value: int | None = None) -> int:
        self._buffer[0:8] = (value or 0).to_bytes(8, "little")
        self.ups += lib.machine_access(self.machine.c, space, address, self._buffer, size, value is not None)
        return int.from_bytes(bytes(self._buffer[0:size]), "little")

    def inp(self, port: int, size: int = 1) -> int:
        return self._access(lib.MACHINE_PORTS, port, size)

    def outp(self, port: int, value: int, size: int = 1) -> None:
        self._access(lib.MACHINE_PORTS, port, size, value)

    def read(self, address: int, size: int = 4) -> int:
        return self._access(lib.MACHINE_MMIO, address, size)

    def write(self, address: int, value: int, size: int = 4) -> None:
        self._access(lib.MACHINE_MMIO, address, size, value)

    # --- configuration space, by ECAM ---

    def config(self, slot: int, register: int, size: int = 4) -> int:
        return self.read(layout.ECAM.start + (slot << 15) + register, size)

    def set_config(self, slot: int, register: int, value: int, size: int = 4) -> None:
        self.write(layout.ECAM.start + (slot << 15) + register, value, size)

    def command(self, slot: int, value: int) -> None:
        self.set_config(slot, COMMAND, value, 2)

    def bars(self, slot: int) -> list[Bar]:
        """Size the BARs as Linux does (drivers/pci/probe.c's order of accesses): decoding off, all ones, restore."""
        command = self.config(slot, COMMAND, 2)
        self.command(slot, command & ~MEMORY)
        found, number = [], 0
        while number < 6:
            register = BAR0 + 4 * number
            before = self.config(slot, register)
            self.set_config(slot, register, 0xFFFFFFFF)
            mask = self.config(slot, register)
            self.set_config(slot, register, before)
            wide = before & 6 == 4
            address = before & ~0xF
            mask &= ~0xF
            if wide:
                high = self.config(slot, register + 4)
                self.set_config(slot, register + 4, 0xFFFFFFFF)
                mask |= self.config(slot, register + 4) << 32
                self.set_config(slot, register + 4, high)
                address |= high << 32
            else:
                mask |= 0xFFFFFFFF << 32
            if mask & (0xFFFFFFFFFFFFFFFF if wide else 0xFFFFFFFF):
                found.append(Bar(number, address, (~mask & 0xFFFFFFFFFFFFFFFF) + 1, wide, bool(before & 8)))
            number += 2 if wide else 1
        self.command(slot, command)
        return found

    def bar(self, slot: int, number: int) -> int:
        return next(bar.address for bar in self.bars(slot) if bar.number == number)

    def capability(self, slot: int, wanted: int) -> int:
        """Return where the capability is; fails a test that walks in a circle."""
        assert self.config(slot, STATUS, 2) & 0x10
        at = self.config(slot, CAPABILITIES, 1)
        for _ in range(48):
            if not at or self.config(slot, at, 1) == wanted:
                return at
            at = self.config(slot, at + 1, 1)
        raise AssertionError("the list of capabilities has no end")

    # --- what KVM was asked ---

    def calls(self, *kinds: str) -> list[Call]:
        """Return what was asked since the last time, only of these kinds if there are any."""
        recorder = self.machine.c.recorder
        fresh = range(self._seen, recorder.count)
        self._seen = recorder.count
        assert len(fresh) <= len(recorder.records)
        found = [_call(recorder.records[number % len(recorder.records)]) for number in fresh]
        return [call for call in found if not kinds or call.kind in kinds]

    def turn(self) -> int:
        """Let the I/O thread's work be done here, until there is none; return how many handlers ran."""
        total = 0
        while calls := lib.loop_once(ffi.addressof(self.machine.c, "loop"), 0):
            total += calls
            assert total < 1000, "a handler that never ends"
        return total


def _call(record: Any) -> Call:
    return Call(KINDS[record.kind], record.on, record.number, record.address, record.fd)
