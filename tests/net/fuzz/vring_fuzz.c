/*
 * vring_fuzz.c: random rings, descriptors and indices under a vhost-user port, which takes, gives and publishes all the
 * time.
 *
 * A case sets queues up as a driver does, then goes wrong step by step; in the end another driver comes and its frames
 * have to arrive. With `race` another processor of the guest writes to rings and buffers all the time.
 */
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vhost_bench.h"

enum { STEPS = 40, GET_VRING_BASE = 11, SET_VRING_KICK = 12, SET_VRING_ENABLE = 18, REM_MEM_REG = 38 };

static uint64_t taken, given, broken, missed, proven; /* so that a fuzzer that reaches nothing is seen */
static int race;
static struct driver driver;
static struct frame frames[FRAME_BATCH];
static volatile uint64_t sink;

static struct driver_queue *some_queue(int receive) {
    return &driver.queues[2 * below(driver.pairs) + !receive];
}

/* A descriptor of an indirect table leads elsewhere, or to the table itself. */
static void spoil_table(uint64_t table, uint32_t count) {
    uint64_t at = table + 16 * below(count);
    struct vring_desc desc;
    peek(at, &desc, sizeof desc);
    if (below(2))
        desc.next = (uint16_t)(below(2) ? below(2 * count) : nasty(count)), desc.flags |= VRING_DESC_F_NEXT;
    else
        desc = (struct vring_desc){table, 16 * count, VRING_DESC_F_INDIRECT, 0};
    poke(at, &desc, sizeof desc);
}

/* A chain, perhaps with something wrong. */
static void post(void) {
    struct segment segments[SEGMENTS];
    int receive = (int)below(2);
    struct driver_queue *queue = some_queue(receive);
    if ((uint16_t)(queue->next_avail - driver_index(queue)) >= queue->size && below(64))
        return; /* It is full. */
    uint32_t count = 1 + (uint32_t)(below(2) ? 0 : below(below(4) ? 5 : SEGMENTS - 1));
    for (uint32_t i = 0; i < count; i++) {
        uint32_t size = (receive ? 12 : 1) + (uint32_t)below(below(2) ? 80 : 1600);
        segments[i] = (struct segment){driver_room(&driver, size), size};
    }
    if (!receive && below(4)) { /* A header that may be believed. */
        struct virtio_net_hdr_v1 header = {.flags = below(4) ? 0 : (uint8_t)below(4),
                                           .gso_type = below(4) ? 0 : (uint8_t)below(8)};
        header.gso_size = (uint16_t)nasty(1448), header.csum_start = (uint16_t)nasty(34),
        header.csum_offset = (uint16_t)nasty(16);
        poke(segments[0].gpa, &header, sizeof header);
    }
    for (uint64_t times = below(12) ? 0 : 1 + below(3); times--;) {
        struct segment *segment = &segments[below(count)];
        switch (below(4)) {
        case 0:
            segment->gpa = some_address();
            break;
        case 1:
            segment->size = (uint32_t)nasty(segment->size);
            break;
        case 2:
            receive = !receive;
            break;
        default:
            segments[below(count)] = segments[below(count)];
        }
    }
    int indirect = driver.features >> VIRTIO_RING_F_INDIRECT_DESC & 1 ? !below(3) || count > queue->size : !below(64);
    const struct guest_region *region = &guest_regions[2];
    uint64_t table = below(4) ? region->gpa + 16 * below(2000) : region->gpa + region->size - 16 * count;
    if (!below(16))
        table = some_address();
    driver_post(queue, segments, count, receive, indirect, table);
    if (indirect && !below(12))
        spoil_table(table, count);
}

