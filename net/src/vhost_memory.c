/* vhost_memory.c: see vhost_memory.h. */
#define _GNU_SOURCE
#include "vhost_memory.h"

#include <errno.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "switch.h"

#ifndef FUSE_SUPER_MAGIC
#define FUSE_SUPER_MAGIC 0x65735546
#endif

/* Pages that another process or machine hands out, as it likes: who touches them may wait for ever. */
static int slow_pages(const struct statfs *system) {
    switch ((unsigned long)system->f_type) {
    case FUSE_SUPER_MAGIC:
    case NFS_SUPER_MAGIC:
    case V9FS_MAGIC:
        return 1;
    default:
        return 0;
    }
}

const char *vhost_region_map(struct vhost_region *region, const struct vhost_region_message *asked, int fd,
                             uint32_t *lost) {
    uint64_t end;
    if (!asked->size)
        return "region of no size";
    if (__builtin_add_overflow(asked->gpa, asked->size, &end) ||
        __builtin_add_overflow(asked->uva, asked->size, &end) ||
        __builtin_add_overflow(asked->offset, asked->size, &end) || end > INT64_MAX)
        return "region past the end of addresses";
    struct stat file;
    struct statfs system;
    if (fstat(fd, &file) || !S_ISREG(file.st_mode) || fstatfs(fd, &system) || slow_pages(&system))
        return "region's descriptor is no memory";
    if ((uint64_t)file.st_size < end)
        return "region's file is shorter than the region";
    /* A mapping begins and ends on a page of the file's own size (hugetlbfs). */
    uint64_t page = system.f_type == HUGETLBFS_MAGIC ? (uint64_t)system.f_bsize : 4096;
    uint64_t start = asked->offset / page * page, size;
    if (__builtin_add_overflow(end - start, page - 1, &size))
        return "region past the end of addresses";
    size = size / page * page;
    void *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)start);
    if (map == MAP_FAILED)
        return errno == EACCES || errno == EPERM ? "region's file is read-only" : "region can't be mapped";
    if (fault_guard(map, size, lost)) {
        munmap(map, size);
        return "region can't be guarded";
    }
    madvise(map, size, MADV_DONTDUMP);
    madvise(map, size, MADV_DONTFORK);
    *region = (struct vhost_region){
        .gpa = asked->gpa,
        .size = asked->size,
        .uva = asked->uva,
        .hva = (uint8_t *)map + (asked->offset - start),
        .map = map,
        .map_size = size,
    };
    return NULL;
}

void vhost_region_unmap(struct vhost_region *region) {
    if (!region->map)
        return;
    fault_unguard(region->map);
    munmap(region->map, region->map_size);
    memset(region, 0, sizeof *region);
}

static int overlap(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size) {
    return a < b ? b - a < a_size : a - b < b_size;
}

const char *vhost_memory_add(struct vhost_memory *memory, const struct vhost_region *region) {
    if (memory->count == VHOST_REGIONS)
        return "too many regions";
    uint32_t at = 0;
    for (uint32_t i = 0; i < memory->count; i++) {
        const struct vhost_region *other = &memory->regions[i];
        if (overlap(region->gpa, region->size, other->gpa, other->size) ||
            overlap(region->uva, region->size, other->uva, other->size))
            return "regions overlap";
        at += other->gpa < region->gpa;
    }
    memmove(&memory->regions[at + 1], &memory->regions[at], (memory->count - at) * sizeof *region);
    memory->regions[at] = *region;
    memory->count++;
    return NULL;
}

int vhost_memory_remove(struct vhost_memory *memory, const struct vhost_region_message *asked,
                        struct vhost_region *removed) {
    for (uint32_t i = 0; i < memory->count; i++) {
        struct vhost_region *region = &memory->regions[i];
        if (region->gpa != asked->gpa || region->size != asked->size || region->uva != asked->uva)
            continue;
        *removed = *region;
        memory->count--;
        memmove(region, region + 1, (memory->count - i) * sizeof *region);
        memset(&memory->regions[memory->count], 0, sizeof *region);
        return 1;
    }
    return 0;
}

void vhost_memory_clear(struct vhost_memory *memory) {
    while (memory->count)
        vhost_region_unmap(&memory->regions[--memory->count]);
}

uint32_t vhost_memory_find(const struct vhost_memory *memory, uint64_t gpa) {
    uint32_t low = 0, high = memory->count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        const struct vhost_region *region = &memory->regions[middle];
        if (gpa < region->gpa)
            high = middle;
        else if (gpa - region->gpa < region->size)
            return middle;
        else
            low = middle + 1;
    }
    return memory->count;
}

uint8_t *vhost_memory_user(const struct vhost_memory *memory, uint64_t uva, uint64_t size) {
    for (uint32_t i = 0; i < memory->count; i++) {
        const struct vhost_region *region = &memory->regions[i];
        uint64_t offset = uva - region->uva;
        if (offset < region->size)
            return size <= region->size - offset ? region->hva + offset : NULL;
    }
    return NULL;
}
