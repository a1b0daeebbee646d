/* targets.h: the devices under test, with the host's side of each. */
#ifndef HOSTD_FUZZ_TARGETS_H
#define HOSTD_FUZZ_TARGETS_H

#include "driver.h"
#include "terminal.h"

enum { CONSOLE_SOCKETS = 2, IVSHMEM_EVENTS = 3, DISK = 64 << 10 };

/* One machine with one device that matters, and those that are always there. */
struct bench {
    struct machine *machine;
    struct terminal terminal;
    const struct target *target;
    struct driver driver;
    void *device;                     /* the target's own struct */
    uint32_t slot;                    /* of the target, or 0 */
    int ready;                        /* the driver is up */
    int disk;                         /* the file behind it, ours, or -1 */
    int listeners[CONSOLE_SOCKETS], clients[CONSOLE_SOCKETS]; /* -1: none */
    int events[IVSHMEM_EVENTS];       /* -1: none */
    int log, watcher;                 /* of the terminal: its log, and who is attached; -1: nobody */
    char socket[64];                  /* the terminal's */
};

struct target {
    const char *name;
    int virtio;
    void (*make)(struct bench *bench);
    void (*warm)(struct bench *bench);  /* the driver's next steps after driver_open, as far as they make sense */
    /* A request that makes sense: fills segments, says which queue. */
    uint32_t (*request)(struct bench *bench, struct segment *segments, uint32_t *queue);
    void (*host)(struct bench *bench);  /* something happens on the host's side */
    int (*prove)(struct bench *bench);  /* right after driver_open: the device does its work. 1 or 0 */
};

extern const struct target targets[];
extern const uint32_t target_count;

void targets_open(void);

/* For targets: the device becomes the bench's; an address for `size` bytes of data. */
void add_virtio(struct bench *bench, void *device);
uint64_t data_at(uint64_t size);

/* Something happens at the console's far end. */
void terminal_host(struct bench *bench);

struct bench *bench_open(const struct target *target);
/* Ends the program if the host's side was hurt. */
void bench_close(struct bench *bench);

#endif
