/* mixed.c: the unikernel of mixed.toml: send so many numbered messages to the collector. Argument: how many. */
#include "guest.h"

struct numbered {
    char name[16];
    uint64_t number;
};

int main(int argc, char **argv) {
    uint64_t count = argc > 1 ? strtoul(argv[1], NULL, 10) : 1000;
    struct channel inbox;
    channel_must_open(&inbox, "inbox");
    for (struct numbered message = {.name = "unikernel"}; message.number < count; message.number++)
        channel_must(&inbox, channel_send(&inbox, &message, sizeof message, GUEST_NO_LIMIT));
    channel_close(&inbox);
    return 0;
}
