/*
 * mpsc.h: many producers, one consumer: a lane for each producer, and each lane is a ring (ring.h).
 *
 * Nothing is contended: a producer that is preempted or dies in the middle of a message holds up nobody, and one that writes
 * nonsense spoils only its own lane. Messages of one producer arrive in order; those of different producers in no
 * particular one. The lanes share the consumer's and the producers' sleep flags, and so one bell for each direction.
 */
#ifndef SHM_MPSC_H
#define SHM_MPSC_H

#include "ring.h"

#define MPSC_MAX_LANES 4096

struct mpsc_shared {
    _Alignas(SHM_LINE) uint32_t data_wait;  /* consumer, when it goes to sleep */
    _Alignas(SHM_LINE) uint32_t space_wait; /* any producer, when it goes to sleep */
    _Alignas(SHM_LINE) uint32_t consumer;   /* enum shm_state */
    _Alignas(SHM_LINE) uint8_t reserved[SHM_LINE];
};

/* The consumer's own memory. */
struct mpsc {
    struct mpsc_shared *shared;
    struct ring *lanes;     /* the caller's, `count` of them */
    uint32_t count;
    uint32_t next;          /* lane to look at first */
    uint32_t current;       /* lane of the message peeked last */
    uint32_t flags;
    const char *field;
};

static inline uint64_t mpsc_bytes(uint64_t size, uint32_t lanes) {
    return sizeof(struct mpsc_shared) + lanes * ring_bytes(size);
}

static inline struct ring_shared *mpsc_lane(void *shared, uint64_t size, uint32_t lane) {
    return (struct ring_shared *)((char *)shared + sizeof(struct mpsc_shared) + lane * ring_bytes(size));
}

/* One lane as a ring, for either side. Checked: as ring_open, and that the lane is below `count`. */
static inline int mpsc_open_lane(struct ring *ring, void *shared, uint64_t size, uint32_t max_message, uint32_t lane,
                                 uint32_t count, uint32_t flags) {
    struct mpsc_shared *common = shared;
    if (lane >= count || count > MPSC_MAX_LANES)
        return ring_fail(ring, SHM_E_CONFIG, "lane");
    int failed = ring_open(ring, mpsc_lane(shared, size, lane), size, max_message, flags);
    ring->data_wait = &common->data_wait;
    ring->space_wait = &common->space_wait;
    return failed;
}

/* Becomes the consumer of `count` lanes; `lanes` points at so many struct ring. Checked: as ring_open. */
static inline int mpsc_attach_consumer(struct mpsc *mpsc, void *shared, uint64_t size, uint32_t max_message,
                                       uint32_t count, uint32_t flags, struct ring *lanes) {
    *mpsc = (struct mpsc){.shared = shared, .lanes = lanes, .count = count, .flags = flags};
    for (uint32_t i = 0; i < count; i++) {
        int failed = mpsc_open_lane(&lanes[i], shared, size, max_message, i, count, flags);
        if (failed) {
            mpsc->field = lanes[i].field;
            return failed;
        }
        ring_attach_consumer(&lanes[i]);
    }
    shm_store32(&mpsc->shared->consumer, SHM_ATTACHED);
    return SHM_OK;
}

static inline int mpsc_has_data(const struct mpsc *mpsc) {
    for (uint32_t i = 0; i < mpsc->count; i++)
        if (!mpsc->lanes[i].field && ring_has_data(&mpsc->lanes[i]))
            return 1;
    return 0;
}

/*
 * As ring_peek, over all lanes in turn; `current` says whose message it is, and whose fault a SHM_E_CORRUPT. That is told
 * once: from then on the lane is passed over, the others go on.
 */
static inline int mpsc_peek(struct mpsc *mpsc, const void **payload, uint32_t *size) {
    for (uint32_t i = 0; i < mpsc->count; i++) {
        uint32_t lane = mpsc->next + i < mpsc->count ? mpsc->next + i : mpsc->next + i - mpsc->count;
        if (mpsc->lanes[lane].field)
            continue; /* Spoiled, and its consumer knows. */
        int result = ring_peek(&mpsc->lanes[lane], payload, size);
        if (result == SHM_EMPTY)
            continue;
        mpsc->current = lane;
        mpsc->field = mpsc->lanes[lane].field;
        mpsc->next = lane + 1 < mpsc->count ? lane + 1 : 0; /* Everybody's turn, also after one that is corrupt. */
        return result;
    }
    return SHM_EMPTY;
}

/* As ring_release, for the message peeked last. */
static inline int mpsc_release(struct mpsc *mpsc) {
    return ring_release(&mpsc->lanes[mpsc->current]);
}

/* 0 while a producer lives or may still come; SHM_E_GONE if all have ended and one died or spoiled its lane, else SHM_E_CLOSED. */
static inline int mpsc_ended(const struct mpsc *mpsc) {
    int ended = SHM_E_CLOSED;
    for (uint32_t i = 0; i < mpsc->count; i++) {
        const struct ring *lane = &mpsc->lanes[i];
        int state = lane->field ? SHM_E_GONE : shm_peer_ended(&lane->shared->producer);
        if (!state)
            return 0;
        if (state == SHM_E_GONE)
            ended = SHM_E_GONE;
    }
    return ended;
}

_Static_assert(sizeof(struct mpsc_shared) == 4 * SHM_LINE, "the layout is fixed");

#endif
