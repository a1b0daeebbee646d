/* words.h: an open-addressing table of words and counts; and what a word is. */
#ifndef WORDS_H
#define WORDS_H

#include "guest.h"
#include "wordcount.h"

#define TABLE_SIZE 65536

struct words {
    struct word_count *slots;
    uint32_t used;
};

static inline void words_open(struct words *words) {
    words->slots = guest_alloc(TABLE_SIZE * sizeof *words->slots, 64);
    words->used = 0;
    if (!words->slots)
        guest_fail("no memory for the table of words; give this guest more memory");
}

/* Adds `count` to the slot of `word` (zero-padded to WORD_SIZE). */
static inline void words_add(struct words *words, const char *word, uint64_t count) {
    uint64_t parts[WORD_SIZE / 8], hash = 0;
    memcpy(parts, word, WORD_SIZE);
    for (unsigned i = 0; i < WORD_SIZE / 8; i++)
        hash = (hash ^ parts[i]) * 0x9e3779b97f4a7c15;
    for (uint32_t at = (uint32_t)(hash >> 48);; at = (at + 1) % TABLE_SIZE) {
        struct word_count *slot = &words->slots[at];
        if (slot->word[0] && memcmp(slot->word, word, WORD_SIZE) != 0)
            continue;
        if (!slot->word[0]) {
            if (++words->used > TABLE_SIZE - TABLE_SIZE / 8)
                guest_fail("more than %u different words", words->used);
            memcpy(slot->word, word, WORD_SIZE);
        }
        slot->count += count;
        return;
    }
}

#endif
