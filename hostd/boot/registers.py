"""The state in which a unikernel's vCPU starts: ring 3 of 64-bit mode, port output allowed, SSE and AVX on.

Bits: AMD64 Architecture Programmer's Manual, volume 2, chapter 3.
"""

from __future__ import annotations

from hostd.boot._abi import lib
from hostd.boot.descriptors import GDT, IDT, KERNEL_CODE, RING3, TASK, TSS, TSS_SIZE, USER_CODE, USER_DATA, VECTORS
from hostd.kvm import Vcpu

CR0 = 0x80050033  # PG, AM, WP, NE, ET, MP, PE
CR4_PAE, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_OSXSAVE = 1 << 5, 1 << 9, 1 << 10, 1 << 18
EFER = 1 << 8 | 1 << 10 | 1 << 11  # LME, LMA, NXE
# IOPL 3 is what kvm_amd asks for a port, the TSS bitmap what kvm_pvm asks; bit 9 is IF, bit 1 is always set.
RFLAGS = 0x3202
XCR0_WANTED = 0b111  # x87, SSE, AVX


def enter_ring3(vcpu: Vcpu, entry: int, stack: int) -> None:
    """Set every register of `vcpu` so that it starts at `entry` with RSP = `stack` and RDI = the info area."""
    raise NotImplementedError
