/* warm.c wait|go: a table of primes, which takes a while, then their sum. "wait": in clones of the guest that has the table. */
#include "guest.h"

enum { PRIMES = 50000, LIMIT = 620000 };

static uint32_t primes[PRIMES];

int main(int argc, char **argv) {
    uint8_t *crossed = guest_alloc(LIMIT, 1);
    uint64_t sum = 0;
    for (uint64_t i = 2, count = 0; i < LIMIT && count < PRIMES; i++) {
        if (crossed[i])
            continue;
        primes[count++] = (uint32_t)i;
        for (uint64_t j = i * i; j < LIMIT; j += i)
            crossed[j] = 1;
    }
    if (argc > 1 && !strcmp(argv[1], "wait")) {
        report("ready", 1);
        guest_await_clone(GUEST_NO_LIMIT);
    }
    for (int i = 0; i < PRIMES; i++)
        sum += primes[i];
    report("sum", (int64_t)sum);
    return primes[PRIMES - 1] != 611953;
}
