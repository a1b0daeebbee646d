"""cffi build script of `hostd.kvm._kvm`: the ioctls, structures and the run loop over <linux/kvm.h>."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent

IOCTLS = [
    "KVM_GET_API_VERSION",
    "KVM_CHECK_EXTENSION",
    "KVM_GET_VCPU_MMAP_SIZE",
    "KVM_CREATE_VM",
    "KVM_GET_SUPPORTED_CPUID",
    "KVM_GET_MSR_INDEX_LIST",
    "KVM_SET_USER_MEMORY_REGION",
    "KVM_SET_TSS_ADDR",
    "KVM_SET_IDENTITY_MAP_ADDR",
    "KVM_CREATE_VCPU",
    "KVM_CREATE_IRQCHIP",
    "KVM_CREATE_PIT2",
    "KVM_IRQ_LINE",
    "KVM_IRQFD",
    "KVM_IOEVENTFD",
    "KVM_SIGNAL_MSI",
    "KVM_SET_GSI_ROUTING",
    "KVM_ENABLE_CAP",
    "KVM_GET_STATS_FD",
    "KVM_GET_DIRTY_LOG",
    "KVM_GET_REGS",
    "KVM_SET_REGS",
    "KVM_GET_SREGS",
    "KVM_SET_SREGS",
    "KVM_GET_FPU",
    "KVM_SET_FPU",
    "KVM_GET_MSRS",
    "KVM_SET_MSRS",
    "KVM_SET_CPUID2",
    "KVM_GET_CPUID2",
    "KVM_GET_XCRS",
    "KVM_SET_XCRS",
    "KVM_GET_TSC_KHZ",
    "KVM_SET_TSC_KHZ",
    "KVM_GET_MP_STATE",
    "KVM_SET_MP_STATE",
    "KVM_GET_LAPIC",
    "KVM_SET_LAPIC",
    "KVM_GET_VCPU_EVENTS",
    "KVM_SET_VCPU_EVENTS",
    "KVM_SET_GUEST_DEBUG",
    "KVM_GET_DEBUGREGS",
    "KVM_SET_DEBUGREGS",
    "KVM_GET_XSAVE",
    "KVM_SET_XSAVE",
    "KVM_GET_IRQCHIP",
    "KVM_SET_IRQCHIP",
    "KVM_GET_CLOCK",
    "KVM_SET_CLOCK",
    "KVM_KVMCLOCK_CTRL",
    "KVM_INTERRUPT",
    "KVM_NMI",
    "KVM_RUN",
]

STRUCTURES = """
    struct kvm_userspace_memory_region {
        uint32_t slot, flags; uint64_t guest_phys_addr, memory_size, userspace_addr;
    };
    struct kvm_regs {
        uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags;
    };
    struct kvm_segment {
        uint64_t base; uint32_t limit; uint16_t selector;
        uint8_t type, present, dpl, db, s, l, g, avl, unusable; ...;
    };
    struct kvm_dtable { uint64_t base; uint16_t limit; ...; };
    struct kvm_sregs {
        struct kvm_segment cs, ds, es, fs, gs, ss, tr, ldt;
        struct kvm_dtable gdt, idt;
        uint64_t cr0, cr2, cr3, cr4, cr8, efer, apic_base;
        unsigned long long interrupt_bitmap[4];
    };
    struct kvm_fpu {
        uint8_t fpr[8][16]; uint16_t fcw, fsw; uint8_t ftwx; uint16_t last_opcode; uint64_t last_ip, last_dp;
        uint8_t xmm[16][16]; uint32_t mxcsr; ...;
    };
    struct kvm_msr_entry { uint32_t index; uint64_t data; ...; };
    struct kvm_msrs { uint32_t nmsrs; struct kvm_msr_entry entries[]; ...; };
    struct kvm_msr_list { uint32_t nmsrs; uint32_t indices[]; };
    struct kvm_cpuid_entry2 { uint32_t function, index, flags, eax, ebx, ecx, edx; ...; };
    struct kvm_cpuid2 { uint32_t nent; struct kvm_cpuid_entry2 entries[]; ...; };
    struct kvm_xcr { uint32_t xcr; uint64_t value; ...; };
    struct kvm_xcrs { uint32_t nr_xcrs, flags; struct kvm_xcr xcrs[16]; ...; };
    struct kvm_mp_state { uint32_t mp_state; };
    struct kvm_irq_level { uint32_t irq, level; ...; };
    struct kvm_irqfd { uint32_t fd, gsi, flags, resamplefd; ...; };
    struct kvm_ioeventfd { uint64_t datamatch, addr; uint32_t len; int32_t fd; uint32_t flags; ...; };
    struct kvm_msi { uint32_t address_lo, address_hi, data, flags, devid; ...; };
    struct kvm_irq_routing_irqchip { uint32_t irqchip, pin; };
    struct kvm_irq_routing_msi { uint32_t address_lo, address_hi, data, devid; };
    struct kvm_irq_routing_entry {
        uint32_t gsi, type, flags, pad;
        union { struct kvm_irq_routing_irqchip irqchip; struct kvm_irq_routing_msi msi; uint64_t pad[4]; } u;
    };
    struct kvm_irq_routing { uint32_t nr, flags; struct kvm_irq_routing_entry entries[]; };
    struct kvm_enable_cap { uint32_t cap, flags; unsigned long long args[4]; ...; };
    struct kvm_pit_config { uint32_t flags; ...; };
    struct kvm_debugregs { ...; };
    struct kvm_vcpu_events { ...; };
    struct kvm_lapic_state { ...; };
    struct kvm_irqchip { uint32_t chip_id; ...; };
    struct kvm_clock_data { uint64_t clock; uint32_t flags; uint64_t realtime; ...; };
    struct kvm_dirty_log { uint32_t slot; void *dirty_bitmap; ...; };
    struct kvm_guest_debug_arch { unsigned long long debugreg[8]; };
    struct kvm_guest_debug { uint32_t control; struct kvm_guest_debug_arch arch; ...; };
