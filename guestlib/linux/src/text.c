/* text.c: see text.h. */
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int write_all(int fd, const void *data, size_t size) {
    const char *at = data;
    while (size) {
        ssize_t done = write(fd, at, size);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -errno;
        at += done;
        size -= (size_t)done;
    }
    return 0;
}

void say(const char *format, ...) {
    char line[1024] = "hostd: ";
    const size_t head = 7, room = sizeof line - 1;
    va_list list;
    va_start(list, format);
    int size = vsnprintf(line + head, room - head, format, list);
    va_end(list);
    size_t end = size < 0 ? head : head + (size_t)size;
    if (end > room - 1)
        end = room - 1;
    line[end++] = '\n';
    write_all(STDOUT_FILENO, line, end);
}

static ssize_t read_into(int fd, char *text, size_t room) {
    size_t size = 0;
    for (;;) {
        ssize_t got = read(fd, text + size, room - size);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        size += (size_t)got;
        if (size == room)
            return -EFBIG;
        if (!got)
            break;
    }
    text[size] = 0;
    return (ssize_t)size;
}

ssize_t read_small(const char *path, char *text, size_t room) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t size = read_into(fd, text, room);
    close(fd);
    return size;
}

ssize_t read_whole(const char *path, char **text) {
    ssize_t size = -EFBIG;
    *text = NULL;
    for (size_t room = 4096; size == -EFBIG && room <= 16 << 20; room *= 4) {
        char *larger = realloc(*text, room);
        if (!larger) {
            size = -ENOMEM;
            break;
        }
        *text = larger;
        size = read_small(path, *text, room);
    }
    if (size < 0) {
        free(*text);
        *text = NULL;
    }
    return size;
}

void trim(char *text) {
    size_t size = strlen(text);
    while (size && (text[size - 1] == '\n' || text[size - 1] == ' ' || text[size - 1] == '\r'))
        text[--size] = 0;
}

uint64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}
