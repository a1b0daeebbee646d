"""hostd's initramfs, and kernels in the store: for a kernel made up here, without Debian's packages."""

from __future__ import annotations

import lzma
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from guestlib.linux import build
from hostd.boot.linux.kernel import Kernel
from hostd.images import ImageStoreError, ensure_initramfs, initramfs, kernels, packages, store

VERSION = "6.1.0-hostd"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/hostd"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> build.Binaries:
    return build.binaries(tmp_path_factory.mktemp("programs"))


@pytest.fixture
def busybox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: build.Binaries) -> bytes:
    """A stand-in: a program is copied, whatever it is. The guest's own programs are compiled once."""
    monkeypatch.setattr(build, "binaries", lambda folder: programs)
    path = tmp_path / "busybox"
    path.write_bytes(b"busybox")
    monkeypatch.setattr(packages, "busybox", lambda: path)
    return b"busybox"


def kernel(source: Path) -> Kernel:
    return Kernel(str(source), str(source), (), 0, None, VERSION)


def module(needs: str) -> bytes:
    return b"\x7fELF...\0license=GPL\0depends=" + needs.encode() + b"\0name=x\0"


def lay_out_kernel(folder: Path, built_in: str = "kernel/fs/ext4/ext4.ko") -> Kernel:
    """Make what a Debian package of a kernel unpacks to; return the kernel."""
    modules = folder / "lib/modules" / VERSION
    (modules / "kernel").mkdir(parents=True)
    (modules / "modules.builtin").write_text(built_in + "\n")
    needs = dict.fromkeys(initramfs.MODULES, "")
    needs |= {"virtio": "", "virtio_pci": "virtio", "nd_pmem": "libnvdimm", "libnvdimm": "", "extra": "virtio,overlay"}
    for name, others in needs.items():
        if name != "ext4":
            (modules / f"kernel/{name}.ko.xz").write_bytes(lzma.compress(module(others)))
    (folder / "boot").mkdir()
    (folder / f"boot/vmlinuz-{VERSION}").write_bytes(b"kernel")
    return kernel(folder / f"boot/vmlinuz-{VERSION}")


def entries(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Return mode and content of all that is in a cpio archive (newc)."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        numbers = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = archive[at + 110 : at + 110 + numbers[11] - 1].decode()
        start = at + (110 + numbers[11] + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = numbers[1], archive[start : start + numbers[6]]
        at = start + (numbers[6] + 3) // 4 * 4


def test_what_is_in_it(tmp_path: Path, busybox: bytes) -> None:
    made = entries(ensure_initramfs(lay_out_kernel(tmp_path / "package")).read_bytes())
    assert struct.unpack_from("4s", made["init"][1])[0] == b"\x7fELF"
    assert made["init"][0] == stat.S_IFREG | 0o755
    assert made["bin/guestctl"] == (stat.S_IFLNK | 0o777, b"../init")
    assert made["bin/busybox"] == (stat.S_IFREG | 0o755, busybox)
    assert made["bin/sh"] == (stat.S_IFLNK | 0o777, b"busybox")
    assert made["dev/console"][0] == stat.S_IFCHR | 0o600
    order = made["lib/modules/order"][1].decode().split()
    assert [path for path in order if path.removeprefix("/") not in made] == []
    names = [Path(path).stem for path in order]
    assert set(names) == {*initramfs.MODULES, "virtio", "libnvdimm"} - {"ext4"}, "ext4 is built in"
    assert names.index("virtio") < names.index("virtio_pci")
    assert names.index("libnvdimm") < names.index("nd_pmem")
    assert made[order[0].removeprefix("/")][1].startswith(b"\x7fELF"), "modules are unpacked"


def test_it_is_made_once_and_is_the_same_for_the_same_parts(tmp_path: Path, busybox: bytes) -> None:
    first = lay_out_kernel(tmp_path / "package")
    path = ensure_initramfs(first)
    before, identity = path.read_bytes(), path.stat().st_ino
    assert ensure_initramfs(first) == path
    assert path.stat().st_ino == identity
    store.remove(VERSION)
    assert ensure_initramfs(first).read_bytes() == before


def test_more_modules_come_behind_the_usual_ones(tmp_path: Path, busybox: bytes) -> None:
    made_of = lay_out_kernel(tmp_path / "package")
    folder = initramfs.modules_of(made_of)
    image = initramfs.make(made_of, folder, [*initramfs.MODULES, "extra"], "mine")
    assert image.about["modules"][-1] == "extra"
    assert store.resolve("mine", "initramfs") == image
    with pytest.raises(ImageStoreError, match="module nosuch"):
        initramfs.make(made_of, folder, ["nosuch"], "mine")
    assert store.resolve("mine", "initramfs") == image


def test_a_kernel_of_which_no_modules_are_known_has_none(tmp_path: Path, busybox: bytes) -> None:
    (tmp_path / "lonely").mkdir()
    made = ensure_initramfs(kernel(tmp_path / "lonely/vmlinux"))
    assert entries(made.read_bytes())["lib/modules/order"][1] == b""
    assert store.images("initramfs")[0].name == f"{VERSION}.plain"


def test_modules_that_were_removed_are_one_sentence(tmp_path: Path, busybox: bytes) -> None:
    with pytest.raises(ImageStoreError, match="the kernel's modules are no longer there"):
        initramfs.make(kernel(tmp_path / "vmlinux"), tmp_path / "gone")


def test_a_kernel_image_knows_its_modules(tmp_path: Path) -> None:
    modules = tmp_path / "elsewhere"
    modules.mkdir()

    def make(path: Path) -> dict[str, object]:
        path.write_bytes(b"kernel")
        return {"modules": str(modules)}

    image = store.add("mine", "kernel", "key", make)
    assert initramfs.modules_of(kernel(image.path)) == modules


@pytest.mark.parametrize("source", ["nosuch", "/nosuch/vmlinux", "."])
def test_no_kernel_is_one_sentence(source: str) -> None:
    with pytest.raises(ImageStoreError, match=r"there is no such file, and it is none of Debian's \(debian and deb"):
        kernels.add(source)


def test_every_applet_is_busybox_s_own() -> None:
    found = Path("/bin/busybox")
    if not found.exists():
        pytest.skip("no busybox here")
    known = subprocess.run([found, "--list"], capture_output=True, text=True, check=True).stdout.split()
    assert set(initramfs.APPLETS) <= set(known)
