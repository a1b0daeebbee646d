/* Fills memory, waits to be cloned, and tells what a clone knows of itself. "stay": waits for a second clone then. */
#include "guest.h"

enum { WORDS = 1 << 17 };

static uint64_t total(const uint64_t *words) {
    uint64_t sum = 0;
    for (size_t i = 0; i < WORDS; i++)
        sum += words[i];
    return sum;
}

int main(int argc, char **argv) {
    uint64_t *words = guest_alloc(WORDS * sizeof *words, 8), before = guest_random();
    for (size_t i = 0; i < WORDS; i++)
        words[i] = i * 3;
    report("before", (int64_t)before);
    report("ready", 1);
    while (guest_await_clone(GUEST_NO_LIMIT)) {
        report("me", guest_name());
        report("random", (int64_t)guest_random());
        report("generation", (int64_t)guest_generation());
        report("sum", (int64_t)total(words));
        report("now", (int64_t)guest_now_ns());
        report("last_argument", argv[argc - 1]);
        report("colour", guest_env("COLOUR"));
        for (size_t i = 0; i < WORDS; i++) /* Its own: no other clone may see it. */
            words[i] = (guest_generation() ^ i) | 1;
        for (size_t i = 0; i < WORDS; i++)
            if (words[i] != ((guest_generation() ^ i) | 1))
                guest_fail("word %zu is another's", i);
        for (size_t i = 0; i < WORDS; i++)
            words[i] = i * 3;
        struct channel out;
        if (!channel_open(&out, "out")) {
            if (channel_send(&out, guest_name(), strlen(guest_name()), GUEST_NO_LIMIT))
                guest_fail("can't send");
            channel_close(&out);
        }
        if (strcmp(argv[argc - 1], "stay"))
            return 0;
    }
    return 1;
}
