"""The HTML report's content: what it shows, folds, and keeps to itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from convaudit.errors import ReportError
from convaudit.result import InputInfo, Location, TargetResult
from convaudit_reports import _blocks, _charts, _figures, _source, _structure, _vega, html

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
    layer1, head, head2 = _structure.folded(make.target(layers=layers, modules=modules))

    assert (layer1.title, head.title, head2.title) == ("4 × Bottleneck", "Conv2d", "Conv2d")
    assert [(run.title, len(run.parts)) for run in layer1.children] == [("Bottleneck", 1), ("3 × Bottleneck", 3)]
    assert [run.parameters for run in layer1.children] == [18, 27]


def shown(runs: list[_structure.Run]) -> list[tuple[str, str, list[str] | None]]:
    return [(run.first.label, run.title, run.sources) for run in runs]


def test_each_call_has_its_place_and_says_what_it_joins(make) -> None:
    """A net of two steps down and up again with one pooling layer; its blocks use one activation twice."""

    def block(path: str, call: int = 0) -> list[tuple[str, str, int]]:
        return [(f"{path}.conv", "Conv2d", 0), (f"{path}.act", "ReLU", call)]

    calls = [*block("down.0"), ("pool", "MaxPool2d", 0), *block("down.1"), ("pool", "MaxPool2d", 1), *block("up.0"), ("cat", "cat", 0), ("cat", "cat", 1)]
    reads = [["input"], *([at] for at in range(7)), [7, 4], [8, 1]]
    layers = [
        make.row(name, op, "conv", [1, 8, 8 - at, 8], 9 * (not call), 9, call=call, inputs_from=read)
        for at, ((name, op, call), read) in enumerate(zip(calls, reads))
    ]
    modules = {"": "Net", "down": "ModuleList", "up": "ModuleList"} | dict.fromkeys(("down.0", "down.1", "up.0"), "Block")
    runs = _structure.folded(make.target(layers=layers, modules=modules))

    assert shown(runs) == [
        ("down.0", "Block", None), ("pool", "MaxPool2d", None), ("down.1", "Block", None), ("pool", "MaxPool2d", None),
        ("up.0", "Block", None), ("cat", "cat", ["up.0", "down.1"]), ("cat", "cat", ["cat", "down.0"]),
    ]  # fmt: skip
    assert [run.parameters for run in runs] == [18, 9, 18, 0, 18, 9, 0]
    assert [run.first.all_rows[-1].output_shapes[0][2] for run in runs] == [7, 6, 4, 3, 1, 0, -1]
    rails = [run.rail for run in runs]
    assert [(r.begins, r.passing, r.ends) for r in rails] == [
        ((0,), (), ()), ((), (0,), ()), ((1,), (0,), ()), ((), (0, 1), ()), ((), (0, 1), ()), ((), (0,), (1,)), ((), (), (0,)),
    ]  # fmt: skip


def test_branches_stay_apart_and_blocks_in_a_row_are_one(make) -> None:
    names = ["stem", *(f"mix.{b}.{part}" for b in range(2) for part in ("a.conv", "a.bn", "b.conv", "b.bn", "cat")), "end"]
    reads = [["input"], [0], [1], [0], [3], [2, 4], [5], [6], [5], [8], [7, 9], [10]]
    layers = [make.row(name, "Conv2d", "conv", [1, 8, 8, 8], 9, 9, inputs_from=read) for name, read in zip(names, reads)]
    modules = {"": "Net", "mix": "Sequential"} | {f"mix.{b}{part}": "Mix" if not part else "Branch" for b in range(2) for part in ("", ".a", ".b")}
    _, mix, _ = _structure.folded(make.target(layers=layers, modules=modules))
    (blocks,) = mix.children

    assert (blocks.title, blocks.inside, mix.inside) == ("2 × Mix", ("branches", 2), blocks.inside)
    assert shown(blocks.children) == [("a", "Branch", None), ("b", "Branch", [""]), ("cat", "Conv2d", ["a", "b"])]


def test_what_is_read_is_said_without_lines_too(make) -> None:
    layers = [make.row(name, "Conv2d", "conv", [1, 8, 8, 8], 9, 9, inputs_from=read) for name, read in (("a", ["input"]), ("b", [0]), ("c", [1, 0]))]
    known, unknown = make.target(layers=layers), make.target(status="partial")
    unknown.layers[0].macs = None
    page, bound = (html.render(make.result(target)) for target in (known, unknown))

    assert "joins b + a</span>" in page
    assert page.count('<svg class="rail" aria-hidden="true">') == 3
    assert '<svg class="rail"' not in bound
    assert "<span>≥ " in bound.split('class="graph"')[1]


@pytest.mark.parametrize("options", [
    ["--input", "1,3,16,16", "--flop-convention", "two-per-mac"], ["--input-from", "net.py:make", "--ignore", "CNV101,CNV103"],
    ["--input", "1,3,32,32", "--submodule", "1"],
], ids=lambda options: options[0])  # fmt: skip
def test_the_command_that_repeats_an_audit(tmp_path: Path, monkeypatch, options: list[str]) -> None:
    """Of one that failed too: what was given stands in it."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "import torch\nfrom torch import nn\ndef make():\n    return torch.zeros(1, 3, 16, 16)\n"
        "class Net(nn.Sequential):\n    def __init__(self):\n        super().__init__(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3600, 2))\n"
    )
    command = [sys.executable, "-m", "convaudit", "check", "net.py:Net", *options, "--format", "html", "--exit-zero"]
    page = subprocess.run(command, capture_output=True, text=True, check=False).stdout

    assert f"<pre>{' '.join(['convaudit', 'check', 'net.py:Net', *options])}</pre>" in page
    assert re.search(r"convaudit \S+ · Python 3\.\d+\.\d+ · torch 2\.", page)


