/* ring_port.c: see ring_port.h. */
#define _GNU_SOURCE
#include "ring_port.h"

#include <errno.h>
#include <fcntl.h>
#include <shm/ring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "switch.h"

/* Bytes of a message in the line that its receiver polls, and of the frame among them. */
enum { LINE_ROOM = SHM_LINE - RING_HEADER, FRAME_ROOM = LINE_ROOM - OFFLOAD_SIZE };

/*
 * Lines that are to be written are in the cache of the peer, who has read them: so many ahead they are asked for; of a long
 * message only the first, whose rest the processor foresees. Lines that are to be read aren't asked for: they follow one
 * another, which the processor foresees, too, and those not yet written would be taken away from who writes them.
 */
enum { WRITE_AHEAD = 16, WRITE_LINES = 4 };

struct ring_port {
    struct port port;
    struct ring out;            /* from the peer */
    struct ring in;             /* to the peer */
    uint64_t seen;              /* position behind the frames that are held out */
    void *guarded[2];           /* a port's rings are its own, their region need not be */
    int space_bell, data_bell;  /* the peer's: room in `out`, frames in `in` */
    uint8_t sent;               /* since the last flush */
    uint32_t lost;              /* memory of a ring was taken away */
};

static struct ring_port *of(struct port *port) {
    return (struct ring_port *)port;
}

static void ring_bell(struct port *port, int bell) {
    uint64_t one = 1;
    port->counters.wakes++;
    if (write(bell, &one, sizeof one) < 0)
        return; /* Somebody else has filled it: it rings. */
}

static int spoiled(struct ring_port *rp, const struct ring *ring) {
    rp->port.field = ring->field;
    return -PORT_E_RING;
}

static int check_memory(struct ring_port *rp) {
    return __atomic_load_n(&rp->lost, __ATOMIC_ACQUIRE) ? -PORT_E_FAULT : 0;
}

/* --- from the peer --- */

/* Makes a frame of a message, whose size is within the ring's limit: 1, or 0 for what is counted and passed over. */
static inline int accept_frame(struct port *port, struct frame *frame, char *message, uint32_t size) {
    if (__builtin_expect(size < OFFLOAD_SIZE + FRAME_HEADER, 0)) {
        port_drop(port, DROP_RUNT);
        return 0;
    }
    char *ethernet = message + OFFLOAD_SIZE;
    /* The offload's first bytes, read once: flags and kind of segmentation are among them. */
    typedef uint64_t __attribute__((may_alias)) word;
    uint64_t undone = __atomic_load_n((const word *)message, __ATOMIC_RELAXED);
    size -= OFFLOAD_SIZE;
    frame->size = size;
    frame->piece_count = 1;
    frame->pieces[0] = (struct iovec){ethernet, size};
    memcpy(frame->ethernet, ethernet, FRAME_HEADER);
    if (__builtin_expect(undone & FRAME_UNDONE, 0)) {
        memcpy(&frame->offload, &undone, sizeof undone);
        memcpy((char *)&frame->offload + sizeof undone, message + sizeof undone, OFFLOAD_SIZE - sizeof undone);
    }
    enum drop reason = port_check(port, frame, undone & FRAME_UNDONE);
    if (__builtin_expect(reason, 0))
        port_drop(port, reason);
    return !reason;
}

/*
 * Messages that follow one another are found by their cell alone; where that doesn't do (the ring's end, what can't be),
 * ring_peek says what is there. Checked there or here: each header, read once; its length against max_message and the
 * ring's end.
 */
static int ring_port_peek(struct port *port, struct frame *frames, int room) {
    struct ring_port *rp = of(port);
    struct ring cursor = rp->out;
    struct frame *next = frames;
    for (int looked = 0; looked < room; looked++) {
        uint64_t at = cursor.position & cursor.mask, left = cursor.mask + 1 - at;
        char *cell = cursor.cells + at * SHM_LINE;
        for (; looked < room; looked++) {
            uint64_t header = shm_load64((const uint64_t *)cell), length = header >> 32, span = ring_span(length);
            int next_one = (uint32_t)header == ring_sequence(cursor.position);
            if (__builtin_expect(!next_one || length > cursor.max_message || span >= left, 0))
                break;
            next += accept_frame(port, next, cell + RING_HEADER, (uint32_t)length);
            cursor.position += span;
            cell += span * SHM_LINE;
            left -= span;
        }
        if (looked == room)
            break;
        const void *message;
        uint32_t size;
        int result = ring_peek(&cursor, &message, &size);
        if (result == SHM_EMPTY)
            break;
        if (result)
            return spoiled(rp, &cursor);
        next += accept_frame(port, next, (char *)message, size);
        cursor.position += cursor.span;
    }
    rp->seen = cursor.position;
    return (int)(next - frames);
}

static int ring_port_release(struct port *port) {
    struct ring_port *rp = of(port);
    if (rp->seen == rp->out.position)
        return 0;
    rp->out.span = rp->seen - rp->out.position;
    if (ring_release(&rp->out))
        ring_bell(port, rp->space_bell);
    return check_memory(rp);
}

