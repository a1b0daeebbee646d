"""ivshmem, revision 1: identity, registers, doorbells, interrupts with MSI-X and without."""

from __future__ import annotations

import os

import pytest
from pci_driver import COMMAND, MASTER, MEMORY, Call

from hostd.boot.linux import layout
from hostd.devices._devices import ffi, lib
from hostd.devices.machine import Machine
from hostd.memory import Anonymous

MASK, STATUS, POSITION, DOORBELL = 0, 4, 8, 12
MSIX, ENABLE, FUNCTION_MASK = 0x11, 0x8000, 0x4000
PBA = 0x800
ADDRESS = 0xFEE00000
FIRST_ROUTE = 24


class Region:
    """A region's device, with its driver: peers 0 (two bells), 1 (this guest, three vectors) and 2 (one)."""

    def __init__(self, machine: Machine, driver, eventfds):
        self.machine, self.driver = machine, driver
        self.bells, self.own, self.other = eventfds(2), eventfds(3), eventfds(1)
        self.address = machine.add_ivshmem(
            "link", Anonymous(), 1 << 20, "rw", peer=1, peers=[self.bells, self.own, self.other], waits=self.bells
        )
        self.slot = int(self.address[8:10], 16)
        self.registers, self.table = driver.bar(self.slot, 0), driver.bar(self.slot, 1)
        assert lib.pci_start(ffi.addressof(machine.c, "pci")) == 0
        driver.turn()

    def reg(self, offset, size=4):
        return self.driver.read(self.registers + offset, size)

    def set_reg(self, offset, value, size=4):
        self.driver.write(self.registers + offset, value, size)

    def enable_line(self):
        self.driver.command(self.slot, MEMORY)

    def control(self, value):
        at = self.driver.capability(self.slot, MSIX)
        self.driver.set_config(self.slot, at + 2, value, 2)

    def entry(self, vector, data=None, masked=False):
        """Fill in a table entry as Linux does, its mask bit last."""
        at = self.table + 16 * vector
        if data is not None:
            self.driver.write(at, ADDRESS)
            self.driver.write(at + 4, 0)
            self.driver.write(at + 8, data)
        self.driver.write(at + 12, int(masked))

    def pending(self):
        return self.driver.read(self.table + PBA, 8)


@pytest.fixture
def region(machine, driver, eventfds):
    return Region(machine, driver, eventfds)


