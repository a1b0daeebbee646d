/*
 * frame_latency.c: how long a frame takes, with everybody awake.
 *
 * Arguments: ROLE ROUNDS SIZE: rounds that are measured, after a tenth as many to warm up; bytes of a frame. The channels are
 * a ring port's rings, whose messages are an offload header and a frame, or one channel each way between two guests.
 *
 *     cross   sends on `left-out` and waits on `right-in`: the time from one port of this guest to its other one
 *     ping    sends on `left-out` and waits on `left-in` for the answer of
 *     pong    who answers on `right-out` what comes on `right-in`
 *
 * With `-bare` behind ping or pong, two guests without a switch between them: ping sends on `left-out`, pong on `right-out`.
 *
 * Reports of cross, for one way, and of ping, for a round trip: ns_p50 and other percentiles. All wait spinning.
 */
#include "guest.h"

enum { OFFLOAD = 12, MAC = 6, ETHERNET = 14, NUMBER = OFFLOAD + ETHERNET, ROOM = 2048 };
static const unsigned char LEFT[MAC] = {2, 0, 0, 0, 0, 10}, RIGHT[MAC] = {2, 0, 0, 0, 0, 11};
static const uint64_t FIRST_LIMIT_NS = 100000000, START_NS = 60000000000, LAST = ~0ull;

static struct channel to, from;
static unsigned char message[ROOM], answer[ROOM];
static size_t size;

static void sort(uint32_t *v, size_t count) {
    for (size_t gap = count / 2; gap; gap /= 2)
        for (size_t i = gap; i < count; i++) {
            uint32_t held = v[i];
            size_t at = i;
            for (; at >= gap && v[at - gap] > held; at -= gap)
                v[at] = v[at - gap];
            v[at] = held;
        }
}

static void send(uint64_t number) {
    memcpy(message + NUMBER, &number, sizeof number);
    channel_must(&to, channel_send(&to, message, size, GUEST_NO_LIMIT));
}

/* The message of that number: 1, or 0 if it doesn't come in time. Older ones are passed over. */
static int receive(uint64_t number, uint64_t limit_ns) {
    for (;;) {
        int64_t got = channel_receive(&from, answer, sizeof answer, limit_ns);
        if (got == CHANNEL_TIMEOUT)
            return 0;
        channel_must(&from, got);
        uint64_t found;
        memcpy(&found, answer + NUMBER, sizeof found);
        if ((size_t)got != size || found > number)
            guest_fail("sent message %lu of %zu bytes, got %lu of %ld bytes", number, size, found, got);
        if (found == number)
            return 1;
    }
}

static void measure(size_t rounds) {
    static const struct { const char *name; unsigned per_mille; } points[] = {
        {"ns_p50", 500}, {"ns_p90", 900}, {"ns_p99", 990}, {"ns_max", 1000}};
    uint32_t *ticks = guest_alloc(rounds * sizeof *ticks, 64);
    if (!ticks)
        guest_fail("no memory for %zu samples; give this guest more memory", rounds);
    uint64_t number = 0, start = guest_now_ns();
    do { /* The other side may not be there yet. */
        if (guest_now_ns() - start > START_NS)
            guest_fail("no message came through in 60 s");
        send(++number);
    } while (!receive(number, FIRST_LIMIT_NS));
    for (size_t i = 0; i < rounds + rounds / 10; i++) {
        uint64_t before = guest_ticks();
        send(++number);
        receive(number, GUEST_NO_LIMIT);
        uint64_t took = guest_ticks() - before;
        if (i >= rounds / 10)
            ticks[i - rounds / 10] = took < UINT32_MAX ? (uint32_t)took : UINT32_MAX;
    }
    sort(ticks, rounds);
    report("rounds", rounds);
    for (size_t i = 0; i < sizeof points / sizeof *points; i++)
        report(points[i].name, guest_ticks_to_ns(ticks[(rounds - 1) * points[i].per_mille / 1000]));
}

static void pong(void) {
    uint64_t number, count = 0;
    do {
        int64_t got = channel_receive(&from, message, sizeof message, GUEST_NO_LIMIT);
        channel_must(&from, got);
        memcpy(&number, message + NUMBER, sizeof number);
        memcpy(message + OFFLOAD, LEFT, MAC);
        memcpy(message + OFFLOAD + MAC, RIGHT, MAC);
        if (number != LAST)
            channel_must(&to, channel_send(&to, message, (size_t)got, GUEST_NO_LIMIT));
        count++;
    } while (number != LAST);
    report("answered", count);
}

int main(int argc, char **argv) {
    static const struct { const char *role, *to, *from; } roles[] = {
        {"cross", "left-out", "right-in"},      {"ping", "left-out", "left-in"},        {"pong", "right-out", "right-in"},
        {"ping-bare", "left-out", "right-out"}, {"pong-bare", "right-out", "left-out"},
    };
    size_t role = 0;
    while (argc == 4 && role < sizeof roles / sizeof *roles && strcmp(argv[1], roles[role].role) != 0)
        role++;
    if (argc != 4 || role == sizeof roles / sizeof *roles)
        guest_fail("usage: %s cross|ping|pong|ping-bare|pong-bare ROUNDS SIZE", argv[0]);
    size_t rounds = strtoul(argv[2], NULL, 10);
    size = OFFLOAD + strtoul(argv[3], NULL, 10);
    if (!rounds || size < NUMBER + sizeof(uint64_t) || size > ROOM)
        guest_fail("rounds must be positive and size %zu to %d bytes", ETHERNET + sizeof(uint64_t), ROOM - OFFLOAD);
    memcpy(message + OFFLOAD, RIGHT, MAC);
    memcpy(message + OFFLOAD + MAC, LEFT, MAC);
    message[OFFLOAD + 2 * MAC] = 0x88;
    message[OFFLOAD + 2 * MAC + 1] = 0xb5;
    channel_must_open(&to, roles[role].to);
    channel_must_open(&from, roles[role].from);
    channel_spin(&from, CHANNEL_SPIN_ALWAYS);
    int answers = strncmp(roles[role].role, "pong", 4) == 0;
    if (answers)
        pong();
    else
        measure(rounds);
    if (!answers && strcmp(roles[role].role, "cross") != 0)
        send(LAST);
    return 0;
}
