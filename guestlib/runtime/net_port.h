/* net_port.h: a port on a network, for the parts of the runtime that use it. Not for programs. */
#ifndef NET_PORT_H
#define NET_PORT_H

#include "net.h"

struct net_ip;

struct net_port {
    const struct guest_network *info;
    struct channel out, in;
    uint32_t max_frame;
    /* Takes a frame that is IPv4's (1) or leaves it (0); NULL where nobody asked for IPv4. */
    int (*input)(struct net_port *port, const struct net_offload *offload, const uint8_t *frame, uint32_t size);
    struct net_ip *ip;
    struct net_counters counters;
};

/* What is left of a call's time. Frames that are not what it waits for don't make it longer: see net_goes_on. */
struct net_limit {
    uint64_t ns;        /* as given */
    uint64_t start_ns;  /* of the clock, once it was asked */
    uint64_t passed;    /* frames that were not what is waited for */
};

#define NET_LOOK 256    /* so many of them are looked at before the clock is, even where there is no time */

static inline uint64_t net_left(struct net_limit *limit) {
    if (limit->ns == GUEST_NO_LIMIT || !limit->ns)
        return limit->ns;
    uint64_t now = guest_now_ns();
    if (!limit->start_ns)
        limit->start_ns = now;
    return now - limit->start_ns < limit->ns ? limit->ns - (now - limit->start_ns) : 0;
}

/* After a frame that was not it: is there time for another? */
static inline int net_goes_on(struct net_limit *limit) {
    return limit->passed++ < NET_LOOK || net_left(limit) > 0;
}

/*
 * The next frame, whatever it is: its size, or NET_TIMEOUT, NET_CORRUPT. It stays in the ring, and its sender's to change,
 * until net_release. Checked: its size, and *offload (a copy) against it.
 */
int64_t net_pull(struct net_port *port, const uint8_t **frame, struct net_offload *offload, struct net_limit *limit);

/* Room for a message: an offload header, and a frame of `size` bytes behind it. 0, or as net_reserve. Nothing is written. */
int net_room(struct net_port *port, size_t size, uint8_t **message, uint64_t limit_ns);

/* Sends what was made room for, or a part: a frame of `size` bytes. */
void net_post(struct net_port *port, size_t size);

/* Room for a frame, as net_reserve makes it; NULL if the ring is full. For answers, which nobody waits to send. */
uint8_t *net_answer(struct net_port *port, uint32_t size);

/* Remembers why there is none: for net_why. Returns NULL. */
void *net_none(int why);

#endif
