"""One guest under a debugger: its vCPUs stop together, and run on as the debugger says (all-stop mode)."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hostd.gdb.abilities import Abilities
from hostd.gdb.control import Control, Stop
from hostd.gdb.kvm_control import KvmControl
from hostd.gdb.memory import GuestMemory
from hostd.gdb.registers import Registers
from hostd.gdb.stubs import StubControl
from hostd.kvm import Exit, Interrupted, KvmError
from hostd.memory.translation import Paging
from hostd.vmm.guest import Guest

if TYPE_CHECKING:
    from hostd.vmm.linux import LinuxGuest

Result = dict[str, Any]
"""of a guest that has ended (hostd.supervisor.guest_run)"""


class Debugger:
    """Between a guest's vCPU threads (`run`, `ended`) and the thread of a debugger's session (all else).

    `wake` is an eventfd that is readable when `stops` has something.
    """

    def __init__(self, guest: Guest | LinuxGuest) -> None:
        self._guest = guest
        self._all = range(len(guest.vcpus))
        self._pending: dict[int, Exit] = {}
        """exits that came when an earlier one was completed"""
        self._running: set[int] = set()
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.stops: deque[Stop | Result] = deque()
        """what vCPUs stopped for; a result: the guest has ended"""
        self._registers: dict[int, Registers] = {}
        try:
            guest.pause.hold(self._all)
            guest.pause.wait_still()
            self._settle()
            self.memory = GuestMemory(guest.table, Paging.of(guest.vcpus[0].sregs))
            self.control = self._make_control()
        except BaseException:
            guest.pause.release(self._all)
            os.close(self.wake)
            raise
        guest.debugger = self

    def _make_control(self) -> Control:
        vcpus = self._guest.vcpus
        unikernel = self._guest if isinstance(self._guest, Guest) else None
        abilities = Abilities.found(0 if unikernel is None else 3)
        if unikernel is not None and not (abilities.steps and abilities.int3):
            return StubControl(vcpus, self.memory, unikernel)
        return KvmControl(vcpus, self.memory, unikernel, abilities)

    # --- vCPUs' threads ---

    def run(self, index: int, run: Callable[[], Exit]) -> Exit | None:
        """Run a vCPU; None: the exit was the debugger's. Raises KvmError as `run` does."""
        try:
            event = self._pending.pop(index, None) or run()
        except KvmError as error:
            if error.errno != errno.EFAULT:
                raise
            self.control.failed(index, error)
            return None
        taken = self.control.take(index, event)
        if not isinstance(taken, Stop):
            return taken
        self._guest.pause.hold(self._all, by=index)
        self._tell(taken)
        return None

    def ended(self, result: Result) -> None:
        """The guest has come to its end."""
        self._tell(result)

    def _tell(self, what: Stop | Result) -> None:
        self.stops.append(what)
        os.eventfd_write(self.wake, 1)

    # --- the session's thread ---

    @property
    def vcpus(self) -> range:
        return self._all

    def resume(self, steps: Mapping[int, range | None], passing: set[int]) -> bool:
        """Let vCPUs run: those in `steps`, None or with the range in which they step on (empty: one instruction).

        Those in `passing` take the fault for which they stopped. Returns False, and nothing runs, when one of them had
        stopped already: its stop is in `stops`.
        """
        if any(isinstance(stop, dict) or stop.index in steps for stop in self.stops):
            os.eventfd_write(self.wake, 1)
            return False
        self.store()
        self._registers.clear()
        self.control.passing = set(passing)
        for index, step in steps.items():
            self.control.arm(index, step)
        self._running = set(steps)
        self._guest.pause.release(steps)
        return True

    def halt(self) -> None:
        """Have all vCPUs stand still; return when they do."""
        self._guest.pause.hold(self._all)
        self._guest.pause.wait_still()
        self._settle()
        for index in self._running:
            self._leave_stub(index)
            self.control.disarm(index)
        self._running.clear()
        # Who ran into a breakpoint meanwhile will do so again; a write that was watched for is done.
        kept = [stop for stop in self.stops if isinstance(stop, dict) or "watch" in stop.reason]
        self.stops.clear()
        self.stops.extend(kept)

    def _leave_stub(self, index: int) -> None:
        """Let a unikernel's vCPU that was stopped inside the stub of an exception come to the stub's port.

        There the exception is known for what it is; else a breakpoint that is removed meanwhile would be its end.
        """
        while self.control.in_stub(index) and index not in self._pending:
            self.control.hurry(index)
            event = self._guest.vcpus[index].run()
            taken = self.control.take(index, event)
            if isinstance(taken, Stop):
                self.stops.append(taken)
            elif taken is not None and not isinstance(taken, Interrupted):
                self._pending[index] = taken

    def take_stop(self) -> Stop | Result | None:
        """Return what a vCPU stopped for first, if one did."""
        return self.stops.popleft() if self.stops else None

    def registers(self, index: int) -> Registers:
        """Return the registers of a vCPU, which stands still; what is written to them counts from `store` on."""
        if index not in self._registers:
            self._registers[index] = Registers(self._guest.vcpus[index])
        return self._registers[index]

    def store(self) -> None:
        """Give the vCPUs what was written to their registers. Raises KvmError."""
        for registers in self._registers.values():
            registers.store()

    def look_as(self, index: int) -> None:
        """Have `memory` be what this vCPU sees."""
        self.memory.paging = Paging.of(self._guest.vcpus[index].sregs)

    def close(self) -> None:
        """Leave nothing in the guest, and let it run on."""
        self.halt()
        try:
            self.store()
            self.control.remove_all()
            self.memory.close()
        finally:
            self._guest.debugger = None
            self._guest.pause.release(self._all)
            os.close(self.wake)

    def _settle(self) -> None:
        for index, vcpu in enumerate(self._guest.vcpus):
            exit_of_rest = vcpu.settle()
            if exit_of_rest is not None:
                self._pending[index] = exit_of_rest
