/*
 * stream.c: one guest sends as fast as it can, the other receives; every message is copied in and copied out.
 *
 * Arguments: send|receive COUNT SIZE [BUFFER in MiB]. Channel: data. The sender's bytes come from a buffer of that size and
 * the receiver's go to another, so that with a buffer larger than the last-level cache memory itself is what is measured.
 * Reports of the receiver: messages_per_s, bytes_per_s, from its first message to its last.
 */
#include "guest.h"

static struct channel data;
static uint64_t count, size, window;

/* Messages lie in the buffer one after the other, then again from the start. */
static inline uint64_t after(uint64_t at) {
    return at + 2 * size <= window ? at + size : 0;
}

static int send(unsigned char *buffer) {
    for (uint64_t at = 0; at + size <= window; at += size)
        memcpy(buffer + at, &at, sizeof at); /* Each message says where in the buffer it comes from. */
    for (uint64_t i = 0, at = 0; i < count; i++, at = after(at))
        channel_must(&data, channel_send(&data, buffer + at, size, GUEST_NO_LIMIT));
    channel_close(&data);
    return 0;
}

static int receive(unsigned char *buffer) {
    uint64_t start = 0, from;
    for (uint64_t i = 0, at = 0; i < count; i++, at = after(at)) {
        channel_must(&data, channel_receive(&data, buffer + at, size, GUEST_NO_LIMIT));
        memcpy(&from, buffer + at, sizeof from);
        if (from != at)
            guest_fail("message %lu came from %lu, not %lu", i, from, at);
        if (!start)
            start = guest_ticks();
    }
    double seconds = (double)guest_ticks_to_ns(guest_ticks() - start) / 1e9;
    report("messages_per_s", (double)(count - 1) / seconds);
    report("bytes_per_s", (double)(count - 1) * (double)size / seconds);
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 4)
        guest_fail("usage: %s send|receive COUNT SIZE [BUFFER in MiB]", argv[0]);
    count = strtoul(argv[2], NULL, 10);
    size = strtoul(argv[3], NULL, 10);
    window = (argc > 4 ? strtoul(argv[4], NULL, 10) : 1) << 20;
    if (count < 2 || size < sizeof(uint64_t) || size > window)
        guest_fail("at least 2 messages, of %zu bytes at least and the buffer at most", sizeof(uint64_t));
    unsigned char *buffer = guest_alloc(window, 4096);
    if (!buffer)
        guest_fail("no memory for a buffer of %lu bytes; give this guest more memory", window);
    memset(buffer, 1, window); /* Touched before the clock runs. */
    channel_must_open(&data, "data");
    channel_spin(&data, CHANNEL_SPIN_ALWAYS);
    return strcmp(argv[1], "send") == 0 ? send(buffer) : receive(buffer);
}
