/* balloon.h: the memory balloon (virtio 1.2, 5.5): inflate, deflate, statistics, free page reporting. */
#ifndef HOSTD_VIRTIO_BALLOON_H
#define HOSTD_VIRTIO_BALLOON_H

#include "device.h"

#define BALLOON_RANGES 32
#define BALLOON_STATISTICS 10 /* tags that are known: virtio 1.2, 5.5.6.4 */

struct balloon_range {
    uintptr_t start, end;
    int advice;                /* by which its pages go: MADV_DONTNEED, or MADV_REMOVE for a file's */
};

struct virtio_balloon {
    struct virtio_device device;
    struct balloon_range ranges[BALLOON_RANGES]; /* rows of this guest's own memory, in this process: only they go back */
    uint32_t range_count;
    uint8_t holding;           /* the driver's statistics buffer is ours */
    uint16_t held;             /* its head */
    uint64_t statistics[BALLOON_STATISTICS]; /* as the guest says; all ones: it never said */
    uint64_t statistics_count; /* times the guest sent them */
    uint64_t inflated, deflated, reported; /* pages of 4096 bytes the guest named; reported ones in bytes */
    uint64_t released;         /* bytes really given back to the host */
    uint64_t refused;          /* bytes not: outside memory, or of a file that is not the guest's */
};

/* NULL where the host lacks memory. */
struct virtio_balloon *virtio_balloon_new(struct slot_rows *memory, int deflate_on_oom);

/* Pages of this row may be given back, by `advice`. 0, or -ENOSPC after BALLOON_RANGES. Before the guest runs. */
int virtio_balloon_allow(struct virtio_balloon *balloon, uintptr_t hva, uint64_t size, int advice);

/* How much the balloon shall hold, in pages of 4096 bytes; the driver is told. */
void virtio_balloon_target(struct virtio_balloon *balloon, uint32_t pages);

/* How much the driver says it holds, in pages. */
uint32_t virtio_balloon_actual(struct virtio_balloon *balloon);

/* Ask the driver for new statistics. Returns 1, or 0 if it has no buffer with us (not ready yet, or it owes an answer). */
int virtio_balloon_poll(struct virtio_balloon *balloon);

/* Copy the last statistics; returns how many times the guest has sent any. */
uint64_t virtio_balloon_statistics(struct virtio_balloon *balloon, uint64_t to[BALLOON_STATISTICS]);

#endif
