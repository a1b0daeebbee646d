"""Stopping a vCPU: at any moment, from another thread, without a stop that gets lost."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import SPIN, Machine, out

from hostd.kvm import Exit, Interrupted, Io, KvmError

STOPS = 1000
LIMIT = 20.0
"""seconds after which a stop counts as lost"""


class Runner:
    """Runs a vCPU in a thread, again and again, and hands over each exit."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.events: list[Exit] = []
        self.arrived = threading.Semaphore(0)
        self.ended = False
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while not self.ended:
            try:
                event = self.machine.vcpu.run()
            except KvmError:  # Another thread runs it at the moment.
                continue
            self.events.append(event)
            self.arrived.release()

    def take(self) -> Exit:
        assert self.arrived.acquire(timeout=LIMIT), "the vCPU did not stop"
        return self.events.pop(0)

    def close(self) -> None:
        self.ended = True
        self.machine.vcpu.stop()
        self.thread.join(LIMIT)
        assert not self.thread.is_alive()


class Blocking(ctypes.Structure):
    _fields_ = (("kick_fd", ctypes.c_int), ("waiting", ctypes.c_int))


@pytest.fixture(scope="module")
def handlers(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The exit handlers of blocking.c."""
    library = tmp_path_factory.mktemp("handlers") / "blocking.so"
    source = Path(__file__).parent / "blocking.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", library, source], check=True, timeout=60)
    return ctypes.CDLL(str(library))


def address(function: object) -> int:
    value = ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]
    assert value is not None
    return value


@pytest.fixture(params=["ring 3", "real mode"])
def spinning(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Runner]:
    (machine.ring3 if request.param == "ring 3" else machine.real_mode)(SPIN)
    runner = Runner(machine)
    yield runner
    runner.close()


def test_a_spinning_guest_stops_every_time(spinning: Runner) -> None:
    dice = random.Random(1)
    for _ in range(STOPS):
        # Sometimes before it runs again, sometimes while it does.
        time.sleep(dice.choice((0, 0, 0.00005, 0.0005)))
        spinning.machine.vcpu.stop()
        assert spinning.take() == Interrupted()


def test_a_guest_blocked_in_a_handler_stops_every_time(machine: Machine, handlers: ctypes.CDLL) -> None:
    state = Blocking(machine.vcpu.kick_fd, 0)
    machine.vcpu.on_exit(address(handlers.blocking_exit), ctypes.addressof(state))
    machine.ring3(out(1) + bytes.fromhex("eb fa"))  # the port, over and over
    runner = Runner(machine)
    dice = random.Random(2)
    try:
        interrupted = 0
        while interrupted < STOPS:
            time.sleep(dice.choice((0, 0, 0.00005, 0.0005)))
            machine.vcpu.stop()
            # The handler may have handed its exit up; then the stop comes with the next run.
            event = runner.take()
            while isinstance(event, Io):
                event = runner.take()
            assert event == Interrupted()
            interrupted += 1
        assert state.waiting > 0
    finally:
        runner.close()


def test_stop_before_run_is_kept(machine: Machine) -> None:
    machine.real_mode(SPIN)
    machine.vcpu.stop()
    machine.vcpu.stop()
    assert machine.vcpu.run() == Interrupted()
    # Two stops were one: the next run goes on until the next stop.
    timer = threading.Timer(0.05, machine.vcpu.stop)
    timer.start()
    assert machine.vcpu.run() == Interrupted()
    timer.join()


def test_kick_is_readable_until_the_stop_is_taken(machine: Machine) -> None:
    machine.real_mode(SPIN)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(machine.vcpu.kick_fd)
    machine.vcpu.stop()
    machine.vcpu.run()
    with pytest.raises(BlockingIOError):
        os.eventfd_read(machine.vcpu.kick_fd)


def test_stops_from_many_threads(spinning: Runner) -> None:
    stop = spinning.machine.vcpu.stop
    threads = [threading.Thread(target=lambda: [stop() for _ in range(200)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert spinning.take() == Interrupted()


def test_running_twice_at_once_is_refused(spinning: Runner) -> None:
    deadline = time.monotonic() + LIMIT
    refused = ""
    while not refused and time.monotonic() < deadline:
        guard = threading.Timer(0.5, spinning.machine.vcpu.stop)
        guard.start()
        try:
            spinning.machine.vcpu.run()  # The other thread may not be there yet.
        except KvmError as error:
            refused = str(error)
        guard.cancel()
    assert "KVM_RUN" in refused
    assert "EBUSY" in refused


def test_the_handler_serves_exits_in_c(machine: Machine, handlers: ctypes.CDLL) -> None:
    count = ctypes.c_int(0)
    machine.vcpu.on_exit(address(handlers.counting_exit), ctypes.addressof(count))
    machine.ring3(out(1) + bytes.fromhex("eb fa"))
    assert isinstance(machine.vcpu.run(), Io)
    assert count.value == 100
    assert machine.vcpu.counters == {"exits": 100, "handled": 99}
    machine.vcpu.on_exit(0)
    assert isinstance(machine.vcpu.run(), Io)
    assert count.value == 100


def test_a_python_signal_handler_runs_while_the_guest_spins(machine: Machine) -> None:
    seen = []

    def handler(number: int, _frame: object) -> None:
        seen.append(number)
        machine.vcpu.stop()

    before = signal.signal(signal.SIGALRM, handler)
    try:
        machine.real_mode(SPIN)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert machine.vcpu.run() == Interrupted()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen == [signal.SIGALRM]


def test_the_binding_is_light_to_import() -> None:
    """A guest's process pays for every module; these two packages bring none of the heavy ones."""
    heavy = "{'asyncio', 'subprocess', 'logging', 'argparse', 'pydantic', 'rich', 'multiprocessing', 'cffi'}"
    program = f"import sys, hostd.kvm, hostd.memory; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"
