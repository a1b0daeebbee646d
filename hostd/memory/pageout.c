/* pageout.c: see pageout.h. The format of /proc/self/pagemap: Linux, Documentation/admin-guide/mm/pagemap.rst. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "pageout.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

enum { PAGE = 4096, ENTRIES = 4096, SOME = 16 };

#define PRESENT (1ull << 63)
#define OF_FILE (1ull << 61) /* or of shared memory */
#define EXCLUSIVE (1ull << 56)

/* Counts pages of [at, at + size) until `most` of them are resident; *end is behind the last one looked at. */
static int64_t count(int pagemap, uintptr_t at, size_t size, uint64_t most, uintptr_t *end) {
    uint64_t entries[ENTRIES], found = 0;
    uintptr_t stop = at + size;
    while (at < stop && found < most) {
        size_t wanted = (stop - at + PAGE - 1) / PAGE;
        if (wanted > ENTRIES)
            wanted = ENTRIES;
        ssize_t got = pread(pagemap, entries, wanted * sizeof *entries, (off_t)(at / PAGE * sizeof *entries));
        if (got <= 0)
            return got < 0 ? -errno : -EIO;
        for (size_t i = 0; i < (size_t)got / sizeof *entries && found < most; i++, at += PAGE)
            /* The zero page is neither: it is present, and takes no memory. */
            found += (entries[i] & PRESENT) && (entries[i] & (OF_FILE | EXCLUSIVE));
    }
    *end = at < stop ? at : stop;
    return (int64_t)found;
}

static int open_pagemap(void) {
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    return pagemap < 0 ? -errno : pagemap;
}

int64_t map_file_system(int fd) {
    struct statfs found;
    return fstatfs(fd, &found) ? -errno : (int64_t)(uint32_t)found.f_type;
}

int64_t map_resident(uintptr_t at, size_t size) {
    uintptr_t end;
    int pagemap = open_pagemap();
    if (pagemap < 0)
        return pagemap;
    int64_t found = count(pagemap, at, size, UINT64_MAX, &end);
    close(pagemap);
    return found < 0 ? found : found * PAGE;
}

int64_t map_page_out(uintptr_t at, size_t size, uint64_t most, int sync) {
    uintptr_t stop = at + size, end, same;
    uint64_t left = 0;
    int64_t before = 0, after = 0;
    int first = 1;
    int pagemap = open_pagemap();
    if (pagemap < 0)
        return pagemap;
    for (most /= PAGE; at < stop && left < most;) {
        before = count(pagemap, at, stop - at, most - left, &end);
        if (before <= 0)
            break;
        if ((sync && msync((void *)at, end - at, MS_SYNC)) || madvise((void *)at, end - at, MADV_PAGEOUT))
            after = -errno;
        else
            after = count(pagemap, at, end - at, UINT64_MAX, &same);
        if (after < 0)
            break;
        left += after < before ? (uint64_t)(before - after) : 0;
        /* Before Linux 6.10 a page stays that the guest has used, and only loses the mark of that. */
        if (!first || after <= before / SOME)
            at = end, first = 1;
        else
            first = 0;
    }
    close(pagemap);
    if (before < 0 || after < 0)
        return before < 0 ? before : after;
    return (int64_t)left * PAGE;
}
