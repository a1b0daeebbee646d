/*
 * guestctl.h: regions and channels from the command line.
 */
#ifndef LINUX_GUESTCTL_H
#define LINUX_GUESTCTL_H

#include "libguest.h"

/* Exit codes beside 0. */
enum { GUESTCTL_FAILED = 1, GUESTCTL_USAGE = 2, GUESTCTL_GONE = 3 };

struct guestctl_options {
    int hear;              /* sleep on the interrupt */
    int lane;              /* -1: the first that is free */
    int raw, json, answer;
    int64_t timeout_ns;    /* -1: none */
    uint64_t spin_ns;      /* UINT64_MAX - 1: as the end has it */
    uint64_t count;        /* 0: no limit */
    uint32_t size;
};

int guestctl_main(int argc, char **argv);

/* bench.c: round trips, and how much goes one way, as JSON; or (answer) the other side of that. */
int guestctl_bench(const struct guestctl_options *options, const char *out, const char *in);

/* Opens an end with the options, or says why not: 0 or -1. */
int guestctl_open(struct guest_end *end, const char *channel, const char *role, const struct guestctl_options *options);
/* Says what a result means and returns the exit code: 0 for a peer that closed. */
int guestctl_ended(const struct guest_end *end, int64_t result);

#endif
