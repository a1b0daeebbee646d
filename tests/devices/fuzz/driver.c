/* driver.c: see driver.h. */
#include "driver.h"

#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>

enum { NOTIFY = 0x3000, QUEUE_LIMIT = 256, TABLES = 0x12000 }; /* Indirect tables lie behind the rings. */

uint64_t mmio_get(struct machine *machine, uint64_t address, uint32_t size) {
    uint64_t value = 0;
    machine_access(machine, MACHINE_MMIO, address, &value, size, 0);
    return value;
}

void mmio_put(struct machine *machine, uint64_t address, uint64_t value, uint32_t size) {
    machine_access(machine, MACHINE_MMIO, address, &value, size, 1);
}

uint32_t config_get(struct machine *machine, uint32_t slot, uint32_t offset, uint32_t size) {
    return (uint32_t)mmio_get(machine, ECAM + (slot << 15) + offset, size);
}

void config_put(struct machine *machine, uint32_t slot, uint32_t offset, uint32_t value, uint32_t size) {
    mmio_put(machine, ECAM + (slot << 15) + offset, value, size);
}

void port_put(struct machine *machine, uint16_t port, uint32_t value, uint32_t size) {
    machine_access(machine, MACHINE_PORTS, port, &value, size, 1);
}

uint32_t port_get(struct machine *machine, uint16_t port, uint32_t size) {
    uint32_t value = 0;
    machine_access(machine, MACHINE_PORTS, port, &value, size, 0);
    return value;
}

static uint64_t common_get(struct driver *driver, uint32_t offset, uint32_t size) {
    return mmio_get(driver->machine, driver->bar + offset, size);
}

static void common_put(struct driver *driver, uint32_t offset, uint64_t value, uint32_t size) {
    mmio_put(driver->machine, driver->bar + offset, value, size);
}

static uint64_t take(struct driver *driver, uint64_t size, uint64_t align) {
    uint64_t at = (driver->heap + align - 1) & ~(align - 1);
    driver->heap = at + size;
    return at;
}

static void open_queue(struct driver *driver, uint32_t index) {
    struct driver_queue *queue = &driver->queues[index];
    common_put(driver, VIRTIO_PCI_COMMON_Q_SELECT, index, 2);
    uint32_t max = (uint32_t)common_get(driver, VIRTIO_PCI_COMMON_Q_SIZE, 2);
    uint16_t size = (uint16_t)(1u << below(below(8) ? 5 : 9));
    *queue = (struct driver_queue){.size = size > max ? (uint16_t)max : size};
    queue->desc = take(driver, 16ull * queue->size, 16);
    queue->avail = take(driver, 6 + 2ull * queue->size, 2);
    queue->used = take(driver, 6 + 8ull * queue->size, 4);
    uint8_t zeros[6 + 8 * QUEUE_LIMIT] = {0};
    poke(queue->avail, zeros, 6 + 2ull * queue->size);
    poke(queue->used, zeros, 6 + 8ull * queue->size);
    common_put(driver, VIRTIO_PCI_COMMON_Q_SIZE, queue->size, 2);
    common_put(driver, VIRTIO_PCI_COMMON_Q_MSIX, index + 1, 2);
    common_put(driver, VIRTIO_PCI_COMMON_Q_DESCLO, queue->desc & 0xffffffff, 4);
    common_put(driver, VIRTIO_PCI_COMMON_Q_DESCHI, queue->desc >> 32, 4);
    common_put(driver, VIRTIO_PCI_COMMON_Q_AVAILLO, queue->avail, 8);
    common_put(driver, VIRTIO_PCI_COMMON_Q_USEDLO, queue->used & 0xffffffff, 4);
    common_put(driver, VIRTIO_PCI_COMMON_Q_USEDHI, queue->used >> 32, 4);
    common_put(driver, VIRTIO_PCI_COMMON_Q_ENABLE, 1, 2);
}

void enable_msix(struct machine *machine, uint32_t slot, uint32_t count) {
    uint32_t at = config_get(machine, slot, 0x34, 1);
    for (int i = 0; at && i < 48; i++, at = config_get(machine, slot, at + 1, 1)) {
        if (config_get(machine, slot, at, 1) != 0x11)
            continue;
        uint64_t table = config_get(machine, slot, 0x14, 4) & ~0xfull;
        for (uint32_t vector = 0; vector < count; vector++) {
            mmio_put(machine, table + 16 * vector, 0xfee00000, 4);
            mmio_put(machine, table + 16 * vector + 4, 0, 4);
            mmio_put(machine, table + 16 * vector + 8, 0x4000 + vector, 4);
            mmio_put(machine, table + 16 * vector + 12, 0, 4);
        }
        config_put(machine, slot, at + 2, 0x8000, 2);
        return;
    }
}

