/*
 * vhost_user.h: the back end's side of the vhost-user protocol for virtio-net: what each message of a front end does to
 * its memory and its queues. Messages in, replies out; the socket is vhost_port.c's.
 *
 * The front end is hostile: a message that can't be ends the session. Whatever changes what the forwarding thread uses
 * is done between enter and leave; files are mapped and unmapped outside.
 */
#ifndef NET_VHOST_USER_H
#define NET_VHOST_USER_H

#include <stdint.h>

#include "vhost_memory.h"
#include "vring.h"

#define VHOST_PAIRS 8                 /* pairs of a receive and a transmit queue */
#define VHOST_RINGS (2 * VHOST_PAIRS) /* even: receive; odd: transmit (virtio 1.2, 5.1.2) */
#define VHOST_TABLE 8                 /* most regions of one SET_MEM_TABLE, and most descriptors of one message */

/* A message of either side. In the machine's byte order. */
struct vhost_message {
    uint32_t request, flags, size;
    union {
        uint64_t number;
        struct {
            uint32_t index, number;
        } state;
        struct {
            uint32_t index, flags;
            uint64_t desc, used, avail, log;
        } address;
        struct {
            uint32_t count, padding;
            struct vhost_region_message regions[VHOST_TABLE];
        } table;
        struct {
            uint64_t padding;
            struct vhost_region_message region;
        } region;
        uint8_t bytes[8 + 32 * VHOST_TABLE];
    } __attribute__((packed));
} __attribute__((packed));

#define VHOST_HEADER 12 /* bytes before the payload */
#define VHOST_PAYLOAD (8 + 32 * VHOST_TABLE)

/* Who owns the session: keeps the forwarding thread out between enter and leave. */
struct vhost_owner {
    int (*enter)(void *context);  /* 0, or -1 if the session is to end instead */
    void (*leave)(void *context); /* Queues, features or memory may have changed */
    void *context;
};

struct vhost_user {
    struct vhost_memory memory;
    uint32_t lost;               /* set when memory it gave is gone */
    uint32_t mtu;                /* the network's */
    uint64_t offered;            /* features */
    uint64_t features, protocol; /* negotiated */
    int wake;                    /* epoll descriptor that has the kicks */
    struct vhost_owner owner;
    const char *field; /* what was wrong with the last message */
    struct vring_queue rings[VHOST_RINGS];
};

/* Nothing negotiated, no memory, no queues. `offloads`: are checksums and segmentation offered? */
void vhost_user_open(struct vhost_user *user, int wake, uint32_t mtu, int offloads, const struct vhost_owner *owner);

/* The front end is gone: gives back all. The forwarding thread is not kept out where enter says that there is none. */
void vhost_user_close(struct vhost_user *user);

/* May a payload have `size` bytes in a message with this number? */
int vhost_user_size_ok(uint32_t request, uint32_t size);

/* What the protocol calls a request, for people. */
const char *vhost_user_name(uint32_t request);

/*
 * Does what a whole message asks. Takes the descriptors over. 1: *message has become the reply; 0: there is none;
 * -1: the session must end, `field` says why.
 */
int vhost_user_message(struct vhost_user *user, struct vhost_message *message, const int *fds, uint32_t fd_count);

/* Does this receive queue, or transmit queue, take part? */
int vhost_user_active(const struct vhost_user *user, uint32_t ring);

static inline int vhost_user_has(const struct vhost_user *user, unsigned feature) {
    return (int)(user->features >> feature & 1);
}

#endif
