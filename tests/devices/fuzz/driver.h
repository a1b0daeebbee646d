/* driver.h: a driver that does what the specification says, so that the fuzzer gets past the first check. */
#ifndef HOSTD_FUZZ_DRIVER_H
#define HOSTD_FUZZ_DRIVER_H

#include "fuzz.h"
#include "machine.h"

enum { DRIVER_QUEUES = 40, SEGMENTS = 20 };

#define ECAM 0xe0000000ull
#define LOW_START 0xc0000000ull
#define LOW_END 0xe0000000ull
#define HIGH_START 0x1000000000ull
#define HIGH_END 0x2000000000ull

struct driver_queue {
    uint16_t size, next_desc, next_avail;
    uint64_t desc, avail, used;
};

struct driver {
    struct machine *machine;
    uint32_t slot;
    uint64_t bar, features;
    uint32_t count;
    struct driver_queue queues[DRIVER_QUEUES];
    uint64_t heap;      /* where the next ring goes */
};

struct segment {
    uint64_t gpa;
    uint32_t size;
    int write;
};

uint64_t mmio_get(struct machine *machine, uint64_t address, uint32_t size);
void mmio_put(struct machine *machine, uint64_t address, uint64_t value, uint32_t size);
uint32_t config_get(struct machine *machine, uint32_t slot, uint32_t offset, uint32_t size);
void config_put(struct machine *machine, uint32_t slot, uint32_t offset, uint32_t value, uint32_t size);
void port_put(struct machine *machine, uint16_t port, uint32_t value, uint32_t size);
uint32_t port_get(struct machine *machine, uint16_t port, uint32_t size);

/* Unmasks the first `count` vectors and turns MSI-X on. */
void enable_msix(struct machine *machine, uint32_t slot, uint32_t count);

/* Resets the device and brings it to DRIVER_OK. 1, or 0 if it does not come up. `features`: which to accept if offered. */
int driver_open(struct driver *driver, struct machine *machine, uint32_t slot, uint64_t features, int msix);

/* Makes a chain available; returns its head. Does not notify. */
uint16_t driver_post(struct driver *driver, uint32_t queue, const struct segment *segments, uint32_t count, int indirect);
void driver_notify(struct driver *driver, uint32_t queue);

/* The device's used index, and the length of the last used element. */
uint16_t driver_used(struct driver *driver, uint32_t queue, uint32_t *size);

/* Lets the machine serve what is ready; stops when nothing is. */
void serve(struct machine *machine);

#endif
