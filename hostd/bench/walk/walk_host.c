/* walk_host.c PAGES BYTES COUNT: the same in a host process. PAGES: 4k, thp or hugetlb. Prints ns and the end. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "walk.h"

static const uint64_t HUGE = 2 << 20;

static uint8_t *map(const char *pages, uint64_t size) {
    if (!strcmp(pages, "hugetlb"))
        return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    uint8_t *got = mmap(NULL, size + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (got == MAP_FAILED)
        return got;
    got = (uint8_t *)(((uintptr_t)got + HUGE - 1) & -HUGE);
    return madvise(got, size, strcmp(pages, "thp") ? MADV_NOHUGEPAGE : MADV_HUGEPAGE) ? MAP_FAILED : got;
}

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc != 4)
        return 2;
    uint64_t size = strtoull(argv[2], NULL, 10), count = strtoull(argv[3], NULL, 10);
    uint8_t *memory = map(argv[1], size);
    if (memory == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    walk_touch(memory, size);
    walk(memory, size, count / 8);
    uint64_t start = now(), end = walk(memory, size, count), passed = now() - start;
    printf("%.3f %lld\n", (double)passed / (double)count, (long long)(end >> 16));
    return 0;
}
