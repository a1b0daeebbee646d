/* vhost_front.c: see vhost_front.h. */
#define _GNU_SOURCE
#include "vhost_front.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "transport.h"
#include "vhost_tell.h"

enum {
    RETRY_MS = 50,        /* how often a back end that is away is looked for */
    REST_MS = 1000,       /* after one that broke the rules, or can't work with this guest */
    ANSWER_MS = 5000,     /* in which a back end must have done all that it was told at once */
    STOP_MS = 2000,
    SHORT_SESSIONS = 16,  /* that many in a row: then rest, too */
};
#define SHORT_NS 1000000000ll

#define PROTOCOL (1ull << VHOST_P_MQ | 1ull << VHOST_P_REPLY_ACK | 1ull << VHOST_P_NET_MTU)

enum { UNKNOWN = 2 }; /* on, or off? */

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static void signal_event(int fd) {
    uint64_t one = 1;
    ssize_t put = write(fd, &one, sizeof one);
    (void)put;
}

static void set_timer(struct vhost_front *front, int ms) {
    struct itimerspec in = {.it_value = {ms / 1000, ms % 1000 * 1000000l}};
    timerfd_settime(front->timer.fd, 0, &in, NULL);
    front->timed = ms != 0;
}

/* --- the end of a session --- */

static void disconnect(struct vhost_front *front, int retry_ms) {
    if (front->socket.fd >= 0) {
        front->device->watch(front->device, &front->socket, VIRTIO_UNWATCHED);
        close(front->socket.fd);
        front->socket.fd = -1;
    }
    front->step = VHOST_AWAY;
    front->awaited = VHOST_NONE;
    front->unsent = 0;
    front->memory_told = 0;
    for (uint32_t i = 0; i < VHOST_QUEUES; i++)
        front->queues[i].told = front->queues[i].given = front->queues[i].on = 0;
    set_timer(front, retry_ms);
}

/* The back end did, or lacks, what the words say. */
__attribute__((format(printf, 3, 4)))
static void fail(struct vhost_front *front, uint32_t request, const char *format, ...) {
    int at = snprintf(front->reason, sizeof front->reason, "%s: ", vhost_request_name(request));
    va_list values;
    va_start(values, format);
    vsnprintf(front->reason + at, sizeof front->reason - (size_t)at, format, values);
    va_end(values);
    front->failures++;
    disconnect(front, front->rest_ms);
}

static void hung_up(struct vhost_front *front) {
    uint64_t count;
    int wrong = read(front->errors, &count, sizeof count) == sizeof count;
    int brief = front->step == VHOST_RUNNING && now_ns() - front->running_since < SHORT_NS;
    front->short_sessions = brief ? front->short_sessions + 1 : 0;
    front->queue_errors += (uint64_t)wrong;
    front->lost++;
    snprintf(front->reason, sizeof front->reason, "%s",
             wrong ? "the back end found the guest's queues wrong, and hung up" : "the back end hung up");
    disconnect(front, wrong || front->short_sessions >= SHORT_SESSIONS ? front->rest_ms : front->retry_ms);
}

/* --- what comes next --- */

/* Is there a queue to be told of, or switched on or off? Then that is done: 1. */
static int next_queue(struct vhost_front *front) {
    for (uint32_t i = 0; i < front->queue_count; i++) {
        struct vhost_queue *queue = &front->queues[i];
        if (!(front->enabled >> i & 1))
            continue;
        if (queue->told < VHOST_TOLD) {
            vhost_tell_queue(front, i);
            return 1;
        }
        uint8_t on = i < front->active;
        if (queue->on == on || !(front->offered >> VHOST_F_PROTOCOL & 1)) /* Without it, a queue is on when it is given. */
            continue;
        queue->on = on;
        vhost_tell_state(front, VHOST_SET_VRING_ENABLE, i, on);
        return 1;
    }
    return 0;
}

