/* interrupts.c: see interrupts.h; the way to KVM. */
#include "interrupts.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <sys/ioctl.h>

/*
 * The pins of the in-kernel controllers, as KVM routes them from the start: 0..15 to a PIC and the IOAPIC, 16..23 to
 * the latter.
 */
enum { PIC_PINS = 16, IOAPIC_PINS = INTERRUPTS_FIRST_GSI, PIN_ROUTES = PIC_PINS + IOAPIC_PINS };

int kvm_interrupts_open(struct kvm_interrupts *kvm, int vm_fd) {
    kvm->vm_fd = vm_fd;
    kvm->routes = 0;
    return -pthread_mutex_init(&kvm->lock, NULL);
}

void kvm_interrupts_close(struct kvm_interrupts *kvm) {
    pthread_mutex_destroy(&kvm->lock);
}

static int call(int fd, unsigned long request, void *argument) {
    int result;
    do
        result = ioctl(fd, request, argument);
    while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : 0;
}

static int msi(void *ctx, uint64_t address, uint32_t data) {
    struct kvm_interrupts *kvm = ctx;
    struct kvm_msi message = {.address_lo = (uint32_t)address, .address_hi = (uint32_t)(address >> 32), .data = data};
    __atomic_fetch_add(&kvm->messages, 1, __ATOMIC_RELAXED);
    return call(kvm->vm_fd, KVM_SIGNAL_MSI, &message);
}

static int line(void *ctx, uint32_t gsi, int level) {
    struct kvm_interrupts *kvm = ctx;
    struct kvm_irq_level request = {.irq = gsi, .level = level != 0};
    __atomic_fetch_add(&kvm->lines, 1, __ATOMIC_RELAXED);
    return call(kvm->vm_fd, KVM_IRQ_LINE, &request);
}

static struct kvm_irq_routing_entry *pin(struct kvm_irq_routing_entry *entry, uint32_t gsi, uint32_t chip,
                                         uint32_t number) {
    *entry = (struct kvm_irq_routing_entry){.gsi = gsi, .type = KVM_IRQ_ROUTING_IRQCHIP};
    entry->u.irqchip.irqchip = chip;
    entry->u.irqchip.pin = number;
    return entry + 1;
}

/* KVM takes the whole table; under kvm->lock. */
static int set_routing(struct kvm_interrupts *kvm) {
    uint32_t count = PIN_ROUTES + kvm->routes;
    struct kvm_irq_routing *table = calloc(1, sizeof *table + count * sizeof table->entries[0]);
    if (!table)
        return -ENOMEM;
    table->nr = count;
    struct kvm_irq_routing_entry *entry = table->entries;
    for (uint32_t gsi = 0; gsi < IOAPIC_PINS; gsi++) {
        entry = pin(entry, gsi, KVM_IRQCHIP_IOAPIC, gsi);
        if (gsi < PIC_PINS)
            entry = pin(entry, gsi, gsi < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE, gsi % 8);
    }
    for (uint32_t i = 0; i < kvm->routes; i++, entry++) {
        entry->gsi = INTERRUPTS_FIRST_GSI + i;
        entry->type = KVM_IRQ_ROUTING_MSI;
        entry->u.msi.address_lo = (uint32_t)kvm->route[i].address;
        entry->u.msi.address_hi = (uint32_t)(kvm->route[i].address >> 32);
        entry->u.msi.data = kvm->route[i].data;
    }
    int error = call(kvm->vm_fd, KVM_SET_GSI_ROUTING, table);
    free(table);
    kvm->routings++;
    return error;
}

static int route(void *ctx, uint32_t gsi, uint64_t address, uint32_t data) {
    struct kvm_interrupts *kvm = ctx;
    uint32_t index = gsi - INTERRUPTS_FIRST_GSI;
    if (gsi < INTERRUPTS_FIRST_GSI || index >= INTERRUPTS_ROUTES)
        return -EINVAL;
    pthread_mutex_lock(&kvm->lock);
    kvm->route[index].address = address;
    kvm->route[index].data = data;
    if (index >= kvm->routes)
        kvm->routes = index + 1;
    int error = set_routing(kvm);
    pthread_mutex_unlock(&kvm->lock);
    return error;
}

static int irqfd(void *ctx, int fd, uint32_t gsi, int on) {
    struct kvm_interrupts *kvm = ctx;
    struct kvm_irqfd request = {.fd = (uint32_t)fd, .gsi = gsi, .flags = on ? 0 : KVM_IRQFD_FLAG_DEASSIGN};
    return call(kvm->vm_fd, KVM_IRQFD, &request);
}

static int doorbell(void *ctx, const struct doorbell *wanted, int on) {
    struct kvm_interrupts *kvm = ctx;
    struct kvm_ioeventfd request = {
        .addr = wanted->address,
        .len = wanted->size,
        .fd = wanted->fd,
        .datamatch = wanted->match,
        .flags = (wanted->matched ? KVM_IOEVENTFD_FLAG_DATAMATCH : 0) | (on ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN),
    };
    return call(kvm->vm_fd, KVM_IOEVENTFD, &request);
}

const struct interrupt_ops kvm_interrupt_ops = {
    .msi = msi,
    .line = line,
    .route = route,
    .irqfd = irqfd,
    .doorbell = doorbell,
};
