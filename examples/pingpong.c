/*
 * pingpong.c: two guests bounce a message; `ping` measures, `pong` answers.
 *
 * Arguments: ping|pong [rounds] [size] [spin|sleep]. Channels: ping (ping sends), pong (pong sends).
 * Reports of ping: rtt_ns_p50 and other percentiles, over `rounds` round trips after a tenth as many to warm up.
 */
#include "guest.h"
#include "percentiles.h"

static struct channel to, from;
static unsigned char message[65536];

/* One round trip: the answer carries the number that was sent, in its last bytes. */
static void bounce(size_t size, uint64_t number) {
    memcpy(message + size - sizeof number, &number, sizeof number);
    channel_must(&to, channel_send(&to, message, size, GUEST_NO_LIMIT));
    channel_must(&from, channel_receive(&from, message, sizeof message, GUEST_NO_LIMIT));
    uint64_t answer;
    memcpy(&answer, message + size - sizeof answer, sizeof answer);
    if (answer != number)
        guest_fail("sent message %lu, got %lu back", number, answer);
}

static int ping(size_t rounds, size_t size) {
    uint32_t *ticks = guest_alloc(rounds * sizeof *ticks, 64);
    if (!ticks)
        guest_fail("no memory for %zu samples; give this guest more memory", rounds);
    for (size_t i = 0; i < rounds / 10; i++)
        bounce(size, i);
    uint64_t start = guest_ticks(), before = start;
    for (size_t i = 0; i < rounds; i++) {
        bounce(size, i);
        uint64_t now = guest_ticks();
        ticks[i] = now - before < UINT32_MAX ? (uint32_t)(now - before) : UINT32_MAX;
        before = now;
    }
    uint64_t all = guest_ticks_to_ns(before - start);
    sort(ticks, rounds);
    report("rounds", rounds);
    report("size", size);
    report("rtt_ns_mean", (double)all / (double)rounds);
    report_percentile("rtt_ns_p50", ticks, rounds, 500);
    report_percentile("rtt_ns_p99", ticks, rounds, 990);
    report_percentile("rtt_ns_max", ticks, rounds, 1000);
    guest_print("%zu round trips of %zu bytes, median %lu ns\n", rounds, size, guest_ticks_to_ns(ticks[rounds / 2]));
    channel_close(&to);
    return 0;
}

static int pong(void) {
    uint64_t count = 0;
    for (;; count++) {
        int64_t size = channel_receive(&from, message, sizeof message, GUEST_NO_LIMIT);
        if (size == CHANNEL_CLOSED)
            break;
        channel_must(&from, size);
        channel_must(&to, channel_send(&to, message, (size_t)size, GUEST_NO_LIMIT));
    }
    report("answered", count);
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 2)
        guest_fail("usage: %s ping|pong [rounds] [size] [spin|sleep]", argv[0]);
    int pinging = strcmp(argv[1], "ping") == 0;
    size_t rounds = argc > 2 ? strtoul(argv[2], NULL, 10) : 200000;
    size_t size = argc > 3 ? strtoul(argv[3], NULL, 10) : 64;
    if (!rounds || size < sizeof(uint64_t) || size > sizeof message)
        guest_fail("rounds must be positive and size %zu to %zu bytes", sizeof(uint64_t), sizeof message);
    channel_must_open(&to, pinging ? "ping" : "pong");
    channel_must_open(&from, pinging ? "pong" : "ping");
    channel_spin(&from, argc > 4 && strcmp(argv[4], "sleep") == 0 ? 0 : CHANNEL_SPIN_ALWAYS);
    return pinging ? ping(rounds, size) : pong();
}
