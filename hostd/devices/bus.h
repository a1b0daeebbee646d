/*
 * bus.h: which device answers at which port or physical address.
 *
 * A range is found under the bus's lock and called without it: a device locks itself. Devices outlive the bus's users.
 */
#ifndef HOSTD_DEVICES_BUS_H
#define HOSTD_DEVICES_BUS_H

#include <pthread.h>
#include <stdint.h>

#define BUS_RANGES 256

/*
 * Called with size 1, 2, 4 or 8, and `offset` + `size` inside the range, at any alignment; by several threads at once.
 */
typedef uint64_t (*bus_read_fn)(void *device, uint64_t offset, uint32_t size);
typedef void (*bus_write_fn)(void *device, uint64_t offset, uint64_t value, uint32_t size);

struct bus_range {
    uint64_t address, size;
    bus_read_fn read;
    bus_write_fn write;
    void *device;
    uint64_t accesses;                   /* the bus's: a counter, for `inspect` */
};

struct bus {
    pthread_rwlock_t lock;
    uint32_t count;
    struct bus_range ranges[BUS_RANGES]; /* by address, without overlap */
    uint64_t unclaimed;                  /* accesses that no device took, for `inspect` */
};

/* 0 or -errno. */
int bus_open(struct bus *bus);
void bus_close(struct bus *bus);

/* 0, -EEXIST (overlaps another), -ENOSPC or -EINVAL (empty, or wraps around). */
int bus_add(struct bus *bus, const struct bus_range *range);

/* Takes the range that begins at `address` away: 0 or -ENOENT. A call that has begun may still be going on. */
int bus_remove(struct bus *bus, uint64_t address);

/* All ones, `size` bytes wide, where no device is; a size that is not 1, 2, 4 or 8 is nowhere. */
uint64_t bus_read(struct bus *bus, uint64_t address, uint32_t size);
void bus_write(struct bus *bus, uint64_t address, uint64_t value, uint32_t size);

/* The bytes of `value` that a read of `size` returns. */
static inline uint64_t bus_cut(uint64_t value, uint32_t size) {
    return size < 8 ? value & ((1ull << (size * 8)) - 1) : value;
}

#endif
