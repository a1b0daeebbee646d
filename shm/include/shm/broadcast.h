/*
 * broadcast.h: one writer, any number of readers. The writer waits for nobody; a reader that is too slow learns how much it
 * lost. Readers write nothing but the sleep flag, so they may map the region read-only (then SHM_ALWAYS_RING).
 *
 * Cells, headers and pads as in ring.h, but a message has 16 bytes before it: the header, and the message's number. Before the
 * writer touches a cell it moves `claim` past it: what lies more than a ring's length behind `claim` is being overwritten. A
 * reader copies a message first and believes it only if `claim` still is near enough (a sequence lock with a moving edge).
 */
#ifndef SHM_BROADCAST_H
#define SHM_BROADCAST_H

#include "ring.h"

#define BROADCAST_HEADER 16

struct broadcast_shared {
    _Alignas(SHM_LINE) uint64_t claim;      /* writer, before each message: cells before it may be changing */
    uint64_t latest;                        /* writer, after each message: where the newest one begins */
    uint64_t count;                         /* messages written */
    _Alignas(SHM_LINE) uint32_t data_wait;  /* any reader, when it goes to sleep */
    _Alignas(SHM_LINE) uint32_t writer;     /* enum shm_state */
    _Alignas(SHM_LINE) uint8_t reserved[SHM_LINE];
};

struct broadcast {
    struct broadcast_shared *shared;
    char *cells;
    uint64_t mask;
    uint64_t position;
    uint64_t number;        /* writer: of the next message; reader: of the one it expects */
    uint64_t lost;          /* reader: messages overwritten before they were read */
    uint32_t max_message;
    uint32_t flags;
    uint64_t span;          /* writer: cells of the message that is reserved */
    const char *field;
};

static inline uint64_t broadcast_bytes(uint64_t size) {
    return sizeof(struct broadcast_shared) + size;
}

static inline uint64_t broadcast_span(uint64_t size) {
    return (BROADCAST_HEADER + size + SHM_LINE - 1) / SHM_LINE;
}

/* The most a ring of `size` bytes can carry in one message: so that the newest one is whole while the next is written. */
static inline uint64_t broadcast_limit(uint64_t size) {
    return size / SHM_LINE / 3 * SHM_LINE - BROADCAST_HEADER;
}

static inline int broadcast_fail(struct broadcast *ring, int code, const char *field) {
    ring->field = field;
    return code;
}

static inline uint64_t *broadcast_at(const struct broadcast *ring, uint64_t position) {
    return (uint64_t *)(ring->cells + (position & ring->mask) * SHM_LINE);
}

/* Checked: size and max_message. `shared` points at broadcast_bytes(size) bytes. */
static inline int broadcast_open(struct broadcast *ring, struct broadcast_shared *shared, uint64_t size,
                                 uint32_t max_message, uint32_t flags) {
    *ring = (struct broadcast){.shared = shared, .cells = (char *)(shared + 1), .flags = flags};
    if (size < RING_MIN_SIZE || size > RING_MAX_SIZE || (size & (size - 1)))
        return broadcast_fail(ring, SHM_E_CONFIG, "size");
    if (max_message > broadcast_limit(size))
        return broadcast_fail(ring, SHM_E_CONFIG, "max_message");
    ring->mask = size / SHM_LINE - 1;
    ring->max_message = max_message;
    return SHM_OK;
}

static inline void broadcast_blank(struct broadcast *ring, uint64_t position) {
    __atomic_store_n(broadcast_at(ring, position), (uint64_t)(uint32_t)~ring_sequence(position), __ATOMIC_RELAXED);
}

/* Becomes the writer, behind the newest message. Checked: that message's header. */
static inline int broadcast_attach_writer(struct broadcast *ring) {
    ring->number = shm_load64(&ring->shared->count);
    if (ring->number) {
        uint64_t latest = shm_load64(&ring->shared->latest), header = shm_load64(broadcast_at(ring, latest));
        if ((uint32_t)header != ring_sequence(latest) || header >> 32 > ring->max_message)
            return broadcast_fail(ring, SHM_E_CORRUPT, "latest");
        ring->position = latest + broadcast_span(header >> 32);
    }
    shm_store32(&ring->shared->writer, SHM_ATTACHED);
    return SHM_OK;
}

/* Moves the edge to `position` before anything behind the old one changes. */
static inline void broadcast_claim(struct broadcast *ring, uint64_t position) {
    __atomic_store_n(&ring->shared->claim, position, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);
}

