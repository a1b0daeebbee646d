"""The command line: help, errors, and what imports what."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from hostd.cli import COMMANDS, main
from hostd.cli.command import print_columns, whole_parser

ROOT = pathlib.Path(__file__).parent.parent.parent


def hostd(*arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hostd.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT, input=stdin)


def test_help_lists_every_command_and_imports_next_to_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); from hostd.cli import main; assert main(['--help']) == 0; "
        "print(sorted(m for m in set(sys.modules) - before if not m.startswith('hostd')), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert done.stderr.strip() in ("[]", "['__future__']")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"examples:\n  hostd {name}" in text
    assert ("--json" in text) == (name not in ("completion", "lab"))


@pytest.mark.parametrize("arguments", [[], ["fly"], ["--fly"]])
def test_what_is_no_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().out == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("hostd 0.")


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(shell: str) -> None:
    done = hostd("completion", shell)
    assert done.returncode == 0
    assert all(name in done.stdout for name in COMMANDS)


def test_the_whole_parser_takes_what_the_commands_take() -> None:
    options = whole_parser().parse_args(["run", "x.toml", "--set", "a.b=1", "--set", "c.d=2", "--json"])
    assert (options.file, options.overrides, options.json) == ("x.toml", ["a.b=1", "c.d=2"], True)


def test_a_mistake_in_the_file_is_one_line_and_exit_code_2(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[guest.a]\nimage = "a"\nmemry = 3\n')
    for command in ("run", "up", "validate"):
        done = hostd(command, file)
        assert done.returncode == 2
        assert done.stderr == f"hostd {command}: {file}: guest.a.memry: unknown key; did you mean memory?\n"
        assert done.stdout == ""
    done = hostd("validate", file, "--json")
    assert json.loads(done.stdout) == {
        "ok": False,
        "error": f"{file}: guest.a.memry: unknown key; did you mean memory?",
    }


def test_nothing_of_that_name(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTD_RUNTIME_DIR", str(tmp_path))
    for arguments in (["down", "nope"], ["slots", "nope"], ["logs", "nope"], ["stop", "nope/x"], ["inspect", "nope"]):
        done = hostd(*arguments)
        assert done.returncode == 1
        assert "nope" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert hostd("ps").stdout == "no cluster runs; bring one up with `hostd up FILE`\n"
    assert json.loads(hostd("ps", "--json").stdout) == []
    assert "no cluster runs" in hostd("down").stderr


def test_build_and_validate(tmp_path: pathlib.Path) -> None:
    source, image, file = tmp_path / "p.c", tmp_path / "p.elf", tmp_path / "c.toml"
    source.write_text('#include "guest.h"\nint main(void) { return 0; }\n')
    built = hostd("build", source, "-o", image, "--json")
    assert built.returncode == 0, built.stderr
    assert json.loads(built.stdout)["output"] == str(image)
    file.write_text('[guest.a]\nimage = "p.elf"\ncount = 2\n')
    done = hostd("validate", file, "--json")
    assert json.loads(done.stdout)["guests"] == ["a-0", "a-1"]
    assert "cluster c is valid: 2 guests, 0 regions, 0 channels" in hostd("validate", file).stdout


def test_a_program_that_does_not_compile(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "p.c"
    source.write_text("int main(void) { return oops; }\n")
    done = hostd("build", source, "-o", tmp_path / "p.elf")
    assert done.returncode == 2
    assert f"{source}: does not compile" in done.stderr
    assert "oops" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [(b"no elf at all", "is no ELF file"), (b"\x7fELF", "damaged or truncated"), (b"", "is no ELF file")],
)
def test_an_image_that_is_none(tmp_path: pathlib.Path, data: bytes, sentence: str) -> None:
    (tmp_path / "p.elf").write_bytes(data)
    (tmp_path / "c.toml").write_text('[guest.a]\nimage = "p.elf"\n')
    done = hostd("run", tmp_path / "c.toml")
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "guest.a.image" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_doctor() -> None:
    done = hostd("doctor", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["ok"] else 1)
    assert {"name", "status", "text", "hint"} <= set(found["checks"][0])
    assert len(hostd("doctor").stdout.splitlines()) == len(found["checks"])


def test_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_columns(("NAME", "N"), [("a", 5), ("long name", None)], right=(1,))
    assert capsys.readouterr().out == "NAME       N\na          5\nlong name  -\n"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["bench", "show", "--help"], ["validate", "--help"]])
def test_a_reader_that_goes_leaves_no_traceback(arguments: list[str]) -> None:
    out, theirs = os.pipe()
    os.close(out)
    with os.fdopen(theirs, "wb") as nobody:
        command = [sys.executable, "-m", "hostd.cli", *arguments]
        done = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, timeout=60, check=False, cwd=ROOT)
    assert done.stderr == b""
