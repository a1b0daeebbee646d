/* bench.c: how fast two channels are. The first byte of a message says what becomes of it over there. */
#define _GNU_SOURCE
#include "guestctl.h"
#include "text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ANSWER = 0, SWALLOW = 1 };

static const uint64_t DEFAULT_ROUNDS = 10000;

static int by_size(const void *one, const void *other) {
    uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;
    return (a > b) - (a < b);
}

/* ---- the other side ---------------------------------------------------------------------------------------------------- */

static int answer(struct guest_end *in, struct guest_end *out, int64_t timeout_ns) {
    size_t room = in->line.config.max_message;
    char *message = malloc(room);
    int64_t size = 0;
    int result = 0;
    while (message && !result && (size = end_receive(&in->end, message, room, timeout_ns)) >= 0)
        if (size && message[0] == ANSWER)
            result = end_send(&out->end, message, (uint64_t)size, timeout_ns);
    free(message);
    if (result)
        return guestctl_ended(out, result);
    return size < 0 ? guestctl_ended(in, size) : GUESTCTL_FAILED;
}

/* ---- this side --------------------------------------------------------------------------------------------------------- */

struct run {
    struct guest_end *out, *in;
    char *message, *back;
    uint32_t size;
    uint64_t count, *times_ns, one_way_ns;
    int64_t timeout_ns;
};

static int64_t round_trip(struct run *run) {
    int64_t result = end_send(&run->out->end, run->message, run->size, run->timeout_ns);
    if (!result)
        result = end_receive(&run->in->end, run->back, run->in->line.config.max_message, run->timeout_ns);
    return result;
}

static int64_t round_trips(struct run *run) {
    run->message[0] = ANSWER;
    for (uint64_t i = 0; i < run->count; i++) {
        uint64_t start = monotonic_ns();
        int64_t result = round_trip(run);
        if (result < 0)
            return result;
        run->times_ns[i] = monotonic_ns() - start;
    }
    return 0;
}

/* Many one way; the last is answered, and so they all have come. */
static int64_t one_way(struct run *run) {
    uint64_t start = monotonic_ns();
    run->message[0] = SWALLOW;
    for (uint64_t i = 1; i < run->count; i++) {
        int64_t result = end_send(&run->out->end, run->message, run->size, run->timeout_ns);
        if (result)
            return result;
    }
    run->message[0] = ANSWER;
    int64_t result = round_trip(run);
    run->one_way_ns = monotonic_ns() - start;
    return result < 0 ? result : 0;
}

static void show(const struct run *run) {
    uint64_t sum = 0, last = run->count - 1;
    for (uint64_t i = 0; i < run->count; i++)
        sum += run->times_ns[i];
    qsort(run->times_ns, run->count, sizeof *run->times_ns, by_size);
    double seconds = (double)run->one_way_ns / 1e9;
#define PERCENTILE(p) (unsigned long long)run->times_ns[last * (p) / 1000]
    printf("{\n  \"size\": %u,\n  \"rounds\": %llu,\n", run->size, (unsigned long long)run->count);
    printf("  \"round_trip_ns\": {\"min\": %llu, \"p50\": %llu, \"p90\": %llu, \"p99\": %llu, \"p999\": %llu, \"max\": %llu, "
           "\"mean\": %.0f},\n",
           PERCENTILE(0), PERCENTILE(500), PERCENTILE(900), PERCENTILE(990), PERCENTILE(999), PERCENTILE(1000),
           (double)sum / (double)run->count);
    printf("  \"one_way\": {\"messages\": %llu, \"seconds\": %.6f, \"messages_per_s\": %.0f, \"bytes_per_s\": %.0f},\n",
           (unsigned long long)run->count, seconds, (double)run->count / seconds, (double)run->count * run->size / seconds);
    printf("  \"sleeps\": %llu,\n  \"late\": %llu,\n  \"rings\": %llu\n}\n",
           (unsigned long long)(run->in->end.sleeps + run->out->end.sleeps),
           (unsigned long long)(run->in->end.late + run->out->end.late), (unsigned long long)run->out->end.rings);
}

static int ask(struct guest_end *out, struct guest_end *in, const struct guestctl_options *options) {
    struct run run = {.out = out, .in = in, .size = options->size, .timeout_ns = options->timeout_ns};
    run.count = options->count ? options->count : DEFAULT_ROUNDS;
    run.message = calloc(1, run.size);
    run.back = malloc(in->line.config.max_message);
    run.times_ns = calloc(run.count, sizeof *run.times_ns);
    int64_t result = END_SYSTEM;
    if (run.message && run.back && run.times_ns)
        result = round_trips(&run);
    if (!result)
        result = one_way(&run);
    if (!result)
        show(&run);
    free(run.times_ns);
    free(run.back);
    free(run.message);
    if (result == SHM_E_CLOSED)
        fprintf(stderr, "guestctl: channel %s: its other end was closed; start the other side first\n", in->line.channel);
    if (!result || result == SHM_E_CLOSED)
        return result ? GUESTCTL_FAILED : 0;
    return guestctl_ended(in, result);
}

int guestctl_bench(const struct guestctl_options *options, const char *first, const char *second) {
    struct guest_end one, other;
    if (!options->size) {
        fputs("guestctl: a message of 0 bytes cannot be asked for; give -s 1 or more\n", stderr);
        return GUESTCTL_USAGE;
    }
    if (guestctl_open(&one, first, options->answer ? "receive" : "send", options))
        return GUESTCTL_FAILED;
    int code = GUESTCTL_FAILED;
    if (!guestctl_open(&other, second, options->answer ? "send" : "receive", options)) {
        code = options->answer ? answer(&one, &other, options->timeout_ns) : ask(&one, &other, options);
        guest_close(&other);
    }
    guest_close(&one);
    return code;
}
