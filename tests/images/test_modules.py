"""Modules in load order, from a made-up tree as a kernel's package has it."""

from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
from pathlib import Path

import pytest
import zstandard

from hostd.images.errors import ImageStoreError
from hostd.images.modules import index, load_order, plain

NEEDS = {"a": "", "b": "a", "c-d": "b,a", "e": "c-d,built_in", "loop1": "loop2", "loop2": "loop1"}
PACKED = {"": bytes, ".xz": lzma.compress, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def module(needs: str) -> bytes:
    """The part of a module that is looked at: strings of .modinfo."""
    return b"\x7fELF...\0license=GPL\0depends=" + needs.encode() + b"\0retpoline=Y\0name=x\0"


def tree(folder: Path, suffix: str = "") -> Path:
    made = folder / "lib/modules/6.1.0-0-test"
    for name, needs in NEEDS.items():
        path = made / "kernel/some/where" / f"{name}.ko{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PACKED[suffix](module(needs)))
    (made / "modules.builtin").write_text("kernel/fs/built-in.ko\nkernel/fs/ext4/ext4.ko\n")
    return made


def names(paths: list[Path]) -> list[str]:
    return [path.name.partition(".")[0] for path in paths]


@pytest.mark.parametrize("suffix", PACKED)
def test_each_comes_behind_what_it_needs(tmp_path: Path, suffix: str) -> None:
    made = tree(tmp_path, suffix)
    order = load_order(made, ["e", "a"])
    assert names(order) == ["a", "b", "c-d", "e"]
    assert plain(order[1]) == module("a")


def test_what_is_built_in_is_left_out(tmp_path: Path) -> None:
    assert load_order(tree(tmp_path), ["ext4", "built_in"]) == []


def test_names_may_have_either_dash(tmp_path: Path) -> None:
    assert names(load_order(tree(tmp_path), ["c_d"])) == names(load_order(tree(tmp_path), ["c-d"])) == ["a", "b", "c-d"]


def test_a_circle_ends(tmp_path: Path) -> None:
    assert set(names(load_order(tree(tmp_path), ["loop1"]))) == {"loop1", "loop2"}


def test_unknown(tmp_path: Path) -> None:
    with pytest.raises(ImageStoreError, match=r"module nosuch: 6\.1\.0-0-test has none"):
        load_order(tree(tmp_path), ["nosuch"])


@pytest.mark.skipif(shutil.which("busybox") is None, reason="needs busybox")
def test_index_is_made_once(tmp_path: Path) -> None:
    """The modules have to be real ones for that: they are compiled."""
    made = tree(tmp_path)
    shutil.rmtree(made / "kernel")
    (made / "kernel").mkdir()
    for name, needs in (("a", ""), ("b", "a")):
        text = f'char info[] __attribute__((section(".modinfo"))) = "depends={needs}";'
        command = ["gcc", "-c", "-x", "c", "-", "-o", str(made / f"kernel/{name}.ko")]
        subprocess.run(command, input=text, text=True, check=True)
    busybox = Path(shutil.which("busybox") or "")
    index(made, busybox)
    assert (made / "modules.dep").read_text().split("\n")[:1] != [""]
    (made / "modules.dep").write_text("mine\n")
    index(made, busybox)
    assert (made / "modules.dep").read_text() == "mine\n"
