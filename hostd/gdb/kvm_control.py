"""Control by KVM_SET_GUEST_DEBUG, as far as the host's KVM does what it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hostd.boot._abi import lib as abi
from hostd.gdb.abilities import Abilities
from hostd.gdb.breakpoints import DEBUG_REGISTERS, Kind, Point, aligned, debug_registers
from hostd.gdb.control import BREAKPOINT, PAGE, SIGTRAP, Control, Stop
from hostd.gdb.memory import GuestMemory
from hostd.kvm import Debug, Exit, Io
from hostd.kvm._kvm import lib

if TYPE_CHECKING:
    from hostd.kvm import Vcpu
    from hostd.vmm.guest import Guest

DR6_STEP, DR6_POINTS = 1 << 14, 0b1111
TRAP_PORT = 0xE7
"""nobody's on a PC"""
PORT_TRAP = bytes([0xE6, TRAP_PORT])
"""out %al, $TRAP_PORT: an exit of its own, for code in ring 0"""


class KvmControl(Control):
    """Steps by KVM; breakpoints as int3, or as writes to a port; points in debug registers, or as the base does."""

    def __init__(
        self, vcpus: Sequence[Vcpu], memory: GuestMemory, unikernel: Guest | None, abilities: Abilities
    ) -> None:
        super().__init__(vcpus, memory, unikernel)
        self.registers = abilities.registers
        self._abilities = abilities
        if not abilities.int3:
            self.code.trap = PORT_TRAP
        for vcpu in vcpus:
            vcpu.pass_up(0 if abilities.int3 else TRAP_PORT)

    def insert(self, point: Point) -> None:
        if not self.registers or point.kind is Kind.SOFTWARE:
            super().insert(point)
            return
        if point in self.points:
            return
        if len(self._parts([*self.points, point])) > DEBUG_REGISTERS:
            raise ValueError(f"all {DEBUG_REGISTERS} debug registers are taken")
        self.points.append(point)

    def remove_all(self) -> None:
        super().remove_all()
        for vcpu in self.vcpus:
            vcpu.pass_up(0)
            vcpu.debug(0)

    def take(self, index: int, event: Exit) -> Exit | Stop | None:
        if isinstance(event, Io) and event.port == TRAP_PORT and not self._abilities.int3:
            return self._port(index, event)
        return self._debug(index, event) if isinstance(event, Debug) else super().take(index, event)

    def _debug(self, index: int, event: Debug) -> Stop | None:
        if event.exception == BREAKPOINT:
            return self._int3(index, event.address)
        if self._unikernel is not None and event.address // PAGE * PAGE == abi.GUEST_SYSTEM_PAGE:
            return None  # What was stepped raised an exception: its stub comes to its port.
        hits = event.dr6 & DR6_POINTS
        if hits and self.registers and self.points:
            part = self._parts(self.points)[(hits & -hits).bit_length() - 1]
            return Stop(index, SIGTRAP, part.reason())
        if event.dr6 & DR6_STEP and (index in self._stepping or index in self._lifting):
            return self._stepped(index)
        self._set(index, on=False, inject=lib.KVM_GUESTDBG_INJECT_DB)
        return None

    def _int3(self, index: int, address: int) -> Stop | None:
        if address not in self.code:  # The guest's own, as kernels have them.
            self._set(index, on=index in self._stepping, inject=lib.KVM_GUESTDBG_INJECT_BP)
            return None
        self._go_to(index, address)
        return self._at_breakpoint(index, address)

    def _port(self, index: int, event: Io) -> Exit | Stop:
        # Hardware exits before the instruction, KVM's emulator behind it: settled, both stand behind it.
        self.vcpus[index].settle()
        address = self.vcpus[index].regs.rip - len(PORT_TRAP)
        if address not in self.code:
            return event
        self._go_to(index, address)
        return self._at_breakpoint(index, address)

    def _go_to(self, index: int, address: int) -> None:
        regs = self.vcpus[index].regs
        if regs.rip != address:
            regs.rip = address
            self.vcpus[index].regs = regs

    def _step(self, index: int, *, on: bool) -> None:
        self._set(index, on=on)

    def _set(self, index: int, *, on: bool, inject: int = 0) -> None:
        flags = lib.KVM_GUESTDBG_USE_SW_BP if len(self.code) and self._abilities.int3 else 0
        flags |= lib.KVM_GUESTDBG_USE_HW_BP if self.points and self.registers else 0
        # Else each step in a kernel ends in its timer's handler.
        flags |= lib.KVM_GUESTDBG_SINGLESTEP | self._abilities.block if on else 0
        registers = debug_registers(self._parts(self.points)) if self.registers else []
        self.vcpus[index].debug((flags | lib.KVM_GUESTDBG_ENABLE if flags else 0) | inject, registers)

    def _parts(self, points: Sequence[Point]) -> list[Point]:
        return [part for point in points for part in aligned(point)]
