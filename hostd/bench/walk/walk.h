/* walk.h: random accesses, each known only when the one before has been made. For guest and host alike. */
#ifndef WALK_H
#define WALK_H

#include <stdint.h>

enum { WALK_PAGE = 4096, WALK_LINE = 64 };

/* Has every page of `memory` be there. It stays zero. */
static inline void walk_touch(volatile uint8_t *memory, uint64_t size) {
    for (uint64_t at = 0; at < size; at += WALK_PAGE)
        memory[at] = 0;
}

/* Reads `count` lines of it at random places. */
static inline uint64_t walk(const volatile uint8_t *memory, uint64_t size, uint64_t count) {
    uint64_t lines = size / WALK_LINE, x = 1;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t line = (uint64_t)((unsigned __int128)x * lines >> 64);
        /* What is read is zero, but the processor must wait for it. */
        x = x * 6364136223846793005u + 1442695040888963407u + *(const volatile uint64_t *)(memory + line * WALK_LINE);
    }
    return x;
}

#endif
