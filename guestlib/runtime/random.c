/* random.c: xoshiro256** (Blackman and Vigna, 2018), seeded from the info area, and anew in each clone. */
#include "guest.h"

static uint64_t rotate(uint64_t value, int bits) {
    return value << bits | value >> (64 - bits);
}

uint64_t guest_random(void) {
    static uint64_t s[4], generation;
    if (!(s[0] | s[1] | s[2] | s[3]) || generation != guest_generation()) {
        memcpy(s, guest_info()->seed, sizeof s);
        generation = guest_generation();
    }
    uint64_t result = rotate(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate(s[3], 45);
    return result;
}
