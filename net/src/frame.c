/* frame.c: see frame.h, and port_check of port.h. */
#include "frame.h"

#include <string.h>

#include "port.h"

#ifndef VIRTIO_NET_HDR_GSO_UDP_L4 /* Linux 6.2 */
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif

int frame_check_offload(struct frame *frame) {
    struct virtio_net_hdr_v1 *offload = &frame->offload;
    offload->flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM; /* The others are a receiver's. */
    offload->num_buffers = 0;
    if (offload->flags) {
        /* 5.1.6.2: the sum goes from csum_start to the end, and is put csum_offset behind its start. */
        uint32_t field = (uint32_t)offload->csum_start + offload->csum_offset;
        if (offload->csum_start < FRAME_HEADER || field + 2 > frame->size)
            return 0;
    } else {
        offload->csum_start = offload->csum_offset = 0;
    }
    switch (offload->gso_type & ~VIRTIO_NET_HDR_GSO_ECN) {
    case VIRTIO_NET_HDR_GSO_NONE:
        if (offload->gso_type)
            return 0;
        offload->gso_size = offload->hdr_len = 0;
        return 1;
    case VIRTIO_NET_HDR_GSO_TCPV4:
    case VIRTIO_NET_HDR_GSO_TCPV6:
        break;
    case VIRTIO_NET_HDR_GSO_UDP:
    case VIRTIO_NET_HDR_GSO_UDP_L4:
        if (offload->gso_type & VIRTIO_NET_HDR_GSO_ECN)
            return 0;
        break;
    default:
        return 0;
    }
    if (offload->hdr_len > frame->size)
        offload->hdr_len = 0; /* A hint only: "not to be relied on". */
    return offload->gso_size != 0 && offload->flags;
}

/* Are the segments of a frame that is to be cut no longer than the network allows? Its offload has been checked. */
static int segments_fit(const struct frame *frame, uint32_t max_frame) {
    const struct virtio_net_hdr_v1 *offload = &frame->offload;
    int kind = offload->gso_type & ~VIRTIO_NET_HDR_GSO_ECN;
    uint32_t header = kind == VIRTIO_NET_HDR_GSO_TCPV4 || kind == VIRTIO_NET_HDR_GSO_TCPV6 ? 20 : 8;
    return offload->csum_start + header + offload->gso_size <= max_frame;
}

enum drop port_check_offload(const struct port *port, struct frame *frame) {
    int whole = frame->offload.gso_type == VIRTIO_NET_HDR_GSO_NONE;
    if (frame->size > (whole ? port->max_frame : FRAME_MAX))
        return DROP_OVERSIZE;
    if (!frame_check_offload(frame))
        return DROP_OFFLOAD;
    return whole || segments_fit(frame, port->max_frame) ? DROP_NONE : DROP_OVERSIZE;
}

void frame_copy(const struct frame *frame, uint32_t offset, void *to, uint32_t size) {
    char *at = to;
    for (uint32_t i = 0; i < frame->piece_count && size; i++) {
        const struct iovec *piece = &frame->pieces[i];
        if (offset >= piece->iov_len) {
            offset -= (uint32_t)piece->iov_len;
            continue;
        }
        uint32_t part = (uint32_t)piece->iov_len - offset;
        if (part > size)
            part = size;
        memcpy(at, (const char *)piece->iov_base + offset, part);
        at += part;
        size -= part;
        offset = 0;
    }
}
