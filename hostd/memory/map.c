/* map.c: see map.h. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/vfs.h>

#include "map.h"

#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

int map_reserve(size_t size, size_t align, size_t phase, uintptr_t *at) {
    size_t all;
    if (__builtin_add_overflow(size, align + 2 * MAP_GUARD, &all))
        return -ENOMEM;
    void *found = mmap(NULL, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED)
        return -errno;
    uintptr_t start = (uintptr_t)found, end = start + all;
    uintptr_t first = start + MAP_GUARD;
    *at = first + ((phase - first) & (align - 1));
    if (*at - MAP_GUARD > start)
        munmap(found, *at - MAP_GUARD - start);
    if (end > *at + size + MAP_GUARD)
        munmap((void *)(*at + size + MAP_GUARD), end - (*at + size + MAP_GUARD));
    return 0;
}

int map_over(uintptr_t at, size_t size, int writable, int flags, int fd, uint64_t offset) {
    int protection = PROT_READ | (writable ? PROT_WRITE : 0);
    void *got = mmap((void *)at, size, protection, flags | MAP_FIXED, fd, (off_t)offset);
    return got == MAP_FAILED ? -errno : 0;
}

int map_drop(uintptr_t at, size_t size) {
    return munmap((void *)(at - MAP_GUARD), size + 2 * MAP_GUARD) ? -errno : 0;
}

int map_protect(uintptr_t at, size_t size, int writable) {
    return mprotect((void *)at, size, PROT_READ | (writable ? PROT_WRITE : 0)) ? -errno : 0;
}

int map_advise(uintptr_t at, size_t size, int advice) {
    return madvise((void *)at, size, advice) ? -errno : 0;
}

int map_lock(uintptr_t at, size_t size) {
    return mlock2((void *)at, size, MLOCK_ONFAULT) ? -errno : 0;
}

void map_name(uintptr_t at, size_t size, const char *name) {
    prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, at, size, name);
}

int64_t map_huge_page(int fd) {
    struct statfs found;
    if (fstatfs(fd, &found) != 0)
        return -errno;
    return found.f_type == HUGETLBFS_MAGIC ? (int64_t)found.f_bsize : 0;
}

int rows_open(struct slot_rows *table) {
    *table = (struct slot_rows){0};
    pthread_rwlockattr_t kind;
    int error = pthread_rwlockattr_init(&kind);
    if (error)
        return -error;
    /* Busy readers must not keep a row from being added. */
    pthread_rwlockattr_setkind_np(&kind, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    error = pthread_rwlock_init(&table->lock, &kind);
    pthread_rwlockattr_destroy(&kind);
    return -error;
}

void rows_close(struct slot_rows *table) {
    pthread_rwlock_destroy(&table->lock);
    free(table->rows);
    *table = (struct slot_rows){0};
}

int rows_insert(struct slot_rows *table, const struct slot_row *row) {
    int error = 0;
    pthread_rwlock_wrlock(&table->lock);
    if (table->count == table->room) {
        uint32_t room = table->room ? table->room * 2 : 16;
        struct slot_row *rows = realloc(table->rows, room * sizeof *rows);
        if (!rows) {
            error = -ENOMEM;
            goto out;
        }
        table->rows = rows;
        table->room = room;
    }
    uint32_t place = table->count;
    while (place > 0 && table->rows[place - 1].gpa > row->gpa)
        place--;
    memmove(&table->rows[place + 1], &table->rows[place], (table->count - place) * sizeof *table->rows);
    table->rows[place] = *row;
    table->count++;
out:
    pthread_rwlock_unlock(&table->lock);
    return error;
}

int rows_remove(struct slot_rows *table, uint64_t gpa) {
    int error = -ENOENT;
    pthread_rwlock_wrlock(&table->lock);
    for (uint32_t i = 0; i < table->count; i++) {
        if (table->rows[i].gpa != gpa)
            continue;
        table->count--;
        memmove(&table->rows[i], &table->rows[i + 1], (table->count - i) * sizeof *table->rows);
        error = 0;
        break;
    }
    pthread_rwlock_unlock(&table->lock);
    return error;
}

uintptr_t rows_hva(struct slot_rows *table, uint64_t gpa, uint64_t size, int write) {
    slot_lock(table);
    void *hva = slot_hva(table, gpa, size, write);
    slot_unlock(table);
    return (uintptr_t)hva;
}
