/* hardware.h: see hardware.c. Times in ns, sizes in bytes. */
#ifndef HOSTD_HARDWARE_H
#define HOSTD_HARDWARE_H

#include <stdint.h>

/* Both ends of `rounds` round trips over one shared word that is 0 at first; ticks: one duration a round, in TSC ticks. */
void bounce_answer(uint64_t *line, uint64_t rounds);
void bounce_measure(uint64_t *line, uint64_t rounds, uint32_t *ticks);

uint64_t copy_ns(void *to, const void *from, uint64_t size);
double ticks_per_ns(void);

#endif
