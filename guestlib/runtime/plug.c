/* plug.c: what the host added while the guest runs. */
#include "guest.h"
#include "call.h"

static volatile const struct guest_plugs *const table = (volatile const struct guest_plugs *)GUEST_PLUGS;

uint64_t guest_plug_generation(void) {
    return table->generation;
}

uint32_t guest_plug_bell(void) {
    return guest_info()->bells;
}

/* The table may change between any two instructions, so a copy counts only if the generation stayed the same. */
const struct guest_plug *guest_plug(uint32_t index) {
    static struct guest_plug copy;
    uint64_t before;
    int there;
    do {
        before = table->generation;
        there = index < table->count && index < GUEST_PLUGS_MOST;
        if (there)
            memcpy(&copy, (const void *)&table->plugs[index], sizeof copy);
        __asm__ volatile("" : : : "memory");
    } while (before != table->generation);
    return there ? &copy : NULL;
}

const struct guest_plug *guest_plug_named(const char *name) {
    const struct guest_plug *plug;
    for (uint32_t i = 0; (plug = guest_plug(i)); i++)
        if (strcmp(plug->name, name) == 0)
            return plug;
    return NULL;
}

uint64_t guest_await_plug(uint64_t known, uint64_t limit_ns) {
    uint64_t start = guest_now_ns(), left = limit_ns;
    uint32_t bell = guest_plug_bell();
    while (guest_plug_generation() == known) {
        if (limit_ns != GUEST_NO_LIMIT) {
            uint64_t passed = guest_now_ns() - start;
            if (passed >= limit_ns)
                break;
            left = limit_ns - passed;
        }
        guest_wait(&bell, 1, left);
    }
    return guest_plug_generation();
}

int guest_give_up(uint64_t address) {
    call_page->args[0] = address;
    return call(GUEST_CALL_GIVE_UP);
}

const struct guest_framebuffer *guest_framebuffer(void) {
    static struct guest_framebuffer plugged;
    if (guest_info()->framebuffer.address)
        return &guest_info()->framebuffer;
    const struct guest_plug *plug;
    for (uint32_t i = 0; (plug = guest_plug(i)); i++) {
        if (plug->kind == GUEST_PLUG_FRAMEBUFFER) {
            plugged = (struct guest_framebuffer){
                .address = plug->address, .width = plug->width, .height = plug->height, .stride = plug->stride};
            return &plugged;
        }
    }
    return NULL;
}
