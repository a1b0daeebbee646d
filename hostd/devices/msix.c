/* msix.c: see msix.h. */
#define _GNU_SOURCE
#include "msix.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include "machine.h"
#include "pci.h"
#include "state.h"

enum { CAPABILITY = 0x11, CAPABILITY_SIZE = 12, ENTRY = 16, CONTROL = 12, ENABLE = 1 << 15, FUNCTION_MASK = 1 << 14 };

static int masked(const struct msix *msix, const struct msix_vector *vector) {
    return msix->masked || (vector->entry[CONTROL] & 1);
}

static void take_entry(struct msix_vector *vector, uint64_t *address, uint32_t *data) {
    *address = pci_get(vector->entry, 0, 4) | (uint64_t)pci_get(vector->entry, 4, 4) << 32;
    *data = pci_get(vector->entry, 8, 4);
}

static int readable(int fd) {
    struct pollfd wanted = {.fd = fd, .events = POLLIN};
    return poll(&wanted, 1, 0) > 0 && (wanted.revents & POLLIN);
}

static void send_now(struct pci_device *device, struct msix_vector *vector) {
    uint64_t address;
    uint32_t data;
    take_entry(vector, &address, &data);
    device->msix.sent++;
    interrupts_msi(&device->machine->interrupts, address, data);
}

/*
 * KVM raises the vector itself while it may be raised. Attaching raises what was signalled in between; then the count
 * is taken out, so that it doesn't show as pending the next time: whatever came before the read has been raised.
 */
static void attach(struct pci_device *device, struct msix_vector *vector) {
    struct interrupts *interrupts = &device->machine->interrupts;
    uint64_t address, count;
    uint32_t data;
    take_entry(vector, &address, &data);
    if (!vector->routed || vector->address != address || vector->data != data) {
        vector->routed = !interrupts_route(interrupts, vector->gsi, address, data);
        vector->address = address;
        vector->data = data;
    }
    if (vector->routed && !vector->attached && !interrupts_irqfd(interrupts, vector->fd, vector->gsi, 1)) {
        vector->attached = 1;
        ssize_t drained = read(vector->fd, &count, sizeof count);
        (void)drained;
    }
}

static void detach(struct pci_device *device, struct msix_vector *vector) {
    if (vector->attached)
        interrupts_irqfd(&device->machine->interrupts, vector->fd, vector->gsi, 0);
    vector->attached = 0;
}

/* After any change to the vector or to what masks it; under the lock. */
static void settle(struct pci_device *device, struct msix_vector *vector) {
    struct msix *msix = &device->msix;
    int live = msix->enabled && !masked(msix, vector);
    if (live && vector->pending) {
        vector->pending = 0;
        send_now(device, vector);
    }
    if (vector->fd >= 0 && live)
        attach(device, vector);
    else if (vector->fd >= 0)
        detach(device, vector);
}

static void settle_all(struct pci_device *device) {
    for (uint32_t i = 0; i < device->msix.count; i++)
        settle(device, &device->msix.vectors[i]);
}

/* --- the BAR --- */

static uint8_t pending_byte(const struct msix *msix, uint64_t offset) {
    uint8_t byte = 0;
    for (uint32_t i = 0; i < 8; i++) {
        uint64_t number = offset * 8 + i;
        if (number >= msix->count)
            break;
        const struct msix_vector *vector = &msix->vectors[number];
        if (vector->pending || (vector->fd >= 0 && msix->enabled && !vector->attached && readable(vector->fd)))
            byte |= (uint8_t)(1u << i);
    }
    return byte;
}

/* Checked by the bus: `offset` + `size` is inside the BAR. */
static uint64_t read_bar(struct pci_device *device, uint64_t offset, uint32_t size) {
    struct msix *msix = &device->msix;
    uint64_t value = 0;
    pthread_mutex_lock(&msix->lock);
    for (uint32_t i = 0; i < size; i++) {
        uint64_t at = offset + i;
        uint8_t byte = 0;
        if (at < (uint64_t)msix->count * ENTRY)
            byte = msix->vectors[at / ENTRY].entry[at % ENTRY];
        else if (at >= MSIX_PBA)
            byte = pending_byte(msix, at - MSIX_PBA);
        value |= (uint64_t)byte << (8 * i);
    }
    pthread_mutex_unlock(&msix->lock);
    return value;
}

static void write_bar(struct pci_device *device, uint64_t offset, uint64_t value, uint32_t size) {
    struct msix *msix = &device->msix;
    uint64_t end = (uint64_t)msix->count * ENTRY;
    if (offset >= end)
        return;
    pthread_mutex_lock(&msix->lock);
    for (uint32_t i = 0; i < size && offset + i < end; i++) {
        uint64_t at = offset + i;
        uint8_t byte = (uint8_t)(value >> (8 * i));
        if (at % ENTRY >= CONTROL)
            byte = at % ENTRY == CONTROL ? byte & 1 : 0; /* The rest of vector control is reserved. */
        msix->vectors[at / ENTRY].entry[at % ENTRY] = byte;
    }
    uint64_t last = offset + size - 1 < end ? offset + size - 1 : end - 1;
    for (uint64_t i = offset / ENTRY; i <= last / ENTRY; i++)
        settle(device, &msix->vectors[i]);
    pthread_mutex_unlock(&msix->lock);
}

