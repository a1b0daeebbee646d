"""Limits on the number of guests: found, told with what to do, and minded before a cluster is made."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from hostd.doctor import limits
from hostd.doctor.limits import Limit

ROOT = Path(__file__).parent.parent.parent


def test_the_tightest_comes_first() -> None:
    found = limits.limits()
    assert found == sorted(found, key=lambda limit: limit.guests)
    assert any(limit.name.startswith("kernel.pid_max") for limit in found)
    assert all(limit.hint for limit in found)


def test_a_tight_limit_is_a_warning_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "limits", lambda wanted=0: [Limit("the tightest", 7, "loosen it")])
    check = limits.check_guests()
    assert check.status == "warn"
    assert "about 7" in check.text
    assert check.hint == "loosen it"
    assert limits.too_tight(7) is None
    assert limits.too_tight(8) == "8 guests are too many: the tightest allows about 7 guests at once: loosen it"


def test_loose_limits_are_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "limits", lambda wanted=0: [Limit("the tightest", limits.WANTED, "loosen it")])
    assert limits.check_guests().status == "ok"


def test_the_hint_is_enough_for_what_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 100))
    files = next(limit for limit in limits.limits(5000) if limit.name.startswith("RLIMIT_NOFILE"))
    assert files.guests == 0
    number = int(files.hint.partition("ulimit -n ")[2].partition("`")[0])
    monkeypatch.setattr(resource, "getrlimit", lambda _: (number, number))
    files = next(limit for limit in limits.limits(5000) if limit.name.startswith("RLIMIT_NOFILE"))
    assert files.guests >= 5000


def test_mappings_count_when_they_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text

    def few(self: Path, *arguments: str) -> str:
        return "100\n" if self.name == "max_map_count" else read(self, *arguments)

    monkeypatch.setattr(Path, "read_text", few)
    assert limits.limits()[0].name.startswith("vm.max_map_count")
    assert limits.limits()[0].guests == 0


def test_a_cluster_of_too_many_guests_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "many.c").write_text('#include "guest.h"\nint main(void) { return 0; }\n')
    (tmp_path / "many.toml").write_text('[guest.many]\nprogram = "many.c"\ncount = 300\n')
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))\n"
        "from hostd.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "validate", str(tmp_path / "many.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "300 guests are too many: RLIMIT_NOFILE" in done.stderr
    assert "ulimit -n" in done.stderr
