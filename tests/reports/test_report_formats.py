from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import msgspec
import pytest

import convaudit
from convaudit_reports import _figures, html, markdown, text
from convaudit_reports import json as json_format

FORMATS = [text, json_format, markdown, html]
SCHEMA = Path(convaudit.__file__).parent / "schema" / "audit-result-1.schema.json"


@pytest.mark.parametrize("module", FORMATS, ids=lambda m: m.NAME)
def test_every_format_renders_every_kind_of_target(make, module) -> None:
    several = make.result(make.target(), make.failed(), make.hostile(), make.target("weights.pt", kind="checkpoint"))

    assert module.render(several, color=False, width=80, show_info=True, unknown_option=1)
    assert module.render(make.result())


@pytest.mark.parametrize("module", [text, markdown, html], ids=lambda m: m.NAME)
def test_hostile_names_stay_names(make, module) -> None:
    out = module.render(make.result(make.hostile()), show_info=True)

    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "{{7*7}}" in out.replace("\\", "")
    if module is html:
        assert "<script>alert" not in out
        assert out.count("<script>") == 1
    if module is markdown:
        prose = re.sub(r"(?s)(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", "", out.replace("\\`", ""))
        assert not re.search(r"(?<!\\)<script", prose)
        assert "@someone" not in prose


def test_text_groups_by_layer_and_marks_inferred_inputs(make) -> None:
    out = text.render(make.result(make.target()))

    assert out.splitlines()[0].startswith(
        "models/basic.py:BasicCNN: 1,073,611 parameters, 6.66M MACs, 6.66M FLOPs (fvcore)"
    )
    assert "1×3×32×32 float32 (inferred)" in out
    assert "models/basic.py:14: CNV101 warning classifier.0: a Linear reads" in out
    assert "1,193,642 → 274,250 (−77.0%)" in out
    assert "also CNV103" in out
    assert "convs hold" not in out
    assert "convs hold" in text.render(make.result(make.target()), show_info=True)
    assert "CNV201" not in out
    assert "1 suppressed" in out
    assert out.count("convaudit rule") == 1


def test_what_another_fix_answers_keeps_its_message(make) -> None:
    wide, dead = (make.finding(rule, "warning", ["head"], suggestion=rule.lower()) for rule in ("CNV101", "CNV404"))

    assert "also CNV404 a Linear reads a flattened 128×4×4 map; cnv404\n" in text.render(make.result(make.target(findings=[wide, dead])))


@pytest.mark.parametrize(
    ("layer", "message", "said"),
    [("conv", "7×7 convolution 3→8", "conv: 7×7 conv"), ("3", "3 stacked 3×3", "3: 3 stacked"), ("fc", "fc and fc2 are one", " fc and"), ("0", "0 holds 62%", " 0 holds")],
)
def test_text_names_the_layer_once(make, layer: str, message: str, said: str) -> None:
    [line] = [line for line in text.render(make.result(make.target(findings=[make.finding("CNV201", "warning", [layer], message=message)]))).splitlines() if message in line]
    assert f" warning {said.strip()}" in line
    assert line.count(f"{layer}: ") == said.count(":")


def test_text_stops_at_25_lines_and_counts_the_rest(make) -> None:
    many = make.target(findings=[make.finding("CNV201", "warning", [f"l{i}"]) for i in range(40)])

    lines = text.render(make.result(many)).splitlines()
    assert len(lines) <= 25
    left = next(line for line in lines if line.startswith("…"))
    shown = sum("CNV201 warning" in line for line in lines)
    assert f"… {40 - shown} more" in left
    assert text.render(make.result(many), show_info=True).count("CNV201 warning") == 40


def test_text_says_why_totals_are_lower_bounds(make) -> None:
    partial = make.target(status="partial", notes=["a ScriptModule is opaque"])
    partial.totals.uncounted_ops = ["aten::foo"]

    out = text.render(make.result(partial))
    assert "≥ 6.66M MACs" in out
    assert "lower bounds" in out
    assert "a ScriptModule is opaque" in out
    assert "uncounted: aten::foo" in out


def test_parameters_of_a_checkpoint_are_a_lower_bound_without_a_model_alone(make) -> None:
    beside = make.target(kind="checkpoint", status="partial")
    alone = make.target(kind="checkpoint", status="partial")
    alone.totals.macs = alone.totals.flops = None
    first, second = (text.render(make.result(target)).splitlines()[0] for target in (beside, alone))

    assert "≥ 6.66M MACs" in first
    assert ["≥ " in line.partition(" parameters")[0] for line in (first, second)] == [False, True]


def test_failed_target_is_one_line(make) -> None:
    out = text.render(make.result(make.failed())).splitlines()

    assert out[0] == "broken.py:Net: not audited (step construct at broken.py:7): ValueError: no way"


def test_colour_changes_nothing_but_colour(make) -> None:
    several = make.result(make.target(), make.hostile())

    colored = text.render(several, color=True, width=60)
    assert "\x1b[" in colored
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == text.render(several, width=60)


