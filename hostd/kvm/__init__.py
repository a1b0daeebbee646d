"""KVM from Python: the device, VMs and vCPUs. The run loop is C and holds no GIL (run.h)."""

from __future__ import annotations

from hostd.kvm.errors import KvmError, NoKvmError
from hostd.kvm.exits import (
    Debug,
    Exit,
    FailEntry,
    Hlt,
    InternalError,
    Interrupted,
    Io,
    IoapicEoi,
    MemoryFault,
    Mmio,
    Shutdown,
    SystemEvent,
    Unknown,
)
from hostd.kvm.system import System
from hostd.kvm.vcpu import Vcpu
from hostd.kvm.vm import Vm

MEM_READONLY = 2
"""slot flag KVM_MEM_READONLY: a write of the guest is an Mmio exit"""

__all__ = [
    "MEM_READONLY",
    "Debug",
    "Exit",
    "FailEntry",
    "Hlt",
    "InternalError",
    "Interrupted",
    "Io",
    "IoapicEoi",
    "KvmError",
    "MemoryFault",
    "Mmio",
    "NoKvmError",
    "Shutdown",
    "System",
    "SystemEvent",
    "Unknown",
    "Vcpu",
    "Vm",
]