/* The guest writes where the rings are: a descriptor, an index, a flag, any byte. */
static void scribble(void) {
    struct driver_queue *queue = some_queue((int)below(2));
    uint64_t value = nasty(queue->size), desc = queue->desc + 16 * below(queue->size);
    uint16_t mask = queue->size - 1;
    switch (below(8)) {
    case 0:
        value = some_address();
        poke(desc, &value, 8);
        break;
    case 1:
        poke(desc + 8, &value, 4);
        break;
    case 2:
        value &= 7;
        poke(desc + 12, &value, 2);
        break;
    case 3:
        poke(desc + 14, &value, 2);
        break;
    case 4:
        poke(queue->avail + 2 * below(queue->size + 3u), &value, 2);
        break;
    case 5: /* the used ring is the device's, but who says so? */
        poke(queue->used + 2 * below(4 * queue->size + 3u), &value, 2);
        break;
    case 6: { /* a loop */
        struct vring_desc loop = {some_address(), 1 + (uint32_t)below(64), VRING_DESC_F_NEXT, 0};
        loop.flags |= queue->index % 2 ? 0 : VRING_DESC_F_WRITE;
        for (uint32_t i = 0; i < queue->size; i++) {
            loop.next = (uint16_t)((i + 1) & mask);
            poke(queue->desc + 16ull * i, &loop, sizeof loop);
        }
        uint16_t next = (uint16_t)(queue->next_avail + 1);
        poke(queue->avail + 2, &next, 2);
        break;
    }
    default:
        poke(some_address(), &value, 1 + below(8));
    }
}

static uint8_t bytes[FRAME_MAX];

/* Sends a frame with these bytes, in other pieces, to the port: 1, or 0 if the port broke. */
static int send_bytes(const struct frame *like) {
    struct frame frame = *like;
    uint32_t at = 0;
    frame.piece_count = 0;
    while (at < frame.size) {
        uint32_t left = frame.size - at;
        uint32_t part = frame.piece_count + 1 == FRAME_PIECES || below(2) ? left : (uint32_t)below(left + 1);
        frame.pieces[frame.piece_count++] = (struct iovec){bytes + at, part};
        at += part;
    }
    int result = bench_port->ops->send(bench_port, &frame);
    given += result == 0;
    return result >= 0;
}

/* Reads all of a frame that the port holds out, and sends it back there. */
static int turn_back(const struct frame *frame) {
    uint64_t size = 0;
    for (int i = 0; i < frame->piece_count; i++)
        size += frame->pieces[i].iov_len;
    if (size != frame->size || size < FRAME_HEADER || size > FRAME_MAX || frame->piece_count > FRAME_PIECES) {
        fprintf(stderr, "a frame of %u bytes has pieces of %lu\n", frame->size, size);
        abort();
    }
    size = 0;
    for (int i = 0; i < frame->piece_count; size += frame->pieces[i++].iov_len)
        memcpy(bytes + size, frame->pieces[i].iov_base, frame->pieces[i].iov_len);
    return send_bytes(frame);
}

/* A round of the switch: 1, or 0 if the port broke. */
static int forward(void) {
    const struct port_ops *ops = bench_port->ops;
    int count = ops->peek(bench_port, frames, 1 + (int)below(FRAME_BATCH)), alive = count >= 0;
    taken += count > 0 ? (uint64_t)count : 0;
    for (int i = 0; alive && i < count; i++)
        alive = turn_back(&frames[i]);
    if (alive && below(8))
        alive = ops->flush(bench_port) >= 0;
    return alive && ops->release(bench_port) >= 0;
}

/* A frame of another port. */
static int send(void) {
    struct frame frame = {.size = FRAME_HEADER + (uint32_t)below(below(4) ? 1600 : FRAME_MAX - FRAME_HEADER + 1)};
    frame.ethernet[12] = below(2) ? 0x08 : 0x86, frame.ethernet[13] = below(2) ? 0x00 : 0xdd;
    bytes[FRAME_HEADER] = 0x45;
    return send_bytes(&frame) && (!below(2) || bench_port->ops->flush(bench_port) >= 0);
}

/* The front end changes something meanwhile. */
static int reconfigure(void) {
    uint32_t ring = (uint32_t)below(2 * driver.pairs), state[2] = {ring, (uint32_t)below(2)};
    switch (below(5)) {
    case 0:
        return bench_tell(SET_VRING_ENABLE, state, 8, NULL, 0, NULL) >= 0;
    case 1: { /* stopped, and started without an eventfd */
        uint64_t event = ring | 0x100;
        return bench_tell(GET_VRING_BASE, state, 8, NULL, 0, NULL) >= 0 &&
               bench_tell(SET_VRING_KICK, &event, 8, NULL, 0, NULL) >= 0;
    }
    case 2:
        return guest_give(0) >= 0;
    case 3: {
        const struct guest_region *region = &guest_regions[below(REGIONS)];
        struct {
            uint64_t padding;
            struct vhost_region_message region;
        } one = {0, {region->gpa, region->size, region->uva, region->offset}};
        return bench_tell(REM_MEM_REG, &one, sizeof one, NULL, 0, NULL) >= 0;
    }
    default:
        bench_port->ops->arm(bench_port);
        sink = (uint64_t)bench_port->ops->ready(bench_port);
        if (below(4))
            bench_port->ops->disarm(bench_port);
        return 1;
    }
}

