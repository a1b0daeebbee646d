/*
 * port.h: what every port of a switch is, whatever lies behind it.
 *
 * A kind of port (ring_port.c, vhost_port.c, packet_port.c, tap_port.c) fills in `struct port_ops` and embeds `struct port`
 * first. All ops are called by the switch with its lock held: by the forwarding thread, or by a control thread that changes
 * something. None of them blocks.
 *
 * A port's peer is hostile: what it writes is read once, bounded, then used. An op that finds the rules broken returns
 * -(enum port_error); the switch then quarantines the port (no more frames in or out, reason kept, others go on).
 */
#ifndef NET_PORT_H
#define NET_PORT_H

#include <stdint.h>

#include "frame.h"

#define PORT_NAME 64
#define PORT_UPLINK 1u      /* leads out of the network */
#define PORT_ISOLATED 2u    /* exchanges frames with uplinks only */
#define PORT_FIXED_MAC 4u   /* sends from `mac` only, and nobody else is learnt there */
#define PORT_TAKES_CSUM 8u  /* frames may be sent to it with their checksum undone ... */
#define PORT_TAKES_TSO4 16u /* ... and unsegmented: TCP over IPv4, */
#define PORT_TAKES_TSO6 32u /* over IPv6, */
#define PORT_TAKES_USO 64u  /* UDP */

/* Why a port was quarantined. port_error_name has the words. */
enum port_error {
    PORT_OK,
    PORT_E_RING,        /* indices or headers of a ring that can't be */
    PORT_E_QUEUE,       /* a virtqueue that breaks the rules */
    PORT_E_ADDRESS,     /* a buffer outside the memory it gave */
    PORT_E_FAULT,       /* memory it gave is gone (a file cut short) */
    PORT_E_PROTOCOL,    /* a vhost-user message that can't be */
    PORT_E_DEVICE,      /* the kernel refused: an interface that went away */
    PORT_ERRORS
};
const char *port_error_name(enum port_error error);

/* Why a frame was dropped, counted at the port that is to blame: the sender's for DROP_RUNT to DROP_OFFLOAD, else the receiver's. */
enum drop {
    DROP_NONE,
    DROP_RUNT,          /* shorter than an Ethernet header */
    DROP_OVERSIZE,      /* longer than the network's MTU allows */
    DROP_SPOOFED,       /* not from the port's own address */
    DROP_ISOLATED,      /* not to an uplink */
    DROP_RATE,          /* over the port's rate */
    DROP_OFFLOAD,       /* an offload header that can't be */
    DROP_FULL,          /* the receiver has no room */
    DROP_DOWN,          /* the receiver is not ready, or quarantined */
    DROP_UNFIT,         /* needs an offload that the receiver can't take and the switch can't do */
    DROPS
};
const char *drop_name(enum drop drop);

struct port_counters {
    uint64_t frames_in, bytes_in;   /* from the port into the switch, dropped ones included */
    uint64_t frames_out, bytes_out; /* delivered to the port */
    uint64_t drops[DROPS];
    uint64_t wakes;                 /* doorbells rung for the peer */
    uint64_t missed;                /* frames that the kernel lost before the switch saw them: it looked too seldom */
};

struct port;

struct port_ops {
    const char *kind;               /* "ring", "vhost-user", "packet", "tap" */
    /* Holds out up to `room` frames that lie ready, in order; they stay the port's until `release`. Returns how many.
     * A runt, oversize or wrongly offloaded one is counted by port_drop and passed over. */
    int (*peek)(struct port *port, struct frame *frames, int room);
    /* All frames held out by the last peek have been used. 0 or -error. */
    int (*release)(struct port *port);
    /* Copies a frame in: 0, a positive enum drop, or -error. Never one with offloads that the port's flags don't name. */
    int (*send)(struct port *port, const struct frame *frame);
    /* The same for several, in order: how many went in. If not all, *result says why the next did not. May be NULL. */
    int (*send_many)(struct port *port, const struct frame *frames, int count, int *result);
    /* After a batch of sends: the peer sees them now, and is woken if it sleeps. 0 or -error. */
    int (*flush)(struct port *port);
    /* The switch is about to sleep: ask for a ring of `wake`. Returns 1 if a frame is there already (after a heavy barrier the
     * switch asks again by `ready`), else 0. */
    void (*arm)(struct port *port);
    int (*ready)(struct port *port); /* A frame (or anything else that peek must see to) is there: 1, else 0 */
    void (*disarm)(struct port *port); /* The switch is awake again; may be NULL */
    void (*close)(struct port *port);  /* Gives back all, the port's memory too */
};

struct port {
    const struct port_ops *ops;
    char name[PORT_NAME];
    uint32_t id;                    /* never used again in this switch */
    uint32_t flags;                 /* PORT_* */
    uint8_t mac[6];                 /* with PORT_FIXED_MAC */
    uint8_t up;                     /* can take and give frames; a kind may change it under the switch's lock */
    uint8_t quarantined;            /* enum port_error */
    const char *field;              /* what was wrong, or NULL */
    int wake;                       /* descriptor that becomes readable when frames may be there while armed; edge-triggered; -1 none */
    uint64_t rate;                  /* bytes a second into the switch; 0: as it likes */
    uint64_t burst, tokens, refilled; /* its token bucket: bytes, bytes, nanoseconds */
    uint32_t max_frame;             /* the network's MTU + 18; set by the switch */
    uint8_t touched;                /* has sends to flush; the switch's */
    struct port_counters counters;
};

/* port_check for a frame of which something is undone. */
enum drop port_check_offload(const struct port *port, struct frame *frame);

/*
 * May it come from there, by its size and its offload, which have been read? DROP_NONE, or why not. What a sender has no say
 * in is cleared. `undone`: flags and gso_type of the offload, 0 if nothing is undone.
 */
static inline enum drop port_check(const struct port *port, struct frame *frame, uint64_t undone) {
    if (__builtin_expect(undone != 0, 0))
        return port_check_offload(port, frame);
    __builtin_memset(&frame->offload, 0, sizeof frame->offload);
    return frame->size <= port->max_frame ? DROP_NONE : DROP_OVERSIZE;
}

static inline void port_drop(struct port *port, enum drop reason) {
    port->counters.drops[reason]++;
}

#endif
