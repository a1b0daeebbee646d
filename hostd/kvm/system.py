"""/dev/kvm itself: what this host's KVM can do, and where VMs come from."""

from __future__ import annotations

import errno
import os
from typing import Any

from hostd.kvm.call import call, call_with, ffi
from hostd.kvm.capabilities import number
from hostd.kvm.errors import KvmError, NoKvmError
from hostd.kvm.vm import Vm

API_VERSION = 12
DEVICE = "/dev/kvm"

WHY = {
    errno.ENOENT: "{path} does not exist: load kvm_intel or kvm_amd, or turn virtualisation on in firmware",
    errno.EACCES: "{path} is not this user's to open: join its group (usually `usermod -aG kvm USER`)",
    errno.EPERM: "{path} is kept from this container or control group: let its device in",
    errno.ENODEV: "{path} exists but no KVM module serves it: load kvm_intel or kvm_amd",
    errno.ENXIO: "{path} exists but no KVM module serves it: load kvm_intel or kvm_amd",
}


class System:
    """The open KVM device. A context manager; VMs made from it live on without it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def open(cls, path: str = DEVICE) -> System:
        """Open KVM's device. Raises NoKvmError, with a sentence on what to do, when that can't be done."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            code = error.errno or 0
            why = WHY.get(code, "{path} cannot be opened: " + os.strerror(code))
            raise NoKvmError(code, why.format(path=path)) from None
        system = cls(fd)
        try:
            version = system.api_version
        except KvmError as error:
            system.close()
            raise NoKvmError(
                error.errno or 0, f"{path} is no KVM device: it does not know KVM_GET_API_VERSION"
            ) from None
        if version != API_VERSION:
            system.close()
            raise NoKvmError(errno.ENOSYS, f"{path} speaks version {version} of KVM's interface, hostd {API_VERSION}")
        return system

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> System:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    @property
    def api_version(self) -> int:
        """12 since Linux 2.6.22."""
        return call(self.fd, "KVM_GET_API_VERSION")

    def capability(self, capability: str | int) -> int:
        """Return 0 when KVM lacks the capability (a name without "KVM_CAP_"), else its value, 1 or more."""
        return call(self.fd, "KVM_CHECK_EXTENSION", number(capability), {"capability": str(capability)})

    def supported_cpuid(self) -> Any:
        """Return a `struct kvm_cpuid2 *` with every CPUID entry that KVM can give a guest."""
        room = 100
        while True:
            cpuid = ffi.new("struct kvm_cpuid2 *", {"nent": room, "entries": room})
            try:
                call_with(self.fd, "KVM_GET_SUPPORTED_CPUID", cpuid, {"entries": room})
            except KvmError as error:
                if error.errno != errno.E2BIG or room > 10_000:
                    raise
                room *= 2
            else:
                return cpuid

    def msr_indices(self) -> list[int]:
        """Return the MSRs that KVM can save and restore."""
        room = 1000
        msrs = ffi.new("struct kvm_msr_list *", {"nmsrs": room, "indices": room})
        call_with(self.fd, "KVM_GET_MSR_INDEX_LIST", msrs, {"room": room})
        return [msrs.indices[i] for i in range(msrs.nmsrs)]

    def create_vm(self, kind: int = 0) -> Vm:
        """Make a VM without memory, vCPUs or interrupt controller. Raises KvmError."""
        fd = call(self.fd, "KVM_CREATE_VM", kind, {"type": kind})
        return Vm(fd, call(self.fd, "KVM_GET_VCPU_MMAP_SIZE"))
