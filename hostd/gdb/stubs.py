"""Control by a unikernel's own exception stubs and its trap flag.

A KVM without hardware virtualisation below it (kvm_pvm) hands single steps and breakpoints to the guest. A unikernel's
stubs then report them, as they report faults.
"""

from __future__ import annotations

from hostd.gdb.control import DEBUG_EXCEPTION, Control, Stop

TRAP_FLAG = 1 << 8


class StubControl(Control):
    """For unikernels, wherever KVM's own debug exits don't come."""

    def _step(self, index: int, *, on: bool) -> None:
        vcpu = self.vcpus[index]
        regs = vcpu.regs
        wanted = regs.rflags | TRAP_FLAG if on else regs.rflags & ~TRAP_FLAG
        if regs.rflags != wanted:
            regs.rflags = wanted
            vcpu.regs = regs

    def in_stub(self, index: int) -> bool:
        # Behind a breakpoint its int3 may have been done and not yet told: KVM keeps software exceptions to itself.
        return super().in_stub(index) or self.vcpus[index].regs.rip - 1 in self.code

    def hurry(self, index: int) -> None:
        if self.vcpus[index].regs.rip - 1 in self.code:
            self._step(index, on=True)

    def _stopped_by(self, index: int, vector: int, rip: int) -> Stop | None:
        if vector == DEBUG_EXCEPTION and (index in self._stepping or index in self._lifting):
            return self._stepped(index)
        return super()._stopped_by(index, vector, rip)
