"""The Markdown report, as GitHub and GitLab show it."""

from __future__ import annotations

from typing import Any

import pytest
from support.rendered import REFERENCE, Page, github, gitlab

from convaudit.comparison import Side, compare
from convaudit.result import AuditResult, CheckpointInfo, GlobalRow, Saving, TensorRow
from convaudit_reports import _diff, markdown

HOSTS = [github, gitlab]
TAGS = set("h2 p code strong ol ul li table thead tbody tr th td details summary".split())
NAMES = [
    "@octocat", "#1", "owner/repo#1", "GH-12", "www.evil.example", "https://evil.example", "mailto:a@evil.example",
    "![x](http://evil.example/p.png)", "[x](javascript:alert)", "[[wiki|page]]", "<script>x</script>", "<a href=x>y</a>",
    "</details></summary>", "<!-- ", "-->", "a|b", "a\\|b", "`", "``a```", "a`", "&lt;b&#64;c", "*a* _b_ ~~c~~", "$a$", "$`a`$",
    "!12", "~label", "%1", "deadbeefcafe", ":tada:", "^alert#1", "JIRA-12", "- a", "1. a", "# a", "> [!NOTE]", "a\nb\n\nc",
    "[ ] task", ": term", "===", "\\", "\\`", "a\u202eb\x1b[31m", "x" * 10_000, "[^1]", "\u0645\u0631\u062d\u0628\u0627", "::stop-commands::x", "=cmd()", "|", "",
]  # fmt: skip


def hostile(make: Any, name: str) -> AuditResult:
    """A result whose every text is ``name``: a model that has findings, one that failed, and a checkpoint."""
    saving = Saving((10, 5), None, None)
    found = make.finding("CNV101", "warning", [name, f"{name}2"], saving, message=name, suggestion=name)
    model = make.target(name, findings=[found, make.finding(name, "info", [], message=f"the {name} of {name}")], notes=[name])
    for row in model.layers:
        row.name, row.op = f"{name}.{row.name}", name
    model.totals.uncounted_ops = [name]
    broken = make.failed(name)
    broken.error.message = broken.error.type = broken.error.path = name
    held = make.target(name, kind="checkpoint", layers=[make.row(name, name, "conv", [1], 1, None)], notes=[name])
    held.checkpoint = CheckpointInfo(
        "torch-zip", None, False, [TensorRow(name, [2, 2], name, 16, None, "parameter")],
        [GlobalRow(name, "code", True, name, 3, name)],
    )  # fmt: skip
    return make.result(model, broken, held)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_text_wherever_it_stands(make, name: str, host) -> None:
    several = hostile(make, name)

    for found in (several, *(make.result(target) for target in several.targets)):
        page = host(markdown.render(found))
        assert page.tags <= TAGS, page.tags - TAGS
        assert not page.attributes
        assert not REFERENCE.search(page.text), REFERENCE.search(page.text)
        assert all(len(set(rows)) == 1 for rows in page.tables), page.tables


@pytest.mark.parametrize("name", [n for n in NAMES if n.strip() and n.isprintable() and len(n) < 100])
def test_a_name_is_shown_as_it_is(make, name: str) -> None:
    page = github(markdown.render(make.result(hostile(make, name).targets[2])))

    assert page.codes.count(name) >= 5  # the heading, a tensor, its dtype, a global, its layer


def test_plain_sentences_stay_sentences() -> None:
    said = (
        "Linear 25,088→4,096 reads a flattened 512×7×7 map: 102,760,448 weights, 74% of the model (inferred); it isn't "
        "“small” — 3×3 and 1/2, forward() got 'x', +5.0% (−72.8%), ≤ 1.5 MB, e.g. channels-last."
    )

    assert markdown.prose(said) == said.replace("“small”", "`“small”`").replace("—", "`—`")
    assert markdown.prose("or for torch.save(model.state_dict()), (or f_(x)).") == "or for `torch.save(model.state_dict())`, (or `f_(x)`)."
    assert markdown.prose("run f.g_h([a.B, c_d.E]) then load") == "run `f.g_h([a.B, c_d.E])` then load"
    assert markdown.prose("would call os.system('cat /etc/x y') here") == "would call `os.system('cat /etc/x y')` here"
    assert markdown.prose("a `b` (my_net.py:3)") == "a `` `b` `` (`my_net.py:3`)"