def test_plain_text_imports_neither_rich_nor_jinja_nor_torch() -> None:
    root = Path(convaudit.__file__).parents[1]
    code = (
        "import sys; sys.path[:0] = ['.', 'reports', 'rules']\n"
        "import convaudit_reports.text, convaudit_reports.json, convaudit_reports.markdown, convaudit_reports.html\n"
        "from convaudit.result import AuditResult, summarise\n"
        "convaudit_reports.text.render(AuditResult(1, '0', [], summarise([])))\n"
        "print([m for m in ('rich', 'jinja2', 'torch') if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(msgspec.__version__ < "0.20", reason="it orders alternatives in another way")
def test_schema_is_up_to_date() -> None:
    again = "write convaudit_reports.json.schema_text() to the schema's file"
    assert SCHEMA.read_text(encoding="utf-8") == json_format.schema_text(), again


def test_json_validates_and_keeps_everything(make) -> None:
    several = make.result(make.target(), make.failed(), make.hostile(), make.target("odd\udc80name"))

    data = json.loads(json_format.render(several))
    jsonschema.validate(data, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert data["targets"][2]["target"] == make.HOSTILE
    assert len(data["targets"][0]["findings"]) == 4


@pytest.mark.parametrize("breakdown", [_figures.by_stage, _figures.by_module, _figures.by_layer])
def test_every_breakdown_sums_to_the_totals(make, breakdown) -> None:
    target = make.target()

    shares = breakdown(target)
    assert sum(s.parameters for s in shares) == target.totals.parameters
    assert sum(s.macs for s in shares) == target.totals.macs
    assert sum(s.rows for s in shares) == len(target.layers)


def test_stages_are_resolutions(make) -> None:
    assert [s.label for s in _figures.by_stage(make.target())] == ["32×32", "16×16", "4×4", "vector", "no resolution"]


def test_tokens_windows_and_channels_last_share_a_stage(make) -> None:
    rows = [
        make.row("patch", "Conv2d", "conv", [1, 96, 56, 56], 1, 1),
        make.row("norm", "LayerNorm", "norm", [1, 56, 56, 96], 1, 1),
        make.row("qkv", "Linear", "linear", [64, 49, 288], 1, 1),
        make.row("attn", "matmul", "matmul", [64, 3, 49, 49], 0, 1),
    ]
    assert [(s.label, s.rows) for s in _figures.by_stage(make.target(layers=rows))] == [("56×56", 4)]


def test_bars_that_are_left_out_are_summed(make) -> None:
    rows = [make.row(f"m{i}", "Conv2d", "conv", [1, 8, 8, 8], i + 1, i + 1) for i in range(30)]

    made = _figures.bars(_figures.by_module(make.target(layers=rows)), 10)
    assert len(made) == 10
    assert made[-1].label == "21 others"


@pytest.mark.parametrize("layers", [5, 500, 5_000])
@pytest.mark.parametrize("targets", [1, 30])
def test_markdown_always_fits_a_comment(make, layers: int, targets: int) -> None:
    rows = [make.row(f"blocks.{i}.{'x' * 300}", "Conv2d", "conv", [1, 8, 8, 8], 9, 9) for i in range(layers)]
    found = [make.finding("CNV201", "warning", [r.name], message="m" * 5000) for r in rows[:300]]
    big = make.target("t" * 3000, layers=rows, findings=found, notes=["n" * 9000] * 50)

    out = markdown.render(make.result(*[big] * targets))
    assert len(out) < 65_000
    assert out.count("<details>") == out.count("</details>")


def test_markdown_code_spans() -> None:
    assert markdown.code("a`b``c") == "```a`b``c```"
    assert markdown.code("`a") == "`` `a ``"
    assert markdown.code("a\nb") == "`a\\nb`"


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1193642, "1.19M"), (999_999, "1.00M"), (None, "not known")]
)
def test_short_numbers(number: int | None, text: str) -> None:
    assert _figures.short(number) == text


def test_changes() -> None:
    assert _figures.change(1_193_642, 274_250) == "−77.0%"
    assert _figures.change(0, 5) == ""
    assert _figures.change(5, 5) == "±0%"
    assert _figures.change(100, 150) == "+50.0%"


@pytest.mark.parametrize(
    ("after", "said"), [(10_000, "±0%"), (10_001, "+<0.1%"), (9_999, "−<0.1%"), (10_006, "+0.1%"), (9_990, "−0.1%")]
)
def test_a_change_too_small_to_show_is_no_zero(after: int, said: str) -> None:
    assert _figures.change(10_000, after) == said


def test_json_holds_nothing_that_a_terminal_obeys(make) -> None:
    """The values are the same."""
    name = "a\x7f\x9b31m\u202egpj\u2028\U000e0001卷积"
    out = json_format.render(make.result(make.target(name)))

    assert not set(name[:-2]) - set("a31mgpj") & set(out)
    assert "卷积" in out
    assert json.loads(out)["targets"][0]["target"] == name
