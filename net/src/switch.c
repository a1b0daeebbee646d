/* switch.c: see switch.h. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "addresses.h"
#include "forward.h"

enum { EVENTS = 64, SLICE_MS = 1000 };

static void nudge(struct net_switch *sw) {
    uint64_t one = 1;
    if (write(sw->nudge, &one, sizeof one) < 0)
        return; /* It is full of nudges. */
}

uint64_t switch_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* --- making --- */

struct net_switch *switch_new(const struct switch_config *config) {
    struct net_switch *sw = aligned_alloc(64, (sizeof *sw + 63) / 64 * 64);
    if (!sw)
        return NULL;
    *sw = (struct net_switch){.config = *config, .next_id = 1, .epoll = -1, .nudge = -1};
    pthread_mutex_init(&sw->lock, NULL);
    sw->addresses = addresses_new(config->addresses, (uint64_t)config->age * 1000000000);
    sw->epoll = epoll_create1(EPOLL_CLOEXEC);
    sw->nudge = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    if (!sw->addresses || sw->epoll < 0 || sw->nudge < 0 || epoll_ctl(sw->epoll, EPOLL_CTL_ADD, sw->nudge, &event)) {
        int error = errno;
        switch_free(sw);
        errno = error;
        return NULL;
    }
    /* Peers that go to sleep make our processors fence (docs/rings.md); without it their rings are SHM_FENCED. */
    syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0);
    return sw;
}

void switch_free(struct net_switch *sw) {
    while (sw->port_count)
        switch_remove(sw, sw->ports[0]->id);
    addresses_free(sw->addresses);
    if (sw->epoll >= 0)
        close(sw->epoll);
    if (sw->nudge >= 0)
        close(sw->nudge);
    pthread_mutex_destroy(&sw->lock);
    free(sw);
}

/* --- the lock --- */

/*
 * Who waits is counted, so that the forwarding thread, which would have the lock again at once, makes way: as often as there
 * were others when it did. More often not, or those who come again and again could keep it from forwarding.
 */
void switch_lock(struct net_switch *sw) {
    __atomic_add_fetch(&sw->waiting, 1, __ATOMIC_ACQ_REL);
    pthread_mutex_lock(&sw->lock);
    __atomic_sub_fetch(&sw->waiting, 1, __ATOMIC_ACQ_REL);
    sw->let_in++;
}

int switch_lock_within(struct net_switch *sw, int64_t ns) {
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_nsec += ns % 1000000000;
    end.tv_sec += ns / 1000000000 + end.tv_nsec / 1000000000;
    end.tv_nsec %= 1000000000;
    __atomic_add_fetch(&sw->waiting, 1, __ATOMIC_ACQ_REL);
    int failed = pthread_mutex_clocklock(&sw->lock, CLOCK_MONOTONIC, &end);
    __atomic_sub_fetch(&sw->waiting, 1, __ATOMIC_ACQ_REL);
    if (!failed)
        sw->let_in++;
    return -failed;
}

void switch_unlock(struct net_switch *sw) {
    pthread_mutex_unlock(&sw->lock);
}

static void make_way(struct net_switch *sw) {
    uint32_t turns = __atomic_load_n(&sw->waiting, __ATOMIC_ACQUIRE), before = sw->let_in;
    do {
        switch_unlock(sw);
        sched_yield();
        pthread_mutex_lock(&sw->lock);
    } while (sw->let_in - before < turns && __atomic_load_n(&sw->waiting, __ATOMIC_ACQUIRE));
}

/* --- ports --- */

int64_t switch_add(struct net_switch *sw, struct port *port) {
    if (sw->port_count == SWITCH_PORTS)
        return -ENOSPC;
    for (uint32_t i = 0; i < sw->port_count; i++)
        if (!strcmp(sw->ports[i]->name, port->name))
            return -EEXIST;
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    int taken = port->flags & PORT_FIXED_MAC ? addresses_fix(sw->addresses, address_key(port->mac, 0), port) : 0;
    if (taken)
        return taken;
    if (port->wake >= 0 && epoll_ctl(sw->epoll, EPOLL_CTL_ADD, port->wake, &event)) {
        int error = errno;
        addresses_forget(sw->addresses, port, 1);
        return -error;
    }
    port->id = sw->next_id++;
    port->max_frame = sw->config.mtu + 18;
    if (port->rate) {
        port->burst = port->rate / 10 > 2 * FRAME_MAX ? port->rate / 10 : 2 * FRAME_MAX;
        port->tokens = port->burst;
        port->refilled = switch_now_ns();
    }
    sw->quiet[sw->port_count] = 0;
    sw->ports[sw->port_count++] = port;
    nudge(sw);
    return port->id;
}

