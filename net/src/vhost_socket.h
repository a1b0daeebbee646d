/*
 * vhost_socket.h: vhost-user messages over a Unix stream socket. Who is on the other side may send anything, half of
 * it, or nothing: nobody but the thread that listens to him waits.
 */
#ifndef NET_VHOST_SOCKET_H
#define NET_VHOST_SOCKET_H

#include <stdint.h>
#include <sys/types.h>

#include "vhost_user.h"

struct vhost_listener {
    int fd;
    char path[108];
    dev_t device; /* of the socket's file: another's is not removed */
    ino_t inode;
};

/* Makes the socket, readable for its owner only, and replaces one that nobody listens on. 0 or -errno. */
int vhost_socket_listen(struct vhost_listener *listener, const char *path);
void vhost_socket_close(struct vhost_listener *listener);

enum vhost_received { VHOST_MESSAGE, VHOST_END, VHOST_STOPPED, VHOST_BAD };

/*
 * A whole message with its descriptors (the caller's then; none unless VHOST_MESSAGE). VHOST_STOPPED as soon as `stop`
 * is readable; VHOST_BAD, and *why, for what is no message.
 */
enum vhost_received vhost_socket_receive(int fd, int stop, struct vhost_message *message, int fds[VHOST_TABLE],
                                         uint32_t *fd_count, const char **why);

/* 0, or -1: the front end doesn't take it, and is not waited for. */
int vhost_socket_reply(int fd, const struct vhost_message *message);

#endif
