/* first.c: sends its first message on `said`, then sleeps until it is stopped. */
#include "guest.h"

int main(void) {
    struct channel said;
    uint64_t ticks = guest_ticks();
    channel_must_open(&said, "said");
    channel_must(&said, channel_send(&said, &ticks, sizeof ticks, GUEST_NO_LIMIT));
    for (;;)
        guest_wait(NULL, 0, GUEST_NO_LIMIT);
}
