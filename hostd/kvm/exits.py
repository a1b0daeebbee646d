"""Why a vCPU came back: one small class for each reason (Documentation/virt/kvm/api.rst, section 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exit:
    """A return of the run loop."""


@dataclass(frozen=True, slots=True)
class Io(Exit):
    """The guest accessed a port: `count` items of `size` bytes.

    `data` holds what it wrote (`is_write`), or is empty: then `Vcpu.reply` gives it what it reads.
    """

    port: int
    is_write: bool
    size: int
    count: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Mmio(Exit):
    """The guest accessed `size` bytes at guest physical `address` where it has no memory (or wrote to
    read-only memory).

    `data` holds what it wrote (`is_write`), or is empty: then `Vcpu.reply` gives it what it reads.
    """

    address: int
    is_write: bool
    size: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Hlt(Exit):
    """The guest executed HLT and no interrupt controller is in the kernel to wait in."""


@dataclass(frozen=True, slots=True)
class Shutdown(Exit):
    """Triple fault: the guest faulted where its own handlers could not be reached."""


@dataclass(frozen=True, slots=True)
class Interrupted(Exit):
    """`Vcpu.stop` was called."""


@dataclass(frozen=True, slots=True)
class Debug(Exit):
    """A breakpoint or single step that the host asked for; `address` is linear, `exception` 1 (#DB) or 3 (#BP)."""

    address: int
    dr6: int
    exception: int


@dataclass(frozen=True, slots=True)
class InternalError(Exit):
    """KVM gave up.

    `suberror` 1: an instruction its emulator lacks; `instruction` holds the bytes, if KVM gave them.
    """

    suberror: int
    data: tuple[int, ...]
    instruction: bytes | None


@dataclass(frozen=True, slots=True)
class FailEntry(Exit):
    """The CPU refused the guest's state; `reason` is the hardware's."""

    reason: int
    cpu: int


@dataclass(frozen=True, slots=True)
class SystemEvent(Exit):
    """The guest asked for shutdown (1) or reset (2), or crashed (3), through an interface of KVM's."""

    type: int
    data: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MemoryFault(Exit):
    """The host could not provide the guest's page: `size` bytes at guest physical `address`."""

    address: int
    size: int
    flags: int


@dataclass(frozen=True, slots=True)
class IoapicEoi(Exit):
    """The guest ended a level-triggered interrupt (split irqchip)."""

    vector: int


@dataclass(frozen=True, slots=True)
class Unknown(Exit):
    """A reason that hostd does not know; `reason` is KVM_EXIT_*."""

    reason: int
    data: tuple[int, ...]


def _internal(words: tuple[int, ...]) -> InternalError:
    suberror, *data = words
    instruction = None
    # kvm_run.emulation_failure: flags, a size byte, 15 instruction bytes; flag 1: they are there.
    if suberror == 1 and len(data) >= 3 and data[0] & 1:
        packed = b"".join(word.to_bytes(8, "little") for word in data[1:3])
        instruction = packed[1 : 1 + min(packed[0], 15)]
    return InternalError(suberror, tuple(data), instruction)


REASONS = (
    "unknown exception io hypercall debug hlt mmio irq_window_open shutdown fail_entry intr set_tpr tpr_access "
    "s390_sieic s390_reset dcr nmi internal_error osi papr_hcall s390_ucontrol watchdog s390_tsch epr "
    "system_event s390_stsi ioapic_eoi hyperv arm_nisv x86_rdmsr x86_wrmsr dirty_ring_full ap_reset_hold "
    "x86_bus_lock xen riscv_sbi riscv_csr notify loongarch_iocsr memory_fault"
).split()
"""names of KVM_EXIT_*, by number"""


BY_REASON: dict[int, Callable[[int, tuple[int, ...]], Exit]] = {
    4: lambda _address, words: Debug(*words),
    5: lambda _address, _words: Hlt(),
    8: lambda _address, _words: Shutdown(),
    9: lambda _address, words: FailEntry(*words),
    17: lambda _address, words: _internal(words),
    24: lambda _address, words: SystemEvent(words[0], words[1:]),
    26: lambda _address, words: IoapicEoi(*words),
    39: lambda address, words: MemoryFault(address, *words),
}


def of_reason(reason: int, address: int, words: tuple[int, ...]) -> Exit:
    """Return the exit for KVM's `reason`, as vcpu_exit() of exit.c flattens it."""
    make = BY_REASON.get(reason)
    return make(address, words) if make is not None else Unknown(reason, words)