def count(fd):
    """Return what an eventfd holds, and take it."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def test_it_looks_as_specified(region):
    config, slot = region.driver.config, region.slot
    assert config(slot, 0) == 0x1110_1AF4
    assert config(slot, 0x08, 1) == 1  # revision
    assert config(slot, 0x08) >> 8 == 0x050000  # RAM controller
    assert config(slot, 0x2C) == 0x1100_1AF4
    assert config(slot, 0x3D, 1) == 1  # INTA
    assert region.address == "0000:00:01.0"
    assert [(bar.number, bar.size) for bar in region.driver.bars(slot)] == [(0, 256), (1, 4096), (2, 1 << 20)]
    at = region.driver.capability(slot, MSIX)
    assert config(slot, at + 2, 2) == 2  # three vectors
    assert config(slot, at + 4) == 1  # the table in BAR1
    assert config(slot, at + 8) == PBA | 1


def test_a_region_without_peers_has_no_interrupts(machine, driver):
    machine.add_ivshmem("plain", Anonymous(), 5000 // 4096 * 4096 + 4096, "ro")
    assert driver.config(1, 0x3D, 1) == 0
    assert [(bar.number, bar.size) for bar in driver.bars(1)] == [(0, 256), (2, 8192)]
    assert driver.read(driver.bar(1, 0) + POSITION) == 0
    driver.write(driver.bar(1, 0) + DOORBELL, 0)  # ignored
    assert driver.calls() == []


def test_the_region_is_a_row_with_its_access(machine, table):
    machine.add_ivshmem("ro", Anonymous(), 8192, "ro")
    machine.add_ivshmem("rw", Anonymous(), 12288, "rw")
    assert {(row.name, row.access, row.size) for row in table} == {("ro", "ro", 8192), ("rw", "rw", 12288)}


def test_registers_after_reset(region):
    assert (region.reg(MASK), region.reg(STATUS), region.reg(POSITION), region.reg(DOORBELL)) == (0, 0, 1, 0)
    assert all(region.reg(offset) == 0 for offset in range(16, 256, 4))


def test_the_mask_is_kept_and_position_is_not_written(region):
    region.set_reg(MASK, 0xA5)
    region.set_reg(POSITION, 7)
    assert (region.reg(MASK), region.reg(POSITION)) == (0xA5, 1)


@pytest.mark.parametrize(("offset", "size"), [(12, 1), (12, 2), (8, 8), (13, 4), (10, 4), (254, 1), (16, 4), (252, 4)])
def test_accesses_not_in_the_specification_do_nothing(region, offset, size):
    region.set_reg(offset, 0, size)
    assert region.reg(offset, size) == 0
    assert [count(fd) for fd in region.bells + region.own + region.other] == [0] * 6


def test_doorbells_are_eventfds_at_the_register(region):
    bells = region.driver.calls("doorbell")
    wanted = {(0, 0): 0, (0, 1): 1, (1, 0): 2, (1, 1): 3, (1, 2): 4, (2, 0): 5}
    fds = [*region.bells, *region.own, *region.other]
    assert set(bells) == {
        Call("doorbell", 1, peer << 16 | vector, region.registers + DOORBELL, fds[number])
        for (peer, vector), number in wanted.items()
    }


@pytest.mark.parametrize(("peer", "vector", "fd"), [(0, 0, 0), (0, 1, 1), (1, 2, 4), (2, 0, 5)])
def test_a_doorbell_that_comes_as_an_exit_rings_all_the_same(region, peer, vector, fd):
    region.set_reg(DOORBELL, peer << 16 | vector)
    fds = [*region.bells, *region.own, *region.other]
    assert [count(one) for one in fds] == [int(number == fd) for number in range(6)]


@pytest.mark.parametrize("value", [0x0002, 0x1_0003, 0x2_0001, 0x3_0000, 0xFFFF_FFFF])
def test_nobody_hears_a_doorbell_to_nobody(region, value):
    region.set_reg(DOORBELL, value)
    assert [count(fd) for fd in region.bells + region.own + region.other] == [0] * 6
    described = region.machine.describe()["pci"][region.slot]
    assert (described["doorbell_exits"], described["doorbells_to_nobody"]) == (1, 1)


def test_a_vector_raises_the_line_until_status_is_read(region):
    region.enable_line()
    region.driver.calls()
    os.eventfd_write(region.own[1], 3)
    region.driver.turn()
    gsi = layout.pci_gsi(region.slot)
    assert [(c.number, c.on) for c in region.driver.calls("line")] == [(gsi, 1)]
    assert region.driver.config(region.slot, 0x06, 2) & 8
    assert region.reg(STATUS) == 1
    assert [(c.number, c.on) for c in region.driver.calls("line")] == [(gsi, 0)]
    assert region.reg(STATUS) == 0
    assert region.driver.turn() == 0


def test_a_bell_raises_the_line_and_is_left_for_others(region):
    region.enable_line()
    region.driver.calls()
    for _ in range(2):
        os.eventfd_write(region.bells[1], 1)
        region.driver.turn()
        assert [c.on for c in region.driver.calls("line")] == [1]
        assert region.reg(STATUS) == 1
        region.driver.calls()
    assert count(region.bells[1]) == 2


def test_as_uio_pci_generic_waits(region):
    """Its handler masks the line by COMMAND when STATUS says so; the program clears the cause and unmasks it."""
    driver, slot = region.driver, region.slot
    region.enable_line()
    driver.calls()
    command = driver.config(slot, COMMAND, 2)
    for _ in range(3):
        os.eventfd_write(region.own[0], 1)
        driver.turn()
        assert driver.config(slot, 0x06, 2) & 8
        driver.command(slot, command | 0x400)
        assert [c.on for c in driver.calls("line")] == [1, 0]
        assert region.reg(STATUS) == 1
        os.eventfd_write(region.own[0], 1)  # One more, before the line is allowed again.
        driver.turn()
        driver.command(slot, command)
        assert [c.on for c in driver.calls("line")] == [1]
        region.reg(STATUS)
        driver.calls()


def test_status_can_be_written(region):
    region.enable_line()
    region.driver.calls()
    region.set_reg(STATUS, 1)
    region.set_reg(STATUS, 0)
    assert [c.on for c in region.driver.calls("line")] == [1, 0]


# --- MSI-X ---


def test_msix_is_routed_when_a_vector_is_unmasked(region):
    driver = region.driver
    driver.calls()
    region.control(ENABLE | FUNCTION_MASK)
    region.entry(0, 0x41)
    assert driver.calls() == []
    region.control(ENABLE)
    assert driver.calls() == [
        Call("route", 0, FIRST_ROUTE, ADDRESS, 0x41),
        Call("irqfd", 1, FIRST_ROUTE, 0, region.own[0]),
    ]


def test_a_masked_vector_keeps_its_signal(region):
    driver = region.driver
    region.control(ENABLE)
    region.entry(1, 0x42)
    driver.calls()
    region.entry(1, masked=True)
    gsi = FIRST_ROUTE + 1
    assert driver.calls() == [Call("irqfd", 0, gsi, 0, region.own[1])]
    os.eventfd_write(region.own[1], 1)
    assert driver.turn() == 0  # With MSI-X on nobody but KVM reads it.
    assert region.pending() == 0b010
    region.entry(1, masked=False)
    assert driver.calls() == [Call("irqfd", 1, gsi, 0, region.own[1])]  # KVM raises what waits when it is attached
    assert region.pending() == 0


def test_a_route_follows_its_entry(region):
    driver = region.driver
    region.control(ENABLE)
    region.entry(2, 0x43)
    driver.calls()
    driver.write(region.table + 2 * 16 + 8, 0x77)
    assert driver.calls() == [Call("route", 0, FIRST_ROUTE + 2, ADDRESS, 0x77)]


def test_bells_come_as_vector_0_with_msix(region):
    driver = region.driver
    region.control(ENABLE)
    region.entry(0, 0x41)
    driver.calls()
    os.eventfd_write(region.bells[0], 1)
    driver.turn()
    assert driver.calls() == [Call("msi", 0, 0x41, ADDRESS, 0)]
    region.entry(0, masked=True)
    os.eventfd_write(region.bells[0], 1)
    driver.turn()
    assert region.pending() == 1
    driver.calls()
    region.entry(0, masked=False)
    assert Call("msi", 0, 0x41, ADDRESS, 0) in driver.calls()


def test_the_line_is_silent_with_msix_and_back_without(region):
    driver = region.driver
    region.enable_line()
    region.control(ENABLE)
    driver.calls()
    os.eventfd_write(region.own[0], 1)
    driver.turn()
    assert driver.calls("line") == []
    region.control(0)
    driver.turn()
    assert [c.on for c in driver.calls("line")] == [1]
    assert region.reg(STATUS) == 1


def test_a_read_only_region_can_not_be_written(machine, table):
    machine.add_ivshmem("ro", Anonymous(), 4096, "ro")
    [row] = list(table)
    assert not row.writable


def test_bus_mastering_is_a_switch(region):
    region.driver.command(region.slot, MEMORY | MASTER)
    assert region.driver.config(region.slot, COMMAND, 2) == MEMORY | MASTER
