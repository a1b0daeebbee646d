"""The agent's protocol: the C header and the Python module say the same; what is staged is what a guest needs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

from guestlib.linux import build, protocol, stage

HEADER = (build.HERE / "include" / "agent_protocol.h").read_text()


def constants() -> dict[str, int]:
    """Return the header's numbers by name."""
    found = re.findall(r"#define AGENT_(\w+) (\d+)", HEADER) + re.findall(r"\bAGENT_(\w+) = (\d+)", HEADER)
    return {name: int(value) for name, value in found}


def test_header_and_module_have_the_same_numbers() -> None:
    numbers = constants()
    for kind in protocol.Type:
        assert numbers[kind.name] == kind
    for name, value in {
        "VERSION": protocol.VERSION,
        "MAX_PAYLOAD": protocol.MAX_PAYLOAD,
        "WINDOW": protocol.WINDOW,
        "MAX_STREAMS": protocol.MAX_STREAMS,
        "MAX_PATH": protocol.MAX_PATH,
        "SYNC_SIZE": len(protocol.SYNC),
        "MARK_SIZE": protocol.MARK.size,
        "SEED": protocol.SEED,
        "IS_INIT": protocol.WelcomeFlag.IS_INIT,
        "HAS_COMMAND": protocol.WelcomeFlag.HAS_COMMAND,
        "EXEC_TTY": protocol.ExecFlag.TTY,
        "EXEC_NO_STDIN": protocol.ExecFlag.NO_STDIN,
        "EXEC_CLEAN_ENV": protocol.ExecFlag.CLEAN_ENV,
        "COPY_EXACT": protocol.CopyFlag.EXACT,
        "COPY_OWNER": protocol.CopyFlag.OWNER,
        "POWER_OFF": protocol.Shutdown.POWER_OFF,
        "REBOOT": protocol.Shutdown.REBOOT,
        "FILE": protocol.Kind.FILE,
        "DIRECTORY": protocol.Kind.DIRECTORY,
        "SYMLINK": protocol.Kind.SYMLINK,
    }.items():
        assert numbers[name] == value, name
    assert f'"{protocol.SYNC.decode()}"' in HEADER
    assert f'"{protocol.PORT}"' in HEADER


def test_structs_have_the_sizes_of_the_modules_formats(tmp_path: Path) -> None:
    formats = {
        "agent_frame": protocol.FRAME,
        "agent_hello": protocol.HELLO,
        "agent_welcome": protocol.WELCOME,
        "agent_exec": protocol.EXEC,
        "agent_exit": protocol.EXIT,
        "agent_copy": protocol.COPY,
        "agent_done": protocol.DONE,
        "agent_shutdown": protocol.SHUTDOWN,
        "agent_become": protocol.BECOME,
        "agent_error": protocol.ERROR,
        "agent_record": protocol.RECORD,
    }
    assert set(re.findall(r"^struct (agent_\w+) {", HEADER, re.M)) == set(formats)
    checks = "".join(f'_Static_assert(sizeof(struct {n}) == {f.size}, "{n}");\n' for n, f in formats.items())
    source = tmp_path / "sizes.c"
    source.write_text(f'#include "agent_protocol.h"\n{checks}')
    subprocess.run(["gcc", "-std=gnu11", "-fsyntax-only", f"-I{build.HERE / 'include'}", source], check=True)


def test_the_binary_is_static_and_made_once(tmp_path: Path) -> None:
    first = build.binaries(tmp_path / "cache")
    made = first.init.stat().st_mtime_ns
    assert build.binaries(tmp_path / "cache") == first
    assert first.init.stat().st_mtime_ns == made
    described = subprocess.run(["file", "-L", first.init], capture_output=True, text=True, check=False).stdout
    assert not described or "statically linked" in described
    usage = subprocess.run(["guestctl"], executable=first.guestctl, capture_output=True, check=False)
    assert (usage.returncode, b"guestctl ls" in usage.stderr) == (2, True)


def test_the_init_is_for_pid_1_only(tmp_path: Path) -> None:
    init = build.binaries(tmp_path / "cache").init
    done = subprocess.run(["init"], executable=init, capture_output=True, text=True, check=False)
    assert done.stdout == "hostd: init\nhostd: init: this is for PID 1 of an initramfs\n"
    assert done.returncode == 2


def test_what_is_staged_works_on_its_own(tmp_path: Path) -> None:
    """With nothing of this checkout in reach, and without what a guest's Debian lacks."""
    stage.stage(tmp_path / "tree")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'tree')!r})\n"
        "for name in ('posix_ipc', 'psutil', 'pydantic', 'rich', 'setuptools', 'cffi'): sys.modules[name] = None\n"
        "import guestlib, shm.region, shm.request\n"
        "guestlib.attach\n"
        "print(guestlib.__file__, shm._shm.__file__, 'subprocess' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    where, extension, heavy = done.stdout.split()
    assert Path(where).is_relative_to(tmp_path)
    assert extension.endswith("shm/_shm.abi3.so")
    assert heavy == "False"


def test_staging_is_reproducible_and_holds_only_what_runs(tmp_path: Path) -> None:
    for name in ("one", "two"):
        stage.stage(tmp_path / name)
    one, two = ({p.relative_to(tmp_path / n): p for p in (tmp_path / n).rglob("*")} for n in ("one", "two"))
    assert sorted(one) == sorted(two)
    for path, file in one.items():
        if file.is_file():
            assert file.read_bytes() == two[path].read_bytes()
            assert (file.stat().st_mode & 0o777, file.stat().st_mtime) == (0o644, 0)
        if file.suffix == ".py":
            imported = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
            assert not [node.module for node in imported if node.module and node.module.startswith("hostd")]


def test_the_extension_needs_pythons_stable_abi_only() -> None:
    """So that the one file serves any Python 3 a guest may have: every Python symbol is of the limited API."""
    extension = stage.tree()["shm/_shm.abi3.so"]
    needed = subprocess.run(["nm", "-D", "--undefined-only", extension], capture_output=True, text=True, check=True)
    names = set(re.findall(r"\bU (_?Py\w+)", needed.stdout))
    assert names
    assert not {name for name in names if name.startswith("_Py") and name != "_Py_NoneStruct" and name != "_Py_Dealloc"}
