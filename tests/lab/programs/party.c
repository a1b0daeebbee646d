/* A unikernel between Linux guests and the host: sends COUNT numbers to `inbox`, then hears the last of as many from `news`. */
#include "guest.h"

struct message {
    uint64_t number;
    char who[8];
};

int main(int argc, char **argv) {
    struct channel inbox, news;
    uint64_t count = strtoul(argv[argc - 1], NULL, 10), heard = 0;
    struct message message = {0, "uni"};
    channel_must_open(&inbox, "inbox");
    channel_must_open(&news, "news");
    channel_spin(&inbox, 0);
    channel_spin(&news, 0);
    for (; message.number < count; message.number++)
        channel_must(&inbox, channel_send(&inbox, &message, sizeof message, GUEST_NO_LIMIT));
    channel_close(&inbox);
    while (heard != count - 1)
        channel_must(&news, channel_receive(&news, &heard, sizeof heard, GUEST_NO_LIMIT));
    report("heard", heard);
    return 0;
}
