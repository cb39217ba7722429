"""The HTML report in a real browser."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import pytest

from convaudit_reports import html

CHROMIUM = Path("/usr/bin/chromium")
AXE = Path(__file__).parents[2] / ".venv/axe-core/node_modules/axe-core/axe.min.js"
WIDTHS = (360, 768, 1440)
pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser, tmp_path: Path):
    """Opens a result's page in a context of its own; whatever it says or asks for fails the test."""
    said, contexts = [], []

    def open_page(result, *, bypass_csp: bool = False, **context):
        file = tmp_path / "report.html"
        file.write_text(html.render(result), encoding="utf-8")
        contexts.append(browser.new_context(bypass_csp=bypass_csp, **context))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: said.append(request.url) if request.url != file.as_uri() else None)
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def blocks(make, count: int, **more):
    """A net of equal blocks of six layers each."""
    kinds = [("conv1", "Conv2d", "conv"), ("bn1", "BatchNorm2d", "norm"), ("act1", "ReLU", "activation")] * 2
    names = [f"{name[:-1]}{1 + (i > 2)}" for i, (name, _, _) in enumerate(kinds)]
    rows = [
        make.row(f"layer.{block}.{name}", op, kind, [1, 64, 16, 16], 10 + block, 100)
        for block in range(count)
        for name, (_, op, kind) in zip(names, kinds)
    ]
    modules = {f"layer.{block}": "Bottleneck" for block in range(count)} | {"layer": "Sequential"}
    return make.target("blocks.py:Net", layers=rows, modules=modules, **more)


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_opens_at_every_width(make, opened, scheme: str, script: bool) -> None:
    many = make.result(make.target(), make.failed(), make.hostile(), blocks(make, 60))
    page = opened(many, color_scheme=scheme, java_script_enabled=script)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert page.locator("html").evaluate("e => e.scrollWidth") <= width
        if shots := os.environ.get("CONVAUDIT_SHOTS"):
            page.screenshot(path=f"{shots}/{scheme}-{width}.png", full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(make, opened, scheme: str) -> None:
    if not AXE.exists():
        pytest.skip("axe-core could not be had from npm")
    page = opened(make.result(make.target(), make.failed(), blocks(make, 60)), bypass_csp=True, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    page.evaluate(AXE.read_text(encoding="utf-8"))

    found = page.evaluate("axe.run(document)")["violations"]
    serious = [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")]
    assert serious == []


def test_sorts_and_filters_the_layers(make, opened) -> None:
    page = opened(make.result(make.target()))
    table = page.locator("table[data-layers]")
    rows = table.locator("tbody tr:visible")

    table.get_by_role("button", name="Parameters").click()
    assert "classifier.0" in rows.first.inner_text()
    table.get_by_role("button", name="Parameters").click()
    assert table.locator("th[aria-sort=ascending]").inner_text().startswith("Parameters")
    assert rows.last.locator("th").inner_text() == "classifier.0"
    page.get_by_label("Filter").fill("features")
    assert rows.count() == 5
    page.get_by_label("Kind").select_option("conv")
    assert rows.count() == 2
    assert page.locator("output").inner_text() == "2 of 8 rows"


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_repeated_blocks_of_a_long_table_are_folded(make, opened, script: bool) -> None:
    page = opened(make.result(blocks(make, 60)), java_script_enabled=script)
    rows = page.locator("table[data-layers] tbody tr:visible")

    assert rows.count() == 6 + 1
    assert "59 more Bottleneck as layer.0" in rows.last.inner_text()
    assert rows.last.locator("td.n").first.inner_text() == f"{6 * sum(10 + n for n in range(1, 60)):,}"
    page.get_by_label("Show repeated blocks").check()
    assert rows.count() == 360


def test_a_filter_and_a_sort_see_folded_rows(make, opened) -> None:
    page = opened(make.result(blocks(make, 60)))
    rows = page.locator("table[data-layers] tbody tr:visible")

    page.get_by_label("Filter").fill("layer.42.")
    assert rows.count() == 6
    page.get_by_label("Filter").fill("")
    assert rows.count() == 7
    page.get_by_role("button", name="Line").click()
    assert rows.count() == 360
    page.get_by_role("button", name="#").click()
    assert rows.count() == 7


def test_structure_folds_blocks_and_marks_findings(make, opened) -> None:
    found = [make.finding("CNV201", "warning", ["layer.7.conv2"]), make.finding("CNV301", "info", ["layer.3.conv1"])]
    page = opened(make.result(blocks(make, 60, findings=found)))
    graph = page.locator(".graph")

    assert "60 × Bottleneck" in graph.locator("summary").first.inner_text()
    graph.locator("summary").nth(1).click()
    marked = graph.locator("li li li", has=page.locator(".mark"))
    assert [row.split("\n")[0] for row in marked.all_inner_texts()] == ["conv1 Conv2d CNV301", "conv2 Conv2d CNV201"]
    marked.first.get_by_role("link").click()
    assert page.locator(".finding:target .code").inner_text() == "CNV301"


def test_keyboard_alone(make, opened) -> None:
    page = opened(make.result(make.target()))
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(document.activeElement.textContent || '').trim()"))
        if reached[-1].startswith(("How to suppress", "Parameters")):
            page.keyboard.press("Enter")
        if reached[-1] == "Parameters":
            break

    assert "How to suppress it" in reached
    assert page.locator("pre", has_text="convaudit: ignore[CNV101]").is_visible()
    assert page.locator("table[data-layers] th[aria-sort=descending]").inner_text().startswith("Parameters")


def test_several_targets_are_folded_and_a_link_opens_one(make, opened) -> None:
    page = opened(make.result(*[make.target(f"m.py:Net{i}") for i in range(5)]))

    assert page.locator("details.target[open]").count() == 0
    page.get_by_role("link", name="m.py:Net3").click()
    assert page.locator("details.target[open]").get_attribute("id") == "t4"
    page.locator("#targets").get_by_role("button", name="Target").click()
    page.locator("#targets").get_by_role("button", name="Target").click()
    assert page.locator("#targets tbody th").first.inner_text() == "m.py:Net4"


def test_reads_without_script(make, opened) -> None:
    page = opened(make.result(make.target()), java_script_enabled=False)

    assert "2 warnings, 1 info" in page.locator(".verdict").inner_text()
    assert page.locator("table[data-layers] tbody tr:visible").count() == 8
    assert not page.get_by_label("Filter").is_visible()


def test_charts_are_text(make, opened) -> None:
    page = opened(make.result(make.target()))
    parameters = page.locator(".charts figure").first

    assert parameters.locator("svg").first.get_attribute("aria-label") == "Parameters, treemap by module"
    assert parameters.locator("text", has_text=re.compile("^classifier.0$")).is_visible()
    assert parameters.get_by_label(re.compile(r"^classifier\.0: 1\.05M, 97\.7%")).count() == 1
    assert page.locator("svg [style], svg style, svg script, svg image").count() == 0


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_prints_every_finding(make, opened, script: bool) -> None:
    pypdf = pytest.importorskip("pypdf")
    page = opened(make.result(*[make.target(f"m.py:Net{i}") for i in range(5)]), java_script_enabled=script)

    pages = pypdf.PdfReader(io.BytesIO(page.pdf())).pages
    printed = re.sub(r"\s+", "", "".join(p.extract_text() for p in pages))
    for text in ("convs hold 11.7% of the parameters", "global average pooling, then Linear(128, 512)", "ignore[CNV101]"):
        assert printed.count(text.replace(" ", "")) >= 5, text


HOSTILE = (
    "<script>alert(1)</script>", "{{7*7}}", "x" * 10_000, "שלום \u202eabc", "🦊" * 3, "two\nlines", "</style>", "odd\udc80name", "'\"`&amp;",
)  # fmt: skip


def test_hostile_names_are_text(make, opened) -> None:
    def hostile(name: str):
        layers = [make.row(n, name, "conv", [1, 8, 8, 8], 9, 9) for n in (name, f"{name}.other")]
        found = make.finding("CNV101", "warning", [name], message=name, suggestion=name, evidence={name: name})
        return make.target(name, layers=layers, findings=[found], notes=[name], modules={name: name})

    page = opened(make.result(*map(hostile, HOSTILE)))
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")

    shown = page.locator("body").inner_text()
    assert [name for name in HOSTILE if html._figures.clean(name)[:40] not in shown] == []
    assert page.locator("html").evaluate("e => e.scrollWidth") <= 1280
    assert page.locator("script").count() == 1
