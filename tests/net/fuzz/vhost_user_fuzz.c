/*
 * vhost_user_fuzz.c: random messages with random descriptors to a vhost-user port, and its queues used meanwhile.
 *
 * A case is a session: either messages one by one, between which the port is used and its own view of memory and queues
 * is checked; or bytes through a socket, cut anywhere. In the end a front end that knows how comes, and its frames have
 * to arrive.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vhost_bench.h"

enum { MESSAGES = 40, FDS = 12, MOST_FDS = VHOST_TABLE + 3 };
enum { PROTOCOL_FEATURES = 1 | 1 << 3 | 1 << 4 | 1 << 13 | 1 << 15 };

static uint64_t accepted, refused, lived, proven; /* so that a fuzzer that reaches nothing is seen */
static int odd_fds[FDS];
static struct frame frames[FRAME_BATCH];
static volatile int sink;

/* What may come instead of an eventfd or of memory. */
static void open_odd(void) {
    int pipe_ends[2], pair[2];
    if (pipe(pipe_ends) || socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
        abort();
    int small = memfd_create("small", MFD_CLOEXEC), writable = memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    char path[64];
    if (ftruncate(small, 4096) || ftruncate(writable, 0x40000) || fcntl(writable, F_ADD_SEALS, F_SEAL_WRITE))
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", small);
    int all[FDS] = {pipe_ends[0],
                    pipe_ends[1],
                    pair[0],
                    pair[1],
                    small,
                    writable,
                    open(path, O_RDONLY | O_CLOEXEC),
                    open("/dev/null", O_RDWR | O_CLOEXEC),
                    open("/tmp", O_RDONLY | O_CLOEXEC),
                    epoll_create1(EPOLL_CLOEXEC),
                    open("/dev/zero", O_RDWR | O_CLOEXEC),
                    eventfd(0xfffffffe, EFD_CLOEXEC)};
    for (int i = 0; i < FDS; i++)
        if (all[i] < 0)
            abort();
    memcpy(odd_fds, all, sizeof all);
}

static uint64_t near(uint64_t value) {
    return below(80) ? value : nasty(value);
}

static struct vhost_region_message some_region(uint64_t which) {
    const struct guest_region *region = &guest_regions[which];
    struct vhost_region_message message = {near(region->gpa), near(region->size), near(region->uva),
                                           near(region->offset)};
    if (!below(40))
        message.gpa = nasty(1ull << 63), message.uva = nasty(1ull << 63);
    if (!below(40))
        message.size = nasty(0x40000);
    return message;
}

/* One that the port has, or hasn't; mostly. */
static uint64_t some_region_number(int there) {
    const struct vhost_memory *memory = &bench_user()->memory;
    uint64_t which = below(REGIONS);
    for (int tries = 0; tries < 8 && below(64); tries++, which = below(REGIONS)) {
        int found = 0;
        for (uint32_t i = 0; i < memory->count; i++)
            found |= memory->regions[i].gpa == guest_regions[which].gpa;
        if (found == there)
            break;
    }
    return which;
}

static uint32_t some_ring(void) {
    return below(64) ? (uint32_t)below(below(8) ? 4 : VHOST_RINGS) : (uint32_t)nasty(VHOST_RINGS);
}

/* A message that might be one, and its descriptors: how many. */
static uint32_t make(struct vhost_message *message, int fds[MOST_FDS]) {
    static const uint8_t often[] = {2, 5, 8, 9, 9, 10, 11, 12, 12, 13, 14, 16, 18, 18, 34, 37, 37, 38, 20};
    uint32_t request = below(32)  ? often[below(sizeof often)]
                       : below(4) ? (uint32_t)below(42)
                                  : (uint32_t)nasty(42),
             count = 0;
    if (request == 38 && !bench_user()->memory.count && below(16))
        request = 37;
    *message = (struct vhost_message){.request = request, .flags = 1, .size = 8};
    int file = guest_files[below(2)], event = odd_fds[FDS - 1];
    message->number = nasty(1ull << 40);
    switch (request) {
    case 2:
        message->number = below(80) ? random_next() & bench_user()->offered : random_next();
        break;
    case 5:
        message->table.count = (uint32_t)near(below(REGIONS + 1));
        message->size = 8;
        for (uint64_t i = 0, whole = below(40); i < message->table.count && i < VHOST_TABLE; i++) {
            uint64_t which = whole ? i % REGIONS : below(REGIONS);
            message->table.regions[i] = some_region(which);
            fds[count++] = guest_files[guest_regions[which].file];
            message->size += sizeof(struct vhost_region_message);
        }
        break;
    case 8:
        message->state.index = some_ring(), message->state.number = (uint32_t)near(1ull << below(10));
        break;
    case 9: {
        uint64_t page = below(12) << 12, odd = below(12) ? 0 : below(16);
        message->size = 40;
        message->address.index = some_ring(), message->address.flags = (uint32_t)near(0) & 3;
        message->address.desc = near(guest_user(page + odd)),
        message->address.avail = near(guest_user(page + 0x1000 + odd));
        message->address.used = near(guest_user(page + 0x2000 + odd)), message->address.log = 0;
        break;
    }
    case 10:
    case 11:
        message->state.index = some_ring(), message->state.number = (uint32_t)near(below(65536));
        break;
    case 12:
    case 13:
    case 14:
        message->number = some_ring() | (below(4) ? 0 : 0x100);
        if (!(message->number & 0x100))
            fds[count++] = event;
        break;
    case 34:
        message->size = 0;
        break;
    case 16:
        message->number = near(PROTOCOL_FEATURES);
        break;
    case 18:
        message->state.index = some_ring(), message->state.number = (uint32_t)near(below(2));
        break;
    case 20:
        message->number = near(1500);
        break;
    case 37:
    case 38: {
        uint64_t which = some_region_number(request == 38);
        message->size = 40;
        message->region.region = some_region(which);
        file = guest_files[guest_regions[which].file];
        if (request == 37 || !below(4))
            fds[count++] = file;
        break;
    }
    default:
        message->size = below(4) ? 0 : (uint32_t)below(41);
    }
    if (!below(4))
        message->flags = 9; /* with an acknowledgement */
    if (!below(80))
        message->size = (uint32_t)nasty(message->size);
    if (!below(80))
        message->flags = (uint32_t)nasty(16);
    for (uint64_t times = below(48) ? 0 : 1 + below(3); times--;) /* too few, too many, others */
        if (below(2) && count)
            fds[below(count)] = odd_fds[below(FDS)];
        else if (below(2) && count)
            count--;
        else if (count < MOST_FDS)
            fds[count++] = below(2) ? file : odd_fds[below(FDS)];
    return count;
}

/* The guest fills some of its memory with something. */
static void scribble(void) {
    uint64_t gpa = some_address(), room = guest_room(gpa);
    uint8_t value = below(2) ? 0 : (uint8_t)random_next();
    if (room)
        memset(guest_at(gpa, 1), value, 1 + below(room < 4096 ? room : 4096));
}

/* A round of the switch: 1, or 0 if the port broke. */
static int forward(void) {
    static uint8_t bytes[FRAME_MAX];
    const struct port_ops *ops = bench_port->ops;
    struct frame frame = {.size = 64 + (uint32_t)below(1400), .piece_count = 1};
    frame.pieces[0] = (struct iovec){bytes, frame.size};
    int count = ops->peek(bench_port, frames, FRAME_BATCH);
    if (count < 0 || ops->send(bench_port, &frame) < 0 || ops->flush(bench_port) < 0 || ops->release(bench_port) < 0)
        return 0;
    if (!below(4)) {
        ops->arm(bench_port);
        sink = ops->ready(bench_port);
        if (below(2))
            ops->disarm(bench_port);
    }
    return 1;
}

static int one_by_one(void) {
    for (uint64_t count = 1 + below(MESSAGES); count--;) {
        struct vhost_message message;
        int fds[MOST_FDS];
        uint32_t fd_count = make(&message, fds);
        if (fd_count > VHOST_TABLE || message.size > VHOST_PAYLOAD)
            continue; /* The socket's part lets no such message through. */
        int answered = bench_message(&message, fds, fd_count);
        if (answered < 0) {
            refused++;
            return 0;
        }
        accepted++;
        bench_check();
        if (!below(4))
            scribble();
        if (!below(4) && !forward())
            return 0;
    }
    return 1;
}

static int send_part(int to, const void *bytes, uint32_t size, const int *fds, uint32_t fd_count) {
    struct iovec iovec = {(void *)bytes, size};
    union {
        char bytes[CMSG_SPACE(sizeof(int) * MOST_FDS)];
        struct cmsghdr aligned;
    } control = {{0}};
    struct msghdr header = {.msg_iov = &iovec, .msg_iovlen = 1};
    if (fd_count) {
        header.msg_control = &control;
        header.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
        struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
        *rights = (struct cmsghdr){CMSG_LEN(sizeof(int) * fd_count), SOL_SOCKET, SCM_RIGHTS};
        memcpy(CMSG_DATA(rights), fds, sizeof(int) * fd_count);
    }
    return sendmsg(to, &header, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -1 : 0;
}

/* Whole, or in two parts with descriptors in each, or half. */
static void send_some(int to, const struct vhost_message *message, const int *fds, uint32_t fd_count) {
    uint32_t size = VHOST_HEADER + (message->size < VHOST_PAYLOAD ? message->size : VHOST_PAYLOAD);
    int many[VHOST_TABLE];
    for (int i = 0; i < VHOST_TABLE; i++)
        many[i] = odd_fds[i];
    uint32_t part = below(4) ? size : 1 + (uint32_t)below(size),
             here = part == size ? fd_count : (uint32_t)below(fd_count + 1);
    int full = part < size && !below(16); /* as many as there may be, twice */
    if (send_part(to, message, part, full ? many : fds, full ? VHOST_TABLE : here) || part == size || !below(16))
        return;
    send_part(to, (const uint8_t *)message + part, size - part, full ? many : fds + here,
              full ? VHOST_TABLE : fd_count - here);
}

static int through_socket(void) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
        abort();
    for (uint64_t count = 1 + below(MESSAGES / 2); count--;) {
        struct vhost_message message;
        int fds[MOST_FDS];
        uint32_t fd_count = make(&message, fds);
        send_some(pair[0], &message, fds, fd_count);
    }
    if (below(2))
        shutdown(pair[0], SHUT_WR);
    else
        close(pair[0]), pair[0] = -1;
    int error = bench_serve(pair[1]);
    close(pair[1]);
    if (pair[0] >= 0)
        close(pair[0]);
    if (error)
        refused++;
    else
        accepted++;
    return !error;
}

static void one_case(void) {
    guest_clear();
    bench_begin();
    bench_user()->protocol = below(16) ? PROTOCOL_FEATURES : 0;
    int alive = below(4) ? one_by_one() : through_socket();
    bench_check();
    lived += (uint64_t)alive;
    bench_end(alive ? PORT_OK : PORT_E_PROTOCOL);
    bench_check();
    if (bench_port->quarantined != (alive ? PORT_OK : PORT_E_PROTOCOL))
        abort();
    if (!below(4)) {
        bench_begin();
        driver_prove();
        bench_end(PORT_OK);
        proven++;
    }
}

static void begin(int race) {
    (void)race;
    open_odd();
}

static void end(void) {
    printf("%lu messages taken, %lu refused, %lu sessions lived, %lu proven\n", accepted, refused, lived, proven);
}

const struct fuzzer messages_fuzzer = {"messages", 1500, begin, one_case, end};
