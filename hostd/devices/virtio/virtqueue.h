/*
 * virtqueue.h: the device's side of a split virtqueue (virtio 1.2, 2.7 "Split Virtqueues").
 *
 * The rings and every buffer lie in the guest's memory, which the guest may change at any moment: each field is read once,
 * bounded, then used; a guest's address becomes a pointer only by slot_hva. What breaks the rules gives an error with a
 * reason, never a wait without end: the device is then broken until the driver resets it.
 *
 * Knows neither PCI nor threads: the caller holds whatever lock guards the queue, and slot_lock from virtqueue_begin until it
 * has done with the last buffer (the pointers of a chain are good only as long).
 */
#ifndef HOSTD_VIRTQUEUE_H
#define HOSTD_VIRTQUEUE_H

#include <stdint.h>
#include <sys/uio.h>

#include "rows.h"

#define VIRTQUEUE_MAX 256          /* largest queue; also the most descriptors of one chain, indirect ones counted */
#define VIRTQUEUE_PIECES (VIRTQUEUE_MAX + 32) /* most pieces: a buffer that spans adjacent rows is several */

/* Why a queue broke. What a guest can do wrong, one name each; virtqueue_reason has the words. */
enum virtqueue_error {
    VQ_OK,
    VQ_AVAIL_INDEX,   /* more buffers available than the queue has entries */
    VQ_HEAD,          /* head past the descriptor table */
    VQ_NEXT,          /* next past the descriptor table */
    VQ_LONG,          /* too many descriptors: a loop, or a chain longer than any queue */
    VQ_INDIRECT,      /* an indirect descriptor where none may be, or whose table has an impossible size */
    VQ_ORDER,         /* a device-readable buffer behind a device-writable one */
    VQ_ADDRESS,       /* a buffer outside the guest's memory, or to be written where the guest can't write */
    VQ_SIZE,          /* more than 4 GiB in one chain */
    VQ_RING,          /* the rings themselves are outside the guest's memory */
    VQ_REQUEST,       /* the device can't make sense of the request, nor answer it */
    VQ_ERRORS
};

const char *virtqueue_reason(enum virtqueue_error error);

/* One of the three areas of a queue. `hva` is NULL between batches, and when the area lies in several rows. */
struct virtqueue_area {
    uint64_t gpa;
    uint8_t *hva;
};

struct virtqueue {
    /* What the driver set (virtio 1.2, 4.1.4.3); checked by virtqueue_start. */
    struct virtqueue_area desc, avail, used;
    uint16_t size, max;
    uint16_t vector;
    uint8_t enabled;

    /* Where we are. */
    uint8_t indirect, event_idx; /* negotiated */
    uint8_t signalled_valid;
    uint16_t next_avail, next_used;
    uint16_t signalled;          /* next_used when we last decided about an interrupt */
    const struct slot_rows *memory;

    /* Counters, for `inspect`. */
    uint64_t kicks, chains, interrupts, suppressed;
};

/* One chain, with its descriptors already turned into pieces of this process's memory: first all to read, then to write. */
struct virtqueue_chain {
    uint16_t head;
    uint32_t out_count, in_count; /* pieces to read; pieces to write, which follow them */
    uint64_t out_size, in_size;   /* bytes of them */
    struct iovec pieces[VIRTQUEUE_PIECES];
};

/* Back to the state after reset; keeps `max` and `memory`. */
void virtqueue_reset(struct virtqueue *queue);

/* The driver enables the queue: 0, or VQ_RING where no queue can be (alignment, size, no memory there). */
enum virtqueue_error virtqueue_start(struct virtqueue *queue, int indirect, int event_idx);

/* For templates (state.h): 0, or VQ_RING where no queue can be. Not during a batch. */
struct state;
enum virtqueue_error virtqueue_state(struct virtqueue *queue, struct state *state);

/* Find the rings for a batch. Under slot_lock, which is held until the batch is done. */
enum virtqueue_error virtqueue_begin(struct virtqueue *queue);

/* Take the next available chain: 1 with *chain filled, 0 if there is none, or -error. */
int virtqueue_pop(struct virtqueue *queue, struct virtqueue_chain *chain);

/* How many chains are there to take? Or -error. */
int virtqueue_pending(struct virtqueue *queue);

/* Put back the last chain taken, to be taken again: nothing of it was used. */
void virtqueue_unpop(struct virtqueue *queue);

/* Give a chain back with `written` bytes in its writable pieces. 0 or -error. */
int virtqueue_push(struct virtqueue *queue, uint16_t head, uint32_t written);

/*
 * Ask the driver to notify of the next buffer. Returns how many came meanwhile (go on taking), 0 if none, -error.
 * Without it a driver that negotiated EVENT_IDX stays silent.
 */
int virtqueue_rearm(struct virtqueue *queue);

/* Must the driver be interrupted for what was pushed since the last call? 1, 0 or -error. */
int virtqueue_signal(struct virtqueue *queue);

/* --- a chain's bytes. Each stops at the end of the chain and returns the bytes moved. --- */

/* Copy out of the readable pieces from `offset` on. */
uint64_t chain_read(const struct virtqueue_chain *chain, uint64_t offset, void *to, uint64_t size);

/* Copy into the writable pieces from `offset` on. */
uint64_t chain_write(const struct virtqueue_chain *chain, uint64_t offset, const void *from, uint64_t size);

/* The readable (`in` 0) or writable (1) bytes [offset, offset + size) as pieces; returns how many of `to` were filled. */
uint32_t chain_slice(const struct virtqueue_chain *chain, int in, uint64_t offset, uint64_t size,
                     struct iovec to[VIRTQUEUE_PIECES]);

#endif
