/* Sends numbered messages, with a short sleep after each 64. */
#include "guest.h"

int main(int argc, char **argv) {
    uint64_t count = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
    struct channel out;
    if (channel_open(&out, "numbers"))
        return 2;
    for (uint64_t i = 0; i < count; i++) {
        if (channel_send(&out, &i, sizeof i, GUEST_NO_LIMIT))
            return 3;
        if (i % 64 == 63)
            guest_wait(NULL, 0, 1000000);
    }
    return 0;
}
