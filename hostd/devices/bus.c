/* bus.c: see bus.h. */
#include "bus.h"

#include <errno.h>
#include <string.h>

int bus_open(struct bus *bus) {
    bus->count = 0;
    return -pthread_rwlock_init(&bus->lock, NULL);
}

void bus_close(struct bus *bus) {
    pthread_rwlock_destroy(&bus->lock);
}

/* The number of ranges that begin at or below `address`. */
static uint32_t position(const struct bus *bus, uint64_t address) {
    uint32_t low = 0, high = bus->count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (bus->ranges[middle].address <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int add(struct bus *bus, const struct bus_range *range) {
    uint32_t at = position(bus, range->address);
    const struct bus_range *before = at ? &bus->ranges[at - 1] : NULL;
    const struct bus_range *behind = at < bus->count ? &bus->ranges[at] : NULL;
    if ((before && range->address - before->address < before->size) ||
        (behind && behind->address - range->address < range->size))
        return -EEXIST;
    if (bus->count == BUS_RANGES)
        return -ENOSPC;
    memmove(&bus->ranges[at + 1], &bus->ranges[at], (bus->count - at) * sizeof bus->ranges[0]);
    bus->ranges[at] = *range;
    bus->count++;
    return 0;
}

int bus_add(struct bus *bus, const struct bus_range *range) {
    if (!range->size || range->address + (range->size - 1) < range->address)
        return -EINVAL;
    pthread_rwlock_wrlock(&bus->lock);
    int error = add(bus, range);
    pthread_rwlock_unlock(&bus->lock);
    return error;
}

int bus_remove(struct bus *bus, uint64_t address) {
    int error = -ENOENT;
    pthread_rwlock_wrlock(&bus->lock);
    uint32_t at = position(bus, address);
    if (at && bus->ranges[at - 1].address == address) {
        memmove(&bus->ranges[at - 1], &bus->ranges[at], (bus->count - at) * sizeof bus->ranges[0]);
        bus->count--;
        error = 0;
    }
    pthread_rwlock_unlock(&bus->lock);
    return error;
}

/* Checked: the size is one that devices know, and one range holds all the bytes. */
static int find(struct bus *bus, uint64_t address, uint32_t size, struct bus_range *range) {
    int found = 0;
    if (size == 1 || size == 2 || size == 4 || size == 8) {
        pthread_rwlock_rdlock(&bus->lock);
        uint32_t at = position(bus, address);
        if (at) {
            struct bus_range *candidate = &bus->ranges[at - 1];
            uint64_t offset = address - candidate->address;
            found = offset < candidate->size && size <= candidate->size - offset;
            if (found) {
                __atomic_fetch_add(&candidate->accesses, 1, __ATOMIC_RELAXED);
                *range = *candidate;
            }
        }
        pthread_rwlock_unlock(&bus->lock);
    }
    if (!found)
        __atomic_fetch_add(&bus->unclaimed, 1, __ATOMIC_RELAXED);
    return found;
}

uint64_t bus_read(struct bus *bus, uint64_t address, uint32_t size) {
    struct bus_range range;
    if (!find(bus, address, size, &range))
        return bus_cut(UINT64_MAX, size);
    return bus_cut(range.read(range.device, address - range.address, size), size);
}

void bus_write(struct bus *bus, uint64_t address, uint64_t value, uint32_t size) {
    struct bus_range range;
    if (find(bus, address, size, &range))
        range.write(range.device, address - range.address, bus_cut(value, size), size);
}
