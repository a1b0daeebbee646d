"""PCI as a guest's kernel meets it: enumeration, sizing, moving BARs, lines."""

from __future__ import annotations

import pytest
from pci_driver import COMMAND, MEMORY, NO_INTX, PCI64

from hostd.boot.linux import layout
from hostd.devices._devices import lib
from hostd.devices.machine import DeviceError
from hostd.memory import Anonymous

MIB = 1 << 20


def add_region(machine, eventfds, size=MIB, name="link"):
    """Add an ivshmem device: the one with every kind of BAR."""
    peers = [eventfds(2), eventfds(2)]
    machine.add_ivshmem(name, Anonymous(), size, "rw", peer=1, peers=peers)
    return machine.c.pci.count - 1


def test_the_bus_has_a_host_bridge_and_nothing_else(driver):
    assert driver.config(0, 0) == 0x0008_1B36
    assert driver.config(0, 0x08) >> 8 == 0x060000
    assert driver.config(0, 0x0E, 1) == 0  # header type 0, one function
    assert driver.bars(0) == []
    for slot in range(1, 32):
        assert driver.config(slot, 0) == 0xFFFFFFFF
    for function in range(1, 8):
        assert driver.read(layout.ECAM.start + (function << 12)) == 0xFFFFFFFF


def test_ports_and_ecam_show_the_same(machine, driver, eventfds):
    slot = add_region(machine, eventfds)
    driver.outp(0xCFB, 1)  # Linux's probe for mechanism 1
    driver.outp(0xCF8, 0x80000000, 4)
    assert driver.inp(0xCF8, 4) == 0x80000000
    for register in range(0, 256, 4):
        driver.outp(0xCF8, 0x80000000 | slot << 11 | register, 4)
        assert driver.inp(0xCFC, 4) == driver.config(slot, register)
    driver.outp(0xCF8, 0x80000000 | slot << 11, 4)
    assert driver.inp(0xCFE, 2) == driver.config(slot, 2, 2) == 0x1110
    for other in (0x00000000 | slot << 11, 0x80010000 | slot << 11, 0x80000100 | slot << 11, 0x80000000 | 31 << 11):
        driver.outp(0xCF8, other, 4)
        assert driver.inp(0xCFC, 4) == 0xFFFFFFFF  # not enabled, another bus, another function, no device


def test_the_port_writes_configuration_space(machine, driver, eventfds):
    slot = add_region(machine, eventfds)
    driver.outp(0xCF8, 0x80000000 | slot << 11 | 0x3C, 4)
    driver.outp(0xCFC, 0x5A)
    assert driver.config(slot, 0x3C, 1) == 0x5A


def test_extended_configuration_space_has_no_capability(machine, driver, eventfds):
    slot = add_region(machine, eventfds)
    assert driver.config(slot, 0x100) == 0
    assert driver.config(slot, 0xFFC) == 0
    driver.set_config(slot, 0x100, 0xFFFFFFFF)
    assert driver.config(slot, 0x100) == 0
    assert driver.config(slot, 0xFD, 8) == 0  # reaches over the end


def test_identity_can_not_be_written(machine, driver, eventfds):
    slot = add_region(machine, eventfds)
    before = [driver.config(slot, register) for register in range(0, 64, 4) if not 0x10 <= register < 0x28]
    for register in (0x00, 0x08, 0x28, 0x2C, 0x30, 0x34, 0x38):
        driver.set_config(slot, register, 0xFFFFFFFF)
        driver.set_config(slot, register, 0)
    assert [driver.config(slot, r) for r in range(0, 64, 4) if not 0x10 <= r < 0x28] == before


def test_bars_are_sized_without_being_moved(machine, driver, eventfds):
    slot = add_region(machine, eventfds, size=3 * MIB)
    found = driver.bars(slot)
    assert [(bar.number, bar.size, bar.wide, bar.prefetch) for bar in found] == [
        (0, 256, False, False),
        (1, 4096, False, False),
        (2, 4 * MIB, True, True),
    ]
    for bar in found:
        window = PCI64 if bar.wide else layout.PCI_WINDOW
        assert window.start <= bar.address < bar.address + bar.size <= window.end
        assert bar.address % bar.size == 0
    assert driver.ups == 0
    assert machine.c.pci.moves == 0


