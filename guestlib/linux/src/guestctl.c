/* guestctl.c: see guestctl.h. */
#include "guestctl.h"
#include "text.h"

int guestctl_main(int argc, char **argv) {
    (void)argc, (void)argv;
    return 2;
}
