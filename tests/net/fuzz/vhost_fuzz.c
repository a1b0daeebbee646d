/*
 * vhost_fuzz.c: fuzzes a vhost-user port.
 *
 *     vhost_fuzz queues|messages SEED CASES [FIRST]     cases FIRST.. of the seed; each can be run again alone
 *     vhost_fuzz queues SEED CASES race                 not repeatable
 *
 * Built with -fsanitize=address,undefined; what the port maps lies between pages without access, and what lies in the
 * guest's files outside of regions is looked at. A case that does not come to an end is met by the alarm.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vhost_bench.h"

enum { SECONDS = 20 };

static uint64_t seed, number;

static void say(const char *what) {
    char line[120];
    int size = snprintf(line, sizeof line, "case %lu of seed %lu %s\n", number, seed, what);
    (void)!write(2, line, (size_t)size);
}

static void too_long(int signal) {
    (void)signal;
    say("does not come to an end");
    _exit(3);
}

static void aborted(int which) {
    say("failed");
    signal(which, SIG_DFL);
}

static int open_descriptors(void) {
    int count = 0;
    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

int main(int argc, char **argv) {
    if (argc < 4)
        return 2;
    const struct fuzzer *fuzzer = strcmp(argv[1], messages_fuzzer.name) ? &queues_fuzzer : &messages_fuzzer;
    seed = strtoull(argv[2], NULL, 10);
    int race = argc > 4 && !strcmp(argv[4], "race");
    uint64_t cases = strtoull(argv[3], NULL, 10), first = argc > 4 && !race ? strtoull(argv[4], NULL, 10) : 0;
    signal(SIGALRM, too_long);
    signal(SIGABRT, aborted);
    guest_open();
    driver_open();
    bench_open(fuzzer->mtu);
    fuzzer->begin(race);
    int before = open_descriptors();
    for (number = first; number < first + cases; number++) {
        alarm(SECONDS);
        random_seed(seed, number);
        fuzzer->one_case();
    }
    printf("%lu cases, ", cases);
    fuzzer->end();
    bench_close();
    if (open_descriptors() > before) {
        fprintf(stderr, "%d descriptors were left open\n", open_descriptors() - before);
        return 4;
    }
    return 0;
}
