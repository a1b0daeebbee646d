/* run.c: see run.h. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "run.h"

#ifndef KVM_EXIT_MEMORY_FAULT
#define KVM_EXIT_MEMORY_FAULT 39
#endif

/* A real-time signal that neither Python nor glibc uses. Its handler does nothing: to interrupt is all it is for. */
static int stop_signal(void) {
    return SIGRTMIN + 6;
}

static void interrupted(int signal) {
    (void)signal;
}

struct vcpu_loop *vcpu_new(void) {
    void *got = mmap(NULL, sizeof(struct vcpu_loop), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return got == MAP_FAILED ? NULL : got;
}

void vcpu_free(struct vcpu_loop *loop) {
    munmap(loop, sizeof *loop);
}

int vcpu_open(struct vcpu_loop *loop, int fd, struct kvm_run *run) {
    *loop = (struct vcpu_loop){.fd = fd, .run = run, .kick_fd = -1};
    /* Without SA_RESTART, so that it ends KVM_RUN and epoll_wait alike. */
    struct sigaction action = {.sa_handler = interrupted};
    if (sigaction(stop_signal(), &action, NULL) != 0)
        return -errno;
    int failed = pthread_mutex_init(&loop->lock, NULL);
    if (failed)
        return -failed;
    loop->kick_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (loop->kick_fd < 0) {
        int error = -errno;
        pthread_mutex_destroy(&loop->lock);
        return error;
    }
    return 0;
}

void vcpu_close(struct vcpu_loop *loop) {
    close(loop->kick_fd);
    loop->kick_fd = -1;
    pthread_mutex_destroy(&loop->lock);
}

int vcpu_stop(struct vcpu_loop *loop) {
    const uint64_t one = 1;
    int error = 0;
    pthread_mutex_lock(&loop->lock);
    __atomic_store_n(&loop->stop, 1, __ATOMIC_SEQ_CST);
    /* KVM_RUN looks at immediate_exit after it has masked signals, so a signal that comes too early is not lost. */
    __atomic_store_n(&loop->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    if (write(loop->kick_fd, &one, sizeof one) != sizeof one && errno != EAGAIN)
        error = -errno;
    if (loop->tid && syscall(SYS_tgkill, getpid(), loop->tid, stop_signal()) != 0)
        error = -errno;
    pthread_mutex_unlock(&loop->lock);
    return error;
}

static void count_exit(struct vcpu_loop *loop) {
    uint32_t reason = loop->run->exit_reason;
    loop->exits++;
    loop->reasons[reason < VCPU_REASONS ? reason : VCPU_REASONS - 1]++;
}

int vcpu_settle(struct vcpu_loop *loop) {
    int result = -EBUSY;
    pthread_mutex_lock(&loop->lock);
    if (loop->tid)
        goto out;
    __atomic_store_n(&loop->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    for (;;) {
        if (ioctl(loop->fd, KVM_RUN, 0) != 0) {
            result = errno == EINTR ? 0 : -errno;
            break;
        }
        count_exit(loop);
        if (!loop->exit_fn || loop->exit_fn(loop->exit_ctx, loop->run) != VCPU_HANDLED) {
            result = VCPU_EXITED;
            break;
        }
        loop->handled++;
    }
    __atomic_store_n(&loop->run->immediate_exit, (uint8_t)loop->stop, __ATOMIC_SEQ_CST);
out:
    pthread_mutex_unlock(&loop->lock);
    return result;
}

static int take_stop(struct vcpu_loop *loop) {
    if (!__atomic_load_n(&loop->stop, __ATOMIC_SEQ_CST))
        return 0;
    uint64_t count;
    pthread_mutex_lock(&loop->lock);
    __atomic_store_n(&loop->stop, 0, __ATOMIC_SEQ_CST);
    __atomic_store_n(&loop->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
    ssize_t drained = read(loop->kick_fd, &count, sizeof count);
    (void)drained; /* Empty is as good. */
    pthread_mutex_unlock(&loop->lock);
    return 1;
}

static int goes_up(const struct vcpu_loop *loop) {
    return loop->up_port && loop->run->exit_reason == KVM_EXIT_IO && loop->run->io.port == loop->up_port;
}

static int run_on(struct vcpu_loop *loop) {
    for (;;) {
        if (take_stop(loop))
            return VCPU_STOPPED;
        int failed = ioctl(loop->fd, KVM_RUN, 0) != 0;
        count_exit(loop);
        if (failed) {
            if (errno == EAGAIN)
                continue;
            if (errno == EINTR) {
                if (take_stop(loop))
                    return VCPU_STOPPED;
                return VCPU_SIGNALLED;
            }
            /* The kernel says more about a page that it could not get (KVM_CAP_MEMORY_FAULT_INFO). */
            if ((errno == EFAULT || errno == EHWPOISON) && loop->run->exit_reason == KVM_EXIT_MEMORY_FAULT)
                return VCPU_EXITED;
            return -errno;
        }
        if (goes_up(loop) || !loop->exit_fn || loop->exit_fn(loop->exit_ctx, loop->run) != VCPU_HANDLED)
            return VCPU_EXITED;
        loop->handled++;
    }
}

int vcpu_loop(struct vcpu_loop *loop) {
    pthread_mutex_lock(&loop->lock);
    if (loop->tid) {
        pthread_mutex_unlock(&loop->lock);
        return -EBUSY;
    }
    loop->tid = (pid_t)syscall(SYS_gettid);
    pthread_mutex_unlock(&loop->lock);
    int result = run_on(loop);
    pthread_mutex_lock(&loop->lock);
    loop->tid = 0;
    pthread_mutex_unlock(&loop->lock);
    return result;
}
