/* vhost_guest.c: the guest's memory, and a driver that knows how. See vhost_bench.h. */
#define _GNU_SOURCE
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vhost_bench.h"

enum { FILE_SIZE = 0x40000, CANARY = 0xc5, DATA_START = 0xc000 };
enum {
    GET_FEATURES = 1,
    SET_FEATURES,
    SET_OWNER,
    RESET_OWNER,
    SET_MEM_TABLE,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR,
    SET_VRING_BASE,
    GET_VRING_BASE,
    SET_VRING_KICK,
    SET_VRING_CALL,
    SET_PROTOCOL_FEATURES = 16,
    SET_VRING_ENABLE = 18,
    RESET_DEVICE = 34,
    ADD_MEM_REG = 37
};

/* Adjacent ones; one with odd ends, above 4 GiB; one where addresses end. */
struct guest_region guest_regions[REGIONS] = {
    {.gpa = 0, .size = 0x10000, .uva = 0x700000000000, .offset = 0x1000, .file = 0},
    {.gpa = 0x10000, .size = 0x8000, .uva = 0x600000000000, .offset = 0x2000, .file = 1},
    {.gpa = 1ull << 32, .size = 0x8ff8, .uva = 0x7000000f0000, .offset = 0x20008, .file = 0},
    {.gpa = 0xffffffffffff0000, .size = 0x8000, .uva = 0x1000, .offset = 0x20000, .file = 1},
};
int guest_files[2];
int guest_canary;
static uint8_t *views[2];
static int kicks[VHOST_RINGS], calls[VHOST_RINGS];
void *__real_mmap(void *at, size_t size, int access, int flags, int fd, off_t offset); /* not counted as the port's */

void guest_open(void) {
    for (int i = 0; i < 2; i++) {
        guest_files[i] = memfd_create("guest", MFD_CLOEXEC);
        if (guest_files[i] < 0 || ftruncate(guest_files[i], FILE_SIZE))
            abort();
        views[i] = __real_mmap(NULL, FILE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, guest_files[i], 0);
        if (views[i] == MAP_FAILED)
            abort();
        memset(views[i], CANARY, FILE_SIZE);
    }
    for (int i = 0; i < REGIONS; i++)
        guest_regions[i].bytes = views[guest_regions[i].file] + guest_regions[i].offset;
}

static void check_canary(int file) {
    for (uint64_t at = 0; at < FILE_SIZE; at++) {
        int inside = 0;
        for (int i = 0; i < REGIONS && !inside; i++) {
            const struct guest_region *region = &guest_regions[i];
            inside = region->file == file && at - region->offset < region->size;
            at += inside ? region->size - 1 : 0;
        }
        if (!inside && views[file][at] != CANARY) {
            fprintf(stderr, "byte 0x%lx of file %d, outside of all regions, was written\n", at, file);
            abort();
        }
    }
}

void guest_clear(void) {
    static uint32_t turn;
    if (guest_canary && !(turn++ % 256))
        for (int i = 0; i < 2; i++)
            check_canary(i);
    for (int i = 0; i < REGIONS; i++)
        memset(guest_regions[i].bytes, 0, guest_regions[i].size);
}

void guest_cut(int file) {
    if (ftruncate(guest_files[file], (off_t)(below(FILE_SIZE / 4096) * 4096)))
        abort();
}

void guest_mend(void) {
    for (int i = 0; i < 2; i++) {
        if (ftruncate(guest_files[i], FILE_SIZE))
            abort();
        memset(views[i], CANARY, FILE_SIZE);
    }
}

static struct guest_region *find(uint64_t gpa) {
    for (int i = 0; i < REGIONS; i++)
        if (gpa - guest_regions[i].gpa < guest_regions[i].size)
            return &guest_regions[i];
    return NULL;
}

uint64_t guest_room(uint64_t gpa) {
    const struct guest_region *region = find(gpa);
    return region ? region->size - (gpa - region->gpa) : 0;
}

