"""Two reports beside each other: what counts as a change, and what is no report."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostd.bench import BenchError
from hostd.bench.compare import compare, read
from hostd.bench.report import Report


def a_report(command: str = "hostd bench test", **figures: list[float]) -> Report:
    report = Report(bench="test", command=command, machine={"processor": "one", "kernel": "6.1"})
    for name, rounds in figures.items():
        report.add(name, rounds, "ns", "counted")
    return report


@pytest.mark.parametrize(
    ("old", "new", "verdict", "certain"),
    [
        ([100, 101, 102], [90, 91, 92], "better", True),
        ([100, 101, 102], [110, 111, 112], "worse", True),
        ([90, 100, 110], [95, 105, 115], "within the spread", False),
        ([100, 100, 100], [100, 100, 100], "within the spread", False),
        ([100, 100, 100], [101, 101, 101], "worse", True),
        ([100, 101], [10, 11, 12], "unknown: fewer than 3 rounds", None),
        ([100, 101, 102], [1, 10, 100], "unknown: too much noise", None),
    ],
)
def test_a_change_counts_where_it_is_more_than_the_spreads(old, new, verdict, certain) -> None:
    (change,) = compare(a_report(a=old), a_report(a=new), "old.json").changes
    assert (change.verdict, change.certain) == (verdict, certain)


def test_the_change_is_a_part_of_the_old_median() -> None:
    (change,) = compare(a_report(a=[100] * 3), a_report(a=[80] * 3), "old.json").changes
    assert (change.old, change.new, change.unit) == (100, 80, "ns")
    assert change.change == pytest.approx(-0.2)
    (change,) = compare(a_report(a=[0] * 3), a_report(a=[80] * 3), "old.json").changes
    assert change.change is None


def test_more_is_better_where_the_figure_or_the_target_says_so() -> None:
    def report(rate: float) -> Report:
        made = a_report()
        ours = made.add("rate", [rate] * 3, "messages/s", "counted", better="higher")
        theirs = made.add("theirs", [10.0] * 3, "messages/s", "counted", better="higher", baseline=True)
        made.compare("rate/theirs", ours, theirs)
        made.compare("theirs/rate", theirs, ours, at_most=1.0)
        return made

    found = {change.name: change.verdict for change in compare(report(10), report(20), "old.json").changes}
    assert found == {
        "rate": "better",
        "theirs": "within the spread",
        "rate/theirs": "better",
        "theirs/rate": "better",
    }


def test_figures_of_one_report_only_are_named() -> None:
    found = compare(a_report(a=[1.0], b=[1.0]), a_report(b=[1.0], c=[1.0]), "old.json")
    assert (found.gone, found.added, [change.name for change in found.changes]) == (["a"], ["c"], ["b"])


def test_what_makes_reports_hard_to_compare_is_said() -> None:
    old, new = a_report(a=[1.0]), a_report("hostd bench test --fast", a=[1.0])
    new.machine["processor"] = "other"
    new.figures[0] = new.figures[0].model_copy(update={"unit": "bytes"})
    found = compare(old, new, "old.json")
    assert found.changes == []
    assert found.notes == [
        "a was in ns and is in bytes: not compared.",
        'The machine was another one, so look at ratios only: processor "one" then, "other" now.',
        "The old report is of another command: hostd bench test",
    ]


def test_a_machine_that_was_faster_is_said_to_be() -> None:
    def report(seconds: float, rate: float) -> Report:
        made = a_report(a=[1.0])
        made.add("pipe", [seconds] * 3, "s", "counted", baseline=True)
        made.add("copy", [rate] * 3, "bytes/s", "counted", better="higher", baseline=True)
        return made

    (note,) = compare(report(2, 100), report(3, 200 / 3), "old.json").notes
    assert note == "By its baselines the machine was 1.50 times slower than for the old report, so look at ratios."
    (note,) = compare(report(2, 100), report(1, 200), "old.json").notes
    assert "2.00 times faster" in note
    assert compare(report(2, 100), report(2.05, 99), "old.json").notes == []


def test_where_a_report_goes_is_not_what_it_measures() -> None:
    old = a_report("hostd bench test --json --plot a.png", a=[1.0])
    new = a_report("hostd bench test --compare=old.json --html x.html --rounds 9", a=[1.0])
    assert compare(old, new, "old.json").notes == []


def test_a_report_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(a_report(a=[1.0, 2.0]).model_dump_json())
    assert read(path, "test").figure("a").rounds == (1, 2)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "is no report of a benchmark: Invalid JSON"),
        (b"{", "is no report of a benchmark: Invalid JSON"),
        (b"[1]", "is no report of a benchmark: Input should be an object"),
        (b"{}", "is no report of a benchmark: bench: Field required (and 2 more)"),
        (b'{"bench": "test", "command": "", "machine": {}, "form": 2}', "form: Input should be 1"),
        (
            b'{"bench": "test", "command": "", "machine": {}, "figures": [{"name": "a", "how": "", "rounds": ["x"], '
            b'"unit": "ns", "better": "lower"}]}',
            "figures.0.rounds.0: Input should be a valid number",
        ),
        (b'{"bench": "test", "command": "", "machine": {}, "figures": 3}', "figures: Input should be a valid array"),
        (b'{"bench": "other", "command": "", "machine": {}}', "is a report of 'other', not of 'test'"),
        (b"\xff\xfe\x00", "is no JSON"),
        (b"[" * 100_000, "is no report of a benchmark: Invalid JSON"),
    ],
)
def test_what_is_no_report_gets_a_sentence(tmp_path: Path, text: bytes, complaint: str) -> None:
    path = tmp_path / "old.json"
    path.write_bytes(text)
    with pytest.raises(BenchError) as raised:
        read(path, "test")
    said = str(raised.value)
    assert said.startswith(f"{path}: ")
    assert complaint in said
    assert "\n" not in said


def test_a_report_that_is_not_there_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="No such file or directory"):
        read(tmp_path / "none.json", "test")
    with pytest.raises(BenchError, match="Is a directory"):
        read(tmp_path, "test")
