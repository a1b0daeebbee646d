/*
 * tap_port.h: an uplink by a tap interface that the switch makes. What the host sends to the interface comes into the network,
 * what the network sends out the host receives, unsegmented and without checksums where it offers or takes that.
 */
#ifndef NET_TAP_PORT_H
#define NET_TAP_PORT_H

#include "port.h"

/*
 * Makes the interface in the calling thread's network namespace; it lives as long as the port, so a crash leaves none. NULL with
 * errno: EBUSY if there is one of that name, EPERM without CAP_NET_ADMIN, ENOENT or ENODEV without /dev/net/tun, EINVAL for
 * what is no interface's name.
 */
struct port *tap_port_new(const char *name, const char *interface);

#endif
