/*
 * vhost_frames.h: frames out of transmit queues and into receive queues: chains that begin with a virtio-net header
 * (virtio 1.2, 5.1.6).
 */
#ifndef NET_VHOST_FRAMES_H
#define NET_VHOST_FRAMES_H

#include "frame.h"
#include "port.h"
#include "vring.h"

/* What taking frames needs beside the queue. */
struct frames_context {
    struct port *port; /* whose drops are counted, whose max_frame holds */
    uint8_t *bounce;   /* FRAME_MAX bytes: room for one frame in more pieces than a frame can have */
    uint8_t bounced;   /* it is in use until the frames are released */
};

/*
 * Holds out up to `room` frames of a transmit queue; they are its own until frames_release. What is no frame is counted
 * by port_drop and passed over. How many, or -error.
 */
int frames_take(struct vring_queue *ring, struct frame *frames, int room, struct frames_context *context);

/* All frames held out have been used; the driver sees that: 1 if it was called, else 0. */
int frames_release(struct vring_queue *ring);

/*
 * Copies frames into a receive queue: how many went in. If not all, *result is why the next did not: DROP_FULL,
 * DROP_UNFIT (no buffer is large enough), or -error. The driver sees them after vring_publish. `mergeable`: one may
 * take several chains (5.1.6.4).
 */
int frames_give(struct vring_queue *ring, const struct frame *frames, int count, int mergeable, int *result);

#endif
