/*
 * forward.h: one round of a switch, and what a switch is inside. For switch.c and forward.c alone.
 */
#ifndef NET_FORWARD_H
#define NET_FORWARD_H

#include <pthread.h>

#include "switch.h"

struct addresses;

struct net_switch {
    struct switch_config config;
    struct addresses *addresses;
    switch_tap *tap;
    void *tap_context;
    uint64_t now_ns;                    /* of the round: monotonic */
    uint32_t port_count, touched_count, next_id;
    int epoll, nudge;
    pthread_mutex_t lock;
    _Alignas(64) uint32_t waiting;      /* for the lock */
    uint32_t stopping;
    uint32_t let_in;                    /* how often somebody but the forwarding thread had the lock */
    uint32_t round;
    struct port *ports[SWITCH_PORTS];
    uint8_t quiet[SWITCH_PORTS];        /* looks at each port since it last had a frame, up to QUIET */
    struct port *touched[SWITCH_PORTS]; /* have frames to flush */
    struct frame frames[FRAME_BATCH];   /* of the port that is being served */
};

static inline int port_usable(const struct port *port) {
    return port->up && !port->quarantined;
}

uint64_t switch_now_ns(void);

/* Takes what lies ready at each port, or at those that had frames lately, where it belongs. Returns how many frames came. */
uint32_t forward_round(struct net_switch *sw);

#endif
