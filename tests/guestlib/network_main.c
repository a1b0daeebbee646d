/* network_main.c: the part of a Linux guest's init that sets its networks up, alone: network_main FILE [FILE_OF_A_CLONE]. */
#include "init.h"
#include "text.h"

#include <stdlib.h>

int main(int argc, char **argv) {
    if (argc < 2 || argc > 3)
        return 2;
    raise_networks(argv[1]);
    char *before;
    if (argc == 3 && read_whole(argv[1], &before) >= 0) {
        rename_networks(before, argv[2]);
        raise_networks(argv[2]);
        free(before);
    }
    return 0;
}
