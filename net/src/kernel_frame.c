/* kernel_frame.c: see kernel_frame.h. */
#include "kernel_frame.h"

#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* A longer one would only make the kernel look for as much memory in one piece. */
enum { LINEAR_MAX = 512 };

uint64_t kernel_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

int kernel_frame_accept(struct port *port, struct frame *frame, uint8_t *bytes, uint32_t size) {
    enum drop reason = DROP_NONE;
    frame->size = size;
    if (size < FRAME_HEADER) {
        reason = DROP_RUNT;
    } else if (size > (frame->offload.gso_type == VIRTIO_NET_HDR_GSO_NONE ? port->max_frame : FRAME_MAX)) {
        reason = DROP_OVERSIZE;
    } else {
        memcpy(frame->ethernet, bytes, FRAME_HEADER);
        frame->pieces[0] = (struct iovec){bytes, size};
        frame->piece_count = 1;
        if (!frame_check_offload(frame))
            reason = DROP_OFFLOAD;
    }
    if (reason == DROP_NONE)
        return 1;
    port_drop(port, reason);
    return 0;
}

static int write_pieces(int fd, const struct iovec *pieces, int count) {
    ssize_t done;
    do
        done = writev(fd, pieces, count);
    while (done < 0 && errno == EINTR);
    return done < 0 ? -errno : 0;
}

/* The frame's bytes behind its Ethernet header, piece by piece; returns how many pieces. */
static int payload_pieces(const struct frame *frame, struct iovec *to) {
    size_t skip = FRAME_HEADER;
    int count = 0;
    for (uint32_t i = 0; i < frame->piece_count; i++) {
        struct iovec piece = frame->pieces[i];
        size_t part = piece.iov_len < skip ? piece.iov_len : skip;
        skip -= part;
        if (piece.iov_len > part)
            to[count++] = (struct iovec){(uint8_t *)piece.iov_base + part, piece.iov_len - part};
    }
    return count;
}

/* The kernel found some of the memory gone (EFAULT). Read by this process, the guard answers for it, and tells on its owner. */
static __attribute__((noinline)) int write_copied(int fd, const struct frame *frame, struct iovec pieces[3]) {
    uint8_t bytes[FRAME_MAX];
    uint32_t size = frame->size - FRAME_HEADER;
    frame_copy(frame, FRAME_HEADER, bytes, size);
    pieces[2] = (struct iovec){bytes, size};
    return write_pieces(fd, pieces, 3);
}

int kernel_frame_write(int fd, const struct frame *frame, uint32_t header_size) {
    struct virtio_net_hdr_v1 offload = frame->offload;
    uint8_t ethernet[FRAME_HEADER];
    struct iovec pieces[FRAME_PIECES + 2] = {{&offload, header_size}, {ethernet, FRAME_HEADER}};
    if (offload.hdr_len > LINEAR_MAX)
        offload.hdr_len = 0;
    memcpy(ethernet, frame->ethernet, FRAME_HEADER);
    int count = 2 + payload_pieces(frame, pieces + 2);
    int error = write_pieces(fd, pieces, count);
    return error == -EFAULT ? write_copied(fd, frame, pieces) : error;
}

enum drop kernel_frame_refusal(int error) {
    switch (error) {
    case EAGAIN:
    case ENOBUFS:
    case ENOMEM:
        return DROP_FULL;
    case EIO: /* a tap that is not up */
        return DROP_DOWN;
    case EMSGSIZE: /* over the interface's own MTU */
        return DROP_OVERSIZE;
    case EBADFD: /* a tap whose interface was removed */
    case ENETDOWN:
    case ENODEV:
    case ENXIO:
        return DROP_NONE;
    default: /* an offload that does not match the frame, or that this kernel does not know */
        return DROP_UNFIT;
    }
}
