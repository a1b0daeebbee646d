"""One virtual machine: its slots, interrupt controller and eventfds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hostd.kvm.call import call, call_with, ffi, lib
from hostd.kvm.capabilities import number
from hostd.kvm.stats import read_stats
from hostd.kvm.vcpu import Vcpu

if TYPE_CHECKING:
    from collections.abc import Mapping

IDENTITY_MAP = 0xFFFB_C000  # one page, then three for the TSS: below the BIOS area, inside the MMIO hole
TSS = IDENTITY_MAP + 0x1000
IOAPIC_PINS = 24


class Vm:
    """A KVM virtual machine. A context manager; dies when it, its vCPUs and its slots' users are gone."""

    def __init__(self, fd: int, run_size: int) -> None:
        self.fd = fd
        self._run_size = run_size

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Vm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def capability(self, capability: str | int) -> int:
        """As `System.capability`, for what may differ by VM (the number of slots and vCPUs, for example)."""
        return call(self.fd, "KVM_CHECK_EXTENSION", number(capability), {"capability": str(capability)})

    def enable(self, capability: str | int, *values: int) -> None:
        """Turn on a capability that is off by default, with up to four values. Raises KvmError."""
        request = ffi.new("struct kvm_enable_cap *", {"cap": number(capability), "args": list(values)})
        call_with(self.fd, "KVM_ENABLE_CAP", request, {"capability": str(capability)})

    def create_vcpu(self, index: int = 0) -> Vcpu:
        """Make a vCPU in its reset state (real mode at 0xFFFFFFF0), knowing no CPUID yet. Raises KvmError."""
        return Vcpu(call(self.fd, "KVM_CREATE_VCPU", index, {"index": index}), self._run_size)

    # --- memory ---------------------------------------------------------------------------------------------

    def set_slot(self, index: int, gpa: int, size: int, hva: int, flags: int = 0) -> None:
        """Give the guest `size` bytes at guest physical `gpa`, which are this process's memory at `hva`.

        All three are multiples of the page size; `flags` are KVM_MEM_*. Raises KvmError (EEXIST: overlaps a
        slot).
        """
        slot = ffi.new("struct kvm_userspace_memory_region *", (index, flags, gpa, size, hva))
        about: dict[str, int | str] = {"slot": index, "gpa": gpa, "size": size, "hva": hva, "flags": flags}
        call_with(self.fd, "KVM_SET_USER_MEMORY_REGION", slot, about)

    def dirty_log(self, index: int, pages: int) -> bytes:
        """Return a bit for each of the `pages` of slot `index`: written since the last call, or since it is logged.

        The slot has KVM_MEM_LOG_DIRTY_PAGES. Raises KvmError.
        """
        bitmap = ffi.new("uint64_t[]", -(-pages // 64))
        request = ffi.new("struct kvm_dirty_log *", {"slot": index, "dirty_bitmap": bitmap})
        call_with(self.fd, "KVM_GET_DIRTY_LOG", request, {"slot": index})
        return bytes(ffi.buffer(bitmap))

    def delete_slot(self, index: int) -> None:
        """Take the memory of slot `index` away from the guest, which may be running. Raises KvmError."""
        slot = ffi.new("struct kvm_userspace_memory_region *", {"slot": index})
        call_with(self.fd, "KVM_SET_USER_MEMORY_REGION", slot, {"slot": index, "size": 0})

    # --- what only some guests need -------------------------------------------------------------------------

    def set_tss_addr(self, tss: int = TSS, identity_map: int = IDENTITY_MAP) -> None:
        """Give KVM four pages for Intel CPUs that lack "unrestricted guest"; before the first vCPU."""
        address = ffi.new("uint64_t *", identity_map)
        call_with(self.fd, "KVM_SET_IDENTITY_MAP_ADDR", address, {"address": identity_map})
        call(self.fd, "KVM_SET_TSS_ADDR", tss, {"address": tss})

    def irqchip(self, split_pins: int | None = None) -> None:
        """Make the interrupt controllers, before the first vCPU: PIC, IOAPIC and local APICs in the kernel.

        With `split_pins`, only the local APICs are, for an IOAPIC of so many pins in user space. Raises
        KvmError.
        """
        if split_pins is None:
            call(self.fd, "KVM_CREATE_IRQCHIP", 0, {})
        else:
            self.enable("SPLIT_IRQCHIP", split_pins)

    def pit(self) -> None:
        """Make the i8254 timer; needs the whole irqchip. Raises KvmError."""
        call_with(self.fd, "KVM_CREATE_PIT2", ffi.new("struct kvm_pit_config *"), {})

    def irq_line(self, gsi: int, level: bool) -> None:
        """Set the level of interrupt line `gsi`. Raises KvmError."""
        line = ffi.new("struct kvm_irq_level *", {"irq": gsi, "level": level})
        call_with(self.fd, "KVM_IRQ_LINE", line, {"gsi": gsi, "level": int(level)})

    def signal_msi(self, address: int, data: int) -> bool:
        """Send a message-signalled interrupt; False when the guest blocks it. Raises KvmError."""
        low, high = address & 0xFFFF_FFFF, address >> 32
        msi = ffi.new("struct kvm_msi *", {"address_lo": low, "address_hi": high, "data": data})
        return call_with(self.fd, "KVM_SIGNAL_MSI", msi, {"address": address, "data": data}) > 0

    def set_gsi_routing(self, messages: Mapping[int, tuple[int, int]]) -> None:
        """Say what each interrupt line (GSI) that an irqfd may raise stands for; needs the whole irqchip.

        `messages` gives the address and data of message-signalled interrupts by GSI, 24 and up; the lines below are the
        pins of the PICs and the IOAPIC, as KVM has them from the start. Replaces what was said before. Raises KvmError.
        """
        pins = [(gsi, *pin) for gsi in range(IOAPIC_PINS) for pin in _pins(gsi)]
        count = len(pins) + len(messages)
        routing = ffi.new("struct kvm_irq_routing *", {"nr": count, "entries": count})
        entries = iter(routing.entries[0:count])
        for gsi, chip, pin in pins:
            entry = next(entries)
            entry.gsi, entry.type = gsi, lib.KVM_IRQ_ROUTING_IRQCHIP
            entry.u.irqchip.irqchip, entry.u.irqchip.pin = chip, pin
        for gsi, (address, data) in messages.items():
            entry = next(entries)
            entry.gsi, entry.type = gsi, lib.KVM_IRQ_ROUTING_MSI
            entry.u.msi.address_lo, entry.u.msi.address_hi = address & 0xFFFF_FFFF, address >> 32
            entry.u.msi.data = data
        call_with(self.fd, "KVM_SET_GSI_ROUTING", routing, {"messages": len(messages)})

    # --- eventfds -------------------------------------------------------------------------------------------

    def ioeventfd(
        self,
        address: int,
        fd: int,
        length: int,
        datamatch: int | None = None,
        *,
        pio: bool = False,
        deassign: bool = False,
    ) -> None:
        """Have a guest's write of `length` bytes at `address` signal the eventfd `fd`, without an exit.

        `pio`: `address` is a port. `datamatch`: only a write of this value does. `deassign` takes it back;
        the other arguments must be the same. Raises KvmError (EEXIST: there is one for the same write).
        """
        flags = lib.KVM_IOEVENTFD_FLAG_PIO if pio else 0
        flags |= lib.KVM_IOEVENTFD_FLAG_DATAMATCH if datamatch is not None else 0
        flags |= lib.KVM_IOEVENTFD_FLAG_DEASSIGN if deassign else 0
        event = ffi.new("struct kvm_ioeventfd *", (datamatch or 0, address, length, fd, flags))
        about: dict[str, int | str] = {"address": address, "length": length, "fd": fd, "pio": str(pio)}
        if datamatch is not None:
            about["datamatch"] = datamatch
        call_with(self.fd, "KVM_IOEVENTFD", event, about)

    def irqfd(self, fd: int, gsi: int, resample: int | None = None, *, deassign: bool = False) -> None:
        """Have the eventfd `fd` raise interrupt `gsi`; needs an irqchip.

        `resample` is an eventfd that KVM signals when the guest ends a level-triggered interrupt. Raises
        KvmError.
        """
        flags = lib.KVM_IRQFD_FLAG_RESAMPLE if resample is not None else 0
        flags |= lib.KVM_IRQFD_FLAG_DEASSIGN if deassign else 0
        event = ffi.new("struct kvm_irqfd *", (fd, gsi, flags, resample or 0))
        call_with(self.fd, "KVM_IRQFD", event, {"fd": fd, "gsi": gsi})

    def stats(self) -> dict[str, int | list[int]]:
        """Return KVM's statistics of this VM by name. Raises KvmError, OSError."""
        fd = call(self.fd, "KVM_GET_STATS_FD", 0, {})
        try:
            return read_stats(fd)
        finally:
            os.close(fd)


def _pins(gsi: int) -> list[tuple[int, int]]:
    """Return where a line below 24 leads: to a PIC (0 to 15) and to the IOAPIC, as chip and pin."""
    pins = [(lib.KVM_IRQCHIP_IOAPIC, gsi)]
    if gsi < 8:
        pins.append((lib.KVM_IRQCHIP_PIC_MASTER, gsi))
    elif gsi < 16:
        pins.append((lib.KVM_IRQCHIP_PIC_SLAVE, gsi - 8))
    return pins