def test_bars_of_all_devices_lie_in_pages_of_their_own(machine, driver, eventfds):
    slots = [add_region(machine, eventfds, name=f"r{i}") for i in range(5)]
    spans = sorted((bar.address, bar.address + max(bar.size, 4096)) for slot in slots for bar in driver.bars(slot))
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))


def test_sizing_with_decoding_on_moves_nothing(machine, driver, eventfds):
    slot = add_region(machine, eventfds)
    before = driver.config(slot, 0x10)
    driver.set_config(slot, 0x10, 0xFFFFFFFF)
    assert driver.config(slot, 0x10) == 0xFFFFFF00
    driver.set_config(slot, 0x10, before)
    assert driver.read(driver.bar(slot, 0) + 8) == 1
    assert machine.c.pci.moves == 0


def test_registers_follow_their_bar(machine, driver, eventfds):
    slot = add_region(machine, eventfds)
    before = driver.bar(slot, 0)
    driver.calls()
    driver.set_config(slot, 0x10, 0xD0000000)
    assert driver.read(0xD0000000 + 8) == 1
    assert driver.read(before + 8) == 0xFFFFFFFF
    bells = driver.calls("doorbell")
    assert {(c.on, c.address) for c in bells} == {(0, before + 12), (1, 0xD0000000 + 12)}
    assert len(bells) == 8  # four doorbells, off and on
    assert driver.ups == 0  # nothing for Python


def test_a_bar_written_while_decoding_is_off_moves_when_it_is_on(machine, driver, eventfds):
    slot = add_region(machine, eventfds)
    command = driver.config(slot, COMMAND, 2)
    before = driver.bar(slot, 0)
    driver.command(slot, command & ~MEMORY)
    driver.set_config(slot, 0x10, 0xD0000000)
    assert driver.read(before + 8) == 0xFFFFFFFF
    assert driver.read(0xD0000000 + 8) == 0xFFFFFFFF
    driver.command(slot, command)
    assert driver.read(0xD0000000 + 8) == 1


@pytest.mark.parametrize("address", [0, 0x1000, 0xBFFFFF00, layout.ECAM.start, layout.IOAPIC, 0xFFFFFF00])
def test_a_bar_sent_to_where_it_can_not_be_stays(machine, driver, eventfds, address):
    slot = add_region(machine, eventfds)
    before = driver.bar(slot, 0)
    driver.set_config(slot, 0x10, address)
    assert driver.read(before + 8) == 1
    assert machine.c.pci.moves == 0
    assert machine.c.pci.bad_moves >= 1
    assert driver.config(0, 0) == 0x0008_1B36


def test_a_bar_does_not_cover_another(machine, driver, eventfds):
    one, other = add_region(machine, eventfds, name="one"), add_region(machine, eventfds, name="other")
    there = driver.bar(other, 0)
    driver.set_config(one, 0x10, there)
    assert driver.bars(other)[0].address == there
    assert machine.c.pci.moves == 0


def test_memory_moves_with_its_bar(machine, driver, table, eventfds):
    slot = add_region(machine, eventfds)
    [row] = list(table)
    table.write(row.gpa, b"hello")
    target = PCI64.start + (32 << 30)
    driver.set_config(slot, 0x1C, target >> 32)
    assert driver.ups == 1
    assert machine.handle_pending() is None
    driver.set_config(slot, 0x18, target & 0xFFFFFFFF)
    machine.handle_pending()
    [moved] = list(table)
    assert moved.gpa == target
    assert machine.describe()["counters"]["bar_moves"] == 1


