/*
 * terminal.h: the far end of a guest's consoles: their output goes to the log, to a tail kept in memory and to whoever
 * is attached to a socket; what those type goes to the device that the guest reads from.
 *
 * The guest never waits: a client that doesn't read loses output. Also watches for the line of a kernel panic.
 */
#ifndef HOSTD_DEVICES_TERMINAL_H
#define HOSTD_DEVICES_TERMINAL_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "loop.h"

#define TERMINAL_CLIENTS 8
#define TERMINAL_TAIL 16384       /* bytes of the past that a new client sees */
#define TERMINAL_BACKLOG 65536    /* bytes that a client may be behind before it loses some */
#define TERMINAL_LINE 256

struct terminal;

struct terminal_client {
    struct loop_handler handler;  /* fd -1: free */
    struct terminal *terminal;
    uint8_t *backlog;
    uint32_t start, size;         /* of what is in the backlog, a ring */
    int reading, ended;           /* its input is watched; has come to its end */
};

/* A device that takes what is typed. Called in the I/O thread with no lock held. */
struct terminal_input {
    void *device;
    int (*listening)(void *device);    /* does the guest read from it? NULL: always */
    uint32_t (*room)(void *device);    /* bytes that it can take now */
    void (*take)(void *device, const uint8_t *bytes, uint32_t size);
};

#define TERMINAL_INPUTS 2

struct terminal {
    pthread_mutex_t lock;         /* the last but msix's: output may be written under a device's lock */
    struct loop *loop;
    int log_fd;                   /* -1: none; not the terminal's */
    char *log_path;               /* renamed to PATH.1 when it is full; NULL: it grows */
    uint64_t log_limit, log_size; /* bytes */
    char *socket_path;            /* removed at the end */
    struct loop_handler listener;
    struct terminal_client clients[TERMINAL_CLIENTS];
    uint32_t input_count;
    struct terminal_input inputs[TERMINAL_INPUTS];
    uint64_t input_changes;       /* how often there has been room again */
    uint8_t tail[TERMINAL_TAIL];
    uint64_t written;             /* bytes of output in all; the tail's end is at written % TERMINAL_TAIL */
    char line[TERMINAL_LINE];     /* the line being written, as far as it fits */
    uint32_t line_size;
    char panic[TERMINAL_LINE];    /* the first line of the guest kernel's panic; empty: none */
    uint64_t lost;                /* bytes that clients did not get */
};

/* `log_fd` may be -1, `log_path` and `socket_path` NULL. The socket is made here. 0 or -errno. */
int terminal_open(struct terminal *terminal, struct loop *loop, int log_fd, const char *log_path, uint64_t log_limit,
                  const char *socket_path);
void terminal_close(struct terminal *terminal);

/* One more device for what is typed. The first that listens gets it. 0 or -ENOSPC. */
int terminal_add_input(struct terminal *terminal, const struct terminal_input *input);

/* There is room for input again. From any thread, with any lock but the terminal's. */
void terminal_more(struct terminal *terminal);

/* Output of the guest. From any thread; under the device's lock, if it likes. */
void terminal_write(struct terminal *terminal, const uint8_t *bytes, uint32_t size);

#endif
