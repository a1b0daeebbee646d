/*
 * calls.h: the calls of a unikernel guest, served in the vCPU's thread without the GIL.
 *
 * Needs guest_abi.h before it. The call page lies in the guest's own memory, which only its one vCPU writes, and that
 * vCPU stands still here; every field is read once and bounded all the same.
 */
#ifndef HOSTD_CALLS_H
#define HOSTD_CALLS_H

#define CALLS_KICK 0xffffffff          /* epoll mark of the eventfd that interrupts a wait */
#define CALLS_BELLS 4096               /* most bells of one guest */

struct guest_calls {
    struct guest_call *page;           /* where the call page is mapped here */
    struct slot_rows *memory;          /* the guest's, for words that it wants looked at */
    int epoll_fd;                      /* holds every bell (edge-triggered, mark = its number) and the kick */
    int console_fd;
    uint32_t bells;
    uint64_t console_left;             /* bytes until Python is asked to rotate the log */
    int waiting;                       /* in a wait that the host has interrupted; the guest must not run */
    uint64_t waits;                    /* counters, for `inspect` */
    uint64_t console_bytes;
    uint64_t given_back;               /* bytes */
    uint64_t pending[CALLS_BELLS / 64 + 1]; /* bells that rang and were not waited for yet */
};

struct kvm_run;
struct slot_rows;

/* Room for the calls of a guest, zeroed, in a mapping of its own (heap.h), and its end. NULL where there is no memory. */
struct guest_calls *calls_new(void);
void calls_free(struct guest_calls *calls);

int calls_open(struct guest_calls *calls, void *page, struct slot_rows *memory, int console_fd, int kick_fd, const int *bells,
               uint32_t count);
void calls_close(struct guest_calls *calls);
int calls_exit(void *context, struct kvm_run *run);
/* Goes on with the wait that was interrupted, in the vCPU's thread; `waiting` again: it was interrupted again. */
void calls_go_on(struct guest_calls *calls);
/* Rings the bell behind the last: something was plugged. The vCPU must stand still. */
void calls_plugged(struct guest_calls *calls);
int fence_register(void);

#endif
