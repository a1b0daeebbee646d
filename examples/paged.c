/*
 * paged.c SIZE_MIB ROUNDS: fills memory with a pattern, then checks all of it, ROUNDS times (0: for ever), a second apart.
 * It holds on to the memory, so whatever was sent to a disk meanwhile has to come back as it was.
 */
#include "guest.h"

#define PAGE 4096

/* What word `at` of the memory holds in round `round`: no two pages are alike. */
static uint64_t pattern(uint64_t at, uint64_t round) {
    uint64_t x = at * 0x9e3779b97f4a7c15ull ^ round * 0xd1b54a32d192ed03ull;
    x ^= x >> 29;
    return x * 0xbf58476d1ce4e5b9ull;
}

int main(int argc, char **argv) {
    uint64_t size = (argc > 1 ? strtoul(argv[1], NULL, 0) : 64) << 20, rounds = argc > 2 ? strtoul(argv[2], NULL, 0) : 4;
    uint64_t *words = guest_alloc(size, PAGE), count = size / sizeof *words;
    if (!words)
        guest_fail("%lu bytes are more than the %lu that this guest has", size, guest_memory_free());
    for (uint64_t at = 0; at < count; at++)
        words[at] = pattern(at, 0);
    guest_print("filled %lu MiB\n", size >> 20);
    report("filled", size);
    uint64_t slowest = 0;
    for (uint64_t round = 0; !rounds || round < rounds; round++) {
        guest_wait(NULL, 0, 1000000000);
        for (uint64_t page = 0; page < count; page += PAGE / sizeof *words) {
            uint64_t began = guest_ticks();
            for (uint64_t at = page; at < page + PAGE / sizeof *words; at++) {
                if (words[at] != pattern(at, round))
                    guest_fail("word %lu is %lx, not %lx", at, words[at], pattern(at, round));
                words[at] = pattern(at, round + 1);
            }
            uint64_t took = guest_ticks_to_ns(guest_ticks() - began);
            slowest = took > slowest ? took : slowest;
        }
        guest_print("round %lu: all %lu MiB as they were\n", round + 1, size >> 20);
        report("rounds", round + 1);
        report("slowest_page_us", slowest / 1000);
    }
    return 0;
}
