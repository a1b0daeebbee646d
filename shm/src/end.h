/*
 * end.h: one end of a channel in a process of the host or of a Linux guest: the rings of include/shm, with waiting, bells and
 * time limits.
 *
 * No call needs Python's lock. An end is one thread's at a time: a second one gets END_BUSY.
 */
#ifndef SHM_END_H
#define SHM_END_H

#include "bell.h"

#include <shm/barrier.h>
#include <shm/broadcast.h>
#include <shm/mpsc.h>

/* Results beside those of region.h. */
#define END_TIMEOUT (-20)     /* the time limit passed */
#define END_INTERRUPTED (-21) /* a signal came; the caller handles it and calls again */
#define END_BUSY (-22)        /* another thread is using this end */
#define END_ROLE (-23)        /* not for this role, or this kind of channel */
#define END_CLOSING (-24)     /* another thread closes this end */
#define END_SYSTEM (-25)      /* a system call failed: errno */

#define END_SPIN_ALWAYS 0xffffffffffffffff

enum end_role { END_SEND = 0, END_RECEIVE = 1, END_JOIN = 2 };

struct shm_end {
    struct shm_config config;
    int role;
    int readonly;          /* the region is mapped read-only: no states, no sleep flags */
    struct bell bell;      /* rings the other side, and wakes this one */
    uint64_t spin_ns;
    struct ring *lanes;    /* the consumer's of an mpsc */
    uint32_t busy, closing;
    int held;              /* an error that was met behind messages: for the next call that receives */
    int joining;           /* arrived at a barrier, and not yet seen to have passed it */
    uint64_t sleeps;       /* times this end went to sleep */
    uint64_t late;         /* times it woke by the clock, not the bell, and what it waited for was there */
    uint64_t rings;        /* times it rang the other side's bell */
    const char *field;     /* what was wrong, after SHM_E_CORRUPT or SHM_E_CONFIG */
    union {
        struct ring ring;
        struct mpsc mpsc;
        struct broadcast broadcast;
        struct barrier barrier;
    };
};

/* Registers this process for other processes' heavy barriers. Returns 0, or -errno where the kernel has none. */
int end_register(void);

/* Bytes that a channel takes in its region; 0 for a configuration that can't be. */
uint64_t end_bytes(const struct shm_config *config);

/* The largest max_message for a ring of `size` bytes. */
uint64_t end_limit(uint32_t kind, uint64_t size);

/*
 * Attaches to a channel of the region of `region_size` bytes at `region`. Checked: the configuration, that the channel lies
 * in the region, the indices found there. Waits on and rings the eventfds `data_fd` and `space_fd`, which stay the caller's.
 */
int end_open(struct shm_end *end, void *region, uint64_t region_size, const struct shm_config *config, int role, int data_fd,
             int space_fd, int readonly);

/* The same in a Linux guest: waits on and rings by an ivshmem device, whose registers stay mapped as long as the end is open. */
int end_open_device(struct shm_end *end, void *region, uint64_t region_size, const struct shm_config *config, int role,
                    const struct bell_device *device, int readonly);

/* Tells the peers and lets go. A thread that waits on this end returns END_CLOSING first. */
void end_close(struct shm_end *end, int tell);

/* `timeout_ns` below 0: no limit. All return SHM_OK or a size, or a negative result. */
int end_send(struct shm_end *end, const char *data, uint64_t size, int64_t timeout_ns);
int end_reserve(struct shm_end *end, uint64_t size, int64_t timeout_ns, uintptr_t *payload);
int end_commit(struct shm_end *end, uint64_t size);
int64_t end_receive(struct shm_end *end, char *data, uint64_t room, int64_t timeout_ns);
int64_t end_peek(struct shm_end *end, int64_t timeout_ns, uintptr_t *payload);
int end_release(struct shm_end *end);
int end_join(struct shm_end *end, int64_t timeout_ns);

/*
 * Sends `count` messages that lie in `data` one behind the other, of so many bytes each, and waits up to the limit for each.
 * Whatever the result, *progress says how many went out, their bytes, and how long the one behind them has waited.
 */
struct end_progress {
    uint32_t sent;
    uint64_t bytes;
    uint64_t waited_ns;
};
int end_send_many(struct shm_end *end, const char *data, const uint32_t *sizes, uint32_t count, int64_t timeout_ns,
                  struct end_progress *progress);

/*
 * Receives up to `count` messages, one behind the other, their sizes in `sizes`, until they are `enough` bytes or more; waits for
 * the first only. How many. An error behind the first is the next call's.
 */
int64_t end_receive_many(struct shm_end *end, char *data, uint64_t room, uint64_t enough, uint32_t *sizes, uint32_t count,
                         int64_t timeout_ns);

/* Messages lost by a reader of a broadcast; the lane of the message received last from an mpsc. */
uint64_t end_lost(const struct shm_end *end);
uint32_t end_lane(const struct shm_end *end);

/* The state of one end, by the host: for peers that died or start anew. SHM_GONE leaves SHM_CLOSED as it is. */
int end_mark(void *region, uint64_t region_size, const struct shm_config *config, int role, uint32_t state);
int end_state(void *region, uint64_t region_size, const struct shm_config *config, int role);

#endif
