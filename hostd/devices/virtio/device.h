/*
 * device.h: what every virtio device is (virtio 1.2, 2 "Basic Facilities"), whatever carries it.
 *
 * A device type (blk.c, rng.c, ...) fills in `struct virtio_ops` and embeds `struct virtio_device` first. A transport
 * (transport.c: PCI) shows status, features and configuration to the driver, and calls virtio_serve when a queue was
 * notified. All of a device is guarded by its lock, which is taken before slot_lock. Not so `interrupt`, which the transport
 * gives and which may be called under both.
 */
#ifndef HOSTD_VIRTIO_DEVICE_H
#define HOSTD_VIRTIO_DEVICE_H

#include <linux/virtio_config.h>
#include <pthread.h>
#include <stdint.h>

#include "loop.h"
#include "virtqueue.h"

#define VIRTIO_CONFIG_MAX 64   /* bytes of the largest device configuration */
#define VIRTIO_CONFIG_SOURCE (-1)
#define VIRTIO_UNWATCHED UINT32_MAX

/* Features of the queues and of the transport that every device here offers. */
#define VIRTIO_RING_FEATURES ((1ull << VIRTIO_F_VERSION_1) | (1ull << 28) | (1ull << 29))

struct state;
struct virtio_device;

/* A file descriptor that a device waits on, in the thread that serves its queues. */
struct virtio_watch {
    int fd;             /* -1: none */
    void (*ready)(struct virtio_device *device, struct virtio_watch *watch); /* under the lock; may come without cause */
    struct virtio_device *device;
    struct loop_handler handler; /* from here on the transport's */
    uint32_t events;
    int watching;
};

struct virtio_ops {
    const char *name;
    uint16_t id;            /* virtio 1.2, 5 "Device Types" */
    uint32_t pci_class;     /* 24 bits: class, subclass, interface */

    /*
     * Serve one queue that has been notified. Under the lock and slot_lock, driver ready, rings found. Returns 0 or -enum
     * virtqueue_error: the device breaks. Mostly a call of virtio_serve_chains.
     */
    int (*serve)(struct virtio_device *device, uint32_t queue);

    /* One chain: returns the bytes written to it, -enum virtqueue_error, or VIRTIO_LATER: leave it and all behind it. */
    int64_t (*chain)(struct virtio_device *device, uint32_t queue, struct virtqueue_chain *chain);

    /* Optional, all under the lock. */
    void (*config_written)(struct virtio_device *device, uint32_t offset, uint32_t size);
    void (*started)(struct virtio_device *device);  /* DRIVER_OK: the accepted features are known */
    void (*stopped)(struct virtio_device *device);  /* reset, or broken: let go of every chain */
    void (*close)(struct virtio_device *device);    /* free the device; nothing runs any more */

    /*
     * Templates (state.h), optional. `state`: what the type knows beside features, status, queues and configuration. `resumed`:
     * the driver was ready when the state was saved; in place of `started`, which is for a driver that begins.
     */
    void (*state)(struct virtio_device *device, struct state *state);
    void (*resumed)(struct virtio_device *device);
    void (*hold)(struct virtio_device *device, int on); /* external ones: take the queues back, or hand them over again */
    uint32_t own_config;    /* so many first bytes of the configuration are not a template's */
    int fixed_config;       /* all of it is what it was, or this is another device */

    /*
     * The queues are another process's (docs/virtio.md, "A backend in another process"): `started` hands them over, `stopped`
     * takes them back, `serve` is never called. See virtio_pci_kick and virtio_pci_call.
     */
    int external;
};

/* From `chain`: can't be served now; the device itself serves the queue again when it can. */
#define VIRTIO_LATER INT64_MIN

struct virtio_device {
    const struct virtio_ops *ops;
    pthread_mutex_t lock;
    uint64_t offered, accepted;
    uint8_t status;
    uint8_t broken;             /* enum virtqueue_error, for which the device waits for a reset */
    uint8_t config_changed;     /* since the driver last read the configuration */
    uint8_t generation;
    uint8_t config[VIRTIO_CONFIG_MAX];
    uint32_t config_size;
    uint32_t config_writable_from, config_writable_to; /* the only bytes that the driver may write */
    uint32_t queue_count;
    struct virtqueue *queues;
    struct slot_rows *memory;
    struct virtqueue_chain chain; /* the one being served */

    void *transport;
    /* The transport's. Tell the driver: queue `source` has used buffers, or VIRTIO_CONFIG_SOURCE. */
    void (*interrupt)(struct virtio_device *device, int source);
    /* The transport's. Serve this queue soon from its own thread. */
    void (*again)(struct virtio_device *device, uint32_t queue);
    /*
     * The transport's. Wait for `events` (EPOLLIN, EPOLLOUT; a hang-up is always told) on the watch from now on.
     * VIRTIO_UNWATCHED ends that; it comes before the descriptor is closed.
     */
    void (*watch)(struct virtio_device *device, struct virtio_watch *watch, uint32_t events);

    uint64_t resets, breaks, errors[VQ_ERRORS]; /* counters */
};

/* `count` queues of at most `size` entries each (a power of 2, at most VIRTQUEUE_MAX). 0 or -errno. */
int virtio_init(struct virtio_device *device, const struct virtio_ops *ops, struct slot_rows *memory,
                uint64_t features, uint32_t config_size, uint32_t count, uint16_t size);

/* Gives back what virtio_init took, and the device by its `close`. */
void virtio_close(struct virtio_device *device);

static inline int virtio_has(const struct virtio_device *device, unsigned feature) {
    return (device->accepted >> feature) & 1;
}

/* May queues be served: driver ready and nothing broken. */
static inline int virtio_live(const struct virtio_device *device) {
    return (device->status & VIRTIO_CONFIG_S_DRIVER_OK) && !device->broken;
}

/* --- for the transport; all under the lock --- */

/* The driver writes the status (2.1, 3.1.1): what is not a legal step has no effect, 0 resets. */
void virtio_set_status(struct virtio_device *device, uint8_t status);

void virtio_reset(struct virtio_device *device);

/* The driver enables a queue whose fields it has set. */
void virtio_enable(struct virtio_device *device, uint32_t queue);

/* Saves what every virtio device knows and then what its type does, or takes it back. */
void virtio_state(struct virtio_device *device, struct state *state);

/* After that, with the transport's part taken back, too: goes on where it was. */
void virtio_resume(struct virtio_device *device);

/* Read from the device configuration; bytes past its end are zero. */
void virtio_config_read(struct virtio_device *device, uint32_t offset, uint8_t *to, uint32_t size);

/* Write to it: only what the device lets the driver write changes. */
void virtio_config_write(struct virtio_device *device, uint32_t offset, const uint8_t *from, uint32_t size);

/* The queue was notified: serve it if it can be. Takes slot_lock. */
void virtio_serve(struct virtio_device *device, uint32_t queue);

/* --- for device types; all under the lock --- */

/* Takes chain after chain to ops->chain; ends the batch with the interrupt, if the driver wants one. As ops->serve. */
int virtio_serve_chains(struct virtio_device *device, uint32_t queue);

/* After pushes of its own: interrupt the driver if it wants that. 0 or -error. */
int virtio_signal(struct virtio_device *device, uint32_t queue);

/* A guest broke the rules: no queue is served until the driver resets the device (2.1.2). */
void virtio_break(struct virtio_device *device, enum virtqueue_error error);

/* The configuration has been changed by the device: the driver is told. */
void virtio_config_change(struct virtio_device *device);

#endif
