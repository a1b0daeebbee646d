"""What this host's KVM can really do, told by running a few instructions in a virtual machine.

Some KVMs have no hardware virtualisation below them: they run ring 3 natively and interpret ring 0, with an
interpreter that knows only a part of the instructions. A unikernel is at home there, a stock operating
system is not.
"""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import Callable
from enum import Enum

from hostd.kvm import Exit, InternalError, Io, NoKvmError, System, Vcpu
from hostd.kvm.system import DEVICE
from hostd.memory import Anonymous, SlotTable

TIME_LIMIT = 5.0
"""seconds that a probe may run; it needs a few microseconds"""

PORT = 0x10
CODE, OPERAND, TABLES, MEMORY = 0x1000, 0x2000, 0x3000, 0x10000
PRESENT_WRITE_USER, LARGE = 7, 0x80
DONE = bytes([0xE6, PORT, 0xF4])  # out %al, $PORT; hlt
# lock cmpxchg16b OPERAND: an instruction that stock kernels use, and that no interpreter of KVM's has.
RING0 = bytes.fromhex("f0480fc70c25") + struct.pack("<I", OPERAND) + DONE
RING3 = b"\x90" + DONE


class KvmKind(Enum):
    """Which guests this host's KVM can run."""

    NONE = "none"
    """there is no KVM"""
    FORBIDDEN = "forbidden"
    """there is, but not for this user"""
    BROKEN = "broken"
    """not even a unikernel's first instructions run"""
    UNIKERNEL = "unikernel"
    """ring 3 runs, ring 0 is interpreted in part: unikernels only"""
    FULL = "full"
    """ring 0 runs in hardware (or a full emulation of it): any guest"""


def kvm_kind(device: str = DEVICE) -> KvmKind:
    """Tell which guests KVM can run here, by trying. Never raises."""
    return examine(device)[0]


def examine(device: str = DEVICE) -> tuple[KvmKind, str]:
    """As `kvm_kind`, with a clause that says what was seen."""
    try:
        system = System.open(device)
    except NoKvmError as error:
        forbidden = error.errno in (errno.EACCES, errno.EPERM)
        return KvmKind.FORBIDDEN if forbidden else KvmKind.NONE, str(error)
    with system:
        try:
            seen = try_code(system, RING3, ring=3)
            if not isinstance(seen, Io):
                return KvmKind.BROKEN, f"code in ring 3 ended with {seen}"
            seen = try_code(system, RING0, ring=0)
        except (OSError, ValueError) as error:
            return KvmKind.BROKEN, str(error)
    if isinstance(seen, Io):
        return KvmKind.FULL, "rings 0 and 3 run in hardware"
    if isinstance(seen, InternalError):
        return KvmKind.UNIKERNEL, "ring 3 runs in hardware; ring 0 is interpreted, without cmpxchg16b"
    return KvmKind.UNIKERNEL, f"ring 3 runs in hardware; ring 0 ended with {seen}"


def try_code(system: System, code: bytes, ring: int, prepare: Callable[[Vcpu], None] = lambda _: None) -> Exit:
    """Run `code` in 64-bit mode in the given ring; return how it ended. `prepare` is given the vCPU before it runs."""
    with system.create_vm() as vm, SlotTable(vm) as table:
        table.add(0, MEMORY, Anonymous(), name="probe")
        table.write(CODE, code)
        for level in range(2):
            table.write(TABLES + level * 0x1000, struct.pack("<Q", TABLES + (level + 1) * 0x1000 | PRESENT_WRITE_USER))
        table.write(TABLES + 0x2000, struct.pack("<Q", LARGE | PRESENT_WRITE_USER))
        with vm.create_vcpu(0) as vcpu:
            vcpu.set_cpuid(system.supported_cpuid())
            sregs = vcpu.sregs
            # Paging with 4 levels, long mode, SSE; flat segments.
            sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = 0x80050033, TABLES, 0x620, 0x500
            for segment in (sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
                segment.base, segment.limit, segment.selector = 0, 0xFFFFFFFF, 0x10 | ring
                segment.type, segment.present, segment.dpl, segment.s = 3, 1, ring, 1
                segment.db, segment.l, segment.g = 1, 0, 1
            sregs.cs.type, sregs.cs.db, sregs.cs.l, sregs.cs.selector = 11, 0, 1, 0x8 | ring
            vcpu.sregs = sregs
            regs = vcpu.regs
            regs.rip, regs.rsp, regs.rflags = CODE, MEMORY, 0x3002  # IOPL 3: ring 3 may use ports
            vcpu.regs = regs
            prepare(vcpu)
            guard = threading.Timer(TIME_LIMIT, vcpu.stop)
            guard.start()
            try:
                return vcpu.run()
            finally:
                guard.cancel()
                guard.join()
