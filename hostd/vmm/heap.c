/* heap.c: see heap.h. Allocates nothing: what malloc holds is what is being moved. */
#define _GNU_SOURCE
#include <Python.h>

#include "heap.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, BATCH = 512, MAPS = 256 << 10 };
/* Python's allocator (Objects/obmalloc.c): blocks of up to 512 bytes in steps of 16, each size in pools of its own. */
enum { STEP = 16, PYTHONS = 512, POOL = 16 << 10, POOL_HEAD = 48, MOST_OF_A_SIZE = 1 << 20 };
/* malloc's: what is larger it maps; what is smaller than CACHED it keeps for the next one of that size. */
enum { MALLOCS = 128 << 10, CACHED = 1040 };

static const uint64_t PRESENT = 1ull << 63, OF_A_FILE = 1ull << 61;
static const char zeros[PAGE];

/* Private, writable, and not the stack. */
static int wanted(const char *line, const char *end) {
    const char *rights = memchr(line, ' ', (size_t)(end - line));
    return rights && end - rights > 5 && memcmp(rights, " rw-p", 5) == 0 &&
           !memmem(line, (size_t)(end - line), "[stack", 6) && !memmem(line, (size_t)(end - line), "/dev/", 5);
}

static ssize_t read_whole(const char *path, char *buffer, size_t room) {
    size_t size = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    for (ssize_t got; size < room && (got = read(fd, buffer + size, room - size)) > 0;)
        size += (size_t)got;
    close(fd);
    return (ssize_t)size;
}

/* Fills heap->ranges from /proc/self/maps, in a buffer of its own that is gone before anything moves. */
static int find_ranges(struct heap *heap) {
    char *maps = mmap(NULL, MAPS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (maps == MAP_FAILED)
        return -errno;
    ssize_t size = read_whole("/proc/self/maps", maps, MAPS - 1);
    uint64_t offset = 0;
    heap->count = 0;
    for (char *line = maps, *end; size > 0 && (end = strchr(line, '\n')) && heap->count < HEAP_RANGES; line = end + 1) {
        char *dash;
        uintptr_t start = strtoul(line, &dash, 16), stop = strtoul(dash + 1, NULL, 16);
        if (start == (uintptr_t)maps || !wanted(line, end))
            continue;
        heap->ranges[heap->count++] = (struct heap_range){start, stop, offset};
        offset += stop - start;
    }
    munmap(maps, MAPS);
    return size < 0 ? (int)size : 0;
}

/* Copies one range to the file, holes where it is zero, and maps it from there. */
static int move_range(int fd, const struct heap_range *range) {
    for (uintptr_t at = range->start; at < range->end; at += PAGE)
        if (memcmp((const void *)at, zeros, PAGE) != 0 &&
            pwrite(fd, (const void *)at, PAGE, (off_t)(range->offset + at - range->start)) != PAGE)
            return -errno;
    void *moved = mmap((void *)range->start, range->end - range->start, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED,
                       fd, (off_t)range->offset);
    return moved == MAP_FAILED ? -errno : 0;
}

/* Takes blocks of `size` from Python's allocator until a pool that was empty has given all it has. */
static void fill_pools(size_t size) {
    uintptr_t last = 0;
    size_t run = 1;
    for (size_t taken = 0; taken < MOST_OF_A_SIZE / size && run < (POOL - POOL_HEAD) / size; taken++) {
        uintptr_t block = (uintptr_t)PyObject_Malloc(size);
        run = block == last + size ? run + 1 : 1;
        last = block;
    }
}

/* Takes blocks of `size` from malloc until one comes from `top` on, where it has never given anything. */
static void fill_malloc(size_t size, uintptr_t top) {
    uintptr_t block;
    while ((block = (uintptr_t)malloc(size)) && block < top)
        ;
    if (size > CACHED)
        free((void *)block); /* Back into the top. */
}

/*
 * Leaves no free block among those in use. What a guest process allocates would lie in such holes, a bit in each of hundreds of
 * pages, and make every one of them its own; so it lies together, in pages with nothing else in them. The blocks are never
 * given back. To be called with the interpreter's lock held, when garbage has been collected.
 */
void heap_fill(void) {
    for (size_t size = STEP; size <= PYTHONS; size += STEP)
        fill_pools(size);
    uintptr_t top = (uintptr_t)sbrk(0) - mallinfo2().keepcost;
    for (size_t size = MALLOCS; size > STEP; size -= STEP)
        fill_malloc(size - STEP / 2, top);
}

/*
 * In a process with one thread: moves all its private writable memory but the stack into a file. Returns 0, or -errno; what
 * was moved by then stays moved and does no harm. `heap` itself lies in what is moved, so it is worked on in a copy.
 */
int heap_freeze(struct heap *heap) {
    struct heap copy;
    copy.fd = memfd_create("hostd-heap", MFD_CLOEXEC);
    if (copy.fd < 0)
        return -errno;
    int failed = find_ranges(&copy);
    uint64_t size = 0;
    for (uint32_t i = 0; i < copy.count; i++)
        size += copy.ranges[i].end - copy.ranges[i].start;
    if (!failed && ftruncate(copy.fd, (off_t)size) != 0)
        failed = -errno;
    for (uint32_t i = 0; i < copy.count && !failed; i++)
        failed = move_range(copy.fd, &copy.ranges[i]);
    *heap = copy;
    return failed;
}

static int same_as_file(int fd, uintptr_t at, uint64_t offset) {
    char page[PAGE];
    return pread(fd, page, PAGE, (off_t)offset) == PAGE && memcmp((const void *)at, page, PAGE) == 0;
}

static int share_range(int fd, int pagemap, const struct heap_range *range) {
    uint64_t entries[BATCH];
    int shared = 0;
    for (uintptr_t at = range->start; at < range->end; at += (uintptr_t)BATCH * PAGE) {
        ssize_t size = pread(pagemap, entries, sizeof entries, (off_t)(at / PAGE * sizeof *entries));
        if (size < 0)
            return -errno;
        for (uintptr_t i = 0; i < (uintptr_t)size / sizeof *entries && at + i * PAGE < range->end; i++) {
            uintptr_t page = at + i * PAGE;
            if (!(entries[i] & PRESENT) || entries[i] & OF_A_FILE)
                continue;
            if (same_as_file(fd, page, range->offset + page - range->start) &&
                madvise((void *)page, PAGE, MADV_DONTNEED) == 0)
                shared++;
        }
    }
    return shared;
}

/*
 * In a guest process: gives back the pages that are as they are in the file. Returns how many, or -errno.
 *
 * Must be called with the interpreter's lock held, so that no other thread runs Python. A vCPU's thread runs C without it nearly
 * all the time, but what it writes then has mappings of its own (vcpu_new, calls_new). What a short call without the lock may
 * write was allocated after the fork: a page with the head of such an object differs from the file, which has a free block
 * there, with the allocator's own link in its first word, or zeros. So nothing written between the look and the drop is lost.
 *
 * First of all malloc gives back whole pages that are free: most of what a guest's start took.
 */
int heap_share(const struct heap *heap) {
    malloc_trim(0);
    int shared = 0, pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (pagemap < 0)
        return -errno;
    for (uint32_t i = 0; i < heap->count; i++) {
        int got = share_range(heap->fd, pagemap, &heap->ranges[i]);
        shared += got > 0 ? got : 0;
    }
    close(pagemap);
    return shared;
}
