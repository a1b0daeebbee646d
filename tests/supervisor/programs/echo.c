/* echo.c: sends back on "back" what comes on "there", until the sender closes. */
#include "guest.h"

int main(void) {
    struct channel there, back;
    static char data[4096];
    int64_t size;
    channel_must_open(&there, "there");
    channel_must_open(&back, "back");
    while ((size = channel_receive(&there, data, sizeof data, GUEST_NO_LIMIT)) >= 0)
        channel_must(&back, channel_send(&back, data, (size_t)size, GUEST_NO_LIMIT));
    report("ended", size == CHANNEL_CLOSED ? "closed" : size == CHANNEL_GONE ? "gone" : "broken");
    return 0;
}
