/* crasher.c: waits until its variable `armed` is set, then divides by zero or writes to a null pointer, as its argument says. */
#include "guest.h"

volatile int armed;
volatile int zero;

__attribute__((noinline)) int divide(int number) {
    return number / zero;
}

__attribute__((noinline)) void scribble(volatile int *where) {
    *where = 7;
}

int main(int argc, char **argv) {
    report("waiting", 1);
    while (!armed)
        guest_wait(NULL, 0, 1000000);
    if (argc > 1 && strcmp(argv[1], "divide") == 0)
        return divide(5);
    scribble((volatile int *)(uint64_t)zero);
    return 3;
}
