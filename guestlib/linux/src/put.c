/* put.c: a copy that comes in: records into files, none of them outside of the destination. */
#define _GNU_SOURCE
#include "agent.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

int copy_root = AT_FDCWD;

int open_within(int folder, const char *path, int flags, uint64_t resolve) {
    struct open_how how = {.flags = (uint64_t)(flags | O_CLOEXEC), .resolve = resolve};
    if (flags & O_CREAT)
        how.mode = 0600;
    return (int)syscall(SYS_openat2, folder, path, &how, sizeof how);
}

/* ---- where it goes ----------------------------------------------------------------------------------------------------- */

/* True for what may be a name in a directory. */
static int is_name(const char *name) {
    return *name && strcmp(name, ".") && strcmp(name, "..") && !strchr(name, '/') && strlen(name) <= 255;
}

/* Sets base and leaf. Checked: the path is absolute, the name is one. Returns errno, or 0. */
static int find_place(struct put *put, char *path, const char *name) {
    size_t size = strlen(path);
    while (size > 1 && path[size - 1] == '/')
        path[--size] = 0;
    int exact = put->flags & AGENT_COPY_EXACT;
    int folder = open_within(copy_root, path, O_PATH | O_DIRECTORY, RESOLVE_IN_ROOT);
    if (folder >= 0) { /* Links were followed to here, inside of the root; from here on none is. */
        put->base = folder;
        snprintf(put->leaf, sizeof put->leaf, "%s", exact ? "." : name);
        return exact || is_name(name) ? 0 : EINVAL;
    }
    char *slash = strrchr(path, '/');
    snprintf(put->leaf, sizeof put->leaf, "%s", slash + 1);
    *slash = 0;
    put->base = open_within(copy_root, *path ? path : "/", O_PATH | O_DIRECTORY, RESOLVE_IN_ROOT);
    return put->base < 0 ? errno : is_name(put->leaf) ? 0 : EINVAL;
}

void put_open(struct stream *stream, const char *payload, size_t size) {
    struct agent_copy head;
    char path[AGENT_MAX_PATH + 1], name[256];
    const char *text = payload + sizeof head, *end = payload + size;
    stream->kind = STREAM_PUT;
    stream->put = calloc(1, sizeof *stream->put);
    if (stream->put)
        stream->put->base = stream->put->top = stream->put->file = stream->put->folder = -1;
    const char *first = size > sizeof head ? memchr(text, 0, (size_t)(end - text)) : NULL;
    const char *second = first && first + 1 < end ? memchr(first + 1, 0, (size_t)(end - first - 1)) : NULL;
    if (!stream->put || second != end - 1 || (size_t)(first - text) >= sizeof path || *text != '/' ||
        (size_t)(second - first) > sizeof name) {
        stream_fail(stream, EPROTO, "a PUT needs an absolute path and a name");
        return;
    }
    struct put *put = stream->put;
    memcpy(&head, payload, sizeof head);
    memcpy(path, text, (size_t)(first - text) + 1);
    memcpy(name, first + 1, (size_t)(second - first));
    put->flags = head.flags;
    put->first = 1;
    int error = find_place(put, path, name);
    if (error)
        stream_fail(stream, error, "%s: %s", text, strerror(error));
}

/* ---- records ----------------------------------------------------------------------------------------------------------- */

static const char *record_path(struct put *put) {
    return put->names;
}

static const char *record_target(struct put *put) {
    return put->names + put->record.path_size + 1;
}

static int fail(struct stream *stream, int error, const char *what) {
    struct put *put = stream->put;
    const char *path = put->have >= sizeof put->record ? record_path(put) : "";
    stream_fail(stream, error, "%s%s%s: %s%s", put->leaf, *path ? "/" : "", path, what, strerror(error));
    return -1;
}

/* Checked: relative, no empty, "." or ".." component, no zero inside. */
static int is_inside(const char *path, size_t size) {
    if (strlen(path) != size)
        return 0;
    for (;;) {
        size_t part = strcspn(path, "/");
        if (part == 0 || (part == 1 && path[0] == '.') || (part == 2 && path[0] == '.' && path[1] == '.'))
            return 0;
        if (!path[part])
            return 1;
        path += part + 1;
    }
}