@pytest.mark.parametrize("host", HOSTS)
def test_what_to_change_is_read_without_unfolding(make, host) -> None:
    page = host(markdown.render(make.result(make.target())))

    first = page.unfolded
    assert "convaudit: 2 warnings and 1 info, 1 suppressed" in first
    assert "1,073,611" in first
    assert "parameters 1,193,642 → 274,250 (−77.0%)" in first
    assert "models/basic.py:14" in first
    assert "also CNV103" in first
    assert "pool to 2×2" not in first
    assert "features.1" not in first
    assert len(first) < 800


def test_the_first_findings_are_the_worst_of_all_targets(make) -> None:
    def of(name: str, line: int, rule: str, severity: str, saved: int) -> Any:
        where = make.finding("x", "info", []).location.__class__(f"{name}.py", line)
        return make.target(name, findings=[make.finding(rule, severity, ["a"], Saving((saved, 0), None, None), location=where)])

    several = make.result(
        of("a", 1, "CNV101", "warning", 5), of("b", 2, "CNV102", "warning", 9), of("a", 1, "CNV101", "warning", 7),
        of("c", 3, "CNV002", "error", 0), of("d", 4, "CNV103", "info", 99), of("e", 5, "CNV104", "warning", 6),
    )  # fmt: skip

    assert [(f.rule, markdown._figures.saved_parameters(f)) for _, f, _ in markdown.worth_changing(several)] == [
        ("CNV002", 0), ("CNV102", 9), ("CNV101", 7),
    ]  # fmt: skip


def test_the_worst_targets_are_shown_where_not_all_fit(make) -> None:
    rows = [make.row(f"features.{at}.conv", "Conv2d", "conv", [1, 8, 8, 8], 9, 9) for at in range(40)]
    calm = [make.target(f"calm{at}", layers=rows, findings=[]) for at in range(60)]
    page = markdown.render(make.result(*calm, make.target("grave"), make.failed("lost")))

    assert "other targets are left out here" in page
    for name in ("grave", "lost"):
        assert f"<details><summary><code>{name}</code>" in page


def test_a_failed_target_claims_neither_counts_nor_alternatives(make) -> None:
    page = markdown.render(make.result(make.failed("lost")))

    assert "## convaudit: 1 error; could not be audited\n" in page
    assert "counts are for" not in page
    plain = [make.finding("CNV301", "info", ["features.0"])]
    assert "with alternatives" not in markdown.render(make.result(make.target(findings=plain)))


