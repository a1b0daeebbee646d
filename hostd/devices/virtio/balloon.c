/* balloon.c: see balloon.h. */
#define _GNU_SOURCE
#include "balloon.h"
#include "state.h"

#include <errno.h>
#include <linux/virtio_balloon.h>
#include <linux/virtio_ids.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096, QUEUES = 5, PFNS = 256, STATISTICS = 64 };

enum role { INFLATE, DEFLATE, STATS, REPORT };

/*
 * Which queue is which. By 5.5.2 reporting is queue 4 whatever else is there; Linux leaves no gap for a queue that was not
 * negotiated and takes the next one. Free page hinting is not offered, so no queue is two things to two drivers.
 */
static enum role role_of(const struct virtio_device *device, uint32_t queue) {
    if (queue < 2)
        return queue ? DEFLATE : INFLATE;
    return queue == 2 && virtio_has(device, VIRTIO_BALLOON_F_STATS_VQ) ? STATS : REPORT;
}

/* Gives whole pages of [start, start + size) of this process back to the host, if they are of a row that is its own. */
static void release(struct virtio_balloon *balloon, uintptr_t start, uint64_t size) {
    uintptr_t first = (start + PAGE - 1) & ~(uintptr_t)(PAGE - 1), end = (start + size) & ~(uintptr_t)(PAGE - 1);
    for (uint32_t i = 0; i < balloon->range_count && first < end; i++) {
        const struct balloon_range *range = &balloon->ranges[i];
        if (first < range->start || end > range->end)
            continue;
        if (madvise((void *)first, end - first, range->advice))
            break; /* Locked memory, for example: it stays. */
        balloon->released += end - first;
        return;
    }
    balloon->refused += size;
}

static void release_pages(struct virtio_balloon *balloon, uint64_t first, uint64_t count) {
    uint64_t size = count * PAGE;
    void *hva = slot_hva(balloon->device.memory, first * PAGE, size, 1);
    if (hva) {
        release(balloon, (uintptr_t)hva, size);
        return;
    }
    if (count == 1) {
        balloon->refused += PAGE;
        return;
    }
    for (uint64_t page = first; page < first + count; page++) /* A run across the end of a row. */
        release_pages(balloon, page, 1);
}

/* The chain is an array of page numbers (5.5.6); neighbours, up or down, go back to the host in one call. */
static void inflate(struct virtio_balloon *balloon, const struct virtqueue_chain *chain) {
    uint32_t pages[PFNS];
    uint64_t offset = 0, first = 0, count = 0, got;
    /* Bounded by what any driver sends at once, times a margin: a chain may have 4 GiB. */
    while (offset < 64 * sizeof pages && (got = chain_read(chain, offset, pages, sizeof pages) / 4)) {
        for (uint64_t i = 0; i < got; i++) {
            balloon->inflated++;
            if (count && pages[i] == first + count) {
                count++;
            } else if (count && pages[i] + 1ull == first) {
                first--;
                count++;
            } else {
                if (count)
                    release_pages(balloon, first, count);
                first = pages[i];
                count = 1;
            }
        }
        offset += got * 4;
    }
    if (count)
        release_pages(balloon, first, count);
}

static void take_statistics(struct virtio_balloon *balloon, const struct virtqueue_chain *chain) {
    struct virtio_balloon_stat entries[STATISTICS];
    uint64_t count = chain_read(chain, 0, entries, sizeof entries) / sizeof *entries;
    for (uint64_t i = 0; i < count; i++)
        if (entries[i].tag < BALLOON_STATISTICS)
            balloon->statistics[entries[i].tag] = entries[i].val;
    balloon->statistics_count += count > 0;
}

static int64_t balloon_chain(struct virtio_device *device, uint32_t queue, struct virtqueue_chain *chain) {
    struct virtio_balloon *balloon = (struct virtio_balloon *)device;
    switch (role_of(device, queue)) {
    case INFLATE:
        inflate(balloon, chain);
        break;
    case DEFLATE: /* Pages come back when they are touched. */
        balloon->deflated += chain->out_size / 4;
        break;
    default: /* Free page reporting (5.5.6.7): the writable pieces are free pages; none is written. */
        for (uint32_t i = 0; i < chain->in_count; i++) {
            const struct iovec *piece = &chain->pieces[chain->out_count + i];
            balloon->reported += piece->iov_len;
            release(balloon, (uintptr_t)piece->iov_base, piece->iov_len);
        }
    }
    return 0;
}

