/* end.c: see end.h. */
#define _GNU_SOURCE
#include "end.h"

#include <errno.h>
#include <linux/membarrier.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Naps of one that no bell wakes: short at first, then longer. */
static const int64_t FIRST_NAP_NS = 20000, LONGEST_NAP_NS = 1000000;
/* How long a spin goes on before signals are looked after. */
static const uint64_t SPIN_SLICE_NS = 200000000;
static const unsigned LOOKS = 64; /* spins between two looks at clock and peer */
/* Cells of messages that are received together are given back at every such part of the ring, and at the end. */
static const uint64_t DRAIN_PARTS = 8;

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

int end_register(void) {
    return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) ? -errno : 0;
}

/* On a channel that is SHM_FENCED both sides fence, and that is enough. */
static void heavy_barrier(const struct shm_end *end) {
    if (end->config.flags & SHM_FENCED || syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0) != 0)
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static void ring_bell(struct shm_end *end) {
    end->rings += (uint64_t)bell_ring(&end->bell);
}

/* ---- opening and closing ----------------------------------------------------------------------------------------------- */

static int attach(struct shm_end *end, char *channel) {
    const struct shm_config *c = &end->config;
    int failed;
    switch (c->kind) {
    case SHM_SPSC:
        failed = ring_open(&end->ring, (struct ring_shared *)channel, c->size, c->max_message, c->flags);
        break;
    case SHM_MPSC:
        if (end->role == END_RECEIVE) {
            end->lanes = calloc(c->lanes, sizeof *end->lanes);
            if (!end->lanes)
                return END_SYSTEM;
            failed = mpsc_attach_consumer(&end->mpsc, channel, c->size, c->max_message, c->lanes, c->flags, end->lanes);
            end->field = end->mpsc.field;
            return failed;
        }
        failed = mpsc_open_lane(&end->ring, channel, c->size, c->max_message, c->lane, c->lanes, c->flags);
        break;
    case SHM_BROADCAST:
        failed = broadcast_open(&end->broadcast, (struct broadcast_shared *)channel, c->size, c->max_message, c->flags);
        if (!failed && end->role == END_SEND)
            failed = broadcast_attach_writer(&end->broadcast);
        else if (!failed)
            broadcast_attach_reader(&end->broadcast);
        end->field = end->broadcast.field;
        return failed;
    default:
        failed = barrier_attach(&end->barrier, channel, c->lanes, c->lane, c->flags);
        end->field = end->barrier.field;
        return failed;
    }
    if (!failed && end->role == END_SEND)
        failed = ring_attach_producer(&end->ring);
    else if (!failed)
        ring_attach_consumer(&end->ring);
    end->field = end->ring.field;
    return failed;
}

static int open_end(struct shm_end *end, void *region, uint64_t region_size, const struct shm_config *config, int role,
                    int readonly) {
    *end = (struct shm_end){.config = *config, .role = role, .readonly = readonly};
    end->spin_ns = 30000;
    uint64_t bytes = end_bytes(config);
    end->field = "size";
    if (!bytes)
        return SHM_E_CONFIG;
    end->field = "offset";
    if (config->offset % SHM_LINE || config->offset > region_size || bytes > region_size - config->offset)
        return SHM_E_CONFIG;
    if ((role == END_JOIN) != (config->kind == SHM_BARRIER))
        return END_ROLE;
    if (readonly && (config->kind != SHM_BROADCAST || role != END_RECEIVE))
        return END_ROLE;
    return attach(end, (char *)region + config->offset);
}

static int opened(struct shm_end *end, int failed) {
    if (failed) {
        int error = errno;
        free(end->lanes);
        end->lanes = NULL;
        errno = error;
    }
    return failed;
}

int end_open(struct shm_end *end, void *region, uint64_t region_size, const struct shm_config *config, int role, int data_fd,
             int space_fd, int readonly) {
    int failed = open_end(end, region, region_size, config, role, readonly);
    if (!failed && bell_open_eventfds(&end->bell, role == END_RECEIVE ? space_fd : data_fd, role == END_SEND ? space_fd : data_fd))
        failed = END_SYSTEM;
    return opened(end, failed);
}

int end_open_device(struct shm_end *end, void *region, uint64_t region_size, const struct shm_config *config, int role,
                    const struct bell_device *device, int readonly) {
    int failed = open_end(end, region, region_size, config, role, readonly);
    uint32_t number = role == END_RECEIVE ? config->space_bell : config->data_bell;
    if (!failed && bell_open_device(&end->bell, device, number))
        failed = END_SYSTEM;
    return opened(end, failed);
}

