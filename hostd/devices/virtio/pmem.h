/* pmem.h: the persistent memory device (virtio 1.2, 5.19): a file's pages are the guest's, flushing is a request. */
#ifndef HOSTD_VIRTIO_PMEM_H
#define HOSTD_VIRTIO_PMEM_H

#include "device.h"

struct virtio_pmem {
    struct virtio_device device;
    int fd; /* to flush, or -1: nothing to make durable (read-only, or the guest's private copy) */
    uint64_t flushes, failed; /* counters */
};

/*
 * The memory itself is rows of the slot table at [start, start + size), which the caller has added. `fd` becomes the
 * device's. NULL where the host lacks memory.
 */
struct virtio_pmem *virtio_pmem_new(struct slot_rows *memory, int fd, uint64_t start, uint64_t size);

#endif
