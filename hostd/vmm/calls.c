/* calls.c: see calls.h. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/kvm.h>
#include <linux/membarrier.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "guest_abi.h"
#include "calls.h"
#include "rows.h"
#include "run.h"

enum { EVENTS = 64, PAGE = 4096 };
static const uint64_t NS = 1000000000;

static uint64_t clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * NS + (uint64_t)now.tv_nsec;
}

struct guest_calls *calls_new(void) {
    void *got = mmap(NULL, sizeof(struct guest_calls), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return got == MAP_FAILED ? NULL : got;
}

void calls_free(struct guest_calls *calls) {
    munmap(calls, sizeof *calls);
}

/* Registers every bell, and the kick, in a new epoll set. Returns 0, or -errno with nothing left open. */
int calls_open(struct guest_calls *calls, void *page, struct slot_rows *memory, int console_fd, int kick_fd, const int *bells,
               uint32_t count) {
    if (count > CALLS_BELLS)
        return -E2BIG;
    calls->page = page;
    calls->memory = memory;
    calls->console_fd = console_fd;
    calls->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (calls->epoll_fd < 0)
        return -errno;
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = CALLS_KICK};
    int failed = epoll_ctl(calls->epoll_fd, EPOLL_CTL_ADD, kick_fd, &event);
    for (uint32_t i = 0; i < count && !failed; i++) {
        /* Edge-triggered and never read: a bell may have any number of waiters, and each hears every ring. */
        event = (struct epoll_event){.events = EPOLLIN | EPOLLET, .data.u64 = i};
        failed = epoll_ctl(calls->epoll_fd, EPOLL_CTL_ADD, bells[i], &event);
    }
    if (failed) {
        int error = -errno;
        calls_close(calls);
        return error;
    }
    calls->bells = count;
    return 0;
}

void calls_close(struct guest_calls *calls) {
    close(calls->epoll_fd);
    calls->epoll_fd = -1;
}

static int console(struct guest_calls *calls, struct guest_call *page) {
    uint64_t size = page->args[0];
    if (size > GUEST_CALL_DATA)
        return GUEST_EINVAL;
    for (uint64_t done = 0; done < size;) {
        ssize_t written = write(calls->console_fd, page->data + done, size - done);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            break; /* A full disk costs the guest its log, not its life. */
        done += (uint64_t)written;
    }
    calls->console_bytes += size;
    calls->console_left = size < calls->console_left ? calls->console_left - size : 0;
    return GUEST_OK;
}

/* Makes other processes' barriers reach this one's CPUs. Returns 0, or -errno where the kernel has no membarrier. */
int fence_register(void) {
    return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) ? -errno : 0;
}

static int fence(void) {
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0) != 0)
        atomic_thread_fence(memory_order_seq_cst); /* Then the channels are SHM_FENCED, and this is enough. */
    return GUEST_OK;
}

/* Moves what rang into calls->pending. `wait_ns` < 0: no limit. Returns 1 when the vCPU was kicked, else 0. */
static int collect(struct guest_calls *calls, int64_t wait_ns) {
    struct epoll_event events[EVENTS];
    struct timespec limit = {.tv_sec = wait_ns / (int64_t)NS, .tv_nsec = wait_ns % (int64_t)NS};
    int kicked = 0, count;
    do {
        count = (int)syscall(SYS_epoll_pwait2, calls->epoll_fd, events, EVENTS, wait_ns < 0 ? NULL : &limit, NULL, 0);
        if (count < 0)
            return errno == EINTR; /* The stop signal. */
        for (int i = 0; i < count; i++) {
            if (events[i].data.u64 == CALLS_KICK)
                kicked = 1;
            else
                calls->pending[events[i].data.u64 / 64] |= 1ull << (events[i].data.u64 % 64);
        }
        limit = (struct timespec){0};
        wait_ns = 0;
    } while (count == EVENTS);
    return kicked;
}

/* Takes the listed bells out of calls->pending; bit i of the result: bell i of the list rang. */
static uint64_t take(struct guest_calls *calls, const uint32_t *bells, uint64_t count) {
    uint64_t rang = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t *word = &calls->pending[bells[i] / 64], bit = 1ull << (bells[i] % 64);
        if (*word & bit)
            rang |= 1ull << i;
    }
    for (uint64_t i = 0; i < count; i++)
        calls->pending[bells[i] / 64] &= ~(1ull << (bells[i] % 64));
    return rang;
}

/*
 * Checked: the number of bells, each bell's number; the limit is cut to what a signed 64-bit holds. A wait that the host
 * interrupts isn't over: `waiting` is set, and the page says what of the limit is left for calls_go_on.
 */
static int wait_bells(struct guest_calls *calls, struct guest_call *page, int *up) {
    uint64_t limit = page->args[0], count = page->args[1], rang;
    uint32_t bells[GUEST_WAIT_BELLS];
    if (count > GUEST_WAIT_BELLS)
        return GUEST_EINVAL;
    memcpy(bells, page->data, count * sizeof *bells);
    for (uint64_t i = 0; i < count; i++)
        if (bells[i] > calls->bells) /* The one behind the last: calls_plugged. */
            return GUEST_EINVAL;
    uint64_t start = clock_ns(CLOCK_MONOTONIC);
    int no_limit = limit > (uint64_t)INT64_MAX;
    calls->waiting = 0;
    *up = collect(calls, 0); /* A bell that rang in the meantime, without a sleep. */
    while (!(rang = take(calls, bells, count))) {
        uint64_t spent = clock_ns(CLOCK_MONOTONIC) - start;
        if (!no_limit && spent >= limit)
            break;
        if (*up) {
            calls->waiting = 1;
            page->args[0] = no_limit ? limit : limit - spent;
            return GUEST_OK;
        }
        *up = collect(calls, no_limit ? -1 : (int64_t)(limit - spent));
    }
    page->args[0] = rang;
    return GUEST_OK;
}