uint8_t *guest_at(uint64_t gpa, uint64_t size) {
    const struct guest_region *region = find(gpa);
    return region && size <= guest_room(gpa) ? region->bytes + (gpa - region->gpa) : NULL;
}

uint64_t guest_user(uint64_t gpa) {
    const struct guest_region *region = find(gpa);
    return region ? region->uva + (gpa - region->gpa) : gpa;
}

uint64_t some_address(void) {
    const struct guest_region *region = &guest_regions[below(REGIONS)];
    switch (below(8)) {
    case 0:
        return region->gpa + region->size - below(64);
    case 1:
        return region->gpa + region->size + below(0x3000);
    case 2:
        return nasty(region->gpa);
    default:
        return region->gpa + below(region->size);
    }
}

void poke(uint64_t gpa, const void *from, uint64_t size) {
    const uint8_t *bytes = from;
    while (size) {
        uint64_t part = guest_room(gpa);
        if (!part)
            return;
        part = part < size ? part : size;
        memcpy(guest_at(gpa, part), bytes, part);
        gpa += part, bytes += part, size -= part;
    }
}

void peek(uint64_t gpa, void *to, uint64_t size) {
    uint8_t *bytes = to;
    memset(to, 0, size);
    while (size) {
        uint64_t part = guest_room(gpa);
        if (!part)
            return;
        part = part < size ? part : size;
        memcpy(bytes, guest_at(gpa, part), part);
        gpa += part, bytes += part, size -= part;
    }
}

static struct vhost_region_message describe(int number) {
    const struct guest_region *region = &guest_regions[number];
    return (struct vhost_region_message){region->gpa, region->size, region->uva, region->offset};
}

int guest_give(int separately) {
    struct {
        uint32_t count, padding;
        struct vhost_region_message regions[REGIONS];
    } table = {.count = REGIONS};
    int fds[REGIONS];
    for (int i = 0; i < REGIONS; i++) {
        table.regions[i] = describe(i);
        fds[i] = guest_files[guest_regions[i].file];
    }
    if (!separately)
        return bench_tell(SET_MEM_TABLE, &table, 8 + REGIONS * sizeof *table.regions, fds, REGIONS, NULL);
    for (int i = REGIONS; i--;) {
        struct {
            uint64_t padding;
            struct vhost_region_message region;
        } one = {0, table.regions[i]};
        int answered = bench_tell(ADD_MEM_REG, &one, sizeof one, &fds[i], 1, NULL);
        if (answered < 0)
            return answered;
    }
    return 0;
}

/* --- the driver --- */

