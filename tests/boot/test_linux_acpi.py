"""ACPI tables, disassembled and compiled again by Intel's own compiler."""

import re
import shutil
import struct
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostd.boot.address_map import Span
from hostd.boot.linux import acpi, aml, layout
from hostd.boot.linux.acpi import build_tables

ADDRESS = layout.ACPI_TABLES.start
RUN = {"capture_output": True, "text": True, "timeout": 60}
PCI64 = Span(1 << 36, 1 << 40)
HEADER = struct.Struct("<4sIBB6s8sI4sI")


def tables(blob: bytes, address: int) -> dict[str, bytes]:
    """Follow RSDP, XSDT and FADT as a kernel does."""
    signature, _, _, revision, _, length, xsdt, _ = struct.unpack_from("<8sB6sBIIQB", blob)
    assert (signature, revision, length) == (b"RSD PTR ", 2, 36)
    assert sum(blob[:20]) & 255 == sum(blob[:36]) & 255 == 0

    def at(where: int) -> bytes:
        assert where % 4 == 0
        offset = where - address
        return blob[offset : offset + struct.unpack_from("<I", blob, offset + 4)[0]]

    found = {"XSDT": at(xsdt)}
    for (pointer,) in struct.iter_unpack("<Q", found["XSDT"][36:]):
        found[at(pointer)[:4].decode()] = at(pointer)
    found["DSDT"] = at(struct.unpack_from("<Q", found["FACP"], 140)[0])
    return found


@given(
    vcpus=st.integers(1, layout.MAX_VCPUS),
    address=st.integers(0, 1 << 28).map(lambda n: n * 16),
    start=st.integers(33, 40),
    size=st.integers(1, 1 << 20).map(lambda n: n << 20),
)
def test_every_table_is_whole(vcpus, address, start, size):
    blob = build_tables(address, vcpus, Span(1 << start, (1 << start) + size))
    assert len(blob) <= layout.ACPI_TABLES.size
    found = tables(blob, address)
    assert sorted(found) == ["APIC", "DSDT", "FACP", "MCFG", "XSDT"]
    for name, table in found.items():
        assert sum(table) & 255 == 0, name
        head = HEADER.unpack_from(table)
        assert head[0] == name.encode()
        assert head[1] == len(table)
    assert found["APIC"].count(struct.pack("<BB", 0, 8)) >= vcpus


def entries(madt: bytes):
    at = 44
    while at < len(madt):
        yield madt[at], madt[at : at + madt[at + 1]]
        at += madt[at + 1]


@given(vcpus=st.integers(1, layout.MAX_VCPUS))
def test_each_vcpu_has_an_enabled_apic(vcpus):
    madt = tables(build_tables(ADDRESS, vcpus, PCI64), ADDRESS)["APIC"]
    found = list(entries(madt))
    apics = [struct.unpack("<BBBBI", entry) for kind, entry in found if kind == 0]
    assert [(uid, apic, flags) for _, _, uid, apic, flags in apics] == [(n, n, 1) for n in range(vcpus)]
    assert [struct.unpack("<BBBBII", entry)[4:] for kind, entry in found if kind == 1] == [(0xFEC00000, 0)]


@pytest.fixture(scope="module")
def disassembled(tmp_path_factory):
    """Return each table as iasl shows it, and what iasl said."""
    if shutil.which("iasl") is None:
        pytest.skip("iasl is not there: apt-get install acpica-tools")
    folder = tmp_path_factory.mktemp("acpi")
    texts, said = {}, {}
    for name, table in tables(build_tables(ADDRESS, 8, PCI64), ADDRESS).items():
        (folder / f"{name}.dat").write_bytes(table)
        ran = subprocess.run(["iasl", "-d", f"{name}.dat"], cwd=folder, check=False, **RUN)
        assert ran.returncode == 0, ran.stderr
        texts[name], said[name] = (folder / f"{name}.dsl").read_text(), ran.stdout + ran.stderr
    ran = subprocess.run(["iasl", "-ve", "DSDT.dsl"], cwd=folder, check=False, **RUN)
    said["compiled"] = ran.stdout + ran.stderr
    assert ran.returncode == 0, said["compiled"]
    return texts, said, (folder / "DSDT.aml").read_bytes()


def test_iasl_has_nothing_to_say_against_them(disassembled):
    texts, said, _ = disassembled
    for name, text in said.items():
        assert not re.search(r"\b(?:error|warning|invalid|unknown|mismatch)\b", text.replace("0 Errors", ""), re.I), (
            name,
            text,
        )
    for name, text in texts.items():
        assert not re.search(r"\b(?:incorrect|invalid|unknown|\*\*\*\*)\b", text, re.I), (name, text)


def test_the_dsdt_compiles_back_to_itself(disassembled):
    compiled = disassembled[2]
    ours = tables(build_tables(ADDRESS, 8, PCI64), ADDRESS)["DSDT"]
    assert compiled[36:] == ours[36:]


