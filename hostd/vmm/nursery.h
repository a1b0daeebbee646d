/*
 * nursery.h: the warm parent's loop, in C so that it writes to none of the interpreter's pages between two forks.
 *
 * A page that the parent writes after a fork is no longer shared with the guest it forked: the guest keeps the old one alone.
 * So a request to start a guest is not even read by the parent: the child does that.
 */
#ifndef HOSTD_NURSERY_H
#define HOSTD_NURSERY_H

#include <stdint.h>
#include <sys/types.h>

/* What nursery_serve returns. */
#define NURSERY_CHILD 0     /* in the new process: the request is the next message on the link; then call nursery_born */
#define NURSERY_MESSAGE 1   /* a message that is no request to start, or the end of the link */
#define NURSERY_CALLER 2    /* somebody connects to the listener */
#define NURSERY_ENDED 3     /* a child ended: nursery_reap tells which */
#define NURSERY_NO_FORK 4   /* a request to start, but fork failed with `error` */

#define NURSERY_NAME 64

struct nursery_child {
    pid_t pid;
    int status;             /* as waitpid gives it */
    char name[NURSERY_NAME];
};

struct nursery {
    int link;               /* to the supervisor, SOCK_SEQPACKET; -1: none */
    int listener;           /* where the next supervisor connects; -1: none */
    int signals;            /* signalfd of SIGCHLD */
    int born;               /* in a child: the pipe that frees its parent to go on */
    int error;
    uint32_t count, room;
    struct nursery_child *children;
};

int nursery_open(struct nursery *nursery, int link);
int nursery_serve(struct nursery *nursery);
int nursery_born(struct nursery *nursery, const char *name);
int nursery_reap(struct nursery *nursery, struct nursery_child *ended);

#endif
