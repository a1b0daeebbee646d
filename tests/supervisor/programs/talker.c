/* talker.c: sends its number of messages on channel "wire", then sleeps with the channel open. */
#include "guest.h"

int main(int argc, char **argv) {
    struct channel out;
    unsigned long count = argc > 1 ? strtoul(argv[1], NULL, 10) : 1;
    channel_must_open(&out, "wire");
    for (unsigned long i = 0; i < count; i++)
        channel_must(&out, channel_send(&out, &i, sizeof i, GUEST_NO_LIMIT));
    report("sent", count);
    for (;;)
        guest_wait(NULL, 0, GUEST_NO_LIMIT);
}
