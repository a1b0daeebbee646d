/*
 * vhost_front.h: the front end's side of the vhost-user protocol: gives a device's queues to another process, the back end,
 * which is reached by a Unix socket, and gives them again when it comes back.
 *
 * The back end is hostile: an answer that can't be ends the session, in one place, with one reason; the guest's memory is all
 * that it is given. It is waited for in one case alone, `vhost_front_stop`, and not for longer than `patience`: elsewhere
 * what comes next is done when its answer is there. All under the device's lock.
 */
#ifndef HOSTD_VHOST_FRONT_H
#define HOSTD_VHOST_FRONT_H

#include "device.h"
#include "vhost_link.h"

#define VHOST_QUEUES 16     /* most that are given away */
#define VHOST_PATH 108      /* of a socket, with the NUL */

/* Bytes of the guest's memory: `size` at `gpa`, which are the file's from `offset` on. */
struct vhost_share {
    uint64_t gpa, size, offset;
    int fd;                 /* stays the caller's, who keeps it open */
};

/* How far a session is; in this order. */
enum vhost_step {
    VHOST_AWAY,             /* no back end there: looked for again soon */
    VHOST_ASK_FEATURES,
    VHOST_ASK_PROTOCOL,
    VHOST_TELL_PROTOCOL,
    VHOST_ASK_PAIRS,
    VHOST_TELL_MTU,
    VHOST_TELL_OWNER,
    VHOST_KNOWN,            /* the back end is known; the driver is not ready */
    VHOST_TELL_FEATURES,
    VHOST_TELL_MEMORY,
    VHOST_GIVE_QUEUES,
    VHOST_RUNNING,
};

struct vhost_queue {
    uint8_t told;           /* how much of it the back end was told */
    uint8_t given;          /* it may use the rings */
    uint8_t on;             /* it was told that the queue is enabled: 1; that it is not: 0 */
    uint8_t before;         /* a back end had it before, since the driver started */
};

struct vhost_front;

struct vhost_front_config {
    const char *path;
    const struct vhost_share *shares;
    uint32_t share_count;   /* at most VHOST_SHARES */
    uint16_t mtu;
    void (*known)(struct vhost_front *front); /* `offered` and `back_pairs` are known, or changed */
};

struct vhost_front {
    struct virtio_device *device;
    struct virtio_watch socket, timer;
    char path[VHOST_PATH];
    struct vhost_share shares[VHOST_SHARES];
    uint32_t share_count;
    uint16_t mtu;
    int errors;             /* eventfd that the back end signals when the guest's queues are wrong */
    int patience_ms;        /* how long vhost_front_stop waits */
    int retry_ms;           /* how often a back end that is away is looked for */
    int rest_ms;            /* after a back end that broke the rules, or can't work with this guest */
    void (*known)(struct vhost_front *front);

    /* What is wanted. */
    uint8_t run;            /* the driver is ready */
    uint32_t queue_count;   /* queues 0.. may be given; */
    uint32_t enabled;       /* those of these bits are */
    uint32_t active;        /* queues 0.. are enabled */
    uint64_t features;      /* that queues are used with */

    /* What the back end said; of the last one, if there is none. */
    uint64_t offered, protocol;
    uint32_t back_pairs;    /* 0: there never was one */

    /* The session. */
    enum vhost_step step;
    uint32_t awaited;       /* request that is to be answered, or VHOST_NONE */
    uint32_t last;          /* request */
    int unsent;             /* why it could not be sent, or 0 */
    struct vhost_answer answer;
    uint32_t asked_queue;   /* whose index was asked for */
    uint8_t memory_told, timed;
    struct vhost_queue queues[VHOST_QUEUES];
    int64_t running_since;  /* ns */
    uint32_t short_sessions;/* one after the other that ended as soon as they ran */

    /* Counters, and the last trouble in words. */
    uint64_t connections, reconnects, lost, failures, queue_errors;
    char reason[160];
};

/* Nothing happens yet. 0, or -errno: -EINVAL for too many shares or a path that is too long. */
int vhost_front_open(struct vhost_front *front, struct virtio_device *device, const struct vhost_front_config *config);

/* The device has a transport: connects, and waits `patience_ms` at most (0: not) for a back end to say what it can. */
void vhost_front_connect(struct vhost_front *front, int patience_ms);

/* Can a back end reach all of these bytes? */
int vhost_front_reaches(const struct vhost_front *front, uint64_t gpa, uint64_t size);

/*
 * The driver is ready: the enabled ones of queues 0 to queue_count are the back end's from now on, used with `features`; 0 to
 * `active` are switched on.
 */
void vhost_front_start(struct vhost_front *front, uint32_t queue_count, uint32_t active, uint64_t features);

/* As vhost_front_start, of queues that a back end had before, in this process or another: each goes on where that had come to. */
void vhost_front_resume(struct vhost_front *front, uint32_t queue_count, uint32_t active, uint64_t features);

/* Another number of queues is switched on. */
void vhost_front_activate(struct vhost_front *front, uint32_t active);

/* Takes the queues back: the back end has let go of them when this returns, or the connection is closed. */
void vhost_front_stop(struct vhost_front *front);

/* Gives everything back. */
void vhost_front_close(struct vhost_front *front);

/* "away", "greeting", "ready", "starting" or "running". */
const char *vhost_front_state(const struct vhost_front *front);

#endif
