"""vCPUs that run under a session, in code of a few instructions."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from machine import CODE, Machine
from protocol_client import Client

from hostd.gdb.abilities import Abilities
from hostd.gdb.kvm_control import PORT_TRAP
from hostd.gdb.packets import packet
from hostd.gdb.registers import RIP
from hostd.kvm import Interrupted, Vcpu
from hostd.vmm.pause import Pause

COUNTER = 0x3000
LIMIT = 10.0
# inc %ax; mov %ax, COUNTER; jmp to the start: six bytes.
LOOP = bytes.fromhex("40 a3 00 30 eb fa")


class Running:
    """A machine whose vCPUs run LOOP in threads of their own, as a guest's do."""

    def __init__(self, machine: Machine, count: int) -> None:
        machine.real_mode(LOOP)
        self.machine = machine
        others = [machine.vm.create_vcpu(index) for index in range(1, count)]
        for vcpu in others:
            vcpu.sregs, vcpu.regs = machine.vcpu.sregs, machine.vcpu.regs
        self.vcpus = [machine.vcpu, *others]
        self.guest = SimpleNamespace(
            vcpus=self.vcpus, table=machine.table, vm=machine.vm, pause=Pause(self.vcpus), debugger=None
        )
        self.failed: list[object] = []
        self.done = threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(index,)) for index in range(count)]
        for thread in self.threads:
            thread.start()

    def _run(self, index: int) -> None:
        vcpu: Vcpu = self.vcpus[index]
        while not self.done.is_set():
            debugger = self.guest.debugger
            event = vcpu.run() if debugger is None else debugger.run(index, vcpu.run)
            if event is not None and not isinstance(event, Interrupted):
                self.failed.append(event)
                break
            self.guest.pause.rest(index)
        self.guest.pause.leave(index)

    @property
    def counter(self) -> int:
        return int.from_bytes(self.machine.table.read(COUNTER, 2), "little")

    def goes_on(self) -> None:
        before, deadline = self.counter, time.monotonic() + LIMIT
        while self.counter == before:
            assert time.monotonic() < deadline, "it does not run"
            time.sleep(0.001)

    def close(self) -> None:
        self.done.set()
        self.guest.pause.end()
        for vcpu, thread in zip(self.vcpus, self.threads, strict=True):
            vcpu.stop()
            thread.join(LIMIT)
            assert not thread.is_alive()
        for vcpu in self.vcpus[1:]:
            vcpu.close()
        assert self.failed == []


@pytest.fixture(params=[1, 2])
def running(request: pytest.FixtureRequest, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    # What every KVM can: breakpoints by a port, as in the lab.
    abilities = Abilities(steps=True, int3=False, registers=False, block=0)
    monkeypatch.setattr(Abilities, "found", lambda _ring: abilities)
    made = Running(machine, request.param)
    yield made
    made.close()


def rip(client: Client) -> int:
    return int.from_bytes(bytes.fromhex(client.ask(b"p%x" % RIP).decode()), "little")


def test_break_step_and_go_on(running: Running) -> None:
    running.goes_on()
    client = Client(running.guest)
    assert client.trap == PORT_TRAP
    stopped = running.counter
    time.sleep(0.02)
    assert running.counter == stopped
    assert client.ask(b"Z0,%x,1" % (CODE + 1)) == b"OK"
    assert client.ask(b"m%x,6" % CODE) == LOOP.hex().encode()
    for _ in range(3):
        why = client.ask(b"vCont;c")
        found = re.fullmatch(rb"T05thread:([12]);swbreak:;", why)
        assert found, why
        assert rip(client) == CODE + 1
        # Over the breakpoint: taken away, one instruction of that vCPU alone, put back.
        assert client.ask(b"z0,%x,1" % (CODE + 1)) == b"OK"
        before = running.counter
        assert client.ask(b"vCont;s:" + found[1]) == b"T05thread:" + found[1] + b";"
        assert rip(client) == CODE + 4
        assert running.counter != before or len(running.vcpus) == 2
        # On, as long as it is in the range: to the loop's start.
        assert client.ask(b"vCont;r%x,%x:" % (CODE + 1, CODE + 6) + found[1]) == b"T05thread:" + found[1] + b";"
        assert rip(client) == CODE
        assert client.ask(b"Z0,%x,1" % (CODE + 1)) == b"OK"
    assert client.ask(b"D") == b"OK"
    client.close()
    assert running.guest.debugger is None
    assert running.machine.table.read(CODE, 6) == LOOP
    running.goes_on()


def test_an_interruption_stops_all(running: Running) -> None:
    client = Client(running.guest)
    for _ in range(3):
        client.send(packet(b"vCont;c"))
        running.goes_on()
        client.send(b"\x03")
        assert client.answer().startswith(b"T02thread:")
        stopped = running.counter
        time.sleep(0.01)
        assert running.counter == stopped
    assert client.ask(b"qfThreadInfo") == b"m" + b",".join(b"%x" % (n + 1) for n in range(len(running.vcpus)))
    client.close()  # Without a word.
    running.goes_on()


def test_the_end_of_a_guest_that_is_held(running: Running) -> None:
    client = Client(running.guest)
    running.done.set()
    running.guest.pause.end()
    for thread in running.threads:
        thread.join(LIMIT)
        assert not thread.is_alive()
    running.guest.debugger.ended({"outcome": "killed", "code": 137})
    assert client.ask(b"vCont;c") == b"X09"
    client.close()


def test_what_kvm_can_is_what_it_shows(system: object) -> None:
    in_ring0 = Abilities.found(0)
    assert in_ring0.steps
    assert Abilities.found(0) == in_ring0