/* Takes back the first queue that the back end has: 1, or 0 if it has none. */
static int take_queue(struct vhost_front *front) {
    for (uint32_t i = 0; i < VHOST_QUEUES; i++) {
        struct vhost_queue *queue = &front->queues[i];
        queue->told = 0;
        if (!queue->given)
            continue;
        queue->given = 0; /* When the answer is there. Nobody looks before. */
        queue->on = UNKNOWN; /* Back ends differ. */
        front->asked_queue = i;
        vhost_tell_state(front, VHOST_GET_VRING_BASE, i, 0);
        return 1;
    }
    return 0;
}

/* Can this back end serve the queues as the driver uses them? */
static int fits(struct vhost_front *front) {
    uint64_t missing = front->features & ~front->offered;
    if (missing) {
        fail(front, VHOST_GET_FEATURES, "the back end lacks %#llx of the features that the guest uses",
             (unsigned long long)missing);
        return 0;
    }
    if (front->queue_count > 2 * front->back_pairs) {
        fail(front, VHOST_GET_QUEUE_NUM, "the back end serves %u pairs of queues, and the guest uses %u", front->back_pairs,
             front->queue_count / 2);
        return 0;
    }
    return 1;
}

/* All queues are given. What a back end that died had not said, and what it was not told, is made up for. */
static void ran(struct vhost_front *front) {
    int again = 0;
    for (uint32_t i = 0; i < front->queue_count; i++) {
        struct vhost_queue *queue = &front->queues[i];
        if (!queue->given)
            continue;
        if (queue->before) {
            again = 1;
            signal_event(virtio_pci_kick(front->device, i));
            signal_event(virtio_pci_call(front->device, i));
        }
        queue->before = 1;
    }
    front->reconnects += (uint64_t)again;
    front->running_since = now_ns();
    front->step = VHOST_RUNNING;
}

/* All that a driver may be offered is known. */
static void greeted(struct vhost_front *front) {
    front->step = VHOST_KNOWN;
    front->connections++;
    front->known(front);
}

/* Does one thing, if there is one to do: 1. */
static int next(struct vhost_front *front) {
    switch (front->step) {
    case VHOST_AWAY:
        return 0;
    case VHOST_ASK_FEATURES:
        vhost_ask(front, VHOST_GET_FEATURES);
        return 1;
    case VHOST_ASK_PROTOCOL:
        vhost_ask(front, VHOST_GET_PROTOCOL_FEATURES);
        return 1;
    case VHOST_TELL_PROTOCOL: {
        /* Acknowledged by none before it is done. */
        uint64_t protocol = front->protocol;
        front->protocol = 0;
        front->step = protocol >> VHOST_P_MQ & 1 ? VHOST_ASK_PAIRS : VHOST_TELL_MTU;
        vhost_tell_number(front, VHOST_SET_PROTOCOL_FEATURES, protocol);
        front->protocol = protocol;
        return 1;
    }
    case VHOST_ASK_PAIRS:
        vhost_ask(front, VHOST_GET_QUEUE_NUM);
        return 1;
    case VHOST_TELL_MTU:
        front->step = VHOST_TELL_OWNER;
        if (vhost_has_protocol(front, VHOST_P_NET_MTU))
            vhost_tell_number(front, VHOST_NET_SET_MTU, front->mtu);
        return 1;
    case VHOST_TELL_OWNER:
        vhost_tell(front, VHOST_SET_OWNER);
        if (!front->awaited && !front->unsent)
            greeted(front);
        return 1;
    case VHOST_KNOWN:
        if (!front->run || !fits(front))
            return 0;
        front->step = VHOST_TELL_FEATURES;
        return 1;
    case VHOST_TELL_FEATURES:
        front->step = VHOST_TELL_MEMORY;
        vhost_tell_number(front, VHOST_SET_FEATURES, front->features | (front->offered & 1ull << VHOST_F_PROTOCOL));
        return 1;
    case VHOST_TELL_MEMORY:
        front->step = VHOST_GIVE_QUEUES;
        if (!front->memory_told)
            vhost_tell_memory(front);
        front->memory_told = 1;
        return 1;
    case VHOST_GIVE_QUEUES:
    case VHOST_RUNNING:
        if (!front->run) {
            if (!take_queue(front))
                front->step = VHOST_KNOWN;
            return 1;
        }
        if (next_queue(front))
            return 1;
        if (front->step == VHOST_GIVE_QUEUES)
            ran(front);
        return 0;
    }
    return 0;
}