def test_a_checkpoint_says_what_it_holds_and_what_it_would_import(make) -> None:
    tensors = [
        TensorRow("a", [2, 3], "float32", 24, "0", "parameter"), TensorRow("tied", [2, 3], "float32", 24, "0", "parameter"),
        TensorRow("mean", [3], "float32", 12, "1", "buffer"), TensorRow("odd", None, "unknown", None, None, "other"),
    ]  # fmt: skip
    imports = [GlobalRow("torch._utils.f", "tensors", True, "data.pkl", 3), GlobalRow("os.system", "code", True, "data.pkl", 9, "'id'")]
    rows = [make.row(name, "Conv2d", "conv", [1], 6, None, call=None) for name in ("a", "b")]
    held = make.target("w.pt", kind="checkpoint", layers=rows, findings=[])
    held.totals.macs = held.totals.flops = None
    held.checkpoint = CheckpointInfo("torch-zip", None, False, tensors, imports)

    out = markdown.render(make.result(held))
    assert "| parameter | `float32` | 2 | 12 | 24 B |" in out
    assert "| buffer | `float32` | 1 | 3 | 12 B |" in out
    assert "| other | `unknown` | 1 | not known | not known |" in out
    assert "1 of the tier “code” (1 called), 1 of the tier “tensors” (1 called)" in out
    assert "| `a` | 6 | 50.0% |" in out
    assert "MACs" not in out
    assert "| code | `os.system` | `'id'` | `data.pkl` at byte 9 |" in out


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(("targets", "layers"), [(60, 300), (1, 2_000), (60, 2_000), (500, 8)])
def test_it_fits_a_comment_and_is_whole(make, host, targets: int, layers: int) -> None:
    rows = [make.row(f"stages.{i}.`|`{'x' * 60}", "Conv2d", "conv", [1, 8, 8, 8], 9, 9) for i in range(layers)]
    found = [make.finding("CNV201", "warning", [r.name], message="m" * 900) for r in rows[:100]]
    big = make.target("t" * 300, layers=rows, findings=found, notes=["n" * 900] * 50)

    out = markdown.render(make.result(*[big] * targets))
    page: Page = host(out)
    assert 20_000 < len(out) < 65_000
    assert all(len(set(counts)) == 1 for counts in page.tables)
    assert page.tags <= TAGS


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_text_in_a_diff(make, name: str, host) -> None:
    old, new = hostile(make, name), hostile(make, name)
    old.targets[0].findings = old.targets[2].findings
    new.targets[0].layers = [*new.targets[0].layers[1:], make.row(name, name, "conv", [1, 2], 7, 9)]
    new.targets[0].totals.parameters += 100
    page = host(_diff.markdown(compare(Side(name, None, None), old, Side(f"{name}2", None, None), new)))

    assert page.tags <= TAGS | {"h3", "h4", "blockquote"}
    assert not page.attributes
    assert not REFERENCE.search(page.text), REFERENCE.search(page.text)
    assert all(len(set(rows)) == 1 for rows in page.tables)


def test_one_of_a_kind_is_not_all_of_them(make) -> None:
    one = make.row("conv", "Conv2d", "conv", [1, 8, 8, 8], 9, 9)

    assert "<summary>1 layer row</summary>" in markdown.render(make.result(make.target(layers=[one])))
    assert "<summary>All 8 layer rows</summary>" in markdown.render(make.result(make.target()))


def test_a_new_finding_of_a_diff_says_what_following_it_saves(make) -> None:
    old, new = make.result(make.target(findings=[])), make.result(make.target())
    out = _diff.markdown(compare(Side("old", None, None), old, Side("new", None, None), new))

    assert "  - Instead: global average pooling, then Linear(128, 512): parameters 1,193,642 → 274,250 (**−77.0%**)" in out


@pytest.mark.parametrize(("status", "uncounted", "bounds"), [("ok", [], ""), ("ok", ["op"], "macs"), ("partial", [], "macs, activations")])
def test_lower_bounds_are_marked(make, status: str, uncounted: list[str], bounds: str) -> None:
    part = make.target(status=status)
    part.totals.uncounted_ops = uncounted
    single, several = markdown.render(make.result(part)), markdown.render(make.result(part, make.target()))

    for figure, where in (("6.66M MACs", several), ("6.66M |", single)):
        assert (f"≥ {figure}" in where) is ("macs" in bounds)
    assert (single.count("≥ 262 kB"), several.count("≥ 262 kB")) == ((1, 2) if "activations" in bounds else (0, 0))


def test_no_home_folder_in_a_message(make) -> None:
    found = make.finding("CNV101", "warning", ["fc"], message="read of /home/someone/weights.pt failed")
    page = markdown.render(make.result(make.target(findings=[found])))

    assert "/home" not in page
    assert "someone" not in page
