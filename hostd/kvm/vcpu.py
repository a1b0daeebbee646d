"""One virtual CPU: its registers, and running it."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Any, NoReturn

from hostd.kvm.call import call, call_with, ffi, lib
from hostd.kvm.errors import KvmError
from hostd.kvm.exits import REASONS, Exit, Interrupted, Io, Mmio, of_reason
from hostd.kvm.stats import read_stats

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hostd.kvm._kvm import Fpu, Regs, Sregs

EXIT_IO, EXIT_MMIO = 2, 6
EHWPOISON = 133
PAGE_HINT = (
    "the host could not provide a page of the guest's memory (was a mapped file cut, is its disk full? are huge pages "
    "that it gave back taken?)"
)


class Vcpu:
    """A vCPU. Its registers are read and written while it does not run; a context manager.

    `regs`, `sregs` and `fpu` are copies: change one, then assign it back.
    """

    def __init__(self, fd: int, run_size: int) -> None:
        self.fd = fd
        self._stats_fd = -1
        self._run_size = run_size
        self._loop = ffi.gc(lib.vcpu_new() or _no_memory(fd), lib.vcpu_free)
        self._exit = ffi.new("struct vcpu_exit *")
        self._run = lib.kvm_map_run(fd, run_size)
        if not self._run:
            error = ffi.errno
            os.close(fd)
            self.fd = -1
            raise KvmError("mmap", error, {"size": run_size, "vcpu": fd})
        failed = lib.vcpu_open(self._loop, fd, self._run)
        if failed:
            lib.kvm_unmap_run(self._run, run_size)
            os.close(fd)
            self.fd = -1
            raise KvmError("eventfd", -failed, {"vcpu": fd})
        # Now: once it runs, KVM would have who asks wait until it leaves KVM_RUN, which Linux' may never do.
        with contextlib.suppress(KvmError):  # Since Linux 5.14.
            self._stats_fd = self._open_stats()

    def close(self) -> None:
        """Give the vCPU back; it must not be running. The VM keeps it until it dies itself."""
        if self._stats_fd >= 0:
            os.close(self._stats_fd)
            self._stats_fd = -1
        if self.fd >= 0:
            lib.vcpu_close(self._loop)
            lib.kvm_unmap_run(self._run, self._run_size)
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Vcpu:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    # --- running --------------------------------------------------------------------------------------------

    @property
    def kick_fd(self) -> int:
        """An eventfd, readable while a stop waits to be taken; an exit handler that blocks must watch it."""
        return int(self._loop.kick_fd)

    def on_exit(self, function: int, context: int = 0) -> None:
        """Have exits go first to the `vcpu_exit_fn` (run.h) at address `function`; 0 for none."""
        lib.vcpu_handler(self._loop, function, context)

    def pass_up(self, port: int) -> None:
        """Have exits at `port` come out of `run`, whatever the exit handler would do; 0: none do."""
        self._loop.up_port = port

    def run(self) -> Exit:
        """Run the guest, without the GIL, until something happens that the exit handler does not serve.

        Raises KvmError when KVM_RUN fails (EFAULT: the host could not provide a page of the guest's memory).
        """
        if self.fd < 0:
            raise KvmError("KVM_RUN", errno.EBADF, {"vcpu": self.fd}, "the vCPU is closed")
        while True:
            result = lib.vcpu_loop(self._loop)
            if result == lib.VCPU_STOPPED:
                return Interrupted()
            if result == lib.VCPU_EXITED:
                return self._exited()
            if result != lib.VCPU_SIGNALLED:  # Otherwise the interpreter runs its signal handlers on the way.
                hint = PAGE_HINT if -result in (errno.EFAULT, EHWPOISON) else ""
                raise KvmError("KVM_RUN", -result, {"vcpu": self.fd}, hint)

    def stop(self) -> None:
        """Make `run` return Interrupted: now if it runs, else the next time.

        From any thread, at any moment but that of `close`.
        """
        if self.fd < 0:
            return
        failed = lib.vcpu_stop(self._loop)
        if failed:
            raise KvmError("tgkill", -failed, {"vcpu": self.fd})

    def settle(self) -> Exit | None:
        """Have the registers say what the last exit did, without running the guest; from any thread, when it stands.

        A port's or a device's access is complete only when KVM is entered again. Returns an exit where that led to one
        that the exit handler does not serve. Raises KvmError.
        """
        result = lib.vcpu_settle(self._loop)
        if result < 0:
            raise KvmError("KVM_RUN", -result, {"vcpu": self.fd})
        return self._exited() if result == lib.VCPU_EXITED else None

    @property
    def stopping(self) -> bool:
        """Whether a stop waits to be taken: the next `run` returns Interrupted."""
        return bool(self._loop.stop)

    def _exited(self) -> Exit:
        flat = self._exit
        lib.vcpu_exit(self._run, flat)
        if flat.reason in (EXIT_IO, EXIT_MMIO):
            written = bytes(ffi.buffer(flat.data, flat.size * flat.count)) if flat.is_write else b""
            if flat.reason == EXIT_IO:
                return Io(flat.address, bool(flat.is_write), flat.size, flat.count, written)
            return Mmio(flat.address, bool(flat.is_write), flat.size, written)
        return of_reason(flat.reason, flat.address, tuple(flat.word[0 : flat.words]))

    def reply(self, data: bytes) -> None:
        """Give the guest what it reads in the Io or Mmio exit that `run` just returned.

        Raises ValueError unless `data` is as long as what it asked for.
        """
        flat = self._exit
        lib.vcpu_exit(self._run, flat)
        wanted = flat.size * flat.count
        if flat.reason not in (EXIT_IO, EXIT_MMIO) or flat.is_write or len(data) != wanted:
            raise ValueError(f"a reply of {len(data)} bytes to an exit that asks for {0 if flat.is_write else wanted}")
        ffi.buffer(flat.data, wanted)[:] = data

    @property
    def counters(self) -> dict[str, int]:
        """How often KVM_RUN returned (`exits`), and how many of them the exit handler served (`handled`)."""
        return {"exits": self._loop.exits, "handled": self._loop.handled}

    @property
    def exit_reasons(self) -> dict[str, int]:
        """How often KVM_RUN returned, by why (KVM_EXIT_*, in small letters); only what has happened."""
        counted = [(REASONS[n] if n < len(REASONS) else "other", count) for n, count in enumerate(self._loop.reasons)]
        return {name: count for name, count in counted if count}

    # --- registers ------------------------------------------------------------------------------------------

    def _get(self, structure: str, name: str) -> Any:
        value = ffi.new(f"struct {structure} *")
        call_with(self.fd, name, value, {"vcpu": self.fd})
        return value

    @property
    def regs(self) -> Regs:
        """General registers, RIP and RFLAGS (struct kvm_regs)."""
        value: Regs = self._get("kvm_regs", "KVM_GET_REGS")
        return value

    @regs.setter
    def regs(self, value: Regs) -> None:
        about: dict[str, int | str] = {"rip": value.rip, "rsp": value.rsp, "rflags": value.rflags}
        call_with(self.fd, "KVM_SET_REGS", value, about)

    @property
    def sregs(self) -> Sregs:
        """Segments, descriptor tables, control registers, EFER (struct kvm_sregs)."""
        value: Sregs = self._get("kvm_sregs", "KVM_GET_SREGS")
        return value

    @sregs.setter
    def sregs(self, value: Sregs) -> None:
        about: dict[str, int | str] = {
            "cr0": value.cr0,
            "cr3": value.cr3,
            "cr4": value.cr4,
            "efer": value.efer,
            "cs": value.cs.selector,
        }
        call_with(self.fd, "KVM_SET_SREGS", value, about)

    @property
    def fpu(self) -> Fpu:
        """x87 and SSE state (struct kvm_fpu); KVM leaves MXCSR as it is when this is assigned."""
        value: Fpu = self._get("kvm_fpu", "KVM_GET_FPU")
        return value

    @fpu.setter
    def fpu(self, value: Fpu) -> None:
        call_with(self.fd, "KVM_SET_FPU", value, {"vcpu": self.fd})

    def set_cpuid(self, cpuid: Any) -> None:
        """Give the guest the CPUID entries of a `struct kvm_cpuid2 *`, such as `System.supported_cpuid`."""
        call_with(self.fd, "KVM_SET_CPUID2", cpuid, {"entries": cpuid.nent})

    @property
    def xcrs(self) -> dict[int, int]:
        """Extended control registers by number; XCR0 says which states XSAVE knows."""
        value = self._get("kvm_xcrs", "KVM_GET_XCRS")
        return {value.xcrs[i].xcr: value.xcrs[i].value for i in range(value.nr_xcrs)}

    @xcrs.setter
    def xcrs(self, values: Mapping[int, int]) -> None:
        entries = [{"xcr": number, "value": value} for number, value in values.items()]
        request = ffi.new("struct kvm_xcrs *", {"nr_xcrs": len(entries), "xcrs": entries})
        call_with(self.fd, "KVM_SET_XCRS", request, {f"xcr{number}": value for number, value in values.items()})

    def get_msrs(self, *indices: int) -> dict[int, int]:
        """Return model-specific registers by index.

        Raises KvmError naming the first that KVM does not know.
        """
        request = self._msrs([(index, 0) for index in indices])
        self._all_done("KVM_GET_MSRS", request, indices)
        return {entry.index: entry.data for entry in request.entries[0 : len(indices)]}

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """Set model-specific registers by index. Raises KvmError naming the first that KVM does not take."""
        request = self._msrs(list(values.items()))
        self._all_done("KVM_SET_MSRS", request, tuple(values))

    def _msrs(self, values: list[tuple[int, int]]) -> Any:
        entries = [{"index": index, "data": data} for index, data in values]
        return ffi.new("struct kvm_msrs *", {"nmsrs": len(entries), "entries": entries})

    def _all_done(self, name: str, request: Any, indices: tuple[int, ...]) -> None:
        done = call_with(self.fd, name, request, {"count": len(indices)})
        if done < len(indices):
            raise KvmError(name, 22, {"msr": indices[done]})

    @property
    def mp_state(self) -> int:
        """0 runnable, 1 not started, 2 INIT received, 3 halted, 4 SIPI received (needs an irqchip)."""
        state: int = self._get("kvm_mp_state", "KVM_GET_MP_STATE").mp_state
        return state

    @mp_state.setter
    def mp_state(self, value: int) -> None:
        call_with(self.fd, "KVM_SET_MP_STATE", ffi.new("struct kvm_mp_state *", (value,)), {"mp_state": value})

    def single_step(self, on: bool) -> None:
        """Have every instruction end with a Debug exit. Raises KvmError."""
        self.debug(lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_SINGLESTEP if on else 0)

    def debug(self, control: int, registers: Sequence[int] = ()) -> None:
        """Say what ends with a Debug exit: KVM_GUESTDBG_* flags, and what DR0 to DR7 hold for KVM_GUESTDBG_USE_HW_BP.

        0: nothing. Raises KvmError.
        """
        request = ffi.new("struct kvm_guest_debug *", {"control": control})
        request.arch.debugreg = list(registers) or [0] * 8
        call_with(self.fd, "KVM_SET_GUEST_DEBUG", request, {"vcpu": self.fd, "control": control})

    @property
    def tsc_khz(self) -> int:
        """How fast the guest's time-stamp counter runs, in kHz."""
        return call(self.fd, "KVM_GET_TSC_KHZ", 0, {"vcpu": self.fd})

    def stats(self) -> dict[str, int | list[int]]:
        """Return KVM's statistics of this vCPU by name, whether it runs or not. Raises KvmError, OSError."""
        return read_stats(self._stats_fd if self._stats_fd >= 0 else self._open_stats())

    def _open_stats(self) -> int:
        return call(self.fd, "KVM_GET_STATS_FD", 0, {"vcpu": self.fd})


def _no_memory(fd: int) -> NoReturn:
    os.close(fd)
    raise KvmError("mmap", errno.ENOMEM, {"vcpu": fd})
