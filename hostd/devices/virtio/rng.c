/* rng.c: the entropy device (virtio 1.2, 5.4). One queue; each buffer is filled from the host's own generator. */
#include "rng.h"

#include <errno.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* More than any driver asks for at once; a longer buffer is filled in part, as it may be (5.4.6.2: one byte is enough). */
enum { LARGEST = 4096 };

static int64_t rng_chain(struct virtio_device *device, uint32_t queue, struct virtqueue_chain *chain) {
    (void)queue;
    struct virtio_rng *rng = (struct virtio_rng *)device;
    uint8_t bytes[LARGEST];
    uint64_t want = chain->in_size < LARGEST ? chain->in_size : LARGEST, got = 0;
    while (got < want) {
        ssize_t count = getrandom(bytes + got, want - got, 0);
        if (count > 0)
            got += (uint64_t)count;
        else if (errno != EINTR)
            break;
    }
    chain_write(chain, 0, bytes, got);
    explicit_bzero(bytes, got);
    rng->bytes += got;
    return (int64_t)got;
}

static void rng_close(struct virtio_device *device) {
    free(device);
}

static const struct virtio_ops rng_ops = {
    .name = "rng",
    .id = VIRTIO_ID_RNG,
    .pci_class = 0x100000, /* other encryption controller */
    .serve = virtio_serve_chains,
    .chain = rng_chain,
    .close = rng_close,
};

struct virtio_rng *virtio_rng_new(struct slot_rows *memory) {
    struct virtio_rng *rng = calloc(1, sizeof *rng);
    if (rng && virtio_init(&rng->device, &rng_ops, memory, 0, 0, 1, 16)) {
        free(rng->device.queues);
        free(rng);
        return NULL;
    }
    return rng;
}
