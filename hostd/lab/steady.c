/*
 * steady: keeps the lab's kernel from patching its own code while virtual machines run.
 *
 * KVM and the scheduler have static keys: jumps that are rewritten when the first machine of a kind comes and when the last
 * one goes (preempt_notifier_key, kvm_has_noapic_vcpu, apic_hw_disabled, apic_sw_disabled). QEMU before 8.1 emulates code that
 * another CPU rewrites while it is being translated as it was, for good: the kernel stops at a breakpoint that is long gone,
 * or takes half a jump and panics. So one machine of each kind is kept from the lab's beginning to its end: no key changes.
 *
 * The machines have no memory and never run. Exits with 0 when they are there, and leaves a child that holds them.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int check(int result, const char *what) {
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return result;
}

static int machine(int kvm) {
    return check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
}

static int processor(int vm) {
    return check(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
}

int main(void) {
    int kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
    processor(machine(kvm)); /* Without a local APIC. */

    int vm = machine(kvm);
    check(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
    int vcpu = processor(vm); /* Its APIC is off in software, as after reset. */
    struct kvm_sregs registers;
    check(ioctl(vcpu, KVM_GET_SREGS, &registers), "KVM_GET_SREGS");
    registers.apic_base &= ~(1ull << 11); /* And this in hardware. */
    check(ioctl(vcpu, KVM_SET_SREGS, &registers), "KVM_SET_SREGS");

    if (check(fork(), "fork"))
        return 0;
    setsid();
    for (;;)
        pause();
}
