from typing import Any

class Regs:
    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rsp: int
    rbp: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int
    rflags: int

class Segment:
    base: int
    limit: int
    selector: int
    type: int
    present: int
    dpl: int
    db: int
    s: int
    l: int
    g: int
    avl: int
    unusable: int

class DescriptorTable:
    base: int
    limit: int

class Sregs:
    cs: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: DescriptorTable
    idt: DescriptorTable
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int
    interrupt_bitmap: list[int]

class Fpu:
    fcw: int
    fsw: int
    ftwx: int
    last_opcode: int
    last_ip: int
    last_dp: int
    mxcsr: int
    fpr: Any
    xmm: Any

class _Lib:
    KVM_MEM_READONLY: int
    KVM_IOEVENTFD_FLAG_DATAMATCH: int
    KVM_IOEVENTFD_FLAG_PIO: int
    KVM_IOEVENTFD_FLAG_DEASSIGN: int
    KVM_IRQFD_FLAG_DEASSIGN: int
    KVM_IRQFD_FLAG_RESAMPLE: int
    KVM_IRQ_ROUTING_IRQCHIP: int
    KVM_IRQ_ROUTING_MSI: int
    KVM_IRQCHIP_PIC_MASTER: int
    KVM_IRQCHIP_PIC_SLAVE: int
    KVM_IRQCHIP_IOAPIC: int
    KVM_GUESTDBG_ENABLE: int
    KVM_GUESTDBG_SINGLESTEP: int
    KVM_CLOCK_REALTIME: int
    KVM_GUESTDBG_USE_SW_BP: int
    KVM_GUESTDBG_USE_HW_BP: int
    KVM_GUESTDBG_INJECT_DB: int
    KVM_GUESTDBG_INJECT_BP: int
    KVM_GUESTDBG_BLOCKIRQ: int
    KVM_INTERNAL_ERROR_EMULATION: int
    VCPU_EXITED: int
    VCPU_STOPPED: int
    VCPU_SIGNALLED: int

    def vcpu_new(self) -> Any: ...
    def vcpu_free(self, loop: Any, /) -> None: ...
    def vcpu_open(self, loop: Any, fd: int, run: Any, /) -> int: ...
    def vcpu_close(self, loop: Any, /) -> None: ...
    def vcpu_loop(self, loop: Any, /) -> int: ...
    def vcpu_stop(self, loop: Any, /) -> int: ...
    def vcpu_settle(self, loop: Any, /) -> int: ...
    def vcpu_handler(self, loop: Any, exit_fn: int, exit_ctx: int, /) -> None: ...
    def vcpu_exit(self, run: Any, out: Any, /) -> None: ...
    def kvm_call(self, fd: int, request: int, argument: int, /) -> int: ...
    def kvm_call_pointer(self, fd: int, request: int, argument: Any, /) -> int: ...
    def kvm_map_run(self, fd: int, size: int, /) -> Any: ...
    def kvm_unmap_run(self, run: Any, size: int, /) -> None: ...

class _Ffi:
    errno: int
    def new(self, cdecl: str, init: Any = ...) -> Any: ...
    def gc(self, cdata: Any, destructor: Any) -> Any: ...
    def cast(self, cdecl: str, value: Any) -> Any: ...
    def addressof(self, owner: Any, name: str = ...) -> Any: ...
    def buffer(self, cdata: Any, size: int = ...) -> Any: ...
    def sizeof(self, cdecl: Any) -> int: ...

lib: _Lib
ffi: _Ffi
