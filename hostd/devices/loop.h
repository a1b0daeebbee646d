/*
 * loop.h: the machine's I/O thread: calls a function when a descriptor is ready.
 *
 * Handlers lie in their device and live as long as the machine. Adding, changing and removing works from any thread,
 * also from a handler and with the device's lock held: nothing waits for a handler to end. So after loop_remove a call
 * that had begun may still come to take the device's lock: a handler looks, under that lock, at what it is to do (a
 * closed descriptor is -1, a read gives EAGAIN). Calls without cause are possible and must be harmless: descriptors
 * don't block.
 */
#ifndef HOSTD_DEVICES_LOOP_H
#define HOSTD_DEVICES_LOOP_H

#include <pthread.h>
#include <stdint.h>

struct loop_handler;

/* In the I/O thread, one at a time. `events` are EPOLL*. */
typedef void (*loop_fn)(struct loop_handler *handler, uint32_t events);

struct loop_handler {
    int fd;
    loop_fn fn;
    void *ctx;
    int active;             /* atomic, the loop's: between loop_add and loop_remove */
};

struct loop {
    int epoll_fd, stop_fd;
    int running;
    pthread_t thread;
    uint64_t wakes, calls;  /* counters */
};

/* 0 or -errno. */
int loop_open(struct loop *loop);
void loop_close(struct loop *loop);

/* Starts the thread: 0 or -errno. What was added before is served too. */
int loop_start(struct loop *loop);

/* Ends the thread after the handler it is in, and waits for it. Not from a handler. */
void loop_stop(struct loop *loop);

/* Watch handler->fd for `events` (EPOLLIN, EPOLLOUT, EPOLLET...; 0: only errors). Each descriptor once. 0 or -errno. */
int loop_add(struct loop *loop, struct loop_handler *handler, uint32_t events);
int loop_change(struct loop *loop, struct loop_handler *handler, uint32_t events);

/* Before the descriptor is closed. Nothing happens when it isn't watched. */
void loop_remove(struct loop *loop, struct loop_handler *handler);

/*
 * Serves what is ready and returns the number of calls, waiting `timeout_ms` (-1: until something is): tests without a
 * thread.
 */
int loop_once(struct loop *loop, int timeout_ms);

#endif
