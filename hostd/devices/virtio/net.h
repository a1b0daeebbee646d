/*
 * net.h: the network device (virtio 1.2, 5.1). What it is (address, MTU, number of queues) is here; its queues of frames are
 * another process's, the back end, by vhost-user (vhost_front.h). The control queue is served here.
 */
#ifndef HOSTD_VIRTIO_NET_H
#define HOSTD_VIRTIO_NET_H

#include "vhost_front.h"

#define NET_PAIRS (VHOST_QUEUES / 2) /* most pairs of a receive and a transmit queue */
#define NET_QUEUE 1024               /* entries: a few frames of 64 KiB in buffers of 1.5 KiB must find room */

struct virtio_net {
    struct virtio_device device;
    struct vhost_front front;
    struct virtio_watch control;  /* the kick of the control queue */
    uint32_t pairs;               /* at most, as the user wants it */
    uint32_t shown;               /* that the driver may use: no more than the back end serves */
    uint32_t active;              /* that it uses */
    uint64_t commands, refused;   /* counters: of the control queue */
};

struct virtio_net_setup {
    const char *path;             /* of the back end's socket */
    uint8_t mac[6];
    uint16_t mtu;
    uint32_t pairs;               /* 1 to NET_PAIRS */
    const struct vhost_share *shares;
    uint32_t share_count;
};

/* What there is to see of it. */
struct virtio_net_view {
    const char *state;
    char reason[160];             /* the last trouble, "" if there was none */
    uint64_t offered;             /* what the last back end can */
    uint32_t shown, active;
    uint64_t connections, reconnects, lost, failures, queue_errors, commands, refused;
};

/* NULL with errno. The shares' descriptors stay the caller's, who keeps them open as long as the device. */
struct virtio_net *virtio_net_new(struct slot_rows *memory, const struct virtio_net_setup *setup);

/* After virtio_pci_add: looks for the back end, and waits for one that is there, `patience_ms` at most (0: not). */
void virtio_net_connect(struct virtio_net *net, int patience_ms);

void virtio_net_look(struct virtio_net *net, struct virtio_net_view *view);

#endif
