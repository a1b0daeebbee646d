/* net.c: see net.h. */
#include "net.h"

#include <errno.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "state.h"
#include "transport.h"

#ifndef VIRTIO_NET_F_GUEST_USO4 /* Linux 6.2 */
#define VIRTIO_NET_F_GUEST_USO4 54
#define VIRTIO_NET_F_GUEST_USO6 55
#define VIRTIO_NET_F_HOST_USO 56
#endif

#define BIT(number) (1ull << (number))

/* What changes the rings or the frames, so that the back end must know it. */
static const uint64_t BACK_END =
    VIRTIO_RING_FEATURES | BIT(VIRTIO_F_IN_ORDER) | BIT(VIRTIO_NET_F_MRG_RXBUF) | BIT(VIRTIO_NET_F_CSUM) |
    BIT(VIRTIO_NET_F_HOST_TSO4) | BIT(VIRTIO_NET_F_HOST_TSO6) | BIT(VIRTIO_NET_F_HOST_ECN) | BIT(VIRTIO_NET_F_HOST_UFO) |
    BIT(VIRTIO_NET_F_HOST_USO) | BIT(VIRTIO_NET_F_GUEST_CSUM) | BIT(VIRTIO_NET_F_GUEST_TSO4) |
    BIT(VIRTIO_NET_F_GUEST_TSO6) | BIT(VIRTIO_NET_F_GUEST_ECN) | BIT(VIRTIO_NET_F_GUEST_UFO) |
    BIT(VIRTIO_NET_F_GUEST_USO4) | BIT(VIRTIO_NET_F_GUEST_USO6);

/* What this device does itself. The link is up as long as the device is there, whoever is at its other end. */
static const uint64_t OWN = BIT(VIRTIO_NET_F_MAC) | BIT(VIRTIO_NET_F_STATUS) | BIT(VIRTIO_NET_F_MTU);

/* As long as nobody knows the back end: what most can, and hostd's own switch does. */
static const uint64_t LIKELY = ~(BIT(VIRTIO_F_IN_ORDER) | BIT(VIRTIO_NET_F_HOST_ECN) | BIT(VIRTIO_NET_F_HOST_UFO) |
                                 BIT(VIRTIO_NET_F_GUEST_ECN) | BIT(VIRTIO_NET_F_GUEST_UFO));

static void set_config(struct virtio_net *net, size_t offset, uint16_t value) {
    net->device.config[offset] = (uint8_t)value;
    net->device.config[offset + 1] = (uint8_t)(value >> 8);
}

/* What a driver that begins now is offered: what device and back end have in common. */
static void offer(struct virtio_net *net) {
    const struct vhost_front *front = &net->front;
    uint64_t back_end = front->back_pairs ? front->offered : LIKELY;
    uint32_t pairs = front->back_pairs && front->back_pairs < net->pairs ? front->back_pairs : net->pairs;
    if (!(back_end & BIT(VIRTIO_NET_F_MQ)))
        pairs = 1;
    net->shown = pairs;
    net->device.offered = OWN | BIT(VIRTIO_F_VERSION_1) | (BACK_END & back_end);
    if (pairs > 1)
        net->device.offered |= BIT(VIRTIO_NET_F_MQ) | BIT(VIRTIO_NET_F_CTRL_VQ);
    set_config(net, offsetof(struct virtio_net_config, max_virtqueue_pairs), (uint16_t)pairs);
    net->device.config_changed = 1;
}

static void known(struct vhost_front *front) {
    struct virtio_net *net = (struct virtio_net *)front->device;
    /* A driver that has begun to read features goes on with those; whether they fit is seen when it is ready. */
    if (!(net->device.status & (VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK)))
        offer(net);
}

/* 5.1.2: behind all pairs that there may be, or behind the only one. There is none if it was not negotiated. */
static uint32_t control_queue(const struct virtio_net *net) {
    if (!virtio_has(&net->device, VIRTIO_NET_F_CTRL_VQ))
        return UINT32_MAX;
    return virtio_has(&net->device, VIRTIO_NET_F_MQ) ? 2 * net->shown : 2;
}

static uint32_t data_queues(const struct virtio_net *net) {
    return virtio_has(&net->device, VIRTIO_NET_F_MQ) ? 2 * net->shown : 2;
}