def test_memory_never_moves_over_ram_or_into_the_hole(machine, driver, table, eventfds):
    table.add(0, MIB // 2, Anonymous(), name="ram")
    slot = add_region(machine, eventfds)
    before = [(row.name, row.gpa) for row in table]
    for high, low in ((0, 0), (0, 0x80000000), (0, 0xD0000000), (0xFFFFFFFF, 0xFFFFF000)):
        driver.set_config(slot, 0x1C, high)
        driver.set_config(slot, 0x18, low)
        machine.handle_pending()
    assert [(row.name, row.gpa) for row in table] == before


def test_two_memories_change_places(machine, driver, table, eventfds):
    one, other = add_region(machine, eventfds, name="one"), add_region(machine, eventfds, name="other")
    a, b = driver.bar(one, 2), driver.bar(other, 2)
    away = PCI64.start + (16 << 30)
    assert a >> 32 == b >> 32
    driver.set_config(one, 0x1C, away >> 32)
    driver.set_config(other, 0x18, a & 0xFFFFFFFF)
    driver.set_config(one, 0x18, b & 0xFFFFFFFF)
    driver.set_config(one, 0x1C, b >> 32)
    machine.handle_pending()
    assert {row.name: row.gpa for row in table} == {"one": b, "other": a}


def test_the_line_is_off_until_a_driver_enables_it(machine, driver, eventfds):
    slot = add_region(machine, eventfds)
    device = machine.c.pci.devices[slot]
    lib.pci_intx(device, 1)
    assert driver.config(slot, 0x06, 2) & 8
    assert driver.calls("line") == []
    driver.command(slot, driver.config(slot, COMMAND, 2) & ~NO_INTX)
    gsi = layout.pci_gsi(slot)
    assert [(c.number, c.on) for c in driver.calls("line")] == [(gsi, 1)]
    driver.command(slot, driver.config(slot, COMMAND, 2) | NO_INTX)
    assert [(c.number, c.on) for c in driver.calls("line")] == [(gsi, 0)]
    lib.pci_intx(device, 0)
    assert not driver.config(slot, 0x06, 2) & 8


def test_devices_on_one_line_share_its_level(machine, driver, eventfds):
    slots = [add_region(machine, eventfds, name=f"r{i}", size=4096) for i in range(9)]
    one, other = slots[0], slots[8]
    assert layout.pci_gsi(one) == layout.pci_gsi(other)
    for slot in (one, other):
        driver.command(slot, MEMORY)
    driver.calls()
    devices = machine.c.pci.devices
    lib.pci_intx(devices[one], 1)
    lib.pci_intx(devices[other], 1)
    lib.pci_intx(devices[one], 0)
    assert [c.on for c in driver.calls("line")] == [1]
    lib.pci_intx(devices[other], 0)
    assert [c.on for c in driver.calls("line")] == [0]


def test_errors_in_status_are_cleared_by_writing_ones(machine, driver, eventfds):
    slot = add_region(machine, eventfds)
    before = driver.config(slot, 0x06, 2)
    driver.set_config(slot, 0x06, 0xFFFF, 2)
    assert driver.config(slot, 0x06, 2) == before


def test_a_full_bus_says_so(machine, eventfds):
    for number in range(31):
        machine.add_ivshmem(f"r{number}", Anonymous(), 4096, "rw")
    with pytest.raises(DeviceError, match=r"region last.*31 devices"):
        machine.add_ivshmem("last", Anonymous(), 4096, "rw")


def test_a_region_larger_than_the_window_says_so(machine):
    with pytest.raises(DeviceError, match="region huge"):
        machine.add_ivshmem("huge", Anonymous(), 128 << 30, "rw")


@pytest.mark.parametrize("size", [3, 5, 6, 7])
def test_odd_sizes_are_nobodys(machine, driver, size):
    driver.write(layout.ECAM.start, 0, size)
    assert driver.read(layout.ECAM.start, size) == (1 << 8 * size) - 1
    assert machine.describe()["counters"]["unclaimed"] == 2


def test_an_access_over_the_end_of_a_range_is_nobodys(driver):
    assert driver.read(layout.ECAM.end - 2, 4) == 0xFFFFFFFF
    assert driver.read(0xFFFF_FFFF_FFFF_FFFE, 8) == 0xFFFF_FFFF_FFFF_FFFF
    assert driver.inp(0xCFE, 4) == 0xFFFFFFFF
