/* call.h: ioctls on KVM's descriptors that give -errno, and the mapping that a vCPU shares with the kernel. */
#ifndef HOSTD_KVM_CALL_H
#define HOSTD_KVM_CALL_H

#include <stddef.h>
#include <stdint.h>

struct kvm_run;
struct vcpu_loop;

/* ioctl(fd, request, argument), again after EINTR. Returns its result or -errno. */
int kvm_call(int fd, unsigned long request, uintptr_t argument);
int kvm_call_pointer(int fd, unsigned long request, void *argument);

/* Maps the run structure of the vCPU `fd`; NULL with errno set when that fails. */
struct kvm_run *kvm_map_run(int fd, size_t size);
void kvm_unmap_run(struct kvm_run *run, size_t size);

/* Sets the loop's exit handler from addresses (of a vcpu_exit_fn and its context); 0 for none. */
void vcpu_handler(struct vcpu_loop *loop, uintptr_t exit_fn, uintptr_t exit_ctx);

#endif
