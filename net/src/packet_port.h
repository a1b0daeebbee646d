/*
 * packet_port.h: an uplink by a packet socket on an interface that exists: what others send there comes into the network, what
 * the network sends goes out there. The host itself is not reached: its own frames don't come in.
 *
 * In comes through a ring that the kernel fills and the switch maps. TPACKET_V2: its frames are seen at once, 2 us after they
 * were sent, where V3's blocks wait a millisecond for their timer; what a frame costs is the same. Out goes one sendmsg for each
 * frame, straight from its source's memory: quicker than a mapped TX ring, twice as quick for 64 KiB, because the kernel copies
 * that ring's pages once more for most interfaces (docs/network.md, "Uplinks").
 */
#ifndef NET_PACKET_PORT_H
#define NET_PACKET_PORT_H

#include "port.h"

/*
 * Opens the interface of the calling thread's network namespace. NULL with errno: ENODEV if there is none of that name, EPERM
 * without CAP_NET_RAW (and CAP_NET_ADMIN for its buffers).
 */
struct port *packet_port_new(const char *name, const char *interface);

#endif
