/* Writes as many pages of its memory as its argument says, again and again, with a sleep of 10 ms in between. */
#include "guest.h"

int main(int argc, char **argv) {
    size_t pages = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
    volatile uint8_t *memory = guest_alloc(pages * 4096 + 1, 4096);
    for (uint64_t round = 0;; round++) {
        for (size_t page = 0; page < pages; page++)
            memory[page * 4096]++;
        if (round == 10)
            report("turning", 1);
        guest_wait(NULL, 0, 10000000);
    }
}