static int own(struct put *put, int fd, int folder, const char *name) {
    uid_t uid = put->flags & AGENT_COPY_OWNER ? put->record.uid : (uid_t)-1;
    gid_t gid = put->flags & AGENT_COPY_OWNER ? put->record.gid : (gid_t)-1;
    if (uid == (uid_t)-1 && gid == (gid_t)-1)
        return 0;
    return fd >= 0 ? fchown(fd, uid, gid) : fchownat(folder, name, uid, gid, AT_SYMLINK_NOFOLLOW);
}

static struct timespec record_time(struct put *put) {
    int64_t second = 1000000000, ns = put->record.mtime_ns % second;
    int64_t s = put->record.mtime_ns / second - (ns < 0);
    return (struct timespec){.tv_sec = s, .tv_nsec = ns < 0 ? ns + second : ns};
}

static int make_folder(struct put *put, int parent, const char *name) {
    if (mkdirat(parent, name, 0700) && errno != EEXIST)
        return -1;
    int fd = open_within(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
    if (fd < 0)
        return -1;
    if (own(put, fd, -1, NULL) || fchmod(fd, put->record.mode & 07777)) {
        close(fd);
        return -1;
    }
    if (put->first)
        put->top = fd;
    else
        close(fd);
    put->done.files++;
    return 0;
}

static void name_partial(struct put *put) {
    static uint32_t number;
    snprintf(put->partial, sizeof put->partial, ".hostd-%d-%u.partial", (int)getpid(), number++);
}

static int make_link(struct put *put, int parent, const char *name) {
    struct timespec times[2] = {{.tv_nsec = UTIME_NOW}, record_time(put)};
    name_partial(put);
    if (symlinkat(record_target(put), parent, put->partial))
        return -1;
    if (own(put, -1, parent, put->partial) || utimensat(parent, put->partial, times, AT_SYMLINK_NOFOLLOW) ||
        renameat(parent, put->partial, parent, name)) {
        int error = errno;
        unlinkat(parent, put->partial, 0);
        errno = error;
        return -1;
    }
    put->done.files++;
    return 0;
}

/* `parent` becomes the put's. */
static int make_file(struct put *put, int parent, const char *name) {
    name_partial(put);
    put->folder = parent;
    memcpy(put->last, name, strnlen(name, AGENT_MAX_PATH));
    put->last[strnlen(name, AGENT_MAX_PATH)] = 0;
    put->file = open_within(parent, put->partial, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0);
    put->left = put->record.size;
    return put->file < 0 ? -1 : 0;
}

static int finish_file(struct put *put) {
    struct timespec times[2] = {{.tv_nsec = UTIME_NOW}, record_time(put)};
    int failed = own(put, put->file, -1, NULL) || fchmod(put->file, put->record.mode & 07777) ||
                 futimens(put->file, times) || renameat(put->folder, put->partial, put->folder, put->last);
    int error = errno;
    if (failed)
        unlinkat(put->folder, put->partial, 0);
    close(put->file);
    close(put->folder);
    put->file = put->folder = -1;
    put->done.files += !failed;
    put->done.bytes += put->record.size;
    errno = error;
    return failed ? -1 : 0;
}

/* A record's head and names are there. Checked: kind, sizes, the path's parts; opened with no link followed. */
static int begin_record(struct stream *stream) {
    struct put *put = stream->put;
    struct agent_record *record = &put->record;
    const char *path = record_path(put), *name = put->leaf;
    int link = record->kind == AGENT_SYMLINK;
    if (put->first ? record->path_size != 0 : !is_inside(path, record->path_size))
        return fail(stream, EINVAL, "a record's path: ");
    if (link ? !record->target_size || strlen(record_target(put)) != record->target_size : record->target_size)
        return fail(stream, EINVAL, "a record's target: ");
    if (!put->first && put->top < 0)
        return fail(stream, ENOTDIR, "");
    if (put->first && record->kind != AGENT_DIRECTORY && !strcmp(name, "."))
        return fail(stream, EISDIR, "");
    int parent;
    if (put->first) {
        parent = fcntl(put->base, F_DUPFD_CLOEXEC, 3);
    } else {
        char folder[AGENT_MAX_PATH + 1];
        const char *slash = strrchr(path, '/');
        snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path) : 1, slash ? path : ".");
        name = slash ? slash + 1 : path;
        parent = open_within(put->top, folder, O_PATH | O_DIRECTORY, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
    }
    if (parent < 0)
        return fail(stream, errno, "");
    int result;
    if (record->kind == AGENT_FILE) {
        result = make_file(put, parent, name);
    } else {
        result = record->kind == AGENT_DIRECTORY ? make_folder(put, parent, name) : make_link(put, parent, name);
        int error = errno;
        close(parent);
        errno = error;
    }
    if (result)
        return fail(stream, errno, "");
    put->first = 0;
    return 0;
}

