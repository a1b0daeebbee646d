/*
 * offload.h: does what a frame's sender left undone, for a receiver that can't: the checksum, and the segmentation of TCP over
 * IPv4 and IPv6 and of UDP (virtio 1.2, 5.1.6.2).
 */
#ifndef NET_OFFLOAD_H
#define NET_OFFLOAD_H

#include "port.h"

/*
 * Sends `frame` to `to` finished: as one frame with its checksum, or as segments. A port with PORT_TAKES_CSUM gets segments
 * whose checksum is left to it. Returns what to->ops->send said of the first that it did not take (the rest is not sent), or
 * DROP_UNFIT for headers that don't match the offload, DROP_OVERSIZE for segments over to->max_frame.
 * The headers are copied once and checked there; the payload is read from the source's memory as it is sent.
 */
int offload_send(struct port *to, const struct frame *frame);

#endif
