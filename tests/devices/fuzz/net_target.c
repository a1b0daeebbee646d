/*
 * net_target.c: see net_target.h. The back end shares the fuzzer's thread: it hears and answers when a step lets it. So a
 * device that waits for it finds what it had said before, or nothing.
 */
#define _GNU_SOURCE
#include "net_target.h"

#include <linux/virtio_net.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "net.h"

enum { PAIRS = 2, DATA_QUEUES = 2 * PAIRS, CONTROL = DATA_QUEUES, NEVER_MS = 1000000 };
#define FEATURES (VIRTIO_RING_FEATURES | 1ull << 30 | 1ull << VIRTIO_NET_F_MRG_RXBUF | 1ull << VIRTIO_NET_F_MQ | \
                  1ull << VIRTIO_NET_F_CSUM | 1ull << VIRTIO_NET_F_GUEST_CSUM)
#define PROTOCOL 0x19ull /* MQ, REPLY_ACK, NET_MTU */
#define OK(call) do { if ((call) < 0) { perror(#call); abort(); } } while (0)

static struct {
    int listener, connection;
    int events[3][DATA_QUEUES]; /* kick, call, err; as far as they were given */
    int honest, acknowledges;
    char path[64];
} peer = {.listener = -1, .connection = -1};

static void drop(int *fd) {
    if (*fd > 0)
        close(*fd);
    *fd = -1;
}

static void hang_up(void) {
    drop(&peer.connection);
    for (int kind = 0; kind < 3; kind++)
        for (int i = 0; i < DATA_QUEUES; i++)
            drop(&peer.events[kind][i]);
    peer.acknowledges = 0;
}

void peer_close(void) {
    hang_up();
    drop(&peer.listener);
    unlink(peer.path);
}

static void listen_again(void) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    peer_close();
    memcpy(name.sun_path, peer.path, sizeof peer.path);
    OK(peer.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    OK(bind(peer.listener, (struct sockaddr *)&name, sizeof name));
    OK(listen(peer.listener, 4));
}

