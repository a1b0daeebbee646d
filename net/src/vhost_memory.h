/*
 * vhost_memory.h: the memory that a vhost-user front end shares: its regions, mapped here, and the one checked way from
 * a guest's or a front end's address to a pointer.
 *
 * The front end may cut the files short at any time: each mapping is guarded (fault_guard), what lies beyond the end
 * reads as zeros, and `lost` is set.
 */
#ifndef NET_VHOST_MEMORY_H
#define NET_VHOST_MEMORY_H

#include <stdint.h>

#define VHOST_REGIONS 64

/* As it comes in messages (vhost-user, "Memory region description"). */
struct vhost_region_message {
    uint64_t gpa, size, uva, offset;
};

struct vhost_region {
    uint64_t gpa, size;
    uint8_t *hva; /* of its first byte */
    uint64_t uva; /* its address in the front end; ring addresses are given so */
    void *map;    /* the mapping it lies in: whole pages of the file */
    uint64_t map_size;
};

/* Regions that don't overlap, in the order of their guest addresses; those behind `count` are all zero. */
struct vhost_memory {
    struct vhost_region regions[VHOST_REGIONS];
    uint32_t count;
};

/* Maps what the front end describes: NULL, or why not, in a few words. *lost is set when a page of it is gone. */
const char *vhost_region_map(struct vhost_region *region, const struct vhost_region_message *asked, int fd,
                             uint32_t *lost);
void vhost_region_unmap(struct vhost_region *region);

/* Puts a region that is mapped into the table: NULL, or why not (it is the caller's still). */
const char *vhost_memory_add(struct vhost_memory *memory, const struct vhost_region *region);

/* Takes the very region out (not unmapped): 1, or 0 if there is none such. */
int vhost_memory_remove(struct vhost_memory *memory, const struct vhost_region_message *asked,
                        struct vhost_region *removed);

/* Unmaps all of them. */
void vhost_memory_clear(struct vhost_memory *memory);

/* Number of the region that a guest's address lies in; `count` if in none. */
uint32_t vhost_memory_find(const struct vhost_memory *memory, uint64_t gpa);

/* `size` bytes (more than 0) at a front end's address, which must lie in one region; else NULL. */
uint8_t *vhost_memory_user(const struct vhost_memory *memory, uint64_t uva, uint64_t size);

/*
 * `size` bytes (more than 0) at a guest's address, in one region; else NULL. *last is where the last one was found:
 * guests use one region nearly always. Any number below VHOST_REGIONS will do to begin with.
 */
static inline uint8_t *vhost_memory_hva(const struct vhost_memory *memory, uint32_t *last, uint64_t gpa,
                                        uint64_t size) {
    const struct vhost_region *region = &memory->regions[*last];
    uint64_t offset = gpa - region->gpa;
    if (__builtin_expect(offset >= region->size, 0)) {
        uint32_t found = vhost_memory_find(memory, gpa);
        if (found == memory->count)
            return 0;
        *last = found;
        region = &memory->regions[found];
        offset = gpa - region->gpa;
    }
    return __builtin_expect(size <= region->size - offset, 1) ? region->hva + offset : 0;
}

#endif
