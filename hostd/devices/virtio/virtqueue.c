/* virtqueue.c: see virtqueue.h. */
#include "virtqueue.h"
#include "state.h"

#include <linux/virtio_ring.h>
#include <stddef.h>
#include <string.h>

static const char *const reasons[VQ_ERRORS] = {
    [VQ_OK] = "none",
    [VQ_AVAIL_INDEX] = "available index is more than the queue's size ahead",
    [VQ_HEAD] = "descriptor head is past the descriptor table",
    [VQ_NEXT] = "descriptor's next is past the descriptor table",
    [VQ_LONG] = "descriptor chain is longer than any queue, or a loop",
    [VQ_INDIRECT] = "indirect descriptor is where none may be, or its table has an impossible size",
    [VQ_ORDER] = "device-readable descriptor follows a device-writable one",
    [VQ_ADDRESS] = "descriptor's buffer is outside the guest's memory, or may not be written",
    [VQ_SIZE] = "descriptor chain has more than 4 GiB",
    [VQ_RING] = "rings are outside the guest's memory, or not aligned",
    [VQ_REQUEST] = "request has no room for its header or its answer",
};

const char *virtqueue_reason(enum virtqueue_error error) {
    return (unsigned)error < VQ_ERRORS ? reasons[error] : "unknown";
}

void virtqueue_reset(struct virtqueue *queue) {
    *queue = (struct virtqueue){
        .size = queue->max,
        .max = queue->max,
        .vector = 0xffff,
        .memory = queue->memory,
        .kicks = queue->kicks,
        .chains = queue->chains,
        .interrupts = queue->interrupts,
        .suppressed = queue->suppressed,
    };
}

/* Sizes of the three areas (2.7: "Split Virtqueues"), each with the field that EVENT_IDX puts behind it. */
static uint64_t desc_size(const struct virtqueue *queue) {
    return 16ull * queue->size;
}

static uint64_t avail_size(const struct virtqueue *queue) {
    return 6 + 2ull * queue->size;
}

static uint64_t used_size(const struct virtqueue *queue) {
    return 6 + 8ull * queue->size;
}

/* `size` bytes at `offset` of an area, or NULL. The bounds of the area are the caller's care. */
static inline void *ring_at(const struct virtqueue *queue, const struct virtqueue_area *area, uint64_t offset, uint64_t size,
                            int write) {
    if (__builtin_expect(area->hva != NULL, 1))
        return area->hva + offset;
    uint64_t gpa;
    if (__builtin_add_overflow(area->gpa, offset, &gpa))
        return NULL;
    return slot_hva(queue->memory, gpa, size, write);
}

/* 2.7: the size is a power of 2; alignments of 16, 2 and 4. */
static int possible(const struct virtqueue *queue) {
    uint16_t size = queue->size;
    return size && size <= queue->max && !(size & (size - 1)) && !(queue->desc.gpa % 16) && !(queue->avail.gpa % 2) &&
           !(queue->used.gpa % 4);
}

enum virtqueue_error virtqueue_start(struct virtqueue *queue, int indirect, int event_idx) {
    if (!possible(queue))
        return VQ_RING;
    queue->indirect = indirect != 0;
    queue->event_idx = event_idx != 0;
    queue->next_avail = queue->next_used = queue->signalled = 0;
    queue->signalled_valid = 0;
    queue->enabled = 1;
    return VQ_OK;
}

enum virtqueue_error virtqueue_state(struct virtqueue *queue, struct state *state) {
    queue->desc.hva = queue->avail.hva = queue->used.hva = NULL;
    STATE(state, queue->desc.gpa);
    STATE(state, queue->avail.gpa);
    STATE(state, queue->used.gpa);
    STATE(state, queue->size);
    STATE(state, queue->vector);
    STATE(state, queue->enabled);
    STATE(state, queue->indirect);
    STATE(state, queue->event_idx);
    STATE(state, queue->signalled_valid);
    STATE(state, queue->next_avail);
    STATE(state, queue->next_used);
    STATE(state, queue->signalled);
    if (state->saving)
        return VQ_OK;
    if (!queue->size || queue->size > queue->max || (queue->size & (queue->size - 1)) || (queue->enabled && !possible(queue))) {
        virtqueue_reset(queue);
        return VQ_RING;
    }
    queue->enabled = queue->enabled != 0;
    return VQ_OK;
}

enum virtqueue_error virtqueue_begin(struct virtqueue *queue) {
    const struct slot_rows *memory = queue->memory;
    queue->desc.hva = slot_hva(memory, queue->desc.gpa, desc_size(queue), 0);
    queue->avail.hva = slot_hva(memory, queue->avail.gpa, avail_size(queue), 0);
    queue->used.hva = slot_hva(memory, queue->used.gpa, used_size(queue), 1);
    return VQ_OK;
}

