/*
 * traffic.h: who sends frames through a forwarder and takes them at its other end, in one thread: a virtio-net driver's
 * transmit queue and another one's receive queue, or two rings. What is measured is the forwarder, so this side does what a
 * driver must and no more: it writes each frame and its descriptor, and reads each one that comes.
 *
 * Every frame has a number, at both of its ends; they come in order, and those that are passed over are lost. No more than
 * `window` are on their way, so that whoever loses a frame has lost it without need.
 */
#ifndef HOSTD_TRAFFIC_H
#define HOSTD_TRAFFIC_H

#include <stdint.h>

#define TRAFFIC_HEADER 12 /* bytes of struct virtio_net_hdr_v1 before a frame */
#define TRAFFIC_LONGEST 2032

/* One queue of a virtio-net driver (virtio 1.2, 2.7), whose areas the back end was told. Buffer i is its descriptor i's. */
struct traffic_queue {
    char *desc, *avail, *used, *buffers; /* in this process */
    uint64_t buffers_gpa;                /* of the first buffer */
    uint32_t size;                       /* entries, a power of two */
    uint32_t room;                       /* bytes of each buffer */
    uint16_t next_avail, next_used;
    int kick;
};

/* One way through a forwarder. Either both queues, or both rings. */
struct traffic {
    uint32_t frame_size; /* bytes, the Ethernet header included: 32 to TRAFFIC_LONGEST */
    uint32_t window;
    uint8_t ethernet[14];
    uint64_t sent, received; /* since it was opened */
    uint64_t next;           /* number of the frame that comes next if none is lost */
    uint64_t lost;
    struct traffic_queue *transmit, *receive;
    void *out_ring, *in_ring; /* rings of ring_size bytes (shm/ring.h) */
    uint64_t ring_size;
    uint32_t max_message, ring_flags;
    int out_bell, in_bell; /* rung for a forwarder that sleeps: frames, room */
};

struct traffic_count {
    uint64_t frames;       /* that came */
    uint64_t wall_ns;      /* in so long */
    uint64_t forwarder_ns; /* processor time of the forwarder meanwhile */
    uint64_t idle_ns;      /* when there was nothing to take, and no room to send: the forwarder was waited for */
};

struct traffic_result {
    struct traffic_count all;
    struct traffic_count quiet; /* only those pieces of the time in which both had their processors to themselves */
    uint64_t lost;              /* from the warm-up on: did not come, or not within 1 s after the last was sent */
};

enum { TRAFFIC_OK, TRAFFIC_WRONG = -1, TRAFFIC_RING = -2, TRAFFIC_CLOCK = -3, TRAFFIC_SILENT = -4 };

/* Posts all buffers of a queue to receive into. */
void traffic_fill(struct traffic_queue *queue);

/*
 * Waits until a first frame gets through, sends and takes frames for `warm_ns`; then measures until there are `ns` of quiet
 * time, or the `most_ns` are over; then takes what is on its way. TRAFFIC_OK, TRAFFIC_WRONG (a frame that can't be, or again), TRAFFIC_RING (a ring that can't be),
 * TRAFFIC_CLOCK (`forwarder` is no process), TRAFFIC_SILENT (no frame gets through within 20 s).
 */
int traffic_run(struct traffic *traffic, int forwarder, uint64_t warm_ns, uint64_t ns, uint64_t most_ns,
                struct traffic_result *result);

#endif
