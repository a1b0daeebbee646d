/*
 * heap.h: the interpreter's memory as an image: mapped MAP_PRIVATE from one file by every guest process.
 *
 * Python writes to whatever it looks at (reference counts), and mostly writes back what was there. After a fork each such page
 * is a copy of the guest process's own, for good, though nothing in it differs. So before the first fork the warm parent
 * fills the holes in its heap, so that what a guest process allocates lies together elsewhere, moves the heap into a file and
 * maps that privately in the same place; and a guest process that has come to rest compares the pages it has copied with the
 * file, and gives back those that are the same: the file's page, shared by all, shows again.
 */
#ifndef HOSTD_HEAP_H
#define HOSTD_HEAP_H

#include <stdint.h>

#define HEAP_RANGES 128

struct heap_range {
    uintptr_t start, end;
    uint64_t offset;       /* in the file */
};

struct heap {
    int fd;
    uint32_t count;
    struct heap_range ranges[HEAP_RANGES];
};

void heap_fill(void);
int heap_freeze(struct heap *heap);
int heap_share(const struct heap *heap);

#endif