"""

FLAGS = [
    "KVM_MEM_READONLY",
    "KVM_MEM_LOG_DIRTY_PAGES",
    "KVM_IOEVENTFD_FLAG_DATAMATCH",
    "KVM_IOEVENTFD_FLAG_PIO",
    "KVM_IOEVENTFD_FLAG_DEASSIGN",
    "KVM_IRQFD_FLAG_DEASSIGN",
    "KVM_IRQFD_FLAG_RESAMPLE",
    "KVM_IRQ_ROUTING_IRQCHIP",
    "KVM_IRQ_ROUTING_MSI",
    "KVM_IRQCHIP_PIC_MASTER",
    "KVM_IRQCHIP_PIC_SLAVE",
    "KVM_IRQCHIP_IOAPIC",
    "KVM_CLOCK_REALTIME",
    "KVM_GUESTDBG_ENABLE",
    "KVM_GUESTDBG_SINGLESTEP",
    "KVM_GUESTDBG_USE_SW_BP",
    "KVM_GUESTDBG_USE_HW_BP",
    "KVM_GUESTDBG_INJECT_DB",
    "KVM_GUESTDBG_INJECT_BP",
    "KVM_GUESTDBG_BLOCKIRQ",
    "KVM_INTERNAL_ERROR_EMULATION",
    "VCPU_EXITED",
    "VCPU_STOPPED",
    "VCPU_SIGNALLED",
]

ffibuilder = FFI()
ffibuilder.cdef(
    "".join(f"#define {name} ...\n" for name in IOCTLS + FLAGS)
    + STRUCTURES
    + """
    struct vcpu_loop { int kick_fd, stop; uint32_t up_port; uint64_t exits, handled, reasons[48]; ...; };
    struct vcpu_loop *vcpu_new(void);
    void vcpu_free(struct vcpu_loop *loop);
    int vcpu_open(struct vcpu_loop *loop, int fd, struct kvm_run *run);
    void vcpu_close(struct vcpu_loop *loop);
    int vcpu_loop(struct vcpu_loop *loop);
    int vcpu_stop(struct vcpu_loop *loop);
    int vcpu_settle(struct vcpu_loop *loop);
    void vcpu_handler(struct vcpu_loop *loop, uintptr_t exit_fn, uintptr_t exit_ctx);

    struct vcpu_exit {
        uint32_t reason, size, count, words;
        uint8_t is_write, *data;
        uint64_t address, word[16];
    };
    void vcpu_exit(struct kvm_run *run, struct vcpu_exit *out);

    int kvm_call(int fd, unsigned long request, uintptr_t argument);
    int kvm_call_pointer(int fd, unsigned long request, void *argument);
    struct kvm_run *kvm_map_run(int fd, size_t size);
    void kvm_unmap_run(struct kvm_run *run, size_t size);
    """
)
ffibuilder.set_source(
    "hostd.kvm._kvm",
    '#include <linux/kvm.h>\n#include "run.h"\n#include "exit.h"\n#include "call.h"\n',
    sources=[str(HERE / "run.c"), str(HERE / "exit.c"), str(HERE / "call.c")],
    include_dirs=[str(HERE)],
    depends=[str(HERE / name) for name in ("run.h", "exit.h", "call.h")],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"],
)
