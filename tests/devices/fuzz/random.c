/* random.c: the fuzzer's random numbers (xorshift64* seeded by splitmix64). */
#include "fuzz.h"

static uint64_t state;

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

void random_seed(uint64_t seed, uint64_t number) {
    state = mix(mix(seed) ^ number) | 1;
}

uint64_t random_next(void) {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1d;
}

uint64_t below(uint64_t limit) {
    return limit ? (random_next() >> 11) % limit : 0;
}

uint64_t nasty(uint64_t size) {
    static const uint64_t edges[] = {0, 1, 2, 3, 7, 8, 15, 16, 63, 64, 0x7f, 0x80, 0xff, 0x100, 0xfff, 0x1000, 0x7fff, 0x8000,
                                     0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff, 0x100000000,
                                     0xfffffffff000, 0x7fffffffffffffff, 0x8000000000000000, 0xfffffffffffff000,
                                     0xffffffffffffffff};
    switch (below(4)) {
    case 0:
        return edges[below(sizeof edges / sizeof *edges)];
    case 1:
        return size + below(5) - 2;
    case 2:
        return below(size + 1);
    default:
        return random_next();
    }
}