/* Does all that can be done before the next answer. */
static void go_on(struct vhost_front *front) {
    while (front->socket.fd >= 0 && !front->awaited && next(front)) {
        if (front->unsent == EPIPE || front->unsent == ECONNRESET)
            hung_up(front);
        else if (front->unsent)
            fail(front, front->last, "the back end doesn't take messages (%s)", strerror(front->unsent));
    }
    if (front->socket.fd >= 0 && front->timed != (front->awaited != VHOST_NONE))
        set_timer(front, front->awaited ? ANSWER_MS : 0);
}

/* --- answers --- */

static void answered(struct vhost_front *front) {
    uint64_t number = front->answer.number;
    uint32_t request = front->awaited;
    front->awaited = VHOST_NONE;
    switch (request) {
    case VHOST_GET_FEATURES:
        if (!(number >> VIRTIO_F_VERSION_1 & 1)) {
            fail(front, request, "the back end lacks VERSION_1: it knows no queues of today");
            return;
        }
        front->offered = number;
        front->protocol = 0;
        front->back_pairs = 1;
        front->step = number >> VHOST_F_PROTOCOL & 1 ? VHOST_ASK_PROTOCOL : VHOST_TELL_OWNER;
        break;
    case VHOST_GET_PROTOCOL_FEATURES:
        front->protocol = number & PROTOCOL;
        front->step = VHOST_TELL_PROTOCOL;
        break;
    case VHOST_GET_QUEUE_NUM:
        if (!number) {
            fail(front, request, "the back end has no queues");
            return;
        }
        front->back_pairs = number < VHOST_QUEUES ? (uint32_t)number : VHOST_QUEUES;
        front->step = VHOST_TELL_MTU;
        break;
    case VHOST_GET_VRING_BASE:
        if (front->answer.state.index != front->asked_queue) {
            fail(front, request, "the answer is of another queue");
            return;
        }
        break;
    default:
        if (number)
            fail(front, request, "the back end refused it (%#llx)", (unsigned long long)number);
        else if (request == VHOST_SET_OWNER)
            greeted(front);
    }
}

static void hear(struct vhost_front *front) {
    const char *why = NULL;
    enum vhost_came came = front->awaited ? vhost_link_receive(front->socket.fd, front->awaited, &front->answer, &why)
                                          : vhost_link_idle(front->socket.fd);
    switch (came) {
    case VHOST_LATER:
        return;
    case VHOST_GONE:
        hung_up(front);
        return;
    case VHOST_WRONG:
        fail(front, front->awaited, "%s", why ? why : "the back end spoke without being asked");
        return;
    case VHOST_WHOLE:
        answered(front);
        go_on(front);
    }
}

/* The one place where a back end is waited for: until nothing is left to do. */
static void settle(struct vhost_front *front, int ms) {
    int64_t end = now_ns() + ms * 1000000ll;
    go_on(front);
    while (front->socket.fd >= 0 && front->awaited) {
        int64_t left = end - now_ns();
        struct pollfd answer = {.fd = front->socket.fd, .events = POLLIN};
        int ready = poll(&answer, 1, left > 0 ? (int)(left / 1000000 + 1) : 0);
        if (ready > 0)
            hear(front);
        else if (left <= 0)
            fail(front, front->awaited, "the back end didn't answer within %d ms", ms);
    }
}

/* --- events, from the loop --- */

static void socket_ready(struct virtio_device *device, struct virtio_watch *watch) {
    (void)device;
    struct vhost_front *front = (struct vhost_front *)((char *)watch - offsetof(struct vhost_front, socket));
    hear(front);
}

static void connect_now(struct vhost_front *front) {
    int fd = vhost_link_connect(front->path);
    if (fd < 0) {
        if (fd != -ENOENT && fd != -ECONNREFUSED && fd != -EAGAIN)
            snprintf(front->reason, sizeof front->reason, "the back end's socket can't be reached: %s", strerror(-fd));
        set_timer(front, front->retry_ms);
        return;
    }
    uint64_t count;
    ssize_t old = read(front->errors, &count, sizeof count); /* Said by the one before. */
    (void)old;
    front->socket.fd = fd;
    front->step = VHOST_ASK_FEATURES;
    set_timer(front, 0);
    front->device->watch(front->device, &front->socket, EPOLLIN);
    go_on(front);
}

