"""A vCPU's registers as gdb numbers them, and the target description that says so.

The features' names and registers: "Debugging with GDB", appendix "Target Descriptions", section "i386 Features". Behind
them stands one of hostd's own: the control registers. The x87 state: AMD64 Architecture Programmer's Manual, volume 2,
section 11.5 (FXSAVE).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hostd.kvm import Vcpu

GENERAL = "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15".split()
SELECTORS = "cs ss ds es fs gs".split()
X87 = "fctrl fstat ftag fiseg fioff foseg fooff fop".split()
CONTROL = "cr0 cr2 cr3 cr4 cr8 efer".split()
KERNEL_GS_BASE = 0xC000_0102
PARTS = ("regs", "sregs", "fpu")

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
        """Return "regs", "sregs" or "fpu"."""
        if name not in self._parts:
            self._parts[name] = getattr(self._vcpu, name)
        return self._parts[name]

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
            setattr(self._vcpu, part, self._parts.pop(part))

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


def _bytes(name: str, index: int, size: int) -> tuple[Callable[[Registers], int], Callable[[Registers, int], None]]:
    """Return how the first `size` bytes of item `index` of the x87 state's array `name` are read and set."""

    def get(registers: Registers) -> int:
        return int.from_bytes(bytes(getattr(registers.part("fpu"), name)[index])[:size], "little")

    def put(registers: Registers, value: int) -> None:
        item = getattr(registers.part("fpu"), name)[index]
        for at, byte in enumerate(value.to_bytes(size, "little")):
            item[at] = byte

    return get, put


def _full_tags(registers: Registers) -> int:
    """Return the x87 tag word, two bits a register, of the one bit that FXSAVE keeps: empty, or what the value is."""
    fpu, tags = registers.part("fpu"), 0
    for physical in range(8):
        tag = 3
        if fpu.ftwx >> physical & 1:
            value = int.from_bytes(bytes(fpu.fpr[(physical - (fpu.fsw >> 11)) & 7])[:10], "little")
            exponent, significand = value >> 64 & 0x7FFF, value & (1 << 64) - 1
            tag = 1 if not exponent and not significand else 0 if 0 < exponent < 0x7FFF and significand >> 63 else 2
        tags |= tag << 2 * physical
    return tags


def _set_tags(registers: Registers, tags: int) -> None:
    registers.part("fpu").ftwx = sum((tags >> 2 * physical & 3 != 3) << physical for physical in range(8))


def _pointer(name: str, shift: int) -> tuple[Callable[[Registers], int], Callable[[Registers, int], None]]:
    """Return how the lower 32 bits (shift 0) or the 16 above (32) of an x87 pointer are read and set."""
    mask = 0xFFFF_FFFF if shift == 0 else 0xFFFF

    def get(registers: Registers) -> int:
        return int(getattr(registers.part("fpu"), name)) >> shift & mask

    def put(registers: Registers, value: int) -> None:
        fpu = registers.part("fpu")
        setattr(fpu, name, getattr(fpu, name) & ~(mask << shift) | (value & mask) << shift)

    return get, put


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
        yield Register(f"st{index}", 80, "i387_ext", core, "fpu", *_bytes("fpr", index, 10))
    tags = (_full_tags, _set_tags)
    x87 = [_field("fpu", "fcw"), _field("fpu", "fsw"), tags, _pointer("last_ip", 32), _pointer("last_ip", 0)]
    x87 += [_pointer("last_dp", 32), _pointer("last_dp", 0), _field("fpu", "last_opcode")]
    for name, access in zip(X87, x87, strict=True):
        yield Register(name, 32, "int", core, "fpu", *access, group="float")
    for index in range(16):
        yield Register(f"xmm{index}", 128, "vec128", sse, "fpu", *_bytes("xmm", index, 16))
    yield Register("mxcsr", 32, "i386_mxcsr", sse, "fpu", _field("fpu", "mxcsr")[0], group="vector")
    for name in ("fs", "gs"):
        access = _field("sregs", name, "base")
        yield Register(f"{name}_base", 64, "int", "org.gnu.gdb.i386.segments", "sregs", *access)
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
