/* loops.c: see loops.h. */
#include "loops.h"

#include <shm/ring.h>
#include <string.h>
#include <time.h>
#include <x86intrin.h>

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

uint64_t loop_ring_bytes(uint64_t size) {
    return ring_bytes(size);
}

static int sender(struct ring *ring, void *memory, uint64_t size, uint32_t message) {
    return ring_open(ring, memory, size, message, 0) || ring_attach_producer(ring);
}

static int receiver(struct ring *ring, void *memory, uint64_t size, uint32_t message) {
    int failed = ring_open(ring, memory, size, message, 0);
    if (!failed)
        ring_attach_consumer(ring);
    return failed;
}

static inline int send(struct ring *ring, const void *data, uint32_t size) {
    int bell, result;
    while ((result = ring_send(ring, data, size, &bell)) == SHM_FULL)
        ring_spin_for_room();
    return result;
}

static inline int64_t receive(struct ring *ring, void *data, uint32_t room) {
    int bell;
    int64_t result;
    while ((result = ring_receive(ring, data, room, &bell)) == SHM_EMPTY)
        ring_spin(ring);
    return result;
}

uint64_t loop_answer(void *in, void *out, uint64_t size, uint32_t message, uint64_t rounds) {
    struct ring from, to;
    char data[4096];
    if (message > sizeof data || receiver(&from, in, size, message) || sender(&to, out, size, message))
        return 0;
    for (uint64_t i = 0; i < rounds; i++)
        if (receive(&from, data, sizeof data) != message || send(&to, data, message))
            return i;
    return rounds;
}

uint64_t loop_ask(void *out, void *in, uint64_t size, uint32_t message, uint64_t rounds, uint32_t *ticks) {
    struct ring from, to;
    char data[4096] = {0};
    if (message > sizeof data || receiver(&from, in, size, message) || sender(&to, out, size, message))
        return 0;
    uint64_t before = __rdtsc();
    for (uint64_t i = 0; i < rounds; i++) {
        if (send(&to, data, message) || receive(&from, data, sizeof data) != message)
            return i;
        uint64_t now = __rdtsc();
        ticks[i] = now - before < UINT32_MAX ? (uint32_t)(now - before) : UINT32_MAX;
        before = now;
    }
    return rounds;
}

uint64_t loop_produce(void *memory, uint64_t size, uint32_t message, uint64_t count, const char *buffer, uint64_t window) {
    struct ring ring;
    if (message > window || sender(&ring, memory, size, message))
        return 0;
    uint64_t start = now_ns();
    for (uint64_t i = 0, at = 0; i < count; i++) {
        if (send(&ring, buffer + at, message))
            return 0;
        at = at + 2ull * message <= window ? at + message : 0;
    }
    return now_ns() - start;
}

uint64_t loop_consume(void *memory, uint64_t size, uint32_t message, uint64_t count, char *buffer, uint64_t window) {
    struct ring ring;
    if (message > window || receiver(&ring, memory, size, message))
        return 0;
    uint64_t start = 0;
    for (uint64_t i = 0, at = 0; i < count; i++) {
        if (receive(&ring, buffer + at, message) != message)
            return 0;
        if (!start)
            start = now_ns();
        at = at + 2ull * message <= window ? at + message : 0;
    }
    return now_ns() - start;
}

uint64_t loop_memcpy(char *to, const char *from, uint64_t window, uint64_t piece, uint64_t total) {
    uint64_t start = now_ns();
    for (uint64_t done = 0, at = 0; done < total; done += piece) {
        memcpy(to + at, from + at, piece);
        __asm__ volatile("" : : "r"(to) : "memory");
        at = at + 2 * piece <= window ? at + piece : 0;
    }
    return now_ns() - start;
}

static void await(const uint64_t *word, uint64_t value) {
    while (__atomic_load_n(word, __ATOMIC_ACQUIRE) != value)
        _mm_pause();
}

void loop_bounce_answer(uint64_t *line, uint64_t rounds) {
    for (uint64_t i = 1; i <= rounds; i++) {
        await(line, 2 * i - 1);
        __atomic_store_n(line, 2 * i, __ATOMIC_RELEASE);
    }
}

void loop_bounce(uint64_t *line, uint64_t rounds, uint32_t *ticks) {
    uint64_t before = __rdtsc();
    for (uint64_t i = 1; i <= rounds; i++) {
        __atomic_store_n(line, 2 * i - 1, __ATOMIC_RELEASE);
        await(line, 2 * i);
        uint64_t now = __rdtsc();
        ticks[i - 1] = now - before < UINT32_MAX ? (uint32_t)(now - before) : UINT32_MAX;
        before = now;
    }
}

double loop_ticks_per_ns(void) {
    uint64_t ns = now_ns(), ticks = __rdtsc();
    while (now_ns() - ns < 20000000)
        ;
    return (double)(__rdtsc() - ticks) / (double)(now_ns() - ns);
}
