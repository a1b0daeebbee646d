/* faults.c: memory that a peer may take away (switch.h, fault_guard). */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

#include "switch.h"

enum { GUARDS = 8192, PAGE = 4096, HUGE_PAGE = 2 << 20 };

struct guard {
    uintptr_t start;        /* 0: free; written last when taken, first when given back */
    uint64_t size;
    uint32_t *lost;
};

/* Written under the lock, read by the signal's handler at any moment. */
static struct guard guards[GUARDS];
static uint32_t used;       /* guards from here on were never taken */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int installed;
static struct sigaction before;

/* Puts zeros in the place of the page, of `size` bytes, that `at` lies in: 1, or 0 if it has another size. */
static int replace_page(uintptr_t at, uint64_t size) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
    return mmap((void *)(at & ~(size - 1)), size, PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED;
}

/* Tells those who guard the address, and puts zeros there; the access is then done again. */
static void on_bus_error(int number, siginfo_t *info, void *context) {
    uintptr_t at = (uintptr_t)info->si_addr;
    uint32_t count = __atomic_load_n(&used, __ATOMIC_ACQUIRE);
    int saved = errno, guarded = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct guard *guard = &guards[i];
        uintptr_t start = __atomic_load_n(&guard->start, __ATOMIC_ACQUIRE);
        if (!start || at < start || at - start >= guard->size)
            continue;
        __atomic_store_n(guard->lost, 1, __ATOMIC_RELEASE);
        guarded = 1;
    }
    /* Of a huge page the kernel replaces no part. */
    if (guarded && (replace_page(at, PAGE) || replace_page(at, HUGE_PAGE))) {
        errno = saved;
        return;
    }
    /* Not ours: whoever was there before, or the end. */
    if (before.sa_flags & SA_SIGINFO && before.sa_sigaction)
        before.sa_sigaction(number, info, context);
    else
        signal(SIGBUS, SIG_DFL);
    errno = saved;
}

static int install(void) {
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};
    sigemptyset(&action.sa_mask);
    if (!installed && sigaction(SIGBUS, &action, &before))
        return -errno;
    installed = 1;
    return 0;
}

int fault_guard(void *start, uint64_t size, uint32_t *lost) {
    pthread_mutex_lock(&lock);
    int failed = install();
    uint32_t i = 0;
    while (!failed && i < used && guards[i].start)
        i++;
    if (!failed && i == GUARDS)
        failed = -ENOSPC;
    if (!failed) {
        guards[i].size = size;
        guards[i].lost = lost;
        __atomic_store_n(&guards[i].start, (uintptr_t)start, __ATOMIC_RELEASE);
        if (i == used)
            __atomic_store_n(&used, used + 1, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&lock);
    return failed;
}

void fault_unguard(void *start) {
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < used; i++)
        if (guards[i].start == (uintptr_t)start) {
            __atomic_store_n(&guards[i].start, 0, __ATOMIC_RELEASE);
            break;
        }
    pthread_mutex_unlock(&lock);
}
