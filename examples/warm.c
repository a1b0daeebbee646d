/* A worker whose start takes long: it fills a table, then waits for its template. Every clone goes on from there, finds the
   table ready, and tells the collector who it is. */
#include "guest.h"

enum { PRIMES = 100000, LIMIT = 1300000 };

static uint32_t primes[PRIMES];

struct hello {
    char name[48];
    uint64_t random, generation, sum;
};

static void prepare(void) {
    uint8_t *crossed = guest_alloc(LIMIT, 1);
    size_t count = 0;
    for (size_t i = 2; i < LIMIT && count < PRIMES; i++) {
        if (crossed[i])
            continue;
        primes[count++] = (uint32_t)i;
        for (size_t j = i * i; j < LIMIT; j += i)
            crossed[j] = 1;
    }
}

int main(void) {
    guest_random(); /* From the seed of the guest that boots: no clone is to go on with its numbers. */
    prepare();
    guest_print("ready\n");
    report("ready", 1);
    guest_await_clone(GUEST_NO_LIMIT);

    struct hello hello = {.random = guest_random(), .generation = guest_generation()};
    memcpy(hello.name, guest_name(), strlen(guest_name()) + 1);
    for (size_t i = 0; i < PRIMES; i++)
        hello.sum += primes[i];
    struct channel out;
    if (channel_open(&out, "hellos"))
        guest_fail("no channel called hellos");
    if (channel_send(&out, &hello, sizeof hello, GUEST_NO_LIMIT))
        guest_fail("can't send");
    channel_close(&out);
    report("random", (int64_t)hello.random);
    report("sum", (int64_t)hello.sum);
    return 0;
}
