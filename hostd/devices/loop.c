/* loop.c: see loop.h. */
#define _GNU_SOURCE
#include "loop.h"

#include <errno.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { EVENTS = 32, STOPPED = -1 };

int loop_open(struct loop *loop) {
    loop->running = 0;
    loop->stop_fd = -1;
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (loop->epoll_fd < 0)
        return -errno;
    loop->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (loop->stop_fd < 0 || epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->stop_fd, &event) != 0) {
        int error = -errno;
        loop_close(loop);
        return error;
    }
    return 0;
}

void loop_close(struct loop *loop) {
    if (loop->stop_fd >= 0)
        close(loop->stop_fd);
    if (loop->epoll_fd >= 0)
        close(loop->epoll_fd);
    loop->stop_fd = loop->epoll_fd = -1;
}

/* Returns the number of handlers called, or STOPPED. */
static int turn(struct loop *loop, int timeout_ms) {
    struct epoll_event events[EVENTS];
    int calls = 0, count = epoll_wait(loop->epoll_fd, events, EVENTS, timeout_ms);
    loop->wakes++;
    for (int i = 0; i < count; i++) {
        struct loop_handler *handler = events[i].data.ptr;
        if (!handler)
            return STOPPED;
        /* It may have been removed by a handler before it in this batch. */
        if (!__atomic_load_n(&handler->active, __ATOMIC_ACQUIRE))
            continue;
        handler->fn(handler, events[i].events);
        calls++;
    }
    loop->calls += (uint64_t)calls;
    return calls;
}

int loop_once(struct loop *loop, int timeout_ms) {
    int calls = turn(loop, timeout_ms);
    return calls < 0 ? 0 : calls;
}

static void *run(void *argument) {
    struct loop *loop = argument;
    while (turn(loop, -1) != STOPPED)
        ;
    return NULL;
}

int loop_start(struct loop *loop) {
    sigset_t all, before;
    uint64_t count;
    ssize_t drained = read(loop->stop_fd, &count, sizeof count);
    (void)drained; /* Left over from a stop before; nothing is as good. */
    /* Signals are for the threads that expect them. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&loop->thread, NULL, run, loop);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed)
        return -failed;
    pthread_setname_np(loop->thread, "devices");
    loop->running = 1;
    return 0;
}

void loop_stop(struct loop *loop) {
    const uint64_t one = 1;
    if (!loop->running)
        return;
    while (write(loop->stop_fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
    pthread_join(loop->thread, NULL);
    loop->running = 0;
}

int loop_add(struct loop *loop, struct loop_handler *handler, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = handler};
    __atomic_store_n(&handler->active, 1, __ATOMIC_RELEASE);
    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, handler->fd, &event) == 0)
        return 0;
    int error = -errno;
    __atomic_store_n(&handler->active, 0, __ATOMIC_RELEASE);
    return error;
}

int loop_change(struct loop *loop, struct loop_handler *handler, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = handler};
    return epoll_ctl(loop->epoll_fd, EPOLL_CTL_MOD, handler->fd, &event) ? -errno : 0;
}

void loop_remove(struct loop *loop, struct loop_handler *handler) {
    if (__atomic_exchange_n(&handler->active, 0, __ATOMIC_ACQ_REL))
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, handler->fd, NULL);
}
