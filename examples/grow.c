/* grow.c: a guest that says how its memory changes while it runs, and gives up what the host wants back.
   `hostd up examples/grow.toml`, then `hostd plug grow memory 64MiB`, `hostd logs grow`, `hostd unplug grow memory-0`. */
#include "guest.h"

int main(void) {
    uint64_t known = 0;
    guest_print("%lu bytes of memory\n", guest_memory_size());
    for (;;) {
        known = guest_await_plug(known, GUEST_NO_LIMIT);
        const struct guest_plug *plug;
        uint64_t more = 0;
        for (uint32_t i = 0; (plug = guest_plug(i));) {
            if (plug->flags & GUEST_PLUG_WANTED) {
                guest_print("%s goes back\n", plug->name);
                guest_give_up(plug->address);
                continue; /* The next one is in its place now. */
            }
            guest_print("%s: %lu bytes at 0x%lx\n", plug->name, plug->size, plug->address);
            if (plug->kind == GUEST_PLUG_MEMORY) {
                memset((void *)plug->address, 1, plug->size);
                more += plug->size;
            }
            i++;
        }
        report("memory", guest_memory_size() + more);
    }
}
