/* nursery.c: see nursery.h. */
#define _GNU_SOURCE
#include "nursery.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* msgpack: a map of one pair whose key is "start". */
static const char START[] = "\x81\xa5start";

/* Returns 0 or -errno. SIGCHLD is blocked from here on; a child gets it back. */
int nursery_open(struct nursery *nursery, int link) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    *nursery = (struct nursery){.link = link, .listener = -1, .born = -1};
    if (sigprocmask(SIG_BLOCK, &set, NULL) != 0)
        return -errno;
    nursery->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return nursery->signals < 0 ? -errno : 0;
}

static int wants_start(int link) {
    char head[sizeof START - 1];
    ssize_t size = recv(link, head, sizeof head, MSG_PEEK | MSG_DONTWAIT);
    return size == (ssize_t)sizeof head && memcmp(head, START, sizeof head) == 0;
}

/* The start of the request at the head of the link: it holds the guest's name, so no two are the same. */
struct request {
    char head[512];
    ssize_t size;
};

static struct request look(int link) {
    struct request request;
    request.size = recv(link, request.head, sizeof request.head, MSG_PEEK | MSG_DONTWAIT);
    return request;
}

/* A child that died before it read its request would leave it there for ever. */
static void drop_request(int link, const struct request *request) {
    char byte;
    struct request now = look(link);
    if (now.size > 0 && now.size == request->size && memcmp(now.head, request->head, (size_t)now.size) == 0)
        (void)!recv(link, &byte, 1, MSG_DONTWAIT); /* Descriptors that don't fit are closed by the kernel. */
}

static int remember(struct nursery *nursery, pid_t pid, int born, const struct request *request) {
    if (nursery->count == nursery->room) {
        uint32_t room = nursery->room ? 2 * nursery->room : 64;
        struct nursery_child *children = realloc(nursery->children, room * sizeof *children);
        if (!children)
            return -ENOMEM;
        nursery->children = children;
        nursery->room = room;
    }
    struct nursery_child *child = &nursery->children[nursery->count++];
    *child = (struct nursery_child){.pid = pid};
    /* The child has read its request when it writes its name here, or it is dead. */
    ssize_t size;
    do
        size = read(born, child->name, sizeof child->name - 1);
    while (size < 0 && errno == EINTR);
    if (size <= 0)
        drop_request(nursery->link, request);
    return 0;
}

/* Returns 1 in the child, 0 in the parent, or -errno. */
static int bear(struct nursery *nursery) {
    int born[2];
    struct request request = look(nursery->link);
    if (pipe2(born, O_CLOEXEC) != 0)
        return -errno;
    pid_t pid = fork();
    if (pid == 0) {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGCHLD);
        sigprocmask(SIG_UNBLOCK, &set, NULL);
        close(born[0]);
        close(nursery->signals);
        nursery->born = born[1];
        return 1;
    }
    int error = errno;
    close(born[1]);
    int result = pid < 0 ? -error : remember(nursery, pid, born[0], &request);
    close(born[0]);
    return result;
}

/* Forks a child for every request until there is something for Python. */
int nursery_serve(struct nursery *nursery) {
    for (;;) {
        struct pollfd fds[] = {
            {.fd = nursery->signals, .events = POLLIN},
            {.fd = nursery->link, .events = POLLIN},
            {.fd = nursery->listener, .events = POLLIN},
        };
        if (poll(fds, 3, -1) < 0)
            continue;
        if (fds[0].revents) {
            struct signalfd_siginfo info;
            while (read(nursery->signals, &info, sizeof info) > 0)
                ;
            return NURSERY_ENDED;
        }
        if (fds[2].revents)
            return NURSERY_CALLER;
        if (!fds[1].revents)
            continue;
        if (!wants_start(nursery->link))
            return NURSERY_MESSAGE;
        int born = bear(nursery);
        if (born == 1)
            return NURSERY_CHILD;
        if (born < 0) {
            nursery->error = -born;
            return NURSERY_NO_FORK;
        }
    }
}

/* In the child, once it has read its request: lets the parent go on. Returns 0 or -errno. */
int nursery_born(struct nursery *nursery, const char *name) {
    ssize_t size = write(nursery->born, name, strnlen(name, NURSERY_NAME - 1));
    close(nursery->born);
    nursery->born = -1;
    return size < 0 ? -errno : 0;
}

/* Takes one ended child out of the table. Returns 1 and fills `ended`, or 0 if there is none. */
int nursery_reap(struct nursery *nursery, struct nursery_child *ended) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        for (uint32_t i = 0; i < nursery->count; i++) {
            if (nursery->children[i].pid != pid)
                continue;
            *ended = nursery->children[i];
            ended->status = status;
            nursery->children[i] = nursery->children[--nursery->count];
            return 1;
        }
    }
    return 0;
}
