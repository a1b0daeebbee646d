"""A session over a socket, with a real vCPU behind it: what is asked in order, and what is not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine import CODE, TABLES, Machine
from protocol_client import Client

from hostd.gdb.packets import packet
from hostd.gdb.registers import REGISTERS
from hostd.vmm.pause import Pause

MANY = 20_000 if "HOSTD_LONG" in os.environ else 150
INSTRUCTIONS = bytes.fromhex("48ffc0 48ffc0 ebf8")  # inc %rax, twice; again


@pytest.fixture
def client(machine: Machine) -> Iterator[Client]:
    machine.ring3(INSTRUCTIONS)
    pause = Pause([machine.vcpu])
    pause.leave(0)  # No thread runs it.
    guest = SimpleNamespace(vcpus=[machine.vcpu], table=machine.table, vm=machine.vm, pause=pause, debugger=None)
    made = Client(guest)
    yield made
    made.close()
    assert guest.debugger is None


def value(client: Client, name: str) -> int:
    number = next(number for number, register in enumerate(REGISTERS) if register.name == name)
    return int.from_bytes(bytes.fromhex(client.ask(b"p%x" % number).decode()), "little")


def test_registers_are_those_of_the_vcpu(client: Client, machine: Machine) -> None:
    regs = machine.vcpu.regs
    regs.rbx, regs.r13 = 0x1122334455667788, 7
    machine.vcpu.regs = regs
    assert value(client, "rip") == CODE
    assert value(client, "rbx") == 0x1122334455667788
    assert value(client, "cs") == 0x33
    assert value(client, "cr3") == TABLES
    whole = bytes.fromhex(client.ask(b"g").decode().replace("x", "0"))
    assert len(whole) == sum(register.bits // 8 for register in REGISTERS)
    assert whole[8:16] == bytes.fromhex("8877665544332211")
    assert client.ask(b"P1=" + (99).to_bytes(8, "little").hex().encode()) == b"OK"
    assert machine.vcpu.regs.rbx == 99
    mxcsr = next(number for number, register in enumerate(REGISTERS) if register.name == "mxcsr")
    assert client.ask(b"P%x=811f0000" % mxcsr) == b"OK"
    assert value(client, "mxcsr") == 0x1F81
    assert client.ask(b"P1=00") == b"E16"
    assert client.ask(b"pfff") == b"E16"


def test_all_registers_can_be_written_back(client: Client) -> None:
    whole = client.ask(b"g").replace(b"x", b"0")
    assert client.ask(b"G" + whole) == b"OK"
    assert client.ask(b"g").replace(b"x", b"0") == whole


def test_memory_is_read_and_written_by_virtual_address(client: Client, machine: Machine) -> None:
    assert client.ask(b"m%x,8" % CODE) == INSTRUCTIONS.hex().encode()
    assert client.ask(b"M3000,3:aabbcc") == b"OK"
    assert machine.table.read(0x3000, 3) == b"\xaa\xbb\xcc"
    assert client.ask(b"X3004,3:}\x03}\x04a") == b"OK"
    assert machine.table.read(0x3004, 3) == b"#$a"
    # What ends in the middle is given as far as it goes; where nothing is, there is an error.
    assert client.ask(b"m1fffe,10") == machine.table.read(0x1FFFE, 2).hex().encode()
    assert client.ask(b"m40000000,1") == b"E0e"
    assert client.ask(b"M1fffe,4:01020304") == b"E0e"
    assert client.ask(b"mffffffffffffffff,2") == b"E0e"


def test_a_breakpoint_does_not_show_and_leaves_nothing(client: Client, machine: Machine) -> None:
    assert client.ask(b"Z0,%x,1" % (CODE + 3)) == b"OK"
    assert client.ask(b"Z0,%x,1" % (CODE + 3)) == b"OK"
    trap = client.trap
    assert machine.table.read(CODE + 3, len(trap)) == trap
    assert client.ask(b"m%x,8" % CODE) == INSTRUCTIONS.hex().encode()
    # What is written over it stays when it goes.
    assert client.ask(b"M%x,2:9090" % (CODE + 2)) == b"OK"
    assert machine.table.read(CODE + 2, 1 + len(trap)) == b"\x90" + trap
    assert client.ask(b"z0,%x,1" % (CODE + 3)) == b"OK"
    assert client.ask(b"z0,%x,1" % (CODE + 3)) == b"OK"
    assert machine.table.read(CODE, 8) == INSTRUCTIONS[:2] + b"\x90\x90" + INSTRUCTIONS[4:]
    assert client.ask(b"Z0,40000000,1") == b"E0e"
    assert client.ask(b"Z3,3000,4") == b""
    assert client.ask(b"Z9,3000,4") == b""
    client.ask(b"Z0,%x,1" % CODE)
    client.close()
    assert machine.table.read(CODE, 1) == INSTRUCTIONS[:1]


def test_debug_registers_are_four(client: Client) -> None:
    assert client.ask(b"Z2,3000,8") == b"OK"
    assert client.ask(b"Z2,3009,8") == b"E0e"  # In parts of 1, 2, 4 and 1 bytes: one more than are left.
    assert client.ask(b"Z1,1000,1") == b"OK"
    assert client.ask(b"Z4,300e,4") == b"OK"
    assert client.ask(b"Z2,4000,1") == b"E0e"
    assert client.ask(b"z2,3000,8") == b"OK"
    assert client.ask(b"Z2,4000,1") == b"OK"
    assert client.ask(b"Z2,4000,0") == b"E16"


def test_threads_and_documents(client: Client) -> None:
    assert client.ask(b"qfThreadInfo") == b"m1"
    assert client.ask(b"qsThreadInfo") == b"l"
    assert client.ask(b"T1") == b"OK"
    assert client.ask(b"T2") == b"E16"
    assert bytes.fromhex(client.ask(b"qThreadExtraInfo,1").decode()) == b"vCPU 0, ring 3"
    first = client.ask(b"qXfer:features:read:target.xml:0,100")
    assert first.startswith(b'm<?xml version="1.0"?>')
    assert client.ask(b"qXfer:features:read:other.xml:0,100") == b"E00"
    assert client.ask(b"vMustReplyEmpty") == b""
    assert client.ask(b"qAttached") == b"1"
    assert client.ask(b"?") == b"T05thread:1;"


def test_a_damaged_packet_is_asked_for_again(client: Client, machine: Machine) -> None:
    client.send(b"$?#00" + b"$" + b"m" * 200_000 + b"#00")
    assert client.ask(b"?") == b"T05thread:1;"


def test_kill_ends_the_guest(client: Client) -> None:
    client.send(packet(b"k"))
    assert client.killed.wait(10)


NUMBER = st.one_of(st.just(b""), st.integers(0, 1 << 68).map(lambda n: b"%x" % n), st.binary(max_size=6))
SHAPES = (b"m%b,%b", b"M%b,%b", b"M%b,2:%b", b"X%b,3:%b", b"Z0,%b,%b", b"z0,%b,%b", b"Z2,%b,%b", b"z2,%b,%b", b"p%b%b")
SHAPES += (b"P%b=%b", b"G%b%b", b"H%b%b", b"T%b%b", b"q%b:%b", b"qXfer:%b:%b", b"qRcmd,%b%b", b"v%b;%b", b"%b%b")
SHAPES += (b"qXfer:features:read:target.xml:%b,%b", b"Q%b%b", b"Z4,%b,%b;%b"[:9], b"qThreadExtraInfo,%b%b")
LETTERS = b"cCsSkDR"
"""what makes the guest run, or ends it or the session, or isn't answered"""


@settings(max_examples=MANY, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(SHAPES), NUMBER, NUMBER)
def test_no_packet_hurts_a_session(client: Client, shape: bytes, first: bytes, second: bytes) -> None:
    data = shape % (first, second)
    if not data or data[0] in LETTERS or data.startswith((b"vCont;", b"vCtrlC")) or set(b"$#") & set(data):
        return
    answer = client.ask(data)
    assert client.ask(b"qAttached") == b"1", answer
