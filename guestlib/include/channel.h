/*
 * channel.h: a guest's end of a channel. Included by guest.h.
 *
 * A channel is found by name; what this guest is to it (sender, receiver, party) the cluster file says. Calls that can wait
 * spin for a while, then sleep on the channel's doorbell until `limit_ns` has passed. They return 0 (or a size), or one of the
 * negative values below. No value that a peer writes makes them hang or touch memory outside the channel.
 */
#ifndef CHANNEL_H
#define CHANNEL_H

#include <shm/barrier.h>
#include <shm/broadcast.h>
#include <shm/mpsc.h>
#include <shm/ring.h>

#include "guest_abi.h"

#define CHANNEL_TIMEOUT (-20)  /* the time limit passed */
#define CHANNEL_UNKNOWN (-21)  /* this guest has no channel of that name */
#define CHANNEL_ROLE (-22)     /* not for this guest's role, or this kind of channel */
#define CHANNEL_CLOSED SHM_E_CLOSED    /* the peer closed its end, and everything it sent has been received */
#define CHANNEL_GONE SHM_E_GONE        /* the peer died */
#define CHANNEL_CORRUPT SHM_E_CORRUPT  /* the peer broke the ring; channel_error names the field */
#define CHANNEL_TOO_LONG SHM_E_TOO_LONG /* over the channel's max_message, or the buffer: then the message stays */

#define CHANNEL_SPIN_ALWAYS 0xffffffffffffffff

struct channel {
    const struct guest_channel *end; /* name, kind, role */
    uint64_t spin_ticks;             /* how long a wait spins before it sleeps */
    unsigned looks;                  /* how often a receiver looks before it minds the clock */
    int joining;                     /* arrived at a barrier, and not seen through it yet */
    int patient;                     /* a peer that ended may come again: waits go on */
    int sends, receives;             /* 1: over `ring`, so that the inline paths below will do */
    union {
        struct ring ring;            /* spsc, and a sender's lane of an mpsc */
        struct mpsc mpsc;            /* the receiver of an mpsc */
        struct broadcast broadcast;
        struct barrier barrier;
    };
};

/* Opens this guest's end of the channel `name`: 0, CHANNEL_UNKNOWN, CHANNEL_CORRUPT, SHM_E_CONFIG. */
int channel_open(struct channel *channel, const char *name);

/* Tells the other side that no more is to come (sender), or that nobody reads any more (receiver). */
void channel_close(struct channel *channel);

/* What the calls below do when it can't be done at once, or is not over a plain ring. */
int channel_send_slowly(struct channel *channel, const void *data, size_t size, uint64_t limit_ns);
int64_t channel_receive_slowly(struct channel *channel, void *data, size_t room, uint64_t limit_ns);
int channel_reserve_slowly(struct channel *channel, size_t size, void **payload, uint64_t limit_ns);
void channel_commit_slowly(struct channel *channel, size_t size);
int64_t channel_peek_slowly(struct channel *channel, const void **payload, uint64_t limit_ns);
void channel_release_slowly(struct channel *channel);
void channel_ring(const struct channel *channel);

/* Sends a copy of `size` bytes. A broadcast never waits. */
static inline int channel_send(struct channel *channel, const void *data, size_t size, uint64_t limit_ns) {
    int must_ring = 0;
    if (!channel->sends || size > UINT32_MAX || ring_send(&channel->ring, data, (uint32_t)size, &must_ring))
        return channel_send_slowly(channel, data, size, limit_ns);
    if (must_ring)
        channel_ring(channel);
    return 0;
}

/* Receives a copy of the next message into `room` bytes: its size. */
static inline int64_t channel_receive(struct channel *channel, void *data, size_t room, uint64_t limit_ns) {
    int must_ring = 0;
    int64_t size = SHM_EMPTY;
    if (channel->receives)
        for (unsigned i = channel->looks; (size = ring_receive(&channel->ring, data, room, &must_ring)) == SHM_EMPTY && i; i--)
            ring_spin(&channel->ring);
    if (size < 0)
        return channel_receive_slowly(channel, data, room, limit_ns);
    if (must_ring)
        channel_ring(channel);
    return size;
}

/* Zero-copy: *payload is room for `size` bytes in the ring itself; channel_commit publishes that many, or fewer. */
static inline int channel_reserve(struct channel *channel, size_t size, void **payload, uint64_t limit_ns) {
    if (channel->sends && size <= UINT32_MAX && !ring_reserve(&channel->ring, (uint32_t)size, payload))
        return 0;
    return channel_reserve_slowly(channel, size, payload, limit_ns);
}
static inline void channel_commit(struct channel *channel, size_t size) {
    if (!channel->sends)
        channel_commit_slowly(channel, size);
    else if (ring_commit(&channel->ring, (uint32_t)size))
        channel_ring(channel);
}

/* Zero-copy: *payload is the next message, in the ring until channel_release. Not for a broadcast. Returns its size. */
static inline int64_t channel_peek(struct channel *channel, const void **payload, uint64_t limit_ns) {
    uint32_t size;
    int result = SHM_EMPTY;
    if (channel->receives)
        for (unsigned i = channel->looks; (result = ring_peek(&channel->ring, payload, &size)) == SHM_EMPTY && i; i--)
            ring_spin(&channel->ring);
    return result ? channel_peek_slowly(channel, payload, limit_ns) : (int64_t)size;
}
static inline void channel_release(struct channel *channel) {
    if (!channel->receives)
        channel_release_slowly(channel);
    else if (ring_release(&channel->ring))
        channel_ring(channel);
}

/* Waits at a barrier until every party has arrived. */
int channel_join(struct channel *channel, uint64_t limit_ns);

/* Waits until one of `count` channels (at most 64) has a message, or ended: its index, or CHANNEL_TIMEOUT. */
int channel_select(struct channel *const *channels, size_t count, uint64_t limit_ns);

/* How long a wait spins before it sleeps: 0, a time in ns, or CHANNEL_SPIN_ALWAYS. 20 us unless told. */
void channel_spin(struct channel *channel, uint64_t ns);

/* Broadcast receivers: messages that were overwritten before they were read. */
uint64_t channel_lost(const struct channel *channel);

/* A result in words, the field of the ring with it: for messages to people. */
const char *channel_error(const struct channel *channel, int64_t result);

/* For programs that can't go on without: end the guest with a message when `result` is negative, or the channel is missing. */
void channel_failed(const struct channel *channel, int64_t result);
static inline void channel_must(const struct channel *channel, int64_t result) {
    if (__builtin_expect(result < 0, 0))
        channel_failed(channel, result);
}
void channel_must_open(struct channel *channel, const char *name);

#endif
