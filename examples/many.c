/* many.c: say hello, wait at the barrier until everyone has, leave. */
#include "guest.h"

int main(void) {
    struct channel everyone;
    channel_must_open(&everyone, "everyone");
    guest_print("hello, I am %s\n", guest_name());
    channel_must(&everyone, channel_join(&everyone, GUEST_NO_LIMIT));
    return 0;
}
