"""A bare virtual machine for tests: a few pages of memory and a few bytes of machine code."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hostd.kvm import System, Vcpu, Vm
from hostd.memory import Anonymous, SlotTable

CODE = 0x1000
LOW = 0x20000
"""bytes of memory at address 0"""
TABLES = 0x10000
PORT = 0x10

SPIN = bytes.fromhex("eb fe")
HLT = b"\xf4"
PRESENT_WRITE_USER, LARGE = 7, 0x80


def out(value: int, port: int = PORT) -> bytes:
    """mov $value, %al; out %al, $port: the same bytes in 16-bit and 64-bit mode."""
    return bytes([0xB0, value, 0xE6, port])


@dataclass
class Machine:
    """A VM with a slot table and one vCPU."""

    vm: Vm
    table: SlotTable
    vcpu: Vcpu

    def real_mode(self, code: bytes, at: int = CODE) -> None:
        """Have the vCPU run `code` in real mode, all segments at 0, the stack below 0x8000."""
        self.table.write(at, code)
        sregs = self.vcpu.sregs
        for segment in (sregs.cs, sregs.ds, sregs.es, sregs.ss):
            segment.base = segment.selector = 0
        self.vcpu.sregs = sregs
        self._jump(at, 0x8000, 2)

    def ring3(self, code: bytes, at: int = CODE) -> None:
        """Have the vCPU run `code` in ring 3 of 64-bit mode; the first GiB is mapped to itself."""
        self.table.write(at, code)
        root, pointers, directory = TABLES, TABLES + 0x1000, TABLES + 0x2000
        self.table.write(root, struct.pack("<Q", pointers | PRESENT_WRITE_USER))
        self.table.write(pointers, struct.pack("<Q", directory | PRESENT_WRITE_USER))
        large = [page << 21 | LARGE | PRESENT_WRITE_USER for page in range(512)]
        self.table.write(directory, struct.pack("<512Q", *large))
        sregs = self.vcpu.sregs
        sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = 0x80050033, root, 0x620, 0x500
        for segment in (sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
            segment.base, segment.limit, segment.selector = 0, 0xFFFFFFFF, 0x2B
            segment.type, segment.present, segment.dpl, segment.s = 3, 1, 3, 1
            segment.db, segment.l, segment.g = 1, 0, 1
        sregs.cs.type, sregs.cs.db, sregs.cs.l, sregs.cs.selector = 11, 0, 1, 0x33
        self.vcpu.sregs = sregs
        # IOPL 3, for ports, where the hardware's rules are followed.
        self._jump(at, 0x8000, 0x3002)

    def _jump(self, rip: int, rsp: int, rflags: int) -> None:
        regs = self.vcpu.regs
        regs.rip, regs.rsp, regs.rflags = rip, rsp, rflags
        self.vcpu.regs = regs

    def close(self) -> None:
        self.table.close()
        self.vcpu.close()
        self.vm.close()


def build(system: System, *, irqchip: bool = False) -> Machine:
    """Return a machine with LOW bytes of memory at 0 and nothing else."""
    vm = system.create_vm()
    if irqchip:
        vm.irqchip()
    table = SlotTable(vm)
    table.add(0, LOW, Anonymous(), name="low")
    vcpu = vm.create_vcpu(0)
    vcpu.set_cpuid(system.supported_cpuid())
    return Machine(vm, table, vcpu)
