/*
 * frame.h: one Ethernet frame on its way through the switch, as its source port holds it out.
 *
 * The bytes lie in the source's memory, whose owner may change them at any moment. What the switch decides by is therefore
 * copied here, once: `ethernet` (the first 14 bytes) and `offload`. A port that sends the frame writes these copies and takes
 * only the bytes behind from the pieces, so that what arrives is what was checked.
 */
#ifndef NET_FRAME_H
#define NET_FRAME_H

#include <linux/virtio_net.h>
#include <stdint.h>
#include <sys/uio.h>

#define FRAME_HEADER 14             /* destination, source, type */
#define FRAME_MAX (65535 + 18)      /* MTU 65535, header, one VLAN tag */
#define FRAME_PIECES 20             /* 64 KiB in pages, and the ends */
#define FRAME_BATCH 64              /* frames of one look at a port */
#define OFFLOAD_SIZE 12             /* bytes of struct virtio_net_hdr_v1 */
#define FRAME_UNDONE 0xffffull      /* of its first 8 bytes, as a number: `flags` and `gso_type`; 0 when all is done */

struct frame {
    uint8_t ethernet[FRAME_HEADER];
    uint16_t piece_count;
    uint32_t size;                  /* bytes of the whole frame, the Ethernet header included; FRAME_HEADER to FRAME_MAX */
    /* Checksum and segmentation that its sender left undone (virtio 1.2, 5.1.6.2); checked by frame_check_offload. */
    struct virtio_net_hdr_v1 offload;
    struct iovec pieces[FRAME_PIECES]; /* all `size` bytes, the Ethernet header included */
};

static inline int frame_has_offload(const struct frame *frame) {
    return frame->offload.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM || frame->offload.gso_type != VIRTIO_NET_HDR_GSO_NONE;
}

/* Is what `offload` says possible for a frame of this size? 1 or 0. What only a receiver may say is cleared. */
int frame_check_offload(struct frame *frame);

/* Copies `size` bytes from `offset` on (at least FRAME_HEADER) out of the pieces; the caller has bounded both. */
void frame_copy(const struct frame *frame, uint32_t offset, void *to, uint32_t size);

#endif