/* As ring_reserve, but never full. */
static inline int broadcast_reserve(struct broadcast *ring, uint32_t size, void **payload) {
    if (size > ring->max_message)
        return broadcast_fail(ring, SHM_E_TOO_LONG, "size");
    uint64_t span = broadcast_span(size), room = ring->mask + 1 - (ring->position & ring->mask);
    uint64_t pad = span > room ? room : 0;
    broadcast_claim(ring, ring->position + pad + span + 1); /* and the header behind it */
    if (pad) {
        uint64_t header = (uint64_t)RING_PAD << 32 | ring_sequence(ring->position);
        broadcast_blank(ring, ring->position + pad);
        __atomic_store_n(broadcast_at(ring, ring->position), header, __ATOMIC_RELEASE);
        ring->position += pad;
    }
    ring->span = span;
    *payload = (char *)broadcast_at(ring, ring->position) + BROADCAST_HEADER;
    return SHM_OK;
}

/* As ring_commit; `size` is what was reserved. */
static inline int broadcast_commit(struct broadcast *ring, uint32_t size) {
    uint64_t *at = broadcast_at(ring, ring->position), begin = ring->position;
    broadcast_blank(ring, begin + ring->span);
    at[1] = ring->number++;
    __atomic_store_n(at, (uint64_t)size << 32 | ring_sequence(begin), __ATOMIC_RELEASE);
    ring->position += ring->span;
    shm_store64(&ring->shared->latest, begin);
    shm_store64(&ring->shared->count, ring->number);
    return shm_must_ring(&ring->shared->data_wait, ring->flags);
}

/* Becomes a reader: of everything if nothing has been overwritten yet, else from the newest message on. */
static inline void broadcast_attach_reader(struct broadcast *ring) {
    uint64_t claim = shm_load64(&ring->shared->claim);
    ring->lost = 0;
    ring->position = 0;
    ring->number = 0;
    if (claim <= ring->mask + 1)
        return;
    ring->position = shm_load64(&ring->shared->latest);
    ring->number = ~0ull; /* Whatever number it has: nothing was lost before. */
}

/* True when the cells from `position` on may have been overwritten. Reads claim once. */
static inline int broadcast_lapped(const struct broadcast *ring) {
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    uint64_t claim = __atomic_load_n(&ring->shared->claim, __ATOMIC_RELAXED);
    return claim - ring->position > ring->mask + 1 && claim > ring->position;
}

/*
 * Jumps to the newest message. Checked: claim is at most two rings ahead of it, as an honest writer's is (claim read first:
 * the distance can but shrink); `latest` is only ever used modulo the ring.
 */
static inline int broadcast_jump(struct broadcast *ring) {
    uint64_t claim = shm_load64(&ring->shared->claim), latest = shm_load64(&ring->shared->latest);
    if (claim > latest && claim - latest > 2 * (ring->mask + 1))
        return broadcast_fail(ring, SHM_E_CORRUPT, "claim");
    ring->position = latest;
    return SHM_OK;
}

static inline int broadcast_has_data(const struct broadcast *ring) {
    return (uint32_t)shm_load64(broadcast_at(ring, ring->position)) == ring_sequence(ring->position) ||
           broadcast_lapped(ring);
}

/*
 * Receives a copy of the next message into `room` bytes: its size, SHM_EMPTY, SHM_E_TOO_LONG (it is skipped), SHM_E_CORRUPT.
 * Checked: header read once, length against max_message and the ring's end; as broadcast_jump. A writer that laps for ever is
 * left after a few tries with SHM_EMPTY: look at the clock, then try again.
 */
static inline int64_t broadcast_receive(struct broadcast *ring, void *data, uint64_t room) {
    for (int tries = 0; tries < 16; tries++) {
        const uint64_t *at = broadcast_at(ring, ring->position);
        uint64_t header = shm_load64(at), left = ring->mask + 1 - (ring->position & ring->mask);
        uint64_t length = header >> 32, number = __atomic_load_n(&at[1], __ATOMIC_RELAXED);
        int arrived = (uint32_t)header == ring_sequence(ring->position);
        if (!arrived && !broadcast_lapped(ring))
            return SHM_EMPTY;
        int pad = length == RING_PAD && left <= ring->mask, fits = length <= ring->max_message;
        fits = fits && broadcast_span(length) <= left;
        if (arrived && !pad && fits && length <= room)
            ring_copy(data, (const char *)at + BROADCAST_HEADER, length);
        if (!arrived || broadcast_lapped(ring)) {
            if (broadcast_jump(ring))
                return SHM_E_CORRUPT;
            continue;
        }
        if (pad) {
            ring->position += left;
            continue;
        }
        if (!fits)
            return broadcast_fail(ring, SHM_E_CORRUPT, "length");
        if (ring->number != ~0ull && number - ring->number < ~0ull / 2)
            ring->lost += number - ring->number;
        ring->number = number + 1;
        ring->position += broadcast_span(length);
        return length <= room ? (int64_t)length : broadcast_fail(ring, SHM_E_TOO_LONG, "size");
    }
    return SHM_EMPTY;
}

_Static_assert(sizeof(struct broadcast_shared) == 4 * SHM_LINE, "the layout is fixed");

#endif