def test_a_gate_is_no_step_of_the_pyramid(make) -> None:
    layers = [
        make.row("stem", "Conv2d", "conv", [1, 8, 32, 32], 1, 1),
        make.row("se.reduce", "Conv2d", "conv", [1, 2, 1, 1], 1, 1),
        make.row("conv", "Conv2d", "conv", [1, 16, 16, 16], 1, 1),
        make.row("fc", "Linear", "linear", [1, 10], 1, 1),
    ]

    points = _charts.along(make.target(layers=layers))
    assert [(p.row.name, p.positions, p.channels) for p in points] == [("stem", 1024, 8), ("conv", 256, 16), ("fc", 1, 10)]


def test_no_receptive_field_is_drawn_behind_the_first_unbounded_one(make) -> None:
    fields = ([3, 3], [5, 5], "unbounded", [7, 7], "unbounded", [9, 9])
    layers = [
        make.row(f"conv{i}", "Conv2d", "conv", [1, 8 + i, 16, 16], 1, 1, receptive_field=field, receptive_field_largest=field)
        for i, field in enumerate(fields)
    ]  # fmt: skip
    picture = _charts.depth(make.target(layers=layers))[0]
    lines = re.findall(r'<path [^>]*\bd="([^"]*)"[^>]*stroke="var\(--memory\)"', picture)

    assert _charts.unbounded_from(make.target(layers=layers)) == "conv2"
    assert [re.sub(r"[\d.,]+", "", line) for line in lines] == ["ML", "ML"]  # two points each


def test_treemap_is_of_the_whole(make) -> None:
    target = deep(make, 10)

    pieces = _charts._pieces(_blocks.tree(target), "macs")
    assert len(pieces) <= _charts.PIECES
    assert sum(number for _, number, _ in pieces) == target.totals.macs


def test_a_long_sequence_that_is_most_of_the_model_is_split(make) -> None:
    rows = [make.row(f"features.{at}", "Conv2d", "conv", [1, 8, 8, 8], 9, 100 - at) for at in range(40)]
    pieces = _charts._pieces(_blocks.tree(make.target(layers=[*rows, make.row("fc", "Linear", "linear", [1, 8], 9, 1)])), "macs")

    assert pieces[0] == ("features.0", 100, "conv")
    assert (len(pieces), pieces[-1][0]) == (_charts.PIECES, "14 others")
    assert sum(number for _, number, _ in pieces) == sum(row.macs for row in rows) + 1


