/*
 * blk.c: see blk.h.
 *
 * Data goes straight between the file and the guest's memory, with preadv and pwritev. So a file that the host cut short is
 * a short read and a page that is not there is EFAULT: both are VIRTIO_BLK_S_IOERR to the guest, never a signal here.
 */
#define _GNU_SOURCE
#include "blk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SEGMENTS = VIRTQUEUE_MAX - 2,   /* a chain's descriptors without header and status */
    DISCARD_SECTORS = 1 << 16,      /* most of one discard or write-zeroes segment: 32 MiB */
    DISCARD_SEGMENTS = 16,
};

/* Moves all bytes of the pieces; 0 or -1. A short read is an error: the disk has as many sectors as was said. */
static int move(int fd, int write, struct iovec *pieces, uint32_t count, uint64_t offset, int flags) {
    while (count) {
        ssize_t done = write ? pwritev2(fd, pieces, (int)count, (off_t)offset, flags)
                             : preadv(fd, pieces, (int)count, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return -1;
        offset += (uint64_t)done;
        while (count && (size_t)done >= pieces->iov_len) {
            done -= (ssize_t)pieces->iov_len;
            pieces++;
            count--;
        }
        if (count) {
            pieces->iov_base = (uint8_t *)pieces->iov_base + done;
            pieces->iov_len -= (size_t)done;
        }
    }
    return 0;
}

/* --- the private overlay. Its unit is a sector, as a request's is: no write ever needs the file's old bytes. --- */

static int is_written(const struct virtio_blk *blk, uint64_t sector) {
    return (blk->written[sector / 64] >> (sector % 64)) & 1;
}

static void mark_written(struct virtio_blk *blk, uint64_t sector, uint64_t count) {
    for (uint64_t end = sector + count; sector < end;) {
        if (sector % 64 == 0 && end - sector >= 64) {
            blk->written[sector / 64] = ~0ull;
            sector += 64;
        } else {
            blk->written[sector / 64] |= 1ull << (sector % 64);
            sector++;
        }
    }
}

/* How many sectors from `sector` on, at most `count`, come from the same file; which one in *overlay. */
static uint64_t run(const struct virtio_blk *blk, uint64_t sector, uint64_t count, int *overlay) {
    *overlay = is_written(blk, sector);
    uint64_t uniform = *overlay ? ~0ull : 0, length = 1;
    while (length < count) {
        uint64_t at = sector + length;
        if (at % 64 == 0 && count - length >= 64 && blk->written[at / 64] == uniform)
            length += 64;
        else if (is_written(blk, at) == *overlay)
            length++;
        else
            break;
    }
    return length;
}

/* --- requests --- */

/* The sectors [sector, sector + count) are on the disk. */
static int on_disk(const struct virtio_blk *blk, uint64_t sector, uint64_t count) {
    return sector <= blk->sectors && count <= blk->sectors - sector;
}

static uint8_t read_sectors(struct virtio_blk *blk, const struct virtqueue_chain *chain, uint64_t sector, uint64_t size) {
    struct iovec pieces[VIRTQUEUE_PIECES];
    if (size % BLK_SECTOR || !on_disk(blk, sector, size / BLK_SECTOR))
        return VIRTIO_BLK_S_IOERR;
    for (uint64_t done = 0; done < size;) {
        int overlay = 0;
        uint64_t part = size - done;
        if (blk->access == BLK_PRIVATE)
            part = run(blk, sector, part / BLK_SECTOR, &overlay) * BLK_SECTOR;
        uint32_t count = chain_slice(chain, 1, done, part, pieces);
        if (move(overlay ? blk->overlay_fd : blk->fd, 0, pieces, count, sector * BLK_SECTOR, 0))
            return VIRTIO_BLK_S_IOERR;
        done += part;
        sector += part / BLK_SECTOR;
    }
    blk->reads++;
    blk->read_bytes += size;
    return VIRTIO_BLK_S_OK;
}

static uint8_t write_sectors(struct virtio_blk *blk, const struct virtqueue_chain *chain, uint64_t sector, uint64_t size) {
    struct iovec pieces[VIRTQUEUE_PIECES];
    if (blk->access == BLK_READ_ONLY || size % BLK_SECTOR || !on_disk(blk, sector, size / BLK_SECTOR))
        return VIRTIO_BLK_S_IOERR;
    uint32_t count = chain_slice(chain, 0, sizeof(struct virtio_blk_outhdr), size, pieces);
    int private = blk->access == BLK_PRIVATE;
    /* 5.2.6.2: without FLUSH a completed write is on the disk. What is private dies with the guest anyway. */
    int flags = private || virtio_has(&blk->device, VIRTIO_BLK_F_FLUSH) ? 0 : RWF_DSYNC;
    if (move(private ? blk->overlay_fd : blk->fd, 1, pieces, count, sector * BLK_SECTOR, flags))
        return VIRTIO_BLK_S_IOERR;
    if (private)
        mark_written(blk, sector, size / BLK_SECTOR);
    blk->writes++;
    blk->written_bytes += size;
    return VIRTIO_BLK_S_OK;
}

static uint8_t flush(struct virtio_blk *blk) {
    blk->flushes++;
    return blk->access == BLK_SHARED && fdatasync(blk->fd) ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK;
}

/* Zeros at [offset, offset + size) of a file, by a hole if `hole`. 0 or -1. */
static int zero(int fd, uint64_t offset, uint64_t size, int hole) {
    static const uint8_t zeros[1 << 16];
    int mode = (hole ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) | FALLOC_FL_KEEP_SIZE;
    if (!fallocate(fd, mode, (off_t)offset, (off_t)size))
        return 0;
    while (size) {
        size_t part = size < sizeof zeros ? size : sizeof zeros;
        ssize_t done = pwrite(fd, zeros, part, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return -1;
        offset += (uint64_t)done;
        size -= (uint64_t)done;
    }
    return 0;
}

/* DISCARD and WRITE_ZEROES: both leave zeros, which a discard may. All segments are looked at before the first is done. */
static uint8_t discard(struct virtio_blk *blk, const struct virtqueue_chain *chain, uint32_t type, uint64_t size) {
    struct virtio_blk_discard_write_zeroes segments[DISCARD_SEGMENTS];
    uint64_t count = size / sizeof *segments;
    if (blk->access == BLK_READ_ONLY || !count || size % sizeof *segments || count > DISCARD_SEGMENTS)
        return VIRTIO_BLK_S_IOERR;
    chain_read(chain, sizeof(struct virtio_blk_outhdr), segments, size);
    for (uint64_t i = 0; i < count; i++) {
        uint32_t flags = segments[i].flags;
        /* 5.2.6.2: unknown flags, and unmap for a discard, are not supported. */
        if (flags & ~(type == VIRTIO_BLK_T_DISCARD ? 0u : VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP))
            return VIRTIO_BLK_S_UNSUPP;
        if (segments[i].num_sectors > DISCARD_SECTORS || !on_disk(blk, segments[i].sector, segments[i].num_sectors))
            return VIRTIO_BLK_S_IOERR;
    }
    int private = blk->access == BLK_PRIVATE;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t sector = segments[i].sector, length = segments[i].num_sectors;
        int hole = private || type == VIRTIO_BLK_T_DISCARD || segments[i].flags;
        if (length && zero(private ? blk->overlay_fd : blk->fd, sector * BLK_SECTOR, length * BLK_SECTOR, hole))
            return VIRTIO_BLK_S_IOERR;
        if (private)
            mark_written(blk, sector, length);
    }
    blk->discards++;
    return VIRTIO_BLK_S_OK;
}

static int64_t blk_chain(struct virtio_device *device, uint32_t queue, struct virtqueue_chain *chain) {
    (void)queue;
    struct virtio_blk *blk = (struct virtio_blk *)device;
    struct virtio_blk_outhdr header;
    if (!chain->in_size)
        return -VQ_REQUEST; /* No place for the status. */
    uint64_t in_size = chain->in_size - 1;
    uint8_t status = VIRTIO_BLK_S_UNSUPP;
    if (chain_read(chain, 0, &header, sizeof header) < sizeof header) {
        status = VIRTIO_BLK_S_IOERR;
    } else {
        uint64_t out_size = chain->out_size - sizeof header;
        switch (header.type) {
        case VIRTIO_BLK_T_IN:
            status = read_sectors(blk, chain, header.sector, in_size);
            break;
        case VIRTIO_BLK_T_OUT:
            status = write_sectors(blk, chain, header.sector, out_size);
            break;
        case VIRTIO_BLK_T_FLUSH:
            status = flush(blk);
            break;
        case VIRTIO_BLK_T_GET_ID:
            chain_write(chain, 0, blk->serial, in_size < BLK_SERIAL ? in_size : BLK_SERIAL);
            status = VIRTIO_BLK_S_OK;
            break;
        case VIRTIO_BLK_T_DISCARD:
        case VIRTIO_BLK_T_WRITE_ZEROES:
            status = discard(blk, chain, header.type, out_size);
        }
    }
    blk->refused += status == VIRTIO_BLK_S_UNSUPP;
    blk->failed += status == VIRTIO_BLK_S_IOERR;
    chain_write(chain, in_size, &status, 1);
    return (int64_t)chain->in_size; /* The status comes last, so all before it counts too. */
}

static void blk_close(struct virtio_device *device) {
    struct virtio_blk *blk = (struct virtio_blk *)device;
    close(blk->fd);
    if (blk->overlay_fd >= 0)
        close(blk->overlay_fd);
    free(blk->written);
    free(blk);
}

static const struct virtio_ops blk_ops = {
    .name = "blk",
    .id = VIRTIO_ID_BLOCK,
    .pci_class = 0x018000, /* other mass storage controller */
    .serve = virtio_serve_chains,
    .chain = blk_chain,
    .fixed_config = 1,
    .close = blk_close,
};

struct virtio_blk *virtio_blk_new(struct slot_rows *memory, int fd, uint64_t size, enum blk_access access,
                                  int overlay_fd, const char *serial, uint32_t block_size) {
    struct virtio_blk *blk = calloc(1, sizeof *blk);
    if (!blk)
        return NULL;
    blk->sectors = size / BLK_SECTOR;
    if (access == BLK_PRIVATE) /* Untouched parts of it cost nothing. */
        blk->written = calloc(blk->sectors / 64 + 1, sizeof *blk->written);
    uint64_t features = 1ull << VIRTIO_BLK_F_SEG_MAX | 1ull << VIRTIO_BLK_F_BLK_SIZE | 1ull << VIRTIO_BLK_F_FLUSH;
    features |= access == BLK_READ_ONLY ? 1ull << VIRTIO_BLK_F_RO
                                        : 1ull << VIRTIO_BLK_F_DISCARD | 1ull << VIRTIO_BLK_F_WRITE_ZEROES;
    if ((access == BLK_PRIVATE && !blk->written) ||
        virtio_init(&blk->device, &blk_ops, memory, features, offsetof(struct virtio_blk_config, unused1) + 3, 1,
                    VIRTQUEUE_MAX)) {
        free(blk->device.queues);
        free(blk->written);
        free(blk);
        return NULL;
    }
    blk->fd = fd;
    blk->overlay_fd = access == BLK_PRIVATE ? overlay_fd : -1;
    blk->access = access;
    size_t length = strnlen(serial, BLK_SERIAL);
    memcpy(blk->serial, serial, length);
    struct virtio_blk_config config = {
        .capacity = blk->sectors,
        .seg_max = SEGMENTS,
        .blk_size = block_size,
        .max_discard_sectors = DISCARD_SECTORS,
        .max_discard_seg = DISCARD_SEGMENTS,
        .discard_sector_alignment = block_size / BLK_SECTOR,
        .max_write_zeroes_sectors = DISCARD_SECTORS,
        .max_write_zeroes_seg = DISCARD_SEGMENTS,
        .write_zeroes_may_unmap = 1,
    };
    memcpy(blk->device.config, &config, blk->device.config_size);
    return blk;
}
