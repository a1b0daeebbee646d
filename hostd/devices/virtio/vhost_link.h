/*
 * vhost_link.h: messages of the vhost-user protocol over a Unix stream socket, the front end's side: requests out, answers in.
 *
 * Nothing here blocks. Who answers may send anything: an answer is 8 bytes behind a header that fits the request, or it is
 * an error. Descriptors that come with one are the kernel's to close: none is asked for.
 */
#ifndef HOSTD_VHOST_LINK_H
#define HOSTD_VHOST_LINK_H

#include <stdint.h>

#define VHOST_SHARES 8 /* most ranges of memory in one table */

/* Requests (vhost-user, "Front-end message types"). */
enum {
    VHOST_NONE = 0,
    VHOST_GET_FEATURES = 1,
    VHOST_SET_FEATURES = 2,
    VHOST_SET_OWNER = 3,
    VHOST_SET_MEM_TABLE = 5,
    VHOST_SET_VRING_NUM = 8,
    VHOST_SET_VRING_ADDR = 9,
    VHOST_SET_VRING_BASE = 10,
    VHOST_GET_VRING_BASE = 11,
    VHOST_SET_VRING_KICK = 12,
    VHOST_SET_VRING_CALL = 13,
    VHOST_SET_VRING_ERR = 14,
    VHOST_GET_PROTOCOL_FEATURES = 15,
    VHOST_SET_PROTOCOL_FEATURES = 16,
    VHOST_GET_QUEUE_NUM = 17,
    VHOST_SET_VRING_ENABLE = 18,
    VHOST_NET_SET_MTU = 20,
};

/* Flags of a header. */
enum { VHOST_VERSION = 1, VHOST_REPLY = 4, VHOST_NEED_REPLY = 8 };

struct vhost_header {
    uint32_t request, flags, size;
};

struct vhost_state {
    uint32_t index, number;
};

/* A message of ours: its header and the largest payload, in the machine's byte order. */
struct vhost_request {
    struct vhost_header header;
    union {
        uint64_t number;
        struct vhost_state state;
        struct {
            uint32_t index, flags;
            uint64_t desc, used, avail, log;
        } address;
        struct {
            uint32_t count, padding;
            struct {
                uint64_t gpa, size, uva, offset;
            } ranges[VHOST_SHARES];
        } table;
    } __attribute__((packed));
} __attribute__((packed));

/* An answer, as far as it has come. */
struct vhost_answer {
    struct vhost_header header;
    union {
        uint64_t number;
        struct vhost_state state;
    } __attribute__((packed));
    uint32_t got;       /* bytes */
} __attribute__((packed));

/* What the protocol calls a request, for people. */
const char *vhost_request_name(uint32_t request);

/* A connection to the socket at `path`, which fits a socket's name: a descriptor, or -errno. */
int vhost_link_connect(const char *path);

/* The whole message, with the descriptors: 0, or -errno (-EAGAIN: the back end doesn't take its messages). */
int vhost_link_send(int fd, const struct vhost_request *request, const int *fds, uint32_t count);

enum vhost_came { VHOST_WHOLE, VHOST_LATER, VHOST_GONE, VHOST_WRONG };

/* More of the answer to `request`; *why for VHOST_WRONG. *answer begins as all zeros. */
enum vhost_came vhost_link_receive(int fd, uint32_t request, struct vhost_answer *answer, const char **why);

/* Where no answer is due: has the back end hung up (VHOST_GONE), or spoken (VHOST_WRONG)? Else VHOST_LATER. */
enum vhost_came vhost_link_idle(int fd);

#endif
