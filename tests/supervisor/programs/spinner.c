/* Never leaves its vCPU. */
#include "guest.h"

int main(void) {
    report("spins", 1);
    for (volatile uint64_t turn = 0;; turn++)
        ;
}