/* 5.5.6.3: the buffer stays with us until we want new statistics. A second one, which may not be, releases the first. */
static int serve_statistics(struct virtio_balloon *balloon) {
    struct virtio_device *device = &balloon->device;
    struct virtqueue *queue = &device->queues[2];
    for (int turn = 0; turn < VIRTQUEUE_MAX; turn++) {
        int got = virtqueue_pop(queue, &device->chain);
        if (got < 0)
            return got;
        if (got == 0) {
            got = virtqueue_rearm(queue);
            if (got < 0)
                return got;
            if (got == 0)
                break;
            continue;
        }
        int error = balloon->holding ? virtqueue_push(queue, balloon->held, 0) : 0;
        if (error)
            return error;
        take_statistics(balloon, &device->chain);
        balloon->holding = 1;
        balloon->held = device->chain.head;
    }
    return virtio_signal(device, 2);
}

static int balloon_serve(struct virtio_device *device, uint32_t queue) {
    if (role_of(device, queue) == STATS)
        return serve_statistics((struct virtio_balloon *)device);
    return virtio_serve_chains(device, queue);
}

static void balloon_stopped(struct virtio_device *device) {
    struct virtio_balloon *balloon = (struct virtio_balloon *)device;
    balloon->holding = 0;
    /* What a new driver holds, it will say. */
    memset(device->config + offsetof(struct virtio_balloon_config, actual), 0, 4);
}

static void balloon_state(struct virtio_device *device, struct state *state) {
    struct virtio_balloon *balloon = (struct virtio_balloon *)device;
    STATE(state, balloon->holding);
    STATE(state, balloon->held);
}

static void balloon_close(struct virtio_device *device) {
    free(device);
}

static const struct virtio_ops balloon_ops = {
    .name = "balloon",
    .id = VIRTIO_ID_BALLOON,
    .pci_class = 0x050000, /* RAM controller */
    .serve = balloon_serve,
    .chain = balloon_chain,
    .stopped = balloon_stopped,
    .state = balloon_state,
    .close = balloon_close,
};

struct virtio_balloon *virtio_balloon_new(struct slot_rows *memory, int deflate_on_oom) {
    struct virtio_balloon *balloon = calloc(1, sizeof *balloon);
    if (!balloon)
        return NULL;
    uint64_t features = 1ull << VIRTIO_BALLOON_F_STATS_VQ | 1ull << VIRTIO_BALLOON_F_REPORTING;
    if (deflate_on_oom)
        features |= 1ull << VIRTIO_BALLOON_F_DEFLATE_ON_OOM;
    if (virtio_init(&balloon->device, &balloon_ops, memory, features, sizeof(struct virtio_balloon_config), QUEUES, 128)) {
        free(balloon->device.queues);
        free(balloon);
        return NULL;
    }
    balloon->device.config_writable_from = offsetof(struct virtio_balloon_config, actual);
    balloon->device.config_writable_to = balloon->device.config_writable_from + 4;
    memset(balloon->statistics, 0xff, sizeof balloon->statistics);
    return balloon;
}

int virtio_balloon_allow(struct virtio_balloon *balloon, uintptr_t hva, uint64_t size, int advice) {
    if (balloon->range_count == BALLOON_RANGES)
        return -ENOSPC;
    balloon->ranges[balloon->range_count++] = (struct balloon_range){hva, hva + size, advice};
    return 0;
}

void virtio_balloon_target(struct virtio_balloon *balloon, uint32_t pages) {
    pthread_mutex_lock(&balloon->device.lock);
    memcpy(balloon->device.config + offsetof(struct virtio_balloon_config, num_pages), &pages, 4);
    virtio_config_change(&balloon->device);
    pthread_mutex_unlock(&balloon->device.lock);
}

uint32_t virtio_balloon_actual(struct virtio_balloon *balloon) {
    uint32_t pages;
    pthread_mutex_lock(&balloon->device.lock);
    memcpy(&pages, balloon->device.config + offsetof(struct virtio_balloon_config, actual), 4);
    pthread_mutex_unlock(&balloon->device.lock);
    return pages;
}

int virtio_balloon_poll(struct virtio_balloon *balloon) {
    struct virtio_device *device = &balloon->device;
    pthread_mutex_lock(&device->lock);
    int asked = balloon->holding && virtio_live(device);
    if (asked) {
        balloon->holding = 0;
        slot_lock(device->memory);
        virtqueue_begin(&device->queues[2]);
        int error = virtqueue_push(&device->queues[2], balloon->held, 0);
        if (!error)
            error = virtio_signal(device, 2);
        slot_unlock(device->memory);
        if (error)
            virtio_break(device, (enum virtqueue_error)-error);
    }
    pthread_mutex_unlock(&device->lock);
    return asked;
}

uint64_t virtio_balloon_statistics(struct virtio_balloon *balloon, uint64_t to[BALLOON_STATISTICS]) {
    pthread_mutex_lock(&balloon->device.lock);
    memcpy(to, balloon->statistics, sizeof balloon->statistics);
    uint64_t count = balloon->statistics_count;
    pthread_mutex_unlock(&balloon->device.lock);
    return count;
}
