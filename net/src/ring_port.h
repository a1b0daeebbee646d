/*
 * ring_port.h: a port whose peer is at the other ends of two rings in a region: `out`, which the peer sends on, and `in`, which it
 * receives from. A message is struct virtio_net_hdr_v1 and the frame (docs/network.md).
 */
#ifndef NET_RING_PORT_H
#define NET_RING_PORT_H

#include <shm/region.h>

#include "port.h"

/*
 * Both rings lie in the region of `size` bytes at `region`, which stays mapped until the port is closed; `bells` are its
 * eventfds, duplicated here. NULL with errno: EINVAL with *field for a configuration that can't be, EBADMSG for a ring that was
 * spoiled, ENOMEM, EMFILE.
 */
struct port *ring_port_new(const char *name, void *region, uint64_t size, const struct shm_config *out,
                           const struct shm_config *in, const int *bells, uint32_t bell_count, const char **field);

#endif
