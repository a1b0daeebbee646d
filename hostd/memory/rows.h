/*
 * rows.h: a guest's slot table as C sees it, and the one checked way from a guest address to a pointer.
 *
 * Python (hostd.memory.SlotTable) adds and removes rows while the guest runs, so a pointer is good only between
 * slot_lock and slot_unlock. What lies behind it the guest may change at any time: read it once, bound it, then use it.
 */
#ifndef HOSTD_MEMORY_ROWS_H
#define HOSTD_MEMORY_ROWS_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

struct slot_row {
    uint64_t gpa, size;
    uint8_t *hva;
    uint32_t writable;
    int give;      /* madvise(2) by which pages of it go back to the host; 0: they are not the guest's to give */
    uint32_t page; /* bytes of one */
};

struct slot_rows {
    pthread_rwlock_t lock;
    uint32_t count, room;
    struct slot_row *rows; /* by gpa, without overlap; no row wraps around */
};

/* Not twice in one thread: a waiting writer comes before the second. */
static inline void slot_lock(struct slot_rows *table) {
    pthread_rwlock_rdlock(&table->lock);
}

static inline void slot_unlock(struct slot_rows *table) {
    pthread_rwlock_unlock(&table->lock);
}

/* The row that holds guest address `gpa`, or NULL. Under slot_lock. */
static inline const struct slot_row *slot_find(const struct slot_rows *table, uint64_t gpa) {
    uint32_t low = 0, high = table->count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const struct slot_row *row = &table->rows[middle];
        if (gpa < row->gpa)
            high = middle;
        else if (gpa - row->gpa >= row->size)
            low = middle + 1;
        else
            return row;
    }
    return NULL;
}

/*
 * Where the guest's `size` bytes at `gpa` are, or NULL unless one row holds them all (and is writable, if `write`).
 * Under slot_lock. Any `gpa` and `size` may be given; nothing wraps around.
 */
static inline void *slot_hva(const struct slot_rows *table, uint64_t gpa, uint64_t size, int write) {
    const struct slot_row *row = slot_find(table, gpa);
    if (!row || (write && !row->writable))
        return NULL;
    uint64_t offset = gpa - row->gpa;
    return size <= row->size - offset ? row->hva + offset : NULL;
}

#endif