static void tell_peers(struct shm_end *end) {
    if (end->readonly)
        return;
    switch (end->config.kind) {
    case SHM_SPSC:
        end->role == END_SEND ? ring_close_producer(&end->ring) : ring_close_consumer(&end->ring);
        break;
    case SHM_MPSC:
        if (end->role == END_SEND) {
            ring_close_producer(&end->ring);
            break;
        }
        for (uint32_t i = 0; i < end->mpsc.count; i++)
            ring_close_consumer(&end->mpsc.lanes[i]);
        shm_store32(&end->mpsc.shared->consumer, SHM_CLOSED);
        break;
    case SHM_BROADCAST:
        if (end->role == END_SEND)
            shm_store32(&end->broadcast.shared->writer, SHM_CLOSED);
        break;
    default:
        barrier_close(&end->barrier);
    }
    ring_bell(end);
}

void end_close(struct shm_end *end, int tell) {
    if (!end->bell.open)
        return;
    __atomic_store_n(&end->closing, 1, __ATOMIC_SEQ_CST);
    struct timespec moment = {.tv_nsec = 1000000};
    while (__atomic_exchange_n(&end->busy, 1, __ATOMIC_ACQUIRE))
        nanosleep(&moment, NULL); /* At most a slice: whoever waits sees `closing`. */
    if (tell)
        tell_peers(end);
    bell_close(&end->bell);
    free(end->lanes);
    end->lanes = NULL;
    /* It stays busy: whoever still has it is told so. */
}

static int enter(struct shm_end *end) {
    if (__atomic_exchange_n(&end->busy, 1, __ATOMIC_ACQUIRE))
        return __atomic_load_n(&end->closing, __ATOMIC_RELAXED) ? END_CLOSING : END_BUSY;
    return SHM_OK;
}

static void leave(struct shm_end *end) {
    __atomic_store_n(&end->busy, 0, __ATOMIC_RELEASE);
}

/* ---- waiting ----------------------------------------------------------------------------------------------------------- */

/* What is waited for: something to take (or everyone's arrival), or room for `size` bytes. */
struct want {
    struct shm_end *end;
    int room;
    uint32_t size;
};

static int has(const struct want *want) {
    struct shm_end *end = want->end;
    if (want->room)
        return ring_has_room(&end->ring, want->size);
    switch (end->config.kind) {
    case SHM_BARRIER:
        return shm_load32(&end->barrier.shared->generation) != end->barrier.generation;
    case SHM_BROADCAST:
        return broadcast_has_data(&end->broadcast);
    case SHM_MPSC:
        return mpsc_has_data(&end->mpsc);
    default:
        return ring_has_data(&end->ring);
    }
}

/* 0, or what the peers' state means to one who waits for them. */
static int ended(const struct want *want) {
    struct shm_end *end = want->end;
    if (__atomic_load_n(&end->closing, __ATOMIC_RELAXED))
        return END_CLOSING;
    if (want->room)
        return shm_peer_ended(&end->ring.shared->consumer);
    switch (end->config.kind) {
    case SHM_BARRIER: {
        int passed = barrier_passed(&end->barrier);
        return passed == SHM_EMPTY ? 0 : passed;
    }
    case SHM_BROADCAST:
        return shm_peer_ended(&end->broadcast.shared->writer);
    case SHM_MPSC:
        return mpsc_ended(&end->mpsc);
    default:
        return shm_peer_ended(&end->ring.shared->producer);
    }
}

static uint32_t *flag(const struct want *want) {
    struct shm_end *end = want->end;
    if (want->room)
        return end->ring.space_wait;
    switch (end->config.kind) {
    case SHM_BARRIER:
        return &end->barrier.shared->data_wait;
    case SHM_BROADCAST:
        return &end->broadcast.shared->data_wait;
    case SHM_MPSC:
        return &end->mpsc.shared->data_wait;
    default:
        return end->ring.data_wait;
    }
}

/* 1 when it is time to look again, 0 to go on waiting, or a negative result. */
static int look(const struct want *want) {
    if (has(want))
        return 1;
    int over = ended(want);
    /* What was sent before the end is still to be received. */
    return over && has(want) && over != END_CLOSING ? 1 : over;
}

static int64_t left_ns(uint64_t start, int64_t timeout_ns) {
    if (timeout_ns < 0)
        return INT64_MAX;
    uint64_t passed = now_ns() - start;
    return passed >= (uint64_t)timeout_ns ? 0 : timeout_ns - (int64_t)passed;
}