void driver_open(void) {
    for (int i = 0; i < VHOST_RINGS; i++) {
        kicks[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        calls[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (kicks[i] < 0 || calls[i] < 0)
            abort();
    }
}

static uint64_t take(struct driver *driver, uint64_t size, uint64_t align) {
    uint64_t at = (driver->heap + align - 1) / align * align;
    driver->heap = at + size;
    return at;
}

static int start_queue(struct driver *driver, uint32_t index, uint16_t size) {
    struct driver_queue *queue = &driver->queues[index];
    *queue = (struct driver_queue){.index = index, .size = size};
    queue->desc = take(driver, 16ull * size, 16);
    queue->avail = take(driver, 6 + 2ull * size, 2);
    queue->used = take(driver, 6 + 8ull * size, 4);
    uint16_t index_now = (uint16_t)random_next(); /* A queue may have been used before. */
    if (below(2))
        index_now = 0;
    queue->next_avail = queue->next_used = index_now;
    poke(queue->avail + 2, &index_now, 2);
    poke(queue->used + 2, &index_now, 2);
    uint32_t number[2] = {index, size}, base[2] = {index, index_now}, on[2] = {index, 1};
    struct {
        uint32_t index, flags;
        uint64_t desc, used, avail, log;
    } address = {index, 0, guest_user(queue->desc), guest_user(queue->used), guest_user(queue->avail), 0};
    uint64_t event = index;
    return bench_tell(SET_VRING_NUM, number, 8, NULL, 0, NULL) >= 0 &&
           bench_tell(SET_VRING_BASE, base, 8, NULL, 0, NULL) >= 0 &&
           bench_tell(SET_VRING_CALL, &event, 8, &calls[index], 1, NULL) >= 0 &&
           bench_tell(SET_VRING_ADDR, &address, sizeof address, NULL, 0, NULL) >= 0 &&
           bench_tell(SET_VRING_KICK, &event, 8, &kicks[index], 1, NULL) >= 0 &&
           bench_tell(SET_VRING_ENABLE, on, 8, NULL, 0, NULL) >= 0;
}

int driver_start(struct driver *driver, uint64_t features, uint32_t pairs) {
    struct vhost_message reply;
    int separately = !below(4);
    *driver = (struct driver){.heap = 0x100 + below(64) * 0x40, .pairs = pairs, .data = DATA_START};
    if (bench_tell(GET_FEATURES, NULL, 0, NULL, 0, &reply) != 1)
        return 0;
    driver->features = features & reply.number;
    uint64_t protocol = ~0ull & (1 | 1 << 3 | 1 << 4 | 1 << 13 | 1 << 15);
    if (bench_tell(SET_PROTOCOL_FEATURES, &protocol, 8, NULL, 0, NULL) < 0 ||
        bench_tell(SET_OWNER, NULL, 0, NULL, 0, NULL) < 0 || bench_tell(RESET_DEVICE, NULL, 0, NULL, 0, NULL) < 0 ||
        bench_tell(SET_FEATURES, &driver->features, 8, NULL, 0, NULL) < 0)
        return 0;
    uint32_t regions = bench_user()->memory.count;
    if (regions < REGIONS && guest_give(!regions && separately) < 0)
        return 0;
    for (uint32_t i = 0; i < 2 * pairs; i++)
        if (!start_queue(driver, i, (uint16_t)(1u << below(pairs > 1 ? 6 : 9))))
            return 0;
    return driver->heap < DATA_START;
}

uint64_t driver_room(struct driver *driver, uint32_t size) {
    /* The border of the two regions lies in the middle of the room for data. */
    if (driver->data + size > 0x18000)
        driver->data = DATA_START;
    uint64_t at = driver->data;
    driver->data += size;
    return at;
}

uint16_t driver_post(struct driver_queue *queue, const struct segment *segments, uint32_t count, int write,
                     int indirect, uint64_t table_at) {
    struct vring_desc table[SEGMENTS] = {0};
    uint16_t mask = queue->size - 1, head = queue->next_desc & mask;
    uint16_t flags = write ? VRING_DESC_F_WRITE : 0;
    for (uint32_t i = 0; i < count; i++)
        table[i] = (struct vring_desc){segments[i].gpa, segments[i].size,
                                       (uint16_t)(flags | (i + 1 < count ? VRING_DESC_F_NEXT : 0)),
                                       (uint16_t)(indirect ? i + 1 : (head + i + 1u) & mask)};
    if (indirect) {
        poke(table_at, table, 16 * count);
        struct vring_desc pointer = {.addr = table_at, .len = 16 * count, .flags = VRING_DESC_F_INDIRECT};
        poke(queue->desc + 16ull * head, &pointer, 16);
        queue->next_desc++;
    } else {
        for (uint32_t i = 0; i < count; i++)
            poke(queue->desc + 16ull * ((head + i) & mask), &table[i], 16);
        queue->next_desc += (uint16_t)count;
    }
    poke(queue->avail + 4 + 2ull * (queue->next_avail & mask), &head, 2);
    queue->heads[queue->next_avail & mask & (QUEUE_LIMIT - 1)] = head;
    queue->next_avail++;
    poke(queue->avail + 2, &queue->next_avail, 2);
    return head;
}

uint16_t driver_index(const struct driver_queue *queue) {
    uint16_t index;
    peek(queue->used + 2, &index, 2);
    return index;
}

int driver_used(struct driver_queue *queue, uint32_t *head, uint32_t *size) {
    if (driver_index(queue) == queue->next_used)
        return 0;
    uint32_t element[2];
    peek(queue->used + 4 + 8ull * (queue->next_used & (queue->size - 1u)), element, 8);
    *head = element[0], *size = element[1];
    queue->next_used++;
    return 1;
}

/* --- frames that arrive as they were --- */

enum { MOST = 1518 };

static void wrong(const char *what) {
    fprintf(stderr, "a driver that knows how: %s\n", what);
    abort();
}

/* Cuts room for `size` bytes into segments: how many, `most` at most. */
static uint32_t cut(struct driver *driver, struct segment *segments, uint32_t most, uint32_t size) {
    uint32_t count = 0;
    while (size) {
        uint32_t part = count + 1 == most || below(2) ? size : 1 + (uint32_t)below(size);
        segments[count++] = (struct segment){driver_room(driver, part), part};
        size -= part;
    }
    return count;
}

static uint32_t most_segments(const struct driver *driver, const struct driver_queue *queue, int *indirect) {
    *indirect = driver->features >> VIRTIO_RING_F_INDIRECT_DESC & 1 && below(2);
    return *indirect || queue->size > SEGMENTS ? SEGMENTS : queue->size;
}

/* Room for an indirect table: in the third region, one behind the other. */
static uint64_t table_room(struct driver *driver, uint32_t count) {
    const struct guest_region *region = &guest_regions[2];
    if (driver->tables + 16 * count > region->size)
        driver->tables = 0;
    uint64_t at = region->gpa + driver->tables;
    driver->tables += 16 * count;
    return at;
}

static uint32_t header_size(const struct driver *driver) {
    return driver->features & (1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_NET_F_MRG_RXBUF) ? 12 : 10;
}

static void fill(uint8_t *bytes, uint32_t size) {
    for (uint32_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)random_next();
}

/* Posts a frame; the port must hold out just that, and then use the chain. */
static void prove_transmit(struct driver *driver, struct driver_queue *queue, struct frame *frame, uint8_t *bytes) {
    uint32_t header = header_size(driver), size = FRAME_HEADER + (uint32_t)below(MOST - FRAME_HEADER + 1);
    uint8_t whole[12 + MOST] = {0};
    fill(bytes, size);
    memcpy(whole + header, bytes, size);
    struct segment segments[SEGMENTS];
    int indirect;
    uint32_t most = most_segments(driver, queue, &indirect), count = cut(driver, segments, most, header + size),
             done = 0;
    for (uint32_t i = 0; i < count; done += segments[i++].size)
        poke(segments[i].gpa, whole + done, segments[i].size);
    driver_post(queue, segments, count, 0, indirect, table_room(driver, count));
    if (!bench_port->ops->ready(bench_port))
        wrong("a frame that was sent is not ready");
    if (bench_port->ops->peek(bench_port, frame, FRAME_BATCH) != 1)
        wrong("a frame that was sent is not held out");
    if (frame->size != size || memcmp(frame->ethernet, bytes, FRAME_HEADER))
        wrong("a frame that was sent is another");
    uint32_t at = 0;
    for (int i = 0; i < frame->piece_count; at += (uint32_t)frame->pieces[i++].iov_len)
        if (memcmp(frame->pieces[i].iov_base, bytes + at, frame->pieces[i].iov_len))
            wrong("a frame that was sent has other bytes");
    if (at != size)
        wrong("a frame that was sent has pieces of another size");
}

static void end_transmit(struct driver_queue *queue) {
    uint32_t head, written;
    uint16_t expected = queue->heads[queue->next_used & (queue->size - 1)];
    if (bench_port->ops->release(bench_port) || !driver_used(queue, &head, &written) || head != expected || written)
        wrong("a chain that was sent is not used");
}

/* Posts room; the frame that is sent to the port must be there. */
static void prove_receive(struct driver *driver, struct driver_queue *queue, const struct frame *frame,
                          const uint8_t *bytes) {
    uint32_t header = header_size(driver), need = header + frame->size, chains = 0;
    int mergeable = driver->features >> VIRTIO_NET_F_MRG_RXBUF & 1, result;
    struct {
        struct segment segments[SEGMENTS];
        uint32_t count;
    } posted[QUEUE_LIMIT];
    uint32_t descriptors = 0;
    /* One after the other, until there is room enough: before, the frame must be refused and nothing used. */
    while ((result = bench_port->ops->send(bench_port, frame)) == DROP_FULL) {
        int indirect;
        uint32_t most = most_segments(driver, queue, &indirect), left = queue->size - descriptors;
        if (!left || chains == queue->size)
            wrong("a frame finds no room though there is");
        uint32_t size = !mergeable || left == 1 ? need : header + (uint32_t)below(need);
        if (!indirect && most >= left)
            most = size < need ? left - 1 : left;
        posted[chains].count = cut(driver, posted[chains].segments, most, size);
        descriptors += indirect ? 1 : posted[chains].count;
        driver_post(queue, posted[chains].segments, posted[chains].count, 1, indirect,
                    table_room(driver, posted[chains].count));
        chains++;
    }
    if (result)
        wrong("a frame with room enough is refused");
    if (driver_index(queue) != queue->next_used)
        wrong("a frame is there before it was flushed");
    if (bench_port->ops->flush(bench_port))
        wrong("a queue in order breaks");
    uint8_t got[12 + MOST + 12];
    uint32_t have = 0;
    for (uint32_t i = 0; i < chains; i++) {
        uint32_t head, written, at = 0;
        uint16_t expected = queue->heads[queue->next_used & (queue->size - 1)];
        if (!driver_used(queue, &head, &written) || head != expected || have + written > need)
            wrong("a chain that was received into is not used");
        for (uint32_t j = 0; j < posted[i].count && at < written; j++) {
            uint32_t part = posted[i].segments[j].size < written - at ? posted[i].segments[j].size : written - at;
            peek(posted[i].segments[j].gpa, got + have + at, part);
            at += part;
        }
        have += written;
    }
    struct virtio_net_hdr_v1 expected = {.num_buffers = (uint16_t)chains};
    if (have != need || memcmp(got, &expected, header) || memcmp(got + header, bytes, frame->size))
        wrong("a frame that was received is another");
}

void driver_prove(void) {
    static struct frame frames[FRAME_BATCH];
    static const uint64_t choice = 1ull << VIRTIO_RING_F_EVENT_IDX | 1ull << VIRTIO_RING_F_INDIRECT_DESC |
                                   1ull << VIRTIO_NET_F_MRG_RXBUF | 1ull << VIRTIO_F_VERSION_1 | 1ull << 30 |
                                   1ull << VIRTIO_F_IN_ORDER;
    struct driver driver;
    uint8_t bytes[MOST];
    guest_clear();
    if (!driver_start(&driver, random_next() & choice, 1))
        wrong("a front end that knows how is refused");
    for (uint64_t turns = 1 + below(8); turns--;) {
        struct driver_queue *receive = &driver.queues[0], *transmit = &driver.queues[1];
        /* What is received must not lie where the frame is sent from. One of them crosses the border. */
        uint64_t here = DATA_START + below(0x6000), there = 0x14000;
        int swap = (int)below(2);
        driver.data = swap ? there : here;
        prove_transmit(&driver, transmit, frames, bytes);
        driver.data = swap ? here : there;
        prove_receive(&driver, receive, frames, bytes);
        end_transmit(transmit);
        if (!below(4)) {
            bench_port->ops->arm(bench_port);
            if (bench_port->ops->ready(bench_port))
                wrong("something is ready where nothing is");
            bench_port->ops->disarm(bench_port);
        }
    }
    bench_check();
}
