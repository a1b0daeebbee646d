/*
 * pages.c check MIB      fills MIB MiB with a pattern; at each message on "there" checks all of it, writes the next pattern,
 *                        and answers how many words were as they should be.
 * pages.c send MIB       sends numbers on "wire" until it gets a message on "stop", for each checking and rewriting a page.
 * pages.c receive MIB    receives them likewise, and fails if one is missing.
 * pages.c fill MIB       fills and sleeps.
 */
#include "guest.h"

#define PAGE 4096
#define WORDS (PAGE / sizeof(uint64_t))

static uint64_t *words, count;

static uint64_t pattern(uint64_t at, uint64_t round) {
    uint64_t x = at * 0x9e3779b97f4a7c15ull + round * 0xd1b54a32d192ed03ull;
    return (x ^ x >> 31) * 0xbf58476d1ce4e5b9ull;
}

/* Checks page `page` for what it held in `round` and writes what it holds in `next`; how many words were right. */
static uint64_t turn(uint64_t page, uint64_t round, uint64_t next) {
    uint64_t right = 0;
    for (uint64_t at = page * WORDS; at < (page + 1) * WORDS; at++) {
        right += words[at] == pattern(at, round);
        words[at] = pattern(at, next);
    }
    return right;
}

/* Each message is a number; the last one is UINT64_MAX. */
static void talk(int sends) {
    struct channel wire, stop;
    uint64_t pages = count / WORDS, number = 0, messages = 0;
    char word[8];
    channel_must_open(&wire, "wire");
    if (sends)
        channel_must_open(&stop, "stop");
    for (; number != UINT64_MAX; messages++) {
        if (turn(messages % pages, messages / pages, messages / pages + 1) != WORDS)
            guest_fail("page %lu is not as it was at message %lu", messages % pages, messages);
        if (sends) {
            number = messages % 64 == 0 && channel_receive(&stop, word, sizeof word, 0) >= 0 ? UINT64_MAX : messages;
            channel_must(&wire, channel_send(&wire, &number, sizeof number, GUEST_NO_LIMIT));
        } else {
            channel_must(&wire, channel_receive(&wire, &number, sizeof number, GUEST_NO_LIMIT));
            if (number != messages && number != UINT64_MAX)
                guest_fail("message %lu came as number %lu", number, messages);
        }
        if (messages % 256 == 0)
            report("messages", messages);
    }
    report("messages", messages);
}

static void answer(void) {
    struct channel there, back;
    char message[64];
    channel_must_open(&there, "there");
    channel_must_open(&back, "back");
    for (uint64_t round = 0; channel_receive(&there, message, sizeof message, GUEST_NO_LIMIT) >= 0; round++) {
        uint64_t right = 0;
        for (uint64_t page = 0; page < count / WORDS; page++)
            right += turn(page, round, round + 1);
        channel_must(&back, channel_send(&back, &right, sizeof right, GUEST_NO_LIMIT));
    }
}

int main(int argc, char **argv) {
    uint64_t size = strtoul(argv[2], NULL, 10) << 20;
    words = guest_alloc(size, PAGE), count = size / sizeof *words;
    if (!words)
        guest_fail("%lu bytes are more than there are", size);
    for (uint64_t page = 0; page < count / WORDS; page++)
        turn(page, 0, 0);
    report("filled", size);
    if (strcmp(argv[1], "check") == 0)
        answer();
    else if (strcmp(argv[1], "fill") == 0)
        guest_wait(NULL, 0, GUEST_NO_LIMIT);
    else
        talk(strcmp(argv[1], "send") == 0);
    return 0;
}