def field(text: str, name: str) -> list[int]:
    """Return the values of a field of a data table, in the order of the text."""
    return [int(value, 16) for value in re.findall(rf"(?m)(?:^|\]) +{re.escape(name)} : ([0-9A-F]+)", text)]


def test_the_fadt_says_what_there_is(disassembled):
    text = disassembled[0]["FACP"]
    for name, value in {
        "Hardware Reduced (V5)": 1,
        "Reset Register Supported (V2)": 1,
        "VGA Not Present (V4)": 1,
        "CMOS RTC Not Present (V5)": 1,
        "8042 Present on ports 60/64 (V2)": 0,
        "Legacy Devices Supported (V2)": 0,
        "Value to cause reset": layout.RESET_VALUE,
        "SCI Interrupt": 0,
    }.items():
        assert field(text, name) == [value], name
    addresses = re.findall(r"\] +Address : ([0-9A-F]+)", text)
    ports = [int(a, 16) for a in addresses if int(a, 16)]
    assert ports == [layout.RESET_PORT, layout.SLEEP_CONTROL_PORT, layout.SLEEP_STATUS_PORT]


def test_the_mcfg_has_one_bus(disassembled):
    text = disassembled[0]["MCFG"]
    assert field(text, "Base Address") == [layout.ECAM.start]
    assert field(text, "Segment Group Number") == [0]
    assert (field(text, "Start Bus Number"), field(text, "End Bus Number")) == ([0], [0])


def test_the_dsdt_has_pci_serial_and_power_off(disassembled):
    text = re.sub(r"//.*|/\*.*?\*/", "", disassembled[0]["DSDT"])
    text = re.sub(r"\s+", " ", text).replace("( ", "(").replace(" )", ")")
    devices = re.findall(r'Device \((\w+)\) \{ Name \(_HID, EisaId \("(\w+)"\)\)', text)
    assert devices == [("PCI0", "PNP0A08"), ("COM1", "PNP0501"), ("MBRD", "PNP0C02")]
    assert "Method (_OSC, 4, NotSerialized) { Return (Arg3) }" in text
    assert 'Name (_CID, EisaId ("PNP0A03"))' in text
    assert "Name (_S5, Package (0x04) { 0x05, Zero, Zero, Zero })" in text
    assert "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,,) { 0x00000004, }" in text
    routes = re.findall(r"Package \(0x04\) \{ (0x[0-9A-F]+), Zero, Zero, (0x[0-9A-F]+) \}", text)
    assert [(int(slot, 16), int(gsi, 16)) for slot, gsi in routes] == [
        (n << 16 | 0xFFFF, 16 + n % 8) for n in range(32)
    ]
    # Granularity, first, last, translation, length.
    windows = re.findall(r"(\w+) \(ResourceProducer[^0]*0x0+, (0x[0-9A-F]+), (0x[0-9A-F]+), 0x0+, (0x[0-9A-F]+),", text)
    assert [(name, int(first, 16), int(last, 16)) for name, first, last, _ in windows] == [
        ("WordBusNumber", 0, 0),
        ("WordIO", 0, 0xCF7),
        ("WordIO", 0xD00, 0xFFFF),
        ("DWordMemory", layout.PCI_WINDOW.start, layout.PCI_WINDOW.end - 1),
        ("QWordMemory", PCI64.start, PCI64.end - 1),
    ]
    assert all(int(length, 16) == int(last, 16) - int(first, 16) + 1 for _, first, last, length in windows)
    assert "Memory32Fixed (ReadWrite, 0xE0000000, 0x00100000,)" in text


@given(st.integers(0, (1 << 64) - 1))
def test_integers_are_as_short_as_can_be(value):
    encoded = aml.integer(value)
    if value < 2:
        assert encoded == bytes([value])
    else:
        size = {0x0A: 1, 0x0B: 2, 0x0C: 4, 0x0E: 8}[encoded[0]]
        assert int.from_bytes(encoded[1:], "little") == value
        assert len(encoded) == 1 + size
        assert size == 1 or value >= 1 << 8 * (size // 2)


@given(st.integers(0, 1 << 21))
def test_package_lengths_count_themselves(size):
    encoded = aml.scope("\\_SB", bytes(size))
    lead = encoded[1]
    length = lead & 0x3F if not lead >> 6 else lead & 0xF
    for number in range(lead >> 6):
        length |= encoded[2 + number] << (4 + 8 * number)
    assert length == len(encoded) - 1


def test_a_table_that_no_package_holds_is_refused():
    with pytest.raises(ValueError, match="more than an AML package holds"):
        aml.scope("\\_SB", bytes(1 << 28))


def test_eisa_ids_are_packed_as_the_specification_shows():
    # ACPI 6.5, 19.3.4: EISAID ("PNP0C09") is 0x090CD041.
    assert aml.eisa_id("PNP0C09") == b"\x0c" + struct.pack("<I", 0x090CD041)


def test_the_hypervisor_vendor_is_a_name():
    assert acpi.fadt(0)[268:276] == b"HOSTD\0\0\0"
