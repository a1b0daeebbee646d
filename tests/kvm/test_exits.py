"""Exits of real guests, as typed objects."""

from __future__ import annotations

import pytest
from machine import CODE, HLT, PORT, Machine, out

from hostd.kvm import Hlt, InternalError, Io, MemoryFault, Mmio, Shutdown, exits


def test_port_write_and_halt(machine: Machine) -> None:
    machine.real_mode(out(0x42) + HLT)
    assert machine.vcpu.run() == Io(port=PORT, is_write=True, size=1, count=1, data=b"\x42")
    assert machine.vcpu.run() == Hlt()
    assert machine.vcpu.counters == {"exits": 2, "handled": 0}


def test_port_read_gets_the_reply(machine: Machine) -> None:
    machine.real_mode(bytes([0xE5, PORT]) + HLT)  # in $PORT, %ax
    assert machine.vcpu.run() == Io(port=PORT, is_write=False, size=2, count=1, data=b"")
    machine.vcpu.reply(b"\x34\x12")
    assert machine.vcpu.run() == Hlt()
    assert machine.vcpu.regs.rax & 0xFFFF == 0x1234


def test_reply_must_fit(machine: Machine) -> None:
    machine.real_mode(bytes([0xE5, PORT]) + out(1) + HLT)
    machine.vcpu.run()
    with pytest.raises(ValueError, match="3 bytes"):
        machine.vcpu.reply(b"abc")
    machine.vcpu.reply(b"\0\0")
    machine.vcpu.run()
    with pytest.raises(ValueError, match="asks for 0"):
        machine.vcpu.reply(b"a")


def test_string_output_comes_whole(machine: Machine) -> None:
    # mov $0x3000, %si; mov $PORT, %dx; mov $5, %cx; rep outsb
    machine.real_mode(bytes.fromhex(f"be 00 30 ba {PORT:02x} 00 b9 05 00 f3 6e") + HLT)
    machine.table.write(0x3000, b"hello")
    got = b""
    while isinstance(event := machine.vcpu.run(), Io):
        got += event.data
    assert got == b"hello"
    assert event == Hlt()


def test_mmio_write_and_read(machine: Machine) -> None:
    # mov $0x5000, %ax; mov %ax, %ds; movw $0xbeef, 0x10; mov 0x20, %cx
    machine.real_mode(bytes.fromhex("b8 00 50 8e d8 c7 06 10 00 ef be 8b 0e 20 00") + HLT)
    assert machine.vcpu.run() == Mmio(address=0x50010, is_write=True, size=2, data=b"\xef\xbe")
    assert machine.vcpu.run() == Mmio(address=0x50020, is_write=False, size=2, data=b"")
    machine.vcpu.reply(b"\x0d\xf0")
    assert machine.vcpu.run() == Hlt()
    assert machine.vcpu.regs.rcx & 0xFFFF == 0xF00D


def test_ring3_runs_and_writes_memory(machine: Machine) -> None:
    # movl $0x1234, 0x3000; then touch 16 MiB, where nothing is: movb $7, 0x1000000
    machine.ring3(bytes.fromhex("c7 04 25 00 30 00 00 34 12 00 00 c6 04 25 00 00 00 01 07"))
    assert machine.vcpu.run() == Mmio(address=0x1000000, is_write=True, size=1, data=b"\x07")
    assert machine.table.read(0x3000, 4) == b"\x34\x12\0\0"


def test_fault_without_handlers_is_a_shutdown(machine: Machine) -> None:
    machine.ring3(bytes.fromhex("0f 0b"))  # ud2, and no IDT
    assert machine.vcpu.run() == Shutdown()


def test_registers_are_read_and_written(machine: Machine) -> None:
    machine.real_mode(bytes.fromhex("01 d8") + HLT)  # add %bx, %ax
    regs = machine.vcpu.regs
    regs.rax, regs.rbx = 40, 2
    machine.vcpu.regs = regs
    assert machine.vcpu.run() == Hlt()
    assert machine.vcpu.regs.rax == 42
    assert machine.vcpu.regs.rip == CODE + 3


def test_fpu_state_is_read_and_written(machine: Machine) -> None:
    fpu = machine.vcpu.fpu
    fpu.fcw = 0x27F
    fpu.xmm[3][5] = 77
    machine.vcpu.fpu = fpu
    assert machine.vcpu.fpu.fcw == 0x27F
    assert machine.vcpu.fpu.xmm[3][5] == 77


def test_xcrs_and_msrs(machine: Machine) -> None:
    sregs = machine.vcpu.sregs
    sregs.cr4 |= 1 << 18
    machine.vcpu.sregs = sregs
    machine.vcpu.xcrs = {0: 0b11}
    assert machine.vcpu.xcrs[0] == 0b11
    sysenter_cs = 0x174
    machine.vcpu.set_msrs({sysenter_cs: 8})
    assert machine.vcpu.get_msrs(sysenter_cs) == {sysenter_cs: 8}


def test_memory_without_a_page_behind_it(machine: Machine) -> None:
    """A page that the host can't give ends the run with an error or a typed exit, never with a hang."""
    machine.real_mode(bytes([0xA0, 0x00, 0x00]), at=CODE)
    machine.table.close()
    event: object
    try:
        event = machine.vcpu.run()
    except OSError as error:
        event = error
    # Nothing is mapped at all now: fetching the first instruction cannot succeed.
    assert isinstance(event, (InternalError, Shutdown, MemoryFault, Mmio, OSError))


def test_every_reason_becomes_a_type() -> None:
    assert exits.of_reason(8, 0, ()) == Shutdown()
    assert exits.of_reason(9, 0, (7, 1)) == exits.FailEntry(7, 1)
    assert exits.of_reason(24, 0, (1, 2, 3)) == exits.SystemEvent(1, (2, 3))
    assert exits.of_reason(39, 0x5000, (4096, 8)) == MemoryFault(0x5000, 4096, 8)
    assert exits.of_reason(99, 0, (5,)) == exits.Unknown(99, (5,))
    packed = bytes([3, 0x48, 0x0F, 0xC7]).ljust(16, b"\0")
    words = (1, 1, int.from_bytes(packed[:8], "little"), int.from_bytes(packed[8:], "little"))
    assert exits.of_reason(17, 0, words) == InternalError(1, words[1:], b"\x48\x0f\xc7")
