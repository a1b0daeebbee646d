"""How vCPUs are made to stop: by KVM's debug exits where it has them, else by the guest's own exception stubs.

A host whose KVM runs ring 3 without hardware virtualisation (kvm_pvm) hands single steps and breakpoints to the guest,
and its debug registers never see ring 3. There a unikernel's stubs report both, as they report faults, and what is
watched are pages that the guest may not write to for a while.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hostd.boot._abi import lib as abi
from hostd.boot.registers import back_to_ring3
from hostd.gdb.breakpoints import DEBUG_REGISTERS, Code, Kind, Point, aligned, debug_registers
from hostd.gdb.memory import GuestMemory
from hostd.kvm import Debug, Exit, Io, KvmError
from hostd.kvm._kvm import lib as kvm
from hostd.memory._map import lib as mapping

if TYPE_CHECKING:
    from hostd.kvm import Vcpu
    from hostd.vmm.guest import Guest

SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV = 4, 5, 10, 8, 11
"""as gdb numbers signals (include/gdb/signals.def)"""
SIGNALS = {0: SIGFPE, 1: SIGTRAP, 3: SIGTRAP, 4: SIGFPE, 6: SIGILL, 16: SIGFPE, 17: SIGBUS, 19: SIGFPE}
"""by exception; the rest are SIGSEGV"""
DEBUG_EXCEPTION, BREAKPOINT = 1, 3
WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17, 21, 29, 30})
PAGE = 4096
TRAP_FLAG = 1 << 8
DR6_STEP, DR6_POINTS = 1 << 14, 0b1111


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
    """What is common to both ways. `code` and watchpoints change only while no vCPU runs."""

    def __init__(self, vcpus: Sequence[Vcpu], memory: GuestMemory, unikernel: Guest | None) -> None:
        self.vcpus = vcpus
        self.memory = memory
        self.code: Code = memory.code
        self.points: list[Point] = []
        """watchpoints, and where they are not written into the code, hardware breakpoints"""
        self.passing: set[int] = set()
        """vCPUs whose next fault is the guest's end, as without a debugger"""
        self._unikernel = unikernel
        self._stepping: dict[int, range] = {}
        """vCPUs that do one instruction, and go on while they are in the range"""

    # --- breakpoints ---

    def insert(self, point: Point) -> None:
        """Add a breakpoint or watchpoint. Raises UnsupportedError, ValueError and OSError."""
        raise NotImplementedError

    def remove(self, point: Point) -> None:
        """Take a point away that was inserted, if it is there. Raises ValueError and OSError."""
        raise NotImplementedError

    def remove_all(self) -> None:
        """Leave nothing of them in the guest."""
        self.points.clear()
        for kind, address, gpa in self.code.points():
            self.code.pull(kind, address, self.memory.byte(gpa))

    def _plant(self, kind: Kind, address: int) -> None:
        gpa = self.memory.translate(address)
        if gpa is None:
            raise ValueError(f"nothing is mapped at {address:#x}")
        self.code.plant(kind, address, gpa, self.memory.byte(gpa))

    def _pull(self, kind: Kind, address: int) -> None:
        gpa = next((gpa for _, at, gpa in self.code.points() if at == address), None)
        if gpa is not None:
            self.code.pull(kind, address, self.memory.byte(gpa))

    # --- running ---

    def arm(self, index: int, step: range | None) -> None:
        """Prepare a vCPU that stands still to run; `step`: one instruction, and on while it is in the range."""
        raise NotImplementedError

    def disarm(self, index: int) -> None:
        """Leave no trace in a vCPU that has come to stand still."""
        raise NotImplementedError

    def failed(self, index: int, error: KvmError) -> None:
        """In a vCPU's thread: running it failed. Returns if that was to be; else raises `error` on."""
        raise error

    def take(self, index: int, event: Exit) -> Exit | Stop | None:
        """In a vCPU's thread: say what an exit means. None: the vCPU goes on; the exit itself: it is none of this."""
        if self._unikernel is None or not isinstance(event, Io) or event.port != abi.GUEST_PORT_FAULT:
            return event
        frame = None if index in self.passing else self._unikernel.exception_frame()
        return event if frame is None else self._exception(index, event.data[0], frame)

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
            return Stop(index, SIGTRAP, Point(self.code.kind(rip), rip, 1).reason())
        return Stop(index, SIGNALS.get(vector, SIGSEGV), fault=vector != BREAKPOINT)

    def _in_range(self, index: int) -> bool:
        return self.vcpus[index].regs.rip in self._stepping[index]


