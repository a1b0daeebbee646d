/* get.c: a copy that goes out: a walk, without following links, as records. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define UNSIZED (1 << 20) /* most bytes of a file that says it has none, as those in /proc do */

static int fail(struct stream *stream, int error) {
    const char *reason = error == ESTALE ? "it became shorter while it was read" : strerror(error);
    stream_fail(stream, error, "%s%s%s", stream->get->path, *stream->get->path ? ": " : "", reason);
    return 1;
}

void get_open(struct stream *stream, const char *payload, size_t size) {
    struct agent_copy head;
    const char *path = payload + sizeof head;
    stream->kind = STREAM_GET;
    stream->get = calloc(1, sizeof *stream->get);
    if (!stream->get || size <= sizeof head + 1 || memchr(path, 0, size - sizeof head) != payload + size - 1 || *path != '/' ||
        size - sizeof head > AGENT_MAX_PATH) {
        if (stream->get)
            stream->get->file = stream->get->top = -1;
        stream_fail(stream, EPROTO, "a GET needs an absolute path");
        return;
    }
    stream->get->file = -1;
    stream->get->top = open_within(copy_root, path, O_PATH, RESOLVE_IN_ROOT);
    if (stream->get->top < 0)
        stream_fail(stream, errno, "%s: %s", path, strerror(errno));
}

/* Makes the record's head ready to be sent. */
static void prepare(struct get *get, const struct stat *found, uint8_t kind, uint64_t size, const char *target) {
    struct agent_record record = {
        .kind = kind,
        .mode = found->st_mode & 07777,
        .uid = found->st_uid,
        .gid = found->st_gid,
        .mtime_ns = (int64_t)found->st_mtim.tv_sec * 1000000000 + found->st_mtim.tv_nsec,
        .size = size,
        .path_size = (uint16_t)strlen(get->path),
        .target_size = (uint16_t)strlen(target),
    };
    memcpy(get->head, &record, sizeof record);
    memcpy(get->head + sizeof record, get->path, record.path_size);
    memcpy(get->head + sizeof record + record.path_size, target, record.target_size);
    get->head_start = 0;
    get->head_end = sizeof record + record.path_size + record.target_size;
    get->done.files++;
}

/* Reads a file that says it is empty: most are; those of /proc are not. */
static uint64_t read_unsized(struct get *get) {
    uint64_t size = 0;
    get->bytes = malloc(UNSIZED);
    get->at = 0;
    while (get->bytes && size < UNSIZED) {
        ssize_t got = read(get->file, get->bytes + size, UNSIZED - size);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        size += (uint64_t)got;
    }
    return size;
}

static int begin_file(struct get *get, int folder, const char *name, int flags) {
    struct stat found;
    get->file = openat(folder, name, O_RDONLY | O_NONBLOCK | O_CLOEXEC | flags);
    if (get->file < 0 || fstat(get->file, &found))
        return -1;
    uint64_t size = (uint64_t)found.st_size;
    if (!size)
        size = read_unsized(get);
    get->left = size;
    get->done.bytes += size;
    prepare(get, &found, AGENT_FILE, size, "");
    return 0;
}

static int begin_folder(struct get *get, int folder, const char *name, const struct stat *found, int flags) {
    if (get->depth == GET_DEPTH) {
        errno = ELOOP;
        return -1;
    }
    int fd = openat(folder, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | flags);
    DIR *opened = fd < 0 ? NULL : fdopendir(fd);
    if (!opened)
        return -1;
    get->lengths[get->depth] = strlen(get->path);
    get->folders[get->depth++] = opened;
    prepare(get, found, AGENT_DIRECTORY, 0, "");
    return 0;
}

/* `name` in `folder`, whose path in the copy is get->path: what kind it is decides. */
static int begin_entry(struct get *get, int folder, const char *name) {
    struct stat found;
    char target[AGENT_MAX_PATH + 1];
    if (fstatat(folder, name, &found, AT_SYMLINK_NOFOLLOW))
        return errno == ENOENT ? 0 : -1; /* Removed meanwhile. */
    if (S_ISREG(found.st_mode))
        return begin_file(get, folder, name, O_NOFOLLOW);
    if (S_ISDIR(found.st_mode))
        return begin_folder(get, folder, name, &found, O_NOFOLLOW);
    if (!S_ISLNK(found.st_mode)) {
        get->done.skipped++;
        return 0;
    }
    ssize_t size = readlinkat(folder, name, target, sizeof target - 1);
    if (size < 0)
        return -1;
    target[size] = 0;
    prepare(get, &found, AGENT_SYMLINK, 0, target);
    return 0;
}

