/* scribbler.c: writes to the first byte of region "text", whether it may or not. */
#include "guest.h"

int main(void) {
    *(volatile char *)guest_region("text")->address = 'x';
    return 0;
}
