/* copy.h: what forwards least: one thread that copies each message of one ring into another one, and decides nothing. */
#ifndef HOSTD_COPY_H
#define HOSTD_COPY_H

#include <stdint.h>

/*
 * Copies from ring to ring (shm/ring.h), each of `size` bytes, until the process is killed, which it is with its parent. It
 * neither sleeps nor wakes anybody. Returns only where that can't be: -1 for rings that can't be, or were spoiled.
 */
int traffic_copy(void *from, void *to, uint64_t size, uint32_t max_message);

#endif
