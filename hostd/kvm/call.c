/* call.c: see call.h. */
#include <errno.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "call.h"
#include "run.h"

int kvm_call(int fd, unsigned long request, uintptr_t argument) {
    int result;
    do
        result = ioctl(fd, request, argument);
    while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : result;
}

int kvm_call_pointer(int fd, unsigned long request, void *argument) {
    return kvm_call(fd, request, (uintptr_t)argument);
}

struct kvm_run *kvm_map_run(int fd, size_t size) {
    void *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return run == MAP_FAILED ? NULL : run;
}

void kvm_unmap_run(struct kvm_run *run, size_t size) {
    munmap(run, size);
}

void vcpu_handler(struct vcpu_loop *loop, uintptr_t exit_fn, uintptr_t exit_ctx) {
    loop->exit_fn = (vcpu_exit_fn)exit_fn;
    loop->exit_ctx = (void *)exit_ctx;
}
