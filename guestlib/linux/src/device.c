/* device.c: an ivshmem device in sysfs, and UIO as its interrupt. */
#define _GNU_SOURCE
#include "libguest.h"
#include "text.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define DRIVER "uio_pci_generic"

static void write_to(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    write_all(fd, text, strlen(text)); /* If it fails, what was wanted does not appear, and that is seen. */
    close(fd);
}

static int device_path(char *path, size_t room, const char *address, const char *file) {
    return snprintf(path, room, "%s/bus/pci/devices/%s/%s", guest_paths.sysfs, address, file) < (int)room ? 0 : -1;
}

void device_enable(const char *address) {
    char path[300], text[16];
    if (!device_path(path, sizeof path, address, "enable") && read_small(path, text, sizeof text) > 0 && text[0] == '0')
        write_to(path, "1");
}

static int uio_name(const char *address, char *name, size_t room) {
    char path[300];
    int found = -1;
    DIR *folder = device_path(path, sizeof path, address, "uio") ? NULL : opendir(path);
    for (struct dirent *entry; folder && found && (entry = readdir(folder));)
        if (!strncmp(entry->d_name, "uio", 3) && snprintf(name, room, "%s", entry->d_name) < (int)room)
            found = 0;
    if (folder)
        closedir(folder);
    return found;
}

static void load_driver(void) {
    pid_t pid = fork();
    if (pid == 0) {
        execlp("modprobe", "modprobe", "-q", DRIVER, (char *)NULL);
        _exit(127);
    }
    if (pid > 0)
        waitpid(pid, NULL, 0);
}

static void bind_driver(const char *address) {
    char path[300], driver[300];
    if (device_path(path, sizeof path, address, "driver") || !access(path, F_OK))
        return; /* Somebody's already. */
    snprintf(driver, sizeof driver, "%s/bus/pci/drivers/" DRIVER "/bind", guest_paths.sysfs);
    if (access(driver, F_OK))
        load_driver();
    /* A driver override names one device; new_id would take all that come, too. */
    if (!device_path(path, sizeof path, address, "driver_override"))
        write_to(path, DRIVER);
    write_to(driver, address);
}

int device_uio(const char *address, char *path, size_t room) {
    char name[32], file[300], number[32];
    unsigned major_number, minor_number;
    if (uio_name(address, name, sizeof name)) {
        bind_driver(address);
        if (uio_name(address, name, sizeof name))
            return -1;
    }
    if (snprintf(path, room, "%s/%s", guest_paths.dev, name) >= (int)room)
        return -1;
    if (!access(path, F_OK))
        return 0;
    /* Nobody (devtmpfs, udev) made the file. */
    snprintf(file, sizeof file, "%s/bus/pci/devices/%s/uio/%s/dev", guest_paths.sysfs, address, name);
    if (read_small(file, number, sizeof number) < 0 || sscanf(number, "%u:%u", &major_number, &minor_number) != 2)
        return -1;
    return mknod(path, S_IFCHR | 0600, makedev(major_number, minor_number));
}
