"""Building a unikernel: what is missing or wrong is one sentence."""

import pytest

from guestlib import BuildError, compile_program


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(BuildError, match=r"nothing\.c: no such source file"):
        compile_program([tmp_path / "nothing.c"], tmp_path / "out.elf")


def test_a_program_that_does_not_compile_leaves_nothing(tmp_path):
    (tmp_path / "bad.c").write_text("int main(void) { return undeclared; }")
    with pytest.raises(BuildError, match=r"bad\.c: does not compile:(.|\n)*undeclared"):
        compile_program([tmp_path / "bad.c"], tmp_path / "out.elf")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.c"]


def test_no_compiler_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "prog.c").write_text("int main(void) { return 0; }")
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(BuildError, match="install gcc"):
        compile_program([tmp_path / "prog.c"], tmp_path / "out.elf")


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "prog.c").write_text("int main(void) { return 0; }")
    with pytest.raises(BuildError, match=r"does not compile|cannot be written"):
        compile_program([tmp_path / "prog.c"], tmp_path / "no" / "out.elf")
