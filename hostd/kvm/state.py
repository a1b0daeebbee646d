"""All that KVM keeps of a guest beside its memory, as plain values, and putting it back into another VM.

What a KVM doesn't have (no interrupt controller, say) is left out, and is left as it is when it isn't in a state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from hostd.kvm.call import call, call_with, ffi, lib
from hostd.kvm.errors import KvmError
from hostd.kvm.vcpu import Vcpu
from hostd.kvm.vm import Vm

TSC_DEADLINE = 0x6E0
"""counts only once the local APIC's timer is in that mode, and against the restored TSC"""
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
    state: dict[str, Any] = {"msrs": _msrs(vcpu, msrs), "regs": bytes(ffi.buffer(vcpu.regs))}
    for part, (structure, ioctl) in STRUCTURES.items():
        found = _get(vcpu.fd, f"KVM_GET_{ioctl}", ffi.new(f"struct {structure} *"))
        if found is not None:
            state[part] = found
    area = _get(vcpu.fd, "KVM_GET_XSAVE", ffi.new("uint8_t[]", XSAVE_SIZE))
    return state | ({"xsave": area} if area is not None else {"fpu": bytes(ffi.buffer(vcpu.fpu))})


def restore_vcpu(vcpu: Vcpu, state: dict[str, Any]) -> None:
    """Put back what `save_vcpu` returned; the vCPU has the CPUID that the other had. Raises KvmError, ValueError."""
    for part in VCPU_PARTS:
        if part == "msrs":
            _set_msrs(vcpu, {int(index): int(value) for index, value in state["msrs"]})
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
        state["clock"] = [clock.clock, clock.realtime if clock.flags & lib.KVM_CLOCK_REALTIME else 0]
    return state


def restore_vm(vm: Vm, state: dict[str, Any]) -> None:
    """Put back what `save_vm` returned; the clock goes on as if the guest had run all the time. Raises KvmError."""
    for saved in state["chips"]:
        chip = _structure("kvm_irqchip", saved)
        call_with(vm.fd, "KVM_SET_IRQCHIP", chip, {"chip": chip.chip_id})
    if "clock" in state:
        now, realtime = state["clock"]
        flags = lib.KVM_CLOCK_REALTIME if realtime else 0
        clock = ffi.new("struct kvm_clock_data *", {"clock": now, "flags": flags, "realtime": realtime})
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
