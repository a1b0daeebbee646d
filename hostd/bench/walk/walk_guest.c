/* walk_guest.c BYTES COUNT: reports the ns that a random access to so many bytes of its memory takes, and stays. */
#include "guest.h"
#include "walk.h"

int main(int argc, char **argv) {
    uint64_t size = argc > 1 ? strtoul(argv[1], NULL, 10) : 0, count = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
    uint8_t *memory = guest_alloc(size, 2 << 20);
    if (!memory || !count)
        guest_fail("%lu bytes, %lu accesses: can't be had", size, count);
    walk_touch(memory, size);
    walk(memory, size, count / 8);
    uint64_t start = guest_ticks();
    uint64_t end = walk(memory, size, count);
    uint64_t passed = guest_ticks_to_ns(guest_ticks() - start);
    report("end", (int64_t)(end >> 16)); /* The same everywhere: nobody has left anything out. */
    report("ns", (double)passed / (double)count);
    guest_wait(NULL, 0, GUEST_NO_LIMIT);
    return 0;
}
