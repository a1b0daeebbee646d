"""hostd build"""

from __future__ import annotations

import argparse
from pathlib import Path

from hostd.cli.command import print_json

EXAMPLES = ("hostd build prog.c -o prog.elf", "hostd build main.c more.c -o prog.elf --flag=-DDEBUG")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="C file")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: the first source's name, with .elf")
    parser.add_argument(
        "--flag", action="append", default=[], metavar="FLAG", help="one more for the compiler; may be repeated"
    )


def run(options: argparse.Namespace) -> int:
    from guestlib import compile_program
    from hostd.boot.elf import read_image

    output = Path(options.output or Path(options.sources[0]).with_suffix(".elf").name)
    image = read_image(compile_program(options.sources, output, options.flag))
    if options.json:
        print_json({"output": str(output), "entry": image.entry, "start": image.start, "end": image.end})
    else:
        print(f"{output}: {output.stat().st_size} bytes, entry {image.entry:#x}")
    return 0
