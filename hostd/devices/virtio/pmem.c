/* pmem.c: see pmem.h. */
#include "pmem.h"

#include <linux/virtio_ids.h>
#include <linux/virtio_pmem.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int64_t pmem_chain(struct virtio_device *device, uint32_t queue, struct virtqueue_chain *chain) {
    (void)queue;
    struct virtio_pmem *pmem = (struct virtio_pmem *)device;
    struct virtio_pmem_req request;
    struct virtio_pmem_resp response = {.ret = (uint32_t)-1};
    if (chain->in_size < sizeof response)
        return -VQ_REQUEST;
    if (chain_read(chain, 0, &request, sizeof request) == sizeof request && request.type == VIRTIO_PMEM_REQ_TYPE_FLUSH) {
        pmem->flushes++;
        /* What the guest wrote through its mapping is in the file's page cache: fdatasync makes it durable. */
        if (pmem->fd < 0 || !fdatasync(pmem->fd))
            response.ret = 0;
    }
    pmem->failed += response.ret != 0;
    return (int64_t)chain_write(chain, 0, &response, sizeof response);
}

static void pmem_close(struct virtio_device *device) {
    struct virtio_pmem *pmem = (struct virtio_pmem *)device;
    if (pmem->fd >= 0)
        close(pmem->fd);
    free(pmem);
}

static const struct virtio_ops pmem_ops = {
    .name = "pmem",
    .id = VIRTIO_ID_PMEM,
    .pci_class = 0x050000, /* RAM controller */
    .serve = virtio_serve_chains,
    .chain = pmem_chain,
    .fixed_config = 1,
    .close = pmem_close,
};

struct virtio_pmem *virtio_pmem_new(struct slot_rows *memory, int fd, uint64_t start, uint64_t size) {
    struct virtio_pmem *pmem = calloc(1, sizeof *pmem);
    /* VIRTIO_PMEM_F_SHMEM_REGION is not offered: the address is in the configuration, as every driver knows it. */
    if (pmem && virtio_init(&pmem->device, &pmem_ops, memory, 0, sizeof(struct virtio_pmem_config), 1, 64)) {
        free(pmem->device.queues);
        free(pmem);
        return NULL;
    }
    if (!pmem)
        return NULL;
    pmem->fd = fd;
    struct virtio_pmem_config config = {.start = start, .size = size};
    memcpy(pmem->device.config, &config, sizeof config);
    return pmem;
}
