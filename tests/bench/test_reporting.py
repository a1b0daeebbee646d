"""A report on the terminal, as JSON, as a picture and as a page: all that is in it, in every place asked for."""

from __future__ import annotations

import argparse
import base64
import json
import os
import pty
import re
import select
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from hostd.bench import BenchError, extra, plot
from hostd.bench.page import page
from hostd.bench.plot import panels, vector
from hostd.bench.quantity import quantity, short
from hostd.bench.report import Report, Series
from hostd.bench.rounds import Step
from hostd.cli.reporting import add_report_options, progress, show, take


def a_report() -> Report:
    report = Report(
        bench="test",
        command="hostd bench test --x '<b>'",
        machine={"processor": "some <cpu>", "memory_bytes": 24 << 30, "versions": {"hostd": "0.1"}},
        cluster_files={"pair.toml": '[guest.a]\nargs = ["<&>"]\n'},
        notes=["A note, with [brackets] and <tags>."],
    )
    ours = report.add("ours", [1000.0, 1200.0, 1100.0], "ns", "bounced 64 bytes")
    theirs = report.add("theirs", [2000.0, 2200.0, 2100.0], "ns", "bounced 64 bytes by pipe", baseline=True)
    report.add("noise", [1.0, 50.0, 2.0, 90.0], "bytes", "looked at the weather")
    report.compare("theirs/ours", theirs, ours, at_least=1.5)
    report.compare("ours/theirs", ours, theirs, at_most=0.1)
    for line in range(10):
        x, y = (8.0, 64.0, 4096.0), (100.0 + line, 110.0, 500.0)
        report.series.append(
            Series(chart="by size", line=f"way {line}", x_label="bytes", y_label="ns", x=x, y=y, log=True)
        )
    report.series.append(Series(chart="guests", line="one", x_label="guests", y_label="cores", x=(1, 10), y=(0, 0)))
    return report


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_report_options(parser)
    return parser.parse_args(arguments)


def test_the_table_has_figures_ratios_refusals_and_notes(capsys) -> None:
    assert show(a_report(), options()) == 0
    said = capsys.readouterr().out
    assert re.search(r"^ours +1\.1 us +9%$", said, re.MULTILINE)
    assert re.search(r"^noise +- +\d+%$", said, re.MULTILINE)
    assert re.search(r"^theirs/ours +1\.91 +\d% +at least 1\.5 +met$", said, re.MULTILINE)
    assert re.search(r"^ours/theirs +0\.524 +\d% +at most 0\.1 +missed$", said, re.MULTILINE)
    assert "noise: no figure: its rounds lie between 1 and 90" in said
    assert "A note, with [brackets] and <tags>." in said


def test_json_is_the_report_and_nothing_else(capsys) -> None:
    show(a_report(), options("--json"))
    assert Report.model_validate_json(capsys.readouterr().out) == a_report()


def test_a_report_goes_everywhere_at_once(tmp_path: Path, capsys) -> None:
    old = tmp_path / "old.json"
    old.write_text(a_report().model_dump_json())
    picture, written = tmp_path / "x.png", tmp_path / "x.html"
    show(a_report(), options("--json", "--plot", str(picture), "--html", str(written), "--compare", str(old)))
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["bench"] == "test"
    assert {change["verdict"] for change in found["comparison"]["changes"]} == {
        "within the spread",
        "unknown: too much noise",
    }
    assert printed.err == f"wrote {picture}\nwrote {written}\n"
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert len(image.convert("L").getcolors()) > 50
    assert f"Compared with {old}" in written.read_text()


def test_one_place_that_fails_does_not_keep_the_others_from_theirs(tmp_path: Path, capsys, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plot, "picture", fail)
    written = tmp_path / "x.html"
    with pytest.raises(BenchError, match=r"^--plot .*x\.png: No space left on device$"):
        show(a_report(), options("--plot", str(tmp_path / "x.png"), "--html", str(written)))
    assert "theirs/ours" in capsys.readouterr().out
    assert written.exists()


