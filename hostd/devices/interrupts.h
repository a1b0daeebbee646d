/*
 * interrupts.h: what devices ask of KVM: interrupts, and eventfds that stand for them or for a register write.
 *
 * Behind a table of functions, so that a machine without a VM works too: it records what it would have asked.
 */
#ifndef HOSTD_DEVICES_INTERRUPTS_H
#define HOSTD_DEVICES_INTERRUPTS_H

#include <pthread.h>
#include <stdint.h>

#define INTERRUPTS_FIRST_GSI 24   /* behind the IOAPIC's pins: for message-signalled interrupts of eventfds */
#define INTERRUPTS_ROUTES 512

/* A guest's write that signals an eventfd instead of an exit. */
struct doorbell {
    uint64_t address;
    uint32_t size;                /* of the write: 1, 2, 4 or 8 bytes; 0: any (MMIO, no match) */
    int fd;
    int matched;                  /* only a write of `match` does */
    uint64_t match;
};

/* All from any thread, and without blocking for long. Return 0 or -errno. */
struct interrupt_ops {
    int (*msi)(void *ctx, uint64_t address, uint32_t data);
    int (*line)(void *ctx, uint32_t gsi, int level);
    int (*route)(void *ctx, uint32_t gsi, uint64_t address, uint32_t data); /* what `gsi` stands for from now on */
    int (*irqfd)(void *ctx, int fd, uint32_t gsi, int on);      /* the eventfd raises the routed `gsi` */
    int (*doorbell)(void *ctx, const struct doorbell *doorbell, int on);
};

struct interrupts {
    const struct interrupt_ops *ops;
    void *ctx;
};

/* The routed GSIs of one VM: KVM takes them all at once. */
struct kvm_interrupts {
    int vm_fd;
    pthread_mutex_t lock;
    uint32_t routes;              /* GSIs INTERRUPTS_FIRST_GSI.. that have been routed at some time */
    struct { uint64_t address; uint32_t data; } route[INTERRUPTS_ROUTES];
    uint64_t messages, lines, routings; /* counters */
};

extern const struct interrupt_ops kvm_interrupt_ops;
int kvm_interrupts_open(struct kvm_interrupts *kvm, int vm_fd);
void kvm_interrupts_close(struct kvm_interrupts *kvm);

/* Without a VM: the last calls, oldest first, for tests. */
enum { RECORD_MSI = 1, RECORD_LINE, RECORD_ROUTE, RECORD_IRQFD, RECORD_DOORBELL };

struct interrupt_record {
    uint32_t kind;
    uint32_t on;                  /* level, attached */
    uint64_t number;              /* MSI: data; LINE, ROUTE, IRQFD: GSI; DOORBELL: the match, all ones if none */
    uint64_t address;             /* MSI, ROUTE: address; DOORBELL: address */
    int64_t fd;                   /* IRQFD, DOORBELL; ROUTE: data */
};

#define INTERRUPT_RECORDS 1024

struct interrupt_recorder {
    pthread_mutex_t lock;
    uint64_t count;               /* of all calls; the last INTERRUPT_RECORDS are kept, at number % INTERRUPT_RECORDS */
    struct interrupt_record records[INTERRUPT_RECORDS];
};

extern const struct interrupt_ops recorder_interrupt_ops;
int interrupt_recorder_open(struct interrupt_recorder *recorder);
void interrupt_recorder_close(struct interrupt_recorder *recorder);

static inline int interrupts_msi(struct interrupts *to, uint64_t address, uint32_t data) {
    return to->ops->msi(to->ctx, address, data);
}

static inline int interrupts_line(struct interrupts *to, uint32_t gsi, int level) {
    return to->ops->line(to->ctx, gsi, level);
}

static inline int interrupts_route(struct interrupts *to, uint32_t gsi, uint64_t address, uint32_t data) {
    return to->ops->route(to->ctx, gsi, address, data);
}

static inline int interrupts_irqfd(struct interrupts *to, int fd, uint32_t gsi, int on) {
    return to->ops->irqfd(to->ctx, fd, gsi, on);
}

static inline int interrupts_doorbell(struct interrupts *to, const struct doorbell *doorbell, int on) {
    return to->ops->doorbell(to->ctx, doorbell, on);
}

#endif
