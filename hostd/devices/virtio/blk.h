/* blk.h: the block device (virtio 1.2, 5.2) over a raw file or a block device. */
#ifndef HOSTD_VIRTIO_BLK_H
#define HOSTD_VIRTIO_BLK_H

#include "device.h"

#define BLK_SECTOR 512
#define BLK_SERIAL 20

enum blk_access {
    BLK_READ_ONLY,
    BLK_SHARED,  /* writes go to the file */
    BLK_PRIVATE, /* writes go to the overlay, the file is only read */
};

struct virtio_blk {
    struct virtio_device device;
    enum blk_access access;
    int fd, overlay_fd;
    uint64_t sectors;
    uint64_t *written;  /* private: one bit for each sector, set once it is the overlay's */
    char serial[BLK_SERIAL];
    uint64_t reads, writes, flushes, discards, refused, failed, read_bytes, written_bytes; /* counters */
};

/*
 * A disk of `size` bytes (whole sectors) in `fd`. With BLK_PRIVATE `overlay_fd` is a file of that size without data.
 * Both descriptors become the device's. NULL where the host lacks memory (the descriptors stay the caller's).
 */
struct virtio_blk *virtio_blk_new(struct slot_rows *memory, int fd, uint64_t size, enum blk_access access,
                                  int overlay_fd, const char *serial, uint32_t block_size);

#endif