/* ---- bytes ------------------------------------------------------------------------------------------------------------- */

/* Takes bytes of the record's head or names: how many, or -1. */
static ssize_t take_head(struct stream *stream, const char *data, size_t size) {
    struct put *put = stream->put;
    const size_t head = sizeof put->record;
    if (put->have < head) {
        size_t part = size < head - put->have ? size : head - put->have;
        memcpy((char *)&put->record + put->have, data, part);
        put->have += part;
        struct agent_record *record = &put->record;
        if (put->have < head)
            return (ssize_t)part;
        memset(put->names, 0, sizeof put->names);
        if (record->kind < AGENT_FILE || record->kind > AGENT_SYMLINK || record->path_size > AGENT_MAX_PATH ||
            record->target_size > AGENT_MAX_PATH || (record->kind != AGENT_FILE && record->size)) {
            record->path_size = record->target_size = 0;
            return fail(stream, EINVAL, "a record: ");
        }
        return (ssize_t)part;
    }
    size_t at = put->have - head, path = put->record.path_size;
    int in_path = at < path;
    size_t due = in_path ? path - at : path + put->record.target_size - at, part = size < due ? size : due;
    memcpy(put->names + at + !in_path, data, part); /* A zero stands between the two. */
    put->have += part;
    return (ssize_t)part;
}

static int head_is_whole(struct put *put) {
    size_t head = sizeof put->record;
    return put->have >= head && put->have == head + put->record.path_size + put->record.target_size;
}

/* One step: bytes taken, or -1 when the stream has ended. */
static ssize_t take(struct stream *stream, const char *data, size_t size) {
    struct put *put = stream->put;
    size_t part = 0;
    if (put->file < 0) {
        ssize_t taken = take_head(stream, data, size);
        if (taken < 0)
            return -1;
        if (!head_is_whole(put))
            return taken;
        if (begin_record(stream))
            return -1;
        part = (size_t)taken;
    } else {
        part = size < put->left ? size : (size_t)put->left;
        int error = write_all(put->file, data, part);
        if (error)
            return fail(stream, -error, "");
        put->left -= part;
    }
    if (put->file >= 0 && !put->left && finish_file(put))
        return fail(stream, errno, "");
    if (put->file < 0)
        put->have = 0;
    return (ssize_t)part;
}

void put_data(struct stream *stream, const char *data, size_t size) {
    stream_passed_on(stream, size);
    while (size) {
        ssize_t taken = take(stream, data, size);
        if (taken < 0)
            return;
        data += taken;
        size -= (size_t)taken;
    }
}

void put_eof(struct stream *stream) {
    struct put *put = stream->put;
    if (put->first || put->have || put->file >= 0) {
        stream_fail(stream, EPROTO, "%s: the copy ended in the middle of a record", put->leaf);
        return;
    }
    session_send(stream->session, AGENT_DONE, stream->id, &put->done, sizeof put->done);
    stream_free(stream);
}

void put_free(struct put *put) {
    if (!put)
        return;
    if (put->file >= 0) {
        unlinkat(put->folder, put->partial, 0);
        close(put->file);
    }
    for (int i = 0; i < 3; i++) {
        int fd = i == 0 ? put->base : i == 1 ? put->top : put->folder;
        if (fd >= 0)
            close(fd);
    }
    free(put);
}
