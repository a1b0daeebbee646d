/*
 * counter.c: count the words of one share of a text that all counters map from the same file.
 *
 * A word is a run of ASCII letters, lower-cased. Argument: how many counters there are; this one's number ends its name
 * (counter-0, counter-1, ...). Region: text. Channel: counts.
 */
#include "words.h"

static int letter(unsigned char c) {
    return (unsigned char)((c | 32) - 'a') < 26;
}

/* A share ends where a word ends: a word belongs to the share in which it begins. */
static uint64_t share_end(const unsigned char *text, uint64_t size, uint64_t share, uint64_t shares) {
    uint64_t at = size / shares * share;
    if (share >= shares)
        return size;
    while (at && at < size && letter(text[at]) && letter(text[at - 1]))
        at++;
    return at;
}

static uint64_t count_words(struct words *words, const unsigned char *text, uint64_t at, uint64_t end) {
    uint64_t total = 0;
    while (at < end) {
        char word[WORD_SIZE] = "";
        unsigned size = 0;
        for (; at < end && letter(text[at]); at++)
            if (size < WORD_SIZE - 1)
                word[size++] = (char)(text[at] | 32);
        if (size) {
            words_add(words, word, 1);
            total++;
        }
        at++;
    }
    return total;
}

int main(int argc, char **argv) {
    uint64_t shares = argc > 1 ? strtoul(argv[1], NULL, 10) : 1;
    const char *number = guest_name() + strlen(guest_name());
    while (number > guest_name() && number[-1] >= '0' && number[-1] <= '9')
        number--;
    uint64_t share = strtoul(number, NULL, 10);
    const struct guest_region *region = guest_region("text");
    if (!region || !shares || share >= shares)
        guest_fail("usage: %s COUNTERS, with a region \"text\", in a guest whose name ends in its number", argv[0]);

    const unsigned char *text = (const unsigned char *)region->address;
    struct words words;
    words_open(&words);
    uint64_t start = guest_now_ns();
    uint64_t from = share_end(text, region->size, share, shares), to = share_end(text, region->size, share + 1, shares);
    uint64_t total = count_words(&words, text, from, to);
    report("count_ns", guest_now_ns() - start);
    report("words", total);

    struct channel counts;
    channel_must_open(&counts, "counts");
    for (uint32_t i = 0; i < TABLE_SIZE; i++)
        if (words.slots[i].count)
            channel_must(&counts, channel_send(&counts, &words.slots[i], sizeof words.slots[i], GUEST_NO_LIMIT));
    struct word_count last = {.total = total};
    channel_must(&counts, channel_send(&counts, &last, sizeof last, GUEST_NO_LIMIT));
    channel_close(&counts);
    return 0;
}
