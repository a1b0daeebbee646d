"""KVM's capabilities by name (KVM_CAP_* of <linux/kvm.h>, without the prefix), as far as x86 has them."""

from __future__ import annotations

CAPABILITIES = {
    "IRQCHIP": 0,
    "HLT": 1,
    "USER_MEMORY": 3,
    "SET_TSS_ADDR": 4,
    "EXT_CPUID": 7,
    "NR_VCPUS": 9,
    "NR_MEMSLOTS": 10,
    "MP_STATE": 14,
    "SYNC_MMU": 16,
    "DESTROY_MEMORY_REGION_WORKS": 21,
    "USER_NMI": 22,
    "SET_GUEST_DEBUG": 23,
    "IRQ_ROUTING": 25,
    "MCE": 31,
    "IRQFD": 32,
    "PIT2": 33,
    "PIT_STATE2": 35,
    "IOEVENTFD": 36,
    "SET_IDENTITY_MAP_ADDR": 37,
    "ADJUST_CLOCK": 39,
    "VCPU_EVENTS": 41,
    "DEBUGREGS": 50,
    "XSAVE": 55,
    "XCRS": 56,
    "ASYNC_PF": 59,
    "TSC_CONTROL": 60,
    "GET_TSC_KHZ": 61,
    "MAX_VCPUS": 66,
    "TSC_DEADLINE_TIMER": 72,
    "SYNC_REGS": 74,
    "KVMCLOCK_CTRL": 76,
    "SIGNAL_MSI": 77,
    "READONLY_MEM": 81,
    "IRQFD_RESAMPLE": 82,
    "ENABLE_CAP_VM": 98,
    "ENABLE_CAP": 54,
    "IOEVENTFD_NO_LENGTH": 100,
    "CHECK_EXTENSION_VM": 105,
    "MULTI_ADDRESS_SPACE": 118,
    "SPLIT_IRQCHIP": 121,
    "IOEVENTFD_ANY_LENGTH": 122,
    "MAX_VCPU_ID": 128,
    "X2APIC_API": 129,
    "IMMEDIATE_EXIT": 136,
    "X86_DISABLE_EXITS": 143,
    "GET_MSR_FEATURES": 153,
    "COALESCED_PIO": 162,
    "EXCEPTION_PAYLOAD": 164,
    "MANUAL_DIRTY_LOG_PROTECT2": 168,
    "X86_USER_SPACE_MSR": 188,
    "X86_MSR_FILTER": 189,
    "DIRTY_LOG_RING": 192,
    "BINARY_STATS_FD": 203,
    "EXIT_ON_EMULATION_FAILURE": 204,
    "XSAVE2": 208,
    "SYSTEM_EVENT_DATA": 215,
    "X86_TRIPLE_FAULT_EVENT": 218,
    "X86_NOTIFY_VMEXIT": 219,
    "DIRTY_LOG_RING_ACQ_REL": 223,
    "USER_MEMORY2": 231,
    "MEMORY_FAULT_INFO": 232,
    "MEMORY_ATTRIBUTES": 233,
    "GUEST_MEMFD": 234,
}


def number(capability: str | int) -> int:
    """Return the number of a capability given by name (or number); raises ValueError for an unknown name."""
    if isinstance(capability, int):
        return capability
    try:
        return CAPABILITIES[capability]
    except KeyError:
        raise ValueError(f"KVM capability {capability!r} is unknown; names are KVM_CAP_* without the prefix") from None