/* --- the device's side --- */

int msix_add(struct pci_device *device, uint32_t count, int bar) {
    struct msix *msix = &device->msix;
    if (!count || count > MSIX_VECTORS || msix->count)
        return -EINVAL;
    int error = pci_add_registers(device, bar, MSIX_BAR_SIZE, 0, read_bar, write_bar);
    if (error)
        return error;
    int at = pci_add_capability(device, CAPABILITY, CAPABILITY_SIZE);
    if (at < 0)
        return at;
    pci_set(device->config, (uint32_t)at + 2, 2, count - 1);
    pci_set(device->config, (uint32_t)at + 4, 4, (uint32_t)bar);
    pci_set(device->config, (uint32_t)at + 8, 4, MSIX_PBA | (uint32_t)bar);
    pci_set(device->write_mask, (uint32_t)at + 2, 2, ENABLE | FUNCTION_MASK);
    msix->capability = (uint8_t)at;
    msix->count = count;
    for (uint32_t i = 0; i < count; i++)
        msix->vectors[i] = (struct msix_vector){.fd = -1, .entry[CONTROL] = 1};
    return 0;
}

int msix_enabled(struct pci_device *device) {
    return __atomic_load_n(&device->msix.enabled, __ATOMIC_ACQUIRE);
}

void msix_raise(struct pci_device *device, uint32_t number) {
    struct msix *msix = &device->msix;
    if (number >= msix->count)
        return;
    struct msix_vector *vector = &msix->vectors[number];
    pthread_mutex_lock(&msix->lock);
    if (msix->enabled && masked(msix, vector)) {
        vector->pending = 1;
        msix->held++;
    } else if (msix->enabled) {
        send_now(device, vector);
    }
    pthread_mutex_unlock(&msix->lock);
}

int msix_route(struct pci_device *device, uint32_t number, int fd) {
    struct msix *msix = &device->msix;
    struct machine *machine = device->machine;
    if (number >= msix->count)
        return -EINVAL;
    if (fd >= 0) { /* Only this guest reads it, and it is never read to wait. */
        int flags = fcntl(fd, F_GETFL);
        if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0)
            return -errno;
    }
    int error = 0;
    struct msix_vector *vector = &msix->vectors[number];
    pthread_mutex_lock(&msix->lock);
    if (vector->fd >= 0)
        detach(device, vector);
    if (fd >= 0 && !vector->gsi) {
        vector->gsi = __atomic_fetch_add(&machine->next_gsi, 1, __ATOMIC_RELAXED);
        if (vector->gsi >= INTERRUPTS_FIRST_GSI + INTERRUPTS_ROUTES) {
            vector->gsi = 0;
            error = -ENOSPC;
        }
    }
    vector->fd = error ? -1 : fd;
    settle(device, vector);
    pthread_mutex_unlock(&msix->lock);
    return error;
}

void msix_control(struct pci_device *device, uint16_t control) {
    struct msix *msix = &device->msix;
    pthread_mutex_lock(&msix->lock);
    msix->masked = (control & FUNCTION_MASK) != 0;
    __atomic_store_n(&msix->enabled, (control & ENABLE) != 0, __ATOMIC_RELEASE);
    if (!msix->enabled)
        for (uint32_t i = 0; i < msix->count; i++)
            msix->vectors[i].pending = 0;
    settle_all(device);
    pthread_mutex_unlock(&msix->lock);
}

void msix_state(struct pci_device *device, struct state *state) {
    struct msix *msix = &device->msix;
    if (!state_alike(state, &msix->count, sizeof msix->count))
        state_wrong(state, "its %s %s is not this one's: it has another number of interrupts", device->ops->name, device->name);
    pthread_mutex_lock(&msix->lock);
    for (uint32_t i = 0; i < msix->count && state_fine(state); i++) {
        struct msix_vector *vector = &msix->vectors[i];
        uint8_t pending = vector->pending || (vector->fd >= 0 && msix->enabled && !vector->attached && readable(vector->fd));
        STATE(state, vector->entry);
        STATE(state, pending);
        if (!state->saving) {
            vector->entry[CONTROL] &= 1;
            for (uint32_t j = CONTROL + 1; j < ENTRY; j++)
                vector->entry[j] = 0;
            vector->pending = pending != 0;
        }
    }
    pthread_mutex_unlock(&msix->lock);
    if (msix->count && !state->saving && state_fine(state))
        msix_control(device, (uint16_t)pci_get(device->config, msix->capability + 2u, 2));
}

void msix_reset(struct pci_device *device) {
    struct msix *msix = &device->msix;
    if (!msix->count)
        return;
    pci_set(device->config, msix->capability + 2u, 2, msix->count - 1);
    msix_control(device, 0);
    pthread_mutex_lock(&msix->lock);
    for (uint32_t i = 0; i < msix->count; i++)
        for (uint32_t j = 0; j < ENTRY; j++)
            msix->vectors[i].entry[j] = j == CONTROL;
    pthread_mutex_unlock(&msix->lock);
}
