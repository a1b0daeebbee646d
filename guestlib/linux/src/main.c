/* main.c: one static binary for all: its name says which part it is. */
#include "agent.h"
#include "guestctl.h"
#include "init.h"
#include "text.h"

#include <string.h>

int main(int argc, char **argv) {
    const char *name = argc && argv[0] ? argv[0] : "";
    const char *slash = strrchr(name, '/');
    if (slash)
        name = slash + 1;
    if (!strcmp(name, "init"))
        return init_main();
    if (!strcmp(name, "agent"))
        return agent_main(argc, argv);
    return guestctl_main(argc, argv);
}