static int sleep_for(const struct want *want, uint64_t start, int64_t timeout_ns) {
    struct shm_end *end = want->end;
    /* A reader that can't write its sleep flag hears nothing, unless its writer always rings. */
    int heard = bell_hears(&end->bell) && (!end->readonly || end->config.flags & SHM_ALWAYS_RING);
    int64_t slice = heard ? end->bell.slice_ns : FIRST_NAP_NS;
    for (;;) {
        if (heard && !end->readonly) {
            shm_sleep_begin(flag(want));
            heavy_barrier(end);
        }
        int ready = look(want);
        if (ready) {
            /* Nobody need ring any more; where only this end sleeps, so that no other's flag is taken back. */
            if (heard && !end->readonly && end->config.kind == SHM_SPSC)
                shm_store32(flag(want), 0);
            return ready;
        }
        int64_t left = left_ns(start, timeout_ns);
        if (!left)
            return END_TIMEOUT;
        if (left > slice)
            left = slice;
        end->sleeps++;
        int woken = bell_wait(&end->bell, left);
        if (woken < 0)
            return errno == EINTR ? END_INTERRUPTED : END_SYSTEM;
        /* Before the flag is set again: who finds what it wanted is awake, and need not be rung for. */
        ready = look(want);
        if (ready) {
            end->late += ready == 1 && !woken && heard;
            return ready;
        }
        if (!heard && slice < LONGEST_NAP_NS)
            slice *= 2;
    }
}

/* Waits, counted from `start` (0: from now): SHM_OK to look again, or why there is nothing to look for. */
static int wait_for(const struct want *want, uint64_t *start, int64_t timeout_ns) {
    struct shm_end *end = want->end;
    if (timeout_ns == 0) {
        int ready = look(want);
        return ready == 1 ? SHM_OK : ready ? ready : END_TIMEOUT;
    }
    for (unsigned i = 0; end->spin_ns && i < LOOKS; i++) { /* The clock costs as much as a message: not at first. */
        if (has(want))
            return SHM_OK;
        shm_pause();
    }
    uint64_t begin = now_ns();
    if (!*start)
        *start = begin;
    for (unsigned i = 1;; i++) {
        if (end->spin_ns && i % LOOKS) {
            if (has(want))
                return SHM_OK;
            shm_pause();
            continue;
        }
        int ready = look(want);
        if (ready)
            return ready == 1 ? SHM_OK : ready;
        uint64_t spent = now_ns() - begin;
        if (spent >= end->spin_ns) {
            ready = sleep_for(want, *start, timeout_ns);
            return ready == 1 ? SHM_OK : ready;
        }
        if (!left_ns(*start, timeout_ns))
            return END_TIMEOUT;
        if (spent >= SPIN_SLICE_NS)
            return END_INTERRUPTED; /* A signal during a spin shows nowhere else. */
    }
}

/* ---- sending ----------------------------------------------------------------------------------------------------------- */

/* *start becomes when it began to wait, if it did. */
static int reserve(struct shm_end *end, uint64_t size, int64_t timeout_ns, void **payload, uint64_t *start) {
    if (end->role != END_SEND)
        return END_ROLE;
    if (size > end->config.max_message)
        return SHM_E_TOO_LONG;
    int result;
    if (end->config.kind == SHM_BROADCAST) {
        result = broadcast_reserve(&end->broadcast, (uint32_t)size, payload);
        end->field = end->broadcast.field;
        return result;
    }
    int over = shm_peer_ended(&end->ring.shared->consumer);
    if (over)
        return over;
    struct want want = {.end = end, .room = 1, .size = (uint32_t)size};
    while ((result = ring_reserve(&end->ring, (uint32_t)size, payload)) == SHM_FULL) {
        result = wait_for(&want, start, timeout_ns);
        if (result)
            return result;
    }
    end->field = end->ring.field;
    return result;
}

int end_reserve(struct shm_end *end, uint64_t size, int64_t timeout_ns, uintptr_t *payload) {
    int result = enter(end);
    if (result)
        return result;
    void *at = NULL;
    uint64_t start = 0;
    result = reserve(end, size, timeout_ns, &at, &start);
    *payload = (uintptr_t)at;
    leave(end);
    return result;
}

static void commit(struct shm_end *end, uint32_t size) {
    if (end->config.kind == SHM_BROADCAST ? broadcast_commit(&end->broadcast, size) : ring_commit(&end->ring, size))
        ring_bell(end);
}