/* --- to the peer --- */

/* Short copies in few steps, the last of which may overlap the one before. */
static inline void copy(char *to, const char *from, uint32_t size) {
    if (size > 256) {
        ring_copy(to, from, size);
    } else if (size >= 16) {
        for (uint32_t at = 0; at + 16 < size; at += 16)
            __builtin_memcpy(to + at, from + at, 16);
        __builtin_memcpy(to + size - 16, from + size - 16, 16);
    } else if (size >= 8) {
        uint64_t first, last;
        __builtin_memcpy(&first, from, 8), __builtin_memcpy(&last, from + size - 8, 8);
        __builtin_memcpy(to, &first, 8), __builtin_memcpy(to + size - 8, &last, 8);
    } else {
        for (uint32_t at = 0; at < size; at++)
            to[at] = from[at];
    }
}

/* As ring_fill: the line that the peer polls comes last, in one go. Source and size have been bounded. */
static inline void fill(char *message, const struct frame *frame) {
    const uint32_t size = frame->size - FRAME_HEADER, first = FRAME_ROOM - FRAME_HEADER;
    char *to = message + OFFLOAD_SIZE + FRAME_HEADER;
    if (__builtin_expect(frame->piece_count == 1, 1)) {
        const char *from = (const char *)frame->pieces[0].iov_base + FRAME_HEADER;
        if (size > first) {
            copy(to + first, from + first, size - first);
            __atomic_signal_fence(__ATOMIC_SEQ_CST); /* The compiler keeps the order. */
            __builtin_memcpy(to, from, FRAME_ROOM - FRAME_HEADER);
        } else {
            copy(to, from, size);
        }
    } else {
        frame_copy(frame, FRAME_HEADER, to, size);
    }
    memcpy(message, &frame->offload, OFFLOAD_SIZE);
    memcpy(message + OFFLOAD_SIZE, frame->ethernet, FRAME_HEADER);
}

/* As ring_commit, but for `tail` and the peer's sleep: they are seen to once a batch. */
static inline void put(struct ring *ring, uint64_t *cell, uint64_t *following, uint64_t span, const struct frame *frame) {
    __atomic_store_n(following, (uint64_t)(uint32_t)~ring_sequence(ring->position + span), __ATOMIC_RELAXED);
    fill((char *)cell + RING_HEADER, frame);
    uint64_t header = (uint64_t)(OFFLOAD_SIZE + frame->size) << 32 | ring_sequence(ring->position);
    __atomic_store_n(cell, header, __ATOMIC_RELEASE);
    ring->position += span;
}

/*
 * Frames as far as they fit before the ring's end, into what is known to be free: how many. The ring's fields are kept here
 * meanwhile, or each store to the shared memory would have them read again.
 */
static int put_many(struct ring *kept, const struct frame *frames, int count) {
    struct ring ring = *kept;
    uint64_t at = ring.position & ring.mask, left = ring.mask + 1 - at;
    uint64_t room = ring.head + ring.mask + 1 - ring.position;
    char *cell = ring.cells + at * SHM_LINE;
    room = room < left ? room : left;
    int sent = 0;
    for (; sent < count; sent++) {
        uint32_t size = OFFLOAD_SIZE + frames[sent].size;
        uint64_t span = ring_span(size);
        if (__builtin_expect(span >= room || size > ring.max_message, 0))
            break; /* One cell more than the message: the header behind it. */
        put(&ring, (uint64_t *)cell, (uint64_t *)(cell + span * SHM_LINE), span, &frames[sent]);
        cell += span * SHM_LINE;
        room -= span;
        for (uint64_t line = 2; __builtin_expect(line < span && line < WRITE_LINES, 0); line++)
            shm_prefetch_write(cell + (WRITE_AHEAD + line) * SHM_LINE);
        shm_prefetch_write(cell + WRITE_AHEAD * SHM_LINE);
        shm_prefetch_write(cell + (WRITE_AHEAD + 1) * SHM_LINE);
    }
    *kept = ring;
    return sent;
}

static int ring_port_send_many(struct port *port, const struct frame *frames, int count, int *result) {
    struct ring_port *rp = of(port);
    struct ring *ring = &rp->in;
    int sent = 0, failed = 0;
    while ((sent += put_many(ring, frames + sent, count - sent)) < count) {
        void *message;
        failed = ring_reserve(ring, OFFLOAD_SIZE + frames[sent].size, &message);
        if (failed)
            break;
        uint64_t span = ring->span, *cell = ring_header(ring, ring->position);
        put(ring, cell, ring_header(ring, ring->position + span), span, &frames[sent++]);
    }
    shm_store64(&ring->shared->tail, ring->position);
    rp->sent = 1;
    if (failed)
        *result = failed == SHM_FULL ? DROP_FULL : failed == SHM_E_TOO_LONG ? DROP_OVERSIZE : spoiled(rp, ring);
    return sent;
}

