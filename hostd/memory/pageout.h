/* pageout.h: which of this process's pages are in memory, and sending them away. */
#ifndef HOSTD_MEMORY_PAGEOUT_H
#define HOSTD_MEMORY_PAGEOUT_H

#include <stddef.h>
#include <stdint.h>

/* The kind of the file system that `fd` is on (f_type, statfs(2)), or -errno. */
int64_t map_file_system(int fd);

/* Bytes of [at, at + size) that take memory and that this process maps, as smaps' Rss has them; or -errno. */
int64_t map_resident(uintptr_t at, size_t size);

/*
 * Sends at most `most` bytes of [at, at + size) to swap, or to the file that backs them (MADV_PAGEOUT), from the start of the
 * range on; `sync`: what is dirty is written to the file first, as only clean pages of a file go. Returns how many bytes less are
 * resident, or -errno. Pages that are in use elsewhere stay. Threads may use the memory meanwhile: their pages come back.
 */
int64_t map_page_out(uintptr_t at, size_t size, uint64_t most, int sync);

#endif
