/*
 * kernel_frame.h: frames as the kernel gives and takes them, by tap and packet socket: a virtio_net_hdr for what is left undone,
 * then the frame.
 */
#ifndef NET_KERNEL_FRAME_H
#define NET_KERNEL_FRAME_H

#include "port.h"

#ifndef VIRTIO_NET_HDR_GSO_UDP_L4 /* Linux 6.2 */
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif

/*
 * Makes `frame` of `size` bytes at `bytes` that came in with frame->offload set: 1, or 0 for a runt, an oversize one or an offload
 * that can't be, which is counted.
 */
int kernel_frame_accept(struct port *port, struct frame *frame, uint8_t *bytes, uint32_t size);

/*
 * Writes a frame behind the first `header_size` bytes of its offload header, from its source's memory: 0 or -errno. What of that
 * memory is gone is written as the source's fault guard shows it.
 */
int kernel_frame_write(int fd, const struct frame *frame, uint32_t header_size);

/* What a refused write is: an enum drop; DROP_NONE where the interface may be gone. */
enum drop kernel_frame_refusal(int error);

uint64_t kernel_now_ns(void);

#endif
