"""All that KVM keeps of a guest beside its memory, as plain values, and putting it back into another VM.

What a KVM doesn't have (no interrupt controller, say) is left out, and is left as it is when it isn't in a state.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from hostd.kvm.call import call, call_with, ffi, lib
from hostd.kvm.errors import KvmError
from hostd.kvm.vcpu import Vcpu
from hostd.kvm.vm import Vm

TSC, TSC_DEADLINE = 0x10, 0x6E0
"""the deadline counts only once the local APIC's timer is in that mode, and against the restored TSC"""
HYPERV = range(0x4000_0000, 0x4000_0200)
"""MSRs of another hypervisor's interface: KVM lists them, but takes back not even their own values"""
XSAVE_SIZE = 4096
"""bytes of struct kvm_xsave; more (KVM_CAP_XSAVE2) are only of what a process must ask for first (AMX)"""
CHIPS = (lib.KVM_IRQCHIP_PIC_MASTER, lib.KVM_IRQCHIP_PIC_SLAVE, lib.KVM_IRQCHIP_IOAPIC)
VCPU_PARTS = ("sregs", "regs", "xsave", "xcrs", "debugregs", "lapic", "msrs", "vcpu_events", "mp_state")
"""in the order in which they are put back: segments before the rest; the APIC before MSRs that its timer minds"""
STRUCTURES = {
    "regs": ("kvm_regs", "REGS"),
    "sregs": ("kvm_sregs", "SREGS"),
    "xcrs": ("kvm_xcrs", "XCRS"),
    "debugregs": ("kvm_debugregs", "DEBUGREGS"),
    "lapic": ("kvm_lapic_state", "LAPIC"),
    "vcpu_events": ("kvm_vcpu_events", "VCPU_EVENTS"),
    "mp_state": ("kvm_mp_state", "MP_STATE"),
}


def save_vcpu(vcpu: Vcpu, msrs: Sequence[int] = ()) -> dict[str, Any]:
    """Return the state of a vCPU that stands still and is settled, with those of `msrs` that it has.

    Raises KvmError.
    """
    # First of all: to read it, KVM takes an INIT or SIPI that waits, which changes everything else.
    state: dict[str, Any] = {"mp_state": _get(vcpu.fd, "KVM_GET_MP_STATE", ffi.new("struct kvm_mp_state *"))}
    if state["mp_state"] is None:
        del state["mp_state"]
    state |= {"msrs": _msrs(vcpu, [msr for msr in msrs if msr not in HYPERV]), "regs": bytes(ffi.buffer(vcpu.regs))}
    for part, (structure, ioctl) in STRUCTURES.items():
        if part == "mp_state":
            continue
        found = _get(vcpu.fd, f"KVM_GET_{ioctl}", ffi.new(f"struct {structure} *"))
        if found is not None:
            state[part] = found
    area = _get(vcpu.fd, "KVM_GET_XSAVE", ffi.new("uint8_t[]", XSAVE_SIZE))
    return state | ({"xsave": area} if area is not None else {"fpu": bytes(ffi.buffer(vcpu.fpu))})


