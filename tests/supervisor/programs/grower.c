/* Says what was added to it each time that changes; fills memory; gives up what the host wants, or (`keep`) goes on using it. */
#include "guest.h"

static uint64_t filled(const struct guest_plug *plug) {
    uint64_t *words = (uint64_t *)plug->address, count = plug->size / sizeof *words, sum = 0;
    for (uint64_t i = 0; i < count; i++)
        if (words[i])
            guest_fail("%s is not zero at %lu", plug->name, i);
    for (uint64_t i = 0; i < count; i++)
        words[i] = i;
    for (uint64_t i = 0; i < count; i++)
        sum += words[i];
    return sum;
}

static void shared(const struct guest_region *region) {
    report("text", (const char *)region->address);
    if (!(region->flags & GUEST_READ_ONLY))
        memcpy((char *)region->address + 64, "from the guest", 15);
}

static void paint(const struct guest_framebuffer *picture) {
    for (uint32_t y = 0; y < picture->height; y++)
        for (uint32_t x = 0; x < picture->width; x++)
            guest_framebuffer_row(picture, y)[x] = (x & 255) << 16 | (y & 255) << 8 | 7;
}

/* What is wanted is given up; the number of bytes that are left. */
static uint64_t look(int keep, volatile char **used) {
    const struct guest_plug *plug;
    uint64_t bytes = 0;
    for (uint32_t i = 0; (plug = guest_plug(i));) {
        if (plug->flags & GUEST_PLUG_WANTED && !keep) {
            if (guest_give_up(plug->address))
                guest_fail("%s can't be given up", plug->name);
            continue; /* Another is in its place. */
        }
        bytes += plug->size;
        if (plug->kind == GUEST_PLUG_MEMORY && !(plug->flags & GUEST_PLUG_WANTED)) {
            if (*used != (char *)plug->address || !keep) {
                *used = (char *)plug->address;
                report("sum", (int64_t)filled(plug));
                memset((void *)plug->address, 0, plug->size);
            }
        } else if (plug->kind == GUEST_PLUG_REGION) {
            shared(guest_region(plug->name));
        }
        i++;
    }
    return bytes;
}

int main(int argc, char **argv) {
    int keep = argc > 1 && strcmp(argv[1], "keep") == 0;
    uint64_t known = 0;
    volatile char *used = NULL;
    if (guest_give_up(GUEST_IMAGE) != GUEST_EINVAL)
        return 3;
    report("ready", 1);
    for (;;) {
        uint64_t now = guest_await_plug(known, 10000000);
        if (keep && used)
            *used = 1, *used = 0;
        if (now == known)
            continue;
        known = now;
        uint64_t bytes = look(keep, &used);
        if (guest_framebuffer())
            paint(guest_framebuffer());
        report("plugged", (int64_t)bytes);
        report("generation", (int64_t)known);
    }
}
