/*
 * lottery.c: guests to look into with a debugger (docs/debugging.md). One draws numbers and sends them as fast as the other
 * takes them; the other keeps a tally until it has had enough, which a debugger may tell it.
 *
 * Argument: draw, or tally and how many draws are enough (0: never). Channel: draws. A draw that is lost, or comes twice, or
 * out of order ends the tally with an error.
 */
#include "guest.h"

struct draw {
    uint64_t number;
    uint32_t value; /* 1 to 49 */
};

struct tally {
    uint64_t draws;
    uint64_t sum;
    uint32_t last[4]; /* the newest ones, newest first */
};

struct tally tally;
volatile int enough;

/* The same numbers each time: Knuth's linear congruential generator. */
static uint32_t next_value(void) {
    static uint64_t state = 42;
    state = state * 6364136223846793005 + 1442695040888963407;
    return (uint32_t)(state >> 33) % 49 + 1;
}

__attribute__((noinline)) void record(struct tally *to, const struct draw *draw) {
    uint64_t expected = to->draws;
    if (draw->number != expected)
        guest_fail("draw %lu came where %lu was due", draw->number, expected);
    for (unsigned i = 3; i > 0; i--)
        to->last[i] = to->last[i - 1];
    to->last[0] = draw->value;
    to->sum += draw->value;
    to->draws = expected + 1;
}

static int draw(struct channel *out) {
    struct draw next = {0};
    do {
        next.value = next_value();
        if (channel_send(out, &next, sizeof next, GUEST_NO_LIMIT) < 0)
            break; /* Nobody reads any more. */
    } while (++next.number);
    report("sent", next.number);
    return 0;
}

static int take(struct channel *in, uint64_t goal) {
    struct draw drawn;
    report("waiting", 1);
    while (!enough && (!goal || tally.draws < goal)) {
        channel_must(in, channel_receive(in, &drawn, sizeof drawn, GUEST_NO_LIMIT));
        record(&tally, &drawn);
    }
    report("draws", tally.draws);
    report("sum", tally.sum);
    channel_close(in);
    return 0;
}

int main(int argc, char **argv) {
    struct channel draws;
    if (argc < 2)
        guest_fail("usage: %s draw | tally [COUNT]", argv[0]);
    channel_must_open(&draws, "draws");
    return strcmp(argv[1], "draw") == 0 ? draw(&draws) : take(&draws, argc > 2 ? strtoul(argv[2], NULL, 10) : 0);
}