def restore_vcpu(vcpu: Vcpu, state: dict[str, Any], elapsed_ns: int = 0) -> None:
    """Put back what `save_vcpu` returned; the vCPU has the CPUID that the other had.

    Its time-stamp counter, if it is among the MSRs, goes on as if it had run for `elapsed_ns` since. Raises KvmError,
    ValueError.
    """
    for part in VCPU_PARTS:
        if part == "msrs":
            values = {int(index): int(value) for index, value in state["msrs"]}
            if TSC in values:
                values[TSC] = (values[TSC] + elapsed_ns * vcpu.tsc_khz // 1_000_000) % (1 << 64)
            _set_msrs(vcpu, values)
        elif part == "xsave" and part not in state:
            vcpu.fpu = _structure("kvm_fpu", state["fpu"])
        elif part == "xsave":
            area = ffi.new("uint8_t[]", XSAVE_SIZE)
            ffi.buffer(area)[:] = state[part]
            call_with(vcpu.fd, "KVM_SET_XSAVE", area, {"vcpu": vcpu.fd})
        elif part in state:
            structure, ioctl = STRUCTURES[part]
            call_with(vcpu.fd, f"KVM_SET_{ioctl}", _structure(structure, state[part]), {"vcpu": vcpu.fd})
    # Tells the guest's watchdogs that it stood still; where it has no kvmclock there is nobody to tell.
    with contextlib.suppress(KvmError):
        call(vcpu.fd, "KVM_KVMCLOCK_CTRL")


def save_vm(vm: Vm) -> dict[str, Any]:
    """Return the state of a VM's interrupt controllers and clock, as far as it has them. Raises KvmError."""
    chips = [_get(vm.fd, "KVM_GET_IRQCHIP", ffi.new("struct kvm_irqchip *", {"chip_id": chip})) for chip in CHIPS]
    state: dict[str, Any] = {"chips": [chip for chip in chips if chip is not None]}
    clock = ffi.new("struct kvm_clock_data *")
    if _get(vm.fd, "KVM_GET_CLOCK", clock) is not None:
        # The host's time at that clock: exact where KVM can tell (Linux 5.16, and its own clock is the TSC).
        state["clock"] = [clock.clock, clock.realtime if clock.flags & lib.KVM_CLOCK_REALTIME else time.time_ns()]
    return state


def elapsed_ns(state: dict[str, Any]) -> int:
    """Return how long ago `save_vm` returned `state`, by the host's clock; 0 without a clock, or if it was set back."""
    return max(0, time.time_ns() - int(state["clock"][1])) if "clock" in state else 0


def restore_vm(vm: Vm, state: dict[str, Any], elapsed: int = 0) -> None:
    """Put back what `save_vm` returned; the clock goes on as if the guest had run for `elapsed` ns since.

    After the vCPUs: what the IOAPIC still holds goes to their local APICs now. Raises KvmError.
    """
    for saved in state["chips"]:
        chip = _structure("kvm_irqchip", saved)
        call_with(vm.fd, "KVM_SET_IRQCHIP", chip, {"chip": chip.chip_id})
    if "clock" in state:
        now = int(state["clock"][0]) + elapsed
        clock = ffi.new("struct kvm_clock_data *", {"clock": now})
        call_with(vm.fd, "KVM_SET_CLOCK", clock, {"clock": now})


def _structure(name: str, data: bytes) -> Any:
    value = ffi.new(f"struct {name} *")
    if len(data) != ffi.sizeof(value[0]):
        raise ValueError(f"{len(data)} bytes are no struct {name}, which has {ffi.sizeof(value[0])}")
    ffi.buffer(value)[:] = data
    return value


def _get(fd: int, ioctl: str, value: Any) -> bytes | None:
    """Return what an ioctl writes at `value`; None where KVM hasn't that."""
    try:
        call_with(fd, ioctl, value)
    except KvmError:
        return None
    return bytes(ffi.buffer(value))


def _msrs(vcpu: Vcpu, indices: Sequence[int]) -> list[list[int]]:
    """Return those MSRs that this vCPU has, as index and value; KVM's list is of all that it may have."""
    found = []
    for index in indices:
        try:
            found.append([index, vcpu.get_msrs(index)[index]])
        except KvmError:
            continue
    return found


def _set_msrs(vcpu: Vcpu, values: dict[int, int]) -> None:
    """Set MSRs, the deadline last; one that can't be set may stay if it is what it should be. Raises KvmError."""
    late = {index: values[index] for index in (TSC_DEADLINE,) if index in values}
    for index, value in ({k: v for k, v in values.items() if k not in late} | late).items():
        try:
            vcpu.set_msrs({index: value})
        except KvmError:
            if dict(_msrs(vcpu, [index])) != {index: value}:  # type: ignore[arg-type]
                raise
