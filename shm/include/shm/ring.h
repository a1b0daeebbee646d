/*
 * ring.h: a queue of messages of any size between one producer and one consumer, in shared memory.
 *
 * The ring is `size` bytes of 64-byte cells (a power of two of them) behind struct ring_shared. A message is an 8-byte header
 * and its bytes, contiguous, in as many cells as that takes:
 *
 *     header = sequence (low 32 bits) | length (high 32 bits), stored once, last, as one 8-byte release store
 *
 * The sequence is derived from the cell's absolute position, so that the consumer polls just the cell where the next message
 * will begin: a short message, its length and its arrival are one cache line, and no index is shared. As a message's bytes
 * may happen to look like a header, the producer blanks the header that follows before it publishes one.
 * A message that doesn't fit before the end of the ring is preceded by a pad (length RING_PAD) that fills it.
 *
 * Both sides hold their own position; the consumer tells how far it has read (`head`), and the producer looks there only when
 * its own idea of it says the ring is full. `tail` is where a producer that takes the place of a dead one begins to look.
 */
#ifndef SHM_RING_H
#define SHM_RING_H

#include "region.h"

#define RING_PAD 0xffffffff
#define RING_HEADER 8
#define RING_MIN_SIZE 512
#define RING_MAX_SIZE (1ull << 36)

/*
 * Lines that are asked for early. Messages of up to RING_NEAR cells lie so close that the processor foresees them by itself; of
 * longer ones, which often are all of one size, the header so many messages ahead is where it probably will be.
 */
#define RING_NEAR 8
#define RING_AHEAD 2

/* One line each, by who writes it and how often. */
struct ring_shared {
    _Alignas(SHM_LINE) uint64_t head;       /* consumer, at each release: cells before it are free */
    _Alignas(SHM_LINE) uint64_t tail;       /* producer, at each message: cells before it are published */
    _Alignas(SHM_LINE) uint32_t data_wait;  /* consumer, when it goes to sleep; taken by the producer */
    _Alignas(SHM_LINE) uint32_t space_wait; /* producer, when it goes to sleep; taken by the consumer */
    _Alignas(SHM_LINE) uint32_t producer;   /* enum shm_state */
    _Alignas(SHM_LINE) uint32_t consumer;   /* enum shm_state */
    _Alignas(SHM_LINE) uint8_t reserved[2 * SHM_LINE];
};

/* A side's own memory. `position` counts cells since the ring was made. */
struct ring {
    struct ring_shared *shared;
    char *cells;
    uint64_t mask;          /* cells - 1 */
    uint64_t position;
    uint64_t head;          /* producer: the consumer's position when it last looked */
    uint64_t span;          /* cells of the message that is reserved or peeked */
    uint32_t run;           /* consumer: messages since it last found nothing */
    uint32_t trial;         /* consumer: how often it finds nothing before it tries to hang back again */
    uint32_t hangs_back;    /* consumer: it does */
    uint32_t wide;          /* consumer: the message peeked last had a second line */
    uint32_t *data_wait;    /* the consumer's sleep flag: the ring's own, or its mpsc's */
    uint32_t *space_wait;
    uint32_t max_message;
    uint32_t flags;
    const char *field;      /* what was wrong, after SHM_E_CORRUPT or SHM_E_CONFIG */
};

static inline uint64_t ring_span(uint64_t size) {
    return (RING_HEADER + size + SHM_LINE - 1) / SHM_LINE;
}

static inline uint32_t ring_sequence(uint64_t position) {
    return (uint32_t)position + 1;
}

static inline uint64_t *ring_header(const struct ring *ring, uint64_t position) {
    return (uint64_t *)(ring->cells + (position & ring->mask) * SHM_LINE);
}

/* The most a ring of `size` bytes can carry in one message: always possible, wherever the ring's end falls. */
static inline uint64_t ring_limit(uint64_t size) {
    return (size / SHM_LINE / 2 - 1) * SHM_LINE - RING_HEADER;
}

/* Bytes that a ring of `size` bytes takes in all. */
static inline uint64_t ring_bytes(uint64_t size) {
    return sizeof(struct ring_shared) + size;
}