int end_commit(struct shm_end *end, uint64_t size) {
    int result = enter(end);
    if (result)
        return result;
    uint64_t span = end->config.kind == SHM_BROADCAST ? end->broadcast.span : end->ring.span;
    uint64_t header = end->config.kind == SHM_BROADCAST ? BROADCAST_HEADER : RING_HEADER;
    /* Never more than what was reserved. */
    if (end->role != END_SEND || size > end->config.max_message || size + header > span * SHM_LINE)
        result = END_ROLE;
    else
        commit(end, (uint32_t)size);
    leave(end);
    return result;
}

static int send(struct shm_end *end, const char *data, uint64_t size, int64_t timeout_ns, uint64_t *start) {
    void *payload;
    int result = reserve(end, size, timeout_ns, &payload, start);
    if (result)
        return result;
    if (end->config.kind == SHM_BROADCAST)
        ring_copy(payload, data, size);
    else
        ring_fill(&end->ring, payload, data, (uint32_t)size);
    commit(end, (uint32_t)size);
    return SHM_OK;
}

int end_send(struct shm_end *end, const char *data, uint64_t size, int64_t timeout_ns) {
    int result = enter(end);
    if (result)
        return result;
    uint64_t start = 0;
    result = send(end, data, size, timeout_ns, &start);
    leave(end);
    return result;
}

int end_send_many(struct shm_end *end, const char *data, const uint32_t *sizes, uint32_t count, int64_t timeout_ns,
                  struct end_progress *progress) {
    *progress = (struct end_progress){0};
    int result = enter(end);
    if (result)
        return result;
    uint64_t start = 0;
    while (progress->sent < count) {
        uint32_t size = sizes[progress->sent];
        start = 0;
        result = send(end, data + progress->bytes, size, timeout_ns, &start);
        if (result)
            break;
        progress->sent++;
        progress->bytes += size;
    }
    progress->waited_ns = result && start ? now_ns() - start : 0;
    leave(end);
    return result;
}

/* ---- receiving --------------------------------------------------------------------------------------------------------- */

static int peek(struct shm_end *end, const void **payload, uint32_t *size) {
    int result;
    if (end->config.kind == SHM_MPSC) {
        result = mpsc_peek(&end->mpsc, payload, size);
        end->field = end->mpsc.field;
    } else {
        result = ring_peek(&end->ring, payload, size);
        end->field = end->ring.field;
    }
    return result;
}

static void release(struct shm_end *end) {
    if (end->config.kind == SHM_MPSC ? mpsc_release(&end->mpsc) : ring_release(&end->ring))
        ring_bell(end);
}

/* What was met behind messages that were received together, and is told once only. */
static int take_held(struct shm_end *end) {
    int held = end->held;
    end->held = SHM_OK;
    return held;
}

static int64_t wait_and_peek(struct shm_end *end, int64_t timeout_ns, const void **payload) {
    if (end->role != END_RECEIVE || end->config.kind == SHM_BROADCAST)
        return END_ROLE;
    if (__builtin_expect(end->held, 0))
        return take_held(end);
    struct want want = {.end = end};
    uint64_t start = 0;
    uint32_t size;
    int result;
    while ((result = peek(end, payload, &size)) == SHM_EMPTY) {
        result = wait_for(&want, &start, timeout_ns);
        if (result)
            return result;
    }
    return result ? result : (int64_t)size;
}

static int64_t receive_broadcast(struct shm_end *end, char *data, uint64_t room, int64_t timeout_ns) {
    struct want want = {.end = end};
    uint64_t start = 0;
    int64_t size;
    while ((size = broadcast_receive(&end->broadcast, data, room)) == SHM_EMPTY) {
        /* A writer that laps for ever looks like data for ever: the limit counts here too. */
        if (start && !left_ns(start, timeout_ns))
            return END_TIMEOUT;
        int result = wait_for(&want, &start, timeout_ns);
        if (result)
            return result;
        if (!start)
            start = now_ns();
    }
    end->field = end->broadcast.field;
    return size;
}

static int64_t receive(struct shm_end *end, char *data, uint64_t room, int64_t timeout_ns) {
    if (end->config.kind == SHM_BROADCAST && end->role == END_RECEIVE)
        return end->held ? take_held(end) : receive_broadcast(end, data, room, timeout_ns);
    const void *payload;
    int64_t size = wait_and_peek(end, timeout_ns, &payload);
    if (size < 0)
        return size;
    if ((uint64_t)size > room)
        return SHM_E_TOO_LONG;
    ring_copy(data, payload, (uint64_t)size);
    release(end);
    return size;
}

