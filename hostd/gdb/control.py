"""How vCPUs are made to stop at breakpoints, after steps and when what is watched changes.

By KVM's debug exits, where the host's KVM has them (abilities.py). Where it hasn't, by what there is instead: a
unikernel's own exception stubs; in a kernel a write to a port that nobody has; for watchpoints, guarded pages.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hostd.boot._abi import lib as abi
from hostd.boot.registers import back_to_ring3
from hostd.gdb.breakpoints import Code, Kind, Point
from hostd.gdb.guards import Guards
from hostd.gdb.memory import GuestMemory
from hostd.kvm import Exit, Io, KvmError
from hostd.kvm.call import call_with, ffi

if TYPE_CHECKING:
    from hostd.kvm import Vcpu
    from hostd.vmm.guest import Guest

SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV = 4, 5, 10, 8, 11
"""as gdb numbers signals (include/gdb/signals.def)"""
SIGNALS = {0: SIGFPE, 1: SIGTRAP, 3: SIGTRAP, 4: SIGFPE, 6: SIGILL, 16: SIGFPE, 17: SIGBUS, 19: SIGFPE}
"""by exception; the rest are SIGSEGV"""
DEBUG_EXCEPTION, BREAKPOINT = 1, 3
PAGE = 4096
WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17, 21, 29, 30})
CODE_KINDS = (Kind.SOFTWARE, Kind.HARDWARE)


class UnsupportedError(ValueError):
    """A kind of breakpoint that can't be had here; the text is a sentence."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Why vCPU `index` stands still: a signal, and what a stop reply says besides."""

    index: int
    signal: int
    reason: str = ""
    fault: bool = False
    """whether the guest's program faulted: it may be given its due (`Control.passing`)"""