def names_on(picture: str) -> list[str]:
    """The bold texts of a treemap; two lines of one name are one."""
    bold = re.findall(r'<text [^>]*font-weight="600"[^>]*>(.*?)</text>', picture, re.DOTALL)
    return [re.sub(r"<[^>]+>", "", text) for text in bold if text]


def test_no_two_names_of_a_treemap_are_equal_or_numbers(make) -> None:
    names = [f"layer{layer}.{block}.conv{i}.{n}" for layer in (1, 4) for block in (0, 1) for i in (1, 2) for n in (0, 1)]
    rows = [make.row(name, "Conv3d", "conv", [1, 8, 4, 4, 4], 500 + at, 500 + at) for at, name in enumerate([*names, "up.0", "up.1"])]
    shown = names_on(_charts.costs(make.target(layers=rows))[0].treemap)

    assert len(shown) > 8
    assert len(set(shown)) == len(shown)
    assert all(re.search(r"[a-z]", name) for name in shown)


@pytest.mark.parametrize("label", ["", ".", "a..b", "a.", "0.1.2", "…"])
def test_any_name_has_ends(label: str) -> None:
    ends = _charts._ends(label, ["x.b", "a"])

    assert ends["first"] + ends["second"] == label
    assert all(label.endswith(ends[field]) for field in _charts._END_FIELDS)


def test_what_never_ran_is_called_so_in_every_chart(make) -> None:
    idle = make.row("aux.fc", "Linear", "module", [1, 10], 900_000, 0, call=None, activation_bytes=0)
    idle.output_shapes = None
    target = make.target(layers=[*make.target().layers, idle])
    cost = _charts.costs(target)[0]

    assert "idle" in cost.kinds
    assert 'fill="var(--idle)"' in cost.treemap
    assert "not called: 900k" in cost.stages
    assert [s.label for s in _figures.by_stage(target)][-2:] == ["no resolution", "not called"]
    assert re.search(r'<span class="mono">aux\.fc</span>.*not called', html.render(make.result(target)))


@pytest.mark.parametrize(("read", "drawn", "title"), [
    ([1, 3, 32, 32], True, "Receptive field: pixels"), ([1, 100, 1, 1], False, None), ([1, 1, 16_000], True, "Receptive field: samples"),
])  # fmt: skip
def test_receptive_fields_are_drawn_where_there_is_something_to_see(make, read: list[int], drawn: bool, title: str | None) -> None:
    ahead = [4096, 1024, 256, 64]
    layers = [
        make.row(f"conv{at}", "Conv", "conv", [1, 8, number] if len(read) == 3 else [1, 8, number, number], 1, 1, input_shapes=[read])
        for at, number in enumerate(ahead)
    ]  # fmt: skip
    target = make.target(layers=layers, inputs=[InputInfo(read, "float32", "option")])
    page = html.render(make.result(target))

    assert _charts.shows_fields(target) is drawn
    assert ("the path that sees most" in page) is drawn
    assert title is None or title in page


def test_a_rule_s_words_in_backticks_are_code(make) -> None:
    page = html.render(make.result(make.target(findings=[make.finding("CNV601", "error", [])])))

    assert "<code>pickle.load</code>" in page
    assert "`" not in page[page.index("<main") : page.index("<script")]


def test_blocks_that_are_all_alike_say_their_skip_at_once(make) -> None:
    rows = [make.row("stem", "Conv2d", "conv", [1, 8, 8, 8], 1, 1, inputs_from=["input"])]
    for block in range(2):
        at = len(rows)
        rows += [
            make.row(f"layer.{block}.conv", "Conv2d", "conv", [1, 8, 8, 8], 1, 1, inputs_from=[at - 1]),
            make.row(f"layer.{block}.add", "add", "elementwise", [1, 8, 8, 8], 0, 0, inputs_from=[at, at - 1]),
        ]
    modules = {"layer": "Sequential", "layer.0": "Block", "layer.1": "Block"}
    layer = _structure.folded(make.target(layers=rows, modules=modules))[1]

    assert (layer.title, layer.inside) == ("2 × Block", ("skip", 1))


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