int driver_open(struct driver *driver, struct machine *machine, uint32_t slot, uint64_t features, int msix) {
    *driver = (struct driver){.machine = machine, .slot = slot, .heap = 0x100 + below(64) * 0x40};
    config_put(machine, slot, 4, 6, 2); /* memory, bus master */
    driver->bar = config_get(machine, slot, 0x10, 4) & ~0xfull;
    common_put(driver, VIRTIO_PCI_COMMON_STATUS, 0, 1);
    if (common_get(driver, VIRTIO_PCI_COMMON_STATUS, 1) != 0)
        return 0;
    common_put(driver, VIRTIO_PCI_COMMON_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE, 1);
    common_put(driver, VIRTIO_PCI_COMMON_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER, 1);
    for (uint32_t half = 0; half < 2; half++) {
        common_put(driver, VIRTIO_PCI_COMMON_DFSELECT, half, 4);
        uint64_t offered = common_get(driver, VIRTIO_PCI_COMMON_DF, 4) << (32 * half);
        driver->features |= offered & (features | 1ull << VIRTIO_F_VERSION_1);
        common_put(driver, VIRTIO_PCI_COMMON_GFSELECT, half, 4);
        common_put(driver, VIRTIO_PCI_COMMON_GF, (uint32_t)(driver->features >> (32 * half)), 4);
    }
    common_put(driver, VIRTIO_PCI_COMMON_STATUS, 0x0b, 1);
    if (!(common_get(driver, VIRTIO_PCI_COMMON_STATUS, 1) & VIRTIO_CONFIG_S_FEATURES_OK))
        return 0;
    driver->count = (uint32_t)common_get(driver, VIRTIO_PCI_COMMON_NUMQ, 2);
    if (driver->count > DRIVER_QUEUES) { /* All ones: its BAR is nowhere, or another's. */
        driver->count = 0;
        return 0;
    }
    if (msix)
        enable_msix(machine, slot, driver->count + 1);
    common_put(driver, VIRTIO_PCI_COMMON_MSIX, 0, 2);
    for (uint32_t i = 0; i < driver->count; i++)
        open_queue(driver, i);
    common_put(driver, VIRTIO_PCI_COMMON_STATUS, 0x0f, 1);
    return (common_get(driver, VIRTIO_PCI_COMMON_STATUS, 1) & 0xff) == 0x0f;
}

uint16_t driver_post(struct driver *driver, uint32_t index, const struct segment *segments, uint32_t count, int indirect) {
    struct driver_queue *queue = &driver->queues[index];
    struct vring_desc table[SEGMENTS] = {0};
    indirect = indirect || count > queue->size; /* It may not have been negotiated: then it is one more mutation. */
    uint16_t mask = queue->size - 1, head = queue->next_desc & mask;
    for (uint32_t i = 0; i < count; i++) {
        table[i].addr = segments[i].gpa;
        table[i].len = segments[i].size;
        table[i].flags = (segments[i].write ? VRING_DESC_F_WRITE : 0) | (i + 1 < count ? VRING_DESC_F_NEXT : 0);
        table[i].next = (uint16_t)(indirect ? i + 1 : (head + i + 1u) & mask);
    }
    if (indirect) {
        uint64_t at = TABLES + below(64) * 0x100;
        poke(at, table, 16 * count);
        struct vring_desc pointer = {.addr = at, .len = 16 * count, .flags = VRING_DESC_F_INDIRECT};
        poke(queue->desc + 16ull * head, &pointer, 16);
        queue->next_desc++;
    } else {
        for (uint32_t i = 0; i < count; i++)
            poke(queue->desc + 16ull * ((head + i) & mask), &table[i], 16);
        queue->next_desc += (uint16_t)count;
    }
    poke(queue->avail + 4 + 2ull * (queue->next_avail & mask), &head, 2);
    queue->next_avail++;
    poke(queue->avail + 2, &queue->next_avail, 2);
    return head;
}

void driver_notify(struct driver *driver, uint32_t queue) {
    mmio_put(driver->machine, driver->bar + NOTIFY + 4ull * queue, queue, 2);
}

uint16_t driver_used(struct driver *driver, uint32_t index, uint32_t *size) {
    const struct driver_queue *queue = &driver->queues[index];
    uint16_t used;
    peek(queue->used + 2, &used, 2);
    peek(queue->used + 4 + 8ull * ((used - 1u) & (queue->size - 1u)) + 4, size, 4);
    return used;
}

void serve(struct machine *machine) {
    for (int turn = 0; turn < 200 && loop_once(&machine->loop, 0) > 0; turn++)
        continue;
}
