/* copy.c: see copy.h. */
#include "copy.h"

#include <shm/ring.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>

enum { BATCH = 64, WRITE_AHEAD = 16 };

struct held {
    const void *message;
    uint32_t size;
};

/* The messages that lie ready, up to a batch; they stay the ring's: how many, or -1. */
static int hold(struct ring *cursor, struct held *held) {
    int count = 0;
    for (; count < BATCH; count++) {
        int failed = ring_peek(cursor, &held[count].message, &held[count].size);
        if (failed == SHM_EMPTY)
            break;
        if (failed)
            return -1;
        cursor->position += cursor->span;
    }
    return count;
}

static int put(struct ring *ring, const struct held *held, int count) {
    struct ring own = *ring;
    for (int i = 0; i < count; i++) {
        void *place;
        int failed = ring_reserve(&own, held[i].size, &place);
        if (failed == SHM_FULL)
            continue; /* Lost, as a switch would. */
        if (failed)
            return -1;
        ring_fill(&own, place, held[i].message, held[i].size);
        ring_publish(&own, own.position, held[i].size);
        own.position += own.span;
        for (uint64_t line = 0; line < own.span && line < 4; line++)
            shm_prefetch_write(ring_header(&own, own.position + WRITE_AHEAD + line));
    }
    shm_store64(&own.shared->tail, own.position);
    *ring = own;
    return 0;
}

int traffic_copy(void *from, void *to, uint64_t size, uint32_t max_message) {
    struct held held[BATCH];
    struct ring in, out;
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) || ring_open(&in, from, size, max_message, 0) ||
        ring_open(&out, to, size, max_message, 0) || ring_attach_producer(&out))
        return -1;
    ring_attach_consumer(&in);
    for (;;) {
        struct ring cursor = in;
        int count = hold(&cursor, held);
        if (count < 0 || put(&out, held, count))
            return -1;
        cursor.span = 0;
        in = cursor;
        shm_store64(&in.shared->head, in.position);
    }
}