int virtqueue_pending(struct virtqueue *queue) {
    const uint16_t *index = ring_at(queue, &queue->avail, offsetof(struct vring_avail, idx), 2, 0);
    if (!index)
        return -VQ_RING;
    /* Acquire: the descriptors that the index announces are read after it (2.7.13.3). */
    uint16_t count = (uint16_t)(__atomic_load_n(index, __ATOMIC_ACQUIRE) - queue->next_avail);
    if (count > queue->size)
        return -VQ_AVAIL_INDEX;
    return count;
}

/* Reads a descriptor once. */
static int read_desc(struct vring_desc *desc, const void *from) {
    if (!from)
        return 0;
    const uint64_t *words = from;
    uint64_t both[2] = {__atomic_load_n(&words[0], __ATOMIC_RELAXED), __atomic_load_n(&words[1], __ATOMIC_RELAXED)};
    memcpy(desc, both, sizeof both);
    return 1;
}

/* Adds the guest's buffer to the chain, in as many pieces as there are rows under it. The bounds are each row's own. */
static int add_buffer(const struct virtqueue *queue, struct virtqueue_chain *chain, uint64_t gpa, uint64_t size, int write) {
    uint64_t end;
    if (__builtin_add_overflow(gpa, size, &end))
        return -VQ_ADDRESS;
    uint64_t *total = write ? &chain->in_size : &chain->out_size;
    *total += size;
    if (chain->in_size + chain->out_size > UINT32_MAX) /* 2.7.4.1: no chain is larger; so `written` fits its field. */
        return -VQ_SIZE;
    while (size) {
        const struct slot_row *row = slot_find(queue->memory, gpa);
        if (!row || (write && !row->writable))
            return -VQ_ADDRESS;
        if (chain->out_count + chain->in_count == VIRTQUEUE_PIECES)
            return -VQ_LONG;
        uint64_t offset = gpa - row->gpa, part = row->size - offset;
        if (part > size)
            part = size;
        chain->pieces[chain->out_count + chain->in_count] = (struct iovec){row->hva + offset, part};
        if (write)
            chain->in_count++;
        else
            chain->out_count++;
        gpa += part;
        size -= part;
    }
    return 0;
}

int virtqueue_pop(struct virtqueue *queue, struct virtqueue_chain *chain) {
    int pending = virtqueue_pending(queue);
    if (pending <= 0)
        return pending;
    uint64_t slot = queue->next_avail & (queue->size - 1u);
    const uint16_t *entry = ring_at(queue, &queue->avail, offsetof(struct vring_avail, ring) + 2 * slot, 2, 0);
    if (!entry)
        return -VQ_RING;
    uint16_t head = __atomic_load_n(entry, __ATOMIC_RELAXED);
    if (head >= queue->size)
        return -VQ_HEAD;
    chain->head = head;
    chain->out_count = chain->in_count = 0;
    chain->out_size = chain->in_size = 0;

    struct virtqueue_area indirect, *table = &queue->desc;
    uint32_t table_size = queue->size, index = head, links = 0;
    int writing = 0;
    struct vring_desc desc;
    for (;;) {
        if (links++ == VIRTQUEUE_MAX)
            return -VQ_LONG;
        if (!read_desc(&desc, ring_at(queue, table, 16ull * index, 16, 0)))
            return table == &queue->desc ? -VQ_RING : -VQ_ADDRESS;
        if (desc.flags & VRING_DESC_F_INDIRECT) {
            /* 2.7.5.3: not nested, not with NEXT, a whole number of descriptors; read-only whatever WRITE says. */
            if (!queue->indirect || table != &queue->desc || (desc.flags & VRING_DESC_F_NEXT) || !desc.len ||
                desc.len % 16 || desc.len / 16 > 0x10000)
                return -VQ_INDIRECT;
            indirect = (struct virtqueue_area){desc.addr, slot_hva(queue->memory, desc.addr, desc.len, 0)};
            if (desc.addr % 8) /* Our 8-byte loads; the specification asks for no alignment, drivers have 16. */
                return -VQ_INDIRECT;
            table = &indirect;
            table_size = desc.len / 16;
            index = 0;
            links--; /* The pointer itself is no buffer. */
            continue;
        }
        int write = (desc.flags & VRING_DESC_F_WRITE) != 0;
        if (writing && !write)
            return -VQ_ORDER;
        writing = write;
        int error = add_buffer(queue, chain, desc.addr, desc.len, write);
        if (error)
            return error;
        if (!(desc.flags & VRING_DESC_F_NEXT))
            break;
        if (desc.next >= table_size)
            return -VQ_NEXT;
        index = desc.next;
    }
    queue->next_avail++;
    queue->chains++;
    return 1;
}

void virtqueue_unpop(struct virtqueue *queue) {
    queue->next_avail--;
    queue->chains--;
}

