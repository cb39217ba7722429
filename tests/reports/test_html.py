"""The HTML report's content: what it shows, folds, and keeps to itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from convaudit.errors import ReportError
from convaudit.result import Location, TargetResult
from convaudit_reports import _blocks, _charts, _source, _vega, html

SOURCE = "\n".join(f"        line{n} = {n}" for n in range(1, 30))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch) -> Path:
    (tmp_path / ".git").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "models/basic.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.chdir(tmp_path / "models")
    return tmp_path


def test_a_finding_shows_two_lines_on_each_side(make, repository: Path) -> None:
    page = html.render(make.result(make.target()))

    assert [n for n in range(1, 30) if f"line{n} = {n}<" in page] == [12, 13, 14, 15, 16]
    assert "<code>line14 = 14</code>" in page
    assert "line14" not in html.render(make.result(make.target()), source=False)


@pytest.mark.parametrize("location", [
    Location("models/gone.py", 3), Location("models/basic.py", 99), Location("models", 1), Location("../secret.py", 1), Location(__file__, 1),
], ids=lambda at: Path(at.path).name)  # fmt: skip
def test_no_source_where_there_is_none(repository: Path, location: Location) -> None:
    (repository / "secret.py").write_text("secret", encoding="utf-8")

    assert _source.Sources().quote(location) is None


def test_library_source_is_shown_and_suppressed_in_the_settings(make) -> None:
    found = make.finding("CNV101", "warning", ["classifier.0"], location=Location("torch/nn/modules/linear.py", 12))

    page = html.render(make.result(make.target(findings=[found])))
    assert 'class="here"' in page
    assert "# convaudit: ignore[CNV101]" not in page
    assert "ignore-layers = {CNV101 =" in page


@pytest.mark.parametrize(("text", "shown"), [
    ("{root}/models/basic.py:3", "models/basic.py:3"),
    ("/other{root}/models/basic.py", "…/models/basic.py"),
    ("open '/home/someone/code/net.py'", "open '~/code/net.py'"),
    ("C:\\Users\\someone\\net.py", "~\\net.py"),
    ("/tmp/pytest/net.py:Net", "…/pytest/net.py:Net"),
    ("ImportError:/opt/a/b/c.so", "ImportError:…/b/c.so"),
    ("see https://pytorch.org/docs/stable and 1/2/3, a/b", "see https://pytorch.org/docs/stable and 1/2/3, a/b"),
])  # fmt: skip
def test_no_absolute_path_is_shown(make, repository: Path, text: str, shown: str) -> None:
    text = text.format(root=repository)
    result = make.result(make.target(text, notes=[text], findings=[make.finding("CNV101", "warning", [], message=text)]))

    target = _source.public(result).targets[0]
    assert [target.target, target.notes[0], target.findings[0].message] == [shown] * 3


def test_above_fifty_targets_only_the_worst_have_details(make) -> None:
    quiet = [make.target(f"m.py:Net{i}", findings=[]) for i in range(59)]
    loud = make.target("m.py:Loud")

    page = html.render(make.result(*quiet, loud, make.failed()))
    assert page.count('<details class="target"') == 20
    assert page.count('<th scope="row" class="mono">') - page.count('href="#t60"') >= 60
    assert {"t60", "t61"} <= set(re.findall(r'<details class="target" id="(\w+)"', page))


KINDS = (("Conv2d", "conv", 36_864, 115_605_504), ("BatchNorm2d", "norm", 128, 0), ("ReLU", "activation", 0, 0))


def deep(make, blocks: int) -> TargetResult:
    """A net of four stages of equal blocks, nine layers each."""
    rows = [
        make.row(f"stages.{s}.blocks.{b}.{kind}{i}", op, kind, [1, 64 << s, 64 >> s, 64 >> s], parameters, macs)
        for s in range(4)
        for b in range(blocks)
        for i in range(3)
        for op, kind, parameters, macs in KINDS
    ]
    modules = {f"stages.{s}.blocks.{b}": "Bottleneck" for s in range(4) for b in range(blocks)}
    return make.target("timm:deep", layers=rows, modules=modules)


def test_a_page_of_four_thousand_layers_stays_small(make) -> None:
    target = deep(make, 112)

    assert len(target.layers) > 4_000
    assert len(html.render(make.result(target)).encode()) < 3_000_000


def test_folding_loses_nothing(make) -> None:
    target = deep(make, 10)
    view = html.View("t1", target, [], True, True)
    shown = [row.parameters for row in target.layers if not view.folds(row)]
    rest = [view.rest(run)["parameters"] or 0 for run in map(view.ends, target.layers) if run]

    assert len(shown) == 4 * 9
    assert sum(shown) + sum(rest) == sum(row.parameters for row in target.layers)


def test_blocks_of_one_class_are_counted_and_others_keep_apart(make) -> None:
    def rows(*paths: str):
        return [make.row(p, "Conv2d", "conv", [1, 8, 8, 8], 9, 9) for p in paths]

    layers = rows("layer1.0.conv", "layer1.0.downsample", "layer1.1.conv", "layer1.2.conv", "layer1.3.conv", "head", "head2")
    modules = {f"layer1.{i}": "Bottleneck" for i in range(4)} | {"layer1": "Sequential", "": "Net"}
    layer1, head, head2 = _blocks.folded(make.target(layers=layers, modules=modules))

    assert (layer1.title, head.title, head2.title) == ("4 × Bottleneck", "Conv2d", "Conv2d")
    assert [(run.title, len(run.blocks)) for run in layer1.children] == [("Bottleneck", 1), ("3 × Bottleneck", 3)]
    assert [run.parameters for run in layer1.children] == [18, 27]


def test_a_gate_is_no_step_of_the_pyramid(make) -> None:
    layers = [
        make.row("stem", "Conv2d", "conv", [1, 8, 32, 32], 1, 1),
        make.row("se.reduce", "Conv2d", "conv", [1, 2, 1, 1], 1, 1),
        make.row("conv", "Conv2d", "conv", [1, 16, 16, 16], 1, 1),
        make.row("fc", "Linear", "linear", [1, 10], 1, 1),
    ]

    points = _charts.along(make.target(layers=layers))
    assert [(p.row.name, p.positions, p.channels) for p in points] == [("stem", 1024, 8), ("conv", 256, 16), ("fc", 1, 10)]


def test_treemap_is_of_the_whole(make) -> None:
    target = deep(make, 10)

    pieces = _charts._pieces(_blocks.tree(target), "macs")
    assert len(pieces) <= _charts.PIECES
    assert sum(number for _, number, _ in pieces) == target.totals.macs


def test_charts_say_nothing_of_what_is_not_known(make) -> None:
    unknown = make.target("weights.pt", kind="checkpoint", layers=[
        make.row("conv", "Conv2d", "conv", [1, 8, 8, 8], 9, None, activation_bytes=None, receptive_field=None),
        make.row("fc", "Linear", "linear", [1, 8], 9, None, activation_bytes=None, receptive_field=None),
    ])  # fmt: skip
    unknown.totals.macs = unknown.totals.flops = unknown.totals.activation_bytes = None
    for row in unknown.layers:
        row.output_shapes = None

    assert [cost.name for cost in _charts.costs(unknown)] == ["Parameters"]
    assert _charts.depth(unknown) == []
    assert html.render(make.result(unknown))


def test_no_source_on_the_command_line(repository: Path) -> None:
    (repository / "models/net.py").write_text(
        "from torch import nn\n\nclass Net(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Flatten(),\n"
        "                         nn.Linear(64 * 32 * 32, 100))  # the giant\n",
        encoding="utf-8",
    )
    for options, expected in ([], True), (["--no-source"], False):
        command = [sys.executable, "-m", "convaudit", "check", "net.py:Net", "--input", "1,3,32,32", "--exit-zero", "-o", "r.html", *options]
        subprocess.run(command, check=True, capture_output=True)
        page = (repository / "models/r.html").read_text(encoding="utf-8")
        assert ("the giant" in page) is expected
        assert str(repository) not in page


def test_a_chart_process_that_dies_is_replaced(make) -> None:
    _vega.VEGA.svg({"width": 10, "height": 10})
    process = _vega.VEGA.process
    assert process is not None
    process.kill()

    assert '<svg role="group"' in html.render(make.result(make.target()))
    assert _vega.VEGA.process is not process


def test_a_chart_that_cannot_be_drawn_is_said() -> None:
    with pytest.raises(ReportError, match="a chart cannot be drawn: vl-convert ended with exit code 1 3 times"):
        _vega.Vega().svg({"marks": 1, "width": {}})
