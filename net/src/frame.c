/* frame.c: see frame.h. */
#include "frame.h"

#include <string.h>

#ifndef VIRTIO_NET_HDR_GSO_UDP_L4 /* Linux 6.2 */
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif

int frame_check_offload(struct frame *frame) {
    struct virtio_net_hdr_v1 *offload = &frame->offload;
    offload->flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM; /* The others are a receiver's. */
    offload->num_buffers = 1;
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