static int ring_port_send(struct port *port, const struct frame *frame) {
    int result = 0;
    ring_port_send_many(port, frame, 1, &result);
    return result;
}

static int ring_port_flush(struct port *port) {
    struct ring_port *rp = of(port);
    if (rp->sent && shm_must_ring(rp->in.data_wait, rp->in.flags))
        ring_bell(port, rp->data_bell);
    rp->sent = 0;
    return check_memory(rp);
}

/* --- sleep --- */

static void ring_port_arm(struct port *port) {
    shm_sleep_begin(of(port)->out.data_wait);
}

static int ring_port_ready(struct port *port) {
    return ring_has_data(&of(port)->out);
}

/* Nobody need ring for one who is awake. */
static void ring_port_disarm(struct port *port) {
    __atomic_store_n(of(port)->out.data_wait, 0, __ATOMIC_RELAXED);
}

/* --- making and closing --- */

static void give_back(struct ring_port *rp) {
    for (int i = 0; i < 2; i++)
        if (rp->guarded[i])
            fault_unguard(rp->guarded[i]);
    int fds[] = {rp->port.wake, rp->space_bell, rp->data_bell};
    for (unsigned i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    free(rp);
}

/* The peer learns that nobody is there any more, and is woken for it. */
static void ring_port_close(struct port *port) {
    struct ring_port *rp = of(port);
    ring_close_consumer(&rp->out);
    ring_close_producer(&rp->in);
    ring_bell(port, rp->space_bell);
    ring_bell(port, rp->data_bell);
    give_back(rp);
}

static const struct port_ops ops = {
    .kind = "ring",
    .peek = ring_port_peek,
    .release = ring_port_release,
    .send = ring_port_send,
    .send_many = ring_port_send_many,
    .flush = ring_port_flush,
    .arm = ring_port_arm,
    .ready = ring_port_ready,
    .disarm = ring_port_disarm,
    .close = ring_port_close,
};

/* Opens one ring where `config` says it is. Checked: all of `config`. SHM_OK, or SHM_E_CONFIG with *field. */
static int open_ring(struct ring *ring, char *region, uint64_t size, const struct shm_config *config, uint32_t bell_count,
                     const char **field) {
    *field = "kind";
    if (config->kind != SHM_SPSC)
        return SHM_E_CONFIG;
    *field = "size";
    if (config->size > RING_MAX_SIZE)
        return SHM_E_CONFIG;
    *field = "offset";
    if (config->offset % SHM_LINE || config->offset > size || ring_bytes(config->size) > size - config->offset)
        return SHM_E_CONFIG;
    *field = "bell";
    if (config->data_bell >= bell_count || config->space_bell >= bell_count)
        return SHM_E_CONFIG;
    int failed = ring_open(ring, (struct ring_shared *)(region + config->offset), config->size, config->max_message, config->flags);
    *field = ring->field;
    return failed;
}

struct port *ring_port_new(const char *name, void *region, uint64_t size, const struct shm_config *out,
                           const struct shm_config *in, const int *bells, uint32_t bell_count, const char **field) {
    struct ring_port *rp = calloc(1, sizeof *rp);
    if (!rp)
        return NULL;
    rp->port.wake = rp->space_bell = rp->data_bell = -1;
    rp->port.ops = &ops;
    rp->port.up = 1;
    rp->port.flags = PORT_TAKES_CSUM | PORT_TAKES_TSO4 | PORT_TAKES_TSO6 | PORT_TAKES_USO;
    snprintf(rp->port.name, sizeof rp->port.name, "%s", name);
    int error = EINVAL;
    if (open_ring(&rp->out, region, size, out, bell_count, field) || open_ring(&rp->in, region, size, in, bell_count, field))
        goto failed;
    if (rp->in.max_message < OFFLOAD_SIZE + FRAME_MAX) /* Segmentation can't be left to who has no room for such frames. */
        rp->port.flags = PORT_TAKES_CSUM;
    struct ring *rings[] = {&rp->out, &rp->in};
    for (int i = 0; i < 2; i++) {
        error = -fault_guard(rings[i]->shared, ring_bytes((rings[i]->mask + 1) * SHM_LINE), &rp->lost);
        if (error)
            goto failed;
        rp->guarded[i] = rings[i]->shared;
    }
    rp->port.wake = fcntl(bells[out->data_bell], F_DUPFD_CLOEXEC, 0);
    rp->space_bell = fcntl(bells[out->space_bell], F_DUPFD_CLOEXEC, 0);
    rp->data_bell = fcntl(bells[in->data_bell], F_DUPFD_CLOEXEC, 0);
    error = errno;
    if (rp->port.wake < 0 || rp->space_bell < 0 || rp->data_bell < 0)
        goto failed;
    ring_attach_consumer(&rp->out);
    rp->seen = rp->out.position;
    error = EBADMSG;
    if (ring_attach_producer(&rp->in)) {
        *field = rp->in.field;
        goto failed;
    }
    return &rp->port;
failed:
    give_back(rp);
    errno = error;
    return NULL;
}
