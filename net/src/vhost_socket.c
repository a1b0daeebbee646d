/* vhost_socket.c: see vhost_socket.h. */
#define _GNU_SOURCE
#include "vhost_socket.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { BACKLOG = 4 };

/* Does somebody listen there? */
static int in_use(const struct sockaddr_un *address) {
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return 1;
    int error = connect(fd, (const struct sockaddr *)address, sizeof *address) ? errno : 0;
    close(fd);
    return error != ECONNREFUSED && error != ENOENT;
}

static int bind_socket(int fd, const struct sockaddr_un *address) {
    if (!bind(fd, (const struct sockaddr *)address, sizeof *address))
        return 0;
    if (errno != EADDRINUSE || in_use(address))
        return -errno;
    struct stat file;
    if (lstat(address->sun_path, &file) || !S_ISSOCK(file.st_mode))
        return -EADDRINUSE;
    if (unlink(address->sun_path) || bind(fd, (const struct sockaddr *)address, sizeof *address))
        return -errno;
    return 0;
}

int vhost_socket_listen(struct vhost_listener *listener, const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (!*path || strlen(path) >= sizeof address.sun_path)
        return -ENAMETOOLONG;
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    int error = bind_socket(fd, &address);
    if (error) {
        close(fd);
        return error;
    }
    struct stat file;
    /* Nobody can connect before listen, so nobody does with other rights than these. */
    if (chmod(path, 0600) || stat(path, &file) || listen(fd, BACKLOG)) {
        error = -errno;
        close(fd);
        unlink(path);
        return error;
    }
    *listener = (struct vhost_listener){.fd = fd, .device = file.st_dev, .inode = file.st_ino};
    strcpy(listener->path, path);
    return 0;
}

void vhost_socket_close(struct vhost_listener *listener) {
    struct stat file;
    close(listener->fd);
    if (!stat(listener->path, &file) && file.st_dev == listener->device && file.st_ino == listener->inode)
        unlink(listener->path);
}

static void close_all(int *fds, uint32_t *count) {
    while (*count)
        close(fds[--*count]);
}

/* Takes the descriptors that came. 0, or -1 if there were more than any message has: then all are closed. */
static int take_fds(struct msghdr *header, int *fds, uint32_t *count) {
    int too_many = header->msg_flags & MSG_CTRUNC;
    for (struct cmsghdr *part = CMSG_FIRSTHDR(header); part; part = CMSG_NXTHDR(header, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        int fd;
        for (size_t at = 0; at + CMSG_LEN(sizeof fd) <= part->cmsg_len; at += sizeof fd) {
            memcpy(&fd, CMSG_DATA(part) + at, sizeof fd);
            if (*count < VHOST_TABLE)
                fds[(*count)++] = fd;
            else
                close(fd), too_many = 1;
        }
    }
    if (too_many)
        close_all(fds, count);
    return too_many ? -1 : 0;
}

struct incoming {
    int fd, stop;
    int *fds;
    uint32_t *fd_count;
    const char **why;
};

/* `size` bytes, and the descriptors that come along. `begun`: the front end may not go away here. */
static enum vhost_received receive(const struct incoming *in, void *to, uint32_t size, int begun) {
    uint32_t have = 0;
    while (have < size) {
        struct pollfd polled[2] = {{.fd = in->fd, .events = POLLIN}, {.fd = in->stop, .events = POLLIN}};
        if (poll(polled, 2, -1) < 0 && errno != EINTR)
            return VHOST_END;
        if (polled[1].revents)
            return VHOST_STOPPED;
        struct iovec part = {(uint8_t *)to + have, size - have};
        union {
            char bytes[CMSG_SPACE(sizeof(int) * VHOST_TABLE)];
            struct cmsghdr aligned;
        } control;
        struct msghdr header = {
            .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
        ssize_t got = recvmsg(in->fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (got <= 0) {
            if (!have && !begun)
                return VHOST_END;
            *in->why = "half a message";
            return VHOST_BAD;
        }
        have += (uint32_t)got;
        if (take_fds(&header, in->fds, in->fd_count)) {
            *in->why = "number of descriptors";
            return VHOST_BAD;
        }
    }
    return VHOST_MESSAGE;
}

enum vhost_received vhost_socket_receive(int fd, int stop, struct vhost_message *message, int fds[VHOST_TABLE],
                                         uint32_t *fd_count, const char **why) {
    struct incoming in = {fd, stop, fds, fd_count, why};
    *fd_count = 0;
    enum vhost_received received = receive(&in, message, VHOST_HEADER, 0);
    if (received == VHOST_MESSAGE && !vhost_user_size_ok(message->request, message->size)) {
        *why = "size of a message, or a request that is not known";
        received = VHOST_BAD;
    }
    if (received == VHOST_MESSAGE && message->size)
        received = receive(&in, message->bytes, message->size, 1);
    if (received != VHOST_MESSAGE)
        close_all(fds, fd_count);
    return received;
}

int vhost_socket_reply(int fd, const struct vhost_message *message) {
    ssize_t size = VHOST_HEADER + (ssize_t)message->size;
    return send(fd, message, (size_t)size, MSG_DONTWAIT | MSG_NOSIGNAL) == size ? 0 : -1;
}
