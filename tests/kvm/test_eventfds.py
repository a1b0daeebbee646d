"""ioeventfds and irqfds: a guest's write that signals, a signal that interrupts a guest."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from machine import CODE, HLT, PORT, SPIN, Machine, build, out

from hostd.kvm import Hlt, Io, KvmError, Mmio, System

LIMIT = 20.0


@pytest.fixture
def bell() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def test_port_write_signals_without_an_exit(machine: Machine, bell: int) -> None:
    machine.vm.ioeventfd(PORT, bell, 1, datamatch=5, pio=True)
    machine.ring3(out(5) + out(5) + out(6))
    assert machine.vcpu.run() == Io(port=PORT, is_write=True, size=1, count=1, data=b"\x06")
    assert os.eventfd_read(bell) == 2
    assert machine.vcpu.counters["exits"] == 1


def test_datamatch_tells_doorbells_apart(machine: Machine) -> None:
    """outl %eax, $PORT with the doorbell's number, as a unikernel rings."""
    bells = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(4)]
    for number, fd in enumerate(bells):
        machine.vm.ioeventfd(PORT, fd, 4, datamatch=number, pio=True)
    ring = b"".join(b"\xb8" + number.to_bytes(4, "little") + bytes([0xE7, PORT]) for number in (2, 0, 2, 3))
    machine.ring3(ring + out(1, 0x20))
    assert isinstance(machine.vcpu.run(), Io)
    assert [os.eventfd_read(bells[i]) for i in (0, 2, 3)] == [1, 2, 1]
    with pytest.raises(BlockingIOError):
        os.eventfd_read(bells[1])
    for fd in bells:
        os.close(fd)


def test_any_value_without_datamatch(machine: Machine, bell: int) -> None:
    machine.vm.ioeventfd(PORT, bell, 1, pio=True)
    machine.ring3(out(1) + out(200) + out(9, 0x20))
    assert machine.vcpu.run() == Io(port=0x20, is_write=True, size=1, count=1, data=b"\x09")
    assert os.eventfd_read(bell) == 2


def test_memory_write_signals(machine: Machine, bell: int) -> None:
    machine.vm.ioeventfd(0x1000000, bell, 4)
    # movl $1, 0x1000000; movb $1, 0x1000000: only the first has the length
    machine.ring3(bytes.fromhex("c7 04 25 00 00 00 01 01 00 00 00 c6 04 25 00 00 00 01 01"))
    assert machine.vcpu.run() == Mmio(address=0x1000000, is_write=True, size=1, data=b"\x01")
    assert os.eventfd_read(bell) == 1


def test_deassigned_bell_is_an_exit_again(machine: Machine, bell: int) -> None:
    machine.vm.ioeventfd(PORT, bell, 1, datamatch=5, pio=True)
    with pytest.raises(KvmError, match=r"KVM_IOEVENTFD\(.*datamatch=0x5.*EEXIST"):
        machine.vm.ioeventfd(PORT, bell, 1, datamatch=5, pio=True)
    machine.vm.ioeventfd(PORT, bell, 1, datamatch=5, pio=True, deassign=True)
    machine.ring3(out(5))
    assert machine.vcpu.run() == Io(port=PORT, is_write=True, size=1, count=1, data=b"\x05")
    with pytest.raises(BlockingIOError):
        os.eventfd_read(bell)


def test_irqfd_wakes_a_halted_guest(system: System, bell: int) -> None:
    """PIC at vector 0x20; line 5's handler writes to a port. The guest halts in the kernel, interrupts on."""
    machine = build(system, irqchip=True)
    machine.vm.irqfd(bell, 5)
    setup = b"".join(out(value, port) for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0)))
    handler = 0x2000
    machine.table.write(handler, out(0x77) + SPIN)
    machine.table.write(0x25 * 4, handler.to_bytes(2, "little") + b"\0\0")
    machine.real_mode(setup + out(1) + b"\xfb" + HLT + SPIN, at=CODE)
    assert machine.vcpu.run() == Io(port=PORT, is_write=True, size=1, count=1, data=b"\x01")
    ring = threading.Timer(0.05, os.eventfd_write, (bell, 1))
    guard = threading.Timer(LIMIT, machine.vcpu.stop)
    ring.start()
    guard.start()
    try:
        assert machine.vcpu.run() == Io(port=PORT, is_write=True, size=1, count=1, data=b"\x77")
    finally:
        guard.cancel()
        ring.join()
        machine.close()


def test_irqfd_with_resample_and_deassign(system: System, bell: int) -> None:
    machine = build(system, irqchip=True)
    resample = os.eventfd(0, os.EFD_NONBLOCK)
    machine.vm.irqfd(bell, 5, resample)
    machine.vm.irqfd(bell, 5, deassign=True)
    machine.close()
    os.close(resample)


def test_irqfd_needs_an_irqchip(machine: Machine, bell: int) -> None:
    with pytest.raises(KvmError, match=r"KVM_IRQFD\(fd=.*gsi=5"):
        machine.vm.irqfd(bell, 5)


def test_halt_comes_up_without_irqchip(machine: Machine) -> None:
    machine.real_mode(HLT)
    assert machine.vcpu.run() == Hlt()


def test_routing_sends_an_irqfd_as_a_message(system: System, bell: int) -> None:
    machine = build(system, irqchip=True)
    try:
        machine.vm.set_gsi_routing({24: (0xFEE0_0000, 0x31), 30: (0xFEE0_1000, 0x32)})
        machine.vm.irqfd(bell, 24)
        machine.vm.irqfd(bell, 24, deassign=True)
        machine.vm.set_gsi_routing({})
        with pytest.raises(KvmError, match="messages=0x1388"):
            machine.vm.set_gsi_routing({24 + number: (0xFEE0_0000, number & 255) for number in range(5000)})
    finally:
        machine.close()
