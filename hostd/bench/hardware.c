/* hardware.c: what the hardware gives: a cache line bounced between two processors, memory copied by one. */
#include "hardware.h"

#include <string.h>
#include <time.h>
#include <x86intrin.h>

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void await(const uint64_t *word, uint64_t value) {
    while (__atomic_load_n(word, __ATOMIC_ACQUIRE) != value)
        _mm_pause();
}

void bounce_answer(uint64_t *line, uint64_t rounds) {
    for (uint64_t i = 1; i <= rounds; i++) {
        await(line, 2 * i - 1);
        __atomic_store_n(line, 2 * i, __ATOMIC_RELEASE);
    }
}

void bounce_measure(uint64_t *line, uint64_t rounds, uint32_t *ticks) {
    uint64_t before = __rdtsc();
    for (uint64_t i = 1; i <= rounds; i++) {
        __atomic_store_n(line, 2 * i - 1, __ATOMIC_RELEASE);
        await(line, 2 * i);
        uint64_t now = __rdtsc();
        ticks[i - 1] = now - before < UINT32_MAX ? (uint32_t)(now - before) : UINT32_MAX;
        before = now;
    }
}

uint64_t copy_ns(void *to, const void *from, uint64_t size) {
    uint64_t start = now_ns();
    memcpy(to, from, size);
    __asm__ volatile("" : : "r"(to) : "memory");
    return now_ns() - start;
}

double ticks_per_ns(void) {
    uint64_t ns = now_ns(), ticks = __rdtsc();
    while (now_ns() - ns < 20000000)
        ;
    return (double)(__rdtsc() - ticks) / (double)(now_ns() - ns);
}
