/* vhost_frames.c: see vhost_frames.h. */
#include "vhost_frames.h"

#include <emmintrin.h>
#include <stddef.h>
#include <string.h>

/* How far ahead of the chain that is filled the memory of others is fetched. */
enum { FETCH_AHEAD = 6 };

/*
 * The first two lines of a chain that was looked at: fetched for writing, in one go. A no-op where a processor can't.
 */
static inline void prefetch_buffer(const struct vring_queue *ring, uint16_t index) {
    uintptr_t at = (uintptr_t)ring->ahead[index & (VRING_AHEAD - 1)].hva;
    __asm__ volatile("prefetchw (%0); prefetchw 64(%0)" : : "r"(at));
}

/* Short copies without a call; the source may be changing. */
static inline void copy_bytes(uint8_t *to, const uint8_t *from, uint32_t size) {
    if (size > 512) {
        memcpy(to, from, size);
        return;
    }
    if (VRING_LIKELY(size >= 16)) {
        for (uint32_t at = 0; at + 16 < size; at += 16)
            _mm_storeu_si128((__m128i *)(to + at), _mm_loadu_si128((const __m128i *)(from + at)));
        _mm_storeu_si128((__m128i *)(to + size - 16), _mm_loadu_si128((const __m128i *)(from + size - 16)));
        return;
    }
    for (uint32_t at = 0; at < size; at++)
        to[at] = from[at];
}

/* --- out of a transmit queue --- */

/* Copies what the pieces hold to the bounce buffer: the frame is one piece then. */
static void bounce(struct frame *frame, uint8_t *to) {
    uint32_t size = 0;
    for (int i = 0; i < frame->piece_count; i++) {
        memcpy(to + size, frame->pieces[i].iov_base, frame->pieces[i].iov_len);
        size += (uint32_t)frame->pieces[i].iov_len;
    }
    frame->pieces[0] = (struct iovec){to, size};
    frame->piece_count = 1;
}

enum { TAKE_LATER = DROPS }; /* The bounce buffer is in use: not in this batch. */

/* Adds a piece of a chain to the frame: DROP_NONE, DROP_OVERSIZE or TAKE_LATER. */
static int add_piece(struct frame *frame, const struct iovec *piece, struct frames_context *context, uint8_t *own) {
    if (piece->iov_len > FRAME_MAX - frame->size)
        return DROP_OVERSIZE;
    if (*own) {
        memcpy(context->bounce + frame->size, piece->iov_base, piece->iov_len);
        frame->pieces[0].iov_len += piece->iov_len;
    } else if (frame->piece_count < FRAME_PIECES) {
        frame->pieces[frame->piece_count++] = *piece;
    } else {
        if (context->bounced)
            return TAKE_LATER;
        context->bounced = *own = 1;
        bounce(frame, context->bounce);
        memcpy(context->bounce + frame->size, piece->iov_base, piece->iov_len);
        frame->pieces[0].iov_len += piece->iov_len;
    }
    frame->size += (uint32_t)piece->iov_len;
    return DROP_NONE;
}

/* The frame's first bytes, read once. The frame has them. */
static void read_ethernet(struct frame *frame) {
    uint32_t have = 0;
    for (int i = 0; have < FRAME_HEADER; i++) {
        uint32_t size =
            frame->pieces[i].iov_len < FRAME_HEADER - have ? (uint32_t)frame->pieces[i].iov_len : FRAME_HEADER - have;
        memcpy(frame->ethernet + have, frame->pieces[i].iov_base, size);
        have += size;
    }
}

/* A chain of any shape: DROP_NONE, why it is no frame, TAKE_LATER, or -error. */
static int take_chain(struct vring_queue *ring, uint16_t head, struct frame *frame, struct frames_context *context,
                      uint32_t *work) {
    struct vring_walk walk;
    struct iovec piece;
    uint8_t header[sizeof frame->offload] = {0}, own = 0;
    uint32_t read = 0;
    int more = vring_walk(ring, &walk, head, 0);
    if (more)
        return more;
    frame->size = 0;
    frame->piece_count = 0;
    while ((more = vring_walk_next(ring, &walk, &piece, work)) > 0) {
        if (read < ring->header) {
            uint32_t size = piece.iov_len < ring->header - read ? (uint32_t)piece.iov_len : ring->header - read;
            memcpy(header + read, piece.iov_base, size);
            read += size;
            piece.iov_base = (uint8_t *)piece.iov_base + size;
            piece.iov_len -= size;
            if (!piece.iov_len)
                continue;
        }
        int reason = add_piece(frame, &piece, context, &own);
        if (reason)
            return reason; /* What follows of the chain may be anything: nobody looks. */
    }
    if (more)
        return more;
    if (frame->size < FRAME_HEADER)
        return DROP_RUNT;
    memcpy(&frame->offload, header, sizeof frame->offload);
    read_ethernet(frame);
    return DROP_NONE;
}

/*
 * Three times through the batch, so that the misses of one chain pass while others are looked at: heads; descriptors;
 * headers. A chain of one buffer in one region is known by its frame's piece; one of another shape (piece_count 0) is
 * walked through.
 */
