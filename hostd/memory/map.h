/* map.h: memory of this process for a guest's rows, and the C side of the slot table. All return 0 or -errno. */
#ifndef HOSTD_MEMORY_MAP_H
#define HOSTD_MEMORY_MAP_H

#include <stddef.h>
#include <stdint.h>

#include "rows.h"

enum { MAP_GUARD = 4096 };

/*
 * Reserves `size` bytes at an address that is `phase` modulo `align` (a power of two), with an inaccessible page on
 * either side. The reservation runs from *at - MAP_GUARD to *at + size + MAP_GUARD.
 */
int map_reserve(size_t size, size_t align, size_t phase, uintptr_t *at);

/* Maps over a part of a reservation; `fd` -1 for anonymous memory. */
int map_over(uintptr_t at, size_t size, int writable, int flags, int fd, uint64_t offset);

/* Gives a whole reservation back, given the address and size of its middle. */
int map_drop(uintptr_t at, size_t size);

int map_protect(uintptr_t at, size_t size, int writable);
int map_advise(uintptr_t at, size_t size, int advice);

/* Locks pages as they are touched (mlock2, MLOCK_ONFAULT). */
int map_lock(uintptr_t at, size_t size);

/* Names anonymous memory in /proc/PID/smaps, where the kernel can. */
void map_name(uintptr_t at, size_t size, const char *name);

/* Bytes of one page of the file system behind `fd` if it is hugetlbfs, 0 if it is another, or -errno. */
int64_t map_huge_page(int fd);

int rows_open(struct slot_rows *table);
void rows_close(struct slot_rows *table);

/* Adds a copy of a row; the caller has checked that it overlaps none. */
int rows_insert(struct slot_rows *table, const struct slot_row *row);

/* Takes the row at `gpa` out, once no slot_lock is held. */
int rows_remove(struct slot_rows *table, uint64_t gpa);

/* slot_hva under its lock, as an address; 0 for none. */
uintptr_t rows_hva(struct slot_rows *table, uint64_t gpa, uint64_t size, int write);

#endif