int virtqueue_push(struct virtqueue *queue, uint16_t head, uint32_t written) {
    uint64_t slot = queue->next_used & (queue->size - 1u);
    uint64_t offset = offsetof(struct vring_used, ring) + 8 * slot;
    /* An element is aligned to 4 only, so its halves may lie in two rows. */
    uint32_t *id = ring_at(queue, &queue->used, offset, 4, 1);
    uint32_t *size = ring_at(queue, &queue->used, offset + 4, 4, 1);
    uint16_t *index = ring_at(queue, &queue->used, offsetof(struct vring_used, idx), 2, 1);
    if (!id || !size || !index)
        return -VQ_RING;
    __atomic_store_n(id, head, __ATOMIC_RELAXED);
    __atomic_store_n(size, written, __ATOMIC_RELAXED);
    queue->next_used++;
    /* Release: the buffers and the element are there before the index that announces them (2.7.8.2). */
    __atomic_store_n(index, queue->next_used, __ATOMIC_RELEASE);
    return 0;
}

int virtqueue_rearm(struct virtqueue *queue) {
    if (queue->event_idx) {
        /* avail_event lies behind the used ring (2.7.10). */
        uint16_t *event =
            ring_at(queue, &queue->used, offsetof(struct vring_used, ring) + 8ull * queue->size, 2, 1);
        if (!event)
            return -VQ_RING;
        __atomic_store_n(event, queue->next_avail, __ATOMIC_RELAXED);
    }
    /* The driver writes its index, then reads our wish; we write the wish, then read the index: one sees the other. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return virtqueue_pending(queue);
}

int virtqueue_signal(struct virtqueue *queue) {
    uint16_t now = queue->next_used, before = queue->signalled;
    int valid = queue->signalled_valid;
    if (valid && now == before)
        return 0;
    queue->signalled = now;
    queue->signalled_valid = 1;
    if (!valid && now == 0 && before == 0)
        return 0; /* Nothing was ever pushed. */
    uint64_t offset = queue->event_idx ? offsetof(struct vring_avail, ring) + 2ull * queue->size
                                       : offsetof(struct vring_avail, flags);
    const uint16_t *wish = ring_at(queue, &queue->avail, offset, 2, 0);
    if (!wish)
        return -VQ_RING;
    /* As in virtqueue_rearm, the other way round. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    uint16_t value = __atomic_load_n(wish, __ATOMIC_RELAXED);
    int wanted = queue->event_idx ? !valid || vring_need_event(value, now, before) /* 2.7.7.2 */
                                  : !(value & VRING_AVAIL_F_NO_INTERRUPT);
    if (wanted)
        queue->interrupts++;
    else
        queue->suppressed++;
    return wanted;
}

uint32_t chain_slice(const struct virtqueue_chain *chain, int in, uint64_t offset, uint64_t size,
                     struct iovec to[VIRTQUEUE_PIECES]) {
    const struct iovec *pieces = chain->pieces + (in ? chain->out_count : 0);
    uint32_t count = in ? chain->in_count : chain->out_count, filled = 0;
    for (uint32_t i = 0; i < count && size; i++) {
        uint64_t length = pieces[i].iov_len;
        if (offset >= length) {
            offset -= length;
            continue;
        }
        length -= offset;
        if (length > size)
            length = size;
        to[filled++] = (struct iovec){(uint8_t *)pieces[i].iov_base + offset, length};
        size -= length;
        offset = 0;
    }
    return filled;
}

/* Moves bytes between `data` and the pieces; the guest may change its side meanwhile, which is its own affair. */
static uint64_t chain_copy(const struct virtqueue_chain *chain, int in, uint64_t offset, uint8_t *data, uint64_t size) {
    const struct iovec *pieces = chain->pieces + (in ? chain->out_count : 0);
    uint32_t count = in ? chain->in_count : chain->out_count;
    uint64_t done = 0;
    for (uint32_t i = 0; i < count && done < size; i++) {
        uint64_t length = pieces[i].iov_len;
        if (offset >= length) {
            offset -= length;
            continue;
        }
        uint8_t *guest = (uint8_t *)pieces[i].iov_base + offset;
        length -= offset;
        if (length > size - done)
            length = size - done;
        if (in)
            memcpy(guest, data + done, length);
        else
            memcpy(data + done, guest, length);
        done += length;
        offset = 0;
    }
    return done;
}

uint64_t chain_read(const struct virtqueue_chain *chain, uint64_t offset, void *to, uint64_t size) {
    return chain_copy(chain, 0, offset, to, size);
}

uint64_t chain_write(const struct virtqueue_chain *chain, uint64_t offset, const void *from, uint64_t size) {
    return chain_copy(chain, 1, offset, (uint8_t *)from, size); /* Only read from: `in` is set. */
}
