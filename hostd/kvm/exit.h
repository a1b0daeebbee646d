/* exit.h: the parts of struct kvm_run that matter for an exit, in one flat structure. */
#ifndef HOSTD_KVM_EXIT_H
#define HOSTD_KVM_EXIT_H

#include <stdint.h>

struct kvm_run;

struct vcpu_exit {
    uint32_t reason;          /* KVM_EXIT_* */
    uint32_t size;            /* IO: bytes of one item; MMIO: bytes */
    uint32_t count;           /* IO: items */
    uint32_t words;           /* how many of `word` hold something */
    uint8_t is_write;         /* IO, MMIO */
    uint8_t *data;            /* IO, MMIO: size * count bytes inside the run area, read or to be filled */
    uint64_t address;         /* IO: port; MMIO, MEMORY_FAULT: guest physical address */
    uint64_t word[16];        /* by reason, see exit.c */
};

void vcpu_exit(struct kvm_run *run, struct vcpu_exit *out);

#endif
