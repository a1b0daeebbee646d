/* listener.c: receives from channel "wire" until it ends, sleeping between messages; reports how it ended. */
#include "guest.h"

int main(void) {
    struct channel in;
    static char data[4096];
    uint64_t received = 0;
    channel_must_open(&in, "wire");
    channel_spin(&in, 0);
    report("listening", 1);
    for (;;) {
        int64_t size = channel_receive(&in, data, sizeof data, GUEST_NO_LIMIT);
        if (size < 0) {
            report("ended", size == CHANNEL_GONE ? "gone" : size == CHANNEL_CLOSED ? "closed" : channel_error(&in, size));
            return 0;
        }
        report("received", ++received);
    }
}
