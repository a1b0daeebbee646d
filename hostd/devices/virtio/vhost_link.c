/* vhost_link.c: see vhost_link.h. */
#define _GNU_SOURCE
#include "vhost_link.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { PAYLOAD = 8 };

const char *vhost_request_name(uint32_t request) {
    static const char *const names[] = {
        [VHOST_GET_FEATURES] = "GET_FEATURES",
        [VHOST_SET_FEATURES] = "SET_FEATURES",
        [VHOST_SET_OWNER] = "SET_OWNER",
        [VHOST_SET_MEM_TABLE] = "SET_MEM_TABLE",
        [VHOST_SET_VRING_NUM] = "SET_VRING_NUM",
        [VHOST_SET_VRING_ADDR] = "SET_VRING_ADDR",
        [VHOST_SET_VRING_BASE] = "SET_VRING_BASE",
        [VHOST_GET_VRING_BASE] = "GET_VRING_BASE",
        [VHOST_SET_VRING_KICK] = "SET_VRING_KICK",
        [VHOST_SET_VRING_CALL] = "SET_VRING_CALL",
        [VHOST_SET_VRING_ERR] = "SET_VRING_ERR",
        [VHOST_GET_PROTOCOL_FEATURES] = "GET_PROTOCOL_FEATURES",
        [VHOST_SET_PROTOCOL_FEATURES] = "SET_PROTOCOL_FEATURES",
        [VHOST_GET_QUEUE_NUM] = "GET_QUEUE_NUM",
        [VHOST_SET_VRING_ENABLE] = "SET_VRING_ENABLE",
        [VHOST_NET_SET_MTU] = "NET_SET_MTU",
    };
    return request < sizeof names / sizeof *names && names[request] ? names[request] : "connection";
}

int vhost_link_connect(const char *path) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof name.sun_path)
        return -ENAMETOOLONG;
    strcpy(name.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    if (connect(fd, (struct sockaddr *)&name, sizeof name)) {
        int error = -errno;
        close(fd);
        return error;
    }
    return fd;
}

int vhost_link_send(int fd, const struct vhost_request *request, const int *fds, uint32_t count) {
    char room[CMSG_SPACE(VHOST_SHARES * sizeof *fds)] __attribute__((aligned(8))) = {0};
    size_t size = sizeof request->header + request->header.size;
    struct iovec piece = {(void *)request, size};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    if (count > VHOST_SHARES)
        return -EINVAL;
    if (count) {
        message.msg_control = room;
        message.msg_controllen = CMSG_SPACE(count * sizeof *fds);
        struct cmsghdr *control = CMSG_FIRSTHDR(&message);
        control->cmsg_level = SOL_SOCKET;
        control->cmsg_type = SCM_RIGHTS;
        control->cmsg_len = CMSG_LEN(count * sizeof *fds);
        memcpy(CMSG_DATA(control), fds, count * sizeof *fds);
    }
    ssize_t sent;
    do
        sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent < 0)
        return -errno;
    return (size_t)sent == size ? 0 : -EAGAIN; /* A message in two parts: the socket is as full as can be. */
}

/* Checked before the payload is waited for. */
static const char *wrong_header(struct vhost_header header, uint32_t request) {
    if (header.request != request)
        return "the answer is to another request";
    if (header.flags != (VHOST_VERSION | VHOST_REPLY))
        return "the answer's flags are wrong";
    return header.size == PAYLOAD ? NULL : "the answer's size is wrong";
}

static enum vhost_came take(int fd, void *to, size_t size, int flags, ssize_t *got) {
    do
        *got = recv(fd, to, size, MSG_DONTWAIT | flags);
    while (*got < 0 && errno == EINTR);
    if (*got > 0)
        return VHOST_WHOLE;
    return *got < 0 && errno == EAGAIN ? VHOST_LATER : VHOST_GONE;
}

enum vhost_came vhost_link_receive(int fd, uint32_t request, struct vhost_answer *answer, const char **why) {
    const uint32_t whole = sizeof answer->header + PAYLOAD;
    while (answer->got < whole) {
        uint32_t end = answer->got < sizeof answer->header ? sizeof answer->header : whole;
        ssize_t got;
        enum vhost_came came = take(fd, (uint8_t *)answer + answer->got, end - answer->got, 0, &got);
        if (came != VHOST_WHOLE)
            return came;
        answer->got += (uint32_t)got;
        if (answer->got == sizeof answer->header && (*why = wrong_header(answer->header, request)))
            return VHOST_WRONG;
    }
    return VHOST_WHOLE;
}

enum vhost_came vhost_link_idle(int fd) {
    uint8_t byte;
    ssize_t got;
    enum vhost_came came = take(fd, &byte, 1, MSG_PEEK, &got);
    return came == VHOST_WHOLE ? VHOST_WRONG : came;
}
