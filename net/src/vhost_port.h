/*
 * vhost_port.h: a vhost-user front end as a port of a switch. The port listens on a Unix socket; one front end at a
 * time is served, and may go and come again. What is wrong with it closes the connection: the port is quarantined, with
 * the reason, until the next one comes.
 */
#ifndef NET_VHOST_PORT_H
#define NET_VHOST_PORT_H

#include "port.h"
#include "switch.h"

/* What can be told of a port beside its counters. */
struct vhost_info {
    uint64_t features, protocol;  /* negotiated; 0 where nobody is connected */
    uint64_t sessions;            /* front ends that have come */
    uint64_t errors[PORT_ERRORS]; /* sessions that ended so */
    uint32_t regions;             /* of memory */
    uint32_t receive, transmit;   /* queues that are in use */
    uint8_t connected;
};

/*
 * Listens on `path`, which is made, and removed by the port's close; a socket there that nobody listens on is replaced.
 * NULL with errno: EADDRINUSE if somebody does, ENAMETOOLONG, what bind says. A front end is served once the port was
 * added to the switch.
 */
struct port *vhost_port_new(const char *name, const char *path, struct net_switch *sw);

/* May front ends leave checksums and segmentation undone, and take such frames? They may, unless told here; before
 * switch_add. */
void vhost_port_offloads(struct port *port, int offloads);

/* Under the switch's lock. */
void vhost_port_info(const struct port *port, struct vhost_info *info);

#endif
