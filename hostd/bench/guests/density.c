/*
 * density.c: a guest of many, with an image of some size, that says it is there and then waits.
 *
 * Arguments: STEP PAGES: which guests it was started with; how many pages of its image it writes to. -DTABLE="FILE": what the
 * image holds beside the program.
 *
 * It reads every page of the table and writes to PAGES of them, evenly spread; then it sends a `struct said` on `talk`. On
 * `tell` it hears `struct told`: to send so many more, or to end.
 */
#include "guest.h"

enum { PAGE = 4096, END = 0, TALK = 1 };

/* A data segment's own: mapped from the file, writable. */
__asm__(".section .data.table, \"aw\"\n"
        ".balign 4096\n"
        "table: .incbin \"" TABLE "\"\n"
        "table_end:\n"
        ".previous\n");
extern unsigned char table[], table_end[];

struct said {
    uint32_t step, number; /* of the guest's messages, from 0 */
    uint64_t sum;          /* of the first bytes of the table's pages, as they are in the file */
};

struct told {
    uint32_t what, step, count; /* step: the newest that it is for */
};

static uint64_t look(size_t pages) {
    uint64_t sum = 0;
    for (size_t page = 0; page < pages; page++)
        sum += *(volatile unsigned char *)(table + page * PAGE);
    return sum;
}

/* No two guests write the same, so that nothing can share these pages again. */
static void write(size_t pages, size_t written) {
    for (size_t i = 0; i < written; i++) {
        uint64_t random = guest_random();
        memcpy(table + i * pages / written * PAGE + 64, &random, sizeof random);
    }
}

int main(int argc, char **argv) {
    struct channel talk, tell;
    struct said said = {0};
    struct told told;
    if (argc != 3)
        guest_fail("usage: STEP PAGES");
    size_t pages = (size_t)(table_end - table) / PAGE, written = strtoul(argv[2], NULL, 10);
    channel_must_open(&talk, "talk");
    channel_must_open(&tell, "tell");
    channel_spin(&talk, 0);
    channel_spin(&tell, 0);
    said.step = (uint32_t)strtoul(argv[1], NULL, 10);
    said.sum = look(pages);
    write(pages, written < pages ? written : pages);
    for (uint32_t count = 1;;) {
        for (; count; count--, said.number++)
            channel_must(&talk, channel_send(&talk, &said, sizeof said, GUEST_NO_LIMIT));
        int64_t got = channel_receive(&tell, &told, sizeof told, GUEST_NO_LIMIT);
        channel_must(&tell, got);
        if (got != sizeof told || told.what > TALK)
            guest_fail("heard %ld bytes that mean nothing", got);
        if (told.what == END)
            return 0;
        if (told.step >= said.step) /* Older ones were for those who were there. */
            count = told.count;
    }
}
