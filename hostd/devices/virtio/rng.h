/* rng.h: the entropy device. */
#ifndef HOSTD_VIRTIO_RNG_H
#define HOSTD_VIRTIO_RNG_H

#include "device.h"

struct virtio_rng {
    struct virtio_device device;
    uint64_t bytes; /* handed out */
};

/* NULL where the host lacks memory. */
struct virtio_rng *virtio_rng_new(struct slot_rows *memory);

#endif
