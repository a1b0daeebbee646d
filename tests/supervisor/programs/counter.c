/* counter.c N: adds one to the first byte of region "count" and fails until it is N. */
#include "guest.h"

int main(int argc, char **argv) {
    unsigned char *count = (unsigned char *)guest_region("count")->address;
    *count += 1;
    report("count", (int64_t)*count);
    guest_print("count is %u\n", (unsigned)*count);
    return argc > 1 && *count >= strtoul(argv[1], NULL, 10) ? 0 : 3;
}
