/* sleeper.c [seconds] [exit code]: says that it is there, sleeps (0: for ever), ends. */
#include "guest.h"

int main(int argc, char **argv) {
    unsigned long seconds = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
    guest_print("%s sleeps\n", guest_name());
    report("awake", 1);
    report("random", (int64_t)(guest_random() >> 1));
    for (unsigned long i = 0; !seconds || i < seconds; i++)
        guest_wait(NULL, 0, 1000000000);
    return argc > 2 ? (int)strtoul(argv[2], NULL, 10) : 0;
}
