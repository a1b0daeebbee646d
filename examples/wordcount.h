/* wordcount.h: what the counting guests and the totalling guest say to each other. */
#ifndef WORDCOUNT_H
#define WORDCOUNT_H

#include <stdint.h>

#define WORD_SIZE 32 /* longer words are counted by their first 31 bytes */

/* A counter's message: one word and how often it stands in the counter's share; then one with count 0: all was said. */
struct word_count {
    char word[WORD_SIZE];
    uint64_t count;
    uint64_t total; /* in the last message: all words of the share */
};

#endif
