/* root.c: the root file system, as /hostd/root says, and the way into it. */
#define _GNU_SOURCE
#include "init.h"
#include "text.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

static const uint64_t DEVICE_WAIT_NS = 10000000000;

static const struct {
    const char *name;
    unsigned long set, clear;
} OPTIONS[] = {
    {"ro", MS_RDONLY, 0},           {"rw", 0, MS_RDONLY},         {"noatime", MS_NOATIME, 0}, {"nodiratime", MS_NODIRATIME, 0},
    {"relatime", MS_RELATIME, 0},   {"nosuid", MS_NOSUID, 0},     {"nodev", MS_NODEV, 0},     {"noexec", MS_NOEXEC, 0},
    {"sync", MS_SYNCHRONOUS, 0},    {"lazytime", MS_LAZYTIME, 0}, {"defaults", 0, 0},
};

/* Takes what are flags of mount(2) out of the list; the rest, the file system's own, goes to `data`. */
static unsigned long options(char *list, char *data, size_t room) {
    unsigned long flags = 0;
    size_t size = 0;
    data[0] = 0;
    for (char *option; (option = strsep(&list, ","));) {
        size_t i = 0, count = sizeof OPTIONS / sizeof *OPTIONS;
        while (i < count && strcmp(option, OPTIONS[i].name))
            i++;
        if (i < count)
            flags = (flags | OPTIONS[i].set) & ~OPTIONS[i].clear;
        else if (*option && size < room)
            size += (size_t)snprintf(data + size, room - size, "%s%s", size ? "," : "", option);
    }
    return flags;
}

static void wait_for_device(const char *path) {
    uint64_t start = monotonic_ns();
    struct timespec nap = {.tv_nsec = 1000000};
    while (access(path, F_OK)) {
        if (monotonic_ns() - start > DEVICE_WAIT_NS)
            init_fail("the root device %s did not appear within 10 seconds; is its driver's module in the initramfs?", path);
        nanosleep(&nap, NULL);
        if (nap.tv_nsec < 20000000)
            nap.tv_nsec *= 2;
    }
}

static void mount_overlay(const char *target) {
    if (mount("overlay", "/overlay", "tmpfs", 0, "mode=755"))
        init_fail("no tmpfs for the root's changes: %s", strerror(errno));
    mkdir("/overlay/upper", 0755);
    mkdir("/overlay/work", 0755);
    if (mount("overlay", target, "overlay", 0, "lowerdir=/lower,upperdir=/overlay/upper,workdir=/overlay/work"))
        init_fail("the root cannot be overlaid: %s; is the module overlay in the initramfs?", strerror(errno));
}

int mount_root(const char *target) {
    char line[1024], device[256], kind[64], list[512], shape[16], data[512], path[300];
    ssize_t size = read_small(HOSTD_RUN "/root", line, sizeof line);
    if (size == -ENOENT)
        return 0;
    if (size < 0 || sscanf(line, "%255s %63s %511s %15s", device, kind, list, shape) != 4)
        init_fail("/hostd/root is not DEVICE FSTYPE OPTIONS overlay|plain: %s", size < 0 ? strerror((int)-size) : line);
    snprintf(path, sizeof path, "%s%s", *device == '/' ? "" : "/dev/", device);
    wait_for_device(path);
    int overlay = !strcmp(shape, "overlay");
    unsigned long flags = options(list, data, sizeof data);
    mkdir("/lower", 0755);
    mkdir("/overlay", 0755);
    mkdir(target, 0755);
    if (mount(path, overlay ? "/lower" : target, kind, flags, data))
        init_fail("the root %s cannot be mounted as %s (%s): %s", path, kind, data, strerror(errno));
    if (overlay)
        mount_overlay(target);
    return 1;
}

/* Removes all that is on the file system `device` below `folder`. */
static void empty(int folder, dev_t device) {
    DIR *opened = fdopendir(folder);
    if (!opened)
        return;
    for (struct dirent *entry; (entry = readdir(opened));) {
        struct stat found;
        const char *name = entry->d_name;
        if (!strcmp(name, ".") || !strcmp(name, "..") || fstatat(dirfd(opened), name, &found, AT_SYMLINK_NOFOLLOW))
            continue;
        if (found.st_dev != device)
            continue;
        if (S_ISDIR(found.st_mode)) {
            int inner = openat(dirfd(opened), name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            if (inner >= 0)
                empty(inner, device);
        }
        unlinkat(dirfd(opened), name, S_ISDIR(found.st_mode) ? AT_REMOVEDIR : 0);
    }
    closedir(opened);
}

int enter_root(const char *target) {
    static const char *const kept[] = {"/dev", "/proc", "/sys", "/run"};
    char path[300];
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s%s", target, kept[i]);
        mkdir(path, 0755);
        if (mount(kept[i], path, NULL, MS_MOVE, NULL))
            init_fail("%s cannot be moved into the root: %s", kept[i], strerror(errno));
    }
    int old = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (old < 0 || chdir(target) || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
        init_fail("the root cannot be entered: %s", strerror(errno));
    return old;
}

void free_initramfs(int old) {
    struct stat root;
    struct statfs system;
    /* Only ever an initramfs: ramfs or tmpfs, and with the /init that this is. */
    int ours = !fstat(old, &root) && !fstatfs(old, &system) && (system.f_type == RAMFS_MAGIC || system.f_type == TMPFS_MAGIC) &&
               !faccessat(old, "init", F_OK, 0) && getpid() == 1;
    if (ours)
        empty(old, root.st_dev);
    else
        close(old);
}
