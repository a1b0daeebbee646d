/* ivshmem.c: see ivshmem.h. */
#include "ivshmem.h"
#include "state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { REGISTERS = 0, VECTORS = 1, REGION = 2 };                  /* the BARs */
enum { MASK = 0, STATUS = 4, POSITION = 8, DOORBELL = 12, REGISTERS_SIZE = 256 };
enum { PAGE = 4096, BELL_VECTOR = 0 };

struct ivshmem {
    struct pci_device pci;         /* first */
    pthread_mutex_t lock;
    uint32_t mask, status;
    uint16_t position;
    uint32_t vector_count, bell_count, peer_count;
    struct loop_handler *vectors;  /* watched while MSI-X is off */
    struct loop_handler *bells;
    struct ivshmem_peer *peers;    /* by peer, then vector */
    struct ivshmem_counters counters;
};

/* --- interrupts --- */

/* Under the lock. Without MSI-X: the status bit, and INTA until it is read. */
static void assert_line(struct ivshmem *device) {
    device->counters.interrupts++;
    device->status = 1;
    pci_intx(&device->pci, 1);
}

/* A bell of the region: never read, it has other waiters. */
static void bell_rang(struct loop_handler *handler, uint32_t events) {
    struct ivshmem *device = handler->ctx;
    (void)events;
    pthread_mutex_lock(&device->lock);
    if (msix_enabled(&device->pci)) {
        device->counters.interrupts++;
        msix_raise(&device->pci, BELL_VECTOR);
    } else {
        assert_line(device);
    }
    pthread_mutex_unlock(&device->lock);
}

/* One of this guest's own vectors. With MSI-X on it is KVM's to read. */
static void vector_rang(struct loop_handler *handler, uint32_t events) {
    struct ivshmem *device = handler->ctx;
    uint64_t count;
    (void)events;
    pthread_mutex_lock(&device->lock);
    if (!msix_enabled(&device->pci) && read(handler->fd, &count, sizeof count) == sizeof count)
        assert_line(device);
    pthread_mutex_unlock(&device->lock);
}

/* Under pci.lock: the driver has turned MSI-X on or off, perhaps. */
static void config_written(struct pci_device *pci, uint32_t offset, uint32_t size) {
    struct ivshmem *device = (struct ivshmem *)pci;
    (void)offset, (void)size;
    int on = msix_enabled(pci);
    pthread_mutex_lock(&device->lock);
    for (uint32_t i = 0; i < device->vector_count; i++) {
        struct loop_handler *handler = &device->vectors[i];
        if (on)
            loop_remove(&pci->machine->loop, handler);
        else if (!handler->active)
            loop_add(&pci->machine->loop, handler, EPOLLIN);
    }
    if (on && device->status) {
        device->status = 0;
        pci_intx(pci, 0);
    }
    pthread_mutex_unlock(&device->lock);
}

/* --- the registers: 32 bits each, at their own offsets; other accesses read zero and do nothing --- */

static uint64_t registers_read(struct pci_device *pci, uint64_t offset, uint32_t size) {
    struct ivshmem *device = (struct ivshmem *)pci;
    uint64_t value = 0;
    if (size != 4)
        return 0;
    pthread_mutex_lock(&device->lock);
    switch (offset) {
    case MASK:
        value = device->mask;
        break;
    case STATUS:
        value = device->status;
        device->status = 0;
        pci_intx(pci, 0);
        break;
    case POSITION:
        value = device->position;
        break;
    default:
        break;
    }
    pthread_mutex_unlock(&device->lock);
    return value;
}

static int by_number(const void *one, const void *other) {
    const struct ivshmem_peer *a = one, *b = other;
    int peers = (a->peer > b->peer) - (a->peer < b->peer);
    return peers ? peers : (a->vector > b->vector) - (a->vector < b->vector);
}

/* For doorbells that KVM doesn't hold. Checked: the peer and its vector exist; else nobody hears it. */
static void ring(struct ivshmem *device, uint32_t value) {
    const uint64_t one = 1;
    struct ivshmem_peer wanted = {.peer = (uint16_t)(value >> 16), .vector = (uint16_t)value};
    const struct ivshmem_peer *peer =
        bsearch(&wanted, device->peers, device->peer_count, sizeof *device->peers, by_number);
    if (!peer || write(peer->fd, &one, sizeof one) != sizeof one)
        device->counters.unknown++;
    device->counters.rings++;
}

static void registers_write(struct pci_device *pci, uint64_t offset, uint64_t value, uint32_t size) {
    struct ivshmem *device = (struct ivshmem *)pci;
    if (size != 4)
        return;
    pthread_mutex_lock(&device->lock);
    switch (offset) {
    case MASK: /* Reserved in revision 1: kept, no meaning. */
        device->mask = (uint32_t)value;
        break;
    case STATUS:
        device->status = (uint32_t)value & 1;
        pci_intx(pci, (int)device->status);
        break;
    case DOORBELL:
        ring(device, (uint32_t)value);
        break;
    default:
        break;
    }
    pthread_mutex_unlock(&device->lock);
}

