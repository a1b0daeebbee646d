/* Opens a channel and waits on it. */
#include "guest.h"

int main(void) {
    struct channel words;
    char byte;
    if (channel_open(&words, "words"))
        return 2;
    report("open", 1);
    return channel_receive(&words, &byte, 1, GUEST_NO_LIMIT) < 0;
}