static inline int ring_fail(struct ring *ring, int code, const char *field) {
    ring->field = field;
    return code;
}

/* Checked: size (a power of two in range) and max_message. `shared` points at ring_bytes(size) bytes. */
static inline int ring_open(struct ring *ring, struct ring_shared *shared, uint64_t size, uint32_t max_message,
                            uint32_t flags) {
    *ring = (struct ring){.shared = shared, .cells = (char *)(shared + 1), .flags = flags};
    if (size < RING_MIN_SIZE || size > RING_MAX_SIZE || (size & (size - 1)))
        return ring_fail(ring, SHM_E_CONFIG, "size");
    if (max_message > ring_limit(size))
        return ring_fail(ring, SHM_E_CONFIG, "max_message");
    ring->mask = size / SHM_LINE - 1;
    ring->max_message = max_message;
    ring->data_wait = &shared->data_wait;
    ring->space_wait = &shared->space_wait;
    return SHM_OK;
}

/* ---- producer ---------------------------------------------------------------------------------------------------------- */

/* What can't be a header at `position`, whatever stood there before. */
static inline void ring_blank(struct ring *ring, uint64_t position) {
    __atomic_store_n(ring_header(ring, position), (uint64_t)(uint32_t)~ring_sequence(position), __ATOMIC_RELAXED);
}

static inline void ring_publish(struct ring *ring, uint64_t position, uint32_t length) {
    __atomic_store_n(ring_header(ring, position), (uint64_t)length << 32 | ring_sequence(position), __ATOMIC_RELEASE);
}

/* Reads head once; checked: it lies within a ring's length behind the producer. */
static inline int ring_look(struct ring *ring) {
    uint64_t head = shm_load64(&ring->shared->head);
    if (ring->position - head > ring->mask + 1)
        return ring_fail(ring, SHM_E_CORRUPT, "head");
    ring->head = head;
    return SHM_OK;
}

/*
 * Becomes the producer. Checked: tail and head; published cells behind tail are skipped (a producer that died between the
 * two), each header's length bounded by the ring.
 */
static inline int ring_attach_producer(struct ring *ring) {
    ring->position = shm_load64(&ring->shared->tail);
    if (ring_look(ring))
        return ring_fail(ring, SHM_E_CORRUPT, ring->position ? "tail" : "head");
    for (uint64_t left = ring->mask + 1 - (ring->position - ring->head); left;) {
        uint64_t header = shm_load64(ring_header(ring, ring->position));
        if ((uint32_t)header != ring_sequence(ring->position))
            break;
        uint64_t room = ring->mask + 1 - (ring->position & ring->mask), length = header >> 32;
        uint64_t span = length == RING_PAD ? room : ring_span(length);
        if (span > room || span > left)
            return ring_fail(ring, SHM_E_CORRUPT, "length");
        ring->position += span;
        left -= span;
    }
    shm_store64(&ring->shared->tail, ring->position);
    shm_store32(&ring->shared->producer, SHM_ATTACHED);
    return SHM_OK;
}

/*
 * Makes room for a message of `size` bytes and sets *payload to it: SHM_OK, SHM_FULL, SHM_E_TOO_LONG, SHM_E_CORRUPT. The
 * bytes are written next, then ring_commit. Reserving again without a commit forgets the first.
 */
static inline int ring_reserve(struct ring *ring, uint32_t size, void **payload) {
    if (size > ring->max_message)
        return ring_fail(ring, SHM_E_TOO_LONG, "size");
    uint64_t span = ring_span(size), cells = ring->mask + 1;
    uint64_t room = cells - (ring->position & ring->mask), pad = span > room ? room : 0;
    /* One cell more than the message: the header behind it, to be blanked. */
    if (ring->position + pad + span + 1 - ring->head > cells) {
        int failed = ring_look(ring);
        if (failed)
            return failed;
        if (ring->position + pad + span + 1 - ring->head > cells)
            return SHM_FULL;
    }
    if (pad) {
        ring_blank(ring, ring->position + pad);
        ring_publish(ring, ring->position, RING_PAD);
        ring->position += pad;
        shm_store64(&ring->shared->tail, ring->position);
    }
    ring->span = span;
    *payload = (char *)ring_header(ring, ring->position) + RING_HEADER;
    return SHM_OK;
}

