/* vring.c: see vring.h. */
#include "vring.h"

#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

static void give_back(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void vring_reset(struct vring_queue *ring) {
    give_back(&ring->setup.kick);
    give_back(&ring->setup.call);
    give_back(&ring->setup.err);
    ring->setup = (struct vring_setup){.kick = -1, .call = -1, .err = -1};
    ring->desc = NULL;
    ring->held = 0;
    ring->field = NULL;
}

int vring_update(struct vring_queue *ring, const struct vhost_memory *memory, uint64_t features) {
    const struct vring_setup *setup = &ring->setup;
    int was_live = vring_live(ring);
    ring->desc = NULL;
    if (!setup->size || !setup->addressed || !setup->kicked)
        return 0;
    uint32_t size = setup->size, event = features >> VIRTIO_RING_F_EVENT_IDX & 1 ? 2 : 0;
    if (size & (size - 1) || setup->desc % 16 || setup->avail % 2 || setup->used % 4) {
        ring->field = "alignment or size of a queue";
        return -PORT_E_PROTOCOL;
    }
    /* The areas of a queue (2.7), with the field that EVENT_IDX puts behind two of them. */
    void *desc = vhost_memory_user(memory, setup->desc, 16ull * size);
    void *avail = vhost_memory_user(memory, setup->avail, 4 + 2ull * size + event);
    void *used = vhost_memory_user(memory, setup->used, 4 + 8ull * size + event);
    if (!desc || !avail || !used)
        return 0; /* Its memory may come later. */
    /* An aligned address of the front end is one here, too, unless the region was given an odd offset. */
    if ((uintptr_t)desc % 16 || (uintptr_t)avail % 2 || (uintptr_t)used % 4) {
        ring->field = "alignment of a queue in its file";
        return -PORT_E_PROTOCOL;
    }
    ring->desc = desc;
    ring->avail = avail;
    ring->used = used;
    ring->memory = memory;
    ring->region = 0;
    ring->mask = (uint16_t)(size - 1);
    ring->event_idx = event != 0;
    ring->indirect = features >> VIRTIO_RING_F_INDIRECT_DESC & 1;
    ring->header = features & (1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_NET_F_MRG_RXBUF) ? 12 : 10;
    ring->call = setup->call;
    ring->quiet = 0;
    if (!was_live) {
        ring->next = ring->published = ring->signalled = __atomic_load_n(&ring->used->idx, __ATOMIC_ACQUIRE);
        ring->call_always = 1; /* The call for what was used last may have been lost with who should have made it. */
    }
    ring->looked = ring->next; /* What was looked at may be elsewhere now. */
    vring_want_silence(ring);
    vring_publish(ring);
    return 0;
}

uint16_t vring_stop(struct vring_queue *ring) {
    uint16_t base = vring_live(ring) ? ring->next : ring->setup.base;
    ring->desc = NULL;
    ring->setup.base = base;
    ring->setup.kicked = 0;
    give_back(&ring->setup.kick);
    return base;
}

int vring_walk(struct vring_queue *ring, struct vring_walk *walk, uint16_t head, int write) {
    if (VRING_UNLIKELY(head > ring->mask)) {
        ring->field = "head of a chain";
        return -PORT_E_QUEUE;
    }
    *walk = (struct vring_walk){
        .table = (const uint8_t *)ring->desc,
        .entries = ring->mask + 1u,
        .index = head,
        .left = ring->mask + 1u, /* 2.7.4.2: no chain is longer than the queue, so this is where a loop ends. */
        .write = write != 0,
        .first = 1,
    };
    return 0;
}

/* The chain goes on in an indirect table: 2.7.5.3: a whole number of descriptors; not nested; not with NEXT. */
static int enter_indirect(struct vring_queue *ring, struct vring_walk *walk, const struct vring_desc *desc) {
    ring->field = "indirect descriptor";
    if (!ring->indirect || !walk->first || desc->flags & VRING_DESC_F_NEXT || !desc->len || desc->len % 16)
        return -PORT_E_QUEUE;
    walk->table = vhost_memory_hva(ring->memory, &ring->region, desc->addr, desc->len);
    if (!walk->table)
        return -PORT_E_ADDRESS;
    walk->entries = desc->len / 16;
    walk->index = 0;
    walk->left = VRING_CHAIN;
    walk->first = 0;
    return 0;
}

/* Goes to the next buffer: 1, 0 at the chain's end, or -error. */
static int next_buffer(struct vring_queue *ring, struct vring_walk *walk, uint32_t *work) {
    for (;;) {
        if (walk->last)
            return 0;
        ++*work;
        if (VRING_UNLIKELY(!walk->left--)) {
            ring->field = "chain longer than its queue, or a loop";
            return -PORT_E_QUEUE;
        }
        struct vring_desc desc = vring_read(walk->table + 16ull * walk->index);
        if (desc.flags & VRING_DESC_F_INDIRECT) {
            int error = enter_indirect(ring, walk, &desc);
            if (error)
                return error;
            continue;
        }
        walk->first = 0;
        if (VRING_UNLIKELY(((desc.flags & VRING_DESC_F_WRITE) != 0) != walk->write)) {
            ring->field =
                walk->write ? "descriptor to read in a receive queue" : "descriptor to write in a transmit queue";
            return -PORT_E_QUEUE;
        }
        if (VRING_UNLIKELY(!desc.len)) {
            ring->field = "descriptor of no length";
            return -PORT_E_QUEUE;
        }
        if (desc.flags & VRING_DESC_F_NEXT) {
            if (VRING_UNLIKELY(desc.next >= walk->entries)) {
                ring->field = "descriptor's next";
                return -PORT_E_QUEUE;
            }
            walk->index = desc.next;
        } else {
            walk->last = 1;
        }
        walk->gpa = desc.addr;
        walk->size = desc.len;
        return 1;
    }
}

int vring_walk_next(struct vring_queue *ring, struct vring_walk *walk, struct iovec *piece, uint32_t *work) {
    if (!walk->size) {
        int more = next_buffer(ring, walk, work);
        if (more <= 0)
            return more;
    }
    /* A buffer may go on in the next region; what there is of it in this one is a piece. */
    uint32_t number = vhost_memory_find(ring->memory, walk->gpa);
    if (VRING_UNLIKELY(number == ring->memory->count)) {
        ring->field = "descriptor's address";
        return -PORT_E_ADDRESS;
    }
    const struct vhost_region *region = &ring->memory->regions[number];
    uint64_t offset = walk->gpa - region->gpa, room = region->size - offset;
    uint32_t size = walk->size < room ? walk->size : (uint32_t)room;
    *piece = (struct iovec){region->hva + offset, size};
    walk->gpa += size; /* May wrap to 0 behind the last region: then it is found there, or not. */
    walk->size -= size;
    return 1;
}

/* Adds up a chain that is not one buffer in one region. Walked through again when it is used, for its driver may change
 * it. */
static int measure(struct vring_queue *ring, struct vring_buffer *buffer, uint32_t *work) {
    struct vring_walk walk;
    struct iovec piece;
    uint64_t size = 0;
    int more = vring_walk(ring, &walk, buffer->head, 1);
    if (more)
        return more;
    while ((more = vring_walk_next(ring, &walk, &piece, work)) > 0)
        size += piece.iov_len;
    buffer->hva = NULL;
    buffer->size = size < UINT32_MAX ? (uint32_t)size : UINT32_MAX;
    return more;
}

int vring_look(struct vring_queue *ring) {
    uint16_t room = (uint16_t)(VRING_AHEAD - (uint16_t)(ring->looked - ring->next));
    int count = vring_available(ring, ring->looked);
    if (count <= 0)
        return count;
    if (count > room)
        count = room;
    if (count > VRING_LOOK)
        count = VRING_LOOK;
    for (int i = 0; i < count; i++) {
        uint16_t at = (uint16_t)(ring->looked + i), head = vring_head(ring, at);
        if (VRING_UNLIKELY(head > ring->mask)) {
            ring->field = "head of a chain";
            return -PORT_E_QUEUE;
        }
        ring->ahead[at & (VRING_AHEAD - 1)].head = head;
        __builtin_prefetch(&ring->desc[head]);
    }
    uint32_t work = 0;
    for (int i = 0; i < count; i++) {
        struct vring_buffer *buffer = &ring->ahead[(uint16_t)(ring->looked + i) & (VRING_AHEAD - 1)];
        struct vring_desc desc = vring_read(&ring->desc[buffer->head]);
        buffer->hva = NULL;
        if (VRING_LIKELY(desc.flags == VRING_DESC_F_WRITE && desc.len)) {
            buffer->size = desc.len;
            buffer->hva = vhost_memory_hva(ring->memory, &ring->region, desc.addr, desc.len);
        }
        if (VRING_UNLIKELY(!buffer->hva)) {
            int error = measure(ring, buffer, &work);
            if (error)
                return error;
            if (work > VRING_WALK)
                count = i + 1;
        }
        if (VRING_UNLIKELY(buffer->size < ring->header)) {
            ring->field = "receive buffer smaller than its header";
            return -PORT_E_QUEUE;
        }
    }
    ring->looked = (uint16_t)(ring->looked + count);
    return count;
}

/* Does the driver want a call for what was used since the last one? (2.7.7.2, 2.7.10) */
static int wants_call(struct vring_queue *ring) {
    uint16_t now = ring->next, before = ring->signalled;
    ring->signalled = now;
    if (ring->call_always) {
        ring->call_always = 0;
        return 1;
    }
    if (!ring->event_idx)
        return !(__atomic_load_n(&ring->avail->flags, __ATOMIC_RELAXED) & VRING_AVAIL_F_NO_INTERRUPT);
    uint16_t event = __atomic_load_n(&ring->avail->ring[ring->mask + 1u], __ATOMIC_RELAXED);
    return (uint16_t)(now - event - 1) < (uint16_t)(now - before);
}

int vring_publish(struct vring_queue *ring) {
    if (ring->published == ring->next && !ring->call_always)
        return 0;
    /* Release: buffers and elements are there before the index that announces them. */
    __atomic_store_n(&ring->used->idx, ring->next, __ATOMIC_RELEASE);
    ring->published = ring->next;
    /* The driver writes its wish, then looks at the index; we write the index, then look at the wish: one sees the
     * other. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!wants_call(ring) || ring->call < 0)
        return 0;
    uint64_t one = 1;
    return write(ring->call, &one, sizeof one) > 0; /* Full: it is readable as it is. */
}

static void set_flags(struct vring_queue *ring, uint16_t flags) {
    __atomic_store_n(&ring->used->flags, flags, __ATOMIC_RELAXED);
}

/* avail_event lies behind the used ring (2.7.10). */
static void set_event(struct vring_queue *ring, uint16_t index) {
    typedef uint16_t __attribute__((may_alias)) event;
    __atomic_store_n((event *)&ring->used->ring[ring->mask + 1u], index, __ATOMIC_RELAXED);
}

void vring_want_kicks(struct vring_queue *ring) {
    ring->quiet = 0;
    if (ring->event_idx)
        set_event(ring, ring->next);
    else
        set_flags(ring, 0);
}

void vring_want_silence(struct vring_queue *ring) {
    if (ring->quiet)
        return;
    ring->quiet = 1;
    /* With EVENT_IDX the flag must be 0 (2.7.10.1), and an event that is past is not met for 65,535 chains. */
    if (ring->event_idx)
        set_event(ring, (uint16_t)(ring->next - 1));
    set_flags(ring, ring->event_idx ? 0 : VRING_USED_F_NO_NOTIFY);
}
