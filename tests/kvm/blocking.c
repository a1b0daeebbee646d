/* An exit handler that waits, as a unikernel's wait call does. */
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>

struct kvm_run;

struct blocking {
    int kick_fd;
    atomic_int waiting; /* how often the handler went to sleep */
};

int blocking_exit(void *context, struct kvm_run *run) {
    struct blocking *blocking = context;
    struct pollfd kick = {.fd = blocking->kick_fd, .events = POLLIN};
    (void)run;
    blocking->waiting++;
    /* 1: up, as soon as there is a kick or a signal. 0: never, for the limit is longer than the test's. */
    return poll(&kick, 1, 60000) != 0;
}

int counting_exit(void *context, struct kvm_run *run) {
    (void)run;
    return ++*(int *)context % 100 == 0; /* every hundredth exit goes up */
}