/* Publishes the message reserved last, of `size` bytes: at most what was reserved. Returns 1 when the caller must ring. */
static inline int ring_commit(struct ring *ring, uint32_t size) {
    uint64_t span = ring_span(size);
    ring_blank(ring, ring->position + span);
    ring_publish(ring, ring->position, size);
    ring->position += span;
    __atomic_store_n(&ring->shared->tail, ring->position, __ATOMIC_RELAXED);
    shm_prefetch_write(ring_header(ring, ring->position + (span > RING_NEAR ? RING_AHEAD * span : 1)));
    return shm_must_ring(ring->data_wait, ring->flags);
}

/* Between two looks of a producer that spins: each takes `head`'s line from a consumer that has much to do, so they are few. */
#define RING_ROOM_PAUSES 8
static inline void ring_spin_for_room(void) {
    for (int i = 0; i < RING_ROOM_PAUSES; i++)
        shm_pause();
}

/* True once the consumer's position leaves room for a message of `size` bytes; for the look between two sleeps. */
static inline int ring_has_room(struct ring *ring, uint32_t size) {
    uint64_t span = ring_span(size), cells = ring->mask + 1;
    uint64_t room = cells - (ring->position & ring->mask), pad = span > room ? room : 0;
    return ring_look(ring) || ring->position + pad + span + 1 - ring->head <= cells;
}

/* ---- consumer ---------------------------------------------------------------------------------------------------------- */

/* Becomes the consumer, where the last one stopped. A wrong head shows as a ring that stays empty. */
static inline void ring_attach_consumer(struct ring *ring) {
    ring->position = shm_load64(&ring->shared->head);
    shm_store32(&ring->shared->consumer, SHM_ATTACHED);
}

static inline int ring_has_data(const struct ring *ring) {
    return (uint32_t)shm_load64(ring_header(ring, ring->position)) == ring_sequence(ring->position);
}

/*
 * Between two looks of a consumer that spins.
 *
 * Who keeps pace with a stream pays for each message with a line that goes to and fro: the consumer polls what the producer is
 * about to write. Who hangs back a little finds many messages together, and neither waits for the other. But for an answer
 * hanging back would be time lost. So it is tried once in a while: if many messages were there afterwards it goes on, else the
 * next trial is so far away that what it cost doesn't show.
 */
#define RING_TRIAL 4096
#define RING_HANG_BACK 12 /* pauses */
#define RING_STREAM 8     /* messages that were there afterwards, at least */

static inline void ring_spin(struct ring *ring) {
    if (ring->run) {
        if (ring->hangs_back)
            ring->hangs_back = ring->run >= RING_STREAM;
        else if (!ring->trial--) {
            ring->trial = RING_TRIAL;
            ring->hangs_back = 1;
        }
        ring->run = 0;
        for (int i = 0; ring->hangs_back && i < RING_HANG_BACK; i++)
            shm_pause();
    }
    /* The producer writes a message's second line first, so have it come early; where there is none it is in his way. */
    if (ring->wide)
        __builtin_prefetch(ring_header(ring, ring->position + 1));
    shm_pause();
}

/*
 * Sets *payload and *size to the next message, which stays in the ring until ring_release: SHM_OK, SHM_EMPTY, SHM_E_CORRUPT.
 * Checked: the header, read once; its length against max_message and the ring's end. The bytes are still the producer's to
 * change: copy what must not.
 */
static inline int ring_peek(struct ring *ring, const void **payload, uint32_t *size) {
    for (;;) {
        uint64_t header = shm_load64(ring_header(ring, ring->position));
        if ((uint32_t)header != ring_sequence(ring->position))
            return SHM_EMPTY;
        uint64_t at = ring->position & ring->mask, room = ring->mask + 1 - at, length = header >> 32;
        if (length == RING_PAD && at) {
            ring->position += room;
            continue; /* At most once: the next cell is the first of the ring. */
        }
        uint64_t span = ring_span(length);
        if (length > ring->max_message || span > room)
            return ring_fail(ring, SHM_E_CORRUPT, "length");
        ring->span = span;
        ring->wide = span > 1;
        if (span > RING_NEAR)
            __builtin_prefetch(ring_header(ring, ring->position + RING_AHEAD * span));
        *payload = ring->cells + at * SHM_LINE + RING_HEADER;
        *size = (uint32_t)length;
        return SHM_OK;
    }
}

