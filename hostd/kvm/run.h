/*
 * run.h: the run loop of one vCPU. A higher layer plugs in a handler for the exits it serves in C; the rest go up.
 */
#ifndef HOSTD_KVM_RUN_H
#define HOSTD_KVM_RUN_H

#include <pthread.h>
#include <stdint.h>
#include <sys/types.h>

struct kvm_run;

/* What an exit handler returns: the exit is served, run on; or hand it up to Python. */
#define VCPU_HANDLED 0
#define VCPU_UP 1

/* What vcpu_loop returns besides -errno. */
#define VCPU_EXITED 1      /* run->exit_reason is for the caller */
#define VCPU_STOPPED 2     /* vcpu_stop was called; taken back by this return */
#define VCPU_SIGNALLED 3   /* some other signal came: let the interpreter look at it, then call again */

/*
 * Runs in the vCPU's thread. A handler that blocks must watch loop.kick_fd (level-triggered, never read it) and return
 * VCPU_UP once it is readable or a system call gave EINTR.
 */
typedef int (*vcpu_exit_fn)(void *ctx, struct kvm_run *run);

#define VCPU_REASONS 48

struct vcpu_loop {
    int fd;                /* the vCPU */
    int kick_fd;           /* eventfd, readable from vcpu_stop until the loop has returned VCPU_STOPPED */
    struct kvm_run *run;
    vcpu_exit_fn exit_fn;  /* may be NULL */
    void *exit_ctx;
    uint32_t up_port;      /* what the guest writes there is for the caller, not for exit_fn; 0: none */
    int stop;              /* atomic; written under `lock` */
    pid_t tid;             /* the thread inside vcpu_loop, 0 if none; under `lock` */
    pthread_mutex_t lock;
    uint64_t exits;        /* every return of KVM_RUN */
    uint64_t handled;      /* those that exit_fn served */
    uint64_t reasons[VCPU_REASONS]; /* by KVM_EXIT_*; the last one: all from there on */
};

/*
 * Room for a loop, zeroed, in a mapping of its own, and its end: the vCPU's thread writes there while others may move what
 * else the process holds (hostd/vmm/heap.h). NULL where there is no memory.
 */
struct vcpu_loop *vcpu_new(void);
void vcpu_free(struct vcpu_loop *loop);

/* Prepares `loop` for the vCPU `fd` with its mapped `run`. Returns 0 or -errno. */
int vcpu_open(struct vcpu_loop *loop, int fd, struct kvm_run *run);

/* Gives back what vcpu_open took; the loop must not be running. */
void vcpu_close(struct vcpu_loop *loop);

/* Runs the vCPU until there is something for the caller: VCPU_EXITED, VCPU_STOPPED, VCPU_SIGNALLED or -errno. */
int vcpu_loop(struct vcpu_loop *loop);

/*
 * Makes the running loop, or the next one, return VCPU_STOPPED; from any thread, at any moment. Returns 0 or -errno.
 * Stops do not add up: two before the loop returns are one.
 */
int vcpu_stop(struct vcpu_loop *loop);

/*
 * Ends what the last exit began, without running the guest: a port's or a device's access that user space has served is not
 * in the registers before KVM_RUN is called again. The loop must not be running. Returns 0; VCPU_EXITED, when the access goes
 * on with an exit that the handler does not serve; or -errno.
 */
int vcpu_settle(struct vcpu_loop *loop);

#endif
