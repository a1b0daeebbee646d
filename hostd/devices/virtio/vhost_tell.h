/*
 * vhost_tell.h: what a front end tells its back end, message by message. Each is sent at once or not at all: front->unsent says
 * why not (an errno). front->awaited is the request, if it will be answered.
 */
#ifndef HOSTD_VHOST_TELL_H
#define HOSTD_VHOST_TELL_H

#include "vhost_front.h"

/* Bits (vhost-user, "Protocol features"). */
enum { VHOST_F_PROTOCOL = 30, VHOST_P_MQ = 0, VHOST_P_REPLY_ACK = 3, VHOST_P_NET_MTU = 4 };

#define VHOST_TOLD 6 /* vhost_tell_queue has said everything */

static inline int vhost_has_protocol(const struct vhost_front *front, unsigned feature) {
    return front->protocol >> feature & 1;
}

/* A request without payload: one with an answer of its own; one that is acknowledged at most. */
void vhost_ask(struct vhost_front *front, uint32_t number);
void vhost_tell(struct vhost_front *front, uint32_t number);

void vhost_tell_number(struct vhost_front *front, uint32_t number, uint64_t value);
void vhost_tell_state(struct vhost_front *front, uint32_t number, uint32_t index, uint32_t value);
void vhost_tell_memory(struct vhost_front *front);

/* The next thing of a queue that is not VHOST_TOLD yet. After the last one it is `given`. Takes slot_lock. */
void vhost_tell_queue(struct vhost_front *front, uint32_t index);

#endif
