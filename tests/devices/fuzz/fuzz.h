/* fuzz.h: what the device fuzzer's files share: random numbers, the guest's memory, and a driver that knows how. */
#ifndef HOSTD_DEVICE_FUZZ_H
#define HOSTD_DEVICE_FUZZ_H

#include <stddef.h>
#include <stdint.h>

#include "rows.h"

/* --- random.c: one stream for a case, so that a case can be run again alone --- */
void random_seed(uint64_t seed, uint64_t number);
uint64_t random_next(void);
uint64_t below(uint64_t limit);
/* What breaks arithmetic: edges, near `size`, below it, anything. */
uint64_t nasty(uint64_t size);

/* --- memory.c: rows between pages that nobody can touch --- */
enum { ROWS = 5, BORDER = 16 * 4096 - 8 }; /* BORDER: bytes from here on are in two rows */
extern struct slot_rows guest_rows;
void memory_open(void);
/* All zero again, but for the row that nobody may write: it is checked. */
void memory_clear(void);
/* An address in some row, mostly; near an end, often. */
uint64_t some_address(void);
/* Bytes of an address's row from it on, 0 if there is none. */
uint64_t room_at(uint64_t gpa);
/* Write as the guest does; what is outside its memory, or read-only, is left out. */
void poke(uint64_t gpa, const void *from, uint64_t size);
/* Read as the guest does; zeros from outside. */
void peek(uint64_t gpa, void *to, uint64_t size);

#endif
