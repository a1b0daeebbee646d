/* tree.c: copying what hostd handed over, out of the initramfs. */
#define _GNU_SOURCE
#include "init.h"
#include "text.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH 4096

int copy_file(const char *from, const char *to, unsigned mode) {
    int in = open(from, O_RDONLY | O_CLOEXEC), out = -1, error = 0;
    struct stat found;
    if (in < 0 || fstat(in, &found))
        error = -errno;
    if (!error) {
        unlink(to); /* Not through a link that the root may have there. */
        out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        error = out < 0 ? -errno : 0;
    }
    for (off_t at = 0; !error && at < found.st_size;) {
        ssize_t done = sendfile(out, in, &at, (size_t)(found.st_size - at));
        if (done <= 0 && errno != EINTR)
            error = done < 0 ? -errno : -EIO;
    }
    if (!error && (fchown(out, found.st_uid, found.st_gid) || fchmod(out, mode ? mode : found.st_mode & 07777)))
        error = -errno;
    close(in);
    close(out);
    return error;
}

static int copy_entry(const char *from, const char *to, const char **where);

static int copy_content(const char *from, const char *to, const char **where) {
    DIR *folder = opendir(from);
    int error = folder ? 0 : -errno;
    for (struct dirent *entry; folder && !error && (entry = readdir(folder));) {
        char inner[PATH], outer[PATH];
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        if (snprintf(inner, PATH, "%s/%s", from, entry->d_name) >= PATH ||
            snprintf(outer, PATH, "%s/%s", to, entry->d_name) >= PATH)
            error = -ENAMETOOLONG;
        else
            error = copy_entry(inner, outer, where);
    }
    if (folder)
        closedir(folder);
    return error;
}

static int copy_entry(const char *from, const char *to, const char **where) {
    static char place[PATH];
    struct stat found;
    char target[PATH];
    int error = 0;
    if (lstat(from, &found)) {
        error = -errno;
    } else if (S_ISDIR(found.st_mode)) {
        struct stat there;
        if (mkdir(to, found.st_mode & 07777) && errno != EEXIST)
            error = -errno;
        else if (!stat(to, &there) && !S_ISDIR(there.st_mode))
            error = -ENOTDIR;
        else
            return copy_content(from, to, where);
    } else if (S_ISLNK(found.st_mode)) {
        ssize_t size = readlink(from, target, sizeof target - 1);
        target[size < 0 ? 0 : size] = 0;
        unlink(to);
        error = size < 0 || symlink(target, to) ? -errno : 0;
    } else if (S_ISREG(found.st_mode)) {
        error = copy_file(from, to, 0);
    }
    if (error && *where == NULL) {
        snprintf(place, sizeof place, "%s", to);
        *where = place;
    }
    return error;
}

int copy_tree(const char *from, const char *to, const char **where) {
    *where = NULL;
    if (mkdir(to, 0755) && errno != EEXIST) {
        *where = to;
        return -errno;
    }
    int error = copy_content(from, to, where);
    if (!*where)
        *where = to;
    return error;
}
