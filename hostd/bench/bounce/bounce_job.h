/* bounce_job.h: what the benchmark tells the guests of its cluster to do, and what they answer. */
#ifndef BOUNCE_JOB_H
#define BOUNCE_JOB_H

#include <stdint.h>

enum job_kind {
    JOB_PAIR,      /* guest 1 answers what guest 0 sends */
    JOB_STAR,      /* guest 0 answers what the others send, all over one channel, each over a channel of his own */
    JOB_BROADCAST, /* guest 0 sends to all others, and has an answer of each before a round trip is over */
    JOB_EXIT,      /* guest 0 calls the VMM that runs it, which answers at once: no message */
    JOB_KINDS
};

struct job {
    uint32_t kind;
    uint32_t size;        /* bytes of a message, 8 at least */
    uint32_t users;       /* guests that take part: those of an index below; of a pair: 2 */
    uint32_t warm_up;     /* round trips before those that are measured */
    uint64_t count;       /* round trips that are measured, of each who asks */
    uint64_t interval_ns; /* 0: the next question when the answer is there; else questions go out by the clock */
    uint64_t spin_ns;     /* how long a wait spins; ~0: always */
};

/*
 * An answer to a job: any number of these from each guest, until he has told all his samples. A sample is the time of a round
 * trip in ticks of the time stamp counter: from the last one's end, or, by the clock, from when its question was due.
 */
#define RESULT_SAMPLES 4096

struct job_result {
    uint64_t guest;
    uint64_t left;        /* samples that follow in further results */
    uint64_t ticks[RESULT_SAMPLES]; /* the message ends with the last one */
};

/* A message's first 8 bytes, and if it has 16 or more its last 8, too: its number in the job, the job's, and its sender. */
#define NUMBER(sender, number) ((uint64_t)(sender) << 56 | (number))

#endif
