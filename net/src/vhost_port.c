/* vhost_port.c: see vhost_port.h. The forwarding thread calls the ops; a thread of each port's own listens to its front
 * end. */
#define _GNU_SOURCE
#include "vhost_port.h"

#include <errno.h>
#include <linux/if_ether.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "vhost_frames.h"
#include "vhost_socket.h"
#include "vhost_user.h"

#ifndef VIRTIO_NET_F_GUEST_USO4 /* Linux 6.2 */
#define VIRTIO_NET_F_GUEST_USO4 54
#define VIRTIO_NET_F_GUEST_USO6 55
#endif

enum {
    STACK = 128 * 1024,
    REST_MS = 25,       /* from a front end that was thrown out to the next: a hostile one costs little */
    LOCK_NS = 10000000, /* how long the lock is waited for before we look whether the port is being closed */
    POLL_NS = 1000000,  /* how often queues without a kick are looked at while the switch sleeps */
};

struct vhost_port {
    struct port port;
    struct net_switch *sw;
    struct frames_context context;
    /* The queues that take part; in the order of their numbers. */
    struct vring_queue *transmit[VHOST_PAIRS], *receive[VHOST_PAIRS];
    uint32_t transmits, receives;
    uint32_t turn; /* the transmit queue that is looked at first */
    uint8_t mergeable, armed, offloads, polled, timed;
    uint32_t broken; /* enum port_error: the forwarding thread found the rules broken */
    uint32_t closing;
    int stop;  /* eventfd: `closing` or `broken` is set */
    int nudge; /* eventfd among the kicks: wakes a switch that sleeps */
    int timer; /* among the kicks, for queues without one */
    struct vhost_listener listener;
    pthread_t thread;
    struct vhost_info info;
    char reason[96]; /* port.field of an error in a message */
    struct vhost_user user;
};

static struct vhost_port *of(struct port *port) {
    return (struct vhost_port *)port;
}

static void write_event(int fd) {
    uint64_t one = 1;
    if (fd >= 0 && write(fd, &one, sizeof one) < 0)
        return; /* Full: it is readable as it is. */
}

/* --- the data path --- */

static int broken(struct vhost_port *vp, int error, const char *field) {
    vp->port.field = field;
    __atomic_store_n(&vp->broken, (uint32_t)-error, __ATOMIC_RELEASE);
    write_event(vp->stop);
    return error;
}

static int check_memory(struct vhost_port *vp) {
    if (VRING_UNLIKELY(__atomic_load_n(&vp->user.lost, __ATOMIC_RELAXED)))
        return broken(vp, -PORT_E_FAULT, "memory that was cut short");
    return 0;
}

static int vhost_peek(struct port *port, struct frame *frames, int room) {
    struct vhost_port *vp = of(port);
    int kept = 0;
    vp->context.bounced = 0;
    for (uint32_t i = 0; i < vp->transmits && kept < room; i++) {
        uint32_t number = vp->turn + i;
        struct vring_queue *ring = vp->transmit[number < vp->transmits ? number : number - vp->transmits];
        int taken = frames_take(ring, frames + kept, room - kept, &vp->context);
        if (VRING_UNLIKELY(taken < 0))
            return broken(vp, taken, ring->field);
        kept += taken;
    }
    if (++vp->turn >= vp->transmits)
        vp->turn = 0;
    return kept;
}

static int vhost_release(struct port *port) {
    struct vhost_port *vp = of(port);
    for (uint32_t i = 0; i < vp->transmits; i++)
        if (vp->transmit[i]->held)
            port->counters.wakes += (uint64_t)frames_release(vp->transmit[i]);
    return check_memory(vp);
}

/* Something that differs from flow to flow: frames of one flow must stay in order, so they go to one queue. */
static uint32_t flow(const struct frame *frame) {
    uint32_t words[4] = {0};
    memcpy(words, frame->ethernet, 12);
    const uint8_t *at = frame->pieces[0].iov_base;
    uint16_t type = (uint16_t)(frame->ethernet[12] << 8 | frame->ethernet[13]);
    if (type == ETH_P_IP && frame->pieces[0].iov_len >= FRAME_HEADER + 24) {
        memcpy(words, at + FRAME_HEADER + 12, 8);
        uint8_t fragment[2] = {at[FRAME_HEADER + 6], at[FRAME_HEADER + 7]}, protocol = at[FRAME_HEADER + 9];
        if (at[FRAME_HEADER] == 0x45 && !(fragment[0] & 0x3f) && !fragment[1] && (protocol == 6 || protocol == 17))
            memcpy(words + 2, at + FRAME_HEADER + 20, 4);
    } else if (type == ETH_P_IPV6 && frame->pieces[0].iov_len >= FRAME_HEADER + 44) {
        memcpy(words, at + FRAME_HEADER + 16, 8);
        words[2] = at[FRAME_HEADER + 6];
        memcpy(words + 3, at + FRAME_HEADER + 40, 4);
    }
    uint64_t sum = words[0] * 0x9e3779b97f4a7c15ull;
    for (int i = 1; i < 4; i++)
        sum = (sum ^ words[i]) * 0x9e3779b97f4a7c15ull;
    return (uint32_t)(sum >> 32);
}