/* Goes on behind the message peeked last, whose cells are still to be given back: by ring_give_back, before any wait. */
static inline void ring_pass(struct ring *ring) {
    ring->position += ring->span;
    ring->span = 0;
    ring->run++;
}

/* Gives back all cells that were passed. Returns 1 when the caller must ring for the producer. */
static inline int ring_give_back(struct ring *ring) {
    shm_store64(&ring->shared->head, ring->position);
    return shm_must_ring(ring->space_wait, ring->flags);
}

/* Gives the cells of the message peeked last back. Returns 1 when the caller must ring for the producer. */
static inline int ring_release(struct ring *ring) {
    ring_pass(ring);
    return ring_give_back(ring);
}

/* Closes an end: the other side learns it when it has nothing left to do. The caller rings for it. */
static inline void ring_close_producer(struct ring *ring) {
    shm_store32(&ring->shared->producer, SHM_CLOSED);
}

static inline void ring_close_consumer(struct ring *ring) {
    shm_store32(&ring->shared->consumer, SHM_CLOSED);
}

/* Copies for messages: the string instruction beats a loop above a few lines. */
static inline void ring_copy(void *to, const void *from, uint64_t size) {
#if defined(__x86_64__)
    if (size >= 1024) {
        __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
        return;
    }
#endif
    char *d = to;
    const char *s = from;
    for (; size >= 32; size -= 32, d += 32, s += 32)
        __builtin_memcpy(d, s, 32);
    if (size & 16)
        __builtin_memcpy(d, s, 16), d += 16, s += 16;
    if (size & 8)
        __builtin_memcpy(d, s, 8), d += 8, s += 8;
    if (size & 4)
        __builtin_memcpy(d, s, 4), d += 4, s += 4;
    if (size & 2)
        __builtin_memcpy(d, s, 2), d += 2, s += 2;
    if (size & 1)
        *d = *s;
}

/*
 * Copies a message into the place reserved for it. The consumer polls the first line, and each time it does takes it away
 * from the producer: so the other lines come first, and the first is written in one go with the header.
 */
static inline void ring_fill(struct ring *ring, void *payload, const void *data, uint32_t size) {
    const uint32_t first = SHM_LINE - RING_HEADER;
    ring_blank(ring, ring->position + ring_span(size));
    if (size > first) {
        ring_copy((char *)payload + first, (const char *)data + first, size - first);
        size = first;
    }
    __atomic_signal_fence(__ATOMIC_SEQ_CST); /* The compiler keeps the order. */
    ring_copy(payload, data, size);
}

/* Sends a copy of `size` bytes; *ring_bell is set to 1 when the caller must ring. As ring_reserve. */
static inline int ring_send(struct ring *ring, const void *data, uint32_t size, int *ring_bell) {
    void *payload;
    int failed = ring_reserve(ring, size, &payload);
    if (failed)
        return failed;
    ring_fill(ring, payload, data, size);
    *ring_bell = ring_commit(ring, size);
    return SHM_OK;
}

/*
 * Receives a copy of the next message into `room` bytes at `data`: its size, or as ring_peek; SHM_E_TOO_LONG leaves it in the
 * ring. *ring_bell is set to 1 when the caller must ring.
 */
static inline int64_t ring_receive(struct ring *ring, void *data, uint64_t room, int *ring_bell) {
    const void *payload;
    uint32_t size;
    int failed = ring_peek(ring, &payload, &size);
    if (failed)
        return failed;
    if (size > room)
        return ring_fail(ring, SHM_E_TOO_LONG, "size");
    ring_copy(data, payload, size);
    *ring_bell = ring_release(ring);
    return size;
}

_Static_assert(sizeof(struct ring_shared) == 8 * SHM_LINE, "the layout is fixed");

#endif