# --- what is asked for is looked at before anything is measured ---


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--plot", "x.jpg"], r"--plot x\.jpg: the name must end in \.png, \.svg, \.pdf"),
        (["--plot", "none/x.png"], r"--plot none/x\.png: cannot be written there"),
        (["--html", "/"], "--html /: is a folder"),
        (["--compare", "none.json"], r"none\.json: No such file"),
    ],
)
def test_what_cannot_be_done_is_said_first(arguments: list[str], complaint: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    def never(*_: object) -> Report:
        raise AssertionError("measured")

    with pytest.raises(BenchError, match=complaint):
        take("test", never, options(*arguments))


@pytest.mark.parametrize(("option", "module"), [("--plot=x.png", "matplotlib"), ("--html=x.html", "jinja2")])
def test_without_the_extra_a_sentence_says_what_to_install(option: str, module: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BenchError, match=rf"needs {module}, which is not installed: pip install 'hostd\[bench\]'$"):
        take("test", lambda *_: a_report(), options(option))
    assert extra.need("json", "anything") is json


def test_a_run_gets_its_machine_command_and_time(capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["hostd", "bench", "test", "a b"])
    assert take("test", lambda _, tell: tell("working") or a_report(), options("--json")) == 0
    printed = capsys.readouterr()
    found = Report.model_validate_json(printed.out)
    assert found.command == "hostd bench test 'a b'"
    assert found.machine["versions"]["hostd"]
    assert found.taken.endswith("+00:00")
    assert printed.err == "working\n"


def test_progress_on_a_terminal_is_a_bar_that_goes(monkeypatch) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        with progress() as tell:
            tell(Step("round 1 of 2: [pipe]", 1, 4))
            tell("more of it")
        terminal.flush()
        said = ""
        while "more of it" not in said or "\x1b[2K" not in said:
            assert select.select([ours], [], [], 10)[0], said
            said += os.read(ours, 65536).decode()
    os.close(ours)


# --- charts and the page ---


def test_every_series_figure_and_ratio_is_drawn() -> None:
    drawn = "".join(vector(panel) for panel in panels(a_report()))
    names = [*(f"way {line}" for line in range(10)), "ours", "theirs", "noise", "theirs/ours", "ours/theirs", "4Ki"]
    assert [name for name in names if f">{name}</text>" not in drawn] == []
    assert [panel.title for panel in panels(a_report())][:3] == ["by size (1 of 2)", "by size (2 of 2)", "guests"]
    for panel in panels(a_report()):
        ElementTree.fromstring(vector(panel))


def test_what_a_logarithmic_axis_has_no_place_for_is_left_out() -> None:
    series = Series(chart="c", line="l", x_label="x", y_label="y", x=(0, 1, 2), y=(1, -1, 5), log=True)
    nothing = series.model_copy(update={"chart": "d", "x": (0.0,), "y": (0.0,)})
    report = Report(bench="test", command="", machine={}, series=[series, nothing])
    assert all("</svg>" in vector(panel) for panel in panels(report))


def test_a_report_with_nothing_to_draw_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="nothing to draw"):
        plot.picture(Report(bench="test", command="", machine={}), tmp_path / "x.png")


class Page(HTMLParser):
    """Collects what a page refers to, and the pictures in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "data")]


def test_the_page_has_everything_and_needs_nothing_else() -> None:
    text = page(a_report())
    found = Page(text)
    assert "script" not in found.tags
    assert "b>'" not in found.tags
    assert len(found.links) == len(panels(a_report()))
    for link in found.links:
        kind, data = link.split(",", 1)
        assert kind == "data:image/svg+xml;base64"
        ElementTree.fromstring(base64.b64decode(data))
    assert "@import" not in text
    assert "url(" not in text
    for part in (
        "hostd bench test --x &#39;&lt;b&gt;&#39;",
        "some &lt;cpu&gt;",
        "24 GiB",
        "bounced 64 bytes by pipe",
        "No figure is given: its rounds lie between 1 and 90",
        "A note, with [brackets] and &lt;tags&gt;.",
        "args = [&#34;&lt;&amp;&gt;&#34;]",
        '<span class="missed">missed</span>',
    ):
        assert part in text


def test_a_page_without_anything_is_a_page() -> None:
    assert "</html>" in page(Report(bench="test", command="", machine={}))


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (123.4, "ns", "123 ns"),
        (1234.5, "ns", "1.23 us"),
        (0.0125, "s", "12.5 ms"),
        (0, "s", "0 ns"),
        (2.5 * (1 << 20), "bytes", "2.5 MiB"),
        (16.2e9, "bytes/s", "16.2 GB/s"),
        (133e6, "messages/s", "133 million messages/s"),
        (25474, "messages/s", "25,474 messages/s"),
        (0.04, "cores", "0.04 cores"),
        (-2048, "bytes", "-2 KiB"),
        (1.254, "ratio", "1.25"),
    ],
)
def test_quantities(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


def test_quantities_on_an_axis() -> None:
    assert [short(4096, "bytes of a message"), short(20000, "frames/s"), short(2000, "ns")] == ["4Ki", "20k", "2 us"]
