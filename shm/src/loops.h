/*
 * loops.h: loops over rings for measurements, each run by a process of its own.
 *
 * Each `ring` is the memory of one ring (loop_ring_bytes(size) bytes of zeros to begin with) that both processes have mapped.
 * Both sides spin. A result of 0 means that the ring is broken or the configuration impossible.
 */
#ifndef SHM_LOOPS_H
#define SHM_LOOPS_H

#include <stdint.h>

uint64_t loop_ring_bytes(uint64_t size);

/* Answers `rounds` messages of `message` bytes that come in `in` with one in `out`. Returns the rounds done. */
uint64_t loop_answer(void *in, void *out, uint64_t size, uint32_t message, uint64_t rounds);

/* The asker's side: ticks (TSC) of each round trip. Returns the rounds done. */
uint64_t loop_ask(void *out, void *in, uint64_t size, uint32_t message, uint64_t rounds, uint32_t *ticks);

/* Sends `count` copies of `message` bytes, taken from the `window` bytes at `buffer` one after the other. Returns ns. */
uint64_t loop_produce(void *ring, uint64_t size, uint32_t message, uint64_t count, const char *buffer, uint64_t window);

/* Receives them into `buffer`. Returns ns from the first message to the last. */
uint64_t loop_consume(void *ring, uint64_t size, uint32_t message, uint64_t count, char *buffer, uint64_t window);

/* Copies `total` bytes in pieces of `piece` between two buffers of `window` bytes with memcpy. Returns ns. */
uint64_t loop_memcpy(char *to, const char *from, uint64_t window, uint64_t piece, uint64_t total);

/* The round trip of one cache line between two processes, beside which a ring's stands. Ticks of each round. */
void loop_bounce_answer(uint64_t *line, uint64_t rounds);
void loop_bounce(uint64_t *line, uint64_t rounds, uint32_t *ticks);

double loop_ticks_per_ns(void);

#endif
