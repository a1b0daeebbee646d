/* network_main.c: the part of a Linux guest's init that sets its networks up, alone: network_main FILE. */
#include "init.h"

int main(int argc, char **argv) {
    if (argc != 2)
        return 2;
    raise_networks(argv[1]);
    return 0;
}
