"""What this host's KVM does for a debugger, told by trying: KVM_SET_GUEST_DEBUG takes more than it gives.

kvm_pvm gives a guest in ring 3 neither its breakpoints nor its steps; AMD-V as QEMU 7.2 emulates it (the lab) steps,
but intercepts no int3, and its debug registers don't work in guests.
"""

from __future__ import annotations

from dataclasses import dataclass

from hostd.doctor.probe import CODE, DONE, try_code
from hostd.gdb.breakpoints import INT3, Kind, Point, debug_registers
from hostd.kvm import Debug, System, Vcpu
from hostd.kvm._kvm import lib

NOPS = b"\x90\x90"
GUEST_DEBUG_FLAGS = 195
"""KVM_CAP_SET_GUEST_DEBUG2: which flags KVM_SET_GUEST_DEBUG takes"""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What ends with a debug exit, and whether interrupts can be kept out of single steps."""

    steps: bool
    int3: bool
    registers: bool
    block: int
    """KVM_GUESTDBG_BLOCKIRQ, or 0"""

    @classmethod
    def found(cls, ring: int) -> Abilities:
        """Try in a virtual machine with a few instructions in the given ring. Raises OSError."""
        with System.open() as system:

            def exits(code: bytes, flags: int, registers: list[int]) -> bool:
                def prepare(vcpu: Vcpu) -> None:
                    vcpu.debug(flags | lib.KVM_GUESTDBG_ENABLE, registers)

                return isinstance(try_code(system, code + DONE, ring, prepare), Debug)

            second = debug_registers([Point(Kind.HARDWARE, CODE + 1, 1)])
            return cls(
                steps=exits(NOPS, lib.KVM_GUESTDBG_SINGLESTEP, []),
                int3=exits(NOPS + INT3, lib.KVM_GUESTDBG_USE_SW_BP, []),
                registers=exits(NOPS, lib.KVM_GUESTDBG_USE_HW_BP, second),
                block=system.capability(GUEST_DEBUG_FLAGS) & lib.KVM_GUESTDBG_BLOCKIRQ,
            )