int frames_take(struct vring_queue *ring, struct frame *frames, int room, struct frames_context *context) {
    int count = vring_available(ring, ring->next);
    if (count <= 0)
        return count;
    if (count > room)
        count = room;
    if (count > FRAME_BATCH)
        count = FRAME_BATCH;
    const struct vring_desc *table = ring->desc;
    const uint32_t header = ring->header, least = header + FRAME_HEADER;
    for (int i = 0; i < count; i++) {
        uint16_t head = vring_head(ring, (uint16_t)(ring->next + i));
        if (VRING_UNLIKELY(head > ring->mask)) {
            ring->field = "head of a chain";
            return -PORT_E_QUEUE;
        }
        ring->heads[i] = head;
        __builtin_prefetch(&table[head]);
    }
    for (int i = 0; i < count; i++) {
        struct vring_desc desc = vring_read(&table[ring->heads[i]]);
        struct frame *frame = &frames[i];
        uint8_t *at = NULL;
        if (VRING_LIKELY(!(desc.flags & (VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT | VRING_DESC_F_WRITE)) &&
                         desc.len >= least))
            at = vhost_memory_hva(ring->memory, &ring->region, desc.addr, desc.len);
        frame->piece_count = at != NULL;
        frame->pieces[0] = (struct iovec){at, desc.len};
        if (VRING_LIKELY(at)) {
            __builtin_prefetch(at);
            __builtin_prefetch(at + 64);
        }
    }
    int kept = 0;
    uint32_t work = 0;
    struct port *port = context->port;
    for (int i = 0; i < count; i++) {
        struct frame *frame = &frames[kept];
        int reason = DROP_NONE;
        if (VRING_LIKELY(frames[i].piece_count)) {
            uint8_t *at = frames[i].pieces[0].iov_base;
            uint64_t size = frames[i].pieces[0].iov_len - header;
            if (VRING_LIKELY(header == sizeof frame->offload)) {
                memcpy(&frame->offload, at, sizeof frame->offload);
            } else {
                memcpy(&frame->offload, at, sizeof(struct virtio_net_hdr));
                frame->offload.num_buffers = 0;
            }
            memcpy(frame->ethernet, at + header, FRAME_HEADER);
            frame->piece_count = 1;
            frame->pieces[0] = (struct iovec){at + header, size};
            frame->size = (uint32_t)size;
        } else {
            if (work > VRING_WALK) { /* Enough of long chains for once. */
                count = i;
                break;
            }
            reason = take_chain(ring, ring->heads[i], frame, context, &work);
            if (VRING_UNLIKELY(reason < 0))
                return reason;
            if (VRING_UNLIKELY(reason == TAKE_LATER)) {
                count = i;
                break;
            }
        }
        if (VRING_LIKELY(reason == DROP_NONE))
            reason = port_check(port, frame, frame->offload.flags | frame->offload.gso_type);
        if (VRING_LIKELY(reason == DROP_NONE))
            kept++;
        else
            port_drop(port, (enum drop)reason);
    }
    ring->held = (uint16_t)count;
    return kept;
}

int frames_release(struct vring_queue *ring) {
    struct vring_used_elem *used = ring->used->ring;
    const uint16_t mask = ring->mask, next = ring->next, held = ring->held;
    for (uint16_t i = 0; i < held; i++)
        vring_write_used(&used[(uint16_t)(next + i) & mask], ring->heads[i], 0);
    ring->next = (uint16_t)(next + held);
    ring->held = 0;
    return vring_publish(ring);
}

/* --- into a receive queue --- */

/* Where in a frame with its virtio-net header before it we are, on the way into chains. */
struct source {
    const struct frame *frame;
    uint8_t front[sizeof(struct virtio_net_hdr_v1) + FRAME_HEADER]; /* what was checked, from our own copy */
    uint32_t front_size, at;                                        /* at: of the front, then of the frame */
    int piece;
    uint64_t piece_at;
};

static void source_copy(struct source *source, uint8_t *to, uint64_t size) {
    while (size) {
        if (source->at < source->front_size) {
            uint64_t part = source->front_size - source->at;
            part = part < size ? part : size;
            memcpy(to, source->front + source->at, part);
            source->at += (uint32_t)part;
            to += part, size -= part;
            continue;
        }
        const struct iovec *piece = &source->frame->pieces[source->piece];
        if (source->piece_at >= piece->iov_len) {
            source->piece_at -= piece->iov_len;
            source->piece++;
            continue;
        }
        uint64_t part = piece->iov_len - source->piece_at;
        part = part < size ? part : size;
        memcpy(to, (const uint8_t *)piece->iov_base + source->piece_at, part);
        source->piece_at += part;
        to += part, size -= part;
    }
}