int switch_remove(struct net_switch *sw, uint32_t id) {
    for (uint32_t i = 0; i < sw->port_count; i++) {
        struct port *port = sw->ports[i];
        if (port->id != id)
            continue;
        sw->ports[i] = sw->ports[--sw->port_count];
        sw->quiet[i] = 0;
        addresses_forget(sw->addresses, port, 1);
        if (port->wake >= 0)
            epoll_ctl(sw->epoll, EPOLL_CTL_DEL, port->wake, NULL);
        port->ops->close(port);
        return 0;
    }
    return -ENOENT;
}

struct port *switch_port(struct net_switch *sw, uint32_t id) {
    for (uint32_t i = 0; i < sw->port_count; i++)
        if (sw->ports[i]->id == id)
            return sw->ports[i];
    return NULL;
}

uint32_t switch_ports(struct net_switch *sw, struct port **ports, uint32_t room) {
    uint32_t count = sw->port_count < room ? sw->port_count : room;
    memcpy(ports, sw->ports, count * sizeof *ports);
    return count;
}

uint32_t switch_addresses(struct net_switch *sw, struct switch_address *found, uint32_t room) {
    return addresses_list(sw->addresses, switch_now_ns(), found, room);
}

void switch_port_changed(struct net_switch *sw, struct port *port) {
    (void)port; /* Everything of it is looked at anew in the next round. */
    nudge(sw);
}

void switch_quarantine(struct net_switch *sw, struct port *port, enum port_error error, const char *field) {
    port->quarantined = (uint8_t)error;
    port->field = field;
    addresses_forget(sw->addresses, port, 0);
}

void switch_set_tap(struct net_switch *sw, switch_tap *tap, void *context) {
    sw->tap = tap;
    sw->tap_context = context;
}

/* --- with the lock inside --- */

int64_t switch_join(struct net_switch *sw, struct port *port) {
    switch_lock(sw);
    int64_t result = switch_add(sw, port);
    switch_unlock(sw);
    return result;
}

int switch_leave(struct net_switch *sw, uint32_t id) {
    switch_lock(sw);
    int result = switch_remove(sw, id);
    switch_unlock(sw);
    return result;
}

uint32_t switch_look(struct net_switch *sw, struct port *copies, uint32_t room) {
    switch_lock(sw);
    uint32_t count = sw->port_count < room ? sw->port_count : room;
    for (uint32_t i = 0; i < count; i++)
        copies[i] = *sw->ports[i];
    switch_unlock(sw);
    return count;
}

uint32_t switch_heard(struct net_switch *sw, struct switch_address *found, uint32_t room) {
    switch_lock(sw);
    uint32_t count = switch_addresses(sw, found, room);
    switch_unlock(sw);
    return count;
}

/* --- the forwarding thread --- */

static void heavy_barrier(void) {
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0))
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* Sleeps until a port may have frames, or somebody nudges. With the lock, which is given up meanwhile. 0 or -errno. */
static int rest(struct net_switch *sw) {
    int ready = 0, failed = 0;
    for (uint32_t i = 0; i < sw->port_count; i++)
        sw->ports[i]->ops->arm(sw->ports[i]);
    heavy_barrier();
    for (uint32_t i = 0; i < sw->port_count && !ready; i++)
        ready = port_usable(sw->ports[i]) && sw->ports[i]->ops->ready(sw->ports[i]);
    if (!ready) {
        struct epoll_event events[EVENTS];
        switch_unlock(sw);
        if (epoll_wait(sw->epoll, events, EVENTS, SLICE_MS) < 0 && errno != EINTR)
            failed = -errno;
        pthread_mutex_lock(&sw->lock);
    }
    for (uint32_t i = 0; i < sw->port_count; i++)
        if (sw->ports[i]->ops->disarm)
            sw->ports[i]->ops->disarm(sw->ports[i]);
    return failed;
}

int switch_run(struct net_switch *sw) {
    uint64_t spin_ns = (uint64_t)sw->config.spin * 1000, idle_since = 0;
    int failed = 0;
    switch_lock(sw);
    while (!failed && !__atomic_load_n(&sw->stopping, __ATOMIC_ACQUIRE)) {
        if (__atomic_load_n(&sw->waiting, __ATOMIC_RELAXED))
            make_way(sw);
        sw->now_ns = switch_now_ns();
        if (forward_round(sw)) {
            idle_since = 0;
        } else if (!idle_since) {
            idle_since = sw->now_ns;
        } else if (sw->now_ns - idle_since >= spin_ns) {
            failed = rest(sw);
            idle_since = 0;
        }
    }
    switch_unlock(sw);
    return failed;
}

void switch_stop(struct net_switch *sw) {
    __atomic_store_n(&sw->stopping, 1, __ATOMIC_RELEASE);
    nudge(sw);
}
