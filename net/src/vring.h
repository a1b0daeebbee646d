/*
 * vring.h: the device's side of a split virtqueue (virtio 1.2, 2.7) in a vhost-user front end's memory.
 *
 * Rings and buffers lie in memory that the driver may change at any moment: each field is read once, bounded, then
 * used; an address becomes a pointer by vhost_memory_hva only. A queue that breaks the rules gives -(enum port_error)
 * and says in `field` what was wrong.
 *
 * Chains are used in the order in which they were made available, so that one index tells both how far chains were
 * taken and how far they were used: after a reconnection the used ring alone tells where to go on.
 *
 * Knows no threads: the caller holds the switch's lock.
 */
#ifndef NET_VRING_H
#define NET_VRING_H

#include <linux/virtio_ring.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "frame.h"
#include "port.h"
#include "vhost_memory.h"

#define VRING_MAX 32768  /* largest queue (2.7) */
#define VRING_CHAIN 1024 /* most descriptors of an indirect table; those of drivers have a few dozen */
#define VRING_AHEAD 256  /* chains that are looked at before they are needed; a power of two */
#define VRING_LOOK 64    /* how many of them at once */
#define VRING_WALK 512   /* about as many descriptors of long chains are read in one look at a queue */

#define VRING_LIKELY(x) __builtin_expect(!!(x), 1)
#define VRING_UNLIKELY(x) __builtin_expect(!!(x), 0)

/* What the front end said of a queue; none of it is checked before vring_update. */
struct vring_setup {
    uint64_t desc, avail, used; /* addresses of the front end */
    uint16_t size, base;
    uint8_t addressed, kicked, enabled;
    int kick, call, err; /* eventfds, or -1 */
};

/* A chain to receive into. `hva` is NULL if it has more than one buffer, or one in several regions. */
struct vring_buffer {
    uint8_t *hva;
    uint32_t size; /* of all its buffers */
    uint16_t head;
};

struct vring_queue {
    /* NULL while the queue isn't live: not set up, or its memory is not there. */
    const struct vring_desc *desc;
    struct vring_avail *avail;
    struct vring_used *used;
    const struct vhost_memory *memory;
    uint32_t region;    /* where the last address was found */
    uint16_t mask;      /* size - 1 */
    uint16_t next;      /* index of the next chain to take, and to use */
    uint16_t published; /* used index that the driver sees */
    uint16_t signalled; /* used index when we last thought about a call */
    uint16_t looked;    /* chains before this one are in `ahead` */
    uint16_t held;      /* chains behind `next` whose frames are held out */
    uint8_t header;     /* bytes of struct virtio_net_hdr_v1 that this driver uses: 12, or 10 */
    uint8_t event_idx, indirect, call_always;
    uint8_t quiet; /* the driver was told that no kick is needed */
    int call;
    const char *field; /* what was wrong */
    uint16_t heads[FRAME_BATCH];
    struct vring_buffer ahead[VRING_AHEAD];
    struct vring_setup setup;
};

/* One chain on the way through its descriptors. */
struct vring_walk {
    const uint8_t *table;
    uint64_t gpa; /* what is left of a buffer */
    uint32_t size;
    uint32_t entries, index; /* of the table */
    uint32_t left;           /* descriptors it may still have */
    uint8_t write, last, first;
};

/* Not live, nothing set up; gives back what it has of descriptors. */
void vring_reset(struct vring_queue *ring);

/*
 * After any change of setup, features or memory: finds the queue's areas again. A queue that can be live and wasn't
 * starts at its used index. 0, or -PORT_E_PROTOCOL where no queue can be.
 */
int vring_update(struct vring_queue *ring, const struct vhost_memory *memory, uint64_t features);

/* Not live any more: the index at which it may be started again. */
uint16_t vring_stop(struct vring_queue *ring);

static inline int vring_live(const struct vring_queue *ring) {
    return ring->desc != NULL;
}

/* How many chains from index `from` on (in next .. next + size) are available? Or -error. */
static inline int vring_available(struct vring_queue *ring, uint16_t from) {
    /* Acquire: the descriptors that the index announces are read after it (2.7.13.3). */
    uint16_t index = __atomic_load_n(&ring->avail->idx, __ATOMIC_ACQUIRE);
    if (VRING_UNLIKELY((uint16_t)(index - ring->next) > ring->mask + 1u)) {
        ring->field = "available index";
        return -PORT_E_QUEUE;
    }
    return (uint16_t)(index - from);
}

/* The head of the chain at an index; the caller has asked vring_available. Not checked. */
static inline uint16_t vring_head(const struct vring_queue *ring, uint16_t index) {
    return __atomic_load_n(&ring->avail->ring[index & ring->mask], __ATOMIC_RELAXED);
}

/* Reads a descriptor once, wherever it lies. */
static inline struct vring_desc vring_read(const void *from) {
    typedef uint64_t __attribute__((may_alias, aligned(1))) anywhere;
    const volatile anywhere *words = from;
    union {
        uint64_t words[2];
        struct vring_desc desc;
    } copy = {.words = {words[0], words[1]}};
    return copy.desc;
}

/*
 * Begins a walk through the chain at `head`: 0 or -error. `write`: which of device-writable and -readable they must be.
 */
int vring_walk(struct vring_queue *ring, struct vring_walk *walk, uint16_t head, int write);

/* The next piece of the chain, in one region: 1, 0 at the end, or -error. Counts each descriptor in *work. */
int vring_walk_next(struct vring_queue *ring, struct vring_walk *walk, struct iovec *piece, uint32_t *work);

/* Looks at up to VRING_LOOK more chains to receive into: how many were found, or -error. */
int vring_look(struct vring_queue *ring);

/* The driver sees it after vring_publish. */
static inline void vring_write_used(struct vring_used_elem *element, uint16_t head, uint32_t written) {
    __atomic_store_n(&element->id, head, __ATOMIC_RELAXED);
    __atomic_store_n(&element->len, written, __ATOMIC_RELAXED);
}

/* The driver sees all chains before `next`, and is called if it wants to be: 1 if it was, else 0. */
int vring_publish(struct vring_queue *ring);

/* Ask the driver for kicks, or tell it that none are needed. */
void vring_want_kicks(struct vring_queue *ring);
void vring_want_silence(struct vring_queue *ring);

#endif
