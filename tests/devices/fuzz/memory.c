/* memory.c: the guest's memory in the fuzzer. Every row lies between pages without access: one byte outside is a fault. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "fuzz.h"

enum { PAGE = 4096 };

struct slot_rows guest_rows;

/* Adjacent rows, a hole, a read-only one, one above 4 GiB, and one that ends where addresses end. */
static struct slot_row rows[ROWS] = {
    {.gpa = 0, .size = 16 * PAGE, .writable = 1},
    {.gpa = 16 * PAGE, .size = 8 * PAGE, .writable = 1},
    {.gpa = 32 * PAGE, .size = 2 * PAGE, .writable = 0},
    {.gpa = 1ull << 32, .size = 8 * PAGE, .writable = 1},
    {.gpa = (1ull << 52) - 4 * PAGE, .size = 4 * PAGE, .writable = 1},
};

static void *guarded(uint64_t size) {
    uint8_t *at = mmap(NULL, size + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED || mprotect(at + PAGE, size, PROT_READ | PROT_WRITE))
        abort();
    return at + PAGE;
}

void memory_open(void) {
    for (int i = 0; i < ROWS; i++)
        rows[i].hva = guarded(rows[i].size);
    /* The table too is exactly as large as it must be. */
    guest_rows.rows = malloc(sizeof rows);
    memcpy(guest_rows.rows, rows, sizeof rows);
    guest_rows.count = guest_rows.room = ROWS;
    if (pthread_rwlock_init(&guest_rows.lock, NULL))
        abort();
    memset(rows[2].hva, 0x52, rows[2].size);
    /* Really read-only here: who writes there dies. */
    if (mprotect(rows[2].hva, rows[2].size, PROT_READ))
        abort();
}

void memory_clear(void) {
    for (int i = 0; i < ROWS; i++)
        if (rows[i].writable)
            memset(rows[i].hva, 0, rows[i].size);
    for (uint64_t at = 0; at < rows[2].size; at += PAGE)
        if (rows[2].hva[at] != 0x52) {
            fputs("the read-only row lost its bytes\n", stderr);
            abort();
        }
}

uint64_t some_address(void) {
    const struct slot_row *row = &rows[below(ROWS)];
    switch (below(8)) {
    case 0:
        return row->gpa + row->size - below(32);
    case 1:
        return row->gpa + row->size + below(3 * PAGE);
    case 2:
        return nasty(row->gpa);
    default:
        return row->gpa + below(row->size);
    }
}

uint64_t room_at(uint64_t gpa) {
    const struct slot_row *row = slot_find(&guest_rows, gpa);
    return row ? row->size - (gpa - row->gpa) : 0;
}

void poke(uint64_t gpa, const void *from, uint64_t size) {
    const uint8_t *bytes = from;
    while (size) {
        uint64_t part = room_at(gpa);
        if (!part)
            return;
        part = part < size ? part : size;
        void *at = slot_hva(&guest_rows, gpa, part, 1);
        if (at)
            memcpy(at, bytes, part);
        gpa += part, bytes += part, size -= part;
    }
}

void peek(uint64_t gpa, void *to, uint64_t size) {
    uint8_t *bytes = to;
    memset(to, 0, size);
    while (size) {
        uint64_t part = room_at(gpa);
        if (!part)
            return;
        part = part < size ? part : size;
        memcpy(bytes, slot_hva(&guest_rows, gpa, part, 0), part);
        gpa += part, bytes += part, size -= part;
    }
}