static int vhost_send_many(struct port *port, const struct frame *frames, int count, int *result) {
    struct vhost_port *vp = of(port);
    int sent = 0;
    *result = vp->receives ? 0 : DROP_DOWN;
    while (sent < count && !*result) {
        int several = vp->receives > 1;
        struct vring_queue *ring = vp->receive[several ? flow(&frames[sent]) % vp->receives : 0];
        sent += frames_give(ring, frames + sent, several ? 1 : count - sent, vp->mergeable, result);
        if (VRING_UNLIKELY(*result < 0))
            broken(vp, *result, ring->field);
    }
    return sent;
}

static int vhost_send(struct port *port, const struct frame *frame) {
    int result;
    vhost_send_many(port, frame, 1, &result);
    return result;
}

static int vhost_flush(struct port *port) {
    struct vhost_port *vp = of(port);
    for (uint32_t i = 0; i < vp->receives; i++)
        port->counters.wakes += (uint64_t)vring_publish(vp->receive[i]);
    return check_memory(vp);
}

static int vhost_ready(struct port *port) {
    struct vhost_port *vp = of(port);
    for (uint32_t i = 0; i < vp->transmits; i++)
        if (vring_available(vp->transmit[i], vp->transmit[i]->next)) /* an error, too */
            return 1;
    return 0;
}

static void set_timer(struct vhost_port *vp, int on) {
    long ns = on ? POLL_NS : 0;
    struct itimerspec every = {.it_interval.tv_nsec = ns, .it_value.tv_nsec = ns};
    if (vp->timed != on)
        timerfd_settime(vp->timer, 0, &every, NULL);
    vp->timed = (uint8_t)on;
}

static void want_kicks(struct vhost_port *vp) {
    for (uint32_t i = 0; i < vp->transmits; i++)
        vring_want_kicks(vp->transmit[i]);
    set_timer(vp, vp->polled);
}

static void vhost_arm(struct port *port) {
    struct vhost_port *vp = of(port);
    vp->armed = 1;
    want_kicks(vp);
}

static void vhost_disarm(struct port *port) {
    struct vhost_port *vp = of(port);
    vp->armed = 0;
    for (uint32_t i = 0; i < vp->transmits; i++)
        vring_want_silence(vp->transmit[i]);
    set_timer(vp, 0);
}

/* --- changes, by the port's thread --- */

/* Which queues take part now, and what frames may be sent here? */
static void look_around(struct vhost_port *vp) {
    const struct vhost_user *user = &vp->user;
    vp->transmits = vp->receives = vp->turn = vp->polled = 0;
    vp->context.bounced = 0;
    for (uint32_t i = 0; i < VHOST_RINGS; i++) {
        struct vring_queue *ring = &vp->user.rings[i];
        if (!vhost_user_active(user, i))
            continue; /* What a disabled one has to send waits there (vhost-user, "Ring states": it may). */
        if (i % 2) {
            vp->transmit[vp->transmits++] = ring;
            vp->polled |= ring->setup.kick < 0;
        } else {
            vp->receive[vp->receives++] = ring;
        }
    }
    vp->mergeable = (uint8_t)vhost_user_has(user, VIRTIO_NET_F_MRG_RXBUF);
    uint32_t flags = vp->port.flags & ~(PORT_TAKES_CSUM | PORT_TAKES_TSO4 | PORT_TAKES_TSO6 | PORT_TAKES_USO);
    if (vhost_user_has(user, VIRTIO_NET_F_GUEST_CSUM))
        flags |= PORT_TAKES_CSUM | (vhost_user_has(user, VIRTIO_NET_F_GUEST_TSO4) ? PORT_TAKES_TSO4 : 0) |
                 (vhost_user_has(user, VIRTIO_NET_F_GUEST_TSO6) ? PORT_TAKES_TSO6 : 0) |
                 (vhost_user_has(user, VIRTIO_NET_F_GUEST_USO4) && vhost_user_has(user, VIRTIO_NET_F_GUEST_USO6)
                      ? PORT_TAKES_USO
                      : 0);
    vp->port.flags = flags;
    vp->port.up = vp->receives || vp->transmits;
}