static void timer_ready(struct virtio_device *device, struct virtio_watch *watch) {
    (void)device;
    struct vhost_front *front = (struct vhost_front *)((char *)watch - offsetof(struct vhost_front, timer));
    uint64_t count;
    if (read(watch->fd, &count, sizeof count) != sizeof count)
        return;
    front->timed = 0;
    if (front->socket.fd < 0)
        connect_now(front);
    else if (front->awaited)
        fail(front, front->awaited, "the back end didn't answer within %d ms", ANSWER_MS);
}

/* --- for the device --- */

int vhost_front_open(struct vhost_front *front, struct virtio_device *device, const struct vhost_front_config *config) {
    front->device = device;
    front->socket = (struct virtio_watch){.fd = -1, .ready = socket_ready, .device = device};
    front->timer = (struct virtio_watch){.fd = -1, .ready = timer_ready, .device = device};
    front->errors = -1;
    front->patience_ms = STOP_MS;
    front->retry_ms = RETRY_MS;
    front->rest_ms = REST_MS;
    front->known = config->known;
    front->mtu = config->mtu;
    if (strlen(config->path) >= sizeof front->path || config->share_count > VHOST_SHARES)
        return -EINVAL;
    strcpy(front->path, config->path);
    front->share_count = config->share_count;
    if (config->share_count)
        memcpy(front->shares, config->shares, config->share_count * sizeof *config->shares);
    front->errors = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    front->timer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    return front->errors < 0 || front->timer.fd < 0 ? -errno : 0;
}

void vhost_front_connect(struct vhost_front *front, int patience_ms) {
    front->device->watch(front->device, &front->timer, EPOLLIN);
    if (front->socket.fd < 0)
        connect_now(front);
    if (patience_ms)
        settle(front, patience_ms);
}

int vhost_front_reaches(const struct vhost_front *front, uint64_t gpa, uint64_t size) {
    for (uint32_t i = 0; i < front->share_count; i++) {
        const struct vhost_share *share = &front->shares[i];
        uint64_t offset = gpa - share->gpa;
        if (offset < share->size)
            return size <= share->size - offset;
    }
    return 0;
}

void vhost_front_start(struct vhost_front *front, uint32_t queue_count, uint32_t active, uint64_t features) {
    front->run = 1;
    front->queue_count = queue_count;
    front->active = active;
    front->features = features;
    front->enabled = 0;
    for (uint32_t i = 0; i < queue_count; i++)
        front->enabled |= (uint32_t)front->device->queues[i].enabled << i;
    go_on(front);
}

void vhost_front_resume(struct vhost_front *front, uint32_t queue_count, uint32_t active, uint64_t features) {
    for (uint32_t i = 0; i < VHOST_QUEUES; i++)
        front->queues[i].before = 1;
    vhost_front_start(front, queue_count, active, features);
}

void vhost_front_activate(struct vhost_front *front, uint32_t active) {
    front->active = active;
    go_on(front);
}

void vhost_front_stop(struct vhost_front *front) {
    int given = 0;
    front->run = 0;
    for (uint32_t i = 0; i < VHOST_QUEUES; i++) {
        given |= front->queues[i].given;
        front->queues[i].before = 0;
    }
    if (given)
        settle(front, front->patience_ms);
    else if (front->step > VHOST_KNOWN) /* Whatever it was told so far, it is told again. */
        front->step = VHOST_KNOWN;
    for (uint32_t i = 0; i < VHOST_QUEUES; i++)
        front->queues[i].told = 0;
}

void vhost_front_close(struct vhost_front *front) {
    int fds[] = {front->socket.fd, front->timer.fd, front->errors};
    for (uint32_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

const char *vhost_front_state(const struct vhost_front *front) {
    switch (front->step) {
    case VHOST_AWAY:
        return "away";
    case VHOST_KNOWN:
        return "ready";
    case VHOST_RUNNING:
        return "running";
    default:
        return front->step < VHOST_KNOWN ? "greeting" : "starting";
    }
}