static void reset(struct pci_device *pci) {
    struct ivshmem *device = (struct ivshmem *)pci;
    pthread_mutex_lock(&device->lock);
    device->mask = device->status = 0;
    pthread_mutex_unlock(&device->lock);
    config_written(pci, 0, 0);
}

/* --- making it --- */

static int start(struct pci_device *pci) {
    struct ivshmem *device = (struct ivshmem *)pci;
    int error = 0;
    for (uint32_t i = 0; i < device->bell_count && !error; i++)
        error = loop_add(&pci->machine->loop, &device->bells[i], EPOLLIN | EPOLLET);
    config_written(pci, 0, 0);
    return error;
}

/* Its place among the peers is each guest's own. */
static void save_or_restore(struct pci_device *pci, struct state *state) {
    struct ivshmem *device = (struct ivshmem *)pci;
    pthread_mutex_lock(&device->lock);
    STATE(state, device->mask);
    STATE(state, device->status);
    device->status &= 1;
    pthread_mutex_unlock(&device->lock);
}

static void close_device(struct pci_device *pci) {
    struct ivshmem *device = (struct ivshmem *)pci;
    pthread_mutex_destroy(&device->lock);
    free(device->vectors);
    free(device->bells);
    free(device->peers);
    free(device);
}

static const struct pci_ops ops = {
    .name = "ivshmem",
    .config_written = config_written,
    .start = start,
    .reset = reset,
    .state = save_or_restore,
    .close = close_device,
};

static struct loop_handler *handlers(struct ivshmem *device, const int *fds, uint32_t count, loop_fn fn) {
    struct loop_handler *list = calloc(count ? count : 1, sizeof *list);
    for (uint32_t i = 0; list && i < count; i++)
        list[i] = (struct loop_handler){.fd = fds[i], .fn = fn, .ctx = device};
    return list;
}

static struct ivshmem *new_device(const struct ivshmem_config *config) {
    struct ivshmem *device = calloc(1, sizeof *device);
    if (!device)
        return NULL;
    device->position = config->position;
    device->vectors = handlers(device, config->vectors, config->vector_count, vector_rang);
    device->bells = handlers(device, config->bells, config->bell_count, bell_rang);
    device->peers = calloc(config->peer_count ? config->peer_count : 1, sizeof *device->peers);
    if (!device->vectors || !device->bells || !device->peers || pthread_mutex_init(&device->lock, NULL)) {
        free(device->vectors);
        free(device->bells);
        free(device->peers);
        free(device);
        return NULL;
    }
    device->vector_count = config->vector_count;
    device->bell_count = config->bell_count;
    device->peer_count = config->peer_count;
    if (config->peer_count)
        memcpy(device->peers, config->peers, config->peer_count * sizeof *device->peers);
    qsort(device->peers, device->peer_count, sizeof *device->peers, by_number);
    return device;
}

/* The machine has the device: whatever fails from here, it closes it. */
static int furnish(struct ivshmem *device, uint64_t size) {
    struct pci_device *pci = &device->pci;
    uint64_t bar = PAGE;
    while (bar < size)
        bar *= 2;
    int error = pci_add_registers(pci, REGISTERS, REGISTERS_SIZE, 0, registers_read, registers_write);
    if (!error && device->vector_count)
        error = msix_add(pci, device->vector_count, VECTORS);
    if (!error)
        error = pci_add_memory(pci, REGION, bar);
    for (uint32_t i = 0; i < device->vector_count && !error; i++)
        error = msix_route(pci, i, device->vectors[i].fd);
    for (uint32_t i = 0; i < device->peer_count && !error; i++) {
        const struct ivshmem_peer *peer = &device->peers[i];
        error = pci_add_doorbell(pci, REGISTERS, DOORBELL, 4, 1, (uint32_t)peer->peer << 16 | peer->vector, peer->fd);
    }
    return error;
}

void ivshmem_count(struct machine *machine, uint32_t slot, struct ivshmem_counters *counters) {
    struct ivshmem *device = (struct ivshmem *)machine->pci.devices[slot];
    pthread_mutex_lock(&device->lock);
    *counters = device->counters;
    pthread_mutex_unlock(&device->lock);
}

int ivshmem_add(struct machine *machine, const struct ivshmem_config *config) {
    if (config->vector_count > MSIX_VECTORS || !config->size || config->size > 1ull << 62)
        return -EINVAL;
    struct pci_config identity = {
        .vendor = 0x1af4, .device = 0x1110, .subsystem_vendor = 0x1af4, .subsystem = 0x1100, .revision = 1,
        .class_code = 0x050000, .interrupt_pin = config->vector_count != 0,
    };
    struct ivshmem *device = new_device(config);
    if (!device)
        return -ENOMEM;
    int error = pci_add(machine, &device->pci, &ops, config->name, &identity);
    if (error) {
        close_device(&device->pci);
        return error;
    }
    error = furnish(device, config->size);
    return error ? error : (int)device->pci.slot;
}