static int closing(struct vhost_port *vp) {
    return (int)__atomic_load_n(&vp->closing, __ATOMIC_ACQUIRE);
}

/* The lock, unless the port is being closed by somebody who has it and waits for this thread. */
static int enter(void *context) {
    struct vhost_port *vp = context;
    while (!closing(vp)) {
        if (switch_lock_within(vp->sw, LOCK_NS))
            continue;
        if (vp->port.max_frame)
            return 0;
        switch_unlock(vp->sw); /* Not added to the switch yet. */
        usleep(1000);
    }
    return -1;
}

static void leave(void *context) {
    struct vhost_port *vp = context;
    look_around(vp);
    if (vp->armed) { /* The switch sleeps, or is about to: it has asked the old queues only. */
        want_kicks(vp);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (vhost_ready(&vp->port))
            write_event(vp->nudge);
    }
    switch_port_changed(vp->sw, &vp->port);
    switch_unlock(vp->sw);
}

static void drain(struct vhost_port *vp) {
    uint64_t count;
    if (read(vp->stop, &count, sizeof count) < 0)
        return; /* Nothing there. */
}

static int begin_session(struct vhost_port *vp) {
    struct vhost_owner owner = {enter, leave, vp};
    if (enter(vp))
        return -1;
    vhost_user_open(&vp->user, vp->port.wake, vp->port.max_frame - 18, vp->offloads, &owner);
    drain(vp); /* What the forwarding thread said of the last one. */
    vp->port.quarantined = PORT_OK;
    vp->port.field = NULL;
    vp->broken = PORT_OK;
    vp->info.connected = 1;
    vp->info.sessions++;
    leave(vp);
    return 0;
}

static void throw_out(struct vhost_port *vp, enum port_error error, const char *request) {
    for (uint32_t i = 0; i < VHOST_RINGS; i++)
        write_event(vp->user.rings[i].setup.err);
    if (request) {
        snprintf(vp->reason, sizeof vp->reason, "%s: %s", request, vp->user.field ? vp->user.field : "?");
        vp->port.field = vp->reason;
    }
    vp->info.errors[error]++;
    switch_quarantine(vp->sw, &vp->port, error, vp->port.field);
}

/* Gives back what the front end gave. With an error, the port is quarantined until the next one comes. */
static void end_session(struct vhost_port *vp, enum port_error error, const char *request) {
    if (!enter(vp)) {
        vp->info.connected = 0;
        if (error)
            throw_out(vp, error, request);
        leave(vp);
    }
    vhost_user_close(&vp->user);
}

/* Serves one front end until it goes, or is thrown out: why. *request is the message that was wrong, if one was. */
static enum port_error serve(struct vhost_port *vp, int fd, const char **request) {
    for (;;) {
        struct pollfd polled[3] = {{.fd = fd, .events = POLLIN},
                                   {.fd = vp->stop, .events = POLLIN},
                                   {.fd = vp->listener.fd, .events = POLLIN}};
        if (poll(polled, 3, -1) < 0)
            continue;
        enum port_error error = (enum port_error)__atomic_load_n(&vp->broken, __ATOMIC_ACQUIRE);
        if (error || closing(vp))
            return error;
        if (!polled[0].revents) { /* Another one, while this one is there, is told so at once. */
            int other = accept4(vp->listener.fd, NULL, NULL, SOCK_CLOEXEC);
            if (other >= 0)
                close(other);
            continue;
        }
        struct vhost_message message;
        int fds[VHOST_TABLE];
        uint32_t fd_count;
        const char *why = NULL;
        switch (vhost_socket_receive(fd, vp->stop, &message, fds, &fd_count, &why)) {
        case VHOST_END:
            return (enum port_error)__atomic_load_n(&vp->broken, __ATOMIC_ACQUIRE);
        case VHOST_STOPPED:
            continue;
        case VHOST_BAD:
            *request = "message";
            vp->user.field = why;
            return PORT_E_PROTOCOL;
        case VHOST_MESSAGE:
            break;
        }
        *request = vhost_user_name(message.request);
        int answered = vhost_user_message(&vp->user, &message, fds, fd_count);
        if (answered < 0)
            return PORT_E_PROTOCOL;
        if (answered && vhost_socket_reply(fd, &message)) {
            vp->user.field = "replies are not taken";
            return PORT_E_PROTOCOL;
        }
        *request = NULL;
    }
}

