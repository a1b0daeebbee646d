/* memory.c: RAM for the program's own use, and the C library's memory functions. */
#include "guest.h"
#include "call.h"

static const uint64_t PAGE = 4096;

static uint64_t taken[2]; /* bytes given from each heap range: below the MMIO hole, above it */

static const struct guest_range *heap(void) {
    return (const struct guest_range *)((const char *)guest_info() + guest_info()->heap.offset);
}

static uint32_t ranges(void) {
    return guest_info()->heap.size < 2 ? guest_info()->heap.size : 2;
}

void *guest_alloc(size_t size, size_t align) {
    for (uint32_t i = 0; i < ranges(); i++) {
        uint64_t start = (heap()[i].address + taken[i] + align - 1) & ~(uint64_t)(align - 1);
        uint64_t end = heap()[i].address + heap()[i].size;
        if (start <= end && size <= end - start) {
            taken[i] = start + size - heap()[i].address;
            return (void *)start; /* Anonymous memory, never given before: zero. */
        }
    }
    return NULL;
}

int guest_give_back(void *address, size_t size) {
    uint64_t start = ((uint64_t)address + PAGE - 1) & -PAGE, end = ((uint64_t)address + size) & -PAGE;
    if (start >= end)
        return 0;
    call_page->args[0] = start;
    call_page->args[1] = end - start;
    return call(GUEST_CALL_GIVE_BACK);
}

uint64_t guest_memory_size(void) {
    return guest_info()->memory_size;
}

uint64_t guest_memory_free(void) {
    uint64_t left = 0;
    for (uint32_t i = 0; i < ranges(); i++)
        left += heap()[i].size - taken[i];
    return left;
}

void *memcpy(void *restrict to, const void *restrict from, size_t size) {
    ring_copy(to, from, size);
    return to;
}

void *memmove(void *to, const void *from, size_t size) {
    if ((uintptr_t)to - (uintptr_t)from >= size)
        return memcpy(to, from, size);
    unsigned char *d = to;
    const unsigned char *s = from;
    while (size--) {
        d[size] = s[size];
    }
    return to;
}

void *memset(void *to, int value, size_t size) {
    void *start = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(value) : "memory");
    return start;
}

int memcmp(const void *a, const void *b, size_t size) {
    const unsigned char *x = a, *y = b;
    for (size_t i = 0; i < size; i++)
        if (x[i] != y[i])
            return x[i] - y[i];
    return 0;
}
