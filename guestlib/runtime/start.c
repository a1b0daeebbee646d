/* start.c: from the first instruction to main(), and what the host told this guest. */
#include "guest.h"
#include "call.h"

#define TEXT(value) TEXT_(value)
#define TEXT_(value) #value

/* Owner "hostd", type 1, the version of the contract: hostd refuses an image of another version. */
__asm__(".pushsection .note.hostd, \"a\", @note\n"
        ".long 6, 4, 1\n"
        ".asciz \"hostd\"\n"
        ".balign 4\n"
        ".long " TEXT(GUEST_ABI_VERSION) "\n"
        ".popsection\n");

static const struct guest_info *const info = (const struct guest_info *)GUEST_INFO;

static const void *at(uint32_t offset) {
    return (const char *)info + offset;
}

const struct guest_info *guest_info(void) {
    return info;
}

uint64_t guest_generation(void) {
    return ((const volatile struct guest_info *)info)->generation;
}

uint64_t guest_await_clone(uint64_t limit_ns) {
    uint64_t known = guest_generation(), start = guest_now_ns(), left = limit_ns;
    while (guest_generation() == known) {
        if (limit_ns != GUEST_NO_LIMIT) {
            uint64_t passed = guest_now_ns() - start;
            if (passed >= limit_ns)
                return 0;
            left = limit_ns - passed;
        }
        guest_wait(NULL, 0, left);
    }
    return guest_generation();
}

const char *guest_name(void) {
    return at(info->name.offset);
}

const char *guest_env(const char *name) {
    const struct guest_span *spans = at(info->env.offset);
    size_t size = strlen(name);
    for (uint32_t i = 0; i < info->env.size; i++) {
        const char *entry = at(spans[i].offset);
        if (strncmp(entry, name, size) == 0 && entry[size] == '=')
            return entry + size + 1;
    }
    return NULL;
}

const struct guest_region *guest_region(const char *name) {
    const struct guest_region *regions = at(info->regions.offset);
    for (uint32_t i = 0; i < info->regions.size; i++)
        if (strcmp(regions[i].name, name) == 0)
            return &regions[i];
    static struct guest_region attached;
    const struct guest_plug *plug = guest_plug_named(name);
    if (!plug || plug->kind != GUEST_PLUG_REGION)
        return NULL;
    attached = (struct guest_region){.address = plug->address, .size = plug->size,
                                     .flags = plug->flags & (GUEST_READ_ONLY | GUEST_RAW)};
    memcpy(attached.name, plug->name, sizeof attached.name);
    return &attached;
}

_Noreturn void guest_exit(int code) {
    console_flush();
    call_page->args[0] = (uint64_t)(code & 255);
    for (;;)
        call(GUEST_CALL_EXIT);
}

int main(int argc, char **argv);
_Noreturn void _start(const struct guest_info *given);

_Noreturn void _start(const struct guest_info *given) {
    uint32_t count = given->args.size;
    char **argv = guest_alloc((count + 1) * sizeof *argv, sizeof *argv);
    if (!argv)
        guest_fail("no memory for %u arguments", count);
    const struct guest_span *spans = at(given->args.offset);
    for (uint32_t i = 0; i < count; i++)
        argv[i] = (char *)at(spans[i].offset);
    guest_exit(main((int)count, argv));
}