static void *listen_to_front_ends(void *context) {
    struct vhost_port *vp = context;
    while (!closing(vp)) {
        struct pollfd polled[2] = {{.fd = vp->listener.fd, .events = POLLIN}, {.fd = vp->stop, .events = POLLIN}};
        if (poll(polled, 2, -1) < 0)
            continue;
        drain(vp);
        int fd = polled[0].revents ? accept4(vp->listener.fd, NULL, NULL, SOCK_CLOEXEC) : -1;
        if (fd < 0)
            continue;
        if (begin_session(vp)) {
            close(fd);
            continue;
        }
        const char *request = NULL;
        enum port_error error = serve(vp, fd, &request);
        end_session(vp, error, request);
        close(fd);
        drain(vp);
        struct pollfd rest = {.fd = vp->stop, .events = POLLIN};
        if (error && !closing(vp))
            poll(&rest, 1, REST_MS);
    }
    return NULL;
}

/* --- making and closing --- */

static void vhost_close(struct port *port) {
    struct vhost_port *vp = of(port);
    __atomic_store_n(&vp->closing, 1, __ATOMIC_RELEASE);
    write_event(vp->stop);
    pthread_join(vp->thread, NULL);
    vhost_user_close(&vp->user); /* Whatever the thread left. enter says no: we have the lock. */
    vhost_socket_close(&vp->listener);
    close(vp->stop);
    close(vp->nudge);
    close(vp->timer);
    close(vp->port.wake);
    munmap(vp->context.bounce, FRAME_MAX);
    munmap(vp, sizeof *vp);
}

static const struct port_ops ops = {
    .kind = "vhost-user",
    .peek = vhost_peek,
    .release = vhost_release,
    .send = vhost_send,
    .send_many = vhost_send_many,
    .flush = vhost_flush,
    .arm = vhost_arm,
    .ready = vhost_ready,
    .disarm = vhost_disarm,
    .close = vhost_close,
};

/* Memory that takes room only where it is touched: most queues and the bounce buffer never are. */
static void *sparse(size_t size) {
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

static int open_descriptors(struct vhost_port *vp) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    vp->port.wake = epoll_create1(EPOLL_CLOEXEC);
    vp->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    vp->nudge = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    vp->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (vp->port.wake < 0 || vp->stop < 0 || vp->nudge < 0 || vp->timer < 0)
        return -errno;
    if (epoll_ctl(vp->port.wake, EPOLL_CTL_ADD, vp->nudge, &event) ||
        epoll_ctl(vp->port.wake, EPOLL_CTL_ADD, vp->timer, &event))
        return -errno;
    return 0;
}

/* A thread that no signal disturbs, but for those that an access of its own raises. */
static int start_thread(struct vhost_port *vp) {
    sigset_t all, before;
    pthread_attr_t attributes;
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGSEGV);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&vp->thread, &attributes, listen_to_front_ends, vp);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return -error;
}

struct port *vhost_port_new(const char *name, const char *path, struct net_switch *sw) {
    if (strlen(name) >= PORT_NAME) {
        errno = ENAMETOOLONG;
        return NULL;
    }
    struct vhost_port *vp = sparse(sizeof *vp);
    uint8_t *bounce = sparse(FRAME_MAX);
    int error = -ENOMEM;
    if (!vp || !bounce)
        goto no_memory;
    vp->port.ops = &ops;
    strcpy(vp->port.name, name);
    vp->sw = sw;
    vp->offloads = 1;
    vp->context = (struct frames_context){.port = &vp->port, .bounce = bounce};
    struct vhost_owner owner = {enter, leave, vp};
    vhost_user_open(&vp->user, -1, 0, 1, &owner);
    error = open_descriptors(vp);
    if (error)
        goto no_descriptors;
    error = vhost_socket_listen(&vp->listener, path);
    if (error)
        goto no_descriptors;
    error = start_thread(vp);
    if (!error)
        return &vp->port;
    vhost_socket_close(&vp->listener);
no_descriptors:
    for (int *fd = (int[]){vp->port.wake, vp->stop, vp->nudge, vp->timer, -2}; *fd != -2; fd++)
        if (*fd >= 0)
            close(*fd);
no_memory:
    if (vp)
        munmap(vp, sizeof *vp);
    if (bounce)
        munmap(bounce, FRAME_MAX);
    errno = -error;
    return NULL;
}

void vhost_port_offloads(struct port *port, int offloads) {
    of(port)->offloads = offloads != 0;
}

void vhost_port_info(const struct port *port, struct vhost_info *info) {
    const struct vhost_port *vp = (const struct vhost_port *)port;
    *info = vp->info;
    info->features = vp->user.features;
    info->protocol = vp->user.protocol;
    info->regions = vp->user.memory.count;
    info->receive = vp->receives;
    info->transmit = vp->transmits;
}