/* Writes up to `size` bytes into one chain: how many, or -error. */
static int64_t fill_chain(struct vring_queue *ring, const struct vring_buffer *buffer, struct source *source,
                          uint64_t size) {
    if (size > buffer->size)
        size = buffer->size;
    if (buffer->hva) {
        source_copy(source, buffer->hva, size);
        return (int64_t)size;
    }
    struct vring_walk walk;
    struct iovec piece;
    uint64_t left = size;
    uint32_t work = 0;
    int more = vring_walk(ring, &walk, buffer->head, 1);
    while (!more && left) {
        int found = vring_walk_next(ring, &walk, &piece, &work);
        if (found <= 0) { /* It was longer when it was measured. */
            ring->field = found ? ring->field : "chain that got shorter";
            return found ? found : -PORT_E_QUEUE;
        }
        uint64_t part = piece.iov_len < left ? piece.iov_len : left;
        source_copy(source, piece.iov_base, part);
        left -= part;
    }
    return more ? more : (int64_t)size;
}

/* A frame in several pieces, or for several chains. `total` is more than nothing. */
static int give_chains(struct vring_queue *ring, const struct frame *frame, int mergeable) {
    uint64_t total = (uint64_t)ring->header + frame->size, room = 0;
    uint16_t chains = 0;
    while (room < total) {
        if (chains && !mergeable)
            return DROP_UNFIT;
        if ((uint16_t)(ring->next + chains) ==
            ring->looked) { /* After VRING_AHEAD chains there is no room to look, either. */
            int found = vring_look(ring);
            if (found <= 0)
                return found ? found : DROP_FULL;
        }
        room += ring->ahead[(uint16_t)(ring->next + chains) & (VRING_AHEAD - 1)].size;
        chains++;
    }
    struct source source = {
        .frame = frame, .front_size = (uint32_t)ring->header + FRAME_HEADER, .piece_at = FRAME_HEADER};
    struct virtio_net_hdr_v1 header = frame->offload;
    header.num_buffers = chains;
    memcpy(source.front, &header, ring->header);
    memcpy(source.front + ring->header, frame->ethernet, FRAME_HEADER);
    for (uint16_t i = 0; i < chains; i++) {
        const struct vring_buffer *buffer = &ring->ahead[(uint16_t)(ring->next + i) & (VRING_AHEAD - 1)];
        int64_t written = fill_chain(ring, buffer, &source, total);
        if (written < 0)
            return (int)written;
        vring_write_used(&ring->used->ring[(uint16_t)(ring->next + i) & ring->mask], buffer->head, (uint32_t)written);
        total -= (uint64_t)written;
    }
    ring->next = (uint16_t)(ring->next + chains);
    return 0;
}

/* Fetches the buffers that are written first; each frame fetches one further on. */
static int look(struct vring_queue *ring) {
    int found = vring_look(ring);
    for (int i = 0; i < found && i < FETCH_AHEAD; i++)
        prefetch_buffer(ring, (uint16_t)(ring->next + i));
    return found;
}

/*
 * Frames in one piece into one buffer each: how many, up to the first that is no such. What the loop needs of the queue
 * is in variables: to the compiler each store to a buffer might be one to the queue.
 */
static int give_plain(struct vring_queue *ring, const struct frame *frames, int count) {
    struct vring_used_elem *used = ring->used->ring;
    const uint32_t header = ring->header;
    const uint16_t mask = ring->mask, looked = ring->looked;
    uint16_t next = ring->next;
    int given = 0;
    for (; given < count && next != looked; given++, next++) {
        const struct frame *frame = &frames[given];
        const struct vring_buffer *buffer = &ring->ahead[next & (VRING_AHEAD - 1)];
        uint8_t *to = buffer->hva;
        const uint32_t size = frame->size;
        if (VRING_UNLIKELY(!to || frame->piece_count != 1 || buffer->size < header + size))
            break;
        if ((uint16_t)(looked - next) > FETCH_AHEAD)
            prefetch_buffer(ring, (uint16_t)(next + FETCH_AHEAD));
        const uint16_t head = buffer->head;
        const uint8_t *from = frame->pieces[0].iov_base;
        struct virtio_net_hdr_v1 offload = frame->offload;
        offload.num_buffers = 1;
        if (VRING_LIKELY(header == sizeof offload))
            memcpy(to, &offload, sizeof offload);
        else
            memcpy(to, &offload, sizeof(struct virtio_net_hdr));
        memcpy(to + header, frame->ethernet, FRAME_HEADER);
        copy_bytes(to + header + FRAME_HEADER, from + FRAME_HEADER, size - FRAME_HEADER);
        vring_write_used(&used[next & mask], head, header + size);
    }
    ring->next = next;
    return given;
}

int frames_give(struct vring_queue *ring, const struct frame *frames, int count, int mergeable, int *result) {
    int given = 0;
    *result = 0;
    while (given < count) {
        if (ring->next == ring->looked) {
            int found = look(ring);
            if (found <= 0) {
                *result = found ? found : DROP_FULL;
                break;
            }
        }
        given += give_plain(ring, frames + given, count - given);
        if (given == count || ring->next == ring->looked)
            continue;
        *result = give_chains(ring, &frames[given], mergeable);
        if (*result)
            break;
        given++;
    }
    return given;
}
