/* become.c: a guest that goes on from a template becomes itself (docs/templates.md). */
#define _GNU_SOURCE
#include "agent.h"
#include "init.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

/* What the host hands over of it: each a file. */
static const char *const FILES[] = {"name", "cluster", "hosts", "networks", "regions", "channels", "generation"};

static int known(const char *name) {
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++)
        if (!strcmp(name, FILES[i]))
            return 1;
    return 0;
}

/* Checked: whole strings, in pairs, of files that may be written. */
static int acceptable(const char *text, size_t size) {
    if (!size || text[size - 1])
        return 0;
    for (const char *at = text; at < text + size;) {
        if (!known(at))
            return 0;
        at += strlen(at) + 1;
        if (at == text + size)
            return 0;
        at += strlen(at) + 1;
    }
    return 1;
}

/* Appears whole or not at all; an empty one goes. */
static void put(const char *folder, const char *name, const char *text) {
    char path[256], fresh[272];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    snprintf(fresh, sizeof fresh, "%s.new", path);
    if (!*text) {
        unlink(path);
        return;
    }
    int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    int error = fd < 0 ? -errno : write_all(fd, text, strlen(text));
    if (fd >= 0)
        close(fd);
    if (!error && rename(fresh, path))
        error = -errno;
    if (error)
        say("%s: %s", path, strerror(-error));
}

static void set_clock(uint64_t real_ns) {
    struct timespec now = {.tv_sec = (time_t)(real_ns / 1000000000), .tv_nsec = (long)(real_ns % 1000000000)};
    if (clock_settime(CLOCK_REALTIME, &now))
        say("the clock: %s", strerror(errno));
}

/* The kernel's generator goes on from the same state in every clone: until this. */
static void stir(const uint8_t seed[AGENT_SEED]) {
    struct {
        int entropy_count, buf_size;
        uint8_t buf[AGENT_SEED];
    } pool = {.entropy_count = 8 * AGENT_SEED, .buf_size = AGENT_SEED};
    memcpy(pool.buf, seed, AGENT_SEED);
    int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, RNDADDENTROPY, &pool) || ioctl(fd, RNDRESEEDCRNG))
        say("random numbers: %s; other guests may have the same", strerror(errno));
    if (fd >= 0)
        close(fd);
    explicit_bzero(&pool, sizeof pool);
}

int become_clone(const char *folder, const char *payload, size_t size, int all) {
    struct agent_become head;
    if (size < sizeof head || !acceptable(payload + sizeof head, size - sizeof head))
        return -1;
    memcpy(&head, payload, sizeof head);
    char networks[256], *before = NULL;
    snprintf(networks, sizeof networks, "%s/networks", folder);
    if (all) {
        stir(head.seed); /* First: whatever follows may draw. */
        set_clock(head.real_ns);
        if (read_whole(networks, &before) < 0)
            before = NULL;
    }
    for (const char *name = payload + sizeof head; name < payload + size;) {
        const char *text = name + strlen(name) + 1;
        put(folder, name, text);
        name = text + strlen(text) + 1;
    }
    if (all) {
        set_names();
        if (before)
            rename_networks(before, networks);
        raise_networks(networks);
    }
    free(before);
    return 0;
}