void calls_plugged(struct guest_calls *calls) {
    calls->pending[calls->bells / 64] |= 1ull << (calls->bells % 64);
}

void calls_go_on(struct guest_calls *calls) {
    int up = 0;
    calls->page->result = wait_bells(calls, calls->page, &up);
}

/* 1 when one of the words differs, 0 when none does, GUEST_EINVAL. Checked: their number; each one's address. */
static int changed(struct guest_calls *calls, const struct guest_call *page) {
    struct guest_look looks[GUEST_WAIT_LOOKS];
    uint64_t count = page->args[2];
    if (count > GUEST_WAIT_LOOKS)
        return GUEST_EINVAL;
    memcpy(looks, page->data + GUEST_LOOKS, count * sizeof *looks);
    int result = 0;
    slot_lock(calls->memory);
    for (uint64_t i = 0; i < count && !result; i++) {
        const uint32_t *word = slot_hva(calls->memory, looks[i].address, sizeof *word, 0);
        if (!word || looks[i].address % sizeof *word)
            result = GUEST_EINVAL;
        else
            result = __atomic_load_n(word, __ATOMIC_ACQUIRE) != looks[i].value;
    }
    slot_unlock(calls->memory);
    return result;
}

/* As the ringers' half of the sleep protocol wants it: first the fence, then the look, then the sleep. */
static int sleep_unless(struct guest_calls *calls, struct guest_call *page, int *up) {
    fence();
    int result = changed(calls, page);
    if (!result)
        return wait_bells(calls, page, up);
    page->args[0] = 0;
    return result < 0 ? result : GUEST_OK;
}

/* The row that holds `address`, if its pages are the guest's to give; *size is cut to its end. Under slot_lock. */
static const struct slot_row *own_row(const struct slot_rows *memory, uint64_t address, uint64_t *size) {
    const struct slot_row *row = slot_find(memory, address);
    if (!row || !row->give)
        return NULL;
    if (*size > row->gpa + row->size - address)
        *size = row->gpa + row->size - address;
    return row;
}

/* Gives the row's own pages that lie in [at, at + size) of it; where they are huge, what is left at the ends stays. */
static int64_t give_pages(const struct slot_row *row, uint64_t at, uint64_t size) {
    uint64_t mask = row->page - 1, start = (at + mask) & ~mask, end = (at + size) & ~mask;
    if (start >= end)
        return 0;
    return madvise(row->hva + (start - row->gpa), end - start, row->give) ? -errno : (int64_t)(end - start);
}

/* Checked: whole pages; each row they lie in. All of them go, or none. */
static int give_back(struct guest_calls *calls, const struct guest_call *page) {
    uint64_t start = page->args[0], size = page->args[1];
    if ((start | size) % PAGE || start + size < start)
        return GUEST_EINVAL;
    int result = GUEST_OK;
    slot_lock(calls->memory);
    for (uint64_t at = start, left; result == GUEST_OK && at < start + size; at += left) {
        left = start + size - at;
        if (!own_row(calls->memory, at, &left))
            result = GUEST_EINVAL;
    }
    for (uint64_t at = start, left; result == GUEST_OK && at < start + size; at += left) {
        left = start + size - at;
        int64_t given = give_pages(own_row(calls->memory, at, &left), at, left);
        if (given < 0)
            result = GUEST_EINVAL;
        else
            calls->given_back += (uint64_t)given;
    }
    slot_unlock(calls->memory);
    return result;
}

/* The exit handler given to the run loop. Checked: direction, width and count of the port access. */
int calls_exit(void *context, struct kvm_run *run) {
    struct guest_calls *calls = context;
    if (run->exit_reason != KVM_EXIT_IO || run->io.port != GUEST_PORT_CALL || run->io.direction != KVM_EXIT_IO_OUT ||
        run->io.size != 4 || run->io.count != 1)
        return VCPU_UP;
    struct guest_call *page = calls->page;
    int up = 0;
    switch (page->number) {
    case GUEST_CALL_EXIT:
    case GUEST_CALL_REPORT:
    case GUEST_CALL_GIVE_UP:
        return VCPU_UP;
    case GUEST_CALL_CONSOLE:
        page->result = console(calls, page);
        up = calls->console_left == 0;
        break;
    case GUEST_CALL_TIME:
        page->args[0] = clock_ns(CLOCK_MONOTONIC);
        page->args[1] = clock_ns(CLOCK_REALTIME);
        page->result = GUEST_OK;
        break;
    case GUEST_CALL_FENCE:
        page->result = fence();
        break;
    case GUEST_CALL_WAIT:
        calls->waits++;
        page->result = wait_bells(calls, page, &up);
        break;
    case GUEST_CALL_SLEEP:
        calls->waits++;
        page->result = sleep_unless(calls, page, &up);
        break;
    case GUEST_CALL_GIVE_BACK:
        page->result = give_back(calls, page);
        break;
    default:
        page->result = GUEST_ENOSYS;
    }
    return up ? VCPU_UP : VCPU_HANDLED;
}
