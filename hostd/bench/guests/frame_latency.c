/*
 * frame_latency.c: how long a frame takes through a switch, and a message of the bare channel, with everybody awake.
 *
 * Arguments: ROLE ROUNDS SIZE: rounds that are measured, bytes of a frame. A ring port's rings are channels here, whose
 * messages are an offload header and a frame.
 *
 *     cross   sends on `left-out` and waits on `right-in`: from one port of this guest to its other one
 *     ping    sends on `left-out` and waits on `left-in` for the answer of
 *     pong    who answers on `right-out` what comes on `right-in`
 *     echo    answers on `answer` what comes on `ask`, where nobody is between: the bare channel
 *
 * cross and ping go by the switch and by the bare channel in turn, some hundred messages each, so that both are measured at
 * the same speed of the machine. Who answers, and the switch, sleep while they have nothing to do for a while, for they may
 * share a processor; the first messages of each turn, which wake them, are not counted.
 *
 * Reports of cross and ping: switch_ns_p50 (a way of cross, a round trip of ping), bare_ns_p50 (a round trip); p99, max.
 */
#include "guest.h"

enum { OFFLOAD = 12, MAC = 6, ETHERNET = 14, NUMBER = OFFLOAD + ETHERNET, ROOM = 2048 };
static const unsigned char LEFT[MAC] = {2, 0, 0, 0, 0, 10}, RIGHT[MAC] = {2, 0, 0, 0, 0, 11};
enum { TURN = 500, TURN_WARM_UP = 300 };
static const uint64_t FIRST_LIMIT_NS = 100000000, START_NS = 60000000000, SPIN_NS = 100000, LAST = ~0ull;

/* One way that messages go and come back. */
struct way {
    struct channel to, from;
    uint32_t *ticks;
    uint64_t number;
};

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

static void send(struct way *way, uint64_t number) {
    memcpy(message + NUMBER, &number, sizeof number);
    channel_must(&way->to, channel_send(&way->to, message, size, GUEST_NO_LIMIT));
}

/* The message of that number: 1, or 0 if it doesn't come in time. Older ones are passed over. */
static int receive(struct way *way, uint64_t number, uint64_t limit_ns) {
    for (;;) {
        int64_t got = channel_receive(&way->from, answer, sizeof answer, limit_ns);
        if (got == CHANNEL_TIMEOUT)
            return 0;
        channel_must(&way->from, got);
        uint64_t found;
        memcpy(&found, answer + NUMBER, sizeof found);
        if ((size_t)got != size || found > number)
            guest_fail("sent message %lu of %zu bytes, got %lu of %ld bytes", number, size, found, got);
        if (found == number)
            return 1;
    }
}

static void open_way(struct way *way, const char *to, const char *from, uint64_t spin_ns) {
    channel_must_open(&way->to, to);
    channel_must_open(&way->from, from);
    channel_spin(&way->from, spin_ns);
}

/* The other side may not be there yet. */
static void begin(struct way *way, size_t rounds) {
    uint64_t start = guest_now_ns();
    way->ticks = guest_alloc(rounds * sizeof *way->ticks, 64);
    if (!way->ticks)
        guest_fail("no memory for %zu samples; give this guest more memory", rounds);
    do {
        if (guest_now_ns() - start > START_NS)
            guest_fail("no message came through in 60 s");
        send(way, ++way->number);
    } while (!receive(way, way->number, FIRST_LIMIT_NS));
}

static void turn(struct way *way, size_t at, size_t count) {
    for (size_t i = 0; i < TURN_WARM_UP + count; i++) {
        uint64_t before = guest_ticks();
        send(way, ++way->number);
        receive(way, way->number, GUEST_NO_LIMIT);
        uint64_t took = guest_ticks() - before;
        if (i >= TURN_WARM_UP)
            way->ticks[at + i - TURN_WARM_UP] = took < UINT32_MAX ? (uint32_t)took : UINT32_MAX;
    }
}

static void report_way(const struct way *way, const char *const names[3], size_t rounds) {
    static const unsigned per_mille[] = {500, 990, 1000};
    sort(way->ticks, rounds);
    for (size_t i = 0; i < 3; i++)
        report(names[i], guest_ticks_to_ns(way->ticks[(rounds - 1) * per_mille[i] / 1000]));
}

static void measure(struct way *through, struct way *bare, size_t rounds) {
    begin(through, rounds);
    begin(bare, rounds);
    for (size_t at = 0; at < rounds; at += TURN) {
        size_t count = rounds - at < TURN ? rounds - at : TURN;
        turn(through, at, count);
        turn(bare, at, count);
    }
    report("rounds", rounds);
    report_way(through, (const char *const[]){"switch_ns_p50", "switch_ns_p99", "switch_ns_max"}, rounds);
    report_way(bare, (const char *const[]){"bare_ns_p50", "bare_ns_p99", "bare_ns_max"}, rounds);
}

static void reply(struct way *way) {
    uint64_t number, count = 0;
    do {
        int64_t got = channel_receive(&way->from, message, sizeof message, GUEST_NO_LIMIT);
        channel_must(&way->from, got);
        memcpy(&number, message + NUMBER, sizeof number);
        memcpy(message + OFFLOAD, LEFT, MAC);
        memcpy(message + OFFLOAD + MAC, RIGHT, MAC);
        if (number != LAST)
            channel_must(&way->to, channel_send(&way->to, message, (size_t)got, GUEST_NO_LIMIT));
        count++;
    } while (number != LAST);
    report("answered", count);
}

int main(int argc, char **argv) {
    static struct way through, bare;
    const char *role = argc == 4 ? argv[1] : "";
    int crossing = strcmp(role, "cross") == 0, pinging = strcmp(role, "ping") == 0;
    int ponging = strcmp(role, "pong") == 0, echoing = strcmp(role, "echo") == 0;
    if (!(crossing | pinging | ponging | echoing))
        guest_fail("usage: %s cross|ping|pong|echo ROUNDS SIZE", argv[0]);
    size_t rounds = strtoul(argv[2], NULL, 10);
    size = OFFLOAD + strtoul(argv[3], NULL, 10);
    if (!rounds || size < NUMBER + sizeof(uint64_t) || size > ROOM)
        guest_fail("rounds must be positive and size %zu to %d bytes", ETHERNET + sizeof(uint64_t), ROOM - OFFLOAD);
    memcpy(message + OFFLOAD, RIGHT, MAC);
    memcpy(message + OFFLOAD + MAC, LEFT, MAC);
    message[OFFLOAD + 2 * MAC] = 0x88;
    message[OFFLOAD + 2 * MAC + 1] = 0xb5;
    if (ponging || echoing) {
        open_way(&bare, ponging ? "right-out" : "answer", ponging ? "right-in" : "ask", SPIN_NS);
        reply(&bare);
        return 0;
    }
    open_way(&through, "left-out", crossing ? "right-in" : "left-in", CHANNEL_SPIN_ALWAYS);
    open_way(&bare, "ask", "answer", CHANNEL_SPIN_ALWAYS);
    measure(&through, &bare, rounds);
    send(&bare, LAST);
    if (pinging)
        send(&through, LAST);
    return 0;
}