@pytest.mark.parametrize(("status", "uncounted", "bounds"), [("ok", [], 0), ("ok", ["op"], 3), ("partial", [], 6)])
def test_lower_bounds_are_marked_in_figures_and_charts(make, status: str, uncounted: list[str], bounds: int) -> None:
    part = make.target(status=status)
    part.totals.uncounted_ops = uncounted

    assert html.render(make.result(part)).count("≥ ") == bounds  # MACs twice, FLOPs; peak and all activations, their chart


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
    assert '<svg role="group"' in html.render(make.result(make.target()))
    process = _vega.VEGA.process
    assert process is not None
    process.kill()

    assert '<svg role="group"' in html.render(make.result(make.target()))
    assert _vega.VEGA.process is not process


VALUES = {"name": "a", "values": [{"x": 1}]}


def spec(data: object = VALUES, x: object = {"field": "x"}, **more: Any) -> dict[str, Any]:
    mark = {"type": "rect", "from": {"data": "a"}, "encode": {"enter": {"x": x, "width": {"value": 5}, "height": {"value": 5}}}}
    return {"width": 10, "height": 10, "data": [data], "marks": [mark | more]}


@pytest.mark.parametrize(("bad", "said"), [
    (spec({"name": "b", "values": []}), 'Error: Undefined data set name: "a"'),
    (spec(VALUES | {"transform": [{"type": "stratify", "key": "x", "parentKey": "x"}]}), "Error: "),
    (spec(x={"signal": "datum.y.z"}), "TypeError: Cannot read"),
    (spec(x={"scale": "none", "field": "x"}), "TypeError: "),
    (spec(type="none"), "TypeError: "),
    (spec({"name": "a", "values": []}), "nothing to see in it"),
], ids=["no data", "transform", "expression", "scale", "mark", "empty"])  # fmt: skip
def test_a_picture_that_vega_gives_up_on_is_an_error(bad: dict[str, Any], said: str) -> None:
    vega = _vega.Vega()

    assert "<path" in vega.svg(spec())
    for _ in range(2):  # what was said of one is not said of the next
        with pytest.raises(ReportError, match=re.escape(said)):
            vega.svg(bad)
        assert "<path" in vega.svg(spec())


def test_a_chart_that_cannot_be_drawn_is_said_in_its_place(make, monkeypatch) -> None:
    monkeypatch.setattr(_charts, "_STRETCH", "(")  # breaks the treemap's specification alone
    page = html.render(make.result(make.target()))

    assert page.count("This chart could not be drawn: Error: Expression parse error") == 3
    assert page.count('<svg role="group"') > 3


def test_checkpoints_are_compared_by_their_rules_and_size(make) -> None:
    def stored(name: str, rule: str, globals_: list[str]) -> TargetResult:
        made = make.target(name, kind="checkpoint", findings=[make.finding(rule, "error", [], message="calls posix.system('cat /etc/a/b')", evidence={"globals": globals_})])
        made.totals.macs, made.totals.file_bytes = None, 1_000_000
        return made

    page = html.render(make.result(stored("a.pt", "CNV601", ["posix.system"]), stored("b.pt", "CNV602", [])))
    table = page[page.index("<table data-sort>") : page.index("</table>")]
    assert ("CNV601" in table, "CNV602" in table, "1.00 MB" in table, "MACs" in table) == (True, True, True, False)
    assert "system(&#39;cat /etc/a/b&#39;)" in page  # a payload is no path of this machine

    table = html.render(make.result(stored("a.pt", "CNV601", []), make.target())).partition("</table>")[0]
    assert "MACs" in table
