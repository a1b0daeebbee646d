/*
 * total.c: add up what the counters send, and report it.
 *
 * Argument: how many counters there are. Channel: counts. Reports: words, distinct, and the ten most frequent words as
 * top_1 .. top_10 ("the 34562"); checksum is a sum over all words that says whether the whole table is right.
 */
#include "words.h"

/* FNV-1a of the word, times its count, summed: the order of the words doesn't matter. */
static uint64_t checksum(const struct words *words) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < TABLE_SIZE; i++) {
        uint64_t hash = 0xcbf29ce484222325;
        for (const char *c = words->slots[i].word; *c; c++)
            hash = (hash ^ (unsigned char)*c) * 0x100000001b3;
        sum += hash * words->slots[i].count;
    }
    return sum;
}

/* The more frequent word; of two equally frequent the one that comes first in the alphabet. */
static int before(const struct word_count *a, const struct word_count *b) {
    return a->count != b->count ? a->count > b->count : strcmp(a->word, b->word) < 0;
}

static void report_top(struct words *words, unsigned count) {
    for (unsigned n = 1; n <= count; n++) {
        struct word_count *top = &words->slots[0];
        for (uint32_t i = 1; i < TABLE_SIZE; i++)
            if (before(&words->slots[i], top))
                top = &words->slots[i];
        char name[8] = "top_1";
        if (n > 9)
            memcpy(name + 4, "10", 3);
        else
            name[4] = (char)('0' + n);
        report(name, (const char *)top->word);
        name[0] = 'n', name[1] = 'u', name[2] = 'm';
        report(name, top->count);
        top->count = 0;
    }
}

int main(int argc, char **argv) {
    uint64_t counters = argc > 1 ? strtoul(argv[1], NULL, 10) : 1, total = 0, messages = 0;
    struct words words;
    struct channel counts;
    words_open(&words);
    channel_must_open(&counts, "counts");
    for (uint64_t done = 0; done < counters; messages++) {
        struct word_count message;
        int64_t size = channel_receive(&counts, &message, sizeof message, GUEST_NO_LIMIT);
        channel_must(&counts, size);
        if (size != sizeof message)
            guest_fail("a message of %ld bytes, not %zu", (long)size, sizeof message);
        if (message.count) {
            message.word[WORD_SIZE - 1] = 0;
            words_add(&words, message.word, message.count);
        } else {
            total += message.total;
            done++;
        }
    }
    guest_print("%lu words, %u of them different, in %lu messages from %lu guests\n", total, words.used, messages, counters);
    report("words", total);
    report("distinct", words.used);
    report("messages", messages);
    report("checksum", checksum(&words));
    report_top(&words, 10);
    return 0;
}
