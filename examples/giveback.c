/* Fills 8 MiB of its memory, gives them back to the host, and begins again. The host's figure goes up and down with it:
   `hostd slots giveback`. */
#include "guest.h"

enum { SIZE = 8 << 20 };
static const uint64_t SECOND = 1000000000;

int main(void) {
    uint8_t *memory = guest_alloc(SIZE, 4096);
    for (int round = 1;; round++) {
        memset(memory, round, SIZE);
        report("holds", SIZE);
        guest_wait(NULL, 0, 2 * SECOND);
        if (guest_give_back(memory, SIZE))
            guest_fail("the host takes nothing back");
        report("holds", 0);
        report("rounds", round);
        guest_wait(NULL, 0, 2 * SECOND);
    }
}
