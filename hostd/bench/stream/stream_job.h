/* stream_job.h: what the benchmark tells the guests of its cluster to do, and what they answer. */
#ifndef STREAM_JOB_H
#define STREAM_JOB_H

#include <stdint.h>

enum job_kind {
    JOB_SPSC,      /* guest 0 sends to guest 1, copying in and out */
    JOB_IN_PLACE,  /* likewise, but the message is made in the ring and looked at there */
    JOB_MANY,      /* all others send to guest 0 */
    JOB_BROADCAST, /* guest 0 sends to all others, never so far ahead that one would lose a message */
    JOB_PAIRS,     /* each even guest sends to the next one */
    JOB_RING,      /* guest 0 sends; each guest hands on to the next one, the last to guest 0 */
    JOB_STAR,      /* the others ask guest 0, who answers each */
    JOB_ALL,       /* everybody sends to everybody else */
    JOB_KINDS
};

struct job {
    uint32_t kind;
    uint32_t size;    /* bytes of a message, 8 at least */
    uint64_t count;   /* messages of each sender (of JOB_ALL: to each other guest) */
    uint64_t window;  /* messages that may be on their way where a sender has to mind; count is a multiple of it */
    uint64_t spin_ns; /* how long a wait spins; ~0: always */
};

struct job_result {
    uint64_t guest;
    uint64_t messages; /* received in the time below; of a sender only: 0 */
    uint64_t start_ns; /* CLOCK_MONOTONIC */
    uint64_t end_ns;
};

/* A message's first 8 bytes: its number, and above that its sender. */
#define NUMBER(sender, number) ((uint64_t)(sender) << 56 | (number))

#endif
