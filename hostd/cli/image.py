"""hostd image"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hostd.cli.command import print_columns, print_json
from hostd.cluster.sizes import format_size

if TYPE_CHECKING:
    from hostd.images import Image

EXAMPLES = (
    "hostd image kernel debian-cloud",
    "hostd image rootfs debian --packages curl,strace --format erofs",
    "hostd image initramfs /boot/vmlinuz-6.1.0-50-amd64 --modules erofs,virtio_net",
    "hostd image ls",
)


def configure(parser: argparse.ArgumentParser) -> None:
    from hostd.images.packages import KERNELS

    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    kernel = actions.add_parser("kernel", help="keep a kernel, and make the initramfs for it")
    kernel.add_argument("source", metavar="KERNEL", help=f"{', '.join(KERNELS)} or the file of a vmlinux or bzImage")
    kernel.add_argument("--name", help="of the image (default: KERNEL's)")
    initramfs = actions.add_parser("initramfs", help="make an initramfs: init, agent, guestctl, busybox and modules")
    initramfs.add_argument("kernel", metavar="KERNEL", help="a kernel image, or a kernel's file")
    initramfs.add_argument(
        "--modules", type=_words, metavar="A,B", help="modules beside those for hostd's devices and roots"
    )
    initramfs.add_argument("--modules-dir", type=Path, metavar="DIR", help="lib/modules/VERSION of the kernel")
    initramfs.add_argument("--name", help="of the image (default: the kernel's version)")
    rootfs = actions.add_parser("rootfs", help="make a root file system with Python and guestlib")
    rootfs.add_argument("distribution", choices=["debian"], help="what to make it of")
    rootfs.add_argument("--packages", type=_words, default=[], metavar="A,B", help="more Debian packages")
    rootfs.add_argument("--format", choices=["ext4", "erofs"], default="ext4", help="(default: ext4)")
    rootfs.add_argument("--size", metavar="SIZE", help="of an ext4 (default: little more than what is in it)")
    rootfs.add_argument("--name", help="of the image (default: debian)")
    rootfs.add_argument(
        "--fresh", action="store_true", help="install today's packages, even if there is one of the same parts"
    )
    actions.add_parser("ls", help="list images")
    remove = actions.add_parser("rm", help="remove images")
    remove.add_argument("names", nargs="+", metavar="NAME", help="NAME or KIND/NAME")
    for action in actions.choices.values():
        # Where --json stands before the action, it counts as well.
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    # As an interruption does: what was begun is cleared away.
    before = signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        code: int = globals()[f"_{options.action}"](options)
        return code
    finally:
        signal.signal(signal.SIGTERM, before)


def _kernel(options: argparse.Namespace) -> int:
    from hostd.images import initramfs, kernels

    image, kernel = kernels.add(options.source, options.name)
    folder = initramfs.modules_of(kernel)
    made = initramfs.make(kernel, folder)
    without = [] if folder else [f"no modules are known for {options.source}: its initramfs has none"]
    return _made(options, [image, made], without)


def _initramfs(options: argparse.Namespace) -> int:
    from hostd.images import initramfs, kernels

    kernel = kernels.opened(options.kernel)
    folder = options.modules_dir.absolute() if options.modules_dir else initramfs.modules_of(kernel)
    wanted = [*initramfs.MODULES, *(name for name in options.modules or [] if name not in initramfs.MODULES)]
    without = [] if folder else [f"no modules are known for {options.kernel}: this has none (--modules-dir names them)"]
    return _made(options, [initramfs.make(kernel, folder, wanted, options.name)], without)


def _rootfs(options: argparse.Namespace) -> int:
    from hostd.cluster.sizes import parse_size
    from hostd.images import ImageStoreError, rootfs

    try:
        size = parse_size(options.size) if options.size else None
    except ValueError as error:
        raise ImageStoreError(f"--size: {error}") from None
    image = rootfs.make(options.name or "debian", options.packages, options.format, size, fresh=options.fresh)
    return _made(options, [image], [])


def _made(options: argparse.Namespace, made: list[Image], remarks: list[str]) -> int:
    if options.json:
        print_json({"images": [image.describe() for image in made], "remarks": remarks})
        return 0
    for image in made:
        print(f"{image.kind} {image.name}: {format_size(image.size)}, {image.path}")
    for remark in remarks:
        print(remark)
    return 0


def _ls(options: argparse.Namespace) -> int:
    from hostd.images import store

    images = store.images()
    if options.json:
        print_json([image.describe() for image in images])
    elif images:
        rows = [(image.kind, image.name, format_size(image.size), _words_about(image), image.path) for image in images]
        print_columns(("KIND", "NAME", "SIZE", "ABOUT", "FILE"), rows, right=(2,))
    else:
        print("there are no images; `hostd image kernel debian-cloud` makes the first")
    return 0


def _rm(options: argparse.Namespace) -> int:
    from hostd.images import store

    gone = []
    for target in options.names:
        kind, slash, name = target.rpartition("/")
        gone += store.remove(name, kind if slash else None)
    if options.json:
        print_json({"removed": [image.describe() for image in gone]})
    else:
        print(f"removed {', '.join(f'{image.kind} {image.name}' for image in gone)}")
    return 0


def _words(text: str) -> list[str]:
    return [word for word in text.replace(",", " ").split() if word]


def _words_about(image: Image) -> str:
    about = image.about
    if image.kind == "rootfs":
        return f"{about.get('format')}, {about.get('packages')} packages"
    if image.kind == "initramfs":
        return f"{len(about.get('modules', []))} modules"
    return str(about.get("version", ""))