static int begin_top(struct get *get) {
    struct stat found;
    char itself[40];
    int result = -1;
    /* Opened by O_PATH; reading needs another descriptor of the same file. */
    snprintf(itself, sizeof itself, "/proc/self/fd/%d", get->top);
    if (!fstat(get->top, &found)) {
        errno = EINVAL; /* A device, a pipe, a socket. */
        if (S_ISDIR(found.st_mode))
            result = begin_folder(get, get->top, ".", &found, 0);
        else if (S_ISREG(found.st_mode))
            result = begin_file(get, AT_FDCWD, itself, 0);
    }
    int error = errno;
    close(get->top);
    errno = error;
    get->top = -1;
    return result;
}

/* The next entry of the walk: 1 if there is or may be one, 0 at its end, -1 with errno. */
static int next(struct get *get) {
    if (get->top >= 0)
        return begin_top(get) ? -1 : 1;
    if (!get->depth)
        return 0;
    size_t length = get->lengths[get->depth - 1];
    get->path[length] = 0;
    errno = 0;
    struct dirent *entry = readdir(get->folders[get->depth - 1]);
    if (!entry) {
        if (errno)
            return -1;
        closedir(get->folders[--get->depth]);
        return 1;
    }
    const char *name = entry->d_name;
    if (!strcmp(name, ".") || !strcmp(name, ".."))
        return 1;
    size_t size = strlen(name);
    if (length + size + 1 > AGENT_MAX_PATH) {
        errno = ENAMETOOLONG;
        return -1;
    }
    if (length)
        get->path[length++] = '/';
    memcpy(get->path + length, name, size + 1);
    return begin_entry(get, dirfd(get->folders[get->depth - 1]), name) ? -1 : 1;
}

static void end_file(struct get *get) {
    close(get->file);
    free(get->bytes);
    get->file = -1;
    get->bytes = NULL;
}

/* Fills up to `room` bytes of the copy: how many, 0 for none left, -1 with errno. */
static ssize_t produce(struct get *get, char *to, size_t room) {
    for (;;) {
        if (get->head_start < get->head_end) {
            size_t left = get->head_end - get->head_start, part = left < room ? left : room;
            memcpy(to, get->head + get->head_start, part);
            get->head_start += part;
            return (ssize_t)part;
        }
        if (get->file >= 0 && get->left) {
            size_t part = get->left < room ? (size_t)get->left : room;
            ssize_t got = (ssize_t)part;
            if (get->bytes) {
                memcpy(to, get->bytes + get->at, part);
                get->at += part;
            } else {
                got = read(get->file, to, part);
            }
            if (got == 0)
                errno = ESTALE;
            if (got <= 0)
                return -1;
            get->left -= (uint64_t)got;
            return got;
        }
        if (get->file >= 0)
            end_file(get);
        int more = next(get);
        if (more <= 0)
            return more;
    }
}

/* As much as there is room for: small files share a frame. */
static ssize_t fill(struct get *get, char *to, size_t room) {
    size_t size = 0;
    while (size < room && !get->error) {
        ssize_t part = produce(get, to + size, room - size);
        if (part == 0)
            break;
        if (part < 0)
            get->error = errno;
        else
            size += (size_t)part;
    }
    errno = get->error;
    return size || !get->error ? (ssize_t)size : -1;
}

int get_pump(struct stream *stream) {
    struct get *get = stream->get;
    size_t room = stream_may_send(stream);
    if (!room)
        return 0;
    ssize_t size = fill(get, session_payload(stream->session), room);
    if (size < 0)
        return fail(stream, errno);
    if (size > 0) {
        session_sent(stream->session, AGENT_DATA, stream->id, (size_t)size);
        stream->credit -= (uint64_t)size;
        return 1;
    }
    session_send(stream->session, AGENT_EOF, stream->id, NULL, 0);
    session_send(stream->session, AGENT_DONE, stream->id, &get->done, sizeof get->done);
    stream_free(stream);
    return 1;
}

void get_free(struct get *get) {
    if (!get)
        return;
    if (get->file >= 0)
        end_file(get);
    if (get->top >= 0)
        close(get->top);
    while (get->depth)
        closedir(get->folders[--get->depth]);
    free(get);
}
