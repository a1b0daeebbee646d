/* Fills so many MiB of its memory, checks them, says so on its channel, and stays. */
#include "guest.h"

int main(int argc, char **argv) {
    size_t size = (argc > 1 ? strtoul(argv[1], NULL, 10) : 1) << 20;
    uint32_t *words = guest_alloc(size, 2 << 20);
    if (!words)
        guest_fail("no %zu bytes", size);
    uint64_t sum = 0;
    for (size_t i = 0; i < size / sizeof *words; i++)
        words[i] = (uint32_t)i * 2654435761u;
    for (size_t i = 0; i < size / sizeof *words; i++)
        if (words[i] != (uint32_t)i * 2654435761u)
            guest_fail("word %zu is %u", i, words[i]);
        else
            sum += words[i];
    struct channel out;
    if (channel_open(&out, "out") || channel_send(&out, "filled", 6, GUEST_NO_LIMIT))
        guest_fail("can't say so");
    report("sum", (int64_t)sum);
    guest_wait(NULL, 0, GUEST_NO_LIMIT);
    return 0;
}
