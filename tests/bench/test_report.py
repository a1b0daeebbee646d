"""Figures, ratios and rounds: what a benchmark's report says of them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from hostd.bench.report import Report
from hostd.bench.rounds import Measurement, interleave


def a_report() -> Report:
    return Report(bench="test", command="", machine={})


def test_a_figure_is_the_median_of_its_rounds() -> None:
    figure = a_report().add("a", [3, 1, 2], "ns", "counted")
    assert figure.value == 2
    assert figure.refused is None


def test_a_figure_whose_rounds_lie_far_apart_is_refused() -> None:
    figure = a_report().add("a", [1, 1, 10, 100, 100], "ns", "counted")
    assert figure.value is None
    assert figure.refused is not None
    assert "between 1 and 100" in figure.refused


def test_a_ratio_is_taken_round_by_round() -> None:
    report = a_report()
    ours = report.add("ours", [10, 20, 30], "ns", "counted")
    theirs = report.add("theirs", [5, 10, 30], "ns", "counted", baseline=True)
    ratio = report.compare("ours/theirs", ours, theirs, at_most=2.5)
    assert ratio.rounds == (2, 2, 1)
    assert ratio.holds is True
    assert report.compare("again", ours, theirs, at_least=2.5).holds is False
    assert report.compare("no target", ours, theirs).holds is None


def test_figures_of_different_rounds_are_not_compared() -> None:
    report = a_report()
    with pytest.raises(ValueError, match="shorter"):
        report.compare("x", report.add("a", [1, 2], "ns", "counted"), report.add("b", [1], "ns", "counted"))


def test_json_gives_back_the_report() -> None:
    report = a_report()
    report.compare("r", report.add("a", [1, 2], "ns", "counted"), report.add("b", [2, 2], "ns", "counted"), at_most=1)
    again = Report.model_validate_json(report.model_dump_json())
    assert again == report
    assert again.ratio("r").holds is True
    with pytest.raises(ValidationError):
        Report.model_validate_json('{"form": 2, "bench": "x", "command": "", "machine": {}}')


def test_rounds_are_interleaved() -> None:
    seen: list[str] = []

    def measurement(name: str) -> Measurement:
        def run() -> dict[str, float]:
            seen.append(name)
            return {name: len(seen)}

        return Measurement(name, run)

    lines: list[str] = []
    found = interleave([measurement("a"), measurement("b")], 2, lines.append)
    assert seen == ["b", "a", "a", "b", "b", "a"]
    assert found == {"a": [3, 6], "b": [4, 5]}
    assert lines[0].startswith("warm-up")
