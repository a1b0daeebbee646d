/* exit.c: see exit.h. The run area is written by the kernel alone, never by the guest. */
#include <linux/kvm.h>
#include <string.h>

#include "exit.h"

#ifndef KVM_EXIT_MEMORY_FAULT
#define KVM_EXIT_MEMORY_FAULT 39
#endif

/* As in struct kvm_run since Linux 6.8; older headers lack it. */
struct memory_fault {
    uint64_t flags, gpa, size;
};

static void words(struct vcpu_exit *out, const uint64_t *from, uint32_t count) {
    for (uint32_t i = 0; i < count && out->words < 16; i++)
        out->word[out->words++] = from[i];
}

void vcpu_exit(struct kvm_run *run, struct vcpu_exit *out) {
    struct memory_fault fault;
    uint64_t pair[3];
    *out = (struct vcpu_exit){.reason = run->exit_reason};
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        out->address = run->io.port;
        out->size = run->io.size;
        out->count = run->io.count;
        out->is_write = run->io.direction == KVM_EXIT_IO_OUT;
        out->data = (uint8_t *)run + run->io.data_offset;
        break;
    case KVM_EXIT_MMIO:
        out->address = run->mmio.phys_addr;
        out->size = run->mmio.len;
        out->count = 1;
        out->is_write = run->mmio.is_write;
        out->data = run->mmio.data;
        break;
    case KVM_EXIT_UNKNOWN: /* the hardware's reason */
        pair[0] = run->hw.hardware_exit_reason;
        words(out, pair, 1);
        break;
    case KVM_EXIT_FAIL_ENTRY: /* the hardware's reason, the CPU */
        pair[0] = run->fail_entry.hardware_entry_failure_reason;
        pair[1] = run->fail_entry.cpu;
        words(out, pair, 2);
        break;
    case KVM_EXIT_DEBUG: /* address, DR6, exception */
        pair[0] = run->debug.arch.pc;
        pair[1] = run->debug.arch.dr6;
        pair[2] = run->debug.arch.exception;
        words(out, pair, 3);
        break;
    case KVM_EXIT_INTERNAL_ERROR: /* suberror, then the kernel's data */
        pair[0] = run->internal.suberror;
        words(out, pair, 1);
        words(out, (const uint64_t *)run->internal.data, run->internal.ndata);
        break;
    case KVM_EXIT_SYSTEM_EVENT: /* type, then the kernel's data */
        pair[0] = run->system_event.type;
        words(out, pair, 1);
        words(out, (const uint64_t *)run->system_event.data, run->system_event.ndata);
        break;
    case KVM_EXIT_IOAPIC_EOI: /* vector */
        pair[0] = run->eoi.vector;
        words(out, pair, 1);
        break;
    case KVM_EXIT_MEMORY_FAULT: /* size, flags */
        memcpy(&fault, &run->hw, sizeof fault);
        out->address = fault.gpa;
        pair[0] = fault.size;
        pair[1] = fault.flags;
        words(out, pair, 2);
        break;
    default:
        break;
    }
}
