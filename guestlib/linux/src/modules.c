/* modules.c: kernel modules, in the order that a list gives. */
#define _GNU_SOURCE
#include "init.h"
#include "text.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/module.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int ends_with(const char *text, const char *end) {
    size_t size = strlen(text), part = strlen(end);
    return size >= part && !strcmp(text + size - part, end);
}

static void load(const char *path, const char *parameters) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int packed = ends_with(path, ".xz") || ends_with(path, ".zst") || ends_with(path, ".gz");
    if (fd < 0 || syscall(SYS_finit_module, fd, parameters, packed ? MODULE_INIT_COMPRESSED_FILE : 0)) {
        /* There already; or a driver without its device. */
        if (errno != EEXIST && errno != ENODEV)
            say("init: module %s cannot be loaded: %s", path, strerror(errno));
    }
    if (fd >= 0)
        close(fd);
}

/* Looks for NAME.ko* under `folder`; - and _ are the same in a module's name. */
static int find(const char *folder, const char *name, char *found, size_t room) {
    DIR *opened = opendir(folder);
    int there = 0;
    for (struct dirent *entry; opened && !there && (entry = readdir(opened));) {
        const char *at = entry->d_name, *want = name;
        if (*at == '.')
            continue;
        char path[1024];
        if (snprintf(path, sizeof path, "%s/%s", folder, at) >= (int)sizeof path)
            continue;
        if (entry->d_type == DT_DIR) {
            there = find(path, name, found, room);
            continue;
        }
        while (*want && (*at == *want || ((*at == '-' || *at == '_') && (*want == '-' || *want == '_'))))
            at++, want++;
        there = !*want && !strncmp(at, ".ko", 3);
        if (there)
            snprintf(found, room, "%s", path);
    }
    if (opened)
        closedir(opened);
    return there;
}

/* A line is a path or a module's name, and parameters behind a blank. */
static void load_line(char *line) {
    char path[1024];
    trim(line);
    if (!*line || *line == '#')
        return;
    char *parameters = strchr(line, ' ');
    if (parameters)
        *parameters++ = 0;
    if (*line == '/')
        load(line, parameters ? parameters : "");
    else if (find("/lib/modules", line, path, sizeof path))
        load(path, parameters ? parameters : "");
    else
        say("init: module %s is not in the initramfs", line);
}

void load_modules(void) {
    static const char *const lists[] = {"/lib/modules/order", HOSTD_RUN "/modules"};
    for (int i = 0; i < 2; i++) {
        char *text, *rest;
        if (read_whole(lists[i], &text) < 0)
            continue;
        rest = text;
        for (char *line; (line = strsep(&rest, "\n"));)
            load_line(line);
        free(text);
    }
}