/* 1, or 0 if the port broke. */
static int step(void) {
    switch (below(16)) {
    case 0:
        scribble();
        return 1;
    case 1:
    case 2:
        return reconfigure();
    case 3:
        return send();
    case 4:
    case 5:
    case 6:
        return forward();
    default:
        for (uint64_t times = 1 + below(4); times--;)
            post();
        return 1;
    }
}

static uint64_t first_state; /* of the other processor's random numbers */

/* Not a data race to the port, whatever the language says: this is what a guest's other processor can do. */
static void *other_processor(void *stop) {
    uint64_t state = first_state;
    while (!__atomic_load_n((int *)stop, __ATOMIC_ACQUIRE)) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        uint64_t value = state >> 40, gpa = 0x100 + state % 0x6000;
        uint8_t *at = guest_at(gpa & ~3ull, 4);
        const struct driver_queue *queue = &driver.queues[state >> 20 & 1];
        switch (state >> 32 & 63) {
        case 0: /* Something that may be believed: a small number, a flag. */
            __atomic_store_n((uint16_t *)at, (uint16_t)(value & 0x1f), __ATOMIC_RELAXED);
            break;
        case 1:
            __atomic_store_n((uint32_t *)at, (uint32_t)value, __ATOMIC_RELAXED);
            break;
        default: /* A length that is right now, and not a moment later. */
            value = __atomic_load_n(&queue->next_desc, __ATOMIC_RELAXED) - 1 - (value & 3);
            at = guest_at(queue->desc + 16 * (value & (queue->size - 1u)) + 8, 4);
            __atomic_store_n((uint32_t *)at, state >> 24 & 1 ? 80 : 0x7f00, __ATOMIC_RELAXED);
        }
    }
    return NULL;
}

/* The front end takes its memory away, and the port goes on until it sees that. */
static void without_memory(void) {
    guest_cut((int)below(2));
    for (int i = 0; i < 3 && forward() && send(); i++)
        ;
    missed += bench_user()->lost;
}

static void one_case(void) {
    guest_clear();
    uint64_t features = below(2) ? ~0ull : random_next() | 1ull << 30;
    if (!driver_start(&driver, features, 1 + (uint32_t)(below(4) ? 0 : below(3)))) {
        fprintf(stderr, "a front end was refused: %s\n", bench_user()->field);
        abort();
    }
    int stop = 0, alive = 1;
    pthread_t thread;
    first_state = random_next() | 1;
    if (race && pthread_create(&thread, NULL, other_processor, &stop))
        abort();
    for (uint64_t steps = (1 + below(STEPS)) * (race ? 4 : 1); alive && steps--;)
        alive = step();
    if (race) {
        __atomic_store_n(&stop, 1, __ATOMIC_RELEASE);
        pthread_join(thread, NULL);
    }
    if (alive)
        bench_check();
    else
        broken++;
    int cut = !race && alive && !below(8);
    if (cut)
        without_memory();
    if (cut || !below(alive ? 32 : 4)) { /* It is thrown out, or goes. */
        bench_end(alive ? PORT_OK : PORT_E_QUEUE);
        bench_check();
        bench_begin();
    }
    if (cut)
        guest_mend();
    if (!below(2)) {
        driver_prove();
        proven++;
    }
}

static void begin(int with_race) {
    race = with_race;
    guest_canary = 1;
    bench_begin();
}

static void end(void) {
    bench_end(PORT_OK);
    printf("%lu frames taken, %lu given, %lu ports broken, %lu missed memory, %lu proven\n", taken, given, broken,
           missed, proven);
}

const struct fuzzer queues_fuzzer = {"queues", 65535, begin, one_case, end};