/* --- the control queue (5.1.6.5) --- */

static uint8_t command(struct virtio_net *net, const struct virtqueue_chain *chain) {
    struct virtio_net_ctrl_hdr header;
    uint16_t pairs;
    if (chain_read(chain, 0, &header, sizeof header) != sizeof header)
        return VIRTIO_NET_ERR;
    if (header.class != VIRTIO_NET_CTRL_MQ || header.cmd != VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET)
        return VIRTIO_NET_ERR;
    if (!virtio_has(&net->device, VIRTIO_NET_F_MQ) || chain_read(chain, sizeof header, &pairs, sizeof pairs) != sizeof pairs)
        return VIRTIO_NET_ERR;
    if (!pairs || pairs > net->shown)
        return VIRTIO_NET_ERR;
    net->active = pairs; /* The back end is told when slot_lock is no longer held. */
    return VIRTIO_NET_OK;
}

static int64_t net_chain(struct virtio_device *device, uint32_t queue, struct virtqueue_chain *chain) {
    struct virtio_net *net = (struct virtio_net *)device;
    (void)queue;
    uint8_t answer = command(net, chain);
    net->commands++;
    net->refused += answer != VIRTIO_NET_OK;
    return chain_write(chain, 0, &answer, 1) ? 1 : -VQ_REQUEST;
}

static void control_ready(struct virtio_device *device, struct virtio_watch *watch) {
    struct virtio_net *net = (struct virtio_net *)device;
    uint64_t count;
    if (read(watch->fd, &count, sizeof count) != sizeof count)
        return;
    virtio_serve(device, control_queue(net));
    if (virtio_live(device))
        vhost_front_activate(&net->front, 2 * net->active);
}

/* --- life --- */

/* Are all rings where a back end can reach them? */
static int reachable(const struct virtio_net *net, uint32_t count) {
    const struct virtio_device *device = &net->device;
    for (uint32_t i = 0; i < count; i++) {
        const struct virtqueue *queue = &device->queues[i];
        if (!queue->enabled)
            continue;
        uint64_t event = virtio_has(device, VIRTIO_RING_F_EVENT_IDX) ? 2 : 0;
        if (!vhost_front_reaches(&net->front, queue->desc.gpa, 16ull * queue->size) ||
            !vhost_front_reaches(&net->front, queue->avail.gpa, 4 + 2ull * queue->size + event) ||
            !vhost_front_reaches(&net->front, queue->used.gpa, 4 + 8ull * queue->size + event)) {
            return 0;
        }
    }
    return 1;
}

static void go_on(struct virtio_net *net, void (*begin)(struct vhost_front *, uint32_t, uint32_t, uint64_t)) {
    struct virtio_device *device = &net->device;
    uint32_t count = data_queues(net), control = control_queue(net);
    if (!reachable(net, count)) {
        virtio_break(device, VQ_RING);
        return;
    }
    if (control < device->queue_count) {
        net->control.fd = virtio_pci_kick(device, control);
        device->watch(device, &net->control, EPOLLIN);
    }
    begin(&net->front, count, 2 * net->active, device->accepted & (BACK_END | BIT(VIRTIO_NET_F_MQ)));
}

static void net_started(struct virtio_device *device) {
    struct virtio_net *net = (struct virtio_net *)device;
    net->active = 1;
    go_on(net, vhost_front_start);
}

/* --- templates --- */

static void net_state(struct virtio_device *device, struct state *state) {
    struct virtio_net *net = (struct virtio_net *)device;
    STATE(state, net->device.offered);
    STATE(state, net->shown);
    STATE(state, net->active);
    int settled = (device->status & VIRTIO_CONFIG_S_FEATURES_OK) != 0;
    if (!net->shown || net->shown > net->pairs || net->active > net->shown ||
        (settled && (device->accepted & ~(OWN | BACK_END | BIT(VIRTIO_NET_F_MQ) | BIT(VIRTIO_NET_F_CTRL_VQ)))))
        state_wrong(state, "its network card has another number of queues, or other features");
    if (!state_fine(state))
        net->shown = 1, net->active = 0;
}

