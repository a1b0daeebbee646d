"""All that makes a Linux guest beside its memory: saved, and put into another with the same memory and devices."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hostd.boot.errors import ImageError
from hostd.boot.linux.layout import GENERATION, GENERATION_GSI, GENERATION_SIZE
from hostd.devices.virtio.blk import Blk
from hostd.kvm import System, Vcpu
from hostd.kvm.state import elapsed_ns, restore_vcpu, restore_vm, save_vcpu, save_vm

if TYPE_CHECKING:
    from hostd.vmm.guest import Template
    from hostd.vmm.linux import LinuxGuest


def save(guest: LinuxGuest, file: int) -> dict[str, Any]:
    """Return the state of a guest that is still, for `restore`; what it wrote to private disks goes to `file`'s end.

    Raises ValueError: it is about to end; KvmError, DeviceError, BackingError.
    """
    with System.open() as system:
        msrs = system.msr_indices()
    for vcpu in guest.vcpus:
        _settle(guest, vcpu)
    return {
        "vcpus": [save_vcpu(vcpu, msrs) for vcpu in guest.vcpus],
        "vm": save_vm(guest.vm),
        "devices": guest.machine.save(),
        "disks": guest.disk_marks,
        "overlays": {disk.name: disk.save_overlay(file) for disk in _private_disks(guest)},
    }


def restore(guest: LinuxGuest, template: Template) -> None:
    """Have `guest`, which has the template's memory and the same devices, go on where the template's guest was.

    Nothing in the state is believed. Raises ImageError: it does not fit, or is damaged; KvmError, DeviceError,
    ValueError, SlotError, BackingError.
    """
    with _sound():
        _restore(guest, template)
    # Another generation: Linux 5.18 and later makes its random numbers anew then.
    guest.table.write(GENERATION, os.urandom(GENERATION_SIZE))
    for level in (True, False):  # An edge.
        guest.vm.irq_line(GENERATION_GSI, level)


def _restore(guest: LinuxGuest, template: Template) -> None:
    state = template.state
    if len(state["vcpus"]) != len(guest.vcpus):
        raise ImageError(f"the template is of a guest with {len(state['vcpus'])} vCPUs, not {len(guest.vcpus)}")
    for number, (now, then) in enumerate(zip(guest.disk_marks, state["disks"], strict=False)):
        if now != then:
            raise ImageError(
                f"disk {number} has changed since the guest of the template started, and it remembers what was there; "
                "put the old file back, or make the template again"
            )
    elapsed = elapsed_ns(state["vm"])
    for vcpu, saved in zip(guest.vcpus, state["vcpus"], strict=True):
        restore_vcpu(vcpu, saved, elapsed)
    restore_vm(guest.vm, state["vm"], elapsed)
    for disk in _private_disks(guest):
        disk.restore_overlay(template.memory, state["overlays"][disk.name])
    # What interrupts the devices still owe goes to controllers that are there by now.
    guest.machine.restore(state["devices"])


@contextlib.contextmanager
def _sound() -> Iterator[None]:
    """Inside this context what a state lacks, or has as something else, is an ImageError."""
    try:
        yield
    except (KeyError, TypeError, IndexError, AttributeError, OverflowError):
        raise ImageError("the template is damaged or of another version of hostd; make it again") from None


def _settle(guest: LinuxGuest, vcpu: Vcpu) -> None:
    """Have an access in flight served to its end: one may lead to the next. Raises ValueError, KvmError."""
    while vcpu.settle() is not None:
        if guest.machine.handle_pending() is not None:
            raise ValueError("its guest is about to end")


def _private_disks(guest: LinuxGuest) -> list[Blk]:
    return [face for face in guest.machine.faces if isinstance(face, Blk) and face.access == "private"]