class Control:
    """What is common to all ways. `code` and `points` change only while no vCPU runs.

    This one writes all breakpoints into the code, and watches by guards.
    """

    def __init__(self, vcpus: Sequence[Vcpu], memory: GuestMemory, unikernel: Guest | None) -> None:
        self.vcpus = vcpus
        self.memory = memory
        self.code: Code = memory.code
        self.points: list[Point] = []
        """watchpoints, and hardware breakpoints where they are in debug registers"""
        self.passing: set[int] = set()
        """vCPUs whose next fault is the guest's end, as without a debugger"""
        self._guards = Guards(memory)
        self._unikernel = unikernel
        self._stepping: dict[int, range] = {}
        """vCPUs that do one instruction, and go on while they are in the range"""
        self._lifting: set[int] = set()
        """vCPUs that do one instruction because it writes to a guarded page"""

    # --- breakpoints ---

    def insert(self, point: Point) -> None:
        """Add a breakpoint or watchpoint. Raises UnsupportedError, ValueError and OSError."""
        if point.kind in CODE_KINDS:
            gpa = self.memory.translate(point.address)
            if gpa is None:
                raise ValueError(f"nothing is mapped at {point.address:#x}")
            self.code.plant(point.kind, point.address, gpa)
            return
        if point.kind is not Kind.WRITE:
            raise UnsupportedError("this host's debug registers don't see guests, so only writes can be watched")
        self._guards.check(point)
        if self._unikernel is not None and any(
            row.name == "low" for row in self.memory.rows(point.address, point.size)
        ):
            raise ValueError("the host itself writes there, and a guard would stop it, too")
        if point not in self.points:
            self.points.append(point)

    def remove(self, point: Point) -> None:
        """Take a point away that was inserted, if it is there. Raises ValueError and OSError."""
        if point in self.points:
            self.points.remove(point)
        elif point.kind in CODE_KINDS:
            self.code.pull(point.kind, point.address)

    def remove_all(self) -> None:
        """Leave nothing of them in the guest. Raises ValueError and OSError."""
        self.points.clear()
        self.code.pull_all()

    # --- running ---

    def arm(self, index: int, step: range | None) -> None:
        """Prepare a vCPU that stands still to run; `step`: one instruction, and on while it is in the range."""
        self._stepping.pop(index, None)
        self._lifting.discard(index)
        if step is not None:
            self._stepping[index] = step
        if not self.registers:
            self._guards.begin(self.points)
        self._step(index, on=step is not None)

    def disarm(self, index: int) -> None:
        """Leave no trace in a vCPU that has come to stand still, nor in its memory but for breakpoints."""
        self._guards.lift()
        self._step(index, on=False)

    registers = False
    """whether points are in debug registers"""

    def _step(self, index: int, *, on: bool) -> None:
        """Have a vCPU that stands still do one instruction, or not."""
        raise NotImplementedError

    def failed(self, index: int, error: KvmError) -> None:
        """In a vCPU's thread: running it failed with EFAULT. Returns if that may be a guard; else raises `error` on."""
        if not self.points or self.registers:
            raise error
        # Maybe what is watched: let it do that one instruction, then look. Whoever does it twice gets it twice.
        self._lifting.add(index)
        self._guards.lift()
        self._step(index, on=True)

    def take(self, index: int, event: Exit) -> Exit | Stop | None:
        """In a vCPU's thread: say what an exit means. None: the vCPU goes on; the exit itself: it is none of this."""
        if self._unikernel is None or not isinstance(event, Io) or event.port != abi.GUEST_PORT_FAULT:
            return event
        frame = None if index in self.passing else self._unikernel.exception_frame()
        return event if frame is None else self._exception(index, event.data[0], frame)

    def in_stub(self, index: int) -> bool:
        """Tell whether a vCPU that stands still does so in the stub of a unikernel's exception, or on the way there."""
        if self._unikernel is None:
            return False
        vcpu = self.vcpus[index]
        if vcpu.regs.rip // PAGE * PAGE == abi.GUEST_SYSTEM_PAGE:
            return True
        events = ffi.new("struct kvm_vcpu_events *")
        call_with(vcpu.fd, "KVM_GET_VCPU_EVENTS", events)
        injected, _vector, _has_code, pending = bytes(ffi.buffer(events)[:4])
        return bool(injected or pending)

    def hurry(self, index: int) -> None:
        """Have a vCPU that is `in_stub` do no more than one instruction of the program's, if it isn't."""

    def _exception(self, index: int, vector: int, frame: bytes) -> Stop | None:
        """A unikernel's stub has come to its port: put the vCPU back to where the exception was."""
        rax, *words = struct.unpack(f"<{len(frame) // 8}Q", frame)
        if vector in WITH_ERROR_CODE:
            words.pop(0)
        rip, _cs, rflags, rsp = words[:4]
        if vector == BREAKPOINT and rip - 1 in self.code:
            rip -= 1
        self.vcpus[index].settle()
        back_to_ring3(self.vcpus[index], rip, rflags, rsp, rax)
        return self._stopped_by(index, vector, rip)

    def _stopped_by(self, index: int, vector: int, rip: int) -> Stop | None:
        if vector == BREAKPOINT and rip in self.code:
            return self._at_breakpoint(index, rip)
        return Stop(index, SIGNALS.get(vector, SIGSEGV), fault=vector != BREAKPOINT)

    def _at_breakpoint(self, index: int, address: int) -> Stop:
        return Stop(index, SIGTRAP, Point(self.code.kind(address), address, 1).reason())

    def _stepped(self, index: int) -> Stop | None:
        """A vCPU has done one instruction: say whether it stops."""
        if index in self._lifting:
            self._lifting.discard(index)
            # First the guard, then the look: what another vCPU writes is either seen or stopped.
            self._guards.guard()
            hit = self._guards.changed()
            if hit is not None:
                return Stop(index, SIGTRAP, hit.reason())
        if index in self._stepping and self.vcpus[index].regs.rip not in self._stepping[index]:
            return Stop(index, SIGTRAP)
        self._step(index, on=index in self._stepping)
        return None
