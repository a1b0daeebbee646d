"""MSI-X and doorbells with KVM itself: no interrupt is lost while a vector is masked, moved or turned off."""

from __future__ import annotations

import os
import time

import pytest
from machine import CODE, build
from pci_driver import PCI64, Driver

from hostd.devices.machine import Machine
from hostd.kvm import Mmio
from hostd.kvm.call import call_with, ffi
from hostd.memory import Anonymous

LIMIT = 20.0
MSIX, ENABLE = 0x11, 0x8000
SVR, IRR, APIC_ON = 0xF0, 0x200, 0x1FF
ADDRESS = 0xFEE00000


class Wired:
    """A VM whose ivshmem device has two vectors, and what its CPU's local APIC has been sent."""

    def __init__(self, system, eventfds) -> None:
        self.bare = build(system, irqchip=True)
        self.machine = Machine(self.bare.vm, self.bare.table, PCI64)
        self.driver = Driver(self.machine)
        self.bells, self.own = eventfds(1), eventfds(2)
        self.machine.add_ivshmem(
            "link", Anonymous(), 4096, "rw", peer=1, peers=[self.bells, self.own], waits=self.bells
        )
        self.registers, self.table = self.driver.bar(1, 0), self.driver.bar(1, 1)
        state = self._apic()
        state[SVR : SVR + 4] = list(APIC_ON.to_bytes(4, "little"))
        call_with(self.bare.vcpu.fd, "KVM_SET_LAPIC", state)
        self.machine.start()

    def _apic(self):
        state = ffi.new("uint8_t[1024]")
        call_with(self.bare.vcpu.fd, "KVM_GET_LAPIC", state)
        return state

    def sent(self) -> set[int]:
        """The interrupts that wait for the CPU, and take them away."""
        state = self._apic()
        found = set()
        for number in range(256):
            at = IRR + number // 32 * 16 + number % 32 // 8
            if state[at] & 1 << number % 8:
                found.add(number)
                state[at] &= 0xFF & ~(1 << number % 8)
        if found:
            call_with(self.bare.vcpu.fd, "KVM_SET_LAPIC", state)
        return found

    def wait_sent(self, wanted: set[int]) -> None:
        """KVM sends from a thread of its own."""
        end = time.monotonic() + LIMIT
        found: set[int] = set()
        while found != wanted:
            assert time.monotonic() < end, f"sent {found}"
            time.sleep(0.001)
            found |= self.sent()
            assert found <= wanted

    def control(self, value) -> None:
        self.driver.set_config(1, self.driver.capability(1, MSIX) + 2, value, 2)

    def entry(self, vector, data, masked=False) -> None:
        for offset, value in ((0, ADDRESS), (4, 0), (8, data), (12, int(masked))):
            self.driver.write(self.table + 16 * vector + offset, value)

    def mask(self, vector, on) -> None:
        self.driver.write(self.table + 16 * vector + 12, int(on))

    def close(self) -> None:
        self.machine.close()
        self.bare.close()


@pytest.fixture
def wired(system, eventfds):
    wired = Wired(system, eventfds)
    yield wired
    wired.close()


def test_a_vectors_eventfd_is_an_interrupt(wired):
    wired.control(ENABLE)
    wired.entry(0, 0x41)
    wired.entry(1, 0x42)
    os.eventfd_write(wired.own[1], 1)
    wired.wait_sent({0x42})
    os.eventfd_write(wired.own[0], 1)
    wired.wait_sent({0x41})


def test_nothing_is_sent_while_msix_is_off(wired):
    wired.entry(0, 0x41)
    os.eventfd_write(wired.own[0], 1)
    time.sleep(0.05)
    assert wired.sent() == set()


@pytest.mark.parametrize("times", [1, 2, 20])
def test_a_masked_vectors_interrupt_is_sent_when_unmasked(wired, times):
    wired.control(ENABLE)
    wired.entry(0, 0x41)
    for _ in range(times):
        wired.mask(0, True)
        os.eventfd_write(wired.own[0], 1)
        assert wired.driver.read(wired.table + 0x800, 8) == 1
        assert wired.sent() == set()
        wired.mask(0, False)
        wired.wait_sent({0x41})
        assert wired.driver.read(wired.table + 0x800, 8) == 0


def test_no_interrupt_comes_twice(wired):
    wired.control(ENABLE)
    wired.entry(0, 0x41)
    wired.mask(0, True)
    os.eventfd_write(wired.own[0], 1)
    wired.mask(0, False)
    wired.wait_sent({0x41})
    wired.mask(0, True)
    wired.mask(0, False)
    time.sleep(0.05)
    assert wired.sent() == set()


def test_a_changed_entry_sends_the_new_interrupt(wired):
    wired.control(ENABLE)
    wired.entry(0, 0x41)
    wired.entry(0, 0x61)
    os.eventfd_write(wired.own[0], 1)
    wired.wait_sent({0x61})


def test_a_bell_of_the_region_comes_as_vector_0_and_stays(wired):
    wired.control(ENABLE)
    wired.entry(0, 0x41)
    os.eventfd_write(wired.bells[0], 1)
    wired.wait_sent({0x41})
    assert os.eventfd_read(wired.bells[0]) == 1


def store(address: int, value: int) -> bytes:
    """mov $address, %ebx; movl $value, (%ebx), in 16-bit mode with 32-bit operands and addresses."""
    return b"\x66\xbb" + address.to_bytes(4, "little") + b"\x67\x66\xc7\x03" + value.to_bytes(4, "little")


def test_a_guests_doorbell_has_no_exit_and_follows_its_bar(wired):
    """The write that signals is one that KVM sees; where the BAR was, it is nobody's."""
    bare, before = wired.bare, wired.registers
    wired.driver.set_config(1, 0x10, 0xD0000000)
    bare.real_mode(b"")
    sregs = bare.vcpu.sregs
    for segment in (sregs.cs, sregs.ds, sregs.es, sregs.ss):
        segment.limit = 0xFFFFFFFF
        segment.g = 1
    bare.vcpu.sregs = sregs
    bare.table.write(CODE, store(0xD000000C, 0) + store(0xD000000C, 0x1_0001) + store(before + 12, 0))
    assert bare.vcpu.run() == Mmio(address=before + 12, is_write=True, size=4, data=bytes(4))
    assert os.eventfd_read(wired.bells[0]) == 1
    end = time.monotonic() + LIMIT
    while not wired.driver.read(0xD0000004):  # MSI-X is off: the I/O thread sets the status
        assert time.monotonic() < end
        time.sleep(0.001)


def test_more_doorbells_than_kvm_holds_ring_all_the_same(system, eventfds):
    bare = build(system, irqchip=True)
    with Machine(bare.vm, bare.table, PCI64) as machine:
        driver = Driver(machine)
        bells = eventfds(1100)
        machine.add_ivshmem("link", Anonymous(), 4096, "rw", peer=1, peers=[bells, eventfds(1)])
        registers = driver.bar(1, 0)
        for number in (0, 999, 1000, 1099):
            driver.write(registers + 12, number)
            assert os.eventfd_read(bells[number]) == 1
    bare.close()
