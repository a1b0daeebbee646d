"""A vCPU's registers as gdb numbers them, and the target description that says so.

The features' names and registers: "Debugging with GDB", appendix "Target Descriptions", section "i386 Features". Behind
them stands one of hostd's own: the control registers. The x87, SSE and AVX state: AMD64 Architecture Programmer's
Manual, volume 2, section 11.5 (XSAVE, standard format).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hostd.kvm.call import call_with, ffi

if TYPE_CHECKING:
    from hostd.kvm import Vcpu

GENERAL = "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15".split()
SELECTORS = "cs ss ds es fs gs".split()
X87 = "fctrl fstat ftag fiseg fioff foseg fooff fop".split()
CONTROL = "cr0 cr2 cr3 cr4 cr8 efer".split()
KERNEL_GS_BASE = 0xC000_0102
XSAVE_SIZE = 4096
"""bytes of struct kvm_xsave"""
ST, XMM, YMM_HIGH = 32, 160, 576
"""offsets of the registers in it, 16 bytes each; CPUID leaf 13 gives the last one, and every CPU gives this"""
XSTATE = 512
"""offset of the bits that say which parts are not as after reset: 0 x87, 1 SSE, 2 AVX"""
MXCSR = 24

TYPES = """
  <flags id="i386_eflags" size="4">
    <field name="CF" start="0" end="0"/><field name="" start="1" end="1"/><field name="PF" start="2" end="2"/>
    <field name="AF" start="4" end="4"/><field name="ZF" start="6" end="6"/><field name="SF" start="7" end="7"/>
    <field name="TF" start="8" end="8"/><field name="IF" start="9" end="9"/><field name="DF" start="10" end="10"/>
    <field name="OF" start="11" end="11"/><field name="NT" start="14" end="14"/><field name="RF" start="16" end="16"/>
    <field name="VM" start="17" end="17"/><field name="AC" start="18" end="18"/><field name="VIF" start="19" end="19"/>
    <field name="VIP" start="20" end="20"/><field name="ID" start="21" end="21"/>
  </flags>"""
VECTOR_TYPES = """
  <vector id="v4f" type="ieee_single" count="4"/><vector id="v2d" type="ieee_double" count="2"/>
  <vector id="v16i8" type="int8" count="16"/><vector id="v8i16" type="int16" count="8"/>
  <vector id="v4i32" type="int32" count="4"/><vector id="v2i64" type="int64" count="2"/>
  <union id="vec128">
    <field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/><field name="v16_int8" type="v16i8"/>
    <field name="v8_int16" type="v8i16"/><field name="v4_int32" type="v4i32"/><field name="v2_int64" type="v2i64"/>
    <field name="uint128" type="uint128"/>
  </union>
  <flags id="i386_mxcsr" size="4">
    <field name="IE" start="0" end="0"/><field name="DE" start="1" end="1"/><field name="ZE" start="2" end="2"/>
    <field name="OE" start="3" end="3"/><field name="UE" start="4" end="4"/><field name="PE" start="5" end="5"/>
    <field name="DAZ" start="6" end="6"/><field name="IM" start="7" end="7"/><field name="DM" start="8" end="8"/>
    <field name="ZM" start="9" end="9"/><field name="OM" start="10" end="10"/><field name="UM" start="11" end="11"/>
    <field name="PM" start="12" end="12"/><field name="FZ" start="15" end="15"/>
  </flags>"""


class Registers:
    """The registers of one vCPU that stands still: read when they are asked for, written by `store`."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        self._parts: dict[str, Any] = {}
        self._changed: set[str] = set()

    def part(self, name: str) -> Any:
        """Return "regs", "sregs", or "xsave": a bytearray."""
        if name not in self._parts:
            self._parts[name] = self._xsave() if name == "xsave" else getattr(self._vcpu, name)
        return self._parts[name]

    def _xsave(self) -> bytearray:
        area = ffi.new("uint8_t[]", XSAVE_SIZE)
        call_with(self._vcpu.fd, "KVM_GET_XSAVE", area)
        return bytearray(ffi.buffer(area))

    def read(self, number: int) -> bytes | None:
        """Return a register by gdb's number, in the guest's byte order; None: KVM doesn't tell it.

        Raises ValueError: there is none.
        """
        register = _numbered(number)
        try:
            return register.get(self).to_bytes(register.bits // 8, "little")
        except OSError:
            return None

    def write(self, number: int, data: bytes) -> None:
        """Set a register; `store` makes it so. Raises ValueError: there is none, a wrong size, or it can't be set."""
        register = _numbered(number)
        if len(data) * 8 != register.bits:
            raise ValueError(f"{register.name} has {register.bits // 8} bytes")
        value = int.from_bytes(data, "little")
        if register.set is not None:
            register.set(self, value)
            self._changed.add(register.part)
        elif value != register.get(self):
            raise ValueError(f"{register.name} cannot be set")

    def store(self) -> None:
        """Give the vCPU what was written. Raises KvmError."""
        while self._changed:
            part = self._changed.pop()
            value = self._parts.pop(part)
            if part == "xsave":
                area = ffi.new("uint8_t[]", XSAVE_SIZE)
                ffi.buffer(area)[:] = value
                call_with(self._vcpu.fd, "KVM_SET_XSAVE", area)
            else:
                setattr(self._vcpu, part, value)

    @property
    def kernel_gs_base(self) -> int:
        return self._vcpu.get_msrs(KERNEL_GS_BASE)[KERNEL_GS_BASE]

    def read_all(self) -> list[bytes | None]:
        return [self.read(number) for number in range(len(REGISTERS))]

    def write_all(self, data: bytes) -> None:
        """Set registers from the data of a G packet, which may end with any of them. Raises ValueError."""
        at = 0
        for number, register in enumerate(REGISTERS):
            size = register.bits // 8
            if at + size > len(data):
                break
            self.write(number, data[at : at + size])
            at += size


@dataclass(frozen=True, slots=True)
class Register:
    """One register: its name and type for gdb, and how it is read and set; `set` None: only to what it is."""

    name: str
    bits: int
    type: str
    feature: str
    part: str
    get: Callable[[Registers], int]
    set: Callable[[Registers, int], None] | None = None
    group: str = ""


def _field(part: str, *names: str) -> tuple[Callable[[Registers], int], Callable[[Registers, int], None]]:
    """Return how the field `names` of `part` (a field of a field, ...) is read and set."""
    *outer, last = names

    def owner(registers: Registers) -> Any:
        value = registers.part(part)
        for name in outer:
            value = getattr(value, name)
        return value

    return lambda r: int(getattr(owner(r), last)), lambda r, value: setattr(owner(r), last, value)


def _slice(offset: int, size: int, state: int) -> tuple[Callable[[Registers], int], Callable[[Registers, int], None]]:
    """Return how `size` bytes of the XSAVE area are read and set; `state` is the number of the part they belong to."""

    def get(registers: Registers) -> int:
        return int.from_bytes(registers.part("xsave")[offset : offset + size], "little")

    def put(registers: Registers, value: int) -> None:
        area = registers.part("xsave")
        area[offset : offset + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        area[XSTATE] |= 1 << state

    return get, put


def _full_tags(registers: Registers) -> int:
    """Return the x87 tag word, two bits a register, of the one bit that FXSAVE keeps: empty, or what the value is."""
    area, tags = registers.part("xsave"), 0
    top = area[3] >> 3 & 7
    for physical in range(8):
        tag = 3
        if area[4] >> physical & 1:
            at = ST + 16 * ((physical - top) & 7)
            significand = int.from_bytes(area[at : at + 8], "little")
            exponent = int.from_bytes(area[at + 8 : at + 10], "little") & 0x7FFF
            tag = 1 if not exponent and not significand else 0 if 0 < exponent < 0x7FFF and significand >> 63 else 2
        tags |= tag << 2 * physical
    return tags


def _set_tags(registers: Registers, tags: int) -> None:
    area = registers.part("xsave")
    area[4] = sum((tags >> 2 * physical & 3 != 3) << physical for physical in range(8))
    area[XSTATE] |= 1


def _all() -> Iterator[Register]:
    core, sse = "org.gnu.gdb.i386.core", "org.gnu.gdb.i386.sse"
    for name in GENERAL:
        kind = "data_ptr" if name in ("rbp", "rsp") else "int64"
        yield Register(name, 64, kind, core, "regs", *_field("regs", name))
    yield Register("rip", 64, "code_ptr", core, "regs", *_field("regs", "rip"))
    yield Register("eflags", 32, "i386_eflags", core, "regs", *_field("regs", "rflags"))
    for name in SELECTORS:
        yield Register(name, 32, "int32", core, "sregs", _field("sregs", name, "selector")[0])
    for index in range(8):
        yield Register(f"st{index}", 80, "i387_ext", core, "xsave", *_slice(ST + 16 * index, 10, 0))
    tags = (_full_tags, _set_tags)
    # In 64-bit mode the pointers have no segments: what would be these are bits 32 to 47.
    x87 = [
        _slice(0, 2, 0),
        _slice(2, 2, 0),
        tags,
        _slice(12, 2, 0),
        _slice(8, 4, 0),
        _slice(20, 2, 0),
        _slice(16, 4, 0),
    ]
    for name, access in zip(X87, [*x87, _slice(6, 2, 0)], strict=True):
        yield Register(name, 32, "int", core, "xsave", *access, group="float")
    for index in range(16):
        yield Register(f"xmm{index}", 128, "vec128", sse, "xsave", *_slice(XMM + 16 * index, 16, 1))
    yield Register("mxcsr", 32, "i386_mxcsr", sse, "xsave", *_slice(MXCSR, 4, 1), group="vector")
    for name in ("fs", "gs"):
        access = _field("sregs", name, "base")
        yield Register(f"{name}_base", 64, "int", "org.gnu.gdb.i386.segments", "sregs", *access)
    for index in range(16):
        access = _slice(YMM_HIGH + 16 * index, 16, 2)
        yield Register(f"ymm{index}h", 128, "uint128", "org.gnu.gdb.i386.avx", "xsave", *access)
    own = "hostd.x86.system"
    yield Register("k_gs_base", 64, "int", own, "sregs", lambda registers: registers.kernel_gs_base, group="system")
    for name in CONTROL:
        yield Register(name, 64, "int", own, "sregs", *_field("sregs", name), group="system")


REGISTERS = tuple(_all())
"""in the order of their numbers"""
RIP = next(number for number, register in enumerate(REGISTERS) if register.name == "rip")


def _numbered(number: int) -> Register:
    if not 0 <= number < len(REGISTERS):
        raise ValueError(f"there is no register {number}")
    return REGISTERS[number]


def description() -> str:
    """Return the target description (target.xml)."""
    features: dict[str, list[str]] = {}
    for register in REGISTERS:
        group = f' group="{register.group}"' if register.group else ""
        line = f'  <reg name="{register.name}" bitsize="{register.bits}" type="{register.type}"{group}/>'
        features.setdefault(register.feature, []).append(line)
    types = {"org.gnu.gdb.i386.core": TYPES, "org.gnu.gdb.i386.sse": VECTOR_TYPES}
    parts = [
        f'<feature name="{name}">{types.get(name, "")}\n' + "\n".join(lines) + "\n</feature>"
        for name, lines in features.items()
    ]
    head = '<?xml version="1.0"?>\n<!DOCTYPE target SYSTEM "gdb-target.dtd">\n<target version="1.0">\n'
    return head + "<architecture>i386:x86-64</architecture>\n" + "\n".join(parts) + "\n</target>\n"
