/* port.c: the virtio-console port by its name, with no udev; or a socket in its place. */
#define _GNU_SOURCE
#include "agent.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static const uint64_t FIRST_TRIES_NS = 20000000, LATER_TRIES_NS = 2000000000, BOOTING_NS = 10000000000;

void port_init(struct port *port, const char *name, int listener) {
    *port = (struct port){.name = name, .listener = listener, .fd = -1};
    port->events = epoll_create1(EPOLL_CLOEXEC);
    port->give_up_ns = monotonic_ns() + BOOTING_NS;
    if (listener >= 0) {
        struct epoll_event event = {.events = EPOLLIN};
        epoll_ctl(port->events, EPOLL_CTL_ADD, listener, &event);
    }
}

/* The descriptor of the port called `name`, or -1. The folder of a port in sysfs has its device's name. */
static int find(const char *name) {
    const char *ports = "/sys/class/virtio-ports";
    DIR *folder = opendir(ports);
    if (!folder)
        return -1;
    int fd = -1;
    for (struct dirent *entry; fd < 0 && (entry = readdir(folder));) {
        char path[320], found[64];
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/%s/name", ports, entry->d_name);
        if (read_small(path, found, sizeof found) < 0)
            continue;
        trim(found);
        if (strcmp(found, name))
            continue;
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    }
    closedir(folder);
    return fd;
}

uint64_t port_open(struct port *port) {
    if (port->fd >= 0 || port->listener >= 0)
        return UINT64_MAX;
    uint64_t now = monotonic_ns();
    if (now < port->next_try_ns)
        return port->next_try_ns - now;
    port->fd = find(port->name);
    if (port->fd >= 0) {
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET};
        epoll_ctl(port->events, EPOLL_CTL_ADD, port->fd, &event);
        port->readable = port->writable = 1;
        return UINT64_MAX;
    }
    uint64_t wait = now < port->give_up_ns ? FIRST_TRIES_NS : LATER_TRIES_NS;
    port->next_try_ns = now + wait;
    return wait;
}

static void take_connection(struct port *port) {
    if (port->listener < 0 || port->fd >= 0)
        return;
    int fd = accept4(port->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.u32 = 1};
    epoll_ctl(port->events, EPOLL_CTL_ADD, fd, &event);
    epoll_ctl(port->events, EPOLL_CTL_DEL, port->listener, NULL);
    port->fd = fd;
    port->readable = port->writable = 1;
}

void port_events(struct port *port) {
    struct epoll_event events[4];
    if (epoll_wait(port->events, events, 4, 0) <= 0)
        return;
    if (port->fd < 0)
        take_connection(port);
    else
        port->readable = port->writable = 1;
}

ssize_t port_read(struct port *port, void *data, size_t room) {
    ssize_t got;
    do
        got = read(port->fd, data, room);
    while (got < 0 && errno == EINTR);
    if (got > 0)
        return got;
    port->readable = 0;
    return got < 0 && errno == EAGAIN ? 0 : -1;
}

ssize_t port_write(struct port *port, const void *data, size_t size) {
    ssize_t done;
    do
        done = port->listener < 0 ? write(port->fd, data, size) : send(port->fd, data, size, MSG_NOSIGNAL);
    while (done < 0 && errno == EINTR);
    if (done > 0)
        return done;
    port->writable = 0;
    return 0; /* A host that is gone shows when reading. */
}

void port_hung_up(struct port *port) {
    if (port->listener < 0)
        return;
    struct epoll_event event = {.events = EPOLLIN};
    close(port->fd);
    port->fd = -1;
    epoll_ctl(port->events, EPOLL_CTL_ADD, port->listener, &event);
}