int64_t end_receive(struct shm_end *end, char *data, uint64_t room, int64_t timeout_ns) {
    int busy = enter(end);
    if (busy)
        return busy;
    int64_t size = receive(end, data, room, timeout_ns);
    leave(end);
    return size;
}

/*
 * What is in a ring already, as long as it fits and there are not `enough` bytes: of one message, `used` are there before. The
 * cells are given back together, so that the sender's look at `head` finds many at a time, and the line changes hands less often.
 */
static uint32_t drain(struct shm_end *end, char *data, uint64_t room, uint64_t used, uint64_t enough, uint32_t *sizes,
                      uint32_t count) {
    struct ring *ring = &end->ring;
    uint64_t begin = ring->position;
    const void *payload;
    uint32_t size, got = 1;
    while (got < count && used < enough && ring_peek(ring, &payload, &size) == SHM_OK && size <= room - used) {
        ring_copy(data + used, payload, size);
        used += size;
        sizes[got++] = size;
        ring_pass(ring);
        if (ring->position - begin > ring->mask / DRAIN_PARTS) {
            begin = ring->position;
            if (ring_give_back(ring))
                ring_bell(end);
        }
    }
    if (ring->position != begin && ring_give_back(ring))
        ring_bell(end);
    return got;
}

/* The same for lanes and broadcasts, message by message. */
static uint32_t drain_others(struct shm_end *end, char *data, uint64_t room, uint64_t used, uint64_t enough,
                             uint32_t *sizes, uint32_t count) {
    uint32_t got = 1;
    /* What doesn't fit stays in a lane; a broadcast would skip it. */
    uint64_t least = end->config.kind == SHM_BROADCAST ? end->config.max_message : 0;
    while (got < count && used < enough && room - used >= least) {
        int64_t size = receive(end, data + used, room - used, 0);
        if (size == SHM_E_CORRUPT)
            end->held = SHM_E_CORRUPT; /* A lane that is spoiled is told of once. */
        if (size < 0)
            break; /* Anything else shows again at the next call. */
        used += (uint64_t)size;
        sizes[got++] = (uint32_t)size;
    }
    return got;
}

int64_t end_receive_many(struct shm_end *end, char *data, uint64_t room, uint64_t enough, uint32_t *sizes, uint32_t count,
                         int64_t timeout_ns) {
    int busy = enter(end);
    if (busy)
        return busy;
    int64_t result = count ? receive(end, data, room, timeout_ns) : 0;
    if (count && result >= 0) {
        uint64_t used = (uint64_t)result;
        sizes[0] = (uint32_t)result;
        result = (end->config.kind == SHM_SPSC ? drain : drain_others)(end, data, room, used, enough, sizes, count);
    }
    leave(end);
    return result;
}

int64_t end_peek(struct shm_end *end, int64_t timeout_ns, uintptr_t *payload) {
    int busy = enter(end);
    if (busy)
        return busy;
    const void *at = NULL;
    int64_t size = wait_and_peek(end, timeout_ns, &at);
    *payload = (uintptr_t)at;
    leave(end);
    return size;
}

int end_release(struct shm_end *end) {
    int result = enter(end);
    if (result)
        return result;
    if (end->role != END_RECEIVE || end->config.kind == SHM_BROADCAST)
        result = END_ROLE;
    else
        release(end);
    leave(end);
    return result;
}

/* ---- the rest ---------------------------------------------------------------------------------------------------------- */

int end_join(struct shm_end *end, int64_t timeout_ns) {
    int result = enter(end);
    if (result)
        return result;
    struct want want = {.end = end};
    uint64_t start = 0;
    if (end->role != END_JOIN) {
        result = END_ROLE;
    } else {
        /* Who left early (time limit, signal) has arrived all the same, and comes back to the same generation. */
        if (!end->joining && barrier_arrive(&end->barrier))
            ring_bell(end);
        result = wait_for(&want, &start, timeout_ns);
        end->joining = result != SHM_OK;
    }
    leave(end);
    return result;
}

uint64_t end_lost(const struct shm_end *end) {
    return end->config.kind == SHM_BROADCAST ? end->broadcast.lost : 0;
}

uint32_t end_lane(const struct shm_end *end) {
    return end->config.kind == SHM_MPSC && end->role == END_RECEIVE ? end->mpsc.current : end->config.lane;
}
