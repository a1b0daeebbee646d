/* capture.c: see capture.h. */
#define _GNU_SOURCE
#include "capture.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct capture {
    struct ring ring;
    struct capture_filter filter;
    struct capture_counters counters;
    void *region;
    uint32_t snap;
    uint32_t gone;                      /* set when the memory is (fault_guard) */
};

struct captures {
    struct net_switch *sw;
    uint32_t count;
    struct capture *captures[CAPTURES];
};

/* ---- the forwarding thread's part ---------------------------------------------------------------------------------------- */

static int has_port(const struct capture_filter *filter, uint32_t from, uint32_t to) {
    for (uint32_t i = 0; i < filter->port_count; i++)
        if (filter->ports[i] == from || filter->ports[i] == to)
            return 1;
    return filter->port_count && to == CAPTURE_MANY;
}

static int has_mac(const struct capture_filter *filter, const uint8_t *ethernet) {
    for (uint32_t i = 0; i < filter->mac_count; i++)
        if (!memcmp(filter->macs[i], ethernet, 6) || !memcmp(filter->macs[i], ethernet + 6, 6))
            return 1;
    return 0;
}

static int wanted(const struct capture *capture, const struct frame *frame, uint32_t from, uint32_t to) {
    const struct capture_filter *filter = &capture->filter;
    return !capture->counters.broken && (!filter->by_port || has_port(filter, from, to)) &&
           (!filter->by_mac || has_mac(filter, frame->ethernet));
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void spoiled(struct capture *capture, const char *field) {
    capture->counters.broken = 1;
    capture->counters.field = field;
}

/* Checked: the reader's position, by ring_reserve; the frame's size and pieces were, by its port. */
static void copy(struct capture *capture, const struct frame *frame, uint32_t from, uint32_t to) {
    uint32_t kept = frame->size < capture->snap ? frame->size : capture->snap;
    struct capture_record *record;
    void *place;
    switch (ring_reserve(&capture->ring, (uint32_t)sizeof *record + kept, &place)) {
    case SHM_OK:
        break;
    case SHM_FULL:
        capture->counters.lost++;
        return;
    default:
        spoiled(capture, capture->ring.field);
        return;
    }
    record = place;
    *record = (struct capture_record){.time_ns = now_ns(), .lost = capture->counters.lost, .from = from, .to = to,
                                      .size = frame->size, .offload = frame->offload};
    uint8_t *bytes = (uint8_t *)(record + 1);
    memcpy(bytes, frame->ethernet, FRAME_HEADER);
    if (kept > FRAME_HEADER)
        frame_copy(frame, FRAME_HEADER, bytes + FRAME_HEADER, kept - FRAME_HEADER);
    ring_commit(&capture->ring, (uint32_t)sizeof *record + kept);
    if (__atomic_load_n(&capture->gone, __ATOMIC_RELAXED)) {
        spoiled(capture, "memory");
        return;
    }
    capture->counters.frames++;
    capture->counters.bytes += kept;
}

/* What a filter judges by is the same for all of the frames. */
static void see(void *context, const struct frame *frames, int count, const struct port *from, const struct port *to) {
    const struct captures *captures = context;
    uint32_t to_id = to ? to->id : CAPTURE_MANY;
    for (uint32_t i = 0; i < captures->count; i++) {
        struct capture *capture = captures->captures[i];
        if (!wanted(capture, frames, from->id, to_id))
            continue;
        for (int at = 0; at < count && !capture->counters.broken; at++)
            copy(capture, &frames[at], from->id, to_id);
    }
}

/* ---- who sets it up ------------------------------------------------------------------------------------------------------ */

struct captures *captures_new(struct net_switch *sw) {
    struct captures *captures = calloc(1, sizeof *captures);
    if (captures)
        captures->sw = sw;
    return captures;
}

void captures_free(struct captures *captures) {
    while (captures->count)
        capture_remove(captures, captures->captures[0]);
    free(captures);
}

/* Checked: kind and bells of no interest; offset and size within the region; the ring's numbers, by ring_open and _attach. */
static const char *open_ring(struct capture *capture, char *region, uint64_t size, const struct shm_config *config) {
    if (config->kind != SHM_SPSC)
        return "kind";
    if (config->offset % SHM_LINE || config->offset > size)
        return "offset";
    if (config->size > size || ring_bytes(config->size) > size - config->offset)
        return "size";
    struct ring_shared *shared = (struct ring_shared *)(region + config->offset);
    if (ring_open(&capture->ring, shared, config->size, config->max_message, config->flags) ||
        ring_attach_producer(&capture->ring))
        return capture->ring.field;
    return NULL;
}

struct capture *capture_add(struct captures *captures, void *region, uint64_t size, const struct shm_config *ring,
                            const struct capture_filter *filter, uint32_t snap, const char **field) {
    *field = NULL;
    struct capture *capture = calloc(1, sizeof *capture);
    if (!capture)
        return NULL;
    capture->filter = *filter;
    capture->region = region;
    capture->snap = snap < FRAME_HEADER ? FRAME_HEADER : snap;
    int failed = fault_guard(region, size, &capture->gone);
    if (failed) {
        free(capture);
        errno = -failed;
        return NULL;
    }
    *field = open_ring(capture, region, size, ring);
    if (!*field && capture->gone)
        *field = "memory";
    if (!*field && ring->max_message < sizeof(struct capture_record) + FRAME_HEADER)
        *field = "max_message";
    uint32_t room = *field ? 0 : ring->max_message - (uint32_t)sizeof(struct capture_record);
    capture->snap = capture->snap < room ? capture->snap : room;
    switch_lock(captures->sw);
    int full = captures->count == CAPTURES;
    if (!*field && !full) {
        captures->captures[captures->count++] = capture;
        if (captures->count == 1)
            switch_set_tap(captures->sw, see, captures);
    }
    switch_unlock(captures->sw);
    if (!*field && !full)
        return capture;
    fault_unguard(region);
    free(capture);
    errno = *field ? EINVAL : ENOSPC;
    return NULL;
}

void capture_remove(struct captures *captures, struct capture *capture) {
    switch_lock(captures->sw);
    for (uint32_t i = 0; i < captures->count; i++)
        if (captures->captures[i] == capture) {
            captures->captures[i] = captures->captures[--captures->count];
            break;
        }
    if (!captures->count)
        switch_set_tap(captures->sw, NULL, NULL);
    switch_unlock(captures->sw);
    ring_close_producer(&capture->ring);
    fault_unguard(capture->region);
    free(capture);
}

void capture_set_ports(struct captures *captures, struct capture *capture, const uint32_t *ports, uint32_t count) {
    switch_lock(captures->sw);
    capture->filter.port_count = count < CAPTURE_TERMS ? count : CAPTURE_TERMS;
    memcpy(capture->filter.ports, ports, capture->filter.port_count * sizeof *ports);
    switch_unlock(captures->sw);
}

void capture_look(struct captures *captures, const struct capture *capture, struct capture_counters *counters) {
    switch_lock(captures->sw);
    *counters = capture->counters;
    switch_unlock(captures->sw);
}
