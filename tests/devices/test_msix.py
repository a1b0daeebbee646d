"""MSI-X against a model of PCI 3.0, 6.8.2: accesses of any size and alignment, masks, pending bits."""

from __future__ import annotations

import random

import pytest
from pci_driver import Call

from hostd.devices._devices import lib
from hostd.memory import Anonymous

VECTORS, ENTRY, PBA = 5, 16, 0x800
MSIX, ENABLE, FUNCTION_MASK = 0x11, 0x8000, 0x4000


class Model:
    """What the table, the pending bits and the messages must be."""

    def __init__(self) -> None:
        self.table = bytearray(ENTRY * VECTORS)
        self.table[12::ENTRY] = bytes([1]) * VECTORS
        self.pending = [False] * VECTORS
        self.enabled = self.masked = False
        self.messages: list[tuple[int, int]] = []

    def send(self, vector: int) -> None:
        entry = self.table[vector * ENTRY : (vector + 1) * ENTRY]
        self.messages.append((int.from_bytes(entry[0:8], "little"), int.from_bytes(entry[8:12], "little")))

    def settle(self, vectors) -> None:
        for vector in vectors:
            live = self.enabled and not self.masked and not self.table[vector * ENTRY + 12]
            if live and self.pending[vector]:
                self.pending[vector] = False
                self.send(vector)

    def control(self, value: int) -> None:
        self.enabled, self.masked = bool(value & ENABLE), bool(value & FUNCTION_MASK)
        if not self.enabled:
            self.pending = [False] * VECTORS
        self.settle(range(VECTORS))

    def write(self, offset: int, data: bytes) -> None:
        for at, byte in enumerate(data, offset):
            if at < len(self.table):
                self.table[at] = byte if at % ENTRY < 12 else byte & 1 if at % ENTRY == 12 else 0
        self.settle(sorted({at // ENTRY for at in range(offset, offset + len(data)) if at < len(self.table)}))

    def read(self, offset: int, size: int) -> bytes:
        bits = sum(on << vector for vector, on in enumerate(self.pending))
        whole = bytes(self.table).ljust(PBA, b"\0") + bits.to_bytes(8, "little")
        return whole.ljust(0x1000, b"\0")[offset : offset + size]

    def rise(self, vector: int) -> None:
        if vector >= VECTORS or not self.enabled:
            return
        self.pending[vector] = True
        self.settle([vector])


@pytest.mark.parametrize("seed", range(20))
def test_any_accesses_in_any_order(machine, driver, eventfds, seed):
    chance = random.Random(seed)
    machine.add_ivshmem("link", Anonymous(), 4096, "rw", peer=0, peers=[eventfds(VECTORS)])
    device, table, model = machine.c.pci.devices[1], driver.bar(1, 1), Model()
    control = driver.capability(1, MSIX) + 2
    places = [*range(ENTRY * VECTORS + 8), PBA - 4, *range(PBA, PBA + 8)]
    for _ in range(400):
        step, size = chance.random(), chance.choice((1, 2, 4, 8))
        offset = chance.choice(places)
        if step < 0.3:
            got = driver.read(table + offset, size)
            assert got.to_bytes(size, "little") == model.read(offset, size)
        elif step < 0.6:
            data = chance.randbytes(size)
            driver.write(table + offset, int.from_bytes(data, "little"), size)
            model.write(offset, data)
        elif step < 0.7:
            value = chance.choice((0, ENABLE, ENABLE, ENABLE, ENABLE | FUNCTION_MASK))
            driver.set_config(1, control, value, 2)
            model.control(value)
        else:
            vector = chance.choice((*range(VECTORS), VECTORS, 63, 64, 0xFFFFFFFF))
            lib.msix_raise(device, vector)
            model.rise(vector)
        assert [(call.address, call.number) for call in driver.calls("msi")] == model.messages
        model.messages.clear()


def test_message_control_keeps_its_size(machine, driver, eventfds):
    machine.add_ivshmem("link", Anonymous(), 4096, "rw", peer=0, peers=[eventfds(VECTORS)])
    control = driver.capability(1, MSIX) + 2
    driver.set_config(1, control, 0xFFFF, 2)
    assert driver.config(1, control, 2) == ENABLE | FUNCTION_MASK | VECTORS - 1


def test_control_written_byte_by_byte(machine, driver, eventfds):
    machine.add_ivshmem("link", Anonymous(), 4096, "rw", peer=0, peers=[eventfds(1)])
    at, table = driver.capability(1, MSIX), driver.bar(1, 1)
    for offset, value in ((0, 0xFEE00000), (8, 0x30), (12, 0)):
        driver.write(table + offset, value)
    driver.set_config(1, at + 3, 0x80, 1)
    driver.calls()
    lib.msix_raise(machine.c.pci.devices[1], 0)
    assert driver.calls("msi") == [Call("msi", 0, 0x30, 0xFEE00000, 0)]
