/* party.c: waits at the barrier "all" and says what came of it. */
#include "guest.h"

int main(void) {
    struct channel all;
    channel_must_open(&all, "all");
    report("waiting", 1);
    int result = channel_join(&all, GUEST_NO_LIMIT);
    report("joined", result == 0 ? "all" : result == CHANNEL_GONE ? "gone" : "broken");
    return 0;
}