class KvmControl(Control):
    """By KVM_SET_GUEST_DEBUG: any guest, where its ring 0 runs in hardware."""

    def __init__(
        self, vcpus: Sequence[Vcpu], memory: GuestMemory, unikernel: Guest | None, *, may_block_interrupts: bool
    ) -> None:
        super().__init__(vcpus, memory, unikernel)
        self._block = kvm.KVM_GUESTDBG_BLOCKIRQ if may_block_interrupts else 0
        self._armed: dict[int, int] = {}
        """the control flags of vCPUs that run"""

    def insert(self, point: Point) -> None:
        if point.kind is Kind.SOFTWARE:
            self._plant(point.kind, point.address)
            return
        if point in self.points:
            return
        if len(self._parts([*self.points, point])) > DEBUG_REGISTERS:
            raise ValueError(f"all {DEBUG_REGISTERS} debug registers are taken")
        self.points.append(point)

    def remove(self, point: Point) -> None:
        if point.kind is Kind.SOFTWARE:
            self._pull(point.kind, point.address)
        elif point in self.points:
            self.points.remove(point)

    def arm(self, index: int, step: range | None) -> None:
        self._stepping.pop(index, None)
        flags = kvm.KVM_GUESTDBG_USE_SW_BP if len(self.code) else 0
        flags |= kvm.KVM_GUESTDBG_USE_HW_BP if self.points else 0
        if step is not None:
            self._stepping[index] = step
            # Else each step in a kernel ends in its timer's handler.
            flags |= kvm.KVM_GUESTDBG_SINGLESTEP | self._block
        self._armed[index] = flags | kvm.KVM_GUESTDBG_ENABLE if flags else 0
        self._set(index, 0)

    def disarm(self, index: int) -> None:
        if self._armed.pop(index, 0):
            self.vcpus[index].debug(0)

    def take(self, index: int, event: Exit) -> Exit | Stop | None:
        if not isinstance(event, Debug):
            return super().take(index, event)
        if event.exception == BREAKPOINT:
            return self._int3(index, event.address)
        if self._unikernel is not None and event.address // PAGE * PAGE == abi.GUEST_SYSTEM_PAGE:
            return None  # What was stepped raised an exception: its stub comes to its port.
        hits = event.dr6 & DR6_POINTS
        if hits and self.points:
            part = self._parts(self.points)[(hits & -hits).bit_length() - 1]
            return Stop(index, SIGTRAP, part.reason())
        if index in self._stepping and event.dr6 & DR6_STEP:
            return None if self._in_range(index) else Stop(index, SIGTRAP)
        self._set(index, kvm.KVM_GUESTDBG_INJECT_DB)
        return None

    def _int3(self, index: int, address: int) -> Stop | None:
        if address not in self.code:  # The guest's own, as kernels have them.
            self._set(index, kvm.KVM_GUESTDBG_INJECT_BP)
            return None
        regs = self.vcpus[index].regs
        if regs.rip != address:
            regs.rip = address
            self.vcpus[index].regs = regs
        return Stop(index, SIGTRAP, Point(Kind.SOFTWARE, address, 1).reason())

    def _set(self, index: int, inject: int) -> None:
        self.vcpus[index].debug(self._armed[index] | inject, debug_registers(self._parts(self.points)))

    def _parts(self, points: Sequence[Point]) -> list[Point]:
        return [part for point in points for part in aligned(point)]


class StubControl(Control):
    """By a unikernel's own exception stubs and its trap flag; watchpoints by pages that can't be written to."""

    def __init__(self, vcpus: Sequence[Vcpu], memory: GuestMemory, unikernel: Guest) -> None:
        super().__init__(vcpus, memory, unikernel)
        self._values: dict[Point, bytes] = {}
        self._guarded: set[tuple[int, int]] = set()
        """pages (address in this process, size) that are read-only for now"""

    def insert(self, point: Point) -> None:
        if point.kind in (Kind.SOFTWARE, Kind.HARDWARE):
            self._plant(point.kind, point.address)
            return
        if point.kind is not Kind.WRITE:
            raise UnsupportedError("this host's debug registers don't see guests, so only writes can be watched")
        self.memory.read(point.address, point.size)
        for row in self.memory.rows(point.address, point.size):
            if not row.writable:
                raise ValueError(f"slot {row.name} is read-only for the guest, there is nothing to watch")
        if point not in self.points:
            self.points.append(point)

    def remove(self, point: Point) -> None:
        if point.kind in (Kind.SOFTWARE, Kind.HARDWARE):
            self._pull(point.kind, point.address)
        elif point in self.points:
            self.points.remove(point)

    def arm(self, index: int, step: range | None) -> None:
        self._stepping.pop(index, None)
        if step is not None:
            self._stepping[index] = step
            self._trap(index, on=True)
        self._values = {point: self.memory.read(point.address, point.size) for point in self.points}
        self._guard()

    def disarm(self, index: int) -> None:
        if self._unguard() or index in self._stepping:
            self._trap(index, on=False)

    def failed(self, index: int, error: KvmError) -> None:
        if error.errno != errno.EFAULT or not self._guarded:
            raise error
        # The guest wrote to a guarded page, maybe to what is watched: let it do that one instruction, then look.
        self._unguard()
        self._trap(index, on=True)

    def _stopped_by(self, index: int, vector: int, rip: int) -> Stop | None:
        lifted = bool(self.points) and not self._guarded
        if vector != DEBUG_EXCEPTION or not (lifted or index in self._stepping):
            return super()._stopped_by(index, vector, rip)
        self._trap(index, on=False)
        hit = self._changed()
        if hit is not None:
            return Stop(index, SIGTRAP, hit.reason())
        if index in self._stepping:
            if not self._in_range(index):
                return Stop(index, SIGTRAP)
            self._trap(index, on=True)
        self._guard()
        return None

    def _changed(self) -> Point | None:
        """Return a watched point whose bytes are not what they were."""
        for point, before in self._values.items():
            if self.memory.read(point.address, point.size) != before:
                return point
        return None

    def _trap(self, index: int, *, on: bool) -> None:
        vcpu = self.vcpus[index]
        regs = vcpu.regs
        regs.rflags = regs.rflags | TRAP_FLAG if on else regs.rflags & ~TRAP_FLAG
        vcpu.regs = regs

    def _guard(self) -> None:
        for point in self.points:
            for page in self.memory.pages(point.address, point.size):
                if page not in self._guarded and mapping.map_protect(*page, False) == 0:
                    self._guarded.add(page)

    def _unguard(self) -> bool:
        """Let the guest write to guarded pages again; tell whether there were any."""
        guarded = bool(self._guarded)
        while self._guarded:
            mapping.map_protect(*self._guarded.pop(), True)
        return guarded
