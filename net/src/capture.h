/*
 * capture.h: copies of the frames that a switch forwards, for those who want to see them.
 *
 * A capture is a filter and a ring (shm/ring.h) in the memory of who asked. The forwarding thread is its sender. It neither
 * waits nor makes a system call: what finds no room is counted, and nobody is woken, the reader comes and looks. Who reads is
 * hostile: its ring is checked as a port's is, and what can't be ends the capture, not the switch.
 */
#ifndef NET_CAPTURE_H
#define NET_CAPTURE_H

#include <shm/ring.h>

#include "switch.h"

#define CAPTURES 8                      /* of one switch */
#define CAPTURE_TERMS 64                /* ports, and addresses, of one filter */
#define CAPTURE_MANY 0xffffffffu        /* `to` of a frame that went to many ports */

/* Before each frame in the ring. Port numbers as in struct port. */
struct capture_record {
    uint64_t time_ns;                   /* since 1970 */
    uint64_t lost;                      /* frames before this one that found no room, in all */
    uint32_t from, to;
    uint32_t size;                      /* of the whole frame; the message has what was kept of it */
    struct virtio_net_hdr_v1 offload;
};

/* Which frames: those from or to one of the ports (a frame to many is to each), and from or to one of the addresses. */
struct capture_filter {
    uint32_t by_port, by_mac;           /* 0: whatever the port is, the address is */
    uint32_t port_count, mac_count;
    uint32_t ports[CAPTURE_TERMS];
    uint8_t macs[CAPTURE_TERMS][6];
};

struct capture_counters {
    uint64_t frames, bytes;             /* copied, and what was kept of them */
    uint64_t lost;                      /* found no room */
    uint32_t broken;                    /* 1: its ring was spoiled, or its memory taken away; nothing is copied any more */
    const char *field;                  /* what was wrong with the ring, or NULL */
};

struct captures;
struct capture;

/* The captures of one switch, none so far: NULL with errno. captures_free, before switch_free, ends those that are left. */
struct captures *captures_new(struct net_switch *sw);
void captures_free(struct captures *captures);

/*
 * Begins to copy frames, at most `snap` bytes of each, into the ring that `ring` describes, in the region of `size` bytes at
 * `region`, which must stay until capture_remove. NULL with errno: EINVAL and *field for a ring that can't be, ENOSPC if there
 * are CAPTURES already, ENOMEM. Takes the switch's lock, as the others do.
 */
struct capture *capture_add(struct captures *captures, void *region, uint64_t size, const struct shm_config *ring,
                            const struct capture_filter *filter, uint32_t snap, const char **field);
void capture_remove(struct captures *captures, struct capture *capture);

/* Its ports have come, or gone, and have other numbers. */
void capture_set_ports(struct captures *captures, struct capture *capture, const uint32_t *ports, uint32_t count);
void capture_look(struct captures *captures, const struct capture *capture, struct capture_counters *counters);

_Static_assert(sizeof(struct capture_record) == 40, "Python reads it (net/capture.py)");

#endif