static void say(const void *bytes, size_t size) {
    if (size && send(peer.connection, bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        hang_up();
}

/* One of the device's descriptors. */
static void keep(uint32_t request, uint32_t queue, int fd) {
    int *place = &peer.events[request - VHOST_SET_VRING_KICK][queue % DATA_QUEUES];
    drop(place);
    *place = fd;
}

/* The right answer's payload: 1, or 0 if there is none. */
static int answer_to(const struct vhost_request *request, uint64_t *number) {
    *number = 0;
    switch (request->header.request) {
    case VHOST_GET_FEATURES:
        *number = FEATURES;
        return 1;
    case VHOST_GET_PROTOCOL_FEATURES:
        *number = PROTOCOL;
        return 1;
    case VHOST_GET_QUEUE_NUM:
        *number = PAIRS;
        return 1;
    case VHOST_GET_VRING_BASE:
        *number = request->state.index;
        return 1;
    }
    int acknowledged = peer.acknowledges && request->header.flags & VHOST_NEED_REPLY;
    if (request->header.request == VHOST_SET_PROTOCOL_FEATURES)
        peer.acknowledges = request->number >> 3 & 1;
    return acknowledged;
}

static void answer(const struct vhost_request *request) {
    struct { struct vhost_header header; uint64_t number; } __attribute__((packed)) reply;
    uint8_t junk[64];
    uint64_t number;
    int due = answer_to(request, &number);
    reply.header = (struct vhost_header){request->header.request, VHOST_VERSION | VHOST_REPLY, sizeof number};
    reply.number = number;
    uint64_t lie = peer.honest || below(6) ? 99 : below(8);
    switch (lie) {
    case 0:
        hang_up();
        return;
    case 1:
        for (size_t i = 0; i < sizeof junk; i++)
            junk[i] = (uint8_t)random_next();
        say(junk, below(sizeof junk));
        return;
    case 2:
        ((uint8_t *)&reply)[below(sizeof reply)] ^= (uint8_t)(1 + below(255));
        break;
    case 3: /* More than one. */
        say(&reply, sizeof reply);
        break;
    case 4:
        say(&reply, below(sizeof reply));
        return;
    case 5:
        reply.number = nasty(16) | (below(2) ? FEATURES : 0);
        break;
    case 6:
        due = !due;
    }
    if (due && peer.connection >= 0)
        say(&reply, sizeof reply);
}

/* Hears one message, if there is one: 1. */
static int hear(void) {
    if (peer.connection < 0 && peer.listener >= 0)
        peer.connection = accept4(peer.listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (peer.connection < 0)
        return 0;
    struct vhost_request request;
    char room[CMSG_SPACE(16 * sizeof(int))];
    struct iovec piece = {&request, sizeof request.header};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    ssize_t got = recvmsg(peer.connection, &message, MSG_CMSG_CLOEXEC);
    if (got == 0)
        hang_up();
    if (got <= 0)
        return 0;
    uint32_t size = request.header.size;
    if (got != sizeof request.header || size > sizeof request - sizeof request.header ||
        (size && recv(peer.connection, &request.number, size, 0) != (ssize_t)size))
        abort(); /* The device is the one who keeps to the rules. */
    int fds[16], count = 0;
    struct cmsghdr *control = CMSG_FIRSTHDR(&message);
    if (control) {
        count = (int)((control->cmsg_len - CMSG_LEN(0)) / sizeof *fds);
        memcpy(fds, CMSG_DATA(control), (size_t)count * sizeof *fds);
    }
    uint32_t kind = request.header.request;
    for (int i = 0; i < count; i++) {
        if (kind >= VHOST_SET_VRING_KICK && kind <= VHOST_SET_VRING_ERR)
            keep(kind, (uint32_t)request.number, fds[i]);
        else
            close(fds[i]);
    }
    answer(&request);
    return 1;
}

void make_net(struct bench *bench) {
    static const struct vhost_share shares[] = {
        {.gpa = 0, .size = 24 << 12, .offset = 0, .fd = 0},
        {.gpa = 1ull << 32, .size = 8 << 12, .offset = 1ull << 32, .fd = 0},
    };
    struct virtio_net_setup setup = {
        .path = peer.path, .mac = {2, 0, 0, 0, 0, 1}, .mtu = 1500, .pairs = PAIRS, .shares = shares, .share_count = 2,
    };
    snprintf(peer.path, sizeof peer.path, "/tmp/device-fuzz.%d.net", getpid());
    peer.honest = 0;
    if (below(8))
        listen_again();
    struct virtio_net *net = virtio_net_new(&guest_rows, &setup);
    if (!net)
        abort();
    /* Nothing waits, and no time passes: a case is the same every time. */
    net->front.patience_ms = 0;
    net->front.retry_ms = net->front.rest_ms = NEVER_MS;
    add_virtio(bench, net);
    virtio_net_connect(net, 0);
    for (uint64_t turns = below(12); turns--;) {
        hear();
        serve(bench->machine);
    }
}

uint32_t request_net(struct bench *bench, struct segment *segments, uint32_t *queue) {
    (void)bench;
    *queue = below(4) ? CONTROL : (uint32_t)below(DATA_QUEUES);
    segments[0] = (struct segment){data_at(64), 4 + (uint32_t)below(8), 0};
    segments[1] = (struct segment){data_at(64), 1 + (uint32_t)below(4), 1};
    struct { uint8_t class, command; uint16_t pairs; } command = {VIRTIO_NET_CTRL_MQ, 0, (uint16_t)(1 + below(PAIRS))};
    if (!below(4))
        command.class = (uint8_t)below(6), command.command = (uint8_t)below(3), command.pairs = (uint16_t)nasty(PAIRS);
    poke(segments[0].gpa, &command, sizeof command);
    return 2;
}

void host_net(struct bench *bench) {
    struct virtio_net *net = bench->device;
    struct virtio_net_view view;
    uint64_t one = 1;
    int *event = &peer.events[below(3)][below(DATA_QUEUES)];
    switch (below(10)) {
    case 0:
        hang_up();
        break;
    case 1:
        if (peer.connection >= 0)
            say(&one, 1 + below(8));
        break;
    case 2:
        if (below(2))
            peer_close();
        else
            listen_again();
        break;
    case 3:
        if (*event > 0)
            (void)!write(*event, &one, sizeof one);
        break;
    case 4:
        virtio_net_look(net, &view);
        break;
    case 5:
        virtio_net_connect(net, 0);
        break;
    default: /* Mostly it does its work. */
        for (uint64_t turns = 1 + below(48); turns--;) {
            hear();
            serve(bench->machine);
        }
    }
}

/* Until the device says so: 1, or 0 if it doesn't come to that. */
static int come_to(struct bench *bench, const char *state) {
    struct virtio_net *net = bench->device;
    for (int turn = 0; turn < 200; turn++) {
        struct virtio_net_view view;
        serve(bench->machine);
        virtio_net_look(net, &view);
        if (!strcmp(view.state, state))
            return 1;
        hear();
    }
    return 0;
}

/* With an honest back end: notifications reach it, its calls reach the driver. */
int prove_net(struct bench *bench) {
    struct driver *driver = &bench->driver;
    uint64_t count = 1;
    peer.honest = 1;
    listen_again();
    if (!come_to(bench, "away"))
        return 0;
    config_put(bench->machine, bench->slot, 4, 6, 2);
    mmio_put(bench->machine, driver->bar + 20, 0, 1); /* So that it may tell the next driver what this back end can. */
    virtio_net_connect(bench->device, 0);
    if (!come_to(bench, "ready"))
        return 0;
    uint32_t at = config_get(bench->machine, bench->slot, 0x34, 1); /* MSI-X off: the interrupt shows in the ISR. */
    for (; at; at = config_get(bench->machine, bench->slot, at + 1, 1))
        if (config_get(bench->machine, bench->slot, at, 1) == 0x11)
            config_put(bench->machine, bench->slot, at + 2, 0, 2);
    if (!driver_open(driver, bench->machine, bench->slot, ~0ull, 0) || !come_to(bench, "running"))
        return 0;
    int kick = peer.events[0][1], call = peer.events[1][0];
    (void)!read(kick, &count, sizeof count);
    mmio_get(bench->machine, driver->bar + 0x1000, 1);
    driver_notify(driver, 1);
    if (read(kick, &count, sizeof count) != sizeof count || write(call, &count, sizeof count) != sizeof count)
        return 0;
    serve(bench->machine);
    return (mmio_get(bench->machine, driver->bar + 0x1000, 1) & 1) == 1;
}
