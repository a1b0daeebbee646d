/*
 * harness.c: ports without a switch. Frames go to a port, come from one, or are finished for one that collects them. A frame that
 * is sent lies in pieces cut as the test says, and its first bytes are spoiled there: only the header that was read once counts.
 */
#define _GNU_SOURCE
#include "offload.h"
#include "packet_port.h"
#include "switch.h"
#include "tap_port.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct packed_frame {
    uint32_t size;
    struct virtio_net_hdr_v1 offload;
    uint8_t bytes[FRAME_MAX];
};

/* A port that keeps what it is sent. */
struct collector {
    struct port port;
    struct packed_frame *frames;
    uint32_t count, room;
    int answer; /* to frames that there is no room for */
};

static void pack(const struct frame *frame, struct packed_frame *to) {
    to->size = frame->size;
    to->offload = frame->offload;
    memcpy(to->bytes, frame->ethernet, FRAME_HEADER);
    frame_copy(frame, FRAME_HEADER, to->bytes + FRAME_HEADER, frame->size - FRAME_HEADER);
}

static int collector_send(struct port *port, const struct frame *frame) {
    struct collector *collector = (struct collector *)port;
    uint64_t total = 0;
    for (uint32_t i = 0; i < frame->piece_count; i++)
        total += frame->pieces[i].iov_len;
    if (frame->piece_count > FRAME_PIECES || total != frame->size)
        abort();
    if (collector->count == collector->room)
        return collector->answer;
    pack(frame, &collector->frames[collector->count++]);
    return 0;
}

static const struct port_ops collector_ops = {.kind = "collector", .send = collector_send};

/* Each cut in memory of its own, so that the address sanitizer sees a byte too many. */
static void cut_frame(struct frame *frame, const struct packed_frame *from, const uint32_t *cuts, uint32_t count) {
    memset(frame, 0, sizeof *frame);
    memcpy(frame->ethernet, from->bytes, FRAME_HEADER);
    frame->offload = from->offload;
    frame->size = from->size;
    uint32_t at = 0;
    for (uint32_t i = 0; i <= count; i++) {
        uint32_t end = i < count ? cuts[i] : from->size;
        uint8_t *piece = malloc(end - at ? end - at : 1);
        for (uint32_t j = at; j < end; j++)
            piece[j - at] = j < FRAME_HEADER ? 0xee : from->bytes[j];
        frame->pieces[frame->piece_count++] = (struct iovec){piece, end - at};
        at = end;
    }
}

static void free_pieces(struct frame *frame) {
    for (uint32_t i = 0; i < frame->piece_count; i++)
        free(frame->pieces[i].iov_base);
}

/* Finishes `from`, cut at rising offsets, for a port with `flags`; returns what offload_send did, `*count` frames of `room`. */
int harness_offload(const struct packed_frame *from, const uint32_t *cuts, uint32_t cut_count, uint32_t flags, uint32_t max_frame,
                    struct packed_frame *to, uint32_t room, int answer, uint32_t *count) {
    struct collector collector = {
        .port = {.ops = &collector_ops, .flags = flags, .max_frame = max_frame}, .frames = to, .room = room, .answer = answer};
    struct frame frame;
    cut_frame(&frame, from, cuts, cut_count);
    int result = offload_send(&collector.port, &frame);
    free_pieces(&frame);
    *count = collector.count;
    return result;
}

int harness_send(struct port *port, const struct packed_frame *from, const uint32_t *cuts, uint32_t cut_count) {
    struct frame frame;
    cut_frame(&frame, from, cuts, cut_count);
    int result = port->ops->send(port, &frame);
    if (!result)
        result = port->ops->flush(port);
    free_pieces(&frame);
    return result;
}

/*
 * Sends a frame whose bytes were in a file that was cut short since: what the port returned, or -EIO where the guard saw nothing.
 * Its memory is that of a peer, guarded.
 */
int harness_send_gone(struct port *port, const struct packed_frame *from) {
    uint32_t lost = 0;
    enum { SIZE = 2 * 4096 };
    int fd = memfd_create("gone", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, SIZE))
        return -errno;
    uint8_t *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED || fault_guard(memory, SIZE, &lost))
        return -errno;
    struct frame frame = {.size = from->size, .offload = from->offload, .piece_count = 1};
    memcpy(frame.ethernet, from->bytes, FRAME_HEADER);
    frame.pieces[0] = (struct iovec){memory + 4096 - 100, from->size};
    memcpy(memory + 4096 - 100, from->bytes, from->size);
    int result = ftruncate(fd, 4096) ? -errno : port->ops->send(port, &frame);
    fault_unguard(memory);
    munmap(memory, SIZE);
    close(fd);
    return lost ? result : -EIO;
}

/* One look: packs what the port holds out, and releases it. The number of frames or -error. */
int harness_look(struct port *port, struct packed_frame *to, int room) {
    struct frame frames[FRAME_BATCH];
    int count = port->ops->peek(port, frames, room < FRAME_BATCH ? room : FRAME_BATCH);
    for (int i = 0; i < count; i++)
        pack(&frames[i], &to[i]);
    int error = count > 0 ? port->ops->release(port) : 0;
    return error ? error : count;
}

/* Sleeps as the switch does until something may be there: 1, or 0 after `timeout_ms`. */
int harness_wait(struct port *port, int timeout_ms) {
    port->ops->arm(port);
    if (port->ops->ready(port))
        return 1;
    struct pollfd fd = {.fd = port->wake, .events = POLLIN};
    return poll(&fd, 1, timeout_ms) > 0;
}

/* NULL with *error. */
struct port *harness_open(const char *kind, const char *interface, int *error) {
    struct port *port = strcmp(kind, "tap") ? packet_port_new("uplink", interface) : tap_port_new("uplink", interface);
    *error = port ? 0 : errno;
    return port;
}

void harness_close(struct port *port) {
    port->ops->close(port);
}