/* The control queue's commands may have been notified; served or not, it is the same. */
static void net_resumed(struct virtio_device *device) {
    struct virtio_net *net = (struct virtio_net *)device;
    go_on(net, vhost_front_resume);
    if (net->control.fd >= 0 && device->queues[control_queue(net)].enabled)
        device->again(device, control_queue(net));
}

static void net_hold(struct virtio_device *device, int on) {
    struct virtio_net *net = (struct virtio_net *)device;
    if (on)
        vhost_front_stop(&net->front);
    else
        vhost_front_resume(&net->front, net->front.queue_count, net->front.active, net->front.features);
}

static void net_stopped(struct virtio_device *device) {
    struct virtio_net *net = (struct virtio_net *)device;
    if (net->control.fd >= 0)
        device->watch(device, &net->control, VIRTIO_UNWATCHED);
    net->control.fd = -1;
    vhost_front_stop(&net->front);
    net->active = 0;
    offer(net);
}

static void net_close(struct virtio_device *device) {
    struct virtio_net *net = (struct virtio_net *)device;
    vhost_front_close(&net->front);
    free(net);
}

static const struct virtio_ops net_ops = {
    .name = "net",
    .id = VIRTIO_ID_NET,
    .pci_class = 0x020000, /* Ethernet controller */
    .serve = virtio_serve_chains, /* the control queue's alone */
    .chain = net_chain,
    .started = net_started,
    .stopped = net_stopped,
    .state = net_state,
    .resumed = net_resumed,
    .hold = net_hold,
    .own_config = 6, /* its address */
    .close = net_close,
    .external = 1,
};

static int open_net(struct virtio_net *net, struct slot_rows *memory, const struct virtio_net_setup *setup) {
    struct vhost_front_config config = {
        .path = setup->path,
        .shares = setup->shares,
        .share_count = setup->share_count,
        .mtu = setup->mtu,
        .known = known,
    };
    uint32_t queues = 2 * setup->pairs + (setup->pairs > 1);
    int error = setup->pairs && setup->pairs <= NET_PAIRS ? 0 : -EINVAL;
    if (!error)
        error = virtio_init(&net->device, &net_ops, memory, 0, offsetof(struct virtio_net_config, mtu) + 2, queues, NET_QUEUE);
    if (error)
        return error;
    if (setup->pairs > 1)
        net->device.queues[queues - 1].max = net->device.queues[queues - 1].size = 64;
    return vhost_front_open(&net->front, &net->device, &config);
}

struct virtio_net *virtio_net_new(struct slot_rows *memory, const struct virtio_net_setup *setup) {
    struct virtio_net *net = calloc(1, sizeof *net);
    if (!net)
        return NULL;
    net->pairs = setup->pairs;
    net->control = (struct virtio_watch){.fd = -1, .ready = control_ready, .device = &net->device};
    net->front.socket.fd = net->front.timer.fd = net->front.errors = -1;
    int error = open_net(net, memory, setup);
    if (error) {
        free(net->device.queues);
        vhost_front_close(&net->front);
        free(net);
        errno = -error;
        return NULL;
    }
    memcpy(net->device.config, setup->mac, sizeof setup->mac);
    set_config(net, offsetof(struct virtio_net_config, status), VIRTIO_NET_S_LINK_UP);
    set_config(net, offsetof(struct virtio_net_config, mtu), setup->mtu);
    offer(net);
    return net;
}

void virtio_net_connect(struct virtio_net *net, int patience_ms) {
    pthread_mutex_lock(&net->device.lock);
    vhost_front_connect(&net->front, patience_ms);
    pthread_mutex_unlock(&net->device.lock);
}

void virtio_net_look(struct virtio_net *net, struct virtio_net_view *view) {
    const struct vhost_front *front = &net->front;
    pthread_mutex_lock(&net->device.lock);
    *view = (struct virtio_net_view){
        .state = vhost_front_state(front),
        .offered = front->offered,
        .shown = net->shown,
        .active = net->active,
        .connections = front->connections,
        .reconnects = front->reconnects,
        .lost = front->lost,
        .failures = front->failures,
        .queue_errors = front->queue_errors,
        .commands = net->commands,
        .refused = net->refused,
    };
    memcpy(view->reason, front->reason, sizeof view->reason);
    pthread_mutex_unlock(&net->device.lock);
}
